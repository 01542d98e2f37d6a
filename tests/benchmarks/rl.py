"""R1-Zero in minutes: cold start, reinforcement, and more imitation for the same time, seed by seed.

    python tests/benchmarks/rl.py --seeds 5                       about 5 minutes a seed on one core
    python tests/benchmarks/rl.py --seeds 5 --out grpo.jsonl      and every number of every seed

Task: 4-digit addition (`minids.tasks`), policy `config.policy` (0.3 M parameters, MLA and experts). The cold start has
two parts (`COLD`): demonstrations of which half are step by step, until 5 % of the training problems are solved when
sampled; then 40 % step by step, until a fifth is solved, looked at every 5 steps, since the share solved can double
within 20. Columns are learned late and suddenly: with 40 % from the first step, or with nothing but columns first, some
seeds took more than 1,500 steps. From there two copies go on for the same processor time: one by GRPO with the accuracy
reward alone, one by more imitation. Measured on 256 held-out problems, 8 samples each, temperature 1. Seconds are
processor time.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path

import torch

from minids import tasks
from minids.alphabet import Alphabet
from minids.config import policy
from minids.model import Transformer
from minids.rl import RLConfig, RLRun, Score, measure
from minids.sft import FineTuning, Pair, cold_start, demonstrations

WIDTH, NEW = 10, 32
COLD = ((0.5, 0.05, 20), (0.4, 0.2, 5))  # share of demonstrations step by step, until so many solved, steps to a look
alphabet = Alphabet()


def sampled(model: Transformer, split: str, n: int, samples: int, seed: int) -> Score:
    return measure(model, tasks.take(tasks.addition, n, split, 7), alphabet, samples, NEW, WIDTH, seed=seed)


def row(score: Score) -> dict[str, float]:
    right = [ok for line in score.right.tolist() for ok in line]
    direct = ["<think></think>" in text for line in score.texts for text in line]
    forms = {name: [ok for ok, d in zip(right, direct, strict=True) if d == which]
             for name, which in (("direct", True), ("worked", False))}  # fmt: skip
    return {
        "pass@1": score.accuracy, "pass@8": score.pass_at(8),
        "votes@8": score.votes(tasks.take(tasks.addition, len(score.texts), "test", 7), 8),
        "worked": score.worked, "length": score.length,
        **{f"{name} right": sum(v) / len(v) if v else 0.0 for name, v in forms.items()},
    }  # fmt: skip


def cold_model(seed: int) -> tuple[Transformer, Iterator[Pair], int]:
    """The model of a seed after both parts of its cold start, the demonstrations that it saw last, and its steps."""
    model = Transformer(policy(len(alphabet)), torch.Generator().manual_seed(seed))
    source, dice = tasks.problems(tasks.addition, "train", seed), iter(range(10**6))
    pairs, steps = iter(()), 0
    for worked, until, every in COLD:
        pairs = demonstrations(source, worked, seed)
        gate = cold_start(model, pairs, alphabet, lambda: sampled(model, "train", 256, 1, next(dice)).accuracy,
                          until, every, width=WIDTH, progress=False)  # fmt: skip
        steps += gate[-1][0]
    return model, pairs, steps


def one_seed(seed: int, steps: int) -> dict:
    begin = time.process_time()
    model, pairs, cold_steps = cold_model(seed)
    found: dict = {"seed": seed, "cold_steps": cold_steps, "cold_seconds": time.process_time() - begin}
    found["before"] = row(sampled(model, "test", 256, 8, 0))
    control = deepcopy(model)
    begin = time.process_time()
    run = RLRun(model, tasks.problems(tasks.addition, "train", 100 + seed), tasks.accuracy, alphabet,
                RLConfig(steps=steps, max_new=NEW, width=WIDTH, seed=seed))  # fmt: skip
    for _ in range(steps):
        run.advance()
    seconds = time.process_time() - begin
    found |= {"rl_seconds": seconds, "after": row(sampled(model, "test", 256, 8, 0)), "history": run.history}
    found["control"] = row(sampled(more_imitation(control, pairs, seconds), "test", 256, 8, 0))
    return found


def more_imitation(model: Transformer, pairs, seconds: float) -> Transformer:
    """The cold start goes on for so many seconds, the rate falling to 0."""
    tuning, begin = FineTuning(model, alphabet, 2e-3, WIDTH), time.process_time()
    while (spent := time.process_time() - begin) < seconds:
        tuning.step([next(pairs) for _ in range(64)], scale=1 - spent / seconds)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--steps", type=int, default=220)
    parser.add_argument("--out", type=Path, help="append each seed as a line of JSON")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(
        "| seed | cold start | policy | pass@1 | pass@8 | votes@8 | step by step | right direct | right step by step |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for seed in range(args.first, args.first + args.seeds):
        found = one_seed(seed, args.steps)
        for name, what in (("before", "cold start"), ("after", f"RL, {found['rl_seconds']:.0f} s"),
                           ("control", "imitation, as long")):  # fmt: skip
            r = found[name]
            print(f"| {seed} | {found['cold_steps']} steps, {found['cold_seconds']:.0f} s | {what} | "
                  f"{r['pass@1']:.3f} | "
                  f"{r['pass@8']:.3f} | {r['votes@8']:.3f} | {r['worked']:.2f} | {r['direct right']:.3f} | "
                  f"{r['worked right']:.3f} |", flush=True)  # fmt: skip
        if args.out:
            with args.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
