"""Speculative decoding beside plain decoding of the shipped tiny model: acceptance, costs, and the ratio of speeds.

    python tests/benchmarks/speculation.py                 about 3 minutes on one plain core
    python tests/benchmarks/speculation.py --quick         about 1 minute, noisier

How it measures:

- Both ways continue the same prompts from unseen documents, batch 1, one thread, CPU time of the process; the rounds
  alternate, so that a machine that slows down slows both. The ratio is that of the sums over all prompts.
- Greedy texts must be equal, else it stops.
- The parts of a cycle are timed by themselves: a step of 1, 2, .. tokens through the main model, and one draft.

DeepSeek-V3 (section 5.4.3) reports 85 to 90 % acceptance and 1.8 times the tokens a second.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from minids import checkpoint
from minids.corpus import documents
from minids.generate import generate
from minids.speculate import Acceptance, Speculator, speculate
from minids.tokenizer import Tokenizer, default_tokenizer

DOMAINS, NEW = ("en", "zh", "maths", "code"), 64


def prompts(domain: str, tokenizer: Tokenizer, n: int) -> list[list[int]]:
    """The first 24 tokens of unseen documents."""
    texts = documents(domain, "val")
    found: list[list[int]] = []
    while len(found) < n:
        ids = tokenizer.encode(next(texts), bos=True)
        if len(ids) >= 48:
            found.append(ids[:24])
    return found


def timed(step: Callable[[], object], rounds: int) -> float:
    """Median milliseconds of CPU time."""
    times = []
    for _ in range(rounds + 2):
        start = time.process_time()
        step()
        times.append(1e3 * (time.process_time() - start))
    return statistics.median(times[2:])


def parts(model, rounds: int) -> None:
    """Prints what a step of 1 to 4 tokens costs at 100 cached tokens, and a draft."""
    cache = model.new_cache(1, 128)
    tokens = torch.arange(100)[None] + 300

    def step(n: int) -> None:
        with torch.inference_mode():
            h, _ = model.hidden(tokens[:, :n], cache, "absorb")
            model.head(h)
        for layer in cache:
            layer.length = 100

    step(100)
    run = Speculator(model, tokens[0].tolist(), 20, 1, 0.0, 1.0, None)
    h = torch.randn(1, 2, model.cfg.dim)

    def draft(n: int) -> None:
        run.draft_cache.length = 100
        with torch.inference_mode():
            run.draft(h, tokens[:, :2], n)

    plain = timed(lambda: step(1), rounds)
    print(f"plain step {plain:.2f} ms; in its units:", end="")
    for n in (2, 3, 4):
        print(f"  verify {n} tokens {timed(lambda n=n: step(n), rounds) / plain:.2f}", end="")
    one, two = (timed(lambda n=n: draft(n), rounds) / plain for n in (1, 2))
    print(f"  first draft {one:.2f}, each further {two - one:.2f}")


def race(model, domain: str, drafts: int, texts: list[list[int]], temperature: float) -> str:
    """One row of the table."""
    times, fate, n_plain, n_fast = [0.0, 0.0], Acceptance(), 0, 0
    for seed, prompt in enumerate(texts):
        dice = [torch.Generator().manual_seed(seed) for _ in range(2)]
        start = time.process_time()
        plain = generate(model, prompt, NEW, temperature, generator=dice[0])
        middle = time.process_time()
        fast, one = speculate(model, prompt, NEW, drafts, temperature, generator=dice[1])
        times = [times[0] + middle - start, times[1] + time.process_time() - middle]
        if temperature == 0 and fast != plain:
            raise SystemExit(f"the texts differ for a prompt of {domain}: speculation must not change greedy text")
        fate.add(one)
        n_plain, n_fast = n_plain + len(plain), n_fast + len(fast)
    plain_ms, fast_ms = 1e3 * times[0] / n_plain, 1e3 * times[1] / n_fast
    row = f"{domain:6} {drafts:6} {temperature:5.1f} {100 * fate.rate:9.1f} {fate.tokens_per_cycle:13.2f}"
    return f"{row} {plain_ms:10.2f} {fast_ms:10.2f} {plain_ms / fast_ms:7.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    model, tokenizer = checkpoint.load_model(checkpoint.shipped())[0].eval(), default_tokenizer()
    parts(model, 20 if quick else 100)
    print("domain drafts  temp  kept (%)  tokens/cycle   plain ms    fast ms   ratio")
    for domain in DOMAINS:
        texts = prompts(domain, tokenizer, 4 if quick else 16)
        for drafts, temperature in ((1, 0.0), (2, 0.0), (3, 0.0), (1, 1.0)):
            print(race(model, domain, drafts, texts, temperature), flush=True)


if __name__ == "__main__":
    main()
