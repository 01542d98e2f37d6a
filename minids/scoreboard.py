"""Is a change better? Train it and the reference for the same processor time, seed by seed, and say only what shows.

Not in the paper, whose ablations (tables 4 and 5) compare at equal tokens, one run each.

    arm        sizes, settings, and if you like a `patch`: a function that changes the fresh model's modules in place
    race       every arm x every seed: the same seconds of processor time, the same data in the same order
    verdict    the differences to the reference, paired by seed:  mean d, standard error s / sqrt(n)
               "better" or "worse" where |mean d| > t se (95 %, n - 1 degrees of freedom), else "cannot tell"

Bits per byte of held-out text: lower is better. Pairing by seed takes away what the seed does to both. With three
seeds t is 4.30, so only a clear difference is called one; two seeds need 12.7. Every further arm or domain looked at is
another chance to be fooled.

Differs from the paper: nothing to differ from.
Left out: tuning the learning rate for each arm, which a fair paper would do.
Notebook: 18_capstone.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from minids.config import Config
from minids.corpus import DOMAINS, Packed
from minids.costs import params
from minids.model import Transformer
from minids.optim import averaged, make_optimizer
from minids.recipe import TrainConfig
from minids.tokenizer import Tokenizer, default_tokenizer
from minids.train import Run, evaluate

# two-sided 95 % quantiles of Student's t for 1, 2, .. degrees of freedom
T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


@dataclass(frozen=True)
class Arm:
    """What races: a model, how it is trained, and a change of its code."""

    model: Config
    train: TrainConfig
    patch: Callable[[Transformer], object] | None = None


class Result(NamedTuple):
    """One finished run."""

    arm: str
    seed: int
    parameters: int
    steps: int
    seconds: float
    bits_per_byte: dict[str, float]

    @property
    def mean(self) -> float:
        """Over the domains, each counting the same."""
        return statistics.fmean(self.bits_per_byte.values())


class Verdict(NamedTuple):
    """An arm against the reference: the mean of the paired differences, its standard error, and what that shows."""

    difference: float
    error: float
    word: str


def race(
    arms: Mapping[str, Arm],
    seconds: float,
    seeds: int = 3,
    rows: int = 16,
    tokenizer: Tokenizer | None = None,
    on_result: Callable[[Result], object] | None = None,
    clock: Callable[[], float] = time.process_time,
) -> list[Result]:
    """Every arm for every seed, the arms taking turns. The first arm is the reference.

    Ctrl-C between runs loses nothing: `on_result` has had each one. ValueError for fewer than two arms or seeds.
    """
    if len(arms) < 2 or seeds < 2 or seconds <= 0:
        raise ValueError(
            "a race has a reference, a change, at least 2 seeds and a time; got "
            f"{len(arms)} arms, {seeds} seeds, {seconds} s. Three seeds are a beginning."
        )
    tokenizer, results = tokenizer or default_tokenizer(), []
    for seed in range(seeds):
        for name, arm in arms.items():
            results.append(_run(name, arm, seed, seconds, rows, tokenizer, clock))
            if on_result:
                on_result(results[-1])
    return results


def _run(
    name: str, arm: Arm, seed: int, seconds: float, rows: int, tokenizer: Tokenizer, clock: Callable[[], float]
) -> Result:
    cfg = replace(arm.train, seed=seed, steps=0, minutes=seconds / 60, eval_every=0)
    Packed(tokenizer, cfg.seq_len, "train", cfg.weights, seed, cfg.fim_rate, cfg.corpus).batch(1)  # fill the caches
    data = Packed(tokenizer, cfg.seq_len, "train", cfg.weights, seed, cfg.fim_rate, cfg.corpus, cfg.primer)
    run = Run(arm.model, cfg, data, torch.device("cpu"), clock, tokenizer)
    if arm.patch:
        arm.patch(run.model)
        # the optimizer and the average must know the new parameters
        run.optimizer = make_optimizer(run.model, cfg.lr, cfg.weight_decay, cfg.betas, moments=cfg.moments)
        run.ema = averaged(run.model, cfg.ema_decay) if cfg.ema_decay else None
        run.named = dict(run.model.named_parameters())
    while not run.done:
        run.advance()
    spent = run.elapsed
    found = evaluate(run.exported(), tokenizer, cfg.seq_len, rows, tuple(cfg.weights or DOMAINS))
    return Result(name, seed, params(arm.model).total, run.step, spent, found)


def verdict(reference: Sequence[float], change: Sequence[float]) -> Verdict:
    """What paired numbers show; lower is better. ValueError for unpaired or single ones."""
    n = len(reference)
    if n != len(change) or n < 2:
        raise ValueError(f"a verdict needs at least 2 pairs; got {n} and {len(change)} numbers. Run more seeds.")
    d = [b - a for a, b in zip(reference, change, strict=True)]
    # se = s / sqrt(n)
    mean, error = statistics.fmean(d), statistics.stdev(d) / math.sqrt(n)
    t = T95[n - 2] if n - 2 < len(T95) else 2.0
    word = "cannot tell" if abs(mean) <= t * error else "better" if mean < 0 else "worse"
    return Verdict(mean, error, word)


def table(results: Sequence[Result]) -> str:
    """A Markdown table: each arm's mean and deviation over the seeds, and the verdict against the first arm."""
    names = list(dict.fromkeys(r.arm for r in results))
    by = {name: sorted((r for r in results if r.arm == name), key=lambda r: r.seed) for name in names}
    domains = list(results[0].bits_per_byte)
    lines = [f"| arm | steps | {' | '.join(domains)} | mean | against {names[0]} |", "|---" * (len(domains) + 4) + "|"]
    for name in names:
        runs = by[name]
        cells = [_spread([r.bits_per_byte[d] for r in runs]) for d in domains]
        said = ""
        if name != names[0]:
            v = verdict([r.mean for r in by[names[0]]], [r.mean for r in runs])
            said = f"{v.difference:+.3f} ± {v.error:.3f}: {v.word}"
        steps = _spread([float(r.steps) for r in runs], 0)
        lines.append(f"| {name} | {steps} | {' | '.join(cells)} | {_spread([r.mean for r in runs])} | {said} |")
    return "\n".join(lines)


def _spread(values: Sequence[float], digits: int = 3) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.fmean(values):.{digits}f} ± {deviation:.{digits}f}"
