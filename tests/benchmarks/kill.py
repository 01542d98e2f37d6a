"""Kill a training run at random moments, go on each time, and compare the end with a run never killed, bit for bit.

    python tests/benchmarks/kill.py --minutes 1 --kills 20

Prints one row a kill (when it fell, what was on the disk) and whether the weights are the same. The run by minutes
fixes its number of steps itself; the rival is a run by that number of steps. The kill is SIGKILL: nothing can catch it.
Do not edit the package meanwhile: a process that goes on with other code ends with other bits.
"""

from __future__ import annotations

import argparse
import dataclasses
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from minids import checkpoint
from minids.config import Config, tiny
from minids.corpus import Packed
from minids.recipe import TrainConfig
from minids.tokenizer import default_tokenizer
from minids.train import train


def settings(args: argparse.Namespace, steps: int = 0) -> tuple[Config, TrainConfig]:
    """The tiny model with fewer layers, so that saving is a good part of the time and many kills fall into it."""
    cfg = dataclasses.replace(tiny(), n_layers=2)
    budget = {"steps": steps} if steps else {"minutes": args.minutes}
    return cfg, TrainConfig(**budget, batch_size=2, seq_len=128, save_seconds=args.save_seconds, warmup_steps=5)


def child(args: argparse.Namespace) -> None:
    """The process that gets killed. It says when its first step is done."""
    torch.set_num_threads(1)
    Packed(default_tokenizer(), 128).batch(1)  # reads the corpus now: the kills shall fall into training and saving
    said = []
    train(*settings(args), Path(args.child), progress=False, on_step=lambda r: said or said.append(print(flush=True)))


def start(args: argparse.Namespace, out: Path) -> subprocess.Popen:
    command = [sys.executable, __file__, "--child", str(out), "--minutes", str(args.minutes)]
    return subprocess.Popen([*command, "--save-seconds", str(args.save_seconds)], stdout=subprocess.PIPE)


def kill_once(args: argparse.Namespace, out: Path, early: bool, wait: float) -> tuple[str, str]:
    """(what was on the disk after the kill, the step that is safe). Every checkpoint that is there must load.

    The kill falls `wait` seconds after the start (`early`: the run is being made or read) or after the first step.
    """
    process = start(args, out)
    assert process.stdout
    if not early:
        process.stdout.readline()
    try:
        process.wait(wait)
        found = "ended by itself"
    except subprocess.TimeoutExpired:
        process.kill()
        found = "killed"
    process.communicate()
    left = [p.name for p in out.glob("*.tmp")] if out.is_dir() else []
    for path in checkpoint.checkpoints(out):
        checkpoint.load(path)
    safe = checkpoint.latest(out)
    return f"{found}, unfinished: {', '.join(left) or 'none'}", safe.name if safe else "none yet"


def same(a: Path, b: Path) -> bool:
    return (a / checkpoint.MODEL).read_bytes() == (b / checkpoint.MODEL).read_bytes()


def difference(a: Path, b: Path) -> str:
    """The first step at which two runs' records differ."""
    one, two = (
        checkpoint.read_json(checkpoint.checkpoints(p)[-1] / checkpoint.STATE, "a run")["history"] for p in (a, b)
    )
    for r, s in zip(one, two, strict=True):
        for name in ("lr", "main", "mtp", "balance", "grad_norm", "max_vio"):
            if r[name] != s[name]:
                return f"{name} of step {r['step']}, {r[name]} and {s[name]}"
    return "none in the records"


def main(args: argparse.Namespace) -> int:
    home, rng = Path(tempfile.mkdtemp(prefix="minids-kill-")), random.Random(args.seed)
    killed, whole = home / "killed", home / "whole"
    begin = time.perf_counter()
    print("| kill | seconds after | on the disk | safe |\n|---|---|---|---|")
    for number in range(1, args.kills + 1):
        early = number % 4 == 0
        wait = rng.uniform(0, 5 if early else 2 * 60 * args.minutes / args.kills)
        found, safe = kill_once(args, killed, early, wait)
        print(f"| {number} | {wait:.1f} {'start' if early else 'first step'} | {found} | {safe} |", flush=True)
    start(args, killed).communicate()
    torch.set_num_threads(1)
    total = checkpoint.read_json(checkpoint.checkpoints(killed)[-1] / checkpoint.STATE, "a run")["total_steps"]
    train(*settings(args, total), whole, progress=False)
    equal = same(killed, whole)
    print(f"\n{args.kills} kills, {total} steps, {time.perf_counter() - begin:.0f} s. "
          f"Weights equal to a run never killed, bit for bit: {'yes' if equal else 'NO'}")  # fmt: skip
    if not equal:
        print(f"The first difference: {difference(killed, whole)}. Both runs are kept in {home}.")
        return 1
    shutil.rmtree(home)
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=1.0, help="of training, lost work not counted")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--save-seconds", type=float, default=1.0)
    parser.add_argument("--child", default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    sys.exit(child(arguments) if arguments.child else main(arguments))
