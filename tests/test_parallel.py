"""A run over several processes is the run of one: losses, weights, checkpoints; a killed process ends the others."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import cache
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing import get_context

from minids import checkpoint
from minids.config import tiny
from minids.parallel import Layout, ParallelRun
from minids.processes import join, launch, start_method
from minids.recipe import TrainConfig
from minids.train import _part, main, train, train_together

CFG = dataclasses.replace(
    tiny(), vocab_size=37, dim=24, n_layers=4, inter_dim=20, n_heads=2, q_lora_rank=10, kv_lora_rank=12,
    qk_nope_head_dim=6, qk_rope_head_dim=4, v_head_dim=8, moe_inter_dim=8, n_routed_experts=8, n_activated_experts=3,
    max_seq_len=32, original_seq_len=32,
)  # fmt: skip
# clipping binds, the bias moves, lambda and rate change on the way
RECIPE = TrainConfig(
    steps=4, batch_size=8, seq_len=11, warmup_steps=2, grad_clip=0.5, gamma=0.02, balance_alpha=0.01,
    save_every=2, save_seconds=10**9, keep=9,
)  # fmt: skip
LAYOUTS = {
    4: {
        "pipes and experts": Layout(1, 2, 2),
        "pipes and data, zero bubble": Layout(2, 2, 1, "zb1p"),
        "experts and data": Layout(2, 1, 2),
        "DualPipeV and experts": Layout(1, 2, 2, "dualpipev"),
        "both directions and experts": Layout(1, 2, 2, "dualpipe"),
    },
    2: {"pipes": Layout(1, 2, 1), "experts": Layout(1, 1, 2), "data": Layout(2, 1, 1)},
}
ARMS = [(world, name) for world, named in LAYOUTS.items() for name in named]


class Rows:
    """Batches of counting sequences from a position: the stand-in for the corpus."""

    def __init__(self):
        self.at = 0

    def batch(self, batch_size: int) -> Tensor:
        gen = torch.Generator().manual_seed(1000 + self.at)
        self.at += 1
        start = torch.randint(37, (batch_size, 1), generator=gen)
        return (start + torch.randint(1, 4, (batch_size, 1), generator=gen) * torch.arange(12)) % 37

    def state_dict(self) -> dict:
        return {"at": self.at}

    def load_state_dict(self, state: dict) -> None:
        self.at = state["at"]


def alone(out: Path) -> list[dict[str, Any]]:
    return train(CFG, RECIPE, out, progress=False, data=Rows()).history


def half(run: Path, to: Path) -> Path:
    """A run as it was at step 2."""
    shutil.copytree(run, to)
    shutil.rmtree(to / "step-00000004")
    (to / "model.safetensors").unlink()
    return to


def together(folder: str) -> dict[str, Any]:
    """In each of the processes: whole runs in all layouts, then the second halves of others."""
    world, found = dist.get_world_size(), {}
    first, home = dist.get_rank() == 0, Path(folder)

    def go(name: str, layout: Layout) -> None:
        done = train_together(CFG, RECIPE, layout, home / name, progress=False, data=Rows())
        part = {n: tuple(p.shape) for n, p in done.model.named_parameters()}
        found[name] = {"history": done.history, "part": part}

    for name, layout in LAYOUTS[world].items():
        go(f"{world} {name}", layout)
    dist.barrier()
    if first:
        half(home / "4 pipes and experts", home / f"{world} from 4")
        half(home / "1", home / f"{world} from 1")
    dist.barrier()
    for before in ("4", "1"):
        go(f"{world} from {before}", next(iter(LAYOUTS[world].values())))
    try:
        train_together(CFG, dataclasses.replace(RECIPE, lr=0.5), layout, home / "1", progress=False, data=Rows())
    except ValueError as error:
        found["another recipe"] = str(error)
    return found


@cache
def home() -> Path:
    folder = Path(mkdtemp())
    alone(folder / "1")
    return folder


@cache
def processes(world: int) -> list[dict[str, Any]]:
    if world == 2:
        processes(4)  # two processes go on with what four have written
    return launch(together, world, str(home()), timeout=120)


def saved(name: str, step: int = 4) -> dict[str, Tensor]:
    tensors, _ = checkpoint.load(home() / name / f"step-{step:08d}")
    return tensors


def assert_same_run(name: str) -> None:
    """The checkpoint `name` has what one process has: names, types, sizes; and values up to the order of sums.

    Together, because AdamW divides by the gradient's own size: where a gradient is nothing but rounding its
    update is not, so single weights may differ by more than all of them together.
    """
    want, got = saved("1"), saved(name)
    assert {n: (t.shape, t.dtype) for n, t in got.items()} == {n: (t.shape, t.dtype) for n, t in want.items()}
    start = saved("1", 2)
    for part in ("model.", "ema.", "optim.exp_avg."):
        names = [n for n in want if n.startswith(part) and want[n].is_floating_point() and not n.endswith("gate.bias")]
        moved = torch.cat([(want[n] - start[n]).flatten() for n in names]).norm()
        apart = torch.cat([(want[n] - got[n]).flatten() for n in names]).norm()
        assert apart < 1e-3 * moved, f"{name}: {part} {apart:.1e} of {moved:.1e}"
    for n in want:
        if n.endswith("gate.bias") or n.startswith("data.") or ".step." in n:
            assert torch.equal(got[n], want[n]), n


@pytest.mark.slow
@pytest.mark.parametrize(("world", "name"), ARMS)
def test_losses_norms_and_loads_are_those_of_one_process(world: int, name: str) -> None:
    want = alone(home() / "1")
    found = [each[f"{world} {name}"]["history"] for each in processes(world)]
    for got in found:
        for a, b in zip(got, want, strict=True):
            for what in ("loss", "main", "mtp", "balance"):
                assert a[what] == pytest.approx(b[what], rel=1e-6), (a["step"], what)
            assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-6)
            assert a["max_vio"] == pytest.approx(b["max_vio"]) and a["lr"] == b["lr"]
    assert all(got == found[0] for got in found)  # one clock, one count: nobody decides alone


@pytest.mark.slow
@pytest.mark.parametrize(("world", "name"), ARMS)
def test_what_several_processes_write_is_what_one_writes(world: int, name: str) -> None:
    processes(world)
    assert_same_run(f"{world} {name}")
    model, _ = checkpoint.load_model(home() / f"{world} {name}")  # the finished model, whole
    for n, p in model.named_parameters():
        assert torch.equal(p, saved(f"{world} {name}")[f"model.{n}"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["4 from 4", "4 from 1", "2 from 4", "2 from 1", "1 from 4"])
def test_any_number_of_processes_goes_on_where_another_one_stopped(name: str) -> None:
    processes(4)
    processes(2)
    if name == "1 from 4":
        alone(half(home() / "4 pipes and experts", home() / name))
    assert_same_run(name)
    if name == "4 from 4":  # the same sums in the same order
        assert all(torch.equal(t, saved("4 pipes and experts")[n]) for n, t in saved(name).items())


@pytest.mark.slow
def test_a_process_holds_its_stages_and_its_share_of_their_experts() -> None:
    parts = [each["4 pipes and experts"]["part"] for each in processes(4)]
    for process, part in enumerate(parts):
        layers = {int(n.split(".")[1]) for n in part if n.startswith("layers.")}
        assert layers == ({0, 1} if process < 2 else {2, 3})
        assert ("head.weight" in part) == (process >= 2)
        assert all(shape[0] == 4 for n, shape in part.items() if ".experts.w" in n and "shared" not in n)


@pytest.mark.slow
def test_a_directory_with_another_recipe_is_refused_by_all() -> None:
    for each in processes(2):
        assert "trained otherwise: lr is 0.003 there and 0.5 here" in each["another recipe"]


@pytest.mark.parametrize(
    ("layout", "recipe", "world", "message"),
    [
        (Layout(1, 2, 2), {}, 3, r"got 1 x 2 x 2 for 3. Start 4 processes, or change --dp, --pp or --ep"),
        (Layout(1, 5, 1), {"batch_size": 10}, 5, "at least one block; got 4 for 5 stages"),
        (Layout(1, 1, 3), {"batch_size": 6}, 3, "8 experts do not divide over 3 processes. Start one of 1, 2, 4, 8"),
        (Layout(2, 2, 1), {"batch_size": 10}, 4, "batch of 10 with micro_batch=0. Take a batch_size .* multiple of 8"),
        (Layout(1, 2, 1), {"micro_batch": 3}, 2, "batch of 8 with micro_batch=3"),
        (Layout(4, 2, 1, "dualpipev"), {}, 8, "chunks >= 2 x ranks; got 2 < 2 x 2"),
        (Layout(1, 3, 1, "dualpipe"), {"batch_size": 12}, 3, "the ranks are even; got 3"),
        (Layout(1, 2, 1, "2f2b"), {}, 2, "there is no schedule '2f2b'; the schedules are gpipe, 1f1b, zb1p"),
        (Layout(2), {"precision": "fp8"}, 2, "train with precision=fp32; got fp8"),
        (Layout(2), {"eval_every": 5}, 2, "train with eval_every=0; got 5"),
    ],
)
def test_a_layout_that_does_not_fit_is_refused(layout: Layout, recipe: dict, world: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        layout.check(CFG, dataclasses.replace(RECIPE, **recipe), world)
    with pytest.raises(ValueError, match="at least one process; got data=1, pipe=0"):
        Layout(1, 0, 1)


def test_the_command_ends_with_one_line_before_it_starts_a_process(capsys: pytest.CaptureFixture) -> None:
    assert main(["--ep", "3", "--steps", "1", "--batch-size", "9"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("minids.train: every process holds") and err.count("\n") == 1


# --- the commands, and processes that are killed


SMALL = ["--set", "n_layers=2", "dim=32", "n_heads=2", "--batch-size", "4", "--seq-len", "16", "--quiet"]


@pytest.mark.slow
def test_under_torchrun_process_0_prints_the_losses_of_one_process(tmp_path: Path) -> None:
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*start, "-m", "minids.train", "--pp", "2", "--steps", "2", *SMALL, "--out", str(tmp_path / "run")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    out, err = done.stdout, done.stderr
    small = dataclasses.replace(tiny(), n_layers=2, dim=32, n_heads=2)
    want = train(small, TrainConfig(steps=2, batch_size=4, seq_len=16), progress=False).history
    losses = [float(x) for x in re.findall(r"step \d: loss ([\d.]+)", out)]
    assert losses == pytest.approx([record["main"] for record in want], rel=1e-5), err
    assert out.count("step 1:") == 1 and "2 steps in" in out
    assert checkpoint.load_model(tmp_path / "run")[0].cfg == small


def part_that_dies(args: argparse.Namespace, layout: Layout) -> bool:
    """A process's part of the command, as it is, but process 1 is killed after step 2. Process 0 prints to a file."""
    agreed = ParallelRun.agreed

    def dies(self: ParallelRun, stop: bool) -> bool:
        if self.step == 2 and dist.get_rank() == 1:
            os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))
        return agreed(self, stop)

    ParallelRun.agreed = dies
    with open(f"{args.out}.{dist.get_rank()}", "w", buffering=1) as said, contextlib.redirect_stdout(said):
        return _part(args, layout)


@pytest.mark.slow
def test_a_process_that_is_killed_ends_the_command_with_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("minids.train._part", part_that_dies)
    command = ["--pp", "2", "--steps", "9", *SMALL, "--save-seconds", "0", "--out", str(tmp_path / "run")]
    assert main(command) == 1
    assert (tmp_path / "run.0").read_text().count("step ") == 2
    err = capsys.readouterr().err
    assert re.search(r"^minids.train: .+\n.*step-00000002 is whole: the same command goes on from there\.$", err, re.M)


def blocks_while_saving(rank: int, folder: Path, tell: Connection) -> None:
    """One of two processes that stop between the writing and the renaming of the checkpoint of step 4."""
    torch.set_num_threads(1)
    replace = os.replace

    def blocks(source: Path, target: Path) -> None:
        if str(target).endswith("step-00000004"):
            tell.send("written, not yet renamed")
            time.sleep(600)
        replace(source, target)

    os.replace = blocks  # type: ignore[assignment]
    try:
        join(rank, 2, folder / "meeting")
        train_together(CFG, RECIPE, Layout(1, 2, 1), folder / "run", progress=False, data=Rows())
    except RuntimeError as error:
        tell.send(f"lost: {error}")
        sys.exit(1)


@pytest.fixture
def saving(tmp_path: Path) -> Iterator[list[tuple[BaseProcess, Connection]]]:
    """Two processes in the middle of a save, whom nobody watches, and what each tells."""
    context: Any = get_context(start_method())
    ranks = []
    for rank in range(2):
        told, tell = context.Pipe()
        process = context.Process(target=blocks_while_saving, args=(rank, tmp_path, tell))
        process.start()
        ranks.append((process, told))
    yield ranks
    for process, _ in ranks:
        process.kill()
        process.join()


@pytest.mark.slow
def test_killed_between_writing_and_renaming_the_last_checkpoint_stays_and_the_others_end(
    saving: list[tuple[BaseProcess, Connection]], tmp_path: Path
) -> None:
    (first, told_by_first), (other, told_by_other) = saving
    assert told_by_first.poll(60) and told_by_first.recv() == "written, not yet renamed"
    first.kill()
    other.join(60)
    assert other.exitcode == 1 and told_by_other.poll(0) and told_by_other.recv().startswith("lost: ")
    run = tmp_path / "run"
    half_written = run / "step-00000004.tmp"
    assert (half_written / "state.json").is_file() and (half_written / "tensors.safetensors").is_file()
    assert checkpoint.checkpoints(run) == [run / "step-00000002"]
    alone(run)  # one process goes on from step 2
    assert not half_written.exists() and checkpoint.latest(run) == run / "step-00000004"
    want, got = alone_history(home() / "1"), alone_history(run)
    assert [r["step"] for r in got] == [1, 2, 3, 4]
    for a, b in zip(got, want, strict=True):
        assert a["main"] == pytest.approx(b["main"], rel=1e-5)


def alone_history(run: Path) -> list[dict[str, Any]]:
    return checkpoint.load(run / "step-00000004")[1]["history"]
