"""The FP8 cache: the published size, the published layout, an error bounded by the format, and the same interface."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from minids import checkpoint
from minids.config import tiny
from minids.fp8 import E4M3
from minids.generate import generate
from minids.kv8 import Fp8LatentCache, new_fp8_cache
from minids.mla import LatentCache
from minids.model import Transformer


def test_a_token_of_v3_takes_656_bytes_against_1152_in_bf16() -> None:
    assert Fp8LatentCache(1, 2, 512, 64).nbytes_per_token == 656
    assert LatentCache(1, 2, 512 + 64, dtype=torch.bfloat16).nbytes_per_token == 1152


@pytest.mark.parametrize("C", [48, 128, 300])
def test_what_is_read_back_is_each_tile_rounded_by_its_own_scale(C: int) -> None:
    dice = torch.Generator().manual_seed(C)
    c, k_pe = torch.randn(2, 3, C, generator=dice), torch.randn(2, 3, 6, generator=dice)
    c[..., :128] *= 1000  # a second tile must not feel the first one's size
    got = Fp8LatentCache(2, 5, C, 6).append(c, k_pe)
    for b in range(2):
        for t in range(3):
            for start in range(0, C, 128):
                tile = c[b, t, start : start + 128]
                s = tile.abs().max() / 448
                torch.testing.assert_close(got[b, t, start : min(start + 128, C)], E4M3.round(tile / s) * s)
    assert torch.equal(got[..., C:], k_pe.bfloat16().float())


def test_no_value_is_off_by_more_than_a_sixteenth_of_itself_or_half_the_smallest_step() -> None:
    c = torch.randn(1, 50, 256, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 3, 50)[:, None]
    got = Fp8LatentCache(1, 50, 256, 2).append(c, torch.zeros(1, 50, 2))[..., :256]
    s = c.view(1, 50, 2, 128).abs().amax(-1, keepdim=True).expand(1, 50, 2, 128).reshape_as(c) / 448
    assert ((got - c).abs() <= torch.maximum(c.abs() / 16, s * 2**-10) * 1.001).all()


def test_steps_write_what_one_call_writes_and_a_shorter_length_forgets() -> None:
    dice = torch.Generator().manual_seed(1)
    c, k_pe = torch.randn(2, 7, 20, generator=dice), torch.randn(2, 7, 4, generator=dice)
    once, steps = Fp8LatentCache(2, 9, 20, 4), Fp8LatentCache(2, 9, 20, 4)
    want = once.append(c, k_pe)
    steps.append(torch.ones(2, 2, 20), torch.ones(2, 2, 4))
    steps.length = 0
    for i in range(7):
        got = steps.append(c[:, i : i + 1], k_pe[:, i : i + 1])
    assert torch.equal(got, want)
    with pytest.raises(ValueError):
        once.append(c, k_pe)


def test_a_trained_model_says_nearly_the_same_over_it_in_a_third_of_the_bytes() -> None:
    model = checkpoint.load_model(checkpoint.shipped())[0]
    ids = torch.randint(2048, (1, 60), generator=torch.Generator().manual_seed(0))
    full, small = model.new_cache(1, 60), new_fp8_cache(model, 1, 60)
    with torch.no_grad():
        p, q = model(ids, full).softmax(-1), model(ids, small).softmax(-1)
    assert 1e-5 < (p - q).abs().sum(-1).mean() < 0.1
    assert small[0].nbytes_per_token == 48 + 4 + 32 and full[0].nbytes_per_token == 4 * 64  # type: ignore[union-attr]


def test_generate_takes_it_as_a_form_of_the_attention() -> None:
    model = Transformer(replace(tiny(), vocab_size=31, n_layers=2), torch.Generator().manual_seed(0)).eval()
    tokens = generate(model, [[1, 2, 3], [4, 5, 6], [7, 8]], 5, temperature=0, impl="fp8")
    cache, text = new_fp8_cache(model, 1, 9), [7, 8]
    with torch.no_grad():  # the last prompt once more, token by token
        text.append(int(model(torch.tensor([text]), cache, "latent")[0, -1].argmax()))
        while len(text) < 7:
            text.append(int(model(torch.tensor([text[-1:]]), cache)[0, -1].argmax()))
    assert tokens[2] == text[2:]


def test_a_model_without_latents_is_refused() -> None:
    heads = {"attn": "gqa", "n_kv_heads": 2, "qk_nope_head_dim": 0, "qk_rope_head_dim": 8, "v_head_dim": 8}
    gqa = Transformer(
        replace(tiny(), vocab_size=31, n_layers=1, q_lora_rank=0, kv_lora_rank=0, n_mtp_modules=0, **heads)
    )
    with pytest.raises(ValueError, match="holds latents; got attn='gqa'"):
        new_fp8_cache(gqa, 1)
