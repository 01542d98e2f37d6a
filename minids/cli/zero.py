"""`minids zero`: reward for right answers alone, and thinking that has no fixed length; or the warning."""

from __future__ import annotations

import argparse

import torch
from tqdm import tqdm

from minids import checkpoint
from minids.cli.options import Command
from minids.tasks import TASKS
from minids.zero import ZeroConfig, ZeroRun, line, longer_without_better, train_zero


def add(command: Command) -> None:
    parser = command("zero", _zero, "R1-Zero: reward alone, on thinking of no fixed length")
    parser.add_argument("--task", default="trial", help=f"trial is open-ended; or one of {', '.join(TASKS)}")
    parser.add_argument("--minutes", type=float, default=8.0, help="processor time, cold start included")
    parser.add_argument("--seed", type=int, default=0, help="of weights, problems and samples")
    parser.add_argument("--out", default="runs/zero", help="directory of the run; a run that is there goes on")
    parser.add_argument("--warning", action="store_true", help="pay for form and length, never for the answer")
    parser.add_argument("--steps", type=int, default=0, help="steps of reinforcement instead of minutes, for a trial")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def _zero(args: argparse.Namespace) -> int:
    torch.set_num_threads(1)  # models this small gain little from a second core
    run = ZeroRun(ZeroConfig(args.task, args.minutes, args.steps, args.seed, args.warning))
    seen: list[dict] = []

    def show(row: dict) -> None:
        if not seen:
            tqdm.write(line([*row, "entropy"]))
        seen.append(row)
        tqdm.write(line(row))
        if warning := longer_without_better(seen):
            tqdm.write(warning)

    print("Measured on held-out problems; thinking in tokens, the other columns as shares. First the cold start.")
    try:
        train_zero(run, args.out, progress=not args.quiet, on_row=show)
    except RuntimeError as error:  # the cold start found no end: the task is too hard for this policy
        raise ValueError(f"{args.task}: {error}") from error
    if not run.finished:
        return 130
    print(f"{run.seconds:.0f} s of processor time. The model is in {checkpoint.save_model(args.out, run.rl.model)}.")
    return 0
