"""The Hugging Face format: `transformers` and minids compute the same logits from the same files, both ways."""

from __future__ import annotations

import json
import subprocess
import sys
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from minids.config import PRESETS, Config, tiny
from minids.hf import from_hf, hf_names, interleaved, to_hf
from minids.hf_config import config_from_hf, config_to_hf
from minids.model import Transformer
from minids.mtp import shifted
from minids.tokenizer import default_tokenizer

transformers = pytest.importorskip("transformers", reason="pip install minids[hf]")

V3 = {
    "vocab_size": 97, "hidden_size": 40, "intermediate_size": 56, "moe_intermediate_size": 24, "num_hidden_layers": 3,
    "num_attention_heads": 3, "num_key_value_heads": 3, "n_shared_experts": 2, "n_routed_experts": 12,
    "q_lora_rank": 22, "kv_lora_rank": 18, "qk_rope_head_dim": 8, "v_head_dim": 14, "qk_nope_head_dim": 10,
    "n_group": 4, "topk_group": 2, "num_experts_per_tok": 3,
    "first_k_dense_replace": 1, "max_position_embeddings": 192, "initializer_range": 0.2, "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}, "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 48,
        "beta_fast": 8.0, "beta_slow": 1.0}  # fmt: skip
V2 = {key: value for key, value in V3.items() if key not in ("n_group", "topk_group")} | {"num_attention_heads": 4,
      "num_key_value_heads": 4}  # fmt: skip
VARIANTS = {
    "plain": {},
    "no query compression": {"q_lora_rank": None},
    "half rope": {"rope_interleave": False},
    "half rope without query compression": {"rope_interleave": False, "q_lora_rank": None},
    "yarn": {"rope_parameters": YARN | {"mscale": 1.0, "mscale_all_dim": 1.0}},
    "yarn, half rope": {"rope_parameters": YARN | {"mscale": 1.0, "mscale_all_dim": 1.0}, "rope_interleave": False},
    "yarn, mscales differ": {"rope_parameters": YARN | {"mscale": 1.3, "mscale_all_dim": 0.7}},
    "yarn without mscale": {"rope_parameters": YARN},
    "yarn, mscale alone": {"rope_parameters": YARN | {"mscale": 0.7}},
    "yarn, mscale_all_dim alone": {"rope_parameters": YARN | {"mscale_all_dim": 0.7}},
    "yarn of factor 1": {"rope_parameters": YARN | {"factor": 1.0}},
    "weights not normalised": {"norm_topk_prob": False, "routed_scaling_factor": 1.7},
    "one group": {"n_group": 1, "topk_group": 1, "n_shared_experts": 1},
    "all layers dense": {"first_k_dense_replace": 3},
    "no layer dense": {"first_k_dense_replace": 0},
}
V2_VARIANTS = {
    "greedy": {},
    "group limited": {
        "topk_method": "group_limited_greedy",
        "n_group": 4,
        "topk_group": 2,
        "routed_scaling_factor": 16.0,
    },
    "groups that greedy ignores": {"topk_method": "greedy", "n_group": 4, "topk_group": 1},
    "no query compression, yarn": {
        "q_lora_rank": None,
        "rope_parameters": YARN | {"mscale": 0.707, "mscale_all_dim": 0.707},
    },
}


def theirs(cls: str, **changes):
    """A random model of transformers, its norms and routing biases moved off their starting values."""
    config = getattr(transformers, cls.replace("ForCausalLM", "Config"))(**changes)
    model = getattr(transformers, cls)(config).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "norm" in name:
                p.uniform_(0.5, 1.5)
        for name, b in model.named_buffers():
            if "e_score" in name:
                b.uniform_(-0.5, 0.5)
    return model


def tokens(vocab: int = 97, batch: int = 2, length: int = 33) -> torch.Tensor:
    return torch.randint(0, vocab, (batch, length))


@torch.no_grad()
def assert_same_logits(ours, them, ids: torch.Tensor) -> None:
    want = them(ids).logits
    assert want.std() > 0.1  # a model that answers nothing would agree with anything
    torch.testing.assert_close(ours(ids), want, atol=5e-5, rtol=0)


@pytest.mark.parametrize("name", VARIANTS)
def test_from_hf_gives_the_logits_of_transformers_v3(name, tmp_path):
    them = theirs("DeepseekV3ForCausalLM", **V3 | VARIANTS[name])
    them.save_pretrained(tmp_path)
    assert_same_logits(from_hf(tmp_path), them, tokens())


@pytest.mark.parametrize("name", V2_VARIANTS)
def test_from_hf_gives_the_logits_of_transformers_v2(name, tmp_path):
    them = theirs("DeepseekV2ForCausalLM", **V2 | V2_VARIANTS[name])
    them.save_pretrained(tmp_path)
    assert_same_logits(from_hf(tmp_path), them, tokens())


SMALL = Config(
    vocab_size=89, dim=36, n_layers=3, n_dense_layers=1, inter_dim=52, n_heads=3, q_lora_rank=20, kv_lora_rank=18,
    qk_nope_head_dim=10, qk_rope_head_dim=8, v_head_dim=14, moe_inter_dim=16, n_routed_experts=12, n_shared_experts=2,
    n_activated_experts=4, n_expert_groups=4, n_limited_groups=2, route_scale=1.5, n_mtp_modules=1, init_std=0.2,
    norm_eps=1e-5, max_seq_len=96, original_seq_len=96,
)  # fmt: skip
SOFTMAX = {"score_func": "softmax", "norm_topk_prob": False, "route_scale": 4.0}
OURS = {
    "plain": SMALL,
    "no query compression": replace(SMALL, q_lora_rank=0),
    "two MTP modules": replace(SMALL, n_mtp_modules=2),
    "yarn": replace(SMALL, rope_factor=4.0, original_seq_len=24, beta_fast=8.0),
    "yarn, mscales differ": replace(SMALL, rope_factor=4.0, original_seq_len=24, mscale=1.3, mscale_all_dim=0.7),
    "yarn without mscale": replace(SMALL, rope_factor=4.0, original_seq_len=24, mscale=0.0, mscale_all_dim=0.0),
    "no shared experts": replace(SMALL, n_shared_experts=0, norm_topk_prob=False),
    "all layers dense": replace(SMALL, n_dense_layers=3, n_routed_experts=0, n_mtp_modules=0),
    "softmax gate": replace(SMALL, **SOFTMAX),
    "softmax gate, no groups": replace(SMALL, **SOFTMAX, n_expert_groups=1, n_limited_groups=1, q_lora_rank=0),
    "tiny": tiny(),
}  # fmt: skip


def ours(cfg: Config = SMALL) -> Transformer:
    """A random model of ours, its norms and routing biases moved off their starting values."""
    model = Transformer(cfg).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "norm" in name:
                p.uniform_(0.5, 1.5)
        for gate in model.gates():
            if gate.bias is not None:
                gate.bias.uniform_(-0.5, 0.5)
    return model


def open_cleanly(directory: Path):
    """The directory as `AutoModelForCausalLM` opens it; no missing, unexpected or mismatched tensor."""
    model, info = transformers.AutoModelForCausalLM.from_pretrained(directory, output_loading_info=True)
    assert not any(info.values()), info
    return model.eval()


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")  # transformers on shared experts of width 0
@pytest.mark.parametrize("name", OURS)
def test_to_hf_gives_transformers_the_same_logits_and_no_stray_tensor(name, tmp_path):
    model = ours(OURS[name])
    to_hf(model, tmp_path)
    ids = tokens(OURS[name].vocab_size)
    with torch.no_grad():
        torch.testing.assert_close(open_cleanly(tmp_path)(ids).logits, model(ids), atol=5e-5, rtol=0)


@pytest.mark.parametrize("name", OURS)
def test_a_model_comes_back_unchanged(name, tmp_path):
    model = ours(OURS[name])
    to_hf(model, tmp_path)
    again = from_hf(tmp_path)
    assert again.cfg == model.cfg
    want, got = model.state_dict(), again.state_dict()
    assert want.keys() == got.keys()
    for key in want:
        assert torch.equal(want[key], got[key]), key
    torch.testing.assert_close(again.freqs_cis, model.freqs_cis, rtol=0, atol=0)


@torch.no_grad()
def test_the_mtp_module_drafts_what_transformers_drafts(tmp_path, monkeypatch):
    model = ours()
    to_hf(model, tmp_path, mtp="inside")
    # transformers looks for MTP weights under layer 61 alone; ours is layer 3
    monkeypatch.setattr(
        transformers.DeepseekV3ForCausalLM, "_keys_to_ignore_on_load_unexpected", [r"model\.layers\.3.*"]
    )
    them = open_cleanly(tmp_path)
    mtp = transformers.modeling_layers.MtpModel.from_pretrained(them).eval()
    ids = tokens(SMALL.vocab_size, length=17)
    h = them(ids, output_hidden_states=True).hidden_states[-1]
    reads, _ = shifted(ids, 1)
    n = reads.shape[1]
    positions = torch.arange(1, n + 1)[None]
    want = mtp.forward_layer(0, h[:, :n], positions, None, input_ids=reads)
    got, _ = model.mtp[0](model.hidden(ids)[0][:, :n], model.embed(reads), model.freqs_cis[:n])
    torch.testing.assert_close(model.head(got), them.lm_head(want), atol=5e-5, rtol=0)


@pytest.mark.parametrize("name", ["plain", "yarn, mscales differ", "yarn without mscale", "no query compression"])
@torch.no_grad()
def test_naive_latent_and_absorbed_attention_agree_at_prefill_and_step_by_step(name, tmp_path):
    theirs("DeepseekV3ForCausalLM", **V3 | VARIANTS[name]).save_pretrained(tmp_path)
    single, ids = from_hf(tmp_path), tokens(length=21)
    # FP32 rounds each logit by a part of the largest one; in FP64 only the mathematics is left
    for model, tolerance in ((single, 1e-5), (deepcopy(single).double(), 1e-12)):
        want = model(ids, impl="naive")
        for impl in ("naive", "latent", "absorb"):
            cache = model.new_cache(2, 21, impl)
            steps = [model(ids[:, :13], cache)] if impl == "absorb" else [model(ids[:, :13], cache, impl)]
            steps += [model(ids[:, i : i + 1], cache, impl) for i in range(13, 21)]
            torch.testing.assert_close(torch.cat(steps, 1), want, atol=tolerance * want.abs().max().item(), rtol=0)
            assert want.dtype == model.head.weight.dtype


@torch.no_grad()
def test_changing_one_row_of_a_router_or_one_expert_changes_the_logits_of_both_alike(tmp_path):
    them = theirs("DeepseekV3ForCausalLM", **V3)
    ids, before = tokens(), None
    for change in (None, "model.layers.1.mlp.gate.weight", "model.layers.2.mlp.experts.down_proj"):
        if change:
            them.get_parameter(change)[7] += 1.0
        them.save_pretrained(tmp_path)
        logits = from_hf(tmp_path)(ids)
        torch.testing.assert_close(logits, them(ids).logits, atol=5e-5 * logits.abs().max().item(), rtol=0)
        assert before is None or (logits - before).abs().max() > 1e-2
        before = logits


def test_stacked_experts_and_shards_read_the_same(tmp_path):
    them = theirs("DeepseekV3ForCausalLM", **V3)
    them.save_pretrained(tmp_path / "whole")
    them.save_pretrained(tmp_path / "shards", max_shard_size="60KB")
    assert not (tmp_path / "shards/model.safetensors").exists()
    (tmp_path / "stacked").mkdir()
    (tmp_path / "stacked/config.json").write_text((tmp_path / "whole/config.json").read_text())
    save_file(them.state_dict(), tmp_path / "stacked/model.safetensors")
    assert "model.layers.1.mlp.experts.gate_up_proj" in load_file(tmp_path / "stacked/model.safetensors")
    want = from_hf(tmp_path / "whole").state_dict()
    for kind in ("shards", "stacked"):
        got = from_hf(tmp_path / kind).state_dict()
        assert all(torch.equal(got[key], want[key]) for key in want)


def test_bf16_files_become_fp32_unless_asked_otherwise(tmp_path):
    model = ours()
    to_hf(model, tmp_path, dtype=torch.bfloat16)
    assert json.loads((tmp_path / "config.json").read_text())["torch_dtype"] == "bfloat16"
    full, half = from_hf(tmp_path), from_hf(tmp_path, dtype=torch.bfloat16)
    assert full.embed.weight.dtype == torch.float32 and half.embed.weight.dtype == torch.bfloat16
    assert torch.equal(full.embed.weight, model.embed.weight.bfloat16().float())
    # rounding would move the bias by more than an update of gamma = 0.001
    assert all(torch.equal(a.bias, b.bias) for a, b in zip(half.gates(), model.gates(), strict=True))


def test_tied_embeddings_are_read_as_two_equal_matrices(tmp_path):
    them = theirs("DeepseekV3ForCausalLM", **V3, tie_word_embeddings=True)
    them.save_pretrained(tmp_path)
    model = from_hf(tmp_path)
    assert_same_logits(model, them, tokens())
    assert model.head.weight.data_ptr() != model.embed.weight.data_ptr()


def test_rope_rows_go_back_to_pairs():
    cfg = replace(SMALL, n_heads=2, qk_nope_head_dim=1, qk_rope_head_dim=6)
    rows = torch.arange(14.0)[:, None]
    # per head: one row without position, then x0 x2 x4 x1 x3 x5
    half = rows[[0, 1, 3, 5, 2, 4, 6, 7, 8, 10, 12, 9, 11, 13]]
    assert torch.equal(interleaved(half, cfg, "layers.0.attn.wq.weight"), rows)


def test_the_names_are_those_of_the_released_weights():
    assert hf_names("layers.2.attn.wkv_a.weight", SMALL) == ["model.layers.2.self_attn.kv_a_proj_with_mqa.weight"]
    assert (
        hf_names("layers.2.ffn.shared_experts.w13.weight", SMALL)[1]
        == "model.layers.2.mlp.shared_experts.up_proj.weight"
    )
    assert hf_names("layers.1.ffn.experts.w13", SMALL)[3] == "model.layers.1.mlp.experts.1.up_proj.weight"
    assert hf_names("layers.1.ffn.gate.bias", SMALL) == ["model.layers.1.mlp.gate.e_score_correction_bias"]
    assert hf_names("mtp.0.norm.weight", SMALL) == ["model.layers.3.shared_head.norm.weight"]
    assert hf_names("mtp.0.block.ffn.gate.weight", SMALL) == ["model.layers.3.mlp.gate.weight"]


def test_mtp_weights_may_be_dropped_or_missing(tmp_path):
    model = ours()
    to_hf(model, tmp_path)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["config.json", "model.safetensors", "mtp.safetensors"]
    (tmp_path / "mtp.safetensors").unlink()
    assert from_hf(tmp_path).cfg.n_mtp_modules == 0  # config.json still announces one
    to_hf(model, tmp_path, mtp="drop")
    assert from_hf(tmp_path).cfg == replace(SMALL, n_mtp_modules=0)


def test_published_configs_survive_the_round_trip():
    for name in ("tiny", "v2_lite", "v2", "v3"):
        cfg = PRESETS[name]()
        assert config_from_hf(config_to_hf(cfg, n_mtp_modules=cfg.n_mtp_modules), cfg.n_mtp_modules) == cfg


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_casting_a_model_leaves_its_angles_complex(dtype):
    model = ours().to("cpu", dtype)
    assert model.embed.weight.dtype == dtype
    assert torch.equal(model.freqs_cis, Transformer(SMALL).freqs_cis)


def test_reading_and_writing_need_no_transformers():
    code = "import sys; import minids.hf, minids.generate; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_exported_tokenizer_reads_and_renders_as_ours(tmp_path):
    tokenizer = default_tokenizer()
    to_hf(Transformer(tiny()), tmp_path, tokenizer)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    text = "Mia has 3 red apples.\n\n小明有 3 个苹果。\n\tdef f(x):  # a comment"
    assert theirs(text).input_ids == tokenizer.encode(text, bos=True)
    assert theirs.decode(theirs(text).input_ids, skip_special_tokens=True) == text
    said = (("system", "Be brief."), ("user", "2 + 2?"), ("assistant", "<think>easy</think>4"), ("user", "And 3 + 3?"))
    chat = [{"role": role, "content": content} for role, content in said]
    rendered = theirs.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    assert theirs(rendered, add_special_tokens=False).input_ids == tokenizer.chat(chat)
    ids = (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id)
    assert ids == (tokenizer.bos, tokenizer.eos, tokenizer.pad)
    assert open_cleanly(tmp_path).generation_config.eos_token_id == tokenizer.eos
    with pytest.raises(ValueError, match="must fit the model's vocabulary of 97"):
        to_hf(ours(replace(SMALL, vocab_size=97)), tmp_path / "small", tokenizer)
