"""MLA against the paper's equations written as loops; its three forms are one function."""

import math
from dataclasses import replace

import pytest
import torch

from minids.config import tiny
from minids.mla import MLA, SlotCache, query_mask
from minids.model import Transformer
from minids.rope import precompute_freqs_cis

SMALL = replace(tiny(), dim=24, n_heads=3, q_lora_rank=10, kv_lora_rank=7, qk_nope_head_dim=6, qk_rope_head_dim=4,
                v_head_dim=5, max_seq_len=32)  # fmt: skip
NO_QUERY_LATENT = replace(SMALL, q_lora_rank=0)
YARN = replace(SMALL, rope_factor=8.0, original_seq_len=16)


def rms(x):
    return x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()


def turn(x, position, R):
    pairs = torch.view_as_complex(x.reshape(-1, 2).contiguous())
    angle = position * 10000 ** (-torch.arange(0, R, 2).double() / R)
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angle), angle)).flatten()


def paper(attn: MLA, h):
    """Eq. 1-11 of section 2.1.1, one token and one head at a time; norms' weights are 1."""
    T, (H, N, R, V, C) = len(h), (attn.H, attn.N, attn.R, attn.V, attn.C)
    w_dkv, w_kr = attn.wkv_a.weight[:C], attn.wkv_a.weight[C:]
    per_head = attn.wkv_b.weight.view(H, N + V, C)
    w_uk, w_uv = per_head[:, :N], per_head[:, N:]
    c = rms(h @ w_dkv.T)
    k_r = torch.stack([turn(w_kr @ h[t], t, R) for t in range(T)])
    q = (rms(h @ attn.wq_a.weight.T) @ attn.wq_b.weight.T).view(T, H, N + R)
    out = torch.zeros(T, H, V, dtype=h.dtype)
    for t in range(T):
        for i in range(H):
            q_ti = torch.cat([q[t, i, :N], turn(q[t, i, N:], t, R)])
            k = torch.stack([torch.cat([w_uk[i] @ c[j], k_r[j]]) for j in range(t + 1)])
            p = torch.softmax(k @ q_ti / (N + R) ** 0.5, 0)
            out[t, i] = sum(p[j] * (w_uv[i] @ c[j]) for j in range(t + 1))
    return out.flatten(1) @ attn.wo.weight.T


@pytest.mark.parametrize("impl", ["naive", "absorb"])
def test_mla_is_the_papers_equations_1_to_11(impl):
    attn, h = MLA(SMALL).double(), torch.randn(6, 24).double()
    freqs = precompute_freqs_cis(SMALL)[:6].to(torch.complex128)
    torch.testing.assert_close(attn(h[None], freqs, impl=impl)[0], paper(attn, h), rtol=1e-5, atol=1e-6)  # fp32 angles


@pytest.mark.parametrize("cfg", [SMALL, NO_QUERY_LATENT, YARN], ids=["v3", "no query latent", "yarn"])
@pytest.mark.parametrize("impl", ["naive", "latent", "absorb"])
def test_the_three_forms_agree_at_prefill_and_step_by_step(cfg, impl):
    attn, freqs, x = MLA(cfg), precompute_freqs_cis(cfg), torch.randn(2, 11, 24)
    want = attn(x, freqs[:11])
    torch.testing.assert_close(attn(x, freqs[:11], impl=impl), want, atol=1e-5, rtol=1e-5)
    cache = attn.new_cache(2, 11, impl)
    got = [attn(x[:, a:b], freqs[a:b], cache, impl) for a, b in ((0, 5), (5, 6), (6, 7), (7, 11))]
    torch.testing.assert_close(torch.cat(got, 1), want, atol=1e-5, rtol=1e-5)


def test_a_query_mask_lets_the_heads_of_a_token_look_up_to_itself():
    mask = query_mask(torch.tensor([2, 3]), 5, heads=3, dtype=torch.float64)
    assert mask.shape == (1, 6, 5) and mask.dtype == torch.float64
    assert (mask[0] == 0).int().tolist() == [[1, 1, 1, 0, 0]] * 3 + [[1, 1, 1, 1, 0]] * 3
    assert mask.min() == float("-inf")


def test_one_mask_made_before_the_step_serves_a_layer_as_its_own_does():
    attn, freqs, x = MLA(SMALL), precompute_freqs_cis(SMALL), torch.randn(2, 7, 24)
    given, own = attn.new_cache(2, 7), attn.new_cache(2, 7)
    for a, b in ((0, 4), (4, 7)):
        mask = given.mask(b - a, 3, torch.float32)  # type: ignore[union-attr]
        got = attn(x[:, a:b], freqs[a:b], given, "absorb", mask)
        torch.testing.assert_close(got, attn(x[:, a:b], freqs[a:b], own, "absorb"))


def test_the_softmax_scale_counts_nope_and_rope_features_and_yarns_temperature():
    assert MLA(SMALL).scale == pytest.approx(10**-0.5)
    assert MLA(YARN).scale == pytest.approx(10**-0.5 * (0.1 * math.log(8) + 1) ** 2)


def test_the_latent_cache_holds_c_plus_r_values_and_the_naive_one_every_head():
    attn = MLA(SMALL)
    assert attn.new_cache(2, 5, "absorb").nbytes_per_token == (7 + 4) * 4
    assert attn.new_cache(2, 5, "naive").nbytes_per_token == 3 * (6 + 4 + 5) * 4


def test_an_output_does_not_depend_on_later_tokens():
    attn, freqs, x = MLA(SMALL), precompute_freqs_cis(SMALL)[:8], torch.randn(1, 8, 24)
    changed = x.clone()
    changed[:, 5:] += 1
    for impl in ("naive", "absorb"):
        a, b = attn(x, freqs, impl=impl), attn(changed, freqs, impl=impl)
        torch.testing.assert_close(a[:, :5], b[:, :5])
        assert not torch.allclose(a[:, 5:], b[:, 5:])


def test_a_cache_of_another_form_and_an_unknown_form_are_refused():
    attn, freqs = MLA(SMALL), precompute_freqs_cis(SMALL)[:3]
    with pytest.raises(ValueError, match=r"got impl='absorb' with a KVCache.*new_cache"):
        attn(torch.randn(1, 3, 24), freqs, attn.new_cache(1, 8, "naive"), "absorb")
    with pytest.raises(ValueError, match="impl is one of naive, latent, absorb; got 'fast'"):
        attn.new_cache(1, 8, "fast")


def test_rows_of_different_lengths_decode_together_as_each_would_alone() -> None:
    model = Transformer(replace(tiny(), vocab_size=61, n_layers=2), torch.Generator().manual_seed(5)).eval()
    dice, texts = torch.Generator().manual_seed(6), []
    width, cfg = model.cfg.kv_lora_rank + model.cfg.qk_rope_head_dim, model.cfg
    slots = [SlotCache(3, 20, width) for _ in range(cfg.n_layers)]
    for row, n in enumerate((4, 11, 7)):
        texts.append(torch.randint(61, (n,), generator=dice))
        alone = model.new_cache(1, n)
        model.hidden(texts[row][None], alone, "latent")
        for slot, layer in zip(slots, alone, strict=True):
            slot.kv[row, :n], slot.lengths[row] = layer.kv[0], n  # type: ignore[union-attr]
    for S in (1, 3, 1):
        new = torch.randint(61, (3, S), generator=dice)
        with torch.no_grad():
            got = model(new, slots, "absorb")
        texts = [torch.cat(pair) for pair in zip(texts, new, strict=True)]
        for row, text in enumerate(texts):
            with torch.no_grad():
                torch.testing.assert_close(got[row], model(text[None])[0, -S:], atol=1e-5, rtol=1e-4)
    assert slots[0].lengths.tolist() == [9, 16, 12] and slots[0].length == 16
    with pytest.raises(ValueError, match=r"16 \+ 5 > 20"):
        model(torch.randint(61, (3, 5), generator=dice), slots, "absorb")
