"""The scoreboard: equal time, equal data, and a verdict that is given only where the numbers bear it."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import pytest
import torch
from torch import nn

from minids.cli.compare import changed
from minids.config import tiny
from minids.recipe import TrainConfig
from minids.scoreboard import T95, Arm, Result, race, table, verdict

SMALL = Arm(replace(tiny(), n_layers=2, n_mtp_modules=0), TrainConfig(minutes=1, batch_size=2, seq_len=32))


def ticking():
    """A clock that goes on by one second whenever it is read."""
    ticks = itertools.count()
    return lambda: float(next(ticks))


def test_arms_race_for_the_same_time_on_the_same_data_and_a_patched_model_is_trained() -> None:
    seen = []

    arms = {"one": SMALL, "same": SMALL, "patched": replace(SMALL, patch=lambda m: seen.append(m))}
    found = race(arms, 40, seeds=2, rows=1, clock=ticking())
    assert [(r.arm, r.seed) for r in found] == [(a, s) for s in range(2) for a in arms]
    assert found[0].bits_per_byte == found[1].bits_per_byte == found[2].bits_per_byte != found[3].bits_per_byte
    assert len(seen) == 2 and found[0].steps == found[1].steps > 1


def test_a_patch_reaches_the_optimizer() -> None:
    taken = {}

    def patch(model) -> None:
        model.norm.weight = nn.Parameter(torch.full_like(model.norm.weight, 2.0))
        taken["weight"] = model.norm.weight

    race({"a": SMALL, "b": replace(SMALL, patch=patch)}, 40, seeds=2, rows=1, clock=ticking())
    assert (taken["weight"] != 2.0).all()


def test_a_verdict_is_a_paired_t_test() -> None:
    assert verdict([1.0, 2.0, 3.0], [0.9, 1.91, 2.89])[2] == "better"
    assert verdict([1.0, 2.0, 3.0], [1.1, 2.09, 3.11])[2] == "worse"
    assert verdict([1.0, 2.0, 3.0], [0.9, 2.05, 2.9])[2] == "cannot tell"
    found = verdict([1.0, 1.0, 1.0], [1.1, 1.2, 1.3])
    assert found.difference == pytest.approx(0.2) and found.error == pytest.approx(0.1 / 3**0.5)
    with pytest.raises(ValueError, match="got 1 and 1 numbers"):
        verdict([1.0], [2.0])


@pytest.mark.parametrize("n", [3, 5])
def test_without_any_difference_about_one_verdict_in_twenty_is_wrong(n: int) -> None:
    rng, false = random.Random(n), 0
    for _ in range(4000):
        reference = [rng.gauss(0, 1) for _ in range(n)]
        false += verdict(reference, [r + rng.gauss(0, 0.3) for r in reference]).word != "cannot tell"
    assert 0.035 < false / 4000 < 0.065
    assert T95[0] == 12.706 and list(T95) == sorted(T95, reverse=True)


def test_the_table_shows_mean_deviation_and_verdict() -> None:
    rows = [Result(arm, seed, 9, 100 + seed, 1.0, {"en": 1.0 + seed + better, "code": 2.0 + seed + better})
            for seed in range(3) for arm, better in (("reference", 0), ("mine", -0.5 - seed / 100))]  # fmt: skip
    lines = table(rows).splitlines()
    assert lines[0] == "| arm | steps | en | code | mean | against reference |"
    assert lines[2] == "| reference | 101 ± 1 | 2.000 ± 1.000 | 3.000 ± 1.000 | 2.500 ± 1.000 |  |"
    assert lines[3].endswith("| -0.510 ± 0.006: better |")


def test_changes_go_to_sizes_and_settings_and_unknown_ones_are_refused() -> None:
    arm = changed(SMALL, ["n_activated_experts=2", "lr=0.001"])
    assert (arm.model.n_activated_experts, arm.train.lr) == (2, 0.001)
    with pytest.raises(ValueError, match=r"got 'n_expert=4'\. There are vocab_size"):
        changed(SMALL, ["n_expert=4"])
    with pytest.raises(ValueError, match="lr wants float; got 'fast'"):
        changed(SMALL, ["lr=fast"])
    with pytest.raises(ValueError, match="n_expert_groups must divide"):
        changed(SMALL, ["n_expert_groups=5"])


def test_a_race_needs_a_rival_and_seeds() -> None:
    with pytest.raises(ValueError, match="1 arms, 3 seeds"):
        race({"one": SMALL}, 1)
    with pytest.raises(ValueError, match="2 arms, 1 seeds"):
        race({"one": SMALL, "two": SMALL}, 1, seeds=1)
