"""On a Hopper GPU: FP8 products with block scales, their speed, and how its tensor cores add, beside our model of them.

    python tests/benchmarks/hopper.py                    half a minute; needs compute capability 9.0

Three tables; what an H200 gave on 2026-11-26 is in assets/hopper.json:

    products   `fp8.tensor_core_matmul` against `fp8.matmul`, the emulation, at sizes of DeepSeek-V3's layers, and
               TFLOP/s of BF16, of FP8 with one scale, and of FP8 with a scale a tile (1 x 128) and block (128 x 128)
    sums       the mean error of long sums of positive products that E4M3 holds exactly, so that only the adding errs
    bits       the share of sums in which the GPU and `fp8.matmul_limited` give the same FP32 number, without promotion
               (`use_fast_accum=True`) and with it

From K = 8192 on the library divides a sum among several workers, and the GPU's numbers are no longer one adder's.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch
from torch import Tensor

from minids.fp8 import BLOCK, PROMOTE, matmul, matmul_limited, quantize, tensor_core_matmul, tensor_core_operands

TOKENS = 4096
SIZES = {"wq_b": (1536, 24576), "wo": (16384, 7168), "expert w13": (7168, 4096), "expert w2": (2048, 7168)}


def milliseconds(step: Callable[[], object], rounds: int = 20) -> float:
    """Median time of a step on the GPU."""
    times = []
    for _ in range(rounds + 5):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()  # type: ignore[no-untyped-call]
        step()
        end.record()  # type: ignore[no-untyped-call]
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times[5:])


def one_scale(x: Tensor, w: Tensor, fast: bool, dtype: torch.dtype) -> Tensor:
    """x w^T of E4M3 matrices with the scales 1."""
    from torch.nn.functional import ScalingType, scaled_mm

    one = torch.ones((), device=x.device)
    kind = ScalingType.TensorWise
    return scaled_mm(x, w.t(), one, kind, one, kind, output_dtype=dtype, use_fast_accum=fast)


def blocks(operands: tuple[Tensor, Tensor, Tensor, Tensor]) -> Tensor:
    from torch.nn.functional import ScalingType, scaled_mm

    x, w, sx, sw = operands
    kinds = ScalingType.BlockWise1x128, ScalingType.BlockWise128x128
    return scaled_mm(x, w.t(), sx, kinds[0], sw, kinds[1], output_dtype=torch.bfloat16)


def products() -> None:
    print("\n| layer | K | outputs | largest difference / largest value | BF16 | FP8, one scale | FP8, blocks |")
    print("|---|---|---|---|---|---|---|")
    for name, (K, O) in SIZES.items():
        x, w = torch.randn(TOKENS, K, device="cuda"), torch.randn(O, K, device="cuda") * K**-0.5
        a, b = quantize(x), quantize(w, BLOCK)
        want, got = matmul(a, b), tensor_core_matmul(a, b)
        off = ((got - want).abs().max() / want.abs().max()).item()
        operands, xh, wh = tensor_core_operands(a, b), x.bfloat16(), w.bfloat16()
        times = [
            milliseconds(lambda xh=xh, wh=wh: xh @ wh.t()),
            milliseconds(lambda o=operands: one_scale(o[0], o[1], True, torch.bfloat16)),
            milliseconds(lambda o=operands: blocks(o)),
        ]
        rates = [f"{2e-9 * TOKENS * K * O / t:.0f}" for t in times]
        print(f"| {name} | {K} | {O} | {off:.5f} | {' | '.join(rates)} |", flush=True)


def drawn(kind: str, K: int) -> list[Tensor]:
    """Two E4M3 matrices [64 K]: positive numbers, normal ones, or normal ones of very different sizes."""
    found = []
    for _ in range(2):
        x = torch.rand(64, K, device="cuda") if kind == "positive" else torch.randn(64, K, device="cuda")
        x = x * torch.randn(64, K, device="cuda").exp() if kind == "wide" else x
        found.append(x.clamp(-448, 448).to(torch.float8_e4m3fn))
    return found


def sums() -> None:
    print("\n| K | no promotion | promoted | matmul_limited, no promotion | promoted |\n|---|---|---|---|---|")
    for K in (512, 1024, 2048, 4096):
        x, w = drawn("positive", K)
        exact = x.double() @ w.double().t()
        found = [one_scale(x, w, fast, torch.float32) for fast in (True, False)]
        found += [matmul_limited(x.float(), w.float(), n) for n in (0, PROMOTE)]
        errors = [100 * ((y - exact).sum() / exact.sum()).item() for y in found]
        print(f"| {K} | " + " | ".join(f"{e:+.4f} %" for e in errors) + " |", flush=True)


def bits() -> None:
    print("\n| operands | K | same without promotion | same with it |\n|---|---|---|---|")
    for kind in ("positive", "normal", "wide"):
        for K in (32, 64, 256, 4096):
            x, w = drawn(kind, K)
            same = [(one_scale(x, w, fast, torch.float32) == matmul_limited(x.float(), w.float(), n)).float().mean()
                    for fast, n in ((True, 0), (False, PROMOTE))]  # fmt: skip
            print(f"| {kind} | {K} | {same[0]:.2%} | {same[1]:.2%} |", flush=True)


if __name__ == "__main__":
    torch.manual_seed(0)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}; TFLOP/s at {TOKENS} tokens")
    products()
    sums()
    bits()
