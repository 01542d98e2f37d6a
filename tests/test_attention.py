"""MHA, GQA and MQA against loops over heads and tokens; a cache changes nothing."""

from dataclasses import replace

import pytest
import torch

from minids.attention import GQA, attend, causal_mask
from minids.config import dense_active
from minids.model import Transformer
from minids.rope import precompute_freqs_cis


def looped(q, k, v, scale):
    """softmax(scale q k) v, one head and one query at a time; the queries are the last of the positions."""
    B, S, H, _ = q.shape
    T, shared = k.shape[1], H // k.shape[2]
    out = torch.zeros(B, S, H, v.shape[-1])
    for b in range(B):
        for s in range(S):
            for h in range(H):
                seen = T - S + s + 1
                p = torch.softmax(scale * k[b, :seen, h // shared] @ q[b, s, h], 0)
                out[b, s, h] = p @ v[b, :seen, h // shared]
    return out


@pytest.mark.parametrize(("S", "T"), [(5, 5), (3, 7), (1, 4)])
@pytest.mark.parametrize(("Hk", "Dk", "Dv"), [(6, 8, 8), (2, 10, 4), (1, 4, 6)])
def test_attention_equals_a_loop_over_heads_and_tokens(S, T, Hk, Dk, Dv):
    q, k, v = torch.randn(2, S, 6, Dk), torch.randn(2, T, Hk, Dk), torch.randn(2, T, Hk, Dv)
    torch.testing.assert_close(attend(q, k, v, 0.3), looped(q, k, v, 0.3))


def test_the_causal_mask_is_aligned_to_the_end_of_the_keys():
    assert causal_mask(2, 4).int().tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_decoding_with_a_cache_gives_the_outputs_of_no_cache(kv_heads):
    cfg = replace(dense_active(), n_kv_heads=kv_heads)
    attn, freqs, x = GQA(cfg), precompute_freqs_cis(cfg), torch.randn(3, 9, cfg.dim)
    want = attn(x, freqs[:9])
    cache = attn.new_cache(3, 9)
    parts = [(0, 4), (4, 5), (5, 9)]
    got = torch.cat([attn(x[:, a:b], freqs[a:b], cache) for a, b in parts], 1)
    torch.testing.assert_close(got, want)
    assert cache.nbytes_per_token == 2 * kv_heads * 32 * 4


def test_a_full_cache_says_how_to_make_a_longer_one():
    model = Transformer(dense_active())
    cache = model.new_cache(1, 4)
    with pytest.raises(ValueError, match=r"got 0 \+ 5 > 4.*new_cache"):
        model(torch.zeros(1, 5, dtype=torch.long), cache)
