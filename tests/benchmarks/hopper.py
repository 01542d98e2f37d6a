"""On a Hopper GPU: FP8 products with block scales, their speed, and how its tensor cores add, beside our model of them.

    python tests/benchmarks/hopper.py                              half a minute; without such a GPU it says so and ends
    python tests/benchmarks/hopper.py --out assets/hopper.json     and write the tables down

Three tables. What an H100 gave on 2026-11-26 is in assets/hopper.json:

    products   `fp8.tensor_core_matmul` against `fp8.matmul`, the emulation, at sizes of DeepSeek-V3's layers, and
               TFLOP/s of BF16, of FP8 with one scale, and of FP8 with a scale a tile (1 x 128) and block (128 x 128)
    sums       the mean error of long sums of positive products that E4M3 holds exactly, so that only the adding errs
    bits       the share of sums in which the GPU and `fp8.matmul_limited` give the same FP32 number, without promotion
               (`use_fast_accum=True`) and with it

From K = 8192 on the library divides a sum among several workers, and the GPU's numbers are no longer one adder's.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minids.fp8 import (
    BLOCK,
    PROMOTE,
    matmul,
    matmul_limited,
    quantize,
    tensor_core_matmul,
    tensor_core_operands,
    tensor_core_product,
)

Row = dict[str, Any]
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


def one_scale(x: Tensor, w: Tensor, fast: bool, dtype: torch.dtype = torch.float32) -> Tensor:
    """x w^T of E4M3 matrices with the scales 1."""
    from torch.nn.functional import ScalingType, scaled_mm

    one = torch.ones((), device=x.device)
    kind = ScalingType.TensorWise
    return scaled_mm(x, w.t(), one, kind, one, kind, output_dtype=dtype, use_fast_accum=fast)


def products() -> list[Row]:
    """How far the kernel is from the emulation, and TFLOP/s."""
    rows: list[Row] = []
    for name, (K, O) in SIZES.items():
        x, w = torch.randn(TOKENS, K, device="cuda"), torch.randn(O, K, device="cuda") * K**-0.5
        a, b = quantize(x), quantize(w, BLOCK)
        want, got = matmul(a, b), tensor_core_matmul(a, b)
        off = ((got - want).abs().max() / want.abs().max()).item()
        operands, xh, wh = tensor_core_operands(a, b), x.bfloat16(), w.bfloat16()
        steps = {
            "bf16": lambda xh=xh, wh=wh: xh @ wh.t(),
            "fp8 one scale": lambda o=operands: one_scale(o[0], o[1], True, torch.bfloat16),
            "fp8 blocks": lambda o=operands: tensor_core_product(*o),
        }
        rates = {what: round(2e-9 * TOKENS * K * O / milliseconds(step)) for what, step in steps.items()}
        rows.append({"layer": name, "K": K, "outputs": O, "largest_difference": round(off, 5), "tflops": rates})
    return rows


def drawn(kind: str, K: int) -> list[Tensor]:
    """Two E4M3 matrices [64 K]: positive numbers, normal ones, or normal ones of very different sizes."""
    found = []
    for _ in range(2):
        x = torch.rand(64, K, device="cuda") if kind == "positive" else torch.randn(64, K, device="cuda")
        x = x * torch.randn(64, K, device="cuda").exp() if kind == "wide" else x
        found.append(x.clamp(-448, 448).to(torch.float8_e4m3fn))
    return found


def sums() -> list[Row]:
    """The GPU's mean error on positive products, in per cent."""
    rows: list[Row] = []
    for K in (512, 1024, 2048, 4096):
        x, w = drawn("positive", K)
        exact = x.double() @ w.double().t()
        ways = {"no promotion": one_scale(x, w, True), "promoted": one_scale(x, w, False)}
        errors = {way: round(100 * ((y - exact).sum() / exact.sum()).item(), 5) for way, y in ways.items()}
        rows.append({"K": K, "error_percent": errors})
    return rows


def bits() -> list[Row]:
    """How many of the GPU's sums, without promotion and with it, are those of `matmul_limited`."""
    rows: list[Row] = []
    for kind in ("positive", "normal", "wide"):
        for K in (32, 64, 256, 4096):
            x, w = drawn(kind, K)
            alike = [one_scale(x, w, fast) == matmul_limited(x.float(), w.float(), promote)
                     for fast, promote in ((True, 0), (False, PROMOTE))]  # fmt: skip
            same = sum(int(part.sum()) for part in alike)
            rows.append({"operands": kind, "K": K, "sums": sum(part.numel() for part in alike), "same": same})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the tables to this file")
    args = parser.parse_args()
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0):
        print("no Hopper GPU (compute capability 9.0) here: nothing to measure")
        return
    torch.manual_seed(0)
    found: Row = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "date": str(date.today()),
                  "command": "python tests/benchmarks/hopper.py", "tokens": TOKENS}  # fmt: skip
    found |= {"products": products(), "sums": sums(), "bits": bits()}
    print(json.dumps(found, indent=1))
    if args.out:
        args.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
