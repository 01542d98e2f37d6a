"""On a Hopper GPU: FP8 products with block scales, their speed, and how its tensor cores add, beside our model of them.

    python tests/benchmarks/hopper.py                    half a minute; needs compute capability 9.0

Three tables:

    products   `fp8.tensor_core_matmul` against `fp8.matmul`, the emulation, at sizes of DeepSeek-V3's layers
    speed      TFLOP/s of BF16, of FP8 with one scale, and of FP8 with a scale a tile (1 x 128) and block (128 x 128)
    sums       the mean of (y - exact) / exact of positive operands that E4M3 holds exactly, so that only the adding
               errs: the GPU without promotion (`use_fast_accum=True`) and with it, and `fp8.matmul_limited` at 12 to 15
               bits. DeepSeek-V3 (section 3.5.2) reports about 14 bits, and an error near 2 % at K = 4096.
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


def sums() -> None:
    bits = (12, 13, 14, 15)
    heads = ["K", "GPU, no promotion", "GPU, one scale, promoted", *(f"{n} bits, no promotion" for n in bits),
             f"14 bits, promoted every {PROMOTE}"]  # fmt: skip
    print("\n| " + " | ".join(heads) + " |\n" + "|---" * len(heads) + "|")
    for K in (512, 1024, 2048, 4096, 8192, 16384):
        draw = [torch.rand(64, K, device="cuda").to(torch.float8_e4m3fn) for _ in range(2)]
        exact = draw[0].double() @ draw[1].double().t()
        x, w = (t.float() for t in draw)
        found = [one_scale(*draw, fast, torch.float32) for fast in (True, False)]
        found += [matmul_limited(x, w, 0, n) for n in bits] + [matmul_limited(x, w)]
        errors = [100 * ((y - exact) / exact).mean().item() for y in found]
        print(f"| {K} | " + " | ".join(f"{e:+.4f} %" for e in errors) + " |", flush=True)


if __name__ == "__main__":
    torch.manual_seed(0)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}; TFLOP/s at {TOKENS} tokens")
    products()
    sums()
