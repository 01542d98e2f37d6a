"""`minids train`: train a model, or go on with the run in a directory."""

from __future__ import annotations

import argparse

from minids.cli.options import Command
from minids.config import PRESETS
from minids.recipe import add_options, from_options
from minids.train import chosen, train


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
    add_options(parser)


def _train(args: argparse.Namespace) -> int:
    cfg = chosen(args.preset, args.set)
    done = train(cfg, from_options(args), args.out, device=args.device, progress=not args.quiet)
    if not done.finished:
        return 130
    loss = f", last loss {done.history[-1]['main']:.3f}" if done.history else ""
    print(f"{done.step} steps in {done.seconds:.0f} s{loss}. The model is in {args.out}.")
    print(f"Next: minids generate --model {args.out}    minids eval --model {args.out}")
    return 0
