"""Counts equal the published ones to the last digit, and the modules that are really built."""

import pytest
import torch

from minids import costs
from minids.config import preset, tiny, v2, v2_lite, v3
from minids.model import Transformer


def test_v3_has_671026419200_parameters_and_its_mtp_module_adds_11610068224():
    p = costs.params(v3())
    assert (p.total, p.mtp) == (671_026_419_200, 11_610_068_224)
    # arXiv 2412.19437 says 37 B; only leaving out the input embedding gives 36.6
    assert (p.activated, p.activated_with_embedding) == (36_625_618_432, 37_552_297_472)


def test_v2_and_v2_lite_have_the_parameters_that_their_paper_says():
    assert (costs.params(v2()).total, costs.params(v2()).activated) == (235_741_434_880, 20_851_512_320)
    assert (costs.params(v2_lite()).total, costs.params(v2_lite()).activated) == (15_706_484_224, 2_451_435_008)


def test_v3_parts_have_the_published_sizes():
    assert costs.attention_params(v3()) == 187_107_328
    assert costs.expert_params(v3()) == 44_040_192
    assert costs.gate_params(v3()) == 1_835_264
    assert 9 * costs.expert_params(v3()) == 3 * 7168 * 18432  # nine experts are one dense FFN


@pytest.mark.parametrize("name", ["tiny", "dense_active", "dense_total", "v2_lite", "v2", "v3"])
def test_the_formula_counts_what_the_module_holds(name):
    cfg = preset(name)
    with torch.device("meta"):
        model = Transformer(cfg)
    held = sum(p.numel() for p in model.parameters()) + sum(b.numel() for n, b in model.named_buffers() if "bias" in n)
    p = costs.params(cfg)
    assert held == p.total + p.mtp
    assert sum(q.numel() for q in model.layers[-1].attn.parameters()) == costs.attention_params(cfg)


def test_cache_bytes_a_token_are_those_of_the_papers():
    # arXiv 2505.09343 table 1: 70.272 KB; arXiv 2405.04434 table 9: 15.6 K and 34.6 K values
    assert costs.kv_bytes_per_token(v3()) == 70_272
    assert costs.kv_bytes_per_token(v2_lite(), 1) == 15_552
    assert costs.kv_bytes_per_token(v2(), 1) == 34_560


def test_the_formula_of_cache_bytes_is_what_the_cache_really_holds():
    for name in ("tiny", "dense_active"):
        model = Transformer(preset(name))
        held = sum(c.nbytes_per_token for c in model.new_cache(3, 7))
        assert held == costs.kv_bytes_per_token(model.cfg, bytes_per_value=4)


def test_training_cost_is_the_papers_5576000_dollars():
    assert sum(costs.H800_HOURS.values()) == 2_788_000
    assert costs.training_dollars() == 5_576_000


def test_operations_are_two_a_weight_and_the_attention_grows_with_the_context():
    c = tiny()
    p = costs.params(c)
    at0, at100 = costs.forward_flops_per_token(c), costs.forward_flops_per_token(c, 100)
    assert at0 == 2 * (p.activated - p.norms)
    assert at100 - at0 == 2 * 100 * 6 * 4 * (32 + 16 + 32)


def test_the_dense_rivals_match_tiny_within_six_percent():
    t, a, d = (costs.params(preset(n)) for n in ("tiny", "dense_active", "dense_total"))
    assert a.activated == pytest.approx(t.activated, rel=0.06)
    assert d.total == pytest.approx(t.total, rel=0.06)
