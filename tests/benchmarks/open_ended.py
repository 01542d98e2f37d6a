"""Does thinking grow because it helps? Length and accuracy of three seeds, and of one that is paid for length.

    python tests/benchmarks/open_ended.py --seeds 3                            about 8 processor minutes a seed
    python tests/benchmarks/open_ended.py --seeds 3 --out open_ended.jsonl     and every row of every run

Each seed is `minids zero`: a cold start on tries that stop at a random place, then GRPO with the accuracy reward alone.
From the same cold start, the first seed is also paid for form and length and never for the answer. Measured on the
held-out problems, 16 samples each, temperature 1; printed for the cold start and after each quarter of the steps.
Seconds are processor time, the cold start included.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import torch

from minids.zero import ZeroConfig, ZeroRun, longer_without_better, train_zero

PRINTED = ("accuracy", "thinking", "hit", "early", "past")


def quarters(rows: list[dict]) -> list[dict]:
    """The rows at the start, at each quarter, and at the end."""
    return [rows[round(i * (len(rows) - 1) / 4)] for i in range(5)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--minutes", type=float, default=8.0, help="processor time of a run, cold start included")
    parser.add_argument("--steps", type=int, default=0, help="steps of reinforcement instead of minutes")
    parser.add_argument("--every", type=int, default=5, help="steps between two measurements")
    parser.add_argument("--warnings", type=int, default=1, help="seeds that are also paid for length")
    parser.add_argument("--out", type=Path, help="append each run as a line of JSON")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"| reward | seed | seconds | step | {' | '.join(PRINTED)} |\n|{'---|' * (4 + len(PRINTED))}")
    for seed in range(args.first, args.first + args.seeds):
        run = ZeroRun(ZeroConfig(minutes=args.minutes, steps=args.steps, seed=seed, every=args.every))
        run.cold_start(progress=False)
        runs = [run, paid_for_length(run)] if seed - args.first < args.warnings else [run]
        for found in map(finish, runs):
            if args.out:
                with args.out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(found) + "\n")


def paid_for_length(run: ZeroRun) -> ZeroRun:
    """The same cold start, with the other reward."""
    other = ZeroRun(replace(run.cfg, warning=True))
    other.rl.model.load_state_dict(run.rl.model.state_dict())
    other.rl.history = [record | {"warning": True} for record in run.rl.history]
    return other


def finish(run: ZeroRun) -> dict:
    """Reinforce; prints the quarters, and what the command would have said on the way."""
    rows = train_zero(run, progress=False)
    name = "length" if run.cfg.warning else "accuracy"
    for row in quarters(rows):
        values = " | ".join(f"{row[k]:.1f}" if k == "thinking" else f"{row[k]:.3f}" for k in PRINTED)
        print(f"| {name} | {run.cfg.seed} | {run.seconds:.0f} | {row['step']} | {values} |", flush=True)
    said = [text for n in range(len(rows)) if (text := longer_without_better(rows[: n + 1]))]
    print(f"seed {run.cfg.seed}, paid for {name}: {len(said)} warnings{'; the first: ' + said[0] if said else ''}")
    return {"seed": run.cfg.seed, "reward": name, "seconds": run.seconds, "rows": rows}


if __name__ == "__main__":
    main()
