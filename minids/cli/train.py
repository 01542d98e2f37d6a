"""`minids train`: train a model, or go on with the run in a directory."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from typing import Any

from minids.cli.options import Command
from minids.config import PRESETS, Config, preset
from minids.costs import params
from minids.recipe import TrainConfig
from minids.train import train

MOST_PARAMS = 1_000_000_000  # what `train` takes on: 16 bytes each with gradient and moments
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


def add(command: Command) -> None:
    _train_options(command("train", _train, "train a model, or go on with the run in --out"))


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
