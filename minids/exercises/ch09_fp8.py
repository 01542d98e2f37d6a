"""Exercises of chapter 9, training with 8 bits: the value of a code, scales for tiles, the weight gradient's operands,
scales that are powers of two, sums that are moved to FP32.

Source: DeepSeek-V3 (arXiv 2412.19437) section 3.3, figure 7; DeepSeek's inference code (act_quant); DeepGEMM.
The wrong answers are mistakes seen in public implementations and explanations.
Notebook: 09_fp8.
"""

from __future__ import annotations

import math
import random

import torch

from minids.exercises import define, ensure, expect_close, slip, wrong
from minids.fp8 import BLOCK, COLUMN, E4M3, E5M2, TILE, cut, quantize

# 9.1 ------------------------------------------------------------------------------------------------------------------


def decode(code):
    """The value of an E4M3 code, 0 to 255."""
    sign = -1 if code >= 128 else 1
    e, m = (code >> 3) & 15, code & 7
    if e == 15 and m == 7:
        return math.nan
    if e == 0:
        return sign * 2.0**-6 * m / 8
    return sign * 2.0 ** (e - 7) * (1 + m / 8)


def check_decode(fn):
    want = E4M3.table.double()
    got = torch.tensor([float(fn(code)) for code in range(256)], dtype=torch.float64)
    small = torch.arange(256) % 128 < 8  # exponent field 0
    nan, top = want.isnan(), (torch.arange(256) >> 3) & 15 == 15
    expect_close(got, want, what="the value of each code", causes=[
        (lambda g: g.isnan()[top].all() or g.isinf().any(), "The highest exponent field is taken for infinity and NaN, "
         "as in IEEE formats: the largest value is then 240. E4M3 gives up one code of it only, m = 7."),
        (lambda g: torch.equal(g[~small & ~nan], want[~small & ~nan] / 2), "All values are half as large: the bias is "
         "7. With 8, the largest value is 224 or 240, that of another format (fnuz)."),
        (lambda g: torch.equal(g[~nan], want[~nan]) and g[nan].abs().max() == 480, "Code 127 would be 480: it is NaN, "
         "the only one beside its negative twin."),
        (lambda g: torch.equal(g[~small & ~nan], want[~small & ~nan]), "Wrong for exponent field 0: these numbers have "
         "no hidden 1, and the exponent of field 1."),
        (lambda g: torch.equal(g[:127], want[:127]), "Wrong for negative numbers: the highest bit is a sign beside the "
         "magnitude, not a two's complement."),
    ])  # fmt: skip


DECODE = define(
    "9.1", "The value of a code", minutes=10, difficulty=1,
    statement="""
        Write `decode(code)`: the value of an E4M3 code between 0 and 255, as a Python number. From the highest bit: one
        bit of sign, four of exponent $e$ with bias 7, three of mantissa $m$. `math.nan` where it is no number.
    """,
    hints=(
        "`(code >> 3) & 15` and `code & 7` are the two fields. Which two exponent fields are special?",
        "$e > 0$: $2^{e-7}(1 + m/8)$. $e = 0$ has no hidden 1, so that zero and the smallest numbers exist. There is "
        "no infinity.",
        "$e = 0$: $2^{-6}\\,m/8$. Only $e = 15, m = 7$ is NaN.",
    ),
    check=check_decode,
    solution=decode,
    why="All of the highest exponent field but one code are ordinary numbers, up to $2^8 \\cdot 1.75 = 448$. An IEEE "
    "format of the same width would give up eight codes for infinity and NaN and end at 240.",
    wrong_answers=(
        slip("e == 15 and m == 7", "e == 15", draws="as in IEEE", why="Infinity and NaN as in IEEE 754: maximum 240."),
        slip("(e - 7)", "(e - 8)", draws="bias is 7", why="The bias of the fnuz variant, whose maximum is 240."),
        wrong("""
            def decode(code):
                sign = -1 if code >= 128 else 1
                e, m = (code >> 3) & 15, code & 7
                return sign * (2.0 ** (e - 7) * (1 + m / 8) if e else 2.0**-6 * m / 8)
        """, draws="480", why="Forgets that one code is NaN."),
        slip("2.0**-6 * m / 8", "2.0**-7 * (1 + m / 8)", draws="hidden 1", why="No subnormal numbers."),
        slip("2.0**-6 * m / 8", "2.0**-7 * m / 8", draws="hidden 1", why="The exponent e - 7 for e = 0 too."),
        wrong("""
            def decode(code):
                sign = -1 if code >= 128 else 1
                code = 256 - code if code >= 128 else code
                e, m = (code >> 3) & 15, code & 7
                if e == 15 and m == 7:
                    return math.nan
                return sign * (2.0 ** (e - 7) * (1 + m / 8) if e else 2.0**-6 * m / 8)
        """, draws="two's complement", why="Reads the code as a signed byte."),
    ),
)  # fmt: skip


# 9.2 ------------------------------------------------------------------------------------------------------------------


def quantize_tiles(x):
    """x [R C] in tiles of 1 x 128: (values [R C] on E4M3's grid, scales [R C/128])."""
    R, C = x.shape
    tiles = x.view(R, C // 128, 128)
    amax = tiles.abs().amax(-1, keepdim=True).clamp_min(1e-4)
    scale = amax / 448
    values = (tiles / scale).to(torch.float8_e4m3fn).float()
    return values.view(R, C), scale[..., 0]


def check_quantize_tiles(fn):
    R, C = 256, 384
    x = torch.randn(R, C) * 10 ** torch.empty(R, 1).uniform_(-2, 2)
    x[random.randrange(5, 100), 7] = -1e4  # an outlier, negative
    x[3, 128:256], x[4, :128] = 0.0, 1e-6 * torch.randn(128)  # below the floor
    right = quantize(x)
    values, scale = fn(x)
    amax = x.view(R, 3, 128).abs().amax(-1)
    signed = x.view(R, 3, 128).amax(-1).clamp_min(1e-4) / 448
    expect_close(scale, right.scale, what="scale", rtol=1e-5, atol=0.0, causes=[
        (lambda g: g.shape in ((2, C), (C, 2)), "One scale for 128 rows of a column: the tile lies along the features, "
         "the axis that the product sums over."),
        (lambda g: g.shape == (2, 3), "One scale for 128 x 128: that is how weights are cut. Activations have one for "
         "each row."),
        (lambda g: g.numel() == 1, "One scale for the whole matrix: the outlier decides for all."),
        (right.scale * 448 / 240, "The largest value is taken to be 240, that of another format. E4M3 ends at 448."),
        (1 / right.scale, "That is the reciprocal. `scale` is what the values are multiplied with to get x back."),
        (lambda g: torch.allclose(g, amax / 448 + 1e-4, rtol=1e-5) or torch.allclose(g, (amax + 1e-4) / 448, rtol=1e-5),
         "Something is added to every scale. The floor is a maximum: a tile whose amax is above 1e-4 keeps it."),
        (lambda g: torch.allclose(g, (amax / 448).clamp_min(1e-4), rtol=1e-5), "The floor of 1e-4 sits under the "
         "scale; it belongs under amax."),
        (lambda g: (g == 0).any(), "A tile of zeros has scale 0, and 0 / 0 is NaN: amax is at least 1e-4."),
        (lambda g: torch.allclose(g, signed, rtol=1e-5, atol=0.0), "amax is the largest *magnitude*: a large negative "
         "number counts too."),
    ])  # fmt: skip
    expect_close(values, right.values, what="values", causes=[
        ((x.view(R, 3, 128) / right.scale[..., None]).view(R, C), "Scaled, but not rounded to the format."),
        (right.dequantize(), "These are multiplied by the scale again: the values stay on E4M3's grid."),
        (lambda g: g.dtype == torch.float8_e4m3fn, "Return the values as fp32 numbers: `.float()`."),
    ])  # fmt: skip


QUANTIZE_TILES = define(
    "9.2", "A scale for each tile", minutes=10, difficulty=2,
    statement="""
        Write `quantize_tiles(x)` for activations `x` `[R, C]` in fp32, with C a multiple of 128: the pair of the values
        on E4M3's grid, `[R, C]`, in fp32, and the scales `[R, C/128]`. Each tile of 1 x 128 has its own scale,
        amax / 448, and amax is never less than 1e-4. Round by a cast to `torch.float8_e4m3fn`.
    """,
    hints=(
        "`x.view(R, C // 128, 128)` has a tile in its last axis.",
        "amax: `.abs().amax(-1, keepdim=True)`, then the floor, then divided by 448. Zeros need the floor.",
        "`(tiles / scale).to(torch.float8_e4m3fn).float()`; bring the values back to `[R, C]`, drop the scale's last "
        "axis.",
    ),
    check=check_quantize_tiles,
    solution=quantize_tiles,
    why="The floor belongs under amax: under the scale it would be 448 times too high, and added to the scale it would "
    "shrink every tile.",
    wrong_answers=(
        wrong("""
            def quantize_tiles(x):
                R, C = x.shape
                tiles = x.view(R // 128, 128, C)
                scale = tiles.abs().amax(1, keepdim=True).clamp_min(1e-4) / 448
                return (tiles / scale).to(torch.float8_e4m3fn).float().view(R, C), scale[:, 0]
        """, draws="128 rows of a column", why="The scale's axis swapped."),
        wrong("""
            def quantize_tiles(x):
                scale = x.abs().amax().clamp_min(1e-4) / 448
                return (x / scale).to(torch.float8_e4m3fn).float(), scale
        """, draws="outlier decides", why="Per tensor, as FP8 training was done before."),
        slip("amax / 448", "amax / 240", draws="240", why="The maximum of the fnuz format, or of an IEEE-like E4M3."),
        slip("keepdim=True).clamp_min(1e-4)", "keepdim=True) + 1e-4", draws="added to every scale",
             why="An epsilon is added where a floor is meant."),
        wrong("""
            def quantize_tiles(x):
                R, C = x.shape
                tiles = x.view(R, C // 128, 128)
                scale = (tiles.abs().amax(-1, keepdim=True) / 448).clamp_min(1e-4)
                return (tiles / scale).to(torch.float8_e4m3fn).float().view(R, C), scale[..., 0]
        """, draws="under the scale", why="The floor at the wrong place."),
        slip(".clamp_min(1e-4)", "", draws="scale 0", why="No floor."),
        slip("tiles.abs().amax", "tiles.amax", draws="magnitude", why="Forgets the sign."),
        slip(".to(torch.float8_e4m3fn).float()", "", draws="not rounded", why="Scales only."),
    ),
)  # fmt: skip


# 9.3 ------------------------------------------------------------------------------------------------------------------


def wgrad(dy, kept):
    """dW [O C] = dy^T x on rounded operands; dy [T O], kept the stored x [T C] in 1 x 128 tiles."""
    x = kept.dequantize()
    return quantize(dy, COLUMN).dequantize().T @ quantize(x, COLUMN).dequantize()


def check_wgrad(fn):
    T, C, outputs = 300, 200, 150
    x, dy = torch.randn(T, C), torch.randn(T, outputs) * 10 ** torch.empty(T, 1).uniform_(-1, 1)
    kept = quantize(x)

    def product(tile_dy, tile_x, fmt=E4M3, source=None):
        a = quantize(dy, tile_dy, fmt).dequantize()
        b = (kept.dequantize() if source is None else source) if tile_x is None else quantize(
            kept.dequantize() if source is None else source, tile_x).dequantize()  # fmt: skip
        return a.T @ b

    want = product(COLUMN, COLUMN)
    expect_close(fn(dy, kept), want, what="dW", rtol=1e-5, atol=1e-4, causes=[
        (product(TILE, TILE), "Both operands are in 1 x 128 tiles, along the channels. This product sums over the "
         "tokens, so a scale must belong to 128 tokens of one channel."),
        (product(TILE, COLUMN), "dy is in tiles along the channels: wgrad sums over tokens, so dy wants 128 x 1 too."),
        (product(COLUMN, None), "x is used as it was stored, in 1 x 128 tiles: their scales change along the sum. "
         "Quantise it again, in 128 x 1."),
        (product(TILE, None), "Both operands have their tiles along the channels. This product sums over the tokens: "
         "both want 128 x 1."),
        (product(COLUMN, COLUMN, E5M2), "dy is rounded to E5M2, as FP8 training did before: V3 uses E4M3 for every "
         "tensor, and its tiles give the range."),
        (product(BLOCK, BLOCK), "Blocks of 128 x 128: for gradients the paper saw training diverge with them."),
        (product(BLOCK, COLUMN), "dy is in blocks of 128 x 128: for gradients the paper saw training diverge."),
        (dy.T @ quantize(kept.dequantize(), COLUMN).dequantize(), "dy is not rounded: every operand of the three "
         "products is."),
        (dy.T @ kept.dequantize(), "Neither operand is rounded for this product: dy and x both are, in 128 x 1."),
        (want.T, "Transposed: dW has the weight's shape, [outputs, inputs]."),
        (lambda g: g.shape == (outputs, C) and (g - want).norm() > want.norm(), "The stored values are not multiplied "
         "by their scales: `kept.dequantize()`."),
    ])  # fmt: skip


WGRAD = define(
    "9.3", "The weight gradient", minutes=10, difficulty=2,
    statement="""
        The forward pass kept x as a `Quantized` in tiles of 1 x 128: `kept`, with `kept.dequantize()` `[T, C]`. In the
        backward pass comes `dy` `[T, O]`, fp32. Write `wgrad(dy, kept)`: $dW = dy^\\top x$, `[O, C]`, on operands that
        are rounded as V3 does for this product. `quantize(matrix, tile)` and the tiles `TILE` (1 x 128), `BLOCK`
        (128 x 128), `COLUMN` (128 x 1) are there.
    """,
    hints=(
        "Which axis disappears in $dy^\\top x$? A scale may not change along it within a tile.",
        "It sums over tokens: both operands want tiles of 128 tokens of one channel.",
        "Get x back from its tiles, and quantise it a second time, along the tokens.",
    ),
    check=check_wgrad,
    solution=wgrad,
    why="A tensor core adds 128 products and multiplies the sum with one scale of each side. That works only if the "
    "scales are constant along the sum; so wgrad needs other tiles than the forward pass, and x is rounded twice.",
    wrong_answers=(
        slip("quantize(dy, COLUMN).dequantize().T @ quantize(x, COLUMN)", "quantize(dy).dequantize().T @ quantize(x)",
             draws="along the channels", why="The tiles of the forward pass for all three products."),
        slip("quantize(x, COLUMN).dequantize()", "x", draws="as it was stored", why="Takes the stored tiles."),
        slip("quantize(dy, COLUMN)", "quantize(dy, COLUMN, E5M2)", draws="E5M2",
             why="E4M3 forward, E5M2 backward: the hybrid recipe of earlier work."),
        slip("quantize(dy, COLUMN)", "quantize(dy, BLOCK)", draws="diverge", why="One kind of block for everything."),
        slip("quantize(dy, COLUMN).dequantize()", "dy", draws="not rounded", why="Leaves the gradient high."),
        slip("kept.dequantize()", "kept.values", draws="by their scales", why="Forgets the scales of the stored x."),
    ),
)  # fmt: skip


# 9.4 ------------------------------------------------------------------------------------------------------------------


def power_scale(amax):
    """The smallest power of two with which no number of the tile exceeds 448."""
    return torch.exp2(torch.ceil(torch.log2(amax.clamp_min(1e-4) / 448)))


def check_power_scale(fn):
    ordinary = torch.rand(40, dtype=torch.float64) * 10 ** torch.empty(40, dtype=torch.float64).uniform_(-3, 5)
    exact = 448 * 2.0 ** torch.arange(-6, 7).double()
    amax = torch.cat([ordinary + 1e-3, exact, torch.tensor([0.0, 1e-9], dtype=torch.float64)])
    ratio = torch.log2(amax.clamp_min(1e-4) / 448)
    want = 2.0 ** torch.tensor([math.ceil(r) for r in ratio.tolist()], dtype=torch.float64)
    down = 2.0 ** ratio.floor()
    got = fn(amax)
    expect_close(got, want, what="scale", causes=[
        (2.0 ** ratio.round(), "Rounded to the nearest power: where that is below amax / 448, the largest numbers "
         "exceed 448 and are cut off. (`torch.float8_e8m0fnu` rounds to the nearest too.)"),
        (down, "Rounded down: the largest numbers exceed 448 and are cut off."),
        (2 * down, "Twice as large as needed where amax / 448 is a power of two already: ceil, not floor plus one."),
        (lambda g: g[-2] == 0 or g[-2].isnan(), "A tile of zeros gets scale 0, and 0 / 0 is NaN: amax is at least "
         "1e-4."),
        (2.0 ** torch.log2(amax.clamp_min(1e-4) / 240).ceil(), "240 is another format's maximum: E4M3 ends at 448."),
        (2.0**ratio, "Not a power of two."),
        (2.0 ** torch.log2(amax.clamp_min(1e-4)).ceil() / 448, "The division by 448 comes first: this is not a power "
         "of two."),
    ])  # fmt: skip
    ensure((amax / got <= 448).all(), "no number above 448", (amax / got).max())


POWER_SCALE = define(
    "9.4", "Scales that cannot round", minutes=8, difficulty=2,
    statement="""
        Write `power_scale(amax)`: for each amax the scale as a power of two, the smallest with which no number of the
        tile exceeds 448. amax is never less than 1e-4.
    """,
    hints=(
        "Up or down? With which is something cut off?",
        "The exponent is the ceiling of $\\log_2(\\mathrm{amax} / 448)$.",
        "`torch.exp2(torch.ceil(torch.log2(...)))`, with the floor under amax.",
    ),
    check=check_power_scale,
    solution=power_scale,
    why="Dividing by a power of two changes only the exponent, so turning tiles never rounds a second time. The price "
    "is up to one bit of range: the tile's largest number lies between 224 and 448.",
    wrong_answers=(
        slip("ceil", "round", draws="nearest power", why="What a cast to E8M0 does in torch."),
        slip("ceil", "floor", draws="Rounded down", why="The exponent field of amax / 448."),
        wrong("""
            def power_scale(amax):
                return torch.exp2(torch.floor(torch.log2(amax.clamp_min(1e-4) / 448)) + 1)
        """, draws="floor plus one", why="Exact powers of two move up needlessly."),
        slip(".clamp_min(1e-4)", "", draws="tile of zeros", why="No floor."),
        slip("/ 448)", "/ 240)", draws="240", why="The maximum of another format."),
    ),
)  # fmt: skip


# 9.5 ------------------------------------------------------------------------------------------------------------------


def promoted_sum(parts, every):
    """The sum of parts [n ...] in a register of 14 bits, moved to FP32 after `every` of them."""
    total, register = torch.zeros_like(parts[0]), torch.zeros_like(parts[0])
    for i, part in enumerate(parts):
        if i % every == 0:
            total, register = total + register, torch.zeros_like(register)
        register = cut(register + part, 14)
    return total + register


def promoted_sum__reference(parts, every, *, empty=True, rest=True, cut_total=False, cut_register=True):
    """The solution with one thing left out."""
    total, register = torch.zeros_like(parts[0]), torch.zeros_like(parts[0])
    for i, part in enumerate(parts, 1):
        register = register + part
        register = cut(register, 14) if cut_register else register
        if i % every == 0:
            total = total + register
            total = cut(total, 14) if cut_total else total
            register = torch.zeros_like(register) if empty else register
    return total + register if rest else total


def check_promoted_sum(fn):
    for every in (4, 3):
        parts = torch.rand(4 * 7 + 2, 11) * 100  # for neither number a multiple
        ref = promoted_sum__reference
        expect_close(fn(parts, every), ref(parts, every), what=f"sum, every={every}", rtol=1e-6, atol=0.0, causes=[
            (ref(parts, every, rest=False), "The last parts are missing: what is in the register at the end belongs to "
             "the sum."),
            (lambda g, p=parts: (g > 1.5 * p.sum(0)).any(), "Parts are counted more than once: the register is emptied "
             "when it was moved."),
            (ref(parts, 10**9), "Never moved: that is the register's error alone."),
            (ref(parts, every, cut_total=True), "The total is cut to 14 bits too: it is an FP32 number."),
            (ref(parts, every, cut_register=False), "Nothing is cut: the register keeps 14 bits after each addition."),
            (parts.sum(0), "Nothing is cut: the register keeps 14 bits after each addition."),
            (ref(parts, every + 1), "Moved one part too late."),
        ])  # fmt: skip


PROMOTED_SUM = define(
    "9.5", "Move the sum in time", minutes=10, difficulty=2,
    statement="""
        An instruction adds 32 products; `parts` `[n, ...]` are n such sums, in fp32, taken as they are: that each
        product is cut by itself is left out. Write `promoted_sum(parts, every)`: add them up in a register that is
        cut to 14 bits after each addition, by `cut(number, 14)`. After `every` of them the register is added to a
        total in FP32, and starts at zero again.
        n need not be a multiple of `every`.
    """,
    hints=(
        "Two variables: a register that is cut at each step, a total that is not.",
        "What is in the register when the loop ends?",
        "Move it whenever `i % every == 0`, set the register to zero, and return `total + register`.",
    ),
    check=check_promoted_sum,
    solution=promoted_sum,
    why="The register's error is a part of its own size. Emptied in time it stays small, however long the sum; the "
    "total loses nothing that 14 bits would notice.",
    wrong_answers=(
        slip("return total + register", "return total", draws="last parts are missing", why="Forgets the remainder."),
        slip("total + register, torch.zeros_like(register)", "total + register, register", draws="more than once",
             why="The register is not emptied."),
        slip("if i % every == 0", "if False", draws="Never moved", why="What Hopper does by itself."),
        slip("total, register = total + register,", "total, register = cut(total + register, 14),",
             draws="FP32 number", why="The total kept like the register."),
        slip("cut(register + part, 14)", "register + part", draws="Nothing is cut", why="Believes in FP32 sums."),
    ),
)  # fmt: skip
