"""How to train: every number of a run in one frozen dataclass, and the plan that turns minutes into steps.

Paper: DeepSeek-V3 section 4.2 (hyper-parameters), 2.1.2 (gamma, alpha), 2.2 (lambda).

    lambda      0.3, and 0.1 from the share of the run at which the learning rate starts to fall      mtp_lambda
    gamma       until 14.3 of 14.8 T tokens, then 0                                                  gamma, gamma_off
    alpha       1e-4                                                                                 balance_alpha

Budget: `steps`, or `minutes`. A schedule needs to know how far the run is, and a clock would make every run different.
But until the learning rate starts to fall (10 / 14.8 of the run) nothing depends on the share. So a run by minutes just
runs that long, then counts its steps, and fixes the number of all steps once (`Plan`). From there on it is a run by
steps: the same bits, however long the rest takes.

Differs from the paper: shares count steps, not tokens (the same while the batch is constant); the peak rate, gamma,
warm-up and average are tuned for the tiny model.
Left out: a second phase for long contexts (12_long_context).
Notebook: 08_pretrain.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import asdict, dataclass, fields
from typing import Any

from minids.corpus import FIM_RATE
from minids.optim import BatchRamp, LRSchedule

# fields that may differ when a run goes on: they do not touch the weights
FREE = ("save_seconds", "save_every", "keep", "eval_every", "eval_rows", "export")

# what the options of the command line say
HELP = {
    "steps": "how many steps; or --minutes",
    "minutes": "how long; 10 when neither is given",
    "batch_size": "sequences a step",
    "micro_batch": "sequences computed at once, the rest is accumulated; 0: all",
    "seq_len": "tokens a sequence",
    "lr": "peak learning rate",
    "warmup_steps": "steps until the peak",
    "weight_decay": "of AdamW",
    "grad_clip": "largest gradient norm",
    "moments": "AdamW's moments: fp32 or the paper's bf16",
    "precision": "fp32; fp8, emulated; or bf16 on a GPU",
    "gamma": "step of the balancing bias",
    "balance_alpha": "weight of the sequence-wise balance loss",
    "ema_decay": "of the average of the weights; 0: none",
    "export": "what the finished model is: model or ema",
    "seed": "of weights and data",
    "primer": "documents about who is there, before all others; 6000 teach the tiny model to copy names",
    "fim_rate": "share of documents rewritten to fill in the middle",
    "corpus": "a text file of yours, mixed in",
    "eval_every": "steps between evaluations; 0: never",
    "save_seconds": "seconds between checkpoints",
    "keep": "checkpoints kept",
}


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
    moments: str = "fp32"  # AdamW's: "fp32", or the paper's "bf16"
    precision: str = "fp32"  # of products: "fp8" (emulated, see fp8_layers); "bf16" (autocast) is for GPUs: most CPUs
    # emulate it, tens of times slower
    gamma: float = 0.01
    gamma_off: float = 14.3 / 14.8
    balance_alpha: float = 1e-4
    mtp_lambda: tuple[float, float] = (0.3, 0.1)
    ema_decay: float = 0.99
    export: str = "model"  # what the finished model is: "model", the last weights, or "ema", their average
    seed: int = 0
    weights: dict[str, float] | None = None  # of the domains, as in corpus.Packed
    fim_rate: float = FIM_RATE
    primer: int = 0  # documents about who is there that come before the mixture (corpus.Mixture)
    corpus: str | None = None
    eval_every: int = 0  # steps; 0: never
    eval_rows: int = 16
    save_seconds: int | float = 20
    save_every: int = 0  # steps; 0: by save_seconds alone
    keep: int = 2

    def __post_init__(self):
        if (self.steps > 0) == (self.minutes > 0) or self.steps < 0 or self.minutes < 0:
            raise ValueError(
                f"a run is limited by steps or by minutes; got steps={self.steps}, minutes={self.minutes}. "
                "Set one of the two."
            )
        if self.batch_size < 1 or self.seq_len < 1 or self.micro_batch < 0:
            raise ValueError(
                "batch_size and seq_len are at least 1, micro_batch at least 0; "
                f"got {self.batch_size}, {self.seq_len}, {self.micro_batch}. The course uses 8 x 256."
            )
        if bool(self.batch_start) != bool(self.ramp_tokens) or self.batch_start > self.batch_size:
            raise ValueError(
                "the batch grows from batch_start (at most batch_size) over ramp_tokens; "
                f"got batch_start={self.batch_start}, ramp_tokens={self.ramp_tokens}. Set both, or neither."
            )
        if self.gamma_off < self.decay_start:
            raise ValueError(
                f"gamma_off comes after decay_start; got {self.gamma_off} < {self.decay_start}. "
                "V3 has 14.3/14.8 and 10/14.8."
            )
        if self.export not in ("model", "ema") or (self.export == "ema" and not self.ema_decay):
            raise ValueError(
                f'export is "model" or, with ema_decay > 0, "ema"; got {self.export!r}, ema_decay={self.ema_decay}. '
                "Choose one of the two."
            )
        if self.precision not in ("fp32", "bf16", "fp8"):
            raise ValueError(f'precision is "fp32", "bf16" or "fp8"; got {self.precision!r}. On a CPU take "fp32".')
        _ = self.schedule, self.ramp  # their own rules

    @property
    def schedule(self) -> LRSchedule:
        stages = (self.decay_start, self.decay_end, self.last_start)
        return LRSchedule(self.lr, self.warmup_steps, *stages, self.lr_decayed, self.lr_final)

    @property
    def ramp(self) -> BatchRamp:
        return BatchRamp(self.batch_start or self.batch_size, self.batch_size, self.ramp_tokens)

    @property
    def binding(self) -> dict[str, Any]:
        """The settings that decide the weights: a run that goes on must have the same."""
        return {name: value for name, value in asdict(self).items() if name not in FREE}


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


def add_options(parser: argparse.ArgumentParser) -> None:
    """An option for each setting that `HELP` explains, and the shares of the domains."""
    defaults = {f.name: f.default for f in fields(TrainConfig)}
    for name, text in HELP.items():
        kind = float if name == "minutes" else str if defaults[name] is None else type(defaults[name])
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, default=defaults[name], help=text)
    parser.add_argument("--weights", type=_weights, help="shares of the domains, for instance en=0.5,code=0.5")


def from_options(args: argparse.Namespace) -> TrainConfig:
    """The settings that were given; ten minutes where neither steps nor minutes were."""
    given = {f.name: getattr(args, f.name) for f in fields(TrainConfig) if hasattr(args, f.name)}
    if not given.get("steps") and not given.get("minutes"):
        given["minutes"] = 10
    return TrainConfig(**given)


def _weights(text: str) -> dict[str, float]:
    """en=0.5,code=0.5"""
    try:
        return {name: float(share) for name, share in (part.split("=") for part in text.split(","))}
    except ValueError:
        raise argparse.ArgumentTypeError(f"shares are written en=0.5,code=0.5; got {text!r}") from None
