"""On a GPU the same numbers as on the processor. Skipped without one.

tests/benchmarks/README.md says when they last ran, and on which.
"""

import copy
import dataclasses

import pytest
import torch

from minids.config import tiny
from minids.corpus import Packed
from minids.generate import generate
from minids.kv8 import new_fp8_cache
from minids.model import Transformer
from minids.recipe import TrainConfig
from minids.run import Run
from minids.speculate import speculate
from minids.tokenizer import default_tokenizer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
SMALL = dataclasses.replace(tiny(), n_layers=3)
PROMPT = [5, 17, 300, 44, 8, 1000, 21]


@pytest.fixture
def pair():
    """The same weights on the processor and on the GPU."""
    model = Transformer(SMALL, torch.Generator().manual_seed(0)).eval()
    return model, copy.deepcopy(model).to("cuda")


def started(device, **options):
    cfg = TrainConfig(**{"steps": 6, "batch_size": 2, "seq_len": 64, "moments": "bf16"} | options)
    return Run(SMALL, cfg, Packed(default_tokenizer(), 64), torch.device(device), lambda: 0.0)


def advanced(run, steps):
    return [run.advance()["main"] for _ in range(steps)]


def test_losses_and_gradients_are_those_of_the_processor(pair):
    tokens, found = torch.randint(0, 2048, (3, 66)), []
    for model in pair:
        losses = model.losses(tokens.to(model.embed.weight.device))
        (losses.main + losses.mtp + losses.balance).backward()
        found.append(losses)
    for name in ("main", "mtp", "balance"):
        torch.testing.assert_close(getattr(found[1], name).cpu(), getattr(found[0], name), rtol=1e-5, atol=1e-6)
    assert torch.equal(found[1].load.cpu(), found[0].load)
    for a, b in zip(pair[0].parameters(), pair[1].parameters(), strict=True):
        if a.grad is not None:
            torch.testing.assert_close(b.grad.cpu(), a.grad, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "fp8"])
def test_training_follows_the_processor(precision):
    want, got = (advanced(started(device, precision=precision), 4) for device in ("cpu", "cuda"))
    assert got == pytest.approx(want, rel=2e-3)


def test_a_run_in_bf16_learns_and_goes_on_where_it_stopped(tmp_path):
    run = started("cuda", precision="bf16")
    first = advanced(run, 4)
    run.save(tmp_path)
    want = advanced(run, 2)
    again = started("cuda", precision="bf16")
    assert again.resume(tmp_path) and again.step == 4
    assert advanced(again, 2) == pytest.approx(want, rel=1e-3)
    assert want[-1] < first[0]


@pytest.mark.parametrize("impl", ["naive", "latent", "absorb"])
def test_greedy_text_is_that_of_the_processor(pair, impl):
    assert generate(pair[1], PROMPT, 24, 0.0, impl=impl) == generate(pair[0], PROMPT, 24, 0.0)


def test_sampling_takes_dice_of_the_gpu(pair):
    dice = torch.Generator("cuda").manual_seed(0)
    assert len(generate(pair[1], [PROMPT, PROMPT[::-1]], 8, 0.8, 0.9, 0.5, generator=dice)[1]) == 8


def test_speculation_writes_the_plain_text(pair):
    text, fate = speculate(pair[1], PROMPT, 24, drafts=2)
    assert text == generate(pair[1], PROMPT, 24, 0.0) and fate.cycles > 0


def test_an_fp8_cache_lies_where_the_weights_lie(pair):
    caches = new_fp8_cache(pair[1], 1, 16)
    h, _ = pair[1].hidden(torch.tensor([PROMPT], device="cuda"), caches, "absorb")
    assert h.isfinite().all() and caches[0].kv.is_cuda
