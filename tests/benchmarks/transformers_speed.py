"""minids beside `transformers` on the same weights: training, decoding, cache, and the 671 B model on the meta device.

    python tests/benchmarks/transformers_speed.py                 about 15 minutes on one plain core
    python tests/benchmarks/transformers_speed.py --quick         about 4 minutes, noisier
    python tests/benchmarks/transformers_speed.py --threads 2     wall time of two cores instead of CPU time of one

How it measures, so that the comparison is fair:

- `transformers` runs in the fastest of its own eager settings, searched here: experts eager, grouped_mm, batched_mm;
  attention sdpa or eager; for decoding a dynamic or a static cache; under torch.inference_mode, the last logits only.
- Both sides run the same loop, so neither pays for the bookkeeping of `generate`. Rounds alternate; medians are shown.
- With one thread the time is CPU time of the process, which other work on the machine disturbs less than wall time.
- Training is forward, backward and fused AdamW on the same tokens. `transformers` does not train MTP modules: compare
  with ours without MTP; the row with MTP does more work for each token.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F

from minids.config import tiny
from minids.costs import training_flops_per_token
from minids.hf import to_hf
from minids.model import Transformer

EXPERTS, ATTENTION, CACHES = ("eager", "grouped_mm", "batched_mm"), ("sdpa", "eager"), ("dynamic", "static")
Step = Callable[[], object]


def clock(threads: int) -> Callable[[], float]:
    return time.process_time if threads == 1 else time.perf_counter


def interleaved(steps: dict[str, Step], rounds: int, now: Callable[[], float]) -> dict[str, list[float]]:
    """Seconds of each step in every round; within a round the steps follow one another."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for round_ in range(rounds + 1):
        for name, step in steps.items():
            start = now()
            step()
            if round_:  # the first round warms up
                times[name].append(now() - start)
    return times


def medians(steps: dict[str, Step], rounds: int, now: Callable[[], float]) -> dict[str, float]:
    return {name: statistics.median(t) for name, t in interleaved(steps, rounds, now).items()}


def against_the_fastest(
    ours: dict[str, Step], theirs: dict[str, Step], quick: bool, now: Callable[[], float]
) -> tuple[dict[str, float], str]:
    """(median seconds of ours and of their three best settings, taken together; which of theirs is the fastest).

    A short search picks the three; their final times are from the rounds that they share with ours.
    """
    search = medians(theirs, 1 if quick else 3, now)
    finalists = sorted(search, key=search.__getitem__)[:3]
    seconds = medians(ours | {name: theirs[name] for name in finalists}, 5 if quick else 15, now)
    return seconds, min(finalists, key=seconds.__getitem__)


def hf_model(directory: Path, experts: str, attention: str):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        directory, experts_implementation=experts, attn_implementation=attention
    ).eval()


# ---- training --------------------------------------------------------------------------------------------------------


def our_training(model: Transformer, tokens: torch.Tensor) -> Step:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    model.train()

    def step():
        losses = model.losses(tokens)
        (losses.main + 0.3 * losses.mtp + 1e-4 * losses.balance).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def hf_training(model, tokens: torch.Tensor) -> Step:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    inputs, targets = tokens[:, :-1], tokens[:, 1:].flatten()
    model.train()

    def step():
        logits = model(inputs, use_cache=False).logits
        F.cross_entropy(logits.flatten(0, 1), targets).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def matmul_rate(now: Callable[[], float], n: int = 1024) -> float:
    """FLOP/s of a plain fp32 product of two n x n matrices: the machine's own measure."""
    a, b = torch.randn(n, n), torch.randn(n, n)
    return 2 * n**3 / medians({"mm": lambda: a @ b}, 7, now)["mm"]


def training_table(directory: Path, quick: bool, now: Callable[[], float]) -> None:
    cfg = tiny()
    batch, length = 8, 256
    tokens = torch.randint(0, cfg.vocab_size, (batch, length + 1))
    sizes = {"minids": replace(cfg, n_mtp_modules=0), "minids with MTP": cfg}
    ours = {name: our_training(Transformer(c), tokens) for name, c in sizes.items()}
    theirs = {
        f"transformers {experts}, {attention}": hf_training(hf_model(directory, experts, attention), tokens)
        for experts, attention in itertools.product(EXPERTS[:2] if quick else EXPERTS, ATTENTION)
    }
    seconds, best = against_the_fastest(ours, theirs, quick, now)
    rate = matmul_rate(now)
    print(f"\n### Training step, tiny preset, batch {batch} x {length}, fp32, AdamW fused\n")
    print("| | ms a step | tokens a second | times the fastest transformers | GFLOP/s | share of a plain matmul |")
    print("|---|---|---|---|---|---|")
    for name in sorted(seconds, key=seconds.__getitem__):
        s, speed = seconds[name], batch * length / seconds[name]
        flops = training_flops_per_token(sizes.get(name, sizes["minids"]), length) * speed
        ratio = seconds[best] / s
        print(f"| {name} | {s * 1e3:.0f} | {speed:.0f} | {ratio:.2f} | {flops / 1e9:.1f} | {flops / rate:.0%} |")
    plain, mtp = (training_flops_per_token(c, length) / 1e6 for c in sizes.values())
    print(
        f"\nPlain fp32 matmul of 1024^3: {rate / 1e9:.1f} GFLOP/s. Operations of a token: 3 x (2 x activated matrix "
        "parameters without the embedding + 2 x length/2 x layers x heads x (q/k width + v width)); norms, softmax, "
        f"SiLU, RoPE and the optimizer count nothing. Here {plain:.2f} M, with MTP {mtp:.2f} M."
    )


# ---- decoding --------------------------------------------------------------------------------------------------------


def our_decoder(model: Transformer, prompt: torch.Tensor, steps: int) -> Step:
    """Greedy steps from a cache that holds the prompt; the cache is wound back for each call."""
    batch, context = prompt.shape
    cache = model.new_cache(batch, context + steps)
    model.hidden(prompt, cache, "latent")
    first = prompt[:, -1:]

    @torch.inference_mode()
    def run():
        token, out = first, []
        for layer in cache:
            layer.length = context
        for _ in range(steps):
            h, _ = model.hidden(token, cache, "absorb")
            token = model.head(h[:, -1]).argmax(-1, keepdim=True)
            out.append(token)
        return torch.cat(out, 1)

    return run


def hf_decoder(model, prompt: torch.Tensor, steps: int, kind: str) -> Step:
    import transformers

    context = prompt.shape[1]
    if kind == "static":
        cache = transformers.StaticCache(config=model.config, max_cache_len=context + steps)
    else:
        cache = transformers.DynamicCache(config=model.config)
    with torch.inference_mode():
        model(prompt, past_key_values=cache, use_cache=True, logits_to_keep=1)
    kept = [(layer.keys, layer.values) for layer in cache.layers]

    @torch.inference_mode()
    def run():
        token, out = prompt[:, -1:], []
        for layer, (k, v) in zip(cache.layers, kept, strict=True):
            layer.keys, layer.values = k, v  # a dynamic cache made new, longer tensors
            if kind == "static":
                layer.cumulative_length.fill_(context)
        for _ in range(steps):
            logits = model(token, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
            token = logits[:, -1].argmax(-1, keepdim=True)
            out.append(token)
        return torch.cat(out, 1)

    return run


def decoding_table(directory: Path, model: Transformer, quick: bool, now: Callable[[], float]) -> None:
    model = copy.deepcopy(model).for_decoding()
    steps = 32  # a call's first few find the processor's cache full of the other side's data
    print("\n### Greedy decoding, tiny preset, fp32: tokens a second over the whole batch\n")
    print("| batch | context | transformers' fastest setting | transformers | minids absorbed | ratio | same tokens |")
    print("|---|---|---|---|---|---|---|")
    for batch, context in itertools.product((1, 8), (64, 256, 1024)):
        prompt = torch.randint(0, model.cfg.vocab_size, (batch, context))
        them = {}
        for experts, attention in itertools.product(EXPERTS, ATTENTION):
            loaded = hf_model(directory, experts, attention)
            for kind in CACHES:
                them[f"{experts}, {attention}, {kind}"] = hf_decoder(loaded, prompt, steps, kind)
        ours = our_decoder(model, prompt, steps)
        seconds, best = against_the_fastest({"minids": ours}, them, quick, now)
        same = (ours() == them[best]()).float().mean()  # type: ignore[attr-defined]
        mine, other = (batch * steps / seconds[name] for name in ("minids", best))
        print(
            f"| {batch} | {context} | {best} | {other:.0f} | {mine:.0f} | {mine / other:.2f} | {same:.0%} |", flush=True
        )


# ---- cache and the 671 B model ---------------------------------------------------------------------------------------


def cache_table(directory: Path, model: Transformer) -> None:
    import transformers

    cfg, prompt = model.cfg, torch.randint(0, model.cfg.vocab_size, (1, 16))
    cache = transformers.DynamicCache()
    with torch.inference_mode():
        hf_model(directory, "eager", "sdpa")(prompt, past_key_values=cache, use_cache=True)
    theirs = sum(t.numel() * t.element_size() for layer in cache.layers for t in (layer.keys, layer.values)) / 16
    formula = (cfg.kv_lora_rank + cfg.qk_rope_head_dim) * cfg.n_layers * 4
    print("\n### Cache bytes a token, tiny preset in fp32, measured from the tensors\n")
    print("| transformers | minids absorb | (C + R) x layers x 4 | minids naive (every head's k and v) |")
    print("|---|---|---|---|")
    per_impl = {impl: sum(c.nbytes_per_token for c in model.new_cache(1, 16, impl)) for impl in ("absorb", "naive")}
    print(f"| {theirs:.0f} | {per_impl['absorb']} | {formula} | {per_impl['naive']} |")


def info_v3() -> None:
    """`minids info v3` in a process of its own, for its peak memory."""
    # VmHWM and not ru_maxrss: the latter starts at the size of the process that forks
    code = (
        "import pathlib, sys, time; start = time.perf_counter(); from minids.cli import main; main(['info', 'v3']);"
        "wall, status = time.perf_counter() - start, pathlib.Path('/proc/self/status');"
        "peak = status.read_text().split('VmHWM:')[1].split()[0] if status.exists() else 'nan';"
        "print(f'{wall:.1f} s ({time.process_time():.1f} s of CPU), peak {float(peak) / 1024:.0f} MB', file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    print(f"\n### `minids info v3`, the 671 B model on the meta device\n\n{done.stderr.strip().splitlines()[-1]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds and settings")
    parser.add_argument("--threads", type=int, default=1, help="1 (default) measures CPU time, more measure wall time")
    parser.add_argument("--only", choices=("training", "decoding", "cache", "info"), help="one table")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    now = clock(args.threads)
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, {args.threads} thread(s), "
          f"{'CPU' if args.threads == 1 else 'wall'} time, {torch.backends.cpu.get_cpu_capability()}")  # fmt: skip
    with tempfile.TemporaryDirectory() as tmp:
        directory = Path(tmp)
        model = Transformer(replace(tiny(), max_seq_len=2048, original_seq_len=2048)).eval()
        to_hf(model, directory, mtp="drop")
        tables: dict[str, Step] = {
            "training": lambda: training_table(directory, args.quick, now),
            "decoding": lambda: decoding_table(directory, model, args.quick, now),
            "cache": lambda: cache_table(directory, model),
            "info": info_v3,
        }
        for name, table in tables.items():
            if args.only in (None, name):
                table()


if __name__ == "__main__":
    main()
