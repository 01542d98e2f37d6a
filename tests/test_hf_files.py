"""The Hugging Face format: what is damaged or cannot be represented is refused, with its name and a remedy."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from minids.config import Config
from minids.hf import from_hf, to_hf
from minids.model import Transformer

SMALL = Config(
    vocab_size=89, dim=36, n_layers=3, n_dense_layers=1, inter_dim=52, n_heads=3, q_lora_rank=20, kv_lora_rank=18,
    qk_nope_head_dim=10, qk_rope_head_dim=8, v_head_dim=14, moe_inter_dim=16, n_routed_experts=12, n_shared_experts=2,
    n_activated_experts=4, n_expert_groups=4, n_limited_groups=2, n_mtp_modules=1, max_seq_len=96, original_seq_len=96,
)  # fmt: skip


def ours() -> Transformer:
    return Transformer(SMALL).eval()


def edit(directory: Path, **changes) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_the_older_rope_scaling_reads_like_rope_parameters(tmp_path):
    rope = {"factor": 4.0, "original_max_position_embeddings": 24, "mscale": 1.3, "mscale_all_dim": 0.7}
    to_hf(ours(), tmp_path)
    edit(tmp_path, rope_theta=500.0, rope_scaling={"type": "yarn", **rope})
    old = from_hf(tmp_path).cfg
    edit(tmp_path, rope_theta=None, rope_scaling=None,
         rope_parameters={"rope_type": "yarn", "rope_theta": 500.0, **rope})  # fmt: skip
    assert from_hf(tmp_path).cfg == old
    assert (old.rope_theta, old.rope_factor, old.original_seq_len, old.mscale) == (500.0, 4.0, 24, 1.3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "llama"}, "model_type must be deepseek_v3 or deepseek_v2; got 'llama'"),
        ({"attention_bias": True}, "attention_bias must be False.*got True"),
        ({"hidden_act": "gelu"}, "hidden_act must be 'silu'.*got 'gelu'"),
        ({"num_key_value_heads": 1}, "num_key_value_heads must be 3.*got 1"),
        ({"moe_layer_freq": 2}, "moe_layer_freq must be 1"),
        ({"scoring_func": "softmax"}, "scoring_func must be 'sigmoid'"),
        ({"quantization_config": {"quant_method": "fp8"}}, "in bf16 or fp32; got .*fp8.*Dequantise.*weight_scale_inv"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, '"default" or "yarn"; got \'linear\''),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0, "attention_factor": 3.0}}, "_factor must be .*got 3.0"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0, "truncate": False}}, "truncate must be True; got False"),
        ({"hidden_size": None}, "must give every size; hidden_size missing"),
        ({"n_group": None}, "n_group missing"),
        ({"n_group": 5}, "n_expert_groups must divide n_routed_experts"),
        ({"num_hidden_layers": 4}, r"model.layers.3.input_layernorm.weight is missing"),
        ({"kv_lora_rank": 17}, r"kv_a_proj_with_mqa.weight must have the shape \[25, 36\].*got \[26, 36\]"),
        ({"model_type": "deepseek_v2", "scoring_func": None, "topk_method": "greedy"}, "norm_topk_prob must be False"),
    ],
)  # fmt: skip
def test_a_config_that_cannot_be_represented_is_refused_with_its_reason(changes, message, tmp_path):
    to_hf(ours(), tmp_path, mtp="drop")
    edit(tmp_path, **changes)
    with pytest.raises(ValueError, match=message):
        from_hf(tmp_path)


def test_damaged_directories_are_refused_by_name(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds config.json; .*save_pretrained"):
        from_hf(tmp_path)
    to_hf(ours(), tmp_path)
    weights = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[:-100])
    with pytest.raises(ValueError, match=r"whole safetensors files; got model.safetensors.*Copy it again"):
        from_hf(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="has neither"):
        from_hf(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config.json must be JSON"):
        from_hf(tmp_path)


def test_a_missing_tensor_and_a_missing_shard_are_named(tmp_path):
    to_hf(ours(), tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    gone = "model.layers.1.mlp.experts.7.up_proj.weight"
    save_file({k: v for k, v in weights.items() if k != gone}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=gone.replace(".", r"\.") + " is missing"):
        from_hf(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    index = {"weight_map": dict.fromkeys(weights, "model-00002-of-00002.safetensors")}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(FileNotFoundError, match=r"model-00002-of-00002.safetensors.*missing shard"):
        from_hf(tmp_path)


def test_fp8_tensors_and_left_over_tensors_are_reported(tmp_path):
    to_hf(ours(), tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    save_file(weights | {"model.layers.0.extra": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.warns(UserWarning, match=r"1 tensors .* not used, among them model.layers.0.extra"):
        from_hf(tmp_path)
    key = "model.layers.0.mlp.down_proj.weight"
    save_file(weights | {key: weights[key].to(torch.float8_e4m3fn)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"got F8_E4M3 in model.layers.0.mlp.down_proj.weight"):
        from_hf(tmp_path)


def test_models_that_the_format_cannot_hold_are_refused_before_anything_is_written(tmp_path):
    gqa = replace(SMALL, attn="gqa", n_kv_heads=1, qk_nope_head_dim=0, qk_rope_head_dim=14)
    for cfg, message in ((gqa, "holds MLA models; got attn='gqa'"),
                         (replace(SMALL, score_func="softmax"), "softmax gate without normalisation")):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            to_hf(Transformer(cfg), tmp_path / "new")
    with pytest.raises(ValueError, match="mtp is"):
        to_hf(ours(), tmp_path / "new", mtp="somewhere")
    assert not (tmp_path / "new").exists()


def test_a_failed_export_leaves_the_old_files(tmp_path, monkeypatch):
    to_hf(ours(), tmp_path)
    before = {f.name: f.read_bytes() for f in tmp_path.iterdir()}

    def full(*args):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="no space"):
        to_hf(ours(), tmp_path)
    assert {f.name: f.read_bytes() for f in tmp_path.iterdir()} == before
