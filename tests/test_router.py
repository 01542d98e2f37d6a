"""The gate against a slow one that follows the paper token by token, and the laws of balancing."""

import math
from dataclasses import replace

import pytest
import torch

from minids.config import tiny, v2
from minids.router import Gate, expert_load, limit_groups, max_violation, mutual_information, sequence_balance_loss

V3 = replace(tiny(), dim=6, n_routed_experts=12, n_activated_experts=3, n_expert_groups=4, n_limited_groups=2,
             route_scale=2.5)  # fmt: skip
V2 = replace(V3, score_func="softmax", norm_topk_prob=False, route_scale=16.0)


def gate(cfg):
    g = Gate(cfg)
    torch.nn.init.normal_(g.weight)
    return g


def slow_v3(g: Gate, x):
    """Section 2.1.2 for one token: {expert: weight}."""
    s = torch.sigmoid(g.weight.detach() @ x)
    biased = (s + g.bias).tolist()
    groups = [range(i, i + 3) for i in range(0, 12, 3)]
    groups.sort(key=lambda gr: -sum(sorted((biased[e] for e in gr), reverse=True)[:2]))
    allowed = [e for gr in groups[:2] for e in gr]
    chosen = sorted(allowed, key=lambda e: -biased[e])[:3]
    total = sum(s[e] for e in chosen)
    return {e: float(2.5 * s[e] / total) for e in chosen}


def slow_v2(g: Gate, x):
    s = torch.softmax(g.weight.detach() @ x, 0)
    groups = sorted((range(i, i + 3) for i in range(0, 12, 3)), key=lambda gr: -max(s[e] for e in gr))
    chosen = sorted((e for gr in groups[:2] for e in gr), key=lambda e: -s[e])[:3]
    return {e: float(16 * s[e]) for e in chosen}


@pytest.mark.parametrize(("cfg", "slow"), [(V3, slow_v3), (V2, slow_v2)], ids=["v3", "v2"])
def test_the_gate_chooses_and_weighs_as_the_paper_does_token_by_token(cfg, slow):
    g, x = gate(cfg), torch.randn(200, 6)
    if g.bias is not None:
        g.bias.normal_(0, 0.3)  # large enough to change choices, and negative scores are there
    weights, indices, _ = g(x)
    for t in range(200):
        got = dict(zip(indices[t].tolist(), weights[t].tolist(), strict=True))
        assert got == pytest.approx(slow(g, x[t]), rel=1e-5)


def test_the_bias_moves_choices_and_never_the_weights_of_the_chosen():
    g, x = gate(replace(V3, n_limited_groups=4)), torch.randn(50, 6)
    g.bias[7] = 10.0
    weights, indices, scores = g(x)
    assert (indices == 7).any(1).all()
    s = scores.gather(1, indices)
    torch.testing.assert_close(weights, 2.5 * s / s.sum(1, keepdim=True))


def test_a_forbidden_expert_is_not_chosen_when_all_allowed_scores_are_negative():
    s = torch.tensor([[-0.1, -0.2, -3.0, -4.0]])
    assert limit_groups(s, groups=2, keep=1)[0].tolist() == [
        pytest.approx(-0.1),
        pytest.approx(-0.2),
        -torch.inf,
        -torch.inf,
    ]


def test_v3_scores_a_group_by_its_two_best_and_v2_by_its_best():
    s = torch.tensor([[0.9, 0.1, 0.6, 0.6]])
    assert limit_groups(s, 2, 1, best=2).isinf()[0].tolist() == [True, True, False, False]
    assert limit_groups(s, 2, 1, best=1).isinf()[0].tolist() == [False, False, True, True]
    assert gate(V3).group_best == 2
    assert Gate(v2()).group_best == 1


def test_an_overloaded_expert_loses_gamma_and_a_starved_one_gains_it():
    g = gate(replace(V3, n_routed_experts=4, n_expert_groups=1, n_limited_groups=1))
    g.update_bias(torch.tensor([9, 1, 5, 5]), gamma=0.01)
    assert g.bias.tolist() == [pytest.approx(-0.01), pytest.approx(0.01), 0.0, 0.0]


def test_updating_the_bias_again_and_again_balances_a_lopsided_gate():
    cfg = replace(V3, n_expert_groups=1, n_limited_groups=1)
    g, x = gate(cfg), torch.randn(600, 6) + 1.0  # a common direction: some experts win everywhere
    before = max_violation(expert_load(g(x)[1], 12))
    for step in range(300):  # large steps first, then fine ones
        g.update_bias(expert_load(g(x)[1], 12), gamma=0.01 if step < 200 else 0.001)
    assert before > 1.0
    assert max_violation(expert_load(g(x)[1], 12)) < 0.2


def test_no_gradient_reaches_the_bias_and_the_chosen_scores_have_one():
    g = gate(V3)
    weights, _, _ = g(torch.randn(5, 6))
    weights.pow(2).sum().backward()
    assert g.weight.grad is not None and g.weight.grad.abs().sum() > 0
    assert not g.bias.requires_grad


def test_the_sequence_loss_is_eq_17_to_20_and_one_when_balanced():
    scores, indices = torch.rand(2, 5, 4), torch.stack([torch.randperm(4)[:2] for _ in range(10)]).view(2, 5, 2)
    want = 0.0
    for b in range(2):
        for i in range(4):
            f = 4 / (2 * 5) * sum(int(i in indices[b, t]) for t in range(5))
            P = sum(scores[b, t, i] / scores[b, t].sum() for t in range(5)) / 5
            want += f * P / 2
    torch.testing.assert_close(sequence_balance_loss(scores, indices), want)
    even = torch.tensor([[[0, 1], [2, 3]]])
    assert sequence_balance_loss(torch.rand(1, 2, 4), even).item() == pytest.approx(1.0)


def test_max_violation_is_zero_for_equal_loads_and_counts_in_means():
    assert max_violation(torch.tensor([[4, 4], [6, 2]])).tolist() == [0.0, 0.5]


def test_the_bits_of_a_table_are_entropy_of_rows_minus_entropy_when_the_expert_is_known():
    counts = torch.randint(0, 9, (3, 5))
    p = counts.double() / counts.sum()

    def entropy(q):
        return -sum(x * math.log2(x) for x in q.flatten().tolist() if x > 0)

    known = sum(float(p[:, e].sum()) * entropy(p[:, e] / p[:, e].sum()) for e in range(5) if p[:, e].any())
    assert mutual_information(counts).item() == pytest.approx(entropy(p.sum(1)) - known)
    tables = torch.stack([counts, torch.zeros(3, 5, dtype=torch.long), torch.ones(3, 5, dtype=torch.long)])
    assert mutual_information(tables).tolist() == [pytest.approx(mutual_information(counts).item()), 0.0, 0.0]
    assert mutual_information(torch.diag(torch.tensor([7, 7, 7, 7]))).item() == pytest.approx(2.0)
