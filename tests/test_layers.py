"""RMSNorm, SwiGLU and the sliced head loss against their formulas, and their hand-written gradients against numbers."""

import pytest
import torch
import torch.nn.functional as F

from minids.layers import MLP, RMSNorm, head_loss


def test_rmsnorm_is_its_formula_and_its_gradient_is_right():
    norm = RMSNorm(7, eps=1e-3).double()
    norm.weight.data = torch.randn(7).double()
    x = torch.randn(3, 5, 7, dtype=torch.double, requires_grad=True)
    want = torch.stack([row / ((row**2).sum() / 7 + 1e-3) ** 0.5 * norm.weight for row in x.reshape(-1, 7)])
    torch.testing.assert_close(norm(x).reshape(-1, 7), want)
    assert torch.autograd.gradcheck(
        lambda x, w: torch.func.functional_call(norm, {"weight": w}, (x,)), (x, norm.weight)
    )


def test_rmsnorm_keeps_bf16_and_takes_its_statistics_in_fp32():
    norm, x = RMSNorm(64), 30 * torch.randn(4, 64)
    got = norm(x.bfloat16())
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.float(), norm(x), atol=0.03, rtol=0.01)  # one rounding of 8 bits


def test_rmsnorm_does_not_subtract_the_mean():
    assert RMSNorm(4)(torch.full((1, 4), 3.0)).allclose(torch.ones(1, 4))


def test_mlp_is_w2_of_silu_w1_times_w3():
    mlp, x = MLP(5, 3), torch.randn(2, 5)
    w1, w3 = mlp.w13.weight[:3], mlp.w13.weight[3:]
    want = (F.silu(x @ w1.T) * (x @ w3.T)) @ mlp.w2.weight.T
    torch.testing.assert_close(mlp(x), want)


@pytest.mark.parametrize("rows", [5, 256, 600])  # below, at and over the slice
def test_head_loss_equals_cross_entropy_of_all_logits_with_its_gradients(rows):
    h = torch.randn(rows, 6, dtype=torch.double, requires_grad=True)
    w = torch.randn(11, 6, dtype=torch.double, requires_grad=True)
    targets = torch.randint(0, 11, (rows,))
    want = F.cross_entropy(h @ w.T, targets, reduction="sum")
    got = head_loss(h, w, targets)
    torch.testing.assert_close(got, want)
    for a, b in zip(torch.autograd.grad(got * 0.3, (h, w)), torch.autograd.grad(want * 0.3, (h, w)), strict=True):
        torch.testing.assert_close(a, b)


def test_head_loss_survives_logits_of_a_thousand():
    h, w = torch.full((2, 1), 1000.0), torch.tensor([[1.0], [-1.0], [0.5]])
    assert head_loss(h, w, torch.tensor([0, 1])).item() == pytest.approx(2000.0)
