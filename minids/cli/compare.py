"""`minids compare`: a change of sizes or settings against the reference, at equal processor time, with its spread."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

import torch

from minids.cli.options import Command
from minids.config import PRESETS, preset
from minids.recipe import TrainConfig
from minids.scoreboard import Arm, Result, race, table


def add(command: Command) -> None:
    parser = command("compare", _compare, "train a change and the reference for the same time, and say what shows")
    parser.add_argument("change", nargs="+", metavar="KEY=VALUE", help="sizes and settings, such as lr=2e-3 n_layers=4")
    parser.add_argument("--preset", default="tiny", help=f"the reference's sizes: {', '.join(PRESETS)}")
    parser.add_argument("--seconds", type=float, default=60, help="processor time of each run")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=8, help="sequences a step, of both unless changed")


def _compare(args: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    reference = Arm(preset(args.preset), TrainConfig(minutes=1, batch_size=args.batch_size))
    arms = {"reference": reference, " ".join(args.change): changed(reference, args.change)}
    print(f"2 arms x {args.seeds} seeds x {args.seconds:g} s of processor time; bits per byte, lower is better\n")
    print(table(race(arms, args.seconds, args.seeds, on_result=_say)))


def _say(r: Result) -> None:
    print(f"  seed {r.seed}  {r.mean:.3f} after {r.steps} steps  {r.arm}", flush=True)


def changed(arm: Arm, changes: list[str]) -> Arm:
    """`arm` with KEY=VALUE changes of its sizes or settings. ValueError names what there is."""
    parts: dict[str, Any] = {"model": arm.model, "train": arm.train}
    for change in changes:
        key, _, text = change.partition("=")
        part = next((p for p, value in parts.items() if hasattr(value, key) and key in _fields(value)), None)
        if part is None:
            known = ", ".join([*_fields(arm.model), *_fields(arm.train)])
            raise ValueError(
                f"a change is KEY=VALUE with a size or a setting as KEY; got {change!r}. There are {known}."
            )
        now = getattr(parts[part], key)
        try:
            value = text == "True" if isinstance(now, bool) else type(now)(text)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{key} wants {type(now).__name__}; got {text!r}. It is {now!r} now.") from error
        parts[part] = dataclasses.replace(parts[part], **{key: value})
    return Arm(parts["model"], parts["train"], arm.patch)


def _fields(value: Any) -> list[str]:
    return [f.name for f in dataclasses.fields(value) if f.name not in ("steps", "minutes", "seed")]
