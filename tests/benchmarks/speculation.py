"""Speculative decoding beside plain decoding of the shipped tiny model: acceptance, costs, and the ratio of speeds.

    python tests/benchmarks/speculation.py                 about 4 minutes on one plain core
    python tests/benchmarks/speculation.py --quick         about 1 minute, noisier

How it measures:

- Two drafters: "module" is the model's own MTP module, trained for one token ahead as V3's; "dense" is what
  `minids.drafter` makes of it. The main model, and so the text, is the same.
- Both ways continue the same prompts from unseen documents, batch 1, one thread, CPU time of the process; the rounds
  alternate, so that a machine that slows down slows both. The ratio is that of the sums over all prompts.
- Greedy texts must be equal, else it stops.
- The parts of a cycle are timed by themselves: a step of 1, 2, .. tokens through the main model, and one draft. From
  them and the tokens of a cycle follows the speed that is to be expected ("by parts"): tokens / (check + drafts).

DeepSeek-V3 (section 5.4.3) reports 85 to 90 % acceptance and 1.8 times the tokens a second.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from minids import checkpoint, drafter
from minids.corpus import documents
from minids.generate import generate
from minids.model import Transformer
from minids.speculate import Acceptance, Speculator, speculate
from minids.tokenizer import Tokenizer, default_tokenizer

DOMAINS, NEW = ("en", "zh", "maths", "code"), 64
DRAFTS = {"module": (1, 2), "dense": (1, 2, 3, 4)}


class Arm(NamedTuple):
    name: str
    model: Transformer
    drafts: int
    temperature: float


def prompts(domain: str, tokenizer: Tokenizer, n: int) -> list[list[int]]:
    """The first 24 tokens of unseen documents."""
    texts = documents(domain, "val")
    found: list[list[int]] = []
    while len(found) < n:
        ids = tokenizer.encode(next(texts), bos=True)
        if len(ids) >= 48:
            found.append(ids[:24])
    return found


def interleaved(steps: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median milliseconds of CPU time of each step; within a round they follow one another."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds + 2):
        for name, step in steps.items():
            start = time.process_time()
            step()
            times[name].append(1e3 * (time.process_time() - start))
    return {name: statistics.median(t[2:]) for name, t in times.items()}


def parts(models: dict[str, Transformer], rounds: int) -> dict[str, float]:
    """What a step of 1 to 5 tokens costs at 100 cached tokens, and the first and each further draft; prints it."""
    model = models["module"]
    cache, tokens, h = model.new_cache(1, 128), torch.arange(100)[None] + 300, torch.randn(1, 3, model.cfg.dim)
    runs = {name: Speculator(m, tokens[0].tolist(), 20, 1, 0.0, 1.0, None) for name, m in models.items()}

    @torch.inference_mode()
    def step(n: int) -> None:
        model.head(model.hidden(tokens[:, :n], cache, "absorb")[0])
        for layer in cache:
            layer.length = 100

    @torch.inference_mode()
    def draft(name: str, n: int) -> None:
        runs[name].draft_cache.length = 100
        runs[name].draft(h, tokens[:, :3], n)

    step(100)
    steps: dict[str, Callable[[], object]] = {f"check {n}": lambda n=n: step(n) for n in range(1, 6)}
    steps |= {f"{name} {n}": lambda name=name, n=n: draft(name, n) for name in models for n in (1, 2)}
    cost = interleaved(steps, rounds)
    plain = cost["check 1"]
    print(f"plain step {plain:.2f} ms; in its units:")
    print(", ".join(f"{n} tokens at once {cost[f'check {n}'] / plain:.2f}" for n in range(2, 6)))
    for name in models:
        first, second = cost[f"{name} 1"] / plain, (cost[f"{name} 2"] - cost[f"{name} 1"]) / plain
        print(f"drafter {name}: first draft {first:.2f}, each further {second:.2f}")
    return cost


def by_parts(cost: dict[str, float], name: str, drafts: int, tokens_per_cycle: float) -> float:
    """Times the plain speed that the costs of the parts allow."""
    further = cost[f"{name} 2"] - cost[f"{name} 1"]
    cycle = cost[f"check {drafts + 1}"] + cost[f"{name} 1"] + (drafts - 1) * further
    return tokens_per_cycle * cost["check 1"] / cycle


def race(
    model: Transformer, texts: list[list[int]], arms: list[Arm], domain: str
) -> dict[Arm, tuple[Acceptance, float]]:
    """The fate of the drafts of each arm, and its speed in units of plain decoding's; arms take turns text by text."""
    fates, ratios = {arm: Acceptance() for arm in arms}, {}
    spent = {(arm, way): [0.0, 0] for arm in arms for way in ("plain", "fast")}
    for seed, prompt in enumerate(texts):
        for arm in arms:
            dice = [torch.Generator().manual_seed(seed) for _ in range(2)]
            start = time.process_time()
            plain = generate(model, prompt, NEW, arm.temperature, generator=dice[0])
            middle = time.process_time()
            fast, one = speculate(arm.model, prompt, NEW, arm.drafts, arm.temperature, generator=dice[1])
            end = time.process_time()
            if arm.temperature == 0 and fast != plain:
                raise SystemExit(f"the texts differ for a prompt of {domain}: speculation must not change greedy text")
            fates[arm].add(one)
            for way, seconds, text in (("plain", middle - start, plain), ("fast", end - middle, fast)):
                spent[arm, way][0] += seconds
                spent[arm, way][1] += len(text)
    for arm in arms:
        plain, fast = (seconds / n for seconds, n in (spent[arm, "plain"], spent[arm, "fast"]))
        ratios[arm] = plain / fast
    return {arm: (fates[arm], ratios[arm]) for arm in arms}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--domains", nargs="+", choices=DOMAINS, default=DOMAINS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    model, tokenizer = checkpoint.load_model(checkpoint.shipped())[0].eval(), default_tokenizer()
    models = {"module": model, "dense": drafter.shipped()}
    cost = parts(models, 20 if args.quick else 100)
    arms = [Arm(name, models[name], k, 0.0) for name, ks in DRAFTS.items() for k in ks] + [
        Arm("dense", models["dense"], 3, 1.0)
    ]
    print("domain drafter drafts temp  kept at depth 1, 2, .. (%)  tokens/cycle  by parts   ratio")
    for domain in args.domains:
        texts = prompts(domain, tokenizer, 4 if args.quick else 16)
        for arm, (fate, ratio) in race(model, texts, arms, domain).items():
            kept = " ".join(f"{100 * k / n:3.0f}" for k, n in zip(fate.kept, fate.tried, strict=True))
            ideal = by_parts(cost, arm.name, arm.drafts, fate.tokens_per_cycle)
            print(f"{domain:6} {arm.name:8} {arm.drafts:5} {arm.temperature:4.1f}  {kept:26} "
                  f"{fate.tokens_per_cycle:13.2f} {ideal:9.2f} {ratio:7.2f}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
