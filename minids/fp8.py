"""FP8 numbers: the formats bit by bit, a scale for each small tile, a matrix product that adds like a tensor core.

Paper: DeepSeek-V3 section 3.3 and appendix B; the codes' meaning is OCP's "8-bit floating point" standard.

    code -> value   sign, exponent field e, mantissa field m of `mantissa` bits:     `Format.table`
                    e > 0: 2^(e - bias) (1 + m / 2^mantissa)        e = 0: 2^(1 - bias) m / 2^mantissa
    E4M3            bias 7, no infinity, largest 448, smallest 2^-9; DeepSeek-V3 uses it for every tensor
    scale           s = max |x| over the tile / 448, at least 1e-4 / 448: the tile just fits into the format
    quantise        q = round(x / s), round half to even                             `quantize`
    tiles           activations 1 x 128 along the features that a product sums over, weights 128 x 128,
                    for the weight gradient 128 x 1 along the tokens                 `TILE`, `BLOCK`, `COLUMN`

A tensor core of Hopper adds with about 14 bits. DeepSeek-V3 copies the partial sums to FP32 every 128 products; without
that, long sums lose their tail. `matmul_limited` does both, bit for bit as on Hopper GPUs (tests/benchmarks/hopper.py).

Differs from the paper: a processor without FP8 units emulates it: values are rounded to the grid and multiplied in
FP32, which is what the tensor core with FP32 promotion approximates. E5M6 is not published beyond its name; here it is
IEEE-like, bias 15, largest 65024. The floor of 1e-4 under a tile's largest number is that of DeepSeek's inference code
and of DeepGEMM; the training's is not published, and for gradients it would be far too high (`fp8_layers.Recipe`).
Left out: the layers, which are in `fp8_layers`.
Notebook: 09_fp8. `python -m minids.fp8` prints the formats.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

SMALLEST_AMAX = 1e-4  # DeepSeek's act_quant: a tile of zeros still has a scale
TILE, BLOCK, COLUMN, TENSOR = (1, 128), (128, 128), (128, 1), (0, 0)  # rows, columns of a tile; 0: all of them
ACCUMULATOR_BITS, MMA_K, PROMOTE = 14, 32, 128  # Hopper's adder, the products it adds at once, V3's N_C


@dataclass(frozen=True)
class Format:
    """A small floating-point format: sign, `exponent` bits, `mantissa` bits."""

    name: str
    exponent: int
    mantissa: int
    has_inf: bool

    @property
    def bias(self) -> int:
        return 2 ** (self.exponent - 1) - 1

    @property
    def bits(self) -> int:
        return 1 + self.exponent + self.mantissa

    @property
    def max(self) -> float:
        """The largest finite value: 448 for E4M3, whose last code is its only NaN."""
        if self.has_inf:  # the highest exponent field means infinity and NaN
            return 2.0 ** (2**self.exponent - 2 - self.bias) * (2 - 2.0**-self.mantissa)
        return 2.0 ** (2**self.exponent - 1 - self.bias) * (2 - 2.0 ** (1 - self.mantissa))

    @property
    def min_normal(self) -> float:
        return 2.0 ** (1 - self.bias)

    @property
    def min_subnormal(self) -> float:
        return 2.0 ** (1 - self.bias - self.mantissa)

    @cached_property
    def table(self) -> Float[Tensor, "codes"]:
        """The value of every code, in fp32: what 0 to 2^bits - 1 mean."""
        code = torch.arange(2**self.bits)
        sign = 1.0 - 2.0 * (code >> (self.bits - 1))
        e, m = (code >> self.mantissa) & (2**self.exponent - 1), (code & (2**self.mantissa - 1)) / 2**self.mantissa
        value = torch.where(e > 0, torch.ldexp(1 + m, e - self.bias), torch.ldexp(m, torch.tensor(1 - self.bias)))
        last = e == 2**self.exponent - 1
        if self.has_inf:
            value = torch.where(last & (m == 0), math.inf, torch.where(last, math.nan, value))
        else:
            value = torch.where(last & (m == 1 - 2.0**-self.mantissa), math.nan, value)
        return sign * value

    def round(self, x: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        """Each fp32 number's nearest value of the format, ties to the even mantissa.

        What is too large becomes infinite where the format can say so, else `max`; NaN stays NaN.
        """
        limit = 2 * self.max if self.has_inf else self.max
        y = self.round_(x.float().clamp(-limit, limit)).copysign_(x)  # -0 stays -0
        if self.has_inf:
            y[y.abs() > self.max] *= math.inf
        return y

    def round_(self, x: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        """`round` in place, for fp32 numbers that are known to fit: |x| rounds to at most `max`."""
        # adding 1.5 x 2^23 ulps pushes the bits below the mantissa out of an fp32 number, which rounds them to even
        power = (x.view(torch.int32) & 0x7F800000).view(torch.float32)  # 2^floor(log2 |x|)
        magic = power.clamp_min_(self.min_normal).mul_(1.5 * 2.0 ** (23 - self.mantissa))
        return x.add_(magic).sub_(magic)

    def encode(self, x: Float[Tensor, "*n"]) -> Int[Tensor, "*n"]:
        """The code of each number after rounding, 0 to 2^bits - 1."""
        y = self.round(x)
        size = y.abs().nan_to_num(nan=0.0, posinf=0.0)
        e = torch.frexp(size.clamp_min(self.min_normal))[1] - 1  # frexp's mantissa lies in [1/2, 1): one above ours
        # the fields of neighbouring values are neighbouring integers; the hidden 1 of a normal number adds 2^mantissa
        field = torch.ldexp(size, self.mantissa - e).long() + ((e - 1 + self.bias) << self.mantissa)
        top = (2**self.exponent - 1) << self.mantissa
        field = torch.where(y.isinf(), top, torch.where(y.isnan(), top + 2**self.mantissa - 1, field))
        return field + (y.signbit().long() << (self.bits - 1))

    def decode(self, code: Int[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        """The values of codes, in fp32."""
        return self.table.to(code.device)[code.long()]


E4M3 = Format("e4m3", 4, 3, has_inf=False)
E5M2 = Format("e5m2", 5, 2, has_inf=True)
E5M6 = Format("e5m6", 5, 6, has_inf=True)


class Quantized(NamedTuple):
    """A matrix on a format's grid: `values` (fp32, each a value of the format) and one scale a tile."""

    values: Float[Tensor, "R C"]
    scale: Float[Tensor, "r c"]
    tile: tuple[int, int]

    def dequantize(self) -> Float[Tensor, "R C"]:
        """values x scale, each tile with its own."""
        shape = self.values.shape
        return joined(tiled(self.values, self.tile) * self.scale[:, None, :, None], *shape)


def quantize(
    x: Float[Tensor, "R C"],
    tile: tuple[int, int] = TILE,
    fmt: Format = E4M3,
    power_of_two: bool = False,
    rule: str = "divide",
    floor: float = SMALLEST_AMAX,
) -> Quantized:
    """Round a matrix to `fmt` with one scale for each tile; the last tile of a row or column may be smaller.

    Args:
        tile: rows and columns that share a scale; 0 means all.
        power_of_two: round the scale up to a power of two (V3: where a tensor is quantised twice), so that
            scaling never rounds.
        rule: "divide", x / s, as DeepSeek's inference code; "reciprocal", x (1 / s), as DeepGEMM. They differ in a
            few ties.
        floor: a tile whose largest number is smaller is scaled as if it were this.
    A tile with an infinity has an infinite scale: its finite numbers become 0. A NaN makes its whole tile NaN.
    """
    if rule not in ("divide", "reciprocal"):
        raise ValueError(f'the rule is "divide" (x / s) or "reciprocal" (x * (1 / s)); got {rule!r}. Take "divide".')
    R, C = x.shape
    x = tiled(x.float(), tile)
    scale = tile_scale(x.abs().amax((1, 3), keepdim=True), fmt, power_of_two, floor)
    values = fmt.round_(x / scale if rule == "divide" else x * (1 / scale))
    return Quantized(joined(values, R, C), scale[:, 0, :, 0], tile)


def tile_scale(
    amax: Float[Tensor, "*n"], fmt: Format = E4M3, power_of_two: bool = False, floor: float = SMALLEST_AMAX
) -> Float[Tensor, "*n"]:
    """s = max(amax, floor) / fmt.max, up to the next power of two on request."""
    s = amax.clamp_min(floor) / fmt.max
    if not power_of_two:
        return s
    mantissa, exponent = torch.frexp(s)  # s = mantissa 2^exponent, mantissa in [1/2, 1): exact where log2 rounds
    return torch.where(s.isfinite(), torch.ldexp(torch.ones_like(s), exponent - (mantissa == 0.5).int()), s)


def tiled(x: Float[Tensor, "R C"], tile: tuple[int, int]) -> Float[Tensor, "r h c w"]:
    """A matrix cut into tiles of h x w, [r, h, c, w]; zeros fill up the last ones."""
    R, C = x.shape
    h, w = min(tile[0] or R, R), min(tile[1] or C, C)  # a tile larger than the matrix ends with it
    if R % h or C % w:
        x = F.pad(x, (0, -C % w, 0, -R % h))
    return x.reshape(-(-R // h), h, -(-C // w), w)


def joined(tiles: Float[Tensor, "r h c w"], rows: int, columns: int) -> Float[Tensor, "R C"]:
    """The matrix that `tiled` cut, without the filling."""
    r, h, c, w = tiles.shape
    return tiles.view(r * h, c * w)[:rows, :columns]


def snap(
    x: Float[Tensor, "R C"],
    tile: tuple[int, int] = TILE,
    fmt: Format = E4M3,
    power_of_two: bool = False,
    floor: float = SMALLEST_AMAX,
) -> Float[Tensor, "R C"]:
    """`quantize(x, ..).dequantize()` in fewer passes over memory: what training multiplies."""
    R, C = x.shape
    x = tiled(x.float(), tile)
    scale = tile_scale(x.abs().amax((1, 3), keepdim=True), fmt, power_of_two, floor)
    return joined(fmt.round_(x / scale).mul_(scale), R, C)


def matmul(a: Quantized, b: Quantized) -> Float[Tensor, "R O"]:
    """a b^T of two quantised matrices with FP32 sums: what a tensor core with promotion approximates."""
    return a.dequantize() @ b.dequantize().T


def tensor_core_matmul(a: Quantized, b: Quantized) -> Float[Tensor, "R O"]:
    """`matmul` on a Hopper GPU's FP8 units, a in 1 x 128 tiles and b in 128 x 128 blocks, rounded to BF16.

    RuntimeError without such a GPU; ValueError for other tiles, or a K that is not a multiple of 128.
    """
    x, w, sx, sw = tensor_core_operands(a, b)
    if not (a.values.is_cuda and torch.cuda.get_device_capability(a.values.device) == (9, 0)):
        where = torch.cuda.get_device_name(a.values.device) if a.values.is_cuda else "the processor"
        raise RuntimeError(
            f"FP8 products with a scale for each block need a Hopper GPU (compute capability 9.0); the matrix is on "
            f"{where}. `matmul` emulates it anywhere."
        )
    return tensor_core_product(x, w, sx, sw)[: len(a.values), : len(b.values)].float()


def tensor_core_product(x: Tensor, w: Tensor, sx: Tensor, sw: Tensor) -> Tensor:
    """x w^T in BF16 of what `tensor_core_operands` gives: the kernel alone. Needs a Hopper GPU."""
    from torch.nn.functional import ScalingType, scaled_mm  # which an older torch lacks

    kinds = ScalingType.BlockWise1x128, ScalingType.BlockWise128x128
    return scaled_mm(x, w.t(), sx, kinds[0], sw, kinds[1], output_dtype=torch.bfloat16)


def tensor_core_operands(a: Quantized, b: Quantized) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(a, b, a's scales, b's scales) as `scaled_mm` reads them. Codes are rows of K; scales lie column by column.

    a has 4 n rows, b 16 n, zeros added; a's scales are [R, K / 128], b's [K / 128 rounded up to 4, O / 128].
    """
    (R, K), outputs = a.values.shape, len(b.values)
    if (a.tile, b.tile) != (TILE, BLOCK) or K % TILE[1]:
        raise ValueError(
            f"the kernel takes a in tiles of {TILE}, b in {BLOCK}, and K as a multiple of {TILE[1]}; got {a.tile}, "
            f"{b.tile} and K = {K}. Quantise with these tiles, and fill K up with zeros."
        )
    rows = F.pad(a.scale, (0, 0, 0, -R % 4), value=1.0)
    blocks = F.pad(b.scale, (0, -b.scale.shape[1] % 4), value=1.0)
    x, w = F.pad(a.values, (0, 0, 0, -R % 4)), F.pad(b.values, (0, 0, 0, -outputs % 16))
    return x.to(torch.float8_e4m3fn), w.to(torch.float8_e4m3fn), rows.T.contiguous().T, blocks.contiguous().T


class Stored(NamedTuple):
    """A matrix kept for the backward pass in few bytes: E4M3 codes or, for E5M6, the fp16 numbers that hold them."""

    codes: Tensor  # float8_e4m3fn or float16
    scale: Float[Tensor, "r one c one2"]

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes + self.scale.nbytes


def store(
    x: Float[Tensor, "R C"], fmt: Format = E4M3, power_of_two: bool = False
) -> tuple[Stored, Float[Tensor, "R C"]]:
    """(x in 1 x 128 tiles of `fmt`, the same as fp32 numbers for the product at hand)."""
    R, C = x.shape
    x = tiled(x.float(), TILE)
    scale = tile_scale(x.abs().amax((1, 3), keepdim=True), fmt, power_of_two)
    values = fmt.round_(x / scale)
    # E5M6 is IEEE-like: its 12 bits are the first 12 of an fp16 number
    codes = values.to(torch.float8_e4m3fn if fmt is E4M3 else torch.float16)
    return Stored(joined(codes, R, C), scale), joined(values.mul_(scale), R, C)


def restore(stored: Stored) -> Float[Tensor, "R C"]:
    """The fp32 numbers that `store` kept."""
    R, C = stored.codes.shape
    if stored.codes.dtype == torch.float16:
        values = stored.codes.float()
    else:
        # The 7 bits of an E4M3 magnitude, moved up by 7, read as an fp16 number 2^8 times smaller: much faster than a
        # cast. (The NaN code is read as 480; where it stands, the tile's scale is NaN or infinite and spoils it.)
        bits = stored.codes.view(torch.int8).to(torch.int16).bitwise_left_shift_(7).bitwise_and_(~0x4000)
        values = bits.view(torch.float16).float().mul_(256.0)
    return joined(tiled(values, TILE).mul(stored.scale), R, C)


def matmul_limited(
    a: Float[Tensor, "R K"],
    b: Float[Tensor, "O K"],
    promote: int = PROMOTE,
    bits: int = ACCUMULATOR_BITS,
    step: int = MMA_K,
) -> Float[Tensor, "R O"]:
    """a b^T of numbers on an 8-bit grid as a Hopper tensor core adds them.

    An instruction takes `step` products and the sum so far, aligns all of them to the largest exponent, drops what
    falls out on the right of `bits` bits, adds, and cuts the sum to `bits` bits again. A product's exponent is that of
    its factors, added. Every `promote` products the sum is added to an FP32 accumulator and starts anew; 0: never.
    V3 section 3.5.2 describes it; that the sum is aligned with the products was found on GPUs (assets/hopper.json).
    ValueError where `promote` is not a multiple of `step`.
    """
    if promote % step:
        raise ValueError(
            f"promotion happens between instructions of {step} products: promote must be a multiple of it, "
            f"got {promote}. V3 takes 128."
        )
    total = a.new_zeros(len(a), len(b))
    partial = torch.zeros_like(total)
    for start in range(0, a.shape[1], step):
        if promote and start and start % promote == 0:
            total, partial = total + partial, torch.zeros_like(partial)
        x, w = a[:, None, start : start + step], b[None, :, start : start + step]
        largest = torch.maximum((exponent(x) + exponent(w)).amax(-1), exponent(partial))  # [R O]
        ulp = torch.ldexp(torch.ones_like(total), largest + 1 - bits)
        products = torch.trunc(x * w / ulp[..., None]).sum(-1)
        partial = cut((products + torch.trunc(partial / ulp)) * ulp, bits)
    return total + partial


def exponent(x: Float[Tensor, "*n"]) -> Int[Tensor, "*n"]:
    """The e with 2^e <= |x| < 2^(e + 1); -50 for zero, which is below every number that matters."""
    return torch.where(x == 0, -50, torch.frexp(x)[1] - 1)


def cut(x: Float[Tensor, "*n"], bits: int) -> Float[Tensor, "*n"]:
    """The first `bits` bits of each number's mantissa, the leading one included; the rest dropped, not rounded."""
    return (x.view(torch.int32) & (-1 << (24 - bits))).view(torch.float32)


def _print_formats() -> None:
    print(f"{'':6}{'bits':>5}{'largest':>12}{'least normal':>14}{'least':>12}{'values':>8}   around 1")
    for fmt in (E4M3, E5M2, E5M6):
        values = fmt.table[fmt.table.isfinite()].unique()
        near = values[(values >= 1) & (values <= 1.5)].tolist()
        print(
            f"{fmt.name:6}{fmt.bits:>5}{fmt.max:>12,g}{fmt.min_normal:>14.3g}{fmt.min_subnormal:>12.3g}{len(values):>8}"
            f"   {' '.join(f'{v:g}' for v in near[:5])}{' ..' if len(near) > 5 else ''}"
        )
    print("\nE4M3, the values of the non-negative codes, one exponent a row:")
    for e, row in enumerate(E4M3.table[:128].view(16, 8).tolist()):
        print(f"  {e:2}  " + " ".join(f"{v:>11.7g}" for v in row))


if __name__ == "__main__":
    _print_formats()
