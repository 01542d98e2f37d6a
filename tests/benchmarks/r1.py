"""What R1's parts do by themselves, seed by seed: the language reward, a learned judge, distillation.

    python tests/benchmarks/r1.py --seeds 0 1 2 --out runs/r1.jsonl      about 5 minutes a seed on one core
    python tests/benchmarks/r1.py --price --steps 120                    the price of the language reward alone, a table
    python tests/benchmarks/r1.py --run runs/r1                          the students alone, on what a long run kept

From one cold start (82 s, as in `minids r1 --minutes 8`) two copies are reinforced for the same number of steps, one
paid for accuracy alone, one for accuracy and language. A reward model learns from a reader's choices between the cold
model's responses, and a copy is reinforced by it alone. The second copy's right and readable samples teach a student a
quarter as large; beside it the same student goes through a cold start and GRPO of its own for the same processor time.
Sampled at temperature 1 on 128 held-out problems a task, 4 times each. `assets/r1.jsonl` holds such lines.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from statistics import mean, stdev

import torch

from minids import checkpoint
from minids.alphabet import Alphabet
from minids.config import policy
from minids.distill import blank_student, distilled, reinforced
from minids.language_mixing import first_demonstrations, mixture, rule_reward
from minids.model import Transformer
from minids.r1 import examine
from minids.r1_stages import NEW, WIDTH, Imitation, JudgedRun, Rejection, spend
from minids.reward_model import Preferences, counting, liking
from minids.rl import RLConfig, RLRun
from minids.tasks import accuracy

alphabet = Alphabet()
REWARDS = {"accuracy alone": accuracy, "with language": rule_reward}


def settings(seed: int) -> RLConfig:
    return RLConfig(steps=10**6, max_new=NEW, width=WIDTH, decay=False, seed=seed)


def say(seed: int, name: str, record: dict) -> dict:
    print(json.dumps({"seed": seed, "name": name, **record}), flush=True)
    return record


def cold_model(seed: int, seconds: float) -> Transformer:
    model = Transformer(policy(len(alphabet)), torch.Generator().manual_seed(seed))
    spend(Imitation(model, first_demonstrations(seed), alphabet, 4e-3, falls=False), seconds)
    return model


def paid_by(reward, cold: Transformer, steps: int, seed: int) -> tuple[Transformer, dict]:
    model, begin = deepcopy(cold), time.process_time()
    spend(RLRun(model, mixture(seed + 100), reward, alphabet, settings(seed)), steps=steps)
    spent = time.process_time() - begin
    return model, asdict(examine(model, alphabet)) | {"seconds": spent}


def both_rewards(seed: int, cold: Transformer, steps: int) -> tuple[dict, Transformer]:
    """What each reward makes of one cold start, and the model that was paid for the language too."""
    found, model = {"cold": say(seed, "cold", asdict(examine(cold, alphabet)))}, cold
    for name, reward in REWARDS.items():
        model, record = paid_by(reward, cold, steps, seed)
        found[name] = say(seed, name, record)
    return found, model


def price_table(found: list[dict]) -> str:
    """Accuracy a task and language with and without the reward: each seed, mean and standard deviation, difference."""
    rows = {name: [[*f[name]["solved"].values(), f[name]["language"]] for f in found] for name in ("cold", *REWARDS)}
    rows["difference"] = [
        [b - a for a, b in zip(*pair, strict=True)] for pair in zip(*(rows[name] for name in REWARDS), strict=True)
    ]
    tasks = found[0]["cold"]["solved"]
    lines = [f"| paid for | seed | {' | '.join(tasks)} | language |", "|---|---|" + "---|" * (len(tasks) + 1)]
    for name, values in rows.items():
        for f, row in zip(found, values, strict=True):
            lines.append(f"| {name} | {f['seed']} | {' | '.join(f'{v:.3f}' for v in row)} |")
        if len(found) > 1:
            spread = [f"{mean(v):.3f} ± {stdev(v):.3f}" for v in zip(*values, strict=True)]
            lines.append(f"| {name} | mean | {' | '.join(spread)} |")
    return "\n".join(lines)


def over_rewarded(cold: Transformer, pairs: int, steps: int, seed: int) -> dict:
    """Reinforcement by a learned judge alone: what it pays, what the reader would say, how long the answers get."""
    learner = Preferences(cold, alphabet, WIDTH, max_new=NEW, seed=seed)
    choices = spend(learner, steps=pairs)
    run = JudgedRun(deepcopy(cold), counting(), rule_reward, alphabet, settings(seed), learner.model)
    said = []
    pay = run.pay

    def noting(asked, texts):
        said.append(sum(map(liking, asked, texts)) / len(texts))
        return pay(asked, texts)

    run.pay = noting  # type: ignore[method-assign]
    records = spend(run, steps=steps)
    return {"agrees": choices[-1]["agrees"], "liking": said, "paid": [r["reward"] for r in records],
            "length": [r["length"] for r in records]}  # fmt: skip


def one_seed(seed: int, cold: Transformer, steps: int, seconds: float) -> dict:
    found, teacher = both_rewards(seed, cold, steps)
    found["learned judge"] = say(seed, "learned judge", over_rewarded(cold, 40, 40, seed))
    samples = Rejection(teacher, mixture(seed + 2000), alphabet, seed)
    spend(samples, steps=12)
    random.Random(seed).shuffle(samples.kept)
    return found | students(seed, samples.kept, seconds)


def students(seed: int, kept: list, seconds: float) -> dict:
    """A small model taught by the kept samples, and one that finds out by itself, for the same processor time."""
    student, found = blank_student(alphabet, seed), {}
    for name, model in (("distilled", distilled(student, kept, alphabet, seconds, seed=seed)),
                        ("own RL", reinforced(student, alphabet, seconds, seed=seed))):  # fmt: skip
        found[name] = say(seed, name, asdict(examine(model, alphabet)) | {"kept": len(kept)})
    return found


def kept_by(run: Path) -> list:
    """The samples that a finished `minids r1 --out` kept."""
    path = checkpoint.latest(run)
    if path is None:
        raise ValueError(f"--run is the --out of `minids r1`; {run} holds no checkpoint. Start that command first.")
    return [tuple(pair[:2]) for pair in checkpoint.load(path)[1]["kept"]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=50, help="of reinforcement")
    parser.add_argument("--seconds", type=float, default=45, help="processor time of each student")
    parser.add_argument("--cold", type=Path, help="a model directory to start from instead of a cold start")
    parser.add_argument("--price", action="store_true", help="only the two rewards, and a table of both")
    parser.add_argument("--run", type=Path, help="a finished run of `minids r1`: only the students, on what it kept")
    parser.add_argument("--out", type=Path, help="append each seed as a line of JSON")
    args = parser.parse_args()
    torch.set_num_threads(1)
    every = []
    for seed in args.seeds:
        if args.run:
            students(seed, kept_by(args.run), args.seconds)
            continue
        cold = checkpoint.load_model(args.cold)[0].requires_grad_(True) if args.cold else cold_model(seed, 82)
        found = {"seed": seed, "steps": args.steps}
        parts = both_rewards(seed, cold, args.steps)[0] if args.price else None
        found |= parts or one_seed(seed, cold, args.steps, args.seconds)
        every.append(found)
        if args.out:
            with args.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(found) + "\n")
    if every:
        print(price_table(every))


if __name__ == "__main__":
    main()
