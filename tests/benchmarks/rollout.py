"""Samples for reinforcement learning: `minids.rollout` beside `generate` of `transformers`, same weights and batch.

    python tests/benchmarks/rollout.py            about 3 minutes on one plain core
    python tests/benchmarks/rollout.py --quick    about 1 minute, noisier

How it measures, so that the comparison is fair:

- The model is that of 14_grpo (`config.policy`, random weights), exported by `minids.hf`: 32 prompts x 16 samples of 10
  prompt tokens, temperature 1, no top-k, no top-p.
- "all rows to the end": no row may end early, both sides draw exactly the same number of new tokens.
- "rows end": one of the 32 words ends a row, as in training. `rollout` drops such rows from the batch and its cache;
  `generate` carries them on as padding. Both stop at the same longest length. With these weights the word comes once
  in about 32 tokens, so that answers have about 28 of at most 64.
- `transformers` runs in the fastest of its settings: experts eager, grouped_mm, batched_mm; attention sdpa or eager; a
  dynamic or a static cache. A round at 16 new tokens picks the three that are timed beside ours.
- One thread, CPU time, rounds alternate, medians. `rollout` also returns the log-probability of each token and the
  mean entropy, which GRPO needs; `generate` is not asked for its logits.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
import warnings
from pathlib import Path

import torch
from transformers_speed import ATTENTION, CACHES, EXPERTS, Step, hf_model, medians

from minids.config import policy
from minids.hf import to_hf
from minids.model import Transformer
from minids.rollout import rollout

PROMPTS, GROUP, LENGTH, WORDS = 32, 16, 10, 32


def ours(model: Transformer, prompts: torch.Tensor, new: int, end: int) -> Step:
    dice = torch.Generator().manual_seed(0)
    return lambda: rollout(model, prompts, GROUP, new, end, pad=0, generator=dice).tokens


def theirs(model, prompts: torch.Tensor, new: int, end: int, cache: str) -> Step:
    model.generation_config.eos_token_id = end if end in range(WORDS) else None
    how = {} if cache == "dynamic" else {"cache_implementation": "static"}

    @torch.inference_mode()
    def step():
        return model.generate(
            prompts, attention_mask=torch.ones_like(prompts), do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
            num_return_sequences=GROUP, max_new_tokens=new, pad_token_id=0, **how,
        )  # fmt: skip

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    quick = parser.parse_args().quick
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    model = Transformer(policy(WORDS)).eval()
    prompts = torch.randint(1, WORDS, (PROMPTS, LENGTH))
    print(
        f"torch {torch.__version__}, transformers {transformers.__version__}, {torch.backends.cpu.get_cpu_capability()}"
    )
    print("| new tokens | rows | transformers' fastest setting | ms | minids, ms | ratio |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as directory:
        to_hf(model, Path(directory), mtp="drop")
        loaded = {(e, a): hf_model(Path(directory), e, a) for e, a in itertools.product(EXPERTS, ATTENTION)}
        arms = list(itertools.product(EXPERTS, ATTENTION, CACHES))
        search = medians({arm: theirs(loaded[arm[:2]], prompts, 16, -1, arm[2]) for arm in arms}, 1, time.process_time)
        finalists = sorted(search, key=search.__getitem__)[:3]
        for new, end in ((16, -1), (64, -1), (64, 1)):  # no token is -1
            them = {arm: theirs(loaded[arm[:2]], prompts, new, end, arm[2]) for arm in finalists}
            steps = {"minids": ours(model, prompts, new, end), **them}
            seconds = medians(steps, 3 if quick else 9, time.process_time)
            best = min(finalists, key=seconds.__getitem__)
            slow, fast = (1e3 * seconds[name] for name in (best, "minids"))
            rows = "all to the end" if end < 0 else "end by themselves"
            print(f"| {new} | {rows} | {', '.join(best)} | {slow:.0f} | {fast:.0f} | {slow / fast:.2f} |", flush=True)


if __name__ == "__main__":
    main()
