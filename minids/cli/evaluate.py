"""`minids eval`: bits per byte of held-out text, balance of the experts, and the judge of stories."""

from __future__ import annotations

import argparse

import torch

from minids.cli.options import Command, load, model_options
from minids.corpus import DOMAINS, Packed, documents
from minids.generate import generate
from minids.model import Transformer
from minids.router import max_violation
from minids.stories import grammatical, sentences
from minids.tokenizer import Tokenizer
from minids.train import evaluate


def add(command: Command) -> None:
    measure = command("eval", _eval, "bits per byte, balance of the experts, and the judge of stories")
    model_options(measure)
    measure.add_argument("--rows", type=int, default=32, help="rows of held-out text for each domain")
    measure.add_argument("--seq-len", type=int, default=256, help="tokens of a row")
    measure.add_argument("--corpus", help="also measure on the held-out part of this text file")
    measure.add_argument("--samples", type=int, default=20, help="stories written in each language; 0: none")
    measure.add_argument("--temperature", type=float, default=0.7, help="of those stories")
    measure.add_argument("--seed", type=int, default=0, help="of those stories")


@torch.no_grad()
def _eval(args: argparse.Namespace) -> None:
    model, tokenizer = load(args)
    seq_len = min(args.seq_len, model.cfg.max_seq_len)
    domains = [*DOMAINS, "file"] if args.corpus else DOMAINS
    print(f"held-out text, {args.rows} rows of {seq_len} tokens each\n\n  {'domain':<10}bits per byte")
    for domain in domains:
        print(
            f"  {domain:<10}{evaluate(model, tokenizer, seq_len, args.rows, [domain], args.corpus)[domain]:.3f}",
            flush=True,
        )
    if model.cfg.n_moe_layers:
        routed = model.losses(Packed(tokenizer, seq_len, "val").batch(args.rows).to(args.device)).load
        violation = ", ".join(f"{v:.2f}" for v in max_violation(routed).tolist())
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
