"""The mixture against a loop over tokens and experts; both ways to run experts give one function and one gradient."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from minids.config import tiny
from minids.moe import Experts, MoE

CFG = replace(tiny(), dim=10, moe_inter_dim=6, n_routed_experts=8, n_activated_experts=3, n_shared_experts=2)


def experts(E=8, D=10, width=6) -> Experts:
    ex = Experts(E, D, width).double()
    for p in ex.parameters():
        torch.nn.init.normal_(p)
    return ex


def looped(ex: Experts, x, weights, indices):
    rows = []
    for t in range(len(x)):
        y = torch.zeros_like(x[t])
        for g, e in zip(weights[t], indices[t], strict=True):
            w1, w3 = ex.w13[e].chunk(2)
            y = y + g * (ex.w2[e] @ (F.silu(w1 @ x[t]) * (w3 @ x[t])))
        rows.append(y)
    return torch.stack(rows)


def routed(T=17, E=8, K=3):
    x = torch.randn(T, 10, dtype=torch.double, requires_grad=True)
    weights = torch.rand(T, K, dtype=torch.double, requires_grad=True)
    indices = torch.stack([torch.randperm(E - 2)[:K] for _ in range(T)])  # the last two experts get no token
    return x, weights, indices


@pytest.mark.parametrize("way", ["sorted", "gathered"])
def test_each_way_equals_a_loop_over_tokens_and_their_experts(way):
    ex, (x, weights, indices) = experts(), routed()
    torch.testing.assert_close(getattr(ex, way)(x, weights, indices), looped(ex, x, weights, indices))


def test_the_hand_written_gradients_equal_those_of_the_loop_and_idle_experts_get_zero():
    ex, (x, weights, indices) = experts(), routed()
    inputs, d = (x, weights, ex.w13, ex.w2), torch.randn(17, 10).double()
    got = torch.autograd.grad(ex.sorted(x, weights, indices), inputs, d)
    want = torch.autograd.grad(looped(ex, x, weights, indices), inputs, d)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)
    assert (got[2][6:] == 0).all() and (got[3][6:] == 0).all()


def test_no_token_is_dropped_when_all_go_to_the_same_experts():
    ex, (x, weights, _) = experts(), routed()
    indices = torch.tensor([[5, 0, 2]]).expand(17, 3)
    torch.testing.assert_close(ex(x, weights, indices), looped(ex, x, weights, indices))


def test_the_shared_experts_answer_for_every_token_unweighted():
    moe, x = MoE(CFG), torch.randn(2, 7, 10)
    for p in moe.parameters():
        torch.nn.init.normal_(p)
    y, routing = moe(x)
    weights, indices, _ = moe.gate(x.view(14, 10))
    routed_part = moe.experts(x.view(14, 10), weights, indices).view(2, 7, 10)
    torch.testing.assert_close(y - routed_part, moe.shared_experts(x), atol=1e-4, rtol=1e-4)
    assert routing.load.sum() == 2 * 7 * 3


def test_few_tokens_without_gradient_and_many_with_one_give_the_same_outputs():
    moe = MoE(CFG)
    for p in moe.parameters():
        torch.nn.init.normal_(p)
    x = torch.randn(1, 4, 10)
    with torch.no_grad():
        few = moe(x)[0]
    torch.testing.assert_close(few, moe(x)[0], atol=1e-4, rtol=1e-4)


def test_experts_without_a_token_have_no_output_and_zero_gradients() -> None:
    experts = Experts(3, 5, 2)
    for p in experts.parameters():
        torch.nn.init.normal_(p)
    x, g = torch.empty(0, 5, requires_grad=True), torch.empty(0, 1, requires_grad=True)
    y = experts.sorted(x, g, torch.empty(0, 1, dtype=torch.long))
    y.sum().backward()
    assert y.shape == (0, 5) and x.grad is not None
    assert experts.w13.grad is not None and not experts.w13.grad.any()
