"""The command line: count a model, train one, let it write, measure it, and carry weights to and from Hugging Face.

Paper: none; each command is a thin shell over one module (`costs`, `train`, `generate`, `stories`, `hf`).

    minids info v3                                   parameters, activated parameters, cache, operations
    minids train --minutes 10 --out runs/mine        train, or go on where that directory stands
    minids generate "Mia found a red" --seed 1       write on, from the shipped model or --model DIR
    minids eval --model runs/mine                    bits per byte, grammatical stories, balanced experts
    minids export-hf out --model runs/mine           for transformers and what reads its format
    minids import-hf their/dir mine/                 the other way

What a user can mend (a wrong path, a size that does not fit) ends with one line on stderr and exit code 2, Ctrl-C
with 130.

Differs from the paper: nothing to differ from.
Left out: serving (17_serving), training on several machines (torchrun on a script of your own).
Notebook: 00_start uses `info` and `generate`, 08_pretrain `train` and `eval`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from minids import checkpoint
from minids.config import PRESETS, Config, preset
from minids.corpus import DOMAINS, Packed, documents
from minids.costs import cache_values_per_token, forward_flops_per_token, kv_bytes_per_token, params
from minids.generate import generate, stream_text
from minids.hf import from_hf, to_hf
from minids.hf_config import config_from_hf
from minids.model import Transformer
from minids.recipe import TrainConfig
from minids.router import max_violation
from minids.stories import grammatical, sentences
from minids.tokenizer import Tokenizer
from minids.train import evaluate, train

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
MOST_PARAMS = 1_000_000_000  # what `train` takes on: 16 bytes each with gradient and moments


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code (0, 2 after a mistake that the user can mend, 130 after Ctrl-C)."""
    for out in (sys.stdout, sys.stderr):  # a Windows console may be unable to show Chinese
        if hasattr(out, "reconfigure"):
            out.reconfigure(encoding="utf-8", errors="replace")  # type: ignore[union-attr]
    args = _parser().parse_args(argv)
    try:
        if getattr(args, "threads", None):
            torch.set_num_threads(args.threads)
        return args.run(args) or 0
    except BrokenPipeError:  # the reader went away, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError) as error:
        print(f"minids {args.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nminids: stopped by Ctrl-C.", file=sys.stderr)
        return 130


# ---- info


def _info(args: argparse.Namespace) -> None:
    cfg = _config(args.what)
    p = params(cfg)
    rows = [
        ("input embedding", p.embedding), ("attention", p.attention), ("dense FFNs", p.dense_ffn),
        ("routed experts", p.experts), ("shared experts", p.shared_experts), ("gates", p.gates), ("norms", p.norms),
        ("output head", p.head),
    ]  # fmt: skip
    print(f"{args.what}: {cfg.n_layers} layers ({cfg.n_moe_layers} with experts), dim {cfg.dim}, {cfg.n_heads} heads\n")
    for name, n in rows:
        print(f"  {name:<32}{n:>20,}   {n / p.total:6.1%}")
    print(f"  {'total':<32}{p.total:>20,}   100.0%")
    print(f"  {'MTP modules, beside the total':<32}{f'+{p.mtp:,}':>20}\n")
    convention = "without the input embedding, the papers' convention"
    print(f"  activated by one token          {p.activated:>20,}   {_short(p.activated)} {convention}")
    everything = p.activated_with_embedding
    print(f"  activated, embedding included   {everything:>20,}   {_short(everything)}\n")
    per_layer = cache_values_per_token(cfg)
    print(f"  cache of one token in BF16      {kv_bytes_per_token(cfg):>20,}   bytes: {per_layer} values x "
          f"{cfg.n_layers} layers x 2")  # fmt: skip
    print(f"  operations of one token         {forward_flops_per_token(cfg):>20,}   forward, at an empty context")
    if not args.no_build:
        counted = _count_on_meta(cfg, p.total + p.mtp)
        print(f"  counted on the meta device      {counted:>20,}   total and MTP, tensor by tensor")


def _short(n: int) -> str:
    """36,625,618,432 as 36.6B."""
    return f"{n / 1e9:.1f}B" if n >= 1e9 else f"{n / 1e6:.1f}M"


def _count_on_meta(cfg: Config, expected: int) -> int:
    """The same number from the model itself, built without memory."""
    with torch.device("meta"):
        model = Transformer(cfg)
    found = sum(t.numel() for t in model.state_dict().values())
    if found != expected:
        raise ValueError(
            f"formula and model must agree; got {expected:,} and {found:,}. This is a bug in minids.costs."
        )
    return found


def _config(what: str) -> Config:
    """A preset's name, a directory of minids, or one of Hugging Face."""
    path = Path(what)
    if not path.is_dir():
        if "/" in what or os.sep in what or path.exists():
            raise FileNotFoundError(f"there is no directory {what}. Give one, or a preset: {', '.join(PRESETS)}.")
        return preset(what)
    if (path / "config.json").is_file():
        found = json.loads((path / "config.json").read_text(encoding="utf-8"))
        if "model_type" in found:
            return config_from_hf(found, found.get("num_nextn_predict_layers") or 0)
    return checkpoint.read_config(path)


# ---- train


def _train(args: argparse.Namespace) -> int:
    given = {f.name: getattr(args, f.name) for f in dataclasses.fields(TrainConfig) if hasattr(args, f.name)}
    if not given.get("steps") and not given.get("minutes"):
        given["minutes"] = 10
    cfg = _changed(preset(args.preset), args.set)
    if params(cfg).total > MOST_PARAMS:
        raise ValueError(
            f"this command trains models of at most {MOST_PARAMS:,} parameters; got {params(cfg).total:,}. "
            "See them with `minids info`, and shrink with --set, for instance --set n_layers=4."
        )
    done = train(cfg, TrainConfig(**given), args.out, device=args.device, progress=not args.quiet)
    if not done.finished:
        return 130
    loss = f", last loss {done.history[-1]['main']:.3f}" if done.history else ""
    print(f"{done.step} steps in {done.seconds:.0f} s{loss}. The model is in {args.out}.")
    print(f"Next: minids generate --model {args.out}    minids eval --model {args.out}")
    return 0


def _changed(cfg: Config, changes: Sequence[str]) -> Config:
    """`cfg` with KEY=VALUE changes, each read as the type that the field has."""
    kinds = {f.name: type(getattr(cfg, f.name)) for f in dataclasses.fields(cfg)}
    values: dict[str, Any] = {}
    for change in changes:
        key, _, text = change.partition("=")
        if key not in kinds:
            raise ValueError(f"--set takes a size of the model; got {change!r}. The sizes are {', '.join(kinds)}.")
        try:
            values[key] = text == "True" if kinds[key] is bool else kinds[key](text)
        except ValueError as e:
            raise ValueError(
                f"--set {key} wants {kinds[key].__name__}; got {text!r}. It is {getattr(cfg, key)} now."
            ) from e
    return dataclasses.replace(cfg, **values)


def _weights(text: str) -> dict[str, float]:
    """en=0.5,code=0.5"""
    try:
        return {name: float(share) for name, share in (part.split("=") for part in text.split(","))}
    except ValueError:
        raise argparse.ArgumentTypeError(f"shares are written en=0.5,code=0.5; got {text!r}") from None


# ---- generate


def _generate(args: argparse.Namespace) -> None:
    model, tokenizer = _load(args)
    generator = torch.Generator(args.device)
    if args.seed is None:
        generator.seed()
    else:
        generator.manual_seed(args.seed)
    pieces = stream_text(
        model, tokenizer, args.prompt, args.max_new_tokens, args.chat, temperature=args.temperature, top_p=args.top_p,
        frequency_penalty=args.frequency_penalty, generator=generator,
    )  # fmt: skip
    if not args.chat:
        print(args.prompt, end="", flush=True)
    for piece in pieces:
        print(piece, end="", flush=True)
    print()


def _load(args: argparse.Namespace) -> tuple[Transformer, Tokenizer]:
    path = Path(args.model) if args.model else checkpoint.shipped()
    model, tokenizer = checkpoint.load_model(path, device=args.device)
    if tokenizer is None:
        raise ValueError(f"text needs a tokenizer, and {path} holds none. Put its tokenizer.json beside the weights.")
    return model, tokenizer


# ---- eval


@torch.no_grad()
def _eval(args: argparse.Namespace) -> None:
    model, tokenizer = _load(args)
    seq_len = min(args.seq_len, model.cfg.max_seq_len)
    domains = [*DOMAINS, "file"] if args.corpus else DOMAINS
    print(f"held-out text, {args.rows} rows of {seq_len} tokens each\n\n  {'domain':<10}bits per byte")
    for domain in domains:
        print(
            f"  {domain:<10}{evaluate(model, tokenizer, seq_len, args.rows, [domain], args.corpus)[domain]:.3f}",
            flush=True,
        )
    if model.cfg.n_moe_layers:
        load = model.losses(Packed(tokenizer, seq_len, "val").batch(args.rows).to(args.device)).load
        violation = ", ".join(f"{v:.2f}" for v in max_violation(load).tolist())
        print(f"\n  MaxVio of each MoE layer, MTP last (0 is perfect balance): {violation}")
    if args.samples:
        print(f"\n  stories written on from a first sentence, temperature {args.temperature}:")
    for lang in ("en", "zh") if args.samples else ():
        good, share = _judge(model, tokenizer, lang, args)
        print(f"  {lang}  {good:.0%} of {args.samples} without a fault; {share:.0%} of sentences parse", flush=True)


def _judge(model: Transformer, tokenizer: Tokenizer, lang: str, args: argparse.Namespace) -> tuple[float, float]:
    """(share of stories without a fault, mean share of sentences that parse), judged by the stories' own grammar."""
    starts = [sentences(text, lang)[0][0] for text in documents(lang, "val", args.samples, args.seed)]
    prompts = [tokenizer.encode(start, bos=True) for start in starts]
    generator = torch.Generator(args.device).manual_seed(args.seed)
    written = generate(model, prompts, 300, args.temperature, stop_ids=(tokenizer.eos,), generator=generator)
    texts = [start + tokenizer.decode(ids) for start, ids in zip(starts, written, strict=True)]  # type: ignore[arg-type]
    verdicts = [grammatical(text, lang) for text in texts]
    return sum(v.ok for v in verdicts) / len(verdicts), sum(v.share for v in verdicts) / len(verdicts)


# ---- Hugging Face


def _export(args: argparse.Namespace) -> None:
    model, tokenizer = checkpoint.load_model(Path(args.model) if args.model else checkpoint.shipped())
    to_hf(model, args.out, tokenizer, DTYPES[args.dtype], args.mtp)
    print(f'{args.out}: open it with transformers.AutoModelForCausalLM.from_pretrained("{args.out}").')


def _import(args: argparse.Namespace) -> None:
    model, found = from_hf(args.source), Path(args.source) / "tokenizer.json"
    tokenizer = None
    if found.is_file():
        try:
            tokenizer = Tokenizer.load(found)
        except (ValueError, KeyError) as error:
            print(f"minids: the weights are taken over, the tokenizer is not: {error}", file=sys.stderr)
    checkpoint.save_model(args.out, model, tokenizer, DTYPES[args.dtype])
    print(f"{args.out}: {params(model.cfg).total:,} parameters. Next: minids info {args.out}")


# ---- what can be said on the command line

TRAIN_HELP = {
    "steps": "how many steps; or --minutes",
    "minutes": "how long; 10 when neither is given",
    "batch_size": "sequences a step",
    "micro_batch": "sequences computed at once, the rest is accumulated; 0: all",
    "seq_len": "tokens a sequence",
    "lr": "peak learning rate",
    "warmup_steps": "steps until the peak",
    "weight_decay": "of AdamW",
    "grad_clip": "largest gradient norm",
    "moments": "AdamW's moments: fp32 or the paper's bf16",
    "precision": "fp32; fp8, emulated; or bf16 on a GPU",
    "gamma": "step of the balancing bias",
    "balance_alpha": "weight of the sequence-wise balance loss",
    "ema_decay": "of the average of the weights; 0: none",
    "export": "what the finished model is: model or ema",
    "seed": "of weights and data",
    "fim_rate": "share of documents rewritten to fill in the middle",
    "corpus": "a text file of yours, mixed in",
    "eval_every": "steps between evaluations; 0: never",
    "save_seconds": "seconds between checkpoints",
    "keep": "checkpoints kept",
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="minids",
        description="Build, train and run a small DeepSeek-V3. Every command has its own --help.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        made = commands.add_parser(
            name, help=text, description=text, formatter_class=argparse.ArgumentDefaultsHelpFormatter
        )
        made.set_defaults(run=run)
        return made

    info = command("info", _info, "count parameters, cache and operations of a preset or a model directory")
    info.add_argument("what", nargs="?", default="tiny", help=f"{', '.join(PRESETS)}, or a directory")
    info.add_argument("--no-build", action="store_true", help="do not check the formula by building the model")
    _train_options(command("train", _train, "train a model, or go on with the run in --out"))
    _generate_options(command("generate", _generate, "write on from a prompt, or answer it"))
    measure = command("eval", _eval, "bits per byte, balance of the experts, and the judge of stories")
    _model_options(measure)
    measure.add_argument("--rows", type=int, default=32, help="rows of held-out text for each domain")
    measure.add_argument("--seq-len", type=int, default=256, help="tokens of a row")
    measure.add_argument("--corpus", help="also measure on the held-out part of this text file")
    measure.add_argument("--samples", type=int, default=20, help="stories written in each language; 0: none")
    measure.add_argument("--temperature", type=float, default=0.7, help="of those stories")
    measure.add_argument("--seed", type=int, default=0, help="of those stories")
    out = command("export-hf", _export, "write a model in the Hugging Face format of DeepSeek-V3")
    out.add_argument("out", help="directory to write")
    out.add_argument("--model", help="directory of the model; the shipped one by default")
    out.add_argument("--dtype", choices=DTYPES, default="fp32", help="of the weights on disk")
    out.add_argument(
        "--mtp", choices=("apart", "inside", "drop"), default="apart", help="where MTP weights go: see minids.hf"
    )
    back = command("import-hf", _import, "take over a DeepSeek-V3 or V2 model from the Hugging Face format")
    back.add_argument("source", help="directory that holds config.json and safetensors")
    back.add_argument("out", help="directory to write")
    back.add_argument("--dtype", choices=DTYPES, default="fp32", help="of the weights on disk")
    return parser


def _model_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", help="directory of a run or a model; the shipped one by default")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ..")
    parser.add_argument("--threads", type=int, help="processor threads")


def _generate_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", nargs="?", default="", help="what to write on from; nothing: anything")
    _model_options(parser)
    parser.add_argument("--chat", action="store_true", help="the prompt is a user's message, the answer follows")
    parser.add_argument("--max-new-tokens", type=int, default=200, help="at most so many tokens")
    parser.add_argument("--temperature", type=float, default=0.7, help="0 always takes the likeliest token")
    parser.add_argument("--top-p", type=float, default=0.95, help="draw from the likeliest tokens of this mass")
    parser.add_argument("--frequency-penalty", type=float, default=0.0, help="taken from a logit for each earlier use")
    parser.add_argument("--seed", type=int, help="the same seed writes the same text")


def _train_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", default="runs/mine", help="directory of the run; a run that is there goes on")
    parser.add_argument("--preset", default="tiny", help=f"sizes of the model: {', '.join(PRESETS)}")
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="KEY=VALUE", help="change sizes, for instance n_layers=4"
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ..")
    parser.add_argument("--threads", type=int, help="processor threads")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    defaults = {f.name: f.default for f in dataclasses.fields(TrainConfig)}
    for name, text in TRAIN_HELP.items():
        kind = float if name == "minutes" else str if defaults[name] is None else type(defaults[name])
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, default=defaults[name], help=text)
    parser.add_argument("--weights", type=_weights, help="shares of the domains, for instance en=0.5,code=0.5")


EXAMPLES = """examples:
  minids info v3                                    671,026,419,200 parameters, counted two ways
  minids info tiny
  minids train --minutes 10 --out runs/mine         the same command again goes on with a stopped run
  minids train --steps 200 --set n_layers=4 n_routed_experts=32 --out runs/wide
  minids train --corpus my.txt --minutes 30 --out runs/my-text
  minids generate "Once upon a time" --temperature 0.8 --seed 1
  minids generate --chat "What is 12 + 30?" --model runs/mine
  minids eval --model runs/mine
  minids export-hf out --model runs/mine            then: transformers.AutoModelForCausalLM.from_pretrained("out")
  minids import-hf out back
"""
