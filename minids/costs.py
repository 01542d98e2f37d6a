"""What a model costs, counted from its config alone: parameters, cache bytes, operations, GPU hours, dollars.

Paper: DeepSeek-V3 section 4.2 (671 B, 37 B activated), table 1 (GPU hours and dollars); DeepSeek-V2 table 1 (cache);
arXiv 2505.09343 table 1.

    parameters   every weight and the gates' balancing biases; embedding and head are two matrices; MTP modules apart
    activated    what one token touches: of the routed experts only K. The papers' "37 B", "21 B" and "2.4 B" all leave
                 out the input embedding (a table look-up) and keep the head: `activated`.
                 `activated_with_embedding` adds it.
    KV cache     MLA keeps kv_lora_rank + qk_rope_head_dim values a token and layer, GQA 2 x n_kv_heads x head width
    operations   2 (multiply, add) for every weight of an activated matrix; for each earlier token and head 2 a feature
                 of q.k and of p.v; training costs three times the forward pass

Differs from the paper: README_WEIGHTS.md says 36.7 B activated "including embedding and head"; the shapes give 37.55 B
that way and 36.63 B without the embedding. Its 11.5 B for the MTP module leaves out eh_proj; with it there are 11.61 B.
Left out: activations and optimizer memory (11_expert_parallel).
Notebook: 00_start, 04_moe, 07_deepseek.
"""

from __future__ import annotations

from dataclasses import dataclass

from minids.config import Config

H800_HOURS = {"pre-training": 2_664_000, "context extension": 119_000, "post-training": 5_000}  # V3 table 1
DOLLARS_PER_H800_HOUR = 2.0  # the paper's assumption, not a price list


@dataclass(frozen=True)
class Params:
    """Parameter counts of a config. `total` leaves out the MTP modules; `mtp` is what they add to it."""

    embedding: int
    head: int
    attention: int
    dense_ffn: int
    experts: int
    shared_experts: int
    gates: int
    norms: int
    mtp: int
    idle_experts: int  # routed experts that a token does not use

    @property
    def total(self) -> int:
        parts = (self.embedding, self.head, self.attention, self.dense_ffn, self.experts, self.shared_experts)
        return sum(parts) + self.gates + self.norms

    @property
    def activated(self) -> int:
        """Touched by one token, without the input embedding: the papers' convention."""
        return self.activated_with_embedding - self.embedding

    @property
    def activated_with_embedding(self) -> int:
        return self.total - self.idle_experts


def params(cfg: Config) -> Params:
    """Count every parameter from the shapes. V3: total 671,026,419,200; activated 36,625,618,432; mtp
    11,610,068,224."""
    L, moe, D = cfg.n_layers, cfg.n_moe_layers, cfg.dim
    return Params(
        embedding=cfg.vocab_size * D,
        head=cfg.vocab_size * D,
        attention=L * attention_params(cfg),
        dense_ffn=cfg.n_dense_layers * 3 * D * cfg.inter_dim,
        experts=moe * cfg.n_routed_experts * expert_params(cfg),
        shared_experts=moe * cfg.n_shared_experts * expert_params(cfg),
        gates=moe * gate_params(cfg),
        norms=L * 2 * D + D,
        mtp=cfg.n_mtp_modules * mtp_params(cfg),
        idle_experts=moe * (cfg.n_routed_experts - cfg.n_activated_experts) * expert_params(cfg),
    )


def attention_params(cfg: Config) -> int:
    """One layer's attention, its latent norms included. V3: 187,107,328."""
    D, H = cfg.dim, cfg.n_heads
    if cfg.attn == "gqa":
        return 2 * D * cfg.v_head_dim * (H + cfg.n_kv_heads)
    Q, C, R = cfg.q_lora_rank, cfg.kv_lora_rank, cfg.qk_rope_head_dim
    query = D * Q + Q + Q * H * cfg.qk_head_dim if Q else D * H * cfg.qk_head_dim
    return query + D * (C + R) + C + C * H * (cfg.qk_nope_head_dim + cfg.v_head_dim) + H * cfg.v_head_dim * D


def expert_params(cfg: Config) -> int:
    """One routed expert: three matrices of dim x moe_inter_dim. V3: 44,040,192."""
    return 3 * cfg.dim * cfg.moe_inter_dim


def gate_params(cfg: Config) -> int:
    """One gate: a row an expert, and V3's balancing bias. V3: 1,835,264."""
    return cfg.n_routed_experts * (cfg.dim + (cfg.score_func == "sigmoid"))


def mtp_params(cfg: Config) -> int:
    """One MTP module without the shared embedding and head: a block, eh_proj and three norms. V3: 11,610,068,224."""
    if cfg.has_experts:
        ffn = (cfg.n_routed_experts + cfg.n_shared_experts) * expert_params(cfg) + gate_params(cfg)
    else:
        ffn = 3 * cfg.dim * cfg.inter_dim
    return attention_params(cfg) + ffn + 2 * cfg.dim * cfg.dim + 5 * cfg.dim


def cache_values_per_token(cfg: Config) -> int:
    """Values cached for one token in one layer. V3: 512 + 64 = 576."""
    if cfg.attn == "gqa":
        return 2 * cfg.n_kv_heads * cfg.v_head_dim
    return cfg.kv_lora_rank + cfg.qk_rope_head_dim


def kv_bytes_per_token(cfg: Config, bytes_per_value: int = 2) -> int:
    """Bytes cached for one token over all layers (2 bytes a value: BF16). V3: 70,272."""
    return cache_values_per_token(cfg) * cfg.n_layers * bytes_per_value


def forward_flops_per_token(cfg: Config, context: int = 0) -> int:
    """Operations for one token that looks back at `context` tokens: 2 a weight, and the attention scores and mixes."""
    p = params(cfg)
    scores = 2 * context * cfg.n_layers * cfg.n_heads * (cfg.qk_head_dim + cfg.v_head_dim)
    return 2 * (p.activated - p.norms) + scores


def training_flops_per_token(cfg: Config, seq_len: int) -> int:
    """Forward and backward for one token in rows of `seq_len`, MTP included; a causal row looks back at half of it."""
    forward = forward_flops_per_token(cfg, seq_len // 2)
    mtp = 0
    if cfg.n_mtp_modules:
        idle = (cfg.n_routed_experts - cfg.n_activated_experts) * expert_params(cfg) if cfg.has_experts else 0
        scores = 2 * (seq_len // 2) * cfg.n_heads * (cfg.qk_head_dim + cfg.v_head_dim)
        mtp = cfg.n_mtp_modules * (2 * (mtp_params(cfg) - idle + params(cfg).head) + scores)
    return 3 * (forward + mtp)


def training_dollars(hours: dict[str, int] | None = None, per_hour: float = DOLLARS_PER_H800_HOUR) -> float:
    """GPU hours times a rent. With the paper's table 1: 2,788,000 hours x 2 dollars = 5,576,000."""
    return sum((hours or H800_HOURS).values()) * per_hour
