"""Pre-training: the loop that turns tokens into a model, by steps or by minutes, and survives being killed.

Paper: DeepSeek-V3 section 4.2; a step is in `minids.run`, all numbers are in `recipe.TrainConfig`.

    train(tiny(), TrainConfig(minutes=10), "runs/mine")                  in this process
    python -m minids.train --pp 2 --ep 2 --minutes 3 --out runs/mine     the same run over four (`minids.parallel`)
    torchrun --nproc-per-node 4 -m minids.train --pp 2 --ep 2 ..         the same, started by torchrun

A run directory does not tell how many processes wrote it: each of these commands goes on with it.

Differs from the paper: nothing but the numbers (`recipe`).
Left out: rolling back after a bad step (V3 never needed it).
Notebook: 08_pretrain; 10_dualpipe and 11_expert_parallel for several processes.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import ProcessException
from tqdm.auto import tqdm

from minids import checkpoint
from minids.config import PRESETS, Config, changed, preset
from minids.corpus import Mixture, Packed
from minids.costs import params
from minids.dualpipe import SCHEDULES
from minids.model import Transformer
from minids.parallel import Layout, ParallelRun, in_turn
from minids.processes import join, launch
from minids.recipe import TrainConfig, add_options, from_options
from minids.run import Data, Run, bits_per_byte, evaluate
from minids.tokenizer import Tokenizer, default_tokenizer

__all__ = ["Data", "Result", "Run", "TrainConfig", "bits_per_byte", "evaluate", "patient_ctrl_c", "train"]
MOST_PARAMS = 1_000_000_000  # what a command takes on: 16 bytes each with gradient and moments


@dataclass
class Result:
    """What training gives. `history` has one dict a step; `finished` is False after Ctrl-C."""

    model: Transformer
    ema: Transformer | None
    tokenizer: Tokenizer | None
    history: list[dict[str, Any]]
    step: int
    total_steps: int
    seconds: float
    finished: bool
    out: Path | None


def train(
    model_cfg: Config,
    train_cfg: TrainConfig,
    out: str | Path | None = None,
    tokenizer: Tokenizer | None = None,
    device: str | torch.device = "cpu",
    resume: bool = True,
    on_step: Callable[[dict[str, Any]], Any] | None = None,
    progress: bool = True,
    data: Data | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Result:
    """Train a model, or go on with the run that is in `out`.

    `on_step` gets each step's record. `data` replaces the course's corpus. `clock` gives seconds: time.process_time
    budgets processor time, which a busy machine does not change. Ctrl-C finishes the step, saves and returns; a second
    one stops at once.
    ValueError where `out` holds a run of other settings or something else: nothing in it is touched.
    """
    out = None if out is None else Path(out)
    data, tokenizer = _opened(model_cfg, train_cfg, out, tokenizer, resume, data)
    run = Run(model_cfg, train_cfg, data, torch.device(device), clock, tokenizer)
    return _drive(run, out, on_step, progress)


def train_together(
    model_cfg: Config,
    train_cfg: TrainConfig,
    layout: Layout,
    out: str | Path | None = None,
    on_step: Callable[[dict[str, Any]], Any] | None = None,
    progress: bool = True,
    data: Data | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Result:
    """`train` in each of the processes of a layout: the same run, with process 0 to show and write it.

    The result's model is this process's part. ValueError, in all of them, where `train` raises it or the layout does.
    """
    layout.check(model_cfg, train_cfg, dist.get_world_size())
    out = None if out is None else Path(out)
    # process 0 makes the directory, then the others find it
    data, tokenizer = in_turn(lambda: _opened(model_cfg, train_cfg, out, None, True, data))
    run = ParallelRun(layout, model_cfg, train_cfg, data, torch.device("cpu"), clock, tokenizer)
    return _drive(run, out, on_step, progress and dist.get_rank() == 0)


def _opened(
    model_cfg: Config, c: TrainConfig, out: Path | None, tokenizer: Tokenizer | None, resume: bool, data: Data | None
) -> tuple[Data, Tokenizer | None]:
    """The directory made or checked, and the data and tokenizer of a run."""
    if data is None:
        Mixture("train", c.weights, c.seed, c.corpus)  # a bad corpus fails before `out` is made
    if data is None and tokenizer is None and not (out and (out / checkpoint.TOKENIZER).is_file()):
        tokenizer = default_tokenizer()
    if out is not None:
        tokenizer = checkpoint.open_run(out, model_cfg, c.binding, tokenizer, resume)
    if data is None and tokenizer is not None:
        data = Packed(tokenizer, c.seq_len, "train", c.weights, c.seed, c.fim_rate, c.corpus, c.primer)
    assert data is not None
    return data, tokenizer


def _drive(run: Run, out: Path | None, on_step: Callable[[dict[str, Any]], Any] | None, progress: bool) -> Result:
    if out is not None:
        run.resume(out)
    with patient_ctrl_c() as pressed, _bar(run, progress) as bar:
        while not run.done and not run.agreed(bool(pressed)):
            record = run.advance()
            bar(record)
            if on_step:
                on_step(record)
            if out is not None and run.save_due():
                run.save(out)
    return _finish(run, out)


def _finish(run: Run, out: Path | None) -> Result:
    if out is not None:
        if run.saved != run.step:
            run.save(out)
        if run.done:
            run.publish(out)
    if not run.done and run.first:
        where = f"saved in {out}; start the same command again to go on" if out else "not saved: it had no directory"
        print(f"\nStopped after step {run.step}, {where}.")
    return Result(
        run.model, run.average, run.tokenizer, run.history, run.step, run.plan.total, run.elapsed, run.done, out
    )


@contextlib.contextmanager
def patient_ctrl_c() -> Iterator[list[int]]:
    """A list, empty until Ctrl-C is pressed: the loop looks at it between steps. A second press interrupts at once."""
    pressed: list[int] = []

    def note(number: int, frame: Any) -> None:
        if pressed:
            raise KeyboardInterrupt
        pressed.append(number)

    if threading.current_thread() is not threading.main_thread():  # only the main thread hears signals
        yield pressed
        return
    before = signal.signal(signal.SIGINT, note)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before or signal.default_int_handler)


@contextlib.contextmanager
def _bar(run: Run, progress: bool) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A bar with the time left, and a live line of loss, MaxVio and tokens a second."""
    if not progress:
        yield lambda record: None
        return
    with tqdm(total=run.plan.expected(run.step, run.elapsed) or None, initial=run.step, unit="step") as bar:

        def show(record: dict[str, Any]) -> None:
            bar.total = run.plan.expected(run.step, run.elapsed)
            vio = record["max_vio"]
            balance = f"MaxVio {sum(vio) / len(vio):.2f}, " if vio else ""
            speed = f"{record['tokens_per_second']:,.0f} tokens/s"
            bar.set_postfix_str(f"loss {record['main']:.3f}, {balance}{speed}", refresh=False)
            bar.update()

        yield show


def chosen(name: str, changes: Sequence[str] = ()) -> Config:
    """The model that a command names: a preset with KEY=VALUE changes. ValueError for one of more than MOST_PARAMS."""
    cfg = changed(preset(name), changes)
    if params(cfg).total > MOST_PARAMS:
        raise ValueError(
            f"this command trains models of at most {MOST_PARAMS:,} parameters; got {params(cfg).total:,}. "
            "See them with `minids info`, and shrink with --set, for instance --set n_layers=4."
        )
    return cfg


def _part(args: argparse.Namespace, layout: Layout) -> bool:
    """In one of several processes: its part of the run. Has it come to its end?"""
    cfg, recipe, first = chosen(args.preset, args.set), from_options(args), dist.get_rank() == 0
    done = train_together(cfg, recipe, layout, args.out, _say if first else None, not args.quiet)
    if first and done.finished:
        print(f"{done.step} steps in {done.seconds:.0f} s over {layout.world} processes. The model is in {args.out}.")
    return done.finished


def _say(record: dict[str, Any]) -> None:
    tqdm.write(f"step {record['step']}: loss {record['main']:.6f}, gradient norm {record['grad_norm']:.4f}")


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Train over several processes, alone or under torchrun.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--dp", type=int, default=1, help="data parallel: groups of pipes, each with rows of its own")
    parser.add_argument("--pp", type=int, default=1, help="pipeline parallel: processes with a share of the layers")
    parser.add_argument("--ep", type=int, default=1, help="expert parallel: processes with a share of the experts")
    parser.add_argument("--schedule", default="1f1b", help=f"of the pipes: {', '.join(SCHEDULES)}")
    parser.add_argument("--out", default="runs/mine", help="directory of the run; a run that is there goes on")
    parser.add_argument("--preset", default="tiny", help=f"sizes of the model: {', '.join(PRESETS)}")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="change sizes, as n_layers=4")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    add_options(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns its exit code: 2 after a mistake that the user can mend, 1 when a process was lost."""
    args = _options().parse_args(argv)
    started = dist.is_torchelastic_launched()  # by torchrun
    try:
        layout = Layout(args.dp, args.pp, args.ep, args.schedule)
        if started:
            torch.set_num_threads(1)
            join()
            finished = _part(args, layout)
            dist.destroy_process_group()
        elif layout.world == 1:
            done = train(
                chosen(args.preset, args.set), from_options(args), args.out, on_step=_say, progress=not args.quiet
            )
            finished = done.finished
        else:
            layout.check(chosen(args.preset, args.set), from_options(args), layout.world)
            with patient_ctrl_c():  # the processes hear it too: they save, and end
                finished = launch(_part, layout.world, args, layout)[0]
        return 0 if finished else 130
    except (ValueError, OSError, FloatingPointError) as error:
        if not dist.is_initialized() or dist.get_rank() == 0:
            print(f"minids.train: {error}", file=sys.stderr, flush=True)
        return 2
    except (RuntimeError, ProcessException) as error:
        why = str(error).strip().splitlines()[-1]  # after the lines of a traceback
        print(f"minids.train: {why}\n{_what_is_left(args.out)}", file=sys.stderr, flush=True)
        return 2 if why.startswith(("ValueError", "FileNotFoundError", "OSError", "FloatingPointError")) else 1


def _what_is_left(out: str) -> str:
    path = checkpoint.latest(out) if Path(out).is_dir() else None
    return f"{path} is whole: the same command goes on from there." if path else "No checkpoint had been written yet."


if __name__ == "__main__":
    sys.exit(main())
