"""The Hugging Face config.json of DeepSeek-V3 and V2, from and to our Config.

Format: the keys of the released models' config.json, which `transformers` reads (DeepseekV3Config, DeepseekV2Config).

`SAME` lists the keys whose value is simply the same. The others need a rule:

    model_type        deepseek_v3 is the sigmoid gate, deepseek_v2 the softmax gate (`score_func`)
    q_lora_rank       null is our 0
    n_group, ..       V2 limits the groups only if topk_method is "group_limited_greedy"
    rope              `rope_parameters` since transformers 5, `rope_scaling` and `rope_theta` before; we write the
                      older form, which both read. An absent mscale or mscale_all_dim is our 0
    q_norm, kv_norm   their eps is 1e-6 whatever rms_norm_eps says, there as here

What our Config has no field for is refused by name: a wrong guess would load and give wrong logits.

Differs from the paper: nothing; the paper has no file format.
Left out: training fields (aux_loss_alpha, seq_aux, ep_size, pretraining_tp), which change no logit.
Notebook: 07_deepseek.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from minids.config import Config
from minids.rope import rotary_mscale

# ours: theirs, where the value is simply the same
SAME = {
    "vocab_size": "vocab_size", "dim": "hidden_size", "n_layers": "num_hidden_layers", "n_heads": "num_attention_heads",
    "n_dense_layers": "first_k_dense_replace", "inter_dim": "intermediate_size",
    "moe_inter_dim": "moe_intermediate_size", "kv_lora_rank": "kv_lora_rank",
    "qk_nope_head_dim": "qk_nope_head_dim", "qk_rope_head_dim": "qk_rope_head_dim",
    "v_head_dim": "v_head_dim", "n_routed_experts": "n_routed_experts", "n_activated_experts": "num_experts_per_tok",
    "route_scale": "routed_scaling_factor", "max_seq_len": "max_position_embeddings",
}  # fmt: skip


def config_from_hf(hf: dict[str, Any], n_mtp_modules: int = 0) -> Config:
    """Our Config for their config.json. ValueError names the key that is missing or that we cannot represent."""
    _refuse_what_we_cannot(hf)
    v3 = hf["model_type"] == "deepseek_v3"
    wanted = [*SAME.values(), *(("n_group", "topk_group") if v3 else ())]
    missing = [key for key in wanted if hf.get(key) is None] + [k for k in ("n_shared_experts",) if k not in hf]
    if missing:
        raise ValueError(
            f"config.json must give every size; {', '.join(missing)} missing. Take the model's own config.json."
        )
    groups, keep = hf.get("n_group") or 1, hf.get("topk_group") or 1
    if not v3 and hf.get("topk_method", "greedy") == "greedy":
        groups, keep = 1, 1
    cfg = Config(
        **{ours: hf[theirs] for ours, theirs in SAME.items()},
        q_lora_rank=hf.get("q_lora_rank") or 0,
        n_shared_experts=hf.get("n_shared_experts") or 0,
        n_expert_groups=groups,
        n_limited_groups=keep,
        score_func="sigmoid" if v3 else "softmax",
        norm_topk_prob=v3 and bool(hf.get("norm_topk_prob", True)),
        n_mtp_modules=n_mtp_modules,
        norm_eps=hf.get("rms_norm_eps", 1e-6),
        init_std=hf.get("initializer_range", 0.02),
        embed_std=hf.get("embed_std", hf.get("initializer_range", 0.02)),  # ours; others draw all alike
        **_rope_from_hf(hf),
    )
    _check_yarn(_rope(hf), cfg)
    return cfg


def _refuse_what_we_cannot(hf: dict[str, Any]) -> None:
    kind = hf.get("model_type")
    if kind not in ("deepseek_v3", "deepseek_v2"):
        raise ValueError(
            f"model_type must be deepseek_v3 or deepseek_v2; got {kind!r}. Other families are other models."
        )
    if hf.get("quantization_config"):
        raise ValueError(
            f"weights must be in bf16 or fp32; got quantization_config {hf['quantization_config']}. Dequantise first: "
            "each 128 x 128 block of an FP8 weight times its weight_scale_inv (DeepSeek's inference/fp8_cast_bf16.py)."
        )
    required = {
        "attention_bias": (False, "the paper's projections have no bias"),
        "mlp_bias": (False, "the paper's projections have no bias"),
        "hidden_act": ("silu", "the experts are SwiGLU"),
        "moe_layer_freq": (1, "every layer after the dense ones has experts"),
        "num_key_value_heads": (hf.get("num_attention_heads"), "MLA has as many key heads as query heads"),
        "scoring_func": ("sigmoid" if kind == "deepseek_v3" else "softmax", f"{kind} has that gate"),
    }
    if kind == "deepseek_v2":
        # transformers ignores the key, DeepSeek's own code normalises and then does not scale: no one meaning to keep
        required["norm_topk_prob"] = (False, "no released V2 normalises its gate, and readers disagree on how it would")
        if hf.get("topk_method") == "noaux_tc":
            required["topk_method"] = ("greedy", "noaux_tc is V3's gate")
    for key, (value, why) in required.items():
        if hf.get(key) is not None and hf[key] != value:
            raise ValueError(f"{key} must be {value!r}: {why}; got {hf[key]!r}. Such a checkpoint cannot be read here.")


def _rope(hf: dict[str, Any]) -> dict[str, Any]:
    return hf.get("rope_scaling") or hf.get("rope_parameters") or {}


def _rope_from_hf(hf: dict[str, Any]) -> dict[str, Any]:
    """Our rope fields from `rope_parameters` (transformers 5) or `rope_scaling` and `rope_theta` (before)."""
    rope = _rope(hf)
    theta = rope.get("rope_theta") or hf.get("rope_theta") or 10000.0
    kind = rope.get("rope_type") or rope.get("type") or "default"
    original = rope.get("original_max_position_embeddings") or hf["max_position_embeddings"]
    if kind == "default":
        return {"rope_theta": float(theta), "original_seq_len": original}
    if kind != "yarn":
        raise ValueError(f'rope_type must be "default" or "yarn"; got {kind!r}. DeepSeek models use these two alone.')
    return {
        "rope_theta": float(theta),
        "rope_factor": float(rope.get("factor") or hf["max_position_embeddings"] / original),
        "original_seq_len": original,
        "beta_fast": float(rope.get("beta_fast") or 32),
        "beta_slow": float(rope.get("beta_slow") or 1),
        "mscale": float(rope.get("mscale") or 0),
        "mscale_all_dim": float(rope.get("mscale_all_dim") or 0),
    }


def _check_yarn(rope: dict[str, Any], cfg: Config) -> None:
    """Refuse RoPE options that our Config has no field for."""
    given, implied = rope.get("attention_factor"), rotary_mscale(cfg)
    if given is not None and not math.isclose(given, implied, rel_tol=1e-6):
        raise ValueError(
            f"attention_factor must be what mscale and mscale_all_dim imply, {implied:.6g}; got {given}. "
            "Leave it out, or set mscale so that it follows."
        )
    for key, value in (("truncate", True), ("partial_rotary_factor", 1.0)):
        if rope.get(key, value) != value:
            raise ValueError(f"rope's {key} must be {value}; got {rope[key]}. DeepSeek's checkpoints do not use it.")


def config_to_hf(cfg: Config, dtype: torch.dtype = torch.float32, n_mtp_modules: int = 0) -> dict[str, Any]:
    """Their config.json for our Config: deepseek_v3 for the sigmoid gate, deepseek_v2 for the softmax gate."""
    _refuse_what_they_cannot(cfg)
    v3 = cfg.score_func == "sigmoid" or not cfg.has_experts
    grouped = cfg.n_limited_groups < cfg.n_expert_groups
    hf: dict[str, Any] = {
        "architectures": ["DeepseekV3ForCausalLM" if v3 else "DeepseekV2ForCausalLM"],
        "model_type": "deepseek_v3" if v3 else "deepseek_v2",
        "torch_dtype": str(dtype).removeprefix("torch."),
        **{theirs: getattr(cfg, ours) for ours, theirs in SAME.items()},
        "num_key_value_heads": cfg.n_heads,
        "q_lora_rank": cfg.q_lora_rank or None,
        "n_shared_experts": cfg.n_shared_experts,
        "n_group": cfg.n_expert_groups,
        "topk_group": cfg.n_limited_groups,
        "topk_method": "noaux_tc" if v3 else "group_limited_greedy" if grouped else "greedy",
        "scoring_func": "sigmoid" if v3 else "softmax",
        "norm_topk_prob": cfg.norm_topk_prob if v3 else False,
        "num_nextn_predict_layers": n_mtp_modules,
        "rms_norm_eps": cfg.norm_eps,
        "initializer_range": cfg.init_std,
        "embed_std": cfg.embed_std,
        "rope_theta": cfg.rope_theta,
        "rope_scaling": _rope_to_hf(cfg),
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "moe_layer_freq": 1,
        "tie_word_embeddings": False,
        "use_cache": True,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    return hf | ({"rope_interleave": True} if v3 else {})


def _rope_to_hf(cfg: Config) -> dict[str, Any] | None:
    if cfg.rope_factor == 1:
        return None
    keys = {"rope_factor": "factor", "original_seq_len": "original_max_position_embeddings"}
    yarn = {theirs: getattr(cfg, ours) for ours, theirs in keys.items()}
    yarn |= {key: getattr(cfg, key) for key in ("beta_fast", "beta_slow")}
    # 0 means absent: then transformers scales cos and sin instead of the softmax, as `rotary_mscale` does
    return {"type": "yarn", **yarn, **{key: v for key in ("mscale", "mscale_all_dim") if (v := getattr(cfg, key))}}


def _refuse_what_they_cannot(cfg: Config) -> None:
    experts = cfg.n_routed_experts // cfg.n_expert_groups
    softmax = cfg.has_experts and cfg.score_func == "softmax"
    for bad, rule, got, remedy in (
        (cfg.attn != "mla", "the DeepSeek format holds MLA models", f"attn={cfg.attn!r}",
         "Keep such a baseline in minids' own format (minids.checkpoint)."),
        (softmax and cfg.norm_topk_prob, "the V2 format has a softmax gate without normalisation",
         "norm_topk_prob=True", "Train with norm_topk_prob=False, or with the sigmoid gate."),
        (softmax and cfg.dim % cfg.n_heads != 0, "the V2 format wants dim to be a multiple of n_heads",
         f"{cfg.dim} and {cfg.n_heads}", "Choose other sizes, or the sigmoid gate."),
        (cfg.has_experts and not softmax and experts < 2, "the V3 format scores a group by two experts",
         f"{experts} in each group", "Use at least two experts a group."),
    ):  # fmt: skip
        if bad:
            raise ValueError(f"{rule}; got {got}. {remedy}")
