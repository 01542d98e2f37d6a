"""Serving: tokens a second of 16 texts together against one, and a burst through two processes with and without a kill.

python tests/benchmarks/serving.py
"""

from __future__ import annotations

import statistics
import time

import torch

from minids import checkpoint
from minids.corpus import eval_rows
from minids.model import Transformer
from minids.pools import Pools
from minids.serving import Engine, Request, report
from minids.tokenizer import default_tokenizer


def tokens_per_second(model: Transformer, texts: list[list[int]], together: int, steps: int = 60) -> float:
    """Decode alone, in processor time."""
    engine = Engine(model, together)
    for i in range(together):
        engine.submit(Request(f"text {i}", texts[i][:64], steps + 9))
    engine.step()
    began = time.process_time()
    return sum(len(engine.step()) for _ in range(steps)) / (time.process_time() - began)


def burst(pools: Pools, texts: list[list[int]], kill_at: int | None) -> dict[str, list[int]]:
    """200 requests at once; what each got, and on the wall clock what its user felt."""
    asked = [Request(f"{kill_at} {i}", texts[i % 24][: 20 + i % 41], 10 + i % 31) for i in range(200)]
    restarts, handed, got = pools.restarts, pools.handed_bytes, {r.name: [] for r in asked}
    for request in asked:
        pools.submit(request)
    for n, event in enumerate(pools.run()):
        got[event.name].append(event.token)
        if n == kill_at:
            pools.decode.process.kill()
    found = report({r.name: pools.measured[r.name] for r in asked}, 10.0, 0.1)
    print(
        f"decode killed {pools.restarts - restarts} times: {found.tokens_per_second:.0f} tokens a second, median TTFT "
        f"{statistics.median(found.ttft):.2f} s, TPOT {1e3 * statistics.median(found.tpot):.1f} ms, goodput (10 s, "
        f"100 ms) {found.goodput:.1f} a second, {(pools.handed_bytes - handed) / 1e6:.1f} MB handed over"
    )
    return got


def main() -> None:
    torch.set_num_threads(1)
    model, _ = checkpoint.load_model(checkpoint.shipped())
    texts = eval_rows("en", default_tokenizer(), 640, 24)[0].tolist()
    for turn in range(3):
        alone, together = (tokens_per_second(model, texts, n) for n in (1, 16))
        print(f"run {turn}: 1 text {alone:.0f}, 16 texts {together:.0f} tokens a second: {together / alone:.1f} times")
    with Pools(model) as pools:
        calm, hurt = (list(burst(pools, texts, kill_at).values()) for kill_at in (None, 2000))
    print(f"{sum(a == b for a, b in zip(calm, hurt, strict=True))} of {len(calm)} texts the same")


if __name__ == "__main__":
    main()
