"""Does a mixture of experts pay at this size? Train it and dense rivals for the same time and the same tokens.

    python tests/benchmarks/dense.py --minutes 10 --seeds 3 --out dense.jsonl      hours
    python tests/benchmarks/dense.py --minutes 0.2 --seeds 1 --eval-every 10       a check that it runs

Time is processor time of all threads (time.process_time), so that a busy machine favours no arm; --wall takes the clock
on the wall instead, for runs that have their cores to themselves. Evaluation is not charged. Two series, a table for
each:

    time      every arm trains for --minutes; its schedule spans its own number of steps
    tokens    every arm trains for as many steps as the first arm made in `time` (its mean over seeds)

Each finished run is appended to --out, a file of JSON lines with its learning curve against tokens and seconds, and is
skipped when the command is started again. For a seed all arms see the same data in the same order, at the same learning
rate unless --lr says otherwise.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from minids.config import Config, preset
from minids.corpus import Packed
from minids.model import Transformer
from minids.recipe import TrainConfig
from minids.tokenizer import default_tokenizer
from minids.train import train

ARMS = ("tiny", "dense_active", "dense_total")


def arm_config(arm: str) -> Config:
    """A preset; "_no_mtp" behind its name drops the MTP module, whose time a dense rival does not spend."""
    cfg = preset(arm.removesuffix("_no_mtp"))
    return dataclasses.replace(cfg, n_mtp_modules=0) if arm.endswith("_no_mtp") else cfg


def key(row: dict[str, Any]) -> tuple:
    return tuple(row[k] for k in ("series", "arm", "seed", "budget", "lr", "threads", "batch_size", "clock"))


def read(path: Path) -> list[dict[str, Any]]:
    """The runs so far. Empty lines, and one that a kill cut short, are left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            rows.append({"clock": "processor"} | json.loads(line))
        except ValueError:
            continue
    return rows


def run(args: argparse.Namespace, series: str, arm: str, seed: int, budget: float, done: list[dict[str, Any]]) -> None:
    """Train one arm, unless its row is there, and append its row."""
    row: dict[str, Any] = {
        "series": series, "arm": arm, "seed": seed, "budget": budget, "lr": args.lr.get(arm, TrainConfig.lr),
        "threads": args.threads, "batch_size": args.batch, "clock": args.clock,
    }  # fmt: skip
    if key(row) in [key(r) for r in done]:
        return
    limit = {"minutes": budget} if series == "time" else {"steps": int(budget)}
    cfg = TrainConfig(
        **limit, lr=row["lr"], batch_size=args.batch, seed=seed, eval_every=args.eval_every, eval_rows=args.eval_rows
    )
    model_cfg = arm_config(arm)
    clock = time.process_time if args.clock == "processor" else time.perf_counter
    result = train(model_cfg, cfg, tokenizer=default_tokenizer(), clock=clock, progress=not args.quiet)
    if not result.finished:
        raise SystemExit("stopped; start the same command again to go on with the runs that are missing")
    kept = ("step", "tokens", "seconds", "lr", "main", "bits_per_byte")
    row["curve"] = [{k: r[k] for k in kept} for r in result.history if "bits_per_byte" in r]
    last = result.history[-1]
    row |= {"steps": last["step"], "tokens": last["tokens"], "seconds": last["seconds"], "max_vio": last["max_vio"]}
    row["parameters"] = sum(p.numel() for p in Transformer(model_cfg).parameters())
    with open(args.out, "a", encoding="utf-8") as file:
        file.write("\n" + json.dumps(row) + "\n")  # the first line break ends a line that a kill cut short
    done.append(row)


def spread(values: list[float], digits: int = 3) -> str:
    """Mean and, of two or more seeds, the sample's standard deviation."""
    text = f"{statistics.mean(values):.{digits}f}"
    return text + (f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else "")


def table(rows: list[dict[str, Any]], arms: list[str]) -> str:
    """Bits per byte by domain at the end of each run: mean ± standard deviation over seeds."""
    domains = list(rows[0]["curve"][-1]["bits_per_byte"])
    head = ["arm", "parameters", "seeds", "steps", "M tokens", "minutes", *domains, "mean"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for arm in arms:
        mine = [r for r in rows if r["arm"] == arm]
        if not mine:
            continue
        final = [r["curve"][-1]["bits_per_byte"] for r in mine]
        cells = [arm, f"{mine[0]['parameters']:,}", str(len(mine)), spread([r["steps"] for r in mine], 0)]
        cells += [spread([r["tokens"] / 1e6 for r in mine], 2), spread([r["seconds"] / 60 for r in mine], 2)]
        cells += [spread([f[d] for f in final]) for d in domains]
        cells.append(spread([statistics.mean(f.values()) for f in final]))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(args: argparse.Namespace) -> None:
    torch.set_num_threads(args.threads)
    Packed(default_tokenizer(), 256).batch(1)  # reads the corpus once, so that the first arm does not pay for it
    done = read(args.out)
    # seeds outside, arms inside: what is there after an interruption compares all arms
    for seed in args.seeds if "time" in args.series else ():
        for arm in args.arms:
            run(args, "time", arm, seed, args.minutes, done)
    same = {"threads": args.threads, "batch_size": args.batch, "clock": args.clock}
    current = [r for r in done if same.items() <= r.items() and r["lr"] == args.lr.get(r["arm"], TrainConfig.lr)]
    timed = [r for r in current if r["series"] == "time" and r["budget"] == args.minutes]
    if timed:
        print(f"\nEqual time: {args.minutes:g} minutes each ({args.clock} clock), {args.threads} thread(s)\n")
        print(table(timed, args.arms))
    if "tokens" not in args.series:
        return
    first = [r["steps"] for r in timed if r["arm"] == args.arms[0]]
    if not (args.steps or first):
        raise SystemExit(f"no run of {args.arms[0]} in {args.out} says how many steps are equal tokens. Give --steps.")
    steps = args.steps or round(statistics.mean(first))
    for seed in args.seeds:
        for arm in args.arms:
            run(args, "tokens", arm, seed, steps, done)
    equal = [r for r in done if r["series"] == "tokens" and r["budget"] == steps]
    print(f"\nEqual tokens: {steps} steps each\n\n{table(equal, args.arms)}")


def seeds(text: str) -> list[int]:
    """ "3": the first three, "0,2": these two, "2,": this one."""
    return [int(s) for s in text.split(",") if s] if "," in text else list(range(int(text)))


def rates(text: str) -> dict[str, float]:
    return {arm: float(rate) for arm, rate in (pair.split("=") for pair in text.split(",") if pair)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0, help="for each run")
    parser.add_argument(
        "--wall", dest="clock", action="store_const", const="wall", default="processor", help="minutes on the wall"
    )
    parser.add_argument("--seeds", type=seeds, default="3", help="how many, or which: 0,2 or 2,")
    parser.add_argument("--arms", type=lambda s: s.split(","), default=list(ARMS), help="presets, or preset_no_mtp")
    parser.add_argument("--lr", type=rates, default={}, help="peak rates: tiny=3e-3,dense_total=2e-3")
    parser.add_argument("--batch", type=int, default=TrainConfig.batch_size)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--eval-every", type=int, default=100, help="steps between points of the curve")
    parser.add_argument("--eval-rows", type=int, default=32, help="rows of 256 tokens for each domain")
    parser.add_argument("--out", type=Path, default=Path("dense.jsonl"))
    parser.add_argument("--series", type=lambda s: s.split(","), default=["time", "tokens"], help="one, or time,tokens")
    parser.add_argument(
        "--steps", type=int, default=0, help="of the series of equal tokens, instead of the first arm's"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    main(parser.parse_args())
