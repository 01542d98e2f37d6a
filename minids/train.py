"""Pre-training: the loop that turns tokens into a model, for a number of steps or of minutes, and survives being killed.

Paper: DeepSeek-V3 section 4.2 (hyper-parameters), 2.1.2 (balancing), 2.2 (the MTP loss in the sum).

    a step      loss = main + lambda mtp + alpha balance, over all micro-batches; gradients clipped to norm 1; AdamW;
                then each gate's bias moves by gamma, from the load of the whole batch; then the average of the weights
    lambda      0.3, and 0.1 from the share of the run at which the learning rate starts to fall      mtp_lambda
    gamma       until 14.3 of 14.8 T tokens, then 0                                                  gamma, gamma_off
    alpha       1e-4                                                                                 balance_alpha

Budget: `steps`, or `minutes`. A schedule needs to know how far the run is, and a clock would make every run different. But until the
learning rate starts to fall (10 / 14.8 of the run) nothing depends on the share. So a run by minutes just runs that long, then counts
its steps, and fixes the number of all steps once (`Plan`). From there on it is a run by steps: the same bits, however long the rest takes.

Resuming: a checkpoint holds all that a step reads, so a run that was killed ends with the same bits as one that was not
(same machine, same number of threads).

Differs from the paper: shares count steps, not tokens (the same while the batch is constant); the peak rate, gamma, warm-up and average
are tuned for the tiny model.
Left out: more than one process, FP8 (09_fp8), rolling back after a bad step (V3 never needed it).
Notebook: 08_pretrain.
"""

from __future__ import annotations

import contextlib
import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from jaxtyping import Int
from torch import Tensor
from tqdm.auto import tqdm

from minids import checkpoint
from minids.config import Config
from minids.corpus import Packed, eval_rows
from minids.layers import head_loss
from minids.model import Transformer
from minids.optim import BatchRamp, LRSchedule, averaged, make_optimizer
from minids.router import max_violation
from minids.tokenizer import Tokenizer

# fields that may differ when a run goes on: they do not touch the weights
FREE = ("save_seconds", "save_every", "keep", "eval_every", "eval_rows", "export")


@dataclass(frozen=True)
class TrainConfig:
    """How to train. Set `steps` or `minutes`; the defaults suit the tiny model on a CPU.

    Units: batches in sequences, seq_len in tokens, shares of the run between 0 and 1, rates as parts of `lr`.
    Raises ValueError, with the rule, the value and the remedy.
    """

    steps: int = 0
    minutes: int | float = 0
    batch_size: int = 8
    batch_start: int = 0  # with ramp_tokens: the batch grows from here to batch_size
    ramp_tokens: int = 0
    micro_batch: int = 0  # sequences computed at once; 0: all
    seq_len: int = 256
    lr: float = 3e-3
    warmup_steps: int = 20
    decay_start: float = 10 / 14.8
    decay_end: float = 14.3 / 14.8
    last_start: float = 14.633 / 14.8
    lr_decayed: float = 0.1
    lr_final: float = 7.3e-6 / 2.2e-4
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    grad_clip: float = 1.0
    moments: str = "fp32"
    gamma: float = 0.01
    gamma_off: float = 14.3 / 14.8
    balance_alpha: float = 1e-4
    mtp_lambda: tuple[float, float] = (0.3, 0.1)
    ema_decay: float = 0.99
    export: str = "model"  # what the finished model is: "model", the last weights, or "ema", their average
    seed: int = 0
    weights: dict[str, float] | None = None  # of the domains, as in corpus.Packed
    fim_rate: float = 0.1
    corpus: str | None = None
    eval_every: int = 0  # steps; 0: never
    eval_rows: int = 16
    save_seconds: int | float = 20
    save_every: int = 0  # steps; 0: by save_seconds alone
    keep: int = 2

    def __post_init__(self):
        if (self.steps > 0) == (self.minutes > 0) or self.steps < 0 or self.minutes < 0:
            raise ValueError(
                f"a run is limited by steps or by minutes; got steps={self.steps}, minutes={self.minutes}. Set one of the two."
            )
        if self.batch_size < 1 or self.seq_len < 1 or self.micro_batch < 0:
            raise ValueError(
                f"batch_size and seq_len are at least 1, micro_batch at least 0; got {self.batch_size}, {self.seq_len}, "
                f"{self.micro_batch}. The course uses 8 x 256."
            )
        if bool(self.batch_start) != bool(self.ramp_tokens) or self.batch_start > self.batch_size:
            raise ValueError(
                "the batch grows from batch_start (at most batch_size) over ramp_tokens; "
                f"got batch_start={self.batch_start}, ramp_tokens={self.ramp_tokens}. Set both, or neither."
            )
        if self.gamma_off < self.decay_start:
            raise ValueError(
                f"gamma_off comes after decay_start; got {self.gamma_off} < {self.decay_start}. V3 has 14.3/14.8 and 10/14.8."
            )
        if self.export not in ("model", "ema") or (self.export == "ema" and not self.ema_decay):
            raise ValueError(
                f'export is "model" or, with ema_decay > 0, "ema"; got {self.export!r}, ema_decay={self.ema_decay}. '
                "Choose one of the two."
            )
        _ = self.schedule, self.ramp  # their own rules

    @property
    def schedule(self) -> LRSchedule:
        return LRSchedule(
            self.lr, self.warmup_steps, self.decay_start, self.decay_end, self.last_start, self.lr_decayed, self.lr_final
        )

    @property
    def ramp(self) -> BatchRamp:
        return BatchRamp(self.batch_start or self.batch_size, self.batch_size, self.ramp_tokens)


class Data(Protocol):
    """Where batches come from: `minids.corpus.Packed`, or anything alike."""

    def batch(self, batch_size: int) -> Tensor: ...  # [B S+1]
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


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


@dataclass
class Plan:
    """The number of all steps: given, or (0) found when `fix_at` of the seconds have passed."""

    total: int
    seconds: float
    fix_at: float

    def share(self, done: int) -> float:
        """The part of the run that `done` steps are. Before the number of all is known: 0, in the constant phase."""
        return done / self.total if self.total else 0.0

    def fix(self, done: int, elapsed: float) -> bool:
        """True when, with this step, the number of all steps became known."""
        if self.total or elapsed < self.fix_at * self.seconds:
            return False
        # the smallest total in which no step done so far comes after fix_at: a run by `steps=total` did the same
        self.total = math.ceil(done / self.fix_at) if self.fix_at else max(done, 1)
        return True

    def expected(self, done: int, elapsed: float) -> int:
        """The number of all steps as far as one can tell."""
        return self.total or max(done, int(done * self.seconds / max(elapsed, 1e-9)))


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

    `on_step` gets each step's record. `data` replaces the course's corpus. `clock` gives seconds: time.process_time budgets
    processor time, which a busy machine does not change. Ctrl-C finishes the step, saves and returns; a second one stops at once.
    ValueError where `out` holds a run of other settings or something else: nothing in it is touched.
    """
    out = None if out is None else Path(out)
    if out is not None:
        tokenizer = open_run(out, model_cfg, train_cfg, tokenizer, resume)
    if data is None:
        tokenizer = tokenizer or Tokenizer.load(checkpoint.shipped() / checkpoint.TOKENIZER)
        data = Packed(
            tokenizer, train_cfg.seq_len, "train", train_cfg.weights, train_cfg.seed, train_cfg.fim_rate, train_cfg.corpus
        )
    run = Run(model_cfg, train_cfg, data, torch.device(device), clock, tokenizer)
    if out is not None:
        run.resume(out)
    with _patient_ctrl_c() as pressed, _bar(run, progress) as bar:
        while not run.done and not pressed:
            record = run.advance()
            bar(record)
            if on_step:
                on_step(record)
            if out is not None and run.save_due():
                run.save(out)
    return _finish(run, out, bool(pressed))


def _finish(run: Run, out: Path | None, stopped: bool) -> Result:
    if out is not None:
        if run.saved != run.step:
            run.save(out)
        if run.done:
            checkpoint.save_model(out, run.exported(), run.tokenizer)
    if stopped and not run.done:
        where = f"saved in {out}; start the same command again to go on" if out else "not saved: the run had no directory"
        print(f"\nStopped after step {run.step}, {where}.")
    return Result(
        run.model, run.average, run.tokenizer, run.history, run.step, run.plan.total, run.elapsed, run.done, out
    )


class Run:
    """All that training changes: weights, average, moments, data position, plan, history. `advance` is one step."""

    def __init__(
        self,
        model_cfg: Config,
        cfg: TrainConfig,
        data: Data,
        device: torch.device,
        clock: Callable[[], float],
        tokenizer: Tokenizer | None = None,
    ):
        self.cfg, self.data, self.device, self.clock, self.tokenizer = cfg, data, device, clock, tokenizer
        self.model = Transformer(model_cfg, torch.Generator().manual_seed(cfg.seed)).to(device)
        self.optimizer = make_optimizer(self.model, cfg.lr, cfg.weight_decay, cfg.betas, moments=cfg.moments)
        self.ema = averaged(self.model, cfg.ema_decay) if cfg.ema_decay else None
        self.plan = Plan(cfg.steps, 60.0 * cfg.minutes, cfg.decay_start)
        self.step, self.saved, self.tokens, self.history = 0, 0, 0, []
        self.started = self.saved_at = clock()
        self.named = dict(self.model.named_parameters())

    @property
    def done(self) -> bool:
        return 0 < self.plan.total <= self.step

    @property
    def elapsed(self) -> float:
        return self.clock() - self.started

    @property
    def average(self) -> Transformer | None:
        return None if self.ema is None else self.ema.module  # type: ignore[return-value]

    def exported(self) -> Transformer:
        """The model that the run is for: the last weights or their average."""
        return self.average if self.cfg.export == "ema" and self.average is not None else self.model

    def advance(self) -> dict[str, Any]:
        """One step of the optimizer. Returns its record."""
        begin, cfg, share = self.elapsed, self.cfg, self.plan.share(self.step)
        lr = cfg.schedule.at(self.step + 1, share)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        tokens = self.data.batch(cfg.ramp.at(self.tokens)).to(self.device)
        record, load = self.backward(tokens, cfg.mtp_lambda[share >= cfg.decay_start])
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), cfg.grad_clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        # balancing without a loss: only now, so that the batch never sees its own load
        for gate, row in zip(self.model.gates(), load, strict=True):
            gate.update_bias(row, cfg.gamma if share < cfg.gamma_off else 0.0)
        if self.ema is not None:
            self.ema.update_parameters(self.model)
        self.step += 1
        self.tokens += tokens[:, 1:].numel()
        record |= {"lr": lr, "grad_norm": norm.item(), "max_vio": max_violation(load).tolist()}
        return self._log(record, tokens[:, 1:].numel(), begin)

    def backward(self, tokens: Int[Tensor, "B S1"], mtp_lambda: float) -> tuple[dict[str, Any], Tensor]:
        """Gradients of a batch, one micro-batch after the other. Returns (its mean losses, the load of the whole batch)."""
        sums, load = torch.zeros(4), torch.zeros(())
        for part in tokens.split(self.cfg.micro_batch or len(tokens)):
            with _precision(self.device):
                losses = self.model.losses(part)
                # L = L_main + lambda L_MTP + alpha L_Bal
                loss = losses.main + mtp_lambda * losses.mtp + self.cfg.balance_alpha * losses.balance
            weight = len(part) / len(tokens)
            (loss * weight).backward()
            sums += weight * torch.stack([loss, losses.main, losses.mtp, losses.balance]).detach().float().cpu()
            load = load + losses.load.cpu()
        if not sums.isfinite().all():
            raise FloatingPointError(
                f"the loss of step {self.step + 1} is {sums[0].item()}: training has diverged. "
                "Start again in another directory with a lower lr, or a longer warm-up."
            )
        return dict(zip(("loss", "main", "mtp", "balance"), sums.tolist(), strict=True)), load

    def _log(self, record: dict[str, Any], n: int, begin: float) -> dict[str, Any]:
        seconds = self.elapsed
        record |= {"step": self.step, "tokens": self.tokens, "seconds": seconds}
        record["tokens_per_second"] = n / max(seconds - begin, 1e-9)
        if self.plan.fix(self.step, seconds):
            self.saved_at = -math.inf  # save now: from here on the run is determined
        if self.cfg.eval_every and (self.step % self.cfg.eval_every == 0 or self.done):
            record["bits_per_byte"] = self.evaluate()
            self.started += self.elapsed - seconds  # evaluating is not training
        self.history.append(record)
        return record

    def evaluate(self) -> dict[str, float]:
        """Bits per byte of each domain, of what would be exported now."""
        if self.tokenizer is None:
            return {}
        cfg = self.cfg
        return evaluate(self.exported(), self.tokenizer, cfg.seq_len, cfg.eval_rows, cfg.weights, cfg.corpus)

    # what is saved

    def save_due(self) -> bool:
        """Is a checkpoint due? Always at the step that fixed the plan: from there the run is determined."""
        by_steps = self.cfg.save_every and self.step % self.cfg.save_every == 0
        return bool(by_steps or self.clock() - self.saved_at >= self.cfg.save_seconds)

    def save(self, out: Path) -> Path:
        """Write a checkpoint of everything that the next step reads."""
        path = checkpoint.save(out, self.step, self.tensors(), self.state(), self.cfg.keep)
        self.saved, self.saved_at = self.step, self.clock()
        return path

    def tensors(self) -> dict[str, Tensor]:
        """Weights, average, moments and random state by name."""
        found = {f"model.{name}": t for name, t in self.model.state_dict().items()}
        if self.average is not None:
            found |= {f"ema.{name}": t for name, t in self.average.state_dict().items()}
        for name, p in self.named.items():
            found |= {f"optim.{key}.{name}": t for key, t in self.optimizer.state[p].items()}
        return found | {f"rng.{kind}": t for kind, t in _random_state(self.device).items()}

    def state(self) -> dict[str, Any]:
        """What is not a tensor."""
        return {
            "model": asdict(self.model.cfg),
            "train": binding(self.cfg),
            "export": self.cfg.export,
            "step": self.step,
            "total_steps": self.plan.total,
            "tokens": self.tokens,
            "seconds": self.elapsed,
            "data": self.data.state_dict(),
            "history": self.history,
        }

    def resume(self, out: Path) -> bool:
        """Take up the last checkpoint of `out`, if there is one."""
        path = checkpoint.latest(out)
        if path is None:
            return False
        tensors, state = checkpoint.load(path, {"model": asdict(self.model.cfg), "train": binding(self.cfg)})
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "ema": {}, "optim": {}, "rng": {}}
        for name, t in tensors.items():
            part, rest = name.split(".", 1)
            parts[part][rest] = t
        self.model.load_state_dict(parts["model"])
        if self.ema is not None and self.average is not None:
            self.average.load_state_dict(parts["ema"])
            self.ema.n_averaged.fill_(state["step"])
        for name, t in parts["optim"].items():
            key, parameter = name.split(".", 1)
            p = self.named[parameter]
            self.optimizer.state[p][key] = t.to(p.device)
        _set_random_state(parts["rng"], self.device)
        self.data.load_state_dict(state["data"])
        self.step = self.saved = state["step"]
        self.plan.total, self.tokens = state["total_steps"], state["tokens"]
        self.history = state["history"]
        self.started = self.clock() - state["seconds"]
        return True


def open_run(
    out: Path, model_cfg: Config, train_cfg: TrainConfig, tokenizer: Tokenizer | None, resume: bool = True
) -> Tokenizer | None:
    """Make `out` a run directory, or check that it holds this very run. Returns the run's tokenizer.

    ValueError, before anything is touched, where it holds another run or anything else.
    """
    if not (out / checkpoint.CONFIG).is_file():
        _new_run(out, model_cfg, train_cfg, tokenizer)
        return tokenizer
    saved, path = checkpoint.read_config(out), out / checkpoint.TOKENIZER
    if not resume or not (out / checkpoint.TRAIN).is_file():
        raise ValueError(
            f"{out} already holds a {'run' if (out / checkpoint.TRAIN).is_file() else 'model'}. "
            "Nothing was changed. Choose another directory, or go on with a run by resume=True."
        )
    checkpoint.check_same(asdict(saved), asdict(model_cfg), f"{out} holds a run of another model")
    checkpoint.check_same(
        checkpoint.read_json(out / checkpoint.TRAIN, "a run"), binding(train_cfg), f"{out} holds a run that is trained otherwise"
    )
    kept = Tokenizer.load(path) if path.is_file() else None
    if tokenizer is not None and (kept is None or kept.to_json() != tokenizer.to_json()):
        raise ValueError(f"{out} holds a run with another tokenizer. Nothing was changed. Leave the tokenizer out, or choose another directory.")
    checkpoint.sweep(out)
    return kept


def _new_run(out: Path, model_cfg: Config, train_cfg: TrainConfig, tokenizer: Tokenizer | None) -> None:
    """Config last: a directory without it is one whose making was interrupted."""
    ours = (checkpoint.TRAIN, checkpoint.TOKENIZER)
    foreign = [p.name for p in out.iterdir() if p.name not in ours and p.suffix != checkpoint.TMP] if out.exists() else []
    if foreign:
        raise ValueError(
            f"{out} holds other things ({', '.join(sorted(foreign)[:5])}) and no run. "
            "Nothing was changed. Choose a new or empty directory."
        )
    out.mkdir(parents=True, exist_ok=True)
    checkpoint.sweep(out)
    if tokenizer is not None:
        checkpoint.write(out / checkpoint.TOKENIZER, tokenizer.to_json().encode("utf-8"))
    checkpoint.write(out / checkpoint.TRAIN, checkpoint.to_json(binding(train_cfg)))
    checkpoint.write_config(out, model_cfg)


def binding(cfg: TrainConfig) -> dict[str, Any]:
    """The settings that decide the weights: a run that goes on must have the same."""
    return {name: value for name, value in asdict(cfg).items() if name not in FREE}


@torch.no_grad()
def bits_per_byte(model: Transformer, rows: Iterable[Tensor], n_bytes: int) -> float:
    """-log2 p(text) / bytes: comparable between tokenizers, as the loss a token is not."""
    device = model.head.weight.device
    training = model.training
    model.eval()
    nats = 0.0
    for tokens in rows:
        tokens = tokens.to(device)
        h, _ = model.hidden(tokens[:, :-1])
        nats += head_loss(h, model.head.weight, tokens[:, 1:]).item()
    model.train(training)
    return nats / math.log(2) / n_bytes


def _precision(device: torch.device):
    """BF16 products on a GPU; FP32 on a CPU, where BF16 is emulated and tens of times slower."""
    return torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else contextlib.nullcontext()


def _random_state(device: torch.device) -> dict[str, Tensor]:
    state = {"cpu": torch.get_rng_state()}
    return state | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def _set_random_state(state: Mapping[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


@contextlib.contextmanager
def _patient_ctrl_c() -> Iterator[list[int]]:
    """A list that is empty until Ctrl-C is pressed: the loop looks at it between steps. The second press interrupts at once."""
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
            bar.set_postfix_str(f"loss {record['main']:.3f}, {balance}{record['tokens_per_second']:,.0f} tokens/s", refresh=False)
            bar.update()

        yield show
