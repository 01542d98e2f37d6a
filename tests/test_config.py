"""Configs refuse sizes that do not fit, and say the rule, the values and the remedy."""

from dataclasses import FrozenInstanceError, replace

import pytest

from minids.config import PRESETS, preset, tiny, v3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_expert_groups": 3}, r"n_expert_groups must divide n_routed_experts; got n_routed_experts=16, .*=3"),
        ({"n_limited_groups": 5}, r"n_limited_groups lies between 1 and n_expert_groups"),
        ({"n_activated_experts": 9}, r"must fit into its groups.*9 > 2 x 4"),
        ({"n_expert_groups": 16, "n_limited_groups": 8}, r"a group needs two"),
        ({"qk_rope_head_dim": 15}, r"must be even.*qk_rope_head_dim=15"),
        ({"n_dense_layers": 7}, r"n_dense_layers.*n_layers=6"),
        ({"attn": "gqa", "n_kv_heads": 3}, r"n_kv_heads must divide n_heads"),
        ({"attn": "linear"}, r'attn is "mla" or "gqa"; got attn=\'linear\''),
        ({"score_func": "tanh"}, r"score_func is"),
        ({"rope_factor": 0.5}, r"rope_factor must be at least 1"),
        ({"dim": 0}, r"dim must be positive"),
        ({"moe_inter_dim": 0}, r"needs n_routed_experts > 0 and moe_inter_dim > 0"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_with_the_rule_and_the_values(change, message):
    with pytest.raises(ValueError, match=message):
        replace(tiny(), **change)


def test_an_unknown_preset_is_answered_with_the_ones_there_are():
    with pytest.raises(ValueError, match=r"no preset 'v4'.*tiny.*v3"):
        preset("v4")


def test_presets_are_found_by_name_and_cannot_be_changed_in_place():
    assert preset("V2-Lite") == PRESETS["v2_lite"]()
    with pytest.raises(FrozenInstanceError):
        v3().dim = 1  # type: ignore[misc]


def test_in_v3_and_in_tiny_one_shared_and_k_routed_experts_are_as_wide_as_the_dense_ffn():
    for c in (v3(), tiny()):
        assert (c.n_shared_experts + c.n_activated_experts) * c.moe_inter_dim == c.inter_dim
