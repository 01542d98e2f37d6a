"""RoPE against rotation matrices; YaRN against the published numbers and transformers' own frequencies."""

import math
from dataclasses import replace

import pytest
import torch

from minids import rope
from minids.config import tiny, v2_lite, v3


def test_each_pair_of_neighbours_is_turned_by_position_times_frequency():
    cfg = replace(tiny(), qk_rope_head_dim=6, max_seq_len=9)
    freqs = rope.precompute_freqs_cis(cfg)
    x = torch.randn(2, 9, 3, 6)
    got = rope.apply_rotary_emb(x, freqs)
    for s in range(9):
        for i in range(3):
            angle = s * 10000 ** (-2 * i / 6)
            turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
            torch.testing.assert_close(got[:, s, :, 2 * i : 2 * i + 2], x[:, s, :, 2 * i : 2 * i + 2] @ turn.T)


def test_a_dot_product_depends_on_the_distance_of_two_positions_alone():
    freqs = rope.precompute_freqs_cis(replace(tiny(), max_seq_len=64))
    q, k = torch.randn(1, 1, 1, 16), torch.randn(1, 1, 1, 16)

    def dot(s: int, t: int) -> torch.Tensor:
        turned = [rope.apply_rotary_emb(x, freqs[p : p + 1]) for x, p in ((q, s), (k, t))]
        return (turned[0] * turned[1]).sum()

    torch.testing.assert_close(dot(5, 2), dot(60, 57))
    assert (dot(5, 2) - dot(5, 3)).abs() > 1e-3


def test_v3_bends_pairs_10_to_23_and_scales_the_softmax_by_1_8738542():
    cfg = v3()
    assert rope.yarn_range(64, cfg) == (10, 23)
    f, g = rope.inv_freq(64, cfg.rope_theta), rope.yarn_freq(64, cfg)
    torch.testing.assert_close(g[:11], f[:11], rtol=0, atol=0)  # fast pairs stay
    torch.testing.assert_close(g[23:], f[23:] / 40)  # slow pairs are slowed
    assert rope.softmax_mscale(cfg) == pytest.approx(1.8738542, abs=1e-7)
    assert rope.rotary_mscale(cfg) == 1.0
    assert 192**-0.5 * rope.softmax_mscale(v2_lite()) == pytest.approx(0.1147214, abs=1e-7)


def test_without_scaling_nothing_is_bent_and_the_temperature_is_one():
    torch.testing.assert_close(rope.yarn_freq(16, tiny()), rope.inv_freq(16, 10000.0), rtol=0, atol=0)
    assert rope.softmax_mscale(tiny()) == rope.rotary_mscale(tiny()) == 1.0


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"rope_factor": 4.0, "original_seq_len": 512},
        {"beta_fast": 16.0, "beta_slow": 2.0},
        {"rope_theta": 500000.0, "mscale_all_dim": 0.0},
        {"qk_rope_head_dim": 8, "original_seq_len": 30_000},  # the ramp ends beyond the last pair
        {"qk_rope_head_dim": 8, "original_seq_len": 16, "mscale": 0.707, "mscale_all_dim": 0.5},
    ],
)
def test_frequencies_and_rotary_scale_equal_those_of_transformers(change):
    from transformers import DeepseekV3Config
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    cfg = replace(v3(), **change)
    rope_parameters = {
        "rope_type": "yarn", "rope_theta": cfg.rope_theta, "factor": cfg.rope_factor, "beta_fast": cfg.beta_fast,
        "beta_slow": cfg.beta_slow, "mscale": cfg.mscale, "mscale_all_dim": cfg.mscale_all_dim,
        "original_max_position_embeddings": cfg.original_seq_len,
    }  # fmt: skip
    hf = DeepseekV3Config(
        qk_rope_head_dim=cfg.qk_rope_head_dim, qk_nope_head_dim=cfg.qk_nope_head_dim, rope_parameters=rope_parameters,
        max_position_embeddings=int(cfg.original_seq_len * cfg.rope_factor),
    )  # fmt: skip
    want, factor = ROPE_INIT_FUNCTIONS["yarn"](hf, "cpu")
    torch.testing.assert_close(rope.yarn_freq(cfg.qk_rope_head_dim, cfg), want, rtol=1e-6, atol=0)
    assert rope.rotary_mscale(cfg) == pytest.approx(factor)
