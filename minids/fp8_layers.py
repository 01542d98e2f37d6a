"""FP8 training: each linear layer's three products on numbers of 8 bits, put into a model by `convert(model)`.

Paper: DeepSeek-V3 section 3.3, figures 6 and 7.

For y = x W^T the three products sum over different axes, so each wants its own tiles:

    product                sums over    left operand           right operand
    forward  y  = x W^T    features     x in 1 x 128           W in 128 x 128
    dgrad    dx = dy W     features     dy in 1 x 128          the same W
    wgrad    dW = dy^T x   tokens       dy in 128 x 1          x in 128 x 1, from the stored 1 x 128

    kept for the backward pass   x in E4M3, one byte a number; the input of `wo` in E5M6, because attention needs it too
    SwiGLU                       its inputs are kept in E4M3, its output is computed again
    powers of two as scales      the input of `wo`, of the routed experts' w13, the gradient before their w2
    stays high                   embedding, head, gate, norms, attention's own products; master weights, gradients

A layer's weights stay the same fp32 `Parameter`s: an optimizer that holds them goes on, and `revert` loses nothing.

Differs from the paper: emulated in fp32 (see `fp8`). The gate's weight g multiplies the activations before w2 instead
of its output: w2 is linear, but the tile's rounding sees g. Tiles along tokens end with an expert's rows.
Left out: FP8 dispatch between devices (11_expert_parallel), BF16 moments (`optim`), decoding's few-token paths: a
converted expert always sorts.
Notebook: 09_fp8.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from minids.fp8 import BLOCK, COLUMN, E4M3, E5M6, SMALLEST_AMAX, TILE, Format, Stored, restore, snap, store
from minids.layers import MLP
from minids.model import Transformer
from minids.moe import Experts, expert_load


@dataclass(frozen=True)
class Recipe:
    """How a linear layer's operands are rounded. The defaults are DeepSeek-V3's; other values are for experiments.

    Tiles are (rows, columns) that share a scale; 0 means all. `bf16` rounds everything to BF16 instead, without scales.
    `gradient_floor` is the floor under a gradient tile's largest number: a loss averaged over tokens makes gradients
    so small that with 1e-4, the floor for activations, nearly all tiles would have one and the same scale.
    """

    activations: tuple[int, int] = TILE
    weights: tuple[int, int] = BLOCK
    gradients: tuple[int, int] = TILE
    along_tokens: tuple[int, int] = COLUMN
    gradient_format: Format = E4M3
    gradient_floor: float = 1e-30
    bf16: bool = False

    def x(self, x: Tensor, power_of_two: bool = False) -> Tensor:
        return self._round(x, self.activations, E4M3, power_of_two)

    def w(self, w: Tensor) -> Tensor:
        return self._round(w, self.weights)

    def dy(self, dy: Tensor, power_of_two: bool = False) -> Tensor:
        return self._round(dy, self.gradients, self.gradient_format, power_of_two, self.gradient_floor)

    def x_tokens(self, x: Tensor, power_of_two: bool = False) -> Tensor:
        return self._round(x, self.along_tokens, E4M3, power_of_two)

    def dy_tokens(self, dy: Tensor, power_of_two: bool = False) -> Tensor:
        return self._round(dy, self.along_tokens, self.gradient_format, power_of_two, self.gradient_floor)

    def keep(self, x: Tensor, fmt: Format = E4M3, power_of_two: bool = False) -> tuple[tuple[Tensor, ...], Tensor]:
        """(the tensors to keep for the backward pass, x as the forward product takes it)."""
        if self.bf16:
            kept = x.bfloat16()
            return (kept,), kept.float()
        kept, values = store(x, fmt, power_of_two)
        exact = fmt is E4M3 and self.activations == TILE
        return tuple(kept), values if exact else self.x(x, power_of_two)

    def _round(
        self,
        x: Tensor,
        tile: tuple[int, int],
        fmt: Format = E4M3,
        power_of_two: bool = False,
        floor: float = SMALLEST_AMAX,
    ) -> Float[Tensor, "R C"]:
        return x.bfloat16().float() if self.bf16 else snap(x, tile, fmt, power_of_two, floor)


V3 = Recipe()


def back(kept: Sequence[Tensor]) -> Float[Tensor, "R C"]:
    """What `Recipe.keep` kept, as fp32 numbers."""
    return restore(Stored(*kept)) if len(kept) == 2 else kept[0].float()


class Fp8Linear(nn.Linear):
    """A linear layer without bias whose three products see rounded operands."""

    def __init__(self, linear: nn.Linear, recipe: Recipe = V3, after_attention: bool = False):
        if linear.bias is not None:
            raise ValueError(
                "FP8 layers have no bias, as DeepSeek's have none; got a layer with one. Leave it as it is."
            )
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.recipe, self.after_attention = recipe, after_attention
        self.register_parameter("weight", linear.weight)  # type: ignore[arg-type]
        self.register_parameter("bias", None)

    def forward(self, input: Float[Tensor, "*batch I"]) -> Float[Tensor, "*batch O"]:
        flat = input.reshape(-1, input.shape[-1])
        y = _Linear.apply(flat, self.weight, self.recipe, self.after_attention)
        return y.view(*input.shape[:-1], -1)


class _Linear(torch.autograd.Function):
    """y = x W^T. `two`: powers of two as scales, and x kept in E5M6 (the input of `wo`)."""

    @staticmethod
    def forward(ctx, x, w, recipe, two):
        kept, xq = recipe.keep(x, E5M6 if two else E4M3, two)
        ctx.save_for_backward(w, *kept)
        ctx.recipe, ctx.two = recipe, two
        return xq @ recipe.w(w).T

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):  # type: ignore[override]
        w, *kept = ctx.saved_tensors
        r = ctx.recipe
        dx = r.dy(dy) @ r.w(w)  # dgrad
        dw = r.dy_tokens(dy).T @ r.x_tokens(back(kept), ctx.two)  # wgrad
        return dx, dw, None, None


class Fp8MLP(MLP):
    """SwiGLU with rounded operands; keeps its input and SwiGLU's in FP8, and computes SwiGLU's output again."""

    def __init__(self, mlp: MLP, recipe: Recipe = V3):
        nn.Module.__init__(self)
        self.w13, self.w2, self.recipe = mlp.w13, mlp.w2, recipe

    def forward(self, x: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
        flat = x.reshape(-1, x.shape[-1])
        return _SwiGLU.apply(flat, self.w13.weight, self.w2.weight, None, self.recipe).view(x.shape)


class Fp8Experts(Experts):
    """Routed experts with rounded operands; their input and the gradient before w2 have powers of two as scales."""

    def __init__(self, experts: Experts, recipe: Recipe = V3):
        nn.Module.__init__(self)
        self.w13, self.w2, self.recipe = experts.w13, experts.w2, recipe

    def forward(
        self, x: Float[Tensor, "T D"], weights: Float[Tensor, "T K"], indices: Int[Tensor, "T K"]
    ) -> Float[Tensor, "T D"]:
        T, K = indices.shape
        order = indices.flatten().argsort(stable=True)  # the T K pairs, by expert
        counts = expert_load(indices, len(self.w13)).tolist()
        xs, g = x.index_select(0, order // K).split(counts), weights.flatten()[order, None].split(counts)
        experts = zip(xs, self.w13.unbind(), self.w2.unbind(), g, strict=True)
        y = torch.cat([_SwiGLU.apply(*parts, self.recipe) for parts in experts if len(parts[0])])
        return y.index_select(0, order.argsort()).view(T, K, -1).sum(1)


class _SwiGLU(torch.autograd.Function):
    """y = (g silu(x w1^T) * x w3^T) w2^T; with g, the weights [R 1] of a routed expert, scales are powers of two."""

    @staticmethod
    def forward(ctx, x, w13, w2, g, recipe):
        kept, xq = recipe.keep(x, E4M3, g is not None)
        h = xq @ recipe.w(w13).T  # [R 2F]
        inputs, _ = recipe.keep(h.view(2 * len(h), -1))  # a tile never spans gate and up
        gate, up = h.chunk(2, -1)
        a = F.silu(gate).mul_(up)
        ctx.save_for_backward(w13, w2, g, *kept, *inputs)
        ctx.recipe = recipe
        return recipe.x(a if g is None else a * g) @ recipe.w(w2).T

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):  # type: ignore[override]
        w13, w2, g, *kept = ctx.saved_tensors
        r, two, half = ctx.recipe, g is not None, len(kept) // 2
        gate, up = back(kept[half:]).reshape(len(dy), -1).chunk(2, -1)
        sig = gate.sigmoid()
        silu = gate * sig
        a = silu * up  # SwiGLU once more
        da = r.dy(dy, two) @ r.w(w2)
        dw2 = r.dy_tokens(dy, two).T @ r.x_tokens(a if g is None else a * g)
        dg = None if g is None else torch.linalg.vecdot(da, a).unsqueeze(-1)
        da = da if g is None else da.mul_(g)
        # d silu(u) / du = sig + silu (1 - sig)
        dh = torch.cat([da * up * (sig + silu * (1 - sig)), da * silu], -1)
        dx = r.dy(dh) @ r.w(w13)
        dw13 = r.dy_tokens(dh).T @ r.x_tokens(back(kept[:half]), two)
        return dx, dw13, dw2, dg, None


def convert(model: Transformer, recipe: Recipe = V3) -> Transformer:
    """Swap in FP8 layers, in place; the head, the gates, the norms and the embedding stay. Returns the model."""

    def swap(name: str, module: nn.Module) -> nn.Module | None:
        if isinstance(module, (Fp8Linear, Fp8MLP, Fp8Experts)):
            raise ValueError("the model is converted already: call `revert` first, then `convert` with the new recipe.")
        if isinstance(module, MLP):
            return Fp8MLP(module, recipe)
        if isinstance(module, Experts):
            return Fp8Experts(module, recipe)
        if isinstance(module, nn.Linear) and module is not model.head:
            return Fp8Linear(module, recipe, after_attention=name == "wo")
        return None

    _swap(model, swap)
    return model


def revert(model: Transformer) -> Transformer:
    """Take the FP8 layers out again, in place; the weights are the same objects all the way. Returns the model."""

    def swap(_: str, module: nn.Module) -> nn.Module | None:
        if isinstance(module, Fp8MLP):
            plain = MLP.__new__(MLP)
        elif isinstance(module, Fp8Experts):
            plain = Experts.__new__(Experts)
        elif isinstance(module, Fp8Linear):
            plain = nn.Linear.__new__(nn.Linear)
            plain.in_features, plain.out_features = module.in_features, module.out_features
        else:
            return None
        nn.Module.__init__(plain)
        for name, parameter in module._parameters.items():
            plain.register_parameter(name, parameter)
        for name, child in module.named_children():
            plain.add_module(name, child)
        return plain

    _swap(model, swap)
    return model


def _swap(module: nn.Module, swap: Callable[[str, nn.Module], nn.Module | None]) -> None:
    """Replace each child for which `swap(name, child)` gives another; the others' children in turn."""
    for name, child in list(module.named_children()):
        new = swap(name, child)
        if new is None:
            _swap(child, swap)
        else:
            new.train(child.training)
            setattr(module, name, new)
