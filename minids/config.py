"""One frozen dataclass holds every size of a DeepSeek model; presets run from a laptop's to the published ones.

Paper: DeepSeek-V3 technical report (arXiv 2412.19437) section 4.2; DeepSeek-V2 (arXiv 2405.04434) section 3.1.2 and
appendix B.

The field names are those of DeepSeek's own inference code, so that you can read it next. Sizes that belong together:

    attention   q = n_heads x (qk_nope_head_dim + qk_rope_head_dim),  v = n_heads x v_head_dim
    cache       kv_lora_rank + qk_rope_head_dim values per token and layer, whatever n_heads is
    experts     the first n_dense_layers layers have one FFN of inter_dim; the others have n_shared_experts (always on)
                and n_routed_experts of moe_inter_dim, of which n_activated_experts answer for a token
    groups      the routed experts sit in n_expert_groups equal groups (a group is a node);
                a token may use n_limited_groups of them

Differs from the paper: `attn="gqa"` swaps MLA for grouped-query attention, so that a dense baseline is the same class;
the tiny presets' sizes are ours. Their first weights follow the paper's rule scaled with the width, 0.006 x
sqrt(7168 / 128) = 0.045, but for the embedding: as narrow as that, a token's own vector drowns in what the first blocks
add to it, so the table is drawn wider (`embed_std` 0.3).
Left out: attention biases (the paper has none), tied embeddings (the paper unties them).
Notebook: 07_deepseek counts these presets; 00_start moves from tiny to v3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any


@dataclass(frozen=True)
class Config:
    """Every size of the model. Units: counts of features, heads, layers or tokens.

    Raises ValueError, with the rule, the values and the remedy, for sizes that do not fit together.
    """

    # the trunk
    vocab_size: int
    dim: int
    n_layers: int
    n_dense_layers: int
    inter_dim: int
    n_heads: int
    # attention: MLA, or GQA (n_kv_heads = n_heads is MHA, 1 is MQA)
    attn: str = "mla"
    n_kv_heads: int = 0
    q_lora_rank: int = 0  # 0: queries straight from the hidden state, as in V2-Lite
    kv_lora_rank: int = 512
    qk_nope_head_dim: int = 128
    qk_rope_head_dim: int = 64
    v_head_dim: int = 128
    # mixture of experts
    moe_inter_dim: int = 0
    n_routed_experts: int = 0
    n_shared_experts: int = 0
    n_activated_experts: int = 0
    n_expert_groups: int = 1
    n_limited_groups: int = 1
    score_func: str = "sigmoid"  # "sigmoid" is V3's gate, "softmax" V2's
    norm_topk_prob: bool = True
    route_scale: float = 1.0
    # multi-token prediction
    n_mtp_modules: int = 0
    # the rest
    norm_eps: float = 1e-6
    init_std: float = 0.006
    embed_std: float = 0.006  # of the embedding table alone
    max_seq_len: int = 4096
    rope_theta: float = 10000.0
    rope_factor: float = 1.0  # YaRN's s: 1 means no YaRN
    original_seq_len: int = 4096  # YaRN's L0, the length trained before extension
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float = 1.0
    mscale_all_dim: float = 1.0

    def __post_init__(self):
        _check_trunk(self)
        _check_attention(self)
        if self.n_dense_layers < self.n_layers or self.n_routed_experts:
            _check_experts(self)

    @property
    def qk_head_dim(self) -> int:
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def n_moe_layers(self) -> int:
        return self.n_layers - self.n_dense_layers

    @property
    def has_experts(self) -> bool:
        return self.n_routed_experts > 0


def _need(ok: bool, rule: str, got: str, remedy: str) -> None:
    if not ok:
        raise ValueError(f"{rule}; got {got}. {remedy}")


def _check_trunk(c: Config) -> None:
    for name in ("vocab_size", "dim", "n_layers", "n_heads", "max_seq_len"):
        _need(getattr(c, name) > 0, f"{name} must be positive", f"{name}={getattr(c, name)}", "Give at least 1.")
    _need(
        0 <= c.n_dense_layers <= c.n_layers,
        "n_dense_layers counts the first layers that have a dense FFN, so it lies between 0 and n_layers",
        f"n_dense_layers={c.n_dense_layers}, n_layers={c.n_layers}",
        "V3 has 3 of 61.",
    )
    _need(
        c.n_dense_layers == 0 or c.inter_dim > 0,
        "a dense layer needs inter_dim > 0",
        f"inter_dim={c.inter_dim}",
        "Give the FFN's width, or set n_dense_layers=0.",
    )
    _need(c.rope_factor >= 1, "rope_factor must be at least 1", f"rope_factor={c.rope_factor}", "1 switches YaRN off.")


def _check_attention(c: Config) -> None:
    _need(c.attn in ("mla", "gqa"), 'attn is "mla" or "gqa"', f"attn={c.attn!r}", "Choose one of the two.")
    if c.attn == "mla":
        _need(
            c.qk_rope_head_dim > 0 and c.qk_rope_head_dim % 2 == 0,
            "RoPE turns pairs, so qk_rope_head_dim must be even and positive",
            f"qk_rope_head_dim={c.qk_rope_head_dim}",
            "V3 has 64.",
        )
        _need(c.kv_lora_rank > 0, "MLA needs kv_lora_rank > 0", f"kv_lora_rank={c.kv_lora_rank}", "V3 has 512.")
        return
    _need(
        c.n_kv_heads > 0 and c.n_heads % c.n_kv_heads == 0,
        "n_kv_heads must divide n_heads",
        f"n_heads={c.n_heads}, n_kv_heads={c.n_kv_heads}",
        "n_kv_heads = n_heads is MHA, 1 is MQA.",
    )
    _need(
        c.qk_nope_head_dim == 0 and c.v_head_dim == c.qk_rope_head_dim and c.v_head_dim % 2 == 0,
        "GQA turns its whole head by RoPE: qk_nope_head_dim is 0 and v_head_dim equals qk_rope_head_dim, even",
        f"qk_nope_head_dim={c.qk_nope_head_dim}, qk_rope_head_dim={c.qk_rope_head_dim}, v_head_dim={c.v_head_dim}",
        "Set qk_nope_head_dim=0 and the other two to the head's width.",
    )


def _check_experts(c: Config) -> None:
    E, K, G, M = c.n_routed_experts, c.n_activated_experts, c.n_expert_groups, c.n_limited_groups
    _need(E > 0 and c.moe_inter_dim > 0, "an MoE layer needs n_routed_experts > 0 and moe_inter_dim > 0",
          f"n_routed_experts={E}, moe_inter_dim={c.moe_inter_dim}", "Or set n_dense_layers = n_layers.")  # fmt: skip
    _need(G > 0 and E % G == 0, "n_expert_groups must divide n_routed_experts",
          f"n_routed_experts={E}, n_expert_groups={G}", f"{E} experts split into {_divisors(E)} groups.")  # fmt: skip
    _need(1 <= M <= G, "n_limited_groups lies between 1 and n_expert_groups",
          f"n_limited_groups={M}, n_expert_groups={G}", "V3 allows 4 of 8.")  # fmt: skip
    _need(1 <= K <= M * (E // G), "a token's experts must fit into its groups: "
          "n_activated_experts <= n_limited_groups x n_routed_experts / n_expert_groups",
          f"{K} > {M} x {E // G}" if K > 0 else f"n_activated_experts={K}",
          "Activate fewer experts or allow more groups.")  # fmt: skip
    _need(c.score_func in ("sigmoid", "softmax"), 'score_func is "sigmoid" (V3) or "softmax" (V2)',
          f"score_func={c.score_func!r}", "Choose one of the two.")  # fmt: skip
    _need(c.score_func == "softmax" or G == 1 or E // G >= 2,
          "V3 scores a group by its two best experts, so a group needs two",
          f"{E} experts in {G} groups", "Use fewer groups.")  # fmt: skip


def _divisors(n: int) -> str:
    return ", ".join(str(d) for d in range(1, n + 1) if n % d == 0)


def tiny() -> Config:
    """The course's model: every part of V3 at laptop size, 3.6 M parameters, 64 cached values a token and layer.

    V3's proportions are kept where they teach: 1 + K experts are exactly as wide as one dense FFN (5 x 64 = 320; V3:
    9 x 2048 = 18,432),
    the groups bind (4 experts from 2 of 4 groups), the cached latent is small beside the heads' keys and values (64
    against 320).
    """
    return Config(
        vocab_size=2048, dim=128, n_layers=6, n_dense_layers=1, inter_dim=320, n_heads=4,
        q_lora_rank=64, kv_lora_rank=48, qk_nope_head_dim=32, qk_rope_head_dim=16, v_head_dim=32,
        moe_inter_dim=64, n_routed_experts=16, n_shared_experts=1, n_activated_experts=4,
        n_expert_groups=4, n_limited_groups=2, n_mtp_modules=1,
        init_std=0.045, embed_std=0.3, max_seq_len=1024, original_seq_len=1024,
    )  # fmt: skip


def policy(vocab_size: int) -> Config:
    """A model for reinforcement learning in minutes, 0.3 M parameters: MLA and experts, nothing left out but MTP."""
    return Config(
        vocab_size=vocab_size, dim=64, n_layers=3, n_dense_layers=1, inter_dim=192, n_heads=4,
        kv_lora_rank=32, qk_nope_head_dim=16, qk_rope_head_dim=8, v_head_dim=16,
        moe_inter_dim=64, n_routed_experts=8, n_shared_experts=1, n_activated_experts=2,
        init_std=0.06, embed_std=0.3, max_seq_len=128, original_seq_len=128, rope_theta=1000.0,
    )  # fmt: skip


def v2_lite() -> Config:
    """DeepSeek-V2-Lite, 15.7 B (arXiv 2405.04434, appendix B): no query compression, softmax gate, 2 shared experts."""
    return Config(
        vocab_size=102400, dim=2048, n_layers=27, n_dense_layers=1, inter_dim=10944, n_heads=16,
        moe_inter_dim=1408, n_routed_experts=64, n_shared_experts=2, n_activated_experts=6,
        score_func="softmax", norm_topk_prob=False,
        max_seq_len=163840, rope_factor=40.0, mscale=0.707, mscale_all_dim=0.707,
    )  # fmt: skip


def v2() -> Config:
    """DeepSeek-V2, 236 B (arXiv 2405.04434, section 3.1.2): 3 of 8 groups, weights scaled by 16."""
    return Config(
        vocab_size=102400, dim=5120, n_layers=60, n_dense_layers=1, inter_dim=12288, n_heads=128, q_lora_rank=1536,
        moe_inter_dim=1536, n_routed_experts=160, n_shared_experts=2, n_activated_experts=6,
        n_expert_groups=8, n_limited_groups=3, score_func="softmax", norm_topk_prob=False, route_scale=16.0,
        max_seq_len=163840, rope_factor=40.0,
    )  # fmt: skip


def v3() -> Config:
    """DeepSeek-V3 and R1, 671 B and one MTP module (arXiv 2412.19437, section 4.2)."""
    return Config(
        vocab_size=129280, dim=7168, n_layers=61, n_dense_layers=3, inter_dim=18432, n_heads=128, q_lora_rank=1536,
        moe_inter_dim=2048, n_routed_experts=256, n_shared_experts=1, n_activated_experts=8,
        n_expert_groups=8, n_limited_groups=4, route_scale=2.5, n_mtp_modules=1,
        max_seq_len=163840, rope_factor=40.0,
    )  # fmt: skip


def dense_active() -> Config:
    """A dense MHA model of about the parameters that `tiny` activates a token: the rival at equal compute."""
    return replace(_dense_twin(), inter_dim=320)


def dense_total() -> Config:
    """A dense MHA model with about all the parameters of `tiny`: the fair rival at equal memory."""
    return replace(_dense_twin(), inter_dim=944)


def _dense_twin() -> Config:
    t = tiny()
    return Config(
        vocab_size=t.vocab_size, dim=t.dim, n_layers=t.n_layers, n_dense_layers=t.n_layers, inter_dim=t.inter_dim,
        n_heads=t.n_heads, attn="gqa", n_kv_heads=t.n_heads,
        qk_nope_head_dim=0, qk_rope_head_dim=t.dim // t.n_heads, v_head_dim=t.dim // t.n_heads,
        init_std=t.init_std, embed_std=t.embed_std, max_seq_len=t.max_seq_len, original_seq_len=t.original_seq_len,
    )  # fmt: skip


PRESETS: dict[str, Callable[[], Config]] = {
    "tiny": tiny, "dense_active": dense_active, "dense_total": dense_total, "v2_lite": v2_lite, "v2": v2, "v3": v3,
}  # fmt: skip


def preset(name: str) -> Config:
    """The preset of that name. ValueError names the ones there are."""
    key = name.replace("-", "_").lower()
    if key not in PRESETS:
        raise ValueError(f"there is no preset {name!r}; the presets are {', '.join(PRESETS)}.")
    return PRESETS[key]()


def changed(cfg: Config, changes: Sequence[str]) -> Config:
    """`cfg` with KEY=VALUE changes, each read as the type that the field has."""
    kinds = {f.name: type(getattr(cfg, f.name)) for f in fields(cfg)}
    values: dict[str, Any] = {}
    for change in changes:
        key, _, text = change.partition("=")
        if key not in kinds:
            raise ValueError(f"--set takes a size of the model; got {change!r}. The sizes are {', '.join(kinds)}.")
        try:
            values[key] = text == "True" if kinds[key] is bool else kinds[key](text)
        except ValueError as e:
            raise ValueError(
                f"--set {key} wants {kinds[key].__name__}; got {text!r}. It is {getattr(cfg, key)} now."
            ) from e
    return replace(cfg, **values)
