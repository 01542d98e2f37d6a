"""The layers that every block repeats, RMSNorm and SwiGLU, and the loss of the output head.

Paper: DeepSeek-V3 section 4.2 (RMSNorm after the compressed latents too); SwiGLU is arXiv 2002.05202, RMSNorm arXiv
1910.07467.

RMSNorm divides a vector by its root mean square and scales each feature by `weight`; no mean is subtracted, there is no
bias. SwiGLU lets one projection gate another: w2(silu(w1 x) * w3 x). Here w1 and w3 are stacked in one matrix `w13`
(w1's rows first), so that the machine does one multiplication instead of two. `head_loss` is cross-entropy made a slice
of rows at a time: the logits of a batch, tokens x W floats, would be the largest tensor of a small model.

RMSNorm's and the loss's backward passes are written by hand; they need half the passes over memory of autograd's.

Differs from the paper: nothing in the mathematics; DeepSeek's checkpoints hold w1 and w3 apart (`hf` splits and joins
them).
Left out: recomputing both in the backward pass (section 3.2.3), which saves memory and costs time.
Notebook: 04_moe (SwiGLU), 07_deepseek (where the norms sit).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last dimension; statistics in at least fp32, as DeepSeek's code does."""

    def __init__(self, dim: int, eps: float = 1e-6):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
        if x.dtype.itemsize < 4:  # bf16, fp16: statistics in fp32
            return _RMSNorm.apply(x.float(), self.weight.float(), self.eps).to(x.dtype)
        if not torch.is_grad_enabled():
            # F.rms_norm is several times slower for many rows; eps as a tensor lets one operation do the work of three
            norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
            inv_rms = norm.new_full((), self.eps).addcmul(norm, norm, value=1 / x.shape[-1]).rsqrt_()
            return (x * inv_rms).mul_(self.weight)
        return _RMSNorm.apply(x, self.weight, self.eps)


class _RMSNorm(torch.autograd.Function):
    """RMSNorm with its backward pass by hand: half the passes over memory of autograd's."""

    @staticmethod
    def forward(ctx, x, weight, eps):
        # y_i = w_i x_i / rms,  rms = sqrt(mean_j x_j^2 + eps)
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        inv_rms = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, inv_rms, weight)
        return (x * inv_rms).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):  # type: ignore[override]
        # dw = sum_t dy_t x_t / rms_t,  dx = (w dy - x / rms^2 mean_j(w_j dy_j x_j)) / rms
        x, inv_rms, weight = ctx.saved_tensors
        dyx = (dy * x).flatten(0, -2)
        dw = (inv_rms.view(1, -1) @ dyx).view(-1)
        mean = (dyx @ weight).view_as(inv_rms) / x.shape[-1]
        dx = (dy * weight).mul_(inv_rms).addcmul_(x, mean * inv_rms**3, value=-1)
        return dx, dw, None


class MLP(nn.Module):
    """SwiGLU feed-forward network: D -> F -> D without biases."""

    def __init__(self, dim: int, inter_dim: int):
        super().__init__()
        self.w13 = nn.Linear(dim, 2 * inter_dim, bias=False)
        self.w2 = nn.Linear(inter_dim, dim, bias=False)

    def forward(self, x: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
        # y = w2(silu(w1 x) * w3 x)
        gate, up = self.w13(x).chunk(2, dim=-1)  # [.., F] each
        return self.w2(F.silu(gate) * up)


def head_loss(
    h: Float[Tensor, "*batch D"], weight: Float[Tensor, "W D"], targets: Int[Tensor, "*batch"]
) -> Float[Tensor, ""]:
    """Summed cross-entropy of the output head, in nats: -sum_i log softmax(W h_i)[target_i].

    Logits are made and used a slice of rows at a time, forward and backward in one go, so that W x tokens floats are
    never held.
    """
    h, weight = as_autocast(h.reshape(-1, h.shape[-1]), weight)
    return _HeadLoss.apply(h, weight, targets.reshape(-1))


def as_autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors as torch.autocast would hand them to a matrix product: for functions that it does not know."""
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return tensors
    return tuple(t.to(torch.get_autocast_dtype(device)) for t in tensors)


class _HeadLoss(torch.autograd.Function):
    ROWS = 256  # a slice of logits stays in the processor's cache

    @staticmethod
    def forward(ctx, h, weight, targets):
        loss = h.new_zeros((), dtype=torch.promote_types(h.dtype, torch.float32))
        dh, dw = (torch.empty_like(h), torch.zeros_like(weight)) if any(ctx.needs_input_grad) else (None, None)
        for start in range(0, len(h), _HeadLoss.ROWS):
            rows = slice(start, start + _HeadLoss.ROWS)
            p, target = (h[rows] @ weight.t()).to(loss.dtype), targets[rows, None]
            p.sub_(p.amax(-1, keepdim=True))
            right = p.gather(1, target)
            total = p.exp_().sum(-1, keepdim=True)
            loss += (total.log() - right).sum()
            if dh is not None and dw is not None:
                # d loss / d logits = softmax(logits) - onehot(target)
                p.div_(total).scatter_add_(1, target, torch.full_like(total, -1.0))
                p = p.to(h.dtype)
                torch.mm(p, weight, out=dh[rows])
                dw.addmm_(p.t(), h[rows])
        ctx.save_for_backward(dh, dw)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx, d):  # type: ignore[override]
        dh, dw = ctx.saved_tensors
        return dh * d, dw * d, None
