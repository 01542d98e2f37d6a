"""DeepSeekMoE: many small routed experts, of which K answer for a token, beside shared experts that always answer.

Paper: DeepSeek-V3 section 2.1.2, eq. 12; DeepSeekMoE arXiv 2401.06066.

    y = shared(x) + sum_k g_k E_k(x)          (the residual adds x outside)

All experts' weights sit in two stacked tensors, `w13` [E 2F D] and `w2` [E D F]: a step touches few tensors, and an
expert without tokens simply has a zero gradient. Three ways to run them, the same sums in a different order:

    sorted     many tokens: order the T K (token, expert) pairs by expert; for each expert fetch its tokens' rows, one
               matrix product, add the rows to their tokens' sums. Whole rows are read, no product is wasted.
    gathered   a token or two that need few of the experts (decoding): fetch their matrices, one batched product.
    every      a few tokens that together need most experts: all experts on all of them, weight 0 where not chosen.

The backward pass of `sorted` is written by hand: autograd would build a full-size gradient of `w13` for every expert
that it cuts out.

Differs from the paper: nothing in the mathematics. The shared experts are one MLP of n_shared x F width, as in
DeepSeek's code: the same function.
Left out: experts on other devices (11_expert_parallel), redundant experts (`eplb`, 17_serving).
Notebook: 04_moe.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from minids.config import Config
from minids.layers import MLP, as_autocast
from minids.router import Gate, expert_load, sequence_balance_loss


class Routing(NamedTuple):
    """What a MoE layer tells about one batch. Load and loss are computed when asked for, so decoding does not pay."""

    scores: Tensor  # [B S E] affinities
    indices: Tensor  # [B S K] the experts chosen

    @property
    def load(self) -> Tensor:
        """[E] tokens routed to each expert."""
        return expert_load(self.indices.flatten(0, 1), self.scores.shape[-1])

    @property
    def balance(self) -> Tensor:
        """The sequence-wise balance loss, without alpha."""
        return sequence_balance_loss(self.scores, self.indices)


class MoE(nn.Module):
    """Shared plus routed experts. Returns the sum and the `Routing` that balancing needs."""

    def __init__(self, cfg: Config):
        super().__init__()
        self.gate = Gate(cfg)
        self.experts = Experts(cfg.n_routed_experts, cfg.dim, cfg.moe_inter_dim)
        self.shared_experts = MLP(cfg.dim, cfg.n_shared_experts * cfg.moe_inter_dim) if cfg.n_shared_experts else None

    def forward(self, x: Float[Tensor, "B S D"]) -> tuple[Float[Tensor, "B S D"], Routing]:
        B, S, D = x.shape
        flat = x.reshape(B * S, D)
        weights, indices, scores = self.gate(flat)
        # y = shared(x) + sum_k g_k E_k(x)
        y = self.experts(flat, weights, indices)
        if self.shared_experts is not None:
            y = y + self.shared_experts(flat)
        return y.view(B, S, D), Routing(scores.view(B, S, -1), indices.view(B, S, -1))


class Experts(nn.Module):
    """E SwiGLU networks of width F in two stacked tensors."""

    def __init__(self, n_experts: int, dim: int, inter_dim: int):
        super().__init__()
        self.w13 = nn.Parameter(torch.empty(n_experts, 2 * inter_dim, dim))
        self.w2 = nn.Parameter(torch.empty(n_experts, dim, inter_dim))

    def forward(
        self, x: Float[Tensor, "T D"], weights: Float[Tensor, "T K"], indices: Int[Tensor, "T K"]
    ) -> Float[Tensor, "T D"]:
        """sum_k weights_k E_(indices_k)(x) for each of the T tokens."""
        T, E = len(x), self.w13.shape[0]
        if torch.is_grad_enabled():
            return self.sorted(x, weights, indices)
        if 3 * indices.numel() < E:  # fetching a matrix reads, writes and reads it again
            return self.gathered(x, weights, indices)
        return self.every(x, weights, indices) if T * E <= 512 else self.sorted(x, weights, indices)

    def gathered(
        self, x: Float[Tensor, "T D"], weights: Float[Tensor, "T K"], indices: Int[Tensor, "T K"]
    ) -> Float[Tensor, "T D"]:
        """One batched product with the chosen experts' own matrices: for one or two tokens."""
        T, K = indices.shape
        flat = indices.flatten()
        gate, up = torch.bmm(x.repeat_interleave(K, 0).unsqueeze(1), _fetch(self.w13, flat).mT).chunk(2, -1)  # [TK 1 F]
        a = F.silu(gate).mul_(up).mul_(weights.view(-1, 1, 1))
        return torch.bmm(a, _fetch(self.w2, flat).mT).view(T, K, -1).sum(1)

    def every(
        self, x: Float[Tensor, "T D"], weights: Float[Tensor, "T K"], indices: Int[Tensor, "T K"]
    ) -> Float[Tensor, "T D"]:
        """Every expert on every token, weight 0 where not chosen: for a few tokens that together need most experts."""
        T, E = len(x), len(self.w13)
        g = weights.new_zeros(T, E).scatter_(1, indices, weights).t().unsqueeze(-1)  # [E T 1]
        gate, up = torch.bmm(x.expand(E, -1, -1), self.w13.mT).chunk(2, -1)  # [E T F] each
        return torch.bmm(F.silu(gate).mul_(up).mul_(g), self.w2.mT).sum(0)

    def sorted(
        self, x: Float[Tensor, "T D"], weights: Float[Tensor, "T K"], indices: Int[Tensor, "T K"]
    ) -> Float[Tensor, "T D"]:
        """Rows fetched by expert, one product per expert, rows added to their tokens: for many tokens."""
        order = indices.flatten().argsort(stable=True)  # the T K pairs, by expert
        counts = expert_load(indices, self.w13.shape[0]).tolist()
        return _SortedExperts.apply(*as_autocast(x, self.w13, self.w2, weights), order, counts)


class _SortedExperts(torch.autograd.Function):
    """sum_k w2_e(g_k silu(w1_e x) * w3_e x) with the pairs (token, k) taken in `order`, by expert; counts[e] pairs
    each.

    The weight g_k multiplies the F narrow activations instead of the D wide outputs: w2_e is linear.
    """

    @staticmethod
    def forward(ctx, x, w13, w2, weights, order, counts):
        token, g = order // weights.shape[1], weights.flatten().index_select(0, order).unsqueeze(-1)
        y, hidden = _zeros_to_sum(x), []
        # an expert's rows are spent while they are in the processor's cache
        for at, g_e, w13_e, w2_e in zip(token.split(counts), g.split(counts), w13, w2, strict=True):
            h = x.index_select(0, at) @ w13_e.t()  # [n 2F]
            gate, up = h.chunk(2, -1)
            y.index_add_(0, at, (F.silu(gate).mul_(up).mul_(g_e) @ w2_e.t()).to(y.dtype))
            hidden.append(h)
        ctx.save_for_backward(x, w13, w2, g, token, order, *hidden)
        ctx.counts, ctx.K = counts, weights.shape[1]
        return y.to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, d):  # type: ignore[override]
        x, w13, w2, g, token, order, *hidden = ctx.saved_tensors
        dx, dw13, dw2, dg = _zeros_to_sum(x), torch.empty_like(w13), torch.empty_like(w2), torch.empty_like(g)
        by_expert = (t.split(ctx.counts) for t in (token, g, dg.squeeze(-1)))
        for at, g_e, dg_e, h, *w in zip(*by_expert, hidden, w13, w2, dw13, dw2, strict=True):
            w13_e, w2_e, dw13_e, dw2_e = w
            xs, dy, dh = x.index_select(0, at), d.index_select(0, at), torch.empty_like(h)
            (gate, up), (dgate, dup) = h.chunk(2, -1), dh.chunk(2, -1)
            silu = F.silu(gate)
            a = silu * up  # computed again, as the paper does for SwiGLU (section 3.3.3)
            da = dy @ w2_e
            torch.linalg.vecdot(da, a, out=dg_e)
            torch.mul(da.mul_(g_e), silu, out=dup)
            torch.mm(dy.t(), a.mul_(g_e), out=dw2_e)
            # d silu(u) / du = sig + silu (1 - sig)
            torch.ops.aten.silu_backward(da.mul_(up), gate, grad_input=dgate)
            torch.mm(dh.t(), xs, out=dw13_e)  # zeros, if no token came
            dx.index_add_(0, at, (dh @ w13_e).to(dx.dtype))
        dg = torch.empty_like(dg).index_copy_(0, order, dg).view(-1, ctx.K)  # by token again
        return dx.to(x.dtype), dw13, dw2, dg, None, None


def _zeros_to_sum(x: Tensor) -> Tensor:
    """Zeros like x, in at least fp32: a token's K rows are added up in it."""
    return torch.zeros_like(x, dtype=torch.promote_types(x.dtype, torch.float32))


def _fetch(w: Tensor, experts: Tensor) -> Tensor:
    """w[experts], as it lies in memory (`Transformer.for_decoding`)."""
    return w.mT.index_select(0, experts).mT if w.mT.is_contiguous() else w.index_select(0, experts)
