"""Multi-head, grouped-query and multi-query attention with a key-value cache: what MLA is compared with.

Paper: DeepSeek-V2 (arXiv 2405.04434) section 2.1.1, eq. 1-8 and Table 1; GQA is arXiv 2305.13245, MQA arXiv 1911.02150.

Every head asks with its own query; keys and values are shared by groups of heads. `n_kv_heads` = `n_heads` is MHA,
1 is MQA, anything between is GQA. A cache keeps 2 x n_kv_heads x head width values a token and layer.
With a cache the S new queries sit at the END of the T keys, so the causal mask is aligned to the lower right corner;
`is_causal=True` of torch aligns to the upper left, and is only right when S = T.

Differs from the paper: nothing. RoPE turns the whole head, as in LLaMA.
Left out: biases, query-key norms, sliding windows.
Notebook: 02_attention.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Complex, Float, Int
from torch import Tensor, nn

from minids.config import Config
from minids.rope import apply_rotary_emb


class KVCache:
    """Keys and values of one layer in buffers of full length, [B, T_max, heads, width]; `length` tokens are filled."""

    def __init__(self, batch: int, max_len: int, heads: int, k_dim: int, v_dim: int, device=None, dtype=None):
        self.k = torch.empty(batch, max_len, heads, k_dim, device=device, dtype=dtype)
        self.v = torch.empty(batch, max_len, heads, v_dim, device=device, dtype=dtype)
        self.length = 0

    def append(
        self, k: Float[Tensor, "B S H Dk"], v: Float[Tensor, "B S H Dv"]
    ) -> tuple[Float[Tensor, "B T H Dk"], Float[Tensor, "B T H Dv"]]:
        """Write the S new keys and values behind the old ones and return all T so far."""
        start, self.length = self.length, room(self.length, k.shape[1], self.k.shape[1])
        self.k[:, start : self.length] = k
        self.v[:, start : self.length] = v
        return self.k[:, : self.length], self.v[:, : self.length]

    @property
    def nbytes_per_token(self) -> int:
        """Bytes of one token in this layer, for one sequence."""
        return (self.k[0, 0].numel() + self.v[0, 0].numel()) * self.k.element_size()


def room(length: int, new: int, max_len: int) -> int:
    """The length after appending `new` tokens; ValueError when the buffer has no room for them."""
    if length + new > max_len:
        raise ValueError(
            f"a cache holds at most the tokens it was made for; got {length} + {new} > {max_len}. "
            "Make it longer: model.new_cache(batch, max_len)."
        )
    return length + new


def causal_mask(S: int, T: int, device=None) -> Bool[Tensor, "S T"]:
    """True where query i, at position T - S + i, may look at key j: j <= T - S + i."""
    return torch.ones(S, T, dtype=torch.bool, device=device).tril(T - S)


def segment_mask(segments: Int[Tensor, "B S"]) -> Bool[Tensor, "B S S"]:
    """True where query i may look at key j of a packed row: not beyond itself, and only within its own segment."""
    same = segments.unsqueeze(-1) == segments.unsqueeze(-2)
    return same & causal_mask(segments.shape[1], segments.shape[1], segments.device)


class GQA(nn.Module):
    """Grouped-query attention over the whole hidden state; MHA and MQA are its two ends."""

    def __init__(self, cfg: Config):
        super().__init__()
        self.n_heads, self.n_kv_heads, self.head_dim = cfg.n_heads, cfg.n_kv_heads, cfg.v_head_dim
        self.wq = nn.Linear(cfg.dim, self.n_heads * self.head_dim, bias=False)
        self.wk = nn.Linear(cfg.dim, self.n_kv_heads * self.head_dim, bias=False)
        self.wv = nn.Linear(cfg.dim, self.n_kv_heads * self.head_dim, bias=False)
        self.wo = nn.Linear(self.n_heads * self.head_dim, cfg.dim, bias=False)

    def forward(
        self,
        x: Float[Tensor, "B S D"],
        freqs_cis: Complex[Tensor, "*b S P"],
        cache: KVCache | None = None,
        mask: Bool[Tensor, "B S T"] | None = None,
    ) -> Float[Tensor, "B S D"]:
        B, S, _ = x.shape
        q = apply_rotary_emb(self.wq(x).view(B, S, self.n_heads, self.head_dim), freqs_cis)
        k = apply_rotary_emb(self.wk(x).view(B, S, self.n_kv_heads, self.head_dim), freqs_cis)
        v = self.wv(x).view(B, S, self.n_kv_heads, self.head_dim)
        if cache is not None:
            k, v = cache.append(k, v)
        return self.wo(attend(q, k, v, self.head_dim**-0.5, mask).flatten(2))

    def new_cache(self, batch: int, max_len: int) -> KVCache:
        """An empty cache for `batch` sequences of at most `max_len` tokens, on the weights' device."""
        w = self.wk.weight
        return KVCache(batch, max_len, self.n_kv_heads, self.head_dim, self.head_dim, w.device, w.dtype)


def attend(
    q: Float[Tensor, "B S H Dk"], k: Float[Tensor, "B T Hk Dk"], v: Float[Tensor, "B T Hk Dv"], scale: float,
    mask: Bool[Tensor, "B S T"] | None = None,
) -> Float[Tensor, "B S H Dv"]:  # fmt: skip
    """softmax(scale q k^T) v, causal, the queries at the last S of T positions; heads of k and v may be shared.

    A `mask` (true: may look) stands in place of the causal one.
    """
    S, T = q.shape[1], k.shape[1]
    causal = mask is None and S == T > 1
    if mask is not None:
        mask = mask.unsqueeze(1)  # one for all heads
    elif S not in (1, T):
        mask = causal_mask(S, T, q.device)
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))  # [B H S D]
    gqa, width = q.shape[1] != k.shape[1], v.shape[-1]
    if S > 1 and width < q.shape[-1]:
        # torch's fused kernel wants equal widths; multiplying zeros costs less than its slow path
        v = F.pad(v, (0, q.shape[-1] - width))
    # o_i = sum_j softmax_j(scale q_i . k_j) v_j
    o = F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, scale=scale, enable_gqa=gqa)
    return o[..., :width].transpose(1, 2)
