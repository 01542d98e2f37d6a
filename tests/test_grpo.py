"""GRPO's pieces: each equal to loops over the formula, to published definitions, and to the gradient they promise."""

from __future__ import annotations

import math
import statistics
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from minids.config import tiny
from minids.grpo import AVERAGES, advantages, averaged, informative, k3, log_probs, policy_loss
from minids.model import Transformer

B, L = 5, 7


def sample(seed: int = 0) -> dict[str, Tensor]:
    dice = torch.Generator().manual_seed(seed)
    mask = torch.arange(L) < torch.tensor([3, 7, 1, 5, 0])[:, None]  # one row is empty
    return {
        "logp": -torch.rand(B, L, generator=dice, dtype=torch.float64) * 3,
        "old": -torch.rand(B, L, generator=dice, dtype=torch.float64) * 3,
        "ref": -torch.rand(B, L, generator=dice, dtype=torch.float64) * 3,
        "A": torch.randn(B, generator=dice, dtype=torch.float64),
        "mask": mask,
    }


def by_loops(s: dict[str, Tensor], clip: float, beta: float, average: str, longest: int) -> float:
    """TRL 1.16's GRPOTrainer._compute_loss, written from its formulas (spec of `loss_type`), a token at a time."""
    rows: list[list[float]] = []
    for b in range(B):
        row = []
        for t in range(L):
            if s["mask"][b, t]:
                rho = math.exp(s["logp"][b, t] - s["old"][b, t])
                A = s["A"][b].item()
                surrogate = min(rho * A, min(max(rho, 1 - clip), 1 + clip) * A)
                d = (s["ref"][b, t] - s["logp"][b, t]).item()
                row.append(-surrogate + beta * (math.exp(d) - d - 1))
        rows.append(row)
    tokens = sum(map(len, rows))
    if average == "grpo":
        return sum(sum(row) / max(len(row), 1) for row in rows) / B
    if average in ("bnpo", "dapo"):
        return sum(map(sum, rows)) / tokens
    return sum(map(sum, rows)) / (B * longest)


@pytest.mark.parametrize("beta", [0.0, 0.04])
@pytest.mark.parametrize("average", AVERAGES)
def test_the_loss_equals_the_reference_s_formula_token_by_token(average: str, beta: float) -> None:
    s = sample()
    divisor = 9.0 if average == "dr_grpo" else 0.0
    loss = policy_loss(s["logp"], s["old"], s["A"], s["mask"], 0.2, beta, s["ref"], average, divisor).loss
    assert loss.item() == pytest.approx(by_loops(s, 0.2, beta, average, 9), abs=1e-12)


def test_dapo_divides_by_the_tokens_of_the_whole_rollout() -> None:
    s = sample()
    whole = averaged(s["logp"], s["mask"], "dapo")
    halves = [averaged(s["logp"][i], s["mask"][i], "dapo", s["mask"].sum().item()) for i in (slice(0, 2), slice(2, 5))]
    torch.testing.assert_close(halves[0] + halves[1], whole)
    torch.testing.assert_close(whole, averaged(s["logp"], s["mask"], "bnpo"))


def test_an_unknown_average_is_refused() -> None:
    s = sample()
    with pytest.raises(ValueError, match="grpo, bnpo, dapo, dr_grpo; got 'mean'"):
        averaged(s["logp"], s["mask"], "mean")


def test_a_kl_needs_a_reference() -> None:
    s = sample()
    with pytest.raises(ValueError, match=r"beta=0\.1 without ref_logp"):
        policy_loss(s["logp"], s["old"], s["A"], s["mask"], beta=0.1)


@pytest.mark.parametrize("ddof", [0, 1])
def test_advantages_are_standard_scores_of_the_group(ddof: int) -> None:
    rewards = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.5, 0.25, 1.0, 0.0], [1.0, 1.0, 1.0, 1.0]], dtype=torch.float64)
    std = statistics.stdev if ddof else statistics.pstdev
    got = advantages(rewards, ddof=ddof, eps=1e-6)
    for row, found in zip(rewards.tolist(), got.tolist(), strict=True):
        spread = std(row) + 1e-6
        assert found == pytest.approx([(r - statistics.mean(row)) / spread for r in row], abs=1e-12)
    assert (got[2] == 0).all()
    torch.testing.assert_close(advantages(rewards, "none"), rewards - rewards.mean(1, keepdim=True))
    torch.testing.assert_close(
        advantages(rewards, "batch", ddof), advantages(rewards, "none") / (rewards.std(correction=ddof) + 1e-4)
    )


def test_a_group_of_one_and_an_unknown_scale_are_refused() -> None:
    with pytest.raises(ValueError, match="G=1"):
        advantages(torch.ones(3, 1))
    with pytest.raises(ValueError, match="got 'row'"):
        advantages(torch.ones(3, 2), "row")


def test_k3_is_never_negative_and_its_mean_over_the_policy_is_the_kl() -> None:
    dice = torch.Generator().manual_seed(1)
    p, q = torch.randn(2, 6, generator=dice, dtype=torch.float64).log_softmax(-1)
    assert (k3(p, q) >= 0).all() and k3(p, p).abs().max() == 0
    exact = (p.exp() * (p - q)).sum()
    torch.testing.assert_close((p.exp() * k3(p, q)).sum(), exact)  # the expectation is exact

    # and its variance is below that of the plain estimator log p - log q
    def var(x: Tensor) -> Tensor:
        return (p.exp() * (x - exact) ** 2).sum()

    assert var(k3(p, q)) < var(p - q)


def test_the_first_loss_is_zero_and_its_gradient_is_the_policy_gradient() -> None:
    s = sample(2)
    s["mask"][:] = True
    A = advantages(torch.tensor([[1.0, 0.0, 0.0, 1.0, 1.0]], dtype=torch.float64)).flatten()
    logp = s["logp"].clone().requires_grad_()
    loss = policy_loss(logp, s["logp"], A, s["mask"]).loss
    assert abs(loss.item()) < 1e-12
    loss.backward()
    assert logp.grad is not None
    torch.testing.assert_close(logp.grad, (-A[:, None] / (B * L)).expand(B, L))


def test_a_clipped_token_has_no_gradient_and_is_counted() -> None:
    old = torch.zeros(4, 1, dtype=torch.float64)
    logp = torch.tensor([[1.5], [0.5], [1.5], [0.5]], dtype=torch.float64).log().requires_grad_()
    A = torch.tensor([1.0, 1.0, -1.0, -1.0], dtype=torch.float64)
    result = policy_loss(logp, old, A, torch.ones(4, 1, dtype=torch.bool), clip=0.2)
    result.loss.backward()
    assert logp.grad is not None
    assert (logp.grad[:, 0] == 0).tolist() == [True, False, False, True]  # good and grown, bad and shrunk: enough
    assert result.clipped == 0.5


def test_groups_without_spread_teach_nothing() -> None:
    rewards = torch.tensor([[1.0, 1, 1], [0, 0, 0], [0, 1, 0]])
    assert informative(rewards).tolist() == [False, False, True]


def test_log_probs_are_those_of_the_whole_row() -> None:
    cfg = replace(tiny(), vocab_size=29, n_layers=2, n_mtp_modules=0)
    model = Transformer(cfg, torch.Generator().manual_seed(3))
    tokens = torch.randint(29, (3, 11), generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        got, logits = log_probs(model, tokens, 4), model(tokens)
    for b in range(3):
        for i, t in enumerate(range(7, 11)):
            assert got[b, i].item() == pytest.approx(logits[b, t - 1].log_softmax(-1)[tokens[b, t]].item(), abs=1e-5)
