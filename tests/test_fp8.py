"""FP8 against tables made from the definition, torch's own dtypes, and loops over tiles; layers against loops too."""

import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from minids.config import tiny
from minids.fp8 import (
    BLOCK,
    COLUMN,
    E4M3,
    E5M2,
    E5M6,
    TENSOR,
    TILE,
    Format,
    matmul,
    matmul_limited,
    quantize,
    restore,
    snap,
    store,
    tensor_core_matmul,
    tensor_core_operands,
    tile_scale,
)
from minids.fp8_layers import Fp8Experts, Fp8Linear, Fp8MLP, Recipe, convert, revert
from minids.layers import MLP
from minids.model import Transformer
from minids.moe import Experts

DTYPES = {E4M3: torch.float8_e4m3fn, E5M2: torch.float8_e5m2}
FORMATS = pytest.mark.parametrize("fmt", [E4M3, E5M2, E5M6], ids=lambda f: f.name)
EIGHT_BITS = pytest.mark.parametrize("fmt", DTYPES, ids=lambda f: f.name)


def same(a, b) -> bool:
    """Equal in every bit that matters: NaN equals NaN, -0 differs from 0."""
    a, b = a.float(), b.float()
    return bool(((a == b) & (a.signbit() == b.signbit()) | a.isnan() & b.isnan()).all())


def by_definition(fmt: Format, code: int) -> Fraction | None:
    """The value of a code, exactly; None for NaN and infinity."""
    sign = -1 if code >> (fmt.bits - 1) else 1
    e, m = (code >> fmt.mantissa) % 2**fmt.exponent, code % 2**fmt.mantissa
    if e == 2**fmt.exponent - 1 and (fmt.has_inf or m == 2**fmt.mantissa - 1):
        return None
    fraction = Fraction(m, 2**fmt.mantissa)
    return sign * (Fraction(2) ** (e - fmt.bias) * (1 + fraction) if e else Fraction(2) ** (1 - fmt.bias) * fraction)


@cache
def magnitudes(fmt: Format) -> dict[int, Fraction]:
    """The values of the codes without a sign."""
    return {c: v for c in range(2 ** (fmt.bits - 1)) if (v := by_definition(fmt, c)) is not None}


def nearest(fmt: Format, x: float) -> float:
    """The nearest value, ties to the even code, found by looking at all of them."""
    values, size = magnitudes(fmt), abs(Fraction(x))
    best = min(values, key=lambda c: (abs(values[c] - size), c % 2))
    return float(values[best]) * (-1 if x < 0 else 1)


# formats --------------------------------------------------------------------------------------------------------------


@FORMATS
def test_every_code_means_what_the_definition_says(fmt):
    for code, value in enumerate(fmt.table.tolist()):
        exact = by_definition(fmt, code)
        assert value == exact if exact is not None else value != value or abs(value) == float("inf")


@EIGHT_BITS
def test_all_256_codes_are_those_of_torch(fmt):
    assert same(fmt.table, torch.arange(256).to(torch.uint8).view(DTYPES[fmt]).float())


@FORMATS
def test_encoding_a_value_gives_its_code_back(fmt):
    codes = torch.arange(2**fmt.bits)
    numbers = codes[~fmt.table.isnan()]
    assert torch.equal(fmt.encode(fmt.decode(numbers)), numbers)
    assert same(fmt.decode(fmt.encode(fmt.table)), fmt.table)


def test_the_largest_and_smallest_values_are_the_published_ones():
    assert (E4M3.max, E4M3.min_normal, E4M3.min_subnormal) == (448, 2**-6, 2**-9)
    assert (E5M2.max, E5M2.min_normal, E5M2.min_subnormal) == (57344, 2**-14, 2**-16)
    assert E5M6.max == 65024


@EIGHT_BITS
def test_rounding_equals_torch_on_every_bf16_number_within_range(fmt):
    x = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16).float()
    x = x[x.abs() <= fmt.max]
    assert same(fmt.round(x), x.to(DTYPES[fmt]).float())
    assert torch.equal(fmt.encode(x), x.to(DTYPES[fmt]).view(torch.uint8).long())


@FORMATS
def test_rounding_finds_the_nearest_value_and_the_even_one_of_two(fmt):
    values = fmt.table[: 2 ** (fmt.bits - 1)]
    values = values[values.isfinite()][:: 1 if fmt.bits == 8 else 61]
    middles = (values[1:] + values[:-1]) / 2
    x = torch.cat([middles, middles * (1 + 2**-20), torch.randn(50) * 10 ** torch.empty(50).uniform_(-4, 2)])
    assert fmt.round(-x).tolist() == [nearest(fmt, -v) for v in x.tolist()]


def test_e4m3_saturates_and_e5m2_overflows():
    x = torch.tensor([449.0, 465.0, 1e30, torch.inf, -torch.inf, torch.nan])
    assert same(E4M3.round(x), torch.tensor([448.0, 448, 448, 448, -448, torch.nan]))
    x = torch.tensor([61439.0, 61440.0, -torch.inf, torch.nan])
    assert same(E5M2.round(x), torch.tensor([57344.0, torch.inf, -torch.inf, torch.nan]))


@FORMATS
def test_a_zero_keeps_its_sign(fmt):
    assert same(fmt.round(torch.tensor([0.0, -0.0, -1e-30])), torch.tensor([0.0, -0.0, -0.0]))


# tiles ----------------------------------------------------------------------------------------------------------------


def matrices():
    torch.manual_seed(3)
    plain = torch.randn(150, 300)
    outlier, zeros, small = plain.clone(), plain.clone(), plain * 1e-38
    outlier[7, 130], zeros[:129] = 1e4, 0.0
    return {"plain": plain, "outlier": outlier, "zeros": zeros, "denormal": small, "narrow": plain[:5, :48]}


MATRICES = pytest.mark.parametrize("x", matrices().values(), ids=matrices().keys())
TILES = pytest.mark.parametrize("tile", [TILE, BLOCK, COLUMN, TENSOR, (3, 7)], ids=str)


@MATRICES
@TILES
@pytest.mark.parametrize("power_of_two", [False, True])
def test_a_tile_is_scaled_by_its_own_largest_number(x, tile, power_of_two):
    got, scales, rounded, back = (
        quantize(x, tile, power_of_two=power_of_two),
        [],
        torch.empty_like(x),
        torch.empty_like(x),
    )
    h, w = tile[0] or len(x), tile[1] or x.shape[1]
    for i in range(0, len(x), h):
        for j in range(0, x.shape[1], w):
            here = slice(i, i + h), slice(j, j + w)
            s = torch.tensor(max(float(x[here].abs().max()), float(torch.tensor(1e-4))) / 448).item()
            scales.append(2.0 ** next(k for k in range(-40, 40) if 2.0**k >= s) if power_of_two else s)
            scale = got.scale[i // h, j // w]
            rounded[here] = (x[here] / scale).to(torch.float8_e4m3fn).float()
            back[here] = rounded[here] * scale
    assert got.scale.flatten().tolist() == pytest.approx(scales, rel=1e-6)
    assert torch.equal(got.values, rounded)
    torch.testing.assert_close(got.dequantize(), back)


@MATRICES
@TILES
def test_snapping_equals_quantising_and_going_back(x, tile):
    assert torch.equal(snap(x, tile), quantize(x, tile).dequantize())


def test_the_error_is_half_a_step_of_the_grid():
    x = torch.randn(64, 256)
    error = (snap(x) - x).abs()
    # 3 bits of mantissa: 1/16 of a normal number; below the least normal one, half of the least subnormal
    assert (error <= torch.maximum(x.abs() / 16, quantize(x).scale.repeat_interleave(128, 1) * 2**-10) * 1.0001).all()


def test_the_two_published_rules_differ_in_the_last_bit_only():
    x = torch.randn(4096, 128).bfloat16().float()
    a, b = quantize(x), quantize(x, rule="reciprocal")
    differ = a.values != b.values
    assert 0 < differ.float().mean() < 0.01
    steps = E4M3.encode(a.values) - E4M3.encode(b.values)
    assert steps.abs().max() == 1
    a, b = quantize(x, power_of_two=True), quantize(x, power_of_two=True, rule="reciprocal")
    assert torch.equal(a.values, b.values)
    with pytest.raises(ValueError, match=r'"divide" .* got \'round\''):
        quantize(x, rule="round")


def test_a_tile_of_zeros_has_the_scale_of_the_smallest_amax():
    got = quantize(torch.zeros(2, 128))
    assert torch.equal(got.values, torch.zeros(2, 128)) and got.scale.tolist() == [[pytest.approx(1e-4 / 448)]] * 2
    assert quantize(torch.full((1, 128), 1e-6)).values.max() == E4M3.round(torch.tensor(1e-6 / (1e-4 / 448)))


def test_the_floor_is_an_argument_because_gradients_lie_below_it():
    x = torch.randn(3, 128) * 1e-12
    assert (quantize(x).values == 0).all()
    torch.testing.assert_close(quantize(x, floor=1e-30).dequantize(), x, rtol=1 / 16, atol=1e-15)


def test_powers_of_two_round_up_and_exact_ones_stay():
    amax = 448 * torch.tensor([1.0, 1.0001, 2.0, 3.0, 0.25])
    assert tile_scale(amax, power_of_two=True).tolist() == [1, 2, 2, 4, 0.25]


def test_powers_of_two_are_those_of_deepgemm_s_bit_trick():
    # DeepGEMM's ceil_to_ue8m0: the exponent field, one more where any mantissa bit is set
    amax = torch.cat([torch.rand(999) * 10.0 ** torch.arange(-3, 6).repeat(111), 448 * 2.0 ** torch.arange(-9, 9)])
    bits = (amax.clamp_min(1e-4) / 448).view(torch.int32)
    want = ((bits >> 23) + ((bits & 0x7FFFFF) != 0).int()) << 23
    assert torch.equal(tile_scale(amax, power_of_two=True), want.view(torch.float32))


def test_an_infinity_or_a_nan_spoils_its_own_tile_only():
    x = torch.ones(2, 256)
    x[0, 3], x[1, 200] = torch.inf, torch.nan
    got = quantize(x)
    assert got.scale.isinf().tolist() == [[True, False], [False, False]]
    assert (got.values[0, [0, 1]] == 0).all() and got.values[0, 3].isnan()
    assert got.values[1, 128:].isnan().all() and (got.dequantize()[:, :128][1] == 1).all()


@MATRICES
@pytest.mark.parametrize("fmt", [E4M3, E5M6], ids=lambda f: f.name)
def test_what_is_stored_comes_back_bit_for_bit(x, fmt):
    kept, values = store(x, fmt, power_of_two=fmt is E5M6)
    assert torch.equal(values, quantize(x, TILE, fmt, power_of_two=fmt is E5M6).dequantize())
    assert torch.equal(restore(kept), values)
    if fmt is E4M3:
        assert kept.codes.dtype == torch.float8_e4m3fn and kept.nbytes < 1.1 * x.numel() + 4 * kept.scale.numel()


def test_a_nan_that_was_stored_comes_back_as_nan():
    x = torch.ones(1, 128)
    x[0, 5] = torch.nan
    assert restore(store(x)[0]).isnan().all()


def test_with_powers_of_two_turning_the_tiles_costs_nothing():
    # V3 stores the input of wo in 1 x 128 and reads it in 128 x 1: with such scales E5M6's bits survive
    x = torch.randn(128, 128)
    once = snap(x, TILE, E5M6, power_of_two=True)
    twice = snap(once, COLUMN, E5M6, power_of_two=True)
    large = once.abs() > once.abs().max() * 2**-20  # what is far below a column's largest is subnormal
    assert torch.equal(once[large], twice[large])
    odd = snap(snap(x, TILE, E5M6), COLUMN, E5M6)
    assert not torch.equal(odd, snap(x, TILE, E5M6))


# products -------------------------------------------------------------------------------------------------------------


def test_the_product_sums_block_by_block_with_each_blocks_scales():
    a, b = quantize(torch.randn(5, 300)), quantize(torch.randn(200, 300), BLOCK)
    want = torch.zeros(5, 200, dtype=torch.double)
    for k in range(0, 300, 128):
        part = a.values[:, k : k + 128].double() @ b.values[:, k : k + 128].double().T
        sb = b.scale[:, k // 128].repeat_interleave(128)[:200]
        want += part * a.scale[:, k // 128, None].double() * sb.double()
    torch.testing.assert_close(matmul(a, b).double(), want, rtol=1e-5, atol=1e-4)  # fp32 sums of 300


def exponent(x: Fraction) -> int:
    """The e with 2^e <= |x| < 2^(e + 1)."""
    return next(e for e in range(-60, 60) if abs(x) < Fraction(2) ** (e + 1)) if x else -60


def limited_by_hand(a, b, promote, bits=14, step=32):
    """One dot product in whole numbers: products and sum aligned to the largest exponent, what falls out is dropped."""
    total, partial = 0.0, Fraction(0)
    for start in range(0, len(a), step):
        if promote and start and start % promote == 0:
            total, partial = total + float(partial), Fraction(0)
        x, y = ([Fraction(v) for v in row[start : start + step]] for row in (a, b))
        pairs = list(zip(x, y, strict=True))
        largest = max([exponent(u) + exponent(v) for u, v in pairs] + [exponent(partial)])
        ulp = Fraction(2) ** (largest + 1 - bits)
        partial = (sum(int(u * v / ulp) for u, v in pairs) + int(partial / ulp)) * ulp  # int() drops towards zero
        ulp = Fraction(2) ** (exponent(partial) + 1 - bits)
        partial = int(partial / ulp) * ulp
    return total + float(partial)


@pytest.mark.parametrize("promote", [0, 128])
def test_the_limited_product_equals_whole_number_arithmetic(promote):
    torch.manual_seed(1)
    a, b = E4M3.round(torch.randn(3, 320) * 30), E4M3.round(torch.randn(2, 320) * 30)
    got = matmul_limited(a, b, promote)
    for i in range(3):
        for j in range(2):
            assert got[i, j].item() == pytest.approx(limited_by_hand(a[i].tolist(), b[j].tolist(), promote), rel=1e-7)


def test_a_product_far_below_the_sum_so_far_is_lost_and_zeros_harm_nothing():
    a, b = torch.zeros(1, 96), torch.ones(1, 96)
    assert matmul_limited(a, b).item() == 0
    a[0, 0], a[0, 33], a[0, 64] = 256, 2.0**-5, 2.0**-6  # 256 has 14 bits down to 2^-5
    assert matmul_limited(a, b, promote=0).item() == 256 + 2.0**-5
    assert matmul_limited(a, b, promote=32).item() == 256 + 2.0**-5 + 2.0**-6


def test_a_product_is_aligned_by_the_exponents_of_its_factors():
    # 1.75 x 1.75 = 3.06 lies above 2, its factors below: aligned to them, two products of 2^-13 live to add up
    a, b = torch.tensor([[1.75, 2.0**-7, 2.0**-7]]), torch.tensor([[1.75, 2.0**-6, 2.0**-6]])
    whole = torch.nn.functional.pad(a, (0, 29)), torch.nn.functional.pad(b, (0, 29))
    assert matmul_limited(*whole).item() == 1.75**2 + 2.0**-12


def test_promotion_keeps_long_sums_accurate():
    torch.manual_seed(0)
    a, b = E4M3.round(torch.rand(8, 4096) * 400), E4M3.round(torch.rand(8, 4096) * 400)
    exact = a.double() @ b.double().T
    without, with_it = (((matmul_limited(a, b, n) - exact) / exact).abs().max().item() for n in (0, 128))
    assert 10 * with_it < without
    assert 0.06 < without < 0.08 and with_it < 0.001  # an H200 gave 6.6 % and 0.05 % for such sums
    with pytest.raises(ValueError, match="multiple of it, got 100"):
        matmul_limited(a, b, promote=100)


def test_the_tensor_core_gets_its_operands_in_the_layout_that_its_kernel_reads():
    # scaled_mm's rules for 1 x 128 by 128 x 128 (torch PRs 166752, and the multiple of 4 rows): no GPU is asked here
    a, b = quantize(torch.randn(10, 5 * 128)), quantize(torch.randn(300, 5 * 128), BLOCK)
    x, w, sx, sw = tensor_core_operands(a, b)
    assert (x.shape, x.dtype, x.is_contiguous()) == ((12, 640), torch.float8_e4m3fn, True)
    assert (w.shape, w.dtype, w.is_contiguous()) == ((304, 640), torch.float8_e4m3fn, True)
    assert (sx.shape, sx.stride()) == ((12, 5), (1, 12)) and torch.equal(sx[:10], a.scale)
    assert (sw.shape, sw.stride()) == ((8, 3), (1, 8)) and torch.equal(sw[:5], b.scale.T)
    assert torch.equal(x.float()[:10], a.values) and torch.equal(w.float()[:300], b.values)
    with pytest.raises(ValueError, match="K = 130"):
        tensor_core_operands(quantize(torch.ones(4, 130)), quantize(torch.ones(8, 130), BLOCK))
    with pytest.raises(ValueError, match=r"got \(128, 128\)"):
        tensor_core_operands(quantize(torch.ones(4, 128), BLOCK), quantize(torch.ones(8, 128), BLOCK))


def test_without_a_hopper_gpu_the_tensor_core_says_what_it_needs():
    with pytest.raises(RuntimeError, match=r"compute capability 9.0.*on the processor"):
        tensor_core_matmul(quantize(torch.ones(4, 128)), quantize(torch.ones(128, 128), BLOCK))


@pytest.mark.skipif(
    not (torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0)), reason="needs a Hopper GPU"
)
def test_a_hopper_gpu_computes_what_the_emulation_says():
    x, w = torch.randn(250, 640, device="cuda"), torch.randn(300, 640, device="cuda")  # rows and blocks to fill up
    a, b = quantize(x), quantize(w, BLOCK)
    want = matmul(a, b)
    torch.testing.assert_close(tensor_core_matmul(a, b), want, rtol=2**-7, atol=2**-7 * want.abs().max().item())


# layers ---------------------------------------------------------------------------------------------------------------


def looped(x, tile, fmt=E4M3, two=False, floor=1e-4):
    """Each tile rounded by torch's own cast, in plain loops."""
    out, (h, w) = torch.empty_like(x), (tile[0] or len(x), tile[1] or x.shape[1])
    for i in range(0, len(x), h):
        for j in range(0, x.shape[1], w):
            part = x[i : i + h, j : j + w]
            s = tile_scale(part.abs().max(), fmt, two, floor)
            cast = fmt.round(part / s) if fmt is E5M6 else (part / s).to(DTYPES[fmt]).float()
            out[i : i + h, j : j + w] = cast * s
    return out


def gradient(dy, tile, two=False):
    """As `looped`, with the lower floor that gradients have."""
    return looped(dy, tile, two=two, floor=1e-30)


def adversary(kind: str, *shape: int) -> torch.Tensor:
    """A random matrix with what makes quantisation hard: one huge value, zero tiles, numbers below every scale."""
    x = torch.randn(*shape)
    if kind == "outlier":
        x[3, 140] = 1e4
    elif kind == "zeros":
        x[:129], x[:, :7] = 0.0, 0.0
    elif kind == "denormal":
        x[:, 128:] *= 1e-38
    return x


@pytest.mark.parametrize("kind", ["random", "outlier", "zeros", "denormal"])
@pytest.mark.parametrize("after_attention", [False, True])
def test_a_linear_layers_three_products_see_the_published_tiles(after_attention, kind):
    torch.manual_seed(5)
    layer = Fp8Linear(nn.Linear(200, 150, bias=False), after_attention=after_attention)
    x, dy = adversary(kind, 130, 200).requires_grad_(), 1e-6 * adversary(kind, 130, 150)  # a mean loss's gradients
    y = layer(x.view(2, 65, 200)).view(130, 150)
    y.backward(dy)
    xd, w, two = x.detach(), layer.weight.detach(), after_attention
    kept = looped(xd, TILE, E5M6 if two else E4M3, two)
    for got, want in (
        (y, looped(xd, TILE, two=two) @ looped(w, BLOCK).T),
        (x.grad, gradient(dy, TILE) @ looped(w, BLOCK)),
        (layer.weight.grad, gradient(dy, COLUMN).T @ looped(kept, COLUMN, two=two)),
    ):  # the same products summed in the same order, but an outlier leaves the others' rounding in its place
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6 * want.abs().max().item())


def swiglu_by_hand(x, w13, w2, g, dy):
    """(y, dx, dw13, dw2, dg) of one expert, from the list in the module's opening."""
    two = g is not None
    one = torch.ones(len(x), 1) if g is None else g
    xq = looped(x, TILE, two=two)
    h = xq @ looped(w13, BLOCK).T
    gate, up = h.chunk(2, -1)
    y = looped(F.silu(gate) * up * one, TILE) @ looped(w2, BLOCK).T
    gate, up = (looped(part, TILE).requires_grad_() for part in (gate, up))  # kept in FP8
    one = one.clone().requires_grad_()
    a = F.silu(gate) * up * one
    da = gradient(dy, TILE, two=two) @ looped(w2, BLOCK)
    dgate, dup, dg = torch.autograd.grad(a, (gate, up, one), da)
    dh = torch.cat([dgate, dup], -1)
    dw2 = gradient(dy, COLUMN, two=two).T @ looped(a.detach(), COLUMN)
    dw13 = gradient(dh, COLUMN).T @ looped(xq, COLUMN, two=two)
    return y, gradient(dh, TILE) @ looped(w13, BLOCK), dw13, dw2, dg


def test_swiglu_keeps_its_inputs_in_fp8_and_computes_its_output_again():
    torch.manual_seed(6)
    plain = MLP(140, 90)
    mlp = Fp8MLP(plain)
    x, dy = torch.randn(137, 140, requires_grad=True), torch.randn(137, 140)
    mlp(x).backward(dy)
    y, dx, dw13, dw2, _ = swiglu_by_hand(x.detach(), plain.w13.weight.detach(), plain.w2.weight.detach(), None, dy)
    for got, want in ((mlp(x), y), (x.grad, dx), (plain.w13.weight.grad, dw13), (plain.w2.weight.grad, dw2)):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_experts_round_with_powers_of_two_and_end_a_tile_with_an_experts_rows():
    torch.manual_seed(7)
    plain = Experts(4, 60, 24)
    for p in plain.parameters():
        nn.init.normal_(p, std=0.2)
    T, K = 150, 2
    x = torch.randn(T, 60, requires_grad=True)
    weights = torch.rand(T, K, requires_grad=True)
    indices = torch.stack([torch.randperm(3)[:K] for _ in range(T)])  # expert 3 gets nothing
    dy = torch.randn(T, 60)
    got = Fp8Experts(plain)(x, weights, indices)
    got.backward(dy)
    want, dx, dg = torch.zeros(T, 60), torch.zeros(T, 60), torch.zeros(T, K)
    for e in range(4):
        t, k = (indices == e).nonzero(as_tuple=True)
        if not len(t):
            assert not plain.w13.grad[e].any() and not plain.w2.grad[e].any()
            continue
        parts = x.detach()[t], plain.w13.detach()[e], plain.w2.detach()[e], weights.detach()[t, k, None], dy[t]
        y, dxe, dw13, dw2, dge = swiglu_by_hand(*parts)
        want.index_add_(0, t, y)
        dx.index_add_(0, t, dxe)
        dg[t, k] = dge[:, 0]
        torch.testing.assert_close(plain.w13.grad[e], dw13, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(plain.w2.grad[e], dw2, rtol=1e-4, atol=1e-4)
    for a, b in ((got, want), (x.grad, dx), (weights.grad, dg)):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def model() -> Transformer:
    return Transformer(replace(tiny(), vocab_size=97, n_layers=2), torch.Generator().manual_seed(0))


def test_what_the_paper_keeps_high_is_not_converted():
    net = convert(model())
    kinds = {name: type(m).__name__ for name, m in net.named_modules()}
    assert kinds["head"] == "Linear" and kinds["embed"] == "Embedding"
    assert all(kind == "Gate" for name, kind in kinds.items() if name.endswith("gate"))
    attention = [name for name in kinds if name.rsplit(".", 1)[-1] in ("wq_a", "wq_b", "wkv_a", "wkv_b", "wo")]
    assert len(attention) == 3 * 5 and all(kinds[name] == "Fp8Linear" for name in attention)
    assert kinds["mtp.0.eh_proj"] == "Fp8Linear" and kinds["layers.1.ffn.experts"] == "Fp8Experts"
    assert kinds["layers.0.ffn"] == kinds["layers.1.ffn.shared_experts"] == "Fp8MLP"
    last = [m.after_attention for name, m in net.named_modules() if name.endswith(".wo")]
    assert all(last) and sum(getattr(m, "after_attention", False) for m in net.modules()) == 3


def test_a_model_converted_and_back_is_the_same_to_the_bit():
    net, tokens = model(), torch.randint(97, (2, 20))
    names, before = list(net.state_dict()), net.losses(tokens)
    parameters = dict(net.named_parameters())
    convert(net)
    assert list(net.state_dict()) == names
    assert all(p is parameters[name] for name, p in net.named_parameters())  # an optimizer goes on
    assert 0 < abs(net.losses(tokens).main - before.main) < 0.05
    revert(net)
    assert [type(m) for m in net.modules()] == [type(m) for m in model().modules()]
    after = net.losses(tokens)
    assert after.main == before.main and after.mtp == before.mtp


def test_converting_twice_is_refused_and_so_is_a_bias():
    net = convert(model())
    with pytest.raises(ValueError, match="call `revert` first"):
        convert(net)
    with pytest.raises(ValueError, match="have no bias"):
        Fp8Linear(nn.Linear(3, 3))


def saved_bytes(net, tokens) -> int:
    """Bytes that the forward pass keeps for the backward pass, parameters not counted."""
    own = {p.untyped_storage().data_ptr() for p in net.parameters()}
    seen = {}

    def pack(t):
        if t.untyped_storage().data_ptr() not in own:
            seen[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes(), t
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        net.losses(tokens)
    return sum(n for n, _ in seen.values())


def test_fp8_keeps_fewer_bytes_for_the_backward_pass():
    tokens = torch.randint(97, (4, 65))
    assert saved_bytes(convert(model()), tokens) < 0.8 * saved_bytes(model(), tokens)


def test_generation_runs_on_a_converted_model():
    net = convert(model()).eval()
    tokens = torch.randint(97, (1, 9))
    with torch.no_grad():
        cache = net.new_cache(1, 9)
        stepwise = torch.cat([net(tokens[:, i : i + 1], cache) for i in range(9)], 1)
        torch.testing.assert_close(stepwise, net(tokens), rtol=0.1, atol=0.15)  # absorbed decoding does not round W_UK


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(bf16=True),
        Recipe(TENSOR, TENSOR, TENSOR, TENSOR),
        Recipe(gradients=BLOCK),
        Recipe(gradient_format=E5M2),
        Recipe(gradient_floor=1e-4),
    ],
    ids=["bf16", "per tensor", "blocks for gradients", "E5M2 gradients", "the activations' floor for gradients"],
)
def test_the_other_recipes_round_otherwise(recipe):
    plain, other = gradient_of(Recipe()), gradient_of(recipe)
    assert not torch.equal(plain, other) and F.cosine_similarity(plain.flatten(), other.flatten(), 0) > 0.9


@cache
def gradient_of(recipe: Recipe) -> torch.Tensor:
    """Of the first layer's W_UQ, from the loss of 2 x 149 tokens."""
    net = convert(model(), recipe)
    net.losses(torch.randint(97, (2, 150), generator=torch.Generator().manual_seed(0))).main.backward()
    return net.layers[0].attn.wq_b.weight.grad


def test_the_module_prints_its_formats():
    done = subprocess.run([sys.executable, "-m", "minids.fp8"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0
    assert "e4m3      8         448        0.0156     0.00195     253" in done.stdout
    assert "e5m2      8      57,344" in done.stdout and "e5m6     12      65,024" in done.stdout
