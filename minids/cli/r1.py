"""`minids r1`: DeepSeek-R1's whole recipe in minutes, or go on with the run in a directory."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import torch
from tqdm import tqdm

from minids import checkpoint
from minids.cli.options import Command
from minids.r1 import RECIPE, R1Config, R1Run, table, train_r1


def add(command: Command) -> None:
    parser = command("r1", _r1, "cold start, RL, rejection sampling, SFT, RL: the whole recipe, and its table")
    parser.add_argument("--minutes", type=float, default=8.0, help="processor time of all stages")
    parser.add_argument("--seed", type=int, default=0, help="of weights, problems and samples")
    parser.add_argument("--out", default="runs/r1", help="directory of the run; a run that is there goes on")
    parser.add_argument("--steps", type=int, default=0, help="steps of every stage instead of minutes, for a trial")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def _r1(args: argparse.Namespace) -> int:
    torch.set_num_threads(1)  # models this small gain little from a second core
    run = R1Run(R1Config(minutes=args.minutes, seed=args.seed, steps=args.steps))
    print(f"{len(RECIPE)} stages: {', '.join(stage.name for stage in RECIPE)}")
    tqdm.write(table([]))
    train_r1(run, args.out, progress=not args.quiet, on_exam=lambda r: tqdm.write(table(r.table).splitlines()[-1]))
    if not run.finished:
        return 130
    out = Path(args.out)
    for name, model in (("cold", run.cold), ("final", run.policy)):
        checkpoint.save_model(out / name, model)
    rows = [json.dumps(asdict(row), ensure_ascii=False) for row in run.table]
    (out / "table.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    print(f"\n{table(run.table)}\n\n{run.total:.0f} s of processor time; {len(run.kept)} samples kept. "
          f"The models are in {out / 'cold'} and {out / 'final'}.")  # fmt: skip
    return 0
