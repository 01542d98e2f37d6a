"""Multi-head Latent Attention: cache one small latent and one rotated key per token, and rebuild every head from them.

Paper: DeepSeek-V3 section 2.1.1, eq. 1-11; DeepSeek-V2 (arXiv 2405.04434) section 2.1 and appendix C.

    c_Q = RMSNorm(W_DQ h)                      q_norm(wq_a(x))      [B S Q]
    q   = W_UQ c_Q, per head [q_nope | q_pe]   wq_b                 [B S H N+R]
    [c | k_pe] = W_DKV h, c = RMSNorm(c)       wkv_a, kv_norm       [B S C], [B S R]
    RoPE turns q_pe of each head and the single k_pe that all heads share
    k_h = [W_UK_h c | k_pe],  v_h = W_UV_h c   wkv_b, per head its N rows of W_UK then its V rows of W_UV
    u   = W_O concat_h(softmax(scale q_h k_h^T) v_h),   scale = (N + R)^-0.5 (times m^2 under YaRN)

Why RoPE is decoupled: without it W_UK moves to the query's side, q_h . (W_UK_h c) = (W_UK_h^T q_h) . c, and the cache
keeps c alone. A rotation between the two would forbid that; so position lives in R features of its own.
Three forms of one function (`impl`):

    naive   caches every head's k and v                      H (N + R + V) values a token   V3: 40,960
    latent  caches [c | k_pe], rebuilds k and v at each step C + R                          V3: 576
    absorb  caches [c | k_pe], never rebuilds: W_UK is taken into the query, W_UV after the mix.
            This is multi-query attention with keys of C + R and values of C features; the scale stays (N + R)^-0.5.

Differs from the paper: nothing. The "additional scaling factors at the width bottlenecks" (section 4.2) are not
published and appear in no public code, so they are not here.
Left out: FP8 cache (`kv8`, 16_decode), tensor parallelism.
Notebook: 03_mla.
"""

from __future__ import annotations

import copy

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor, nn

from minids.attention import KVCache, attend, room
from minids.config import Config
from minids.layers import RMSNorm
from minids.rope import apply_rotary_emb, softmax_mscale

IMPLS = ("naive", "latent", "absorb")


class LatentCache:
    """One layer's [c | k_pe], c after kv_norm, k_pe after RoPE, in a buffer [B, T_max, C + R]; `length` are filled."""

    def __init__(self, batch: int, max_len: int, width: int, device=None, dtype=None):
        # in memory the tokens of one feature lie side by side: q k^T reads them as they lie, without a rearranged copy
        self.kv = torch.empty(batch, width, max_len, device=device, dtype=dtype).mT
        self.length = 0

    def append(self, c: Float[Tensor, "B S C"], k_pe: Float[Tensor, "B S R"]) -> Float[Tensor, "B T CR"]:
        """Write the S new latents and rotated keys behind the old ones and return all T so far, [c | k_pe]."""
        start, self.length = self.length, room(self.length, c.shape[1], self.kv.shape[1])
        self.kv[:, start : self.length] = torch.cat([c, k_pe], -1)
        return self.kv[:, : self.length]

    def positions(self, S: int) -> Int[Tensor, "*b S"]:
        """Where the next S tokens stand."""
        return torch.arange(self.length, self.length + S, device=self.kv.device)

    def mask(self, S: int, heads: int, dtype: torch.dtype) -> Float[Tensor, "#B SH T"] | None:
        """The `query_mask` of the next S tokens, to be asked for before `append`; None where it would be all 0."""
        return None if S == 1 else query_mask(self.positions(S), self.length + S, heads, dtype)

    @property
    def nbytes_per_token(self) -> int:
        """Bytes of one token in this layer, for one sequence."""
        return self.kv[0, 0].numel() * self.kv.element_size()


class SlotCache(LatentCache):
    """A latent cache whose rows are unrelated texts of different lengths: what a server decodes together.

    `lengths` [B] are filled; `length`, the longest, is what a reader has to look at. A row is freed by length 0.
    """

    def __init__(self, batch: int, max_len: int, width: int, device=None, dtype=None):
        super().__init__(batch, max_len, width, device, dtype)
        self.kv.zero_()  # a masked value is multiplied by 0, which must not meet a NaN
        self.lengths = torch.zeros(batch, dtype=torch.long, device=device)

    def append(self, c: Float[Tensor, "B S C"], k_pe: Float[Tensor, "B S R"]) -> Float[Tensor, "B T CR"]:
        """Write S new latents and rotated keys behind each row's own; returns the columns of the longest row."""
        B, S, _ = c.shape
        self.length = room(int(self.lengths.max()), S, self.kv.shape[1])
        self.kv[torch.arange(B, device=c.device)[:, None], self.positions(S)] = torch.cat([c, k_pe], -1)
        self.lengths += S
        return self.kv[:, : self.length]

    def first(self, rows: int) -> SlotCache:
        """The first rows as a cache of their own, in the same memory."""
        part = copy.copy(self)
        part.kv, part.lengths = self.kv[:rows], self.lengths[:rows]
        return part

    def positions(self, S: int) -> Int[Tensor, "B S"]:
        """Where the next S tokens of each row stand."""
        return self.lengths[:, None] + torch.arange(S, device=self.lengths.device)

    def mask(self, S: int, heads: int, dtype: torch.dtype) -> Float[Tensor, "#B SH T"] | None:
        """As `LatentCache.mask`, and a query does not look at another text's rest behind its own."""
        return query_mask(self.positions(S), int(self.lengths.max()) + S, heads, dtype)


def query_mask(at: Int[Tensor, "*b S"], T: int, heads: int, dtype: torch.dtype) -> Float[Tensor, "#B SH T"]:
    """What the absorbed form adds to its scores: 0 where a query at position `at` may look, -inf beyond itself.

    The H queries of a token stand side by side, as queries of one key head. One mask serves all layers of a step.
    """
    beyond = torch.arange(T, device=at.device) > at.unsqueeze(-1)  # [*b S T]
    mask = torch.zeros(beyond.shape, dtype=dtype, device=at.device).masked_fill_(beyond, float("-inf"))
    return mask.repeat_interleave(heads, -2).view(-1, at.shape[-1] * heads, T)


class MLA(nn.Module):
    """Attention whose cache is a latent of C values and one rotated key of R values a token, shared by all H heads."""

    def __init__(self, cfg: Config):
        super().__init__()
        self.H, self.N, self.R, self.V = cfg.n_heads, cfg.qk_nope_head_dim, cfg.qk_rope_head_dim, cfg.v_head_dim
        self.C = cfg.kv_lora_rank
        if cfg.q_lora_rank:
            self.wq_a = nn.Linear(cfg.dim, cfg.q_lora_rank, bias=False)
            self.q_norm = RMSNorm(cfg.q_lora_rank)
            self.wq_b = nn.Linear(cfg.q_lora_rank, self.H * (self.N + self.R), bias=False)
        else:
            self.wq = nn.Linear(cfg.dim, self.H * (self.N + self.R), bias=False)
        self.q_lora = cfg.q_lora_rank > 0
        self.wkv_a = nn.Linear(cfg.dim, self.C + self.R, bias=False)
        self.kv_norm = RMSNorm(self.C)
        self.wkv_b = nn.Linear(self.C, self.H * (self.N + self.V), bias=False)
        self.wo = nn.Linear(self.H * self.V, cfg.dim, bias=False)
        self.scale = (self.N + self.R) ** -0.5 * softmax_mscale(cfg)

    def forward(
        self,
        x: Float[Tensor, "B S D"],
        freqs_cis: Complex[Tensor, "*b S P"],
        cache: KVCache | LatentCache | None = None,
        impl: str = "naive",
        mask: Tensor | None = None,
    ) -> Float[Tensor, "B S D"]:
        """Causal attention over x, or over the cache's tokens and x. `impl` must be the one the cache was made for.

        A `mask` [B S T] (true: may look) stands in place of the causal one. The absorbed form takes a `query_mask`
        that fits the cache; without one it makes its own.
        """
        q_nope, q_pe = self.queries(x, freqs_cis)
        c, k_pe = self.latents(x, freqs_cis)
        if cache is not None:
            self._check_cache(cache, impl)
        if impl == "absorb":
            B, S, _ = c.shape
            old = cache if isinstance(cache, LatentCache) else LatentCache(B, S, self.C + self.R, c.device, c.dtype)
            mask = old.mask(S, self.H, c.dtype) if mask is None else mask
            o = self._absorbed(q_nope, q_pe, old.append(c, k_pe), mask)
        else:
            if isinstance(cache, LatentCache):
                c, k_pe = cache.append(c, k_pe).split([self.C, self.R], -1)
            k, v = self.expand(c, k_pe)
            if isinstance(cache, KVCache):
                k, v = cache.append(k, v)
            o = attend(torch.cat([q_nope, q_pe], -1), k, v, self.scale, mask)
        return self.wo(o.flatten(2))

    def queries(
        self, x: Float[Tensor, "B S D"], freqs_cis: Complex[Tensor, "*b S P"]
    ) -> tuple[Float[Tensor, "B S H N"], Float[Tensor, "B S H R"]]:
        """Each head's query: the part without position, and the part that RoPE turned."""
        B, S, _ = x.shape
        # eq. 6-9: c_Q = RMSNorm(W_DQ h), [q_C; q_R] = W_UQ c_Q, q_R rotated
        q = self.wq_b(self.q_norm(self.wq_a(x))) if self.q_lora else self.wq(x)
        q_nope, q_pe = q.view(B, S, self.H, self.N + self.R).split([self.N, self.R], -1)
        return q_nope, apply_rotary_emb(q_pe, freqs_cis)

    def latents(
        self, x: Float[Tensor, "B S D"], freqs_cis: Complex[Tensor, "*b S P"]
    ) -> tuple[Float[Tensor, "B S C"], Float[Tensor, "B S R"]]:
        """(c, k_pe), all that the cache keeps: the normalised latent, and the rotated key that the heads share."""
        # eq. 1 and 3: c_KV = RMSNorm(W_DKV h), k_R = RoPE(W_KR h)
        c, k_pe = self.wkv_a(x).split([self.C, self.R], -1)
        k_pe = apply_rotary_emb(k_pe.unsqueeze(2), freqs_cis).squeeze(2)
        return self.kv_norm(c), k_pe

    def expand(
        self, c: Float[Tensor, "B T C"], k_pe: Float[Tensor, "B T R"]
    ) -> tuple[Float[Tensor, "B T H Dk"], Float[Tensor, "B T H V"]]:
        """Every head's key (N + R features) and value (V) from the latents."""
        B, T, _ = c.shape
        # eq. 2, 4, 5: k_C = W_UK c, v = W_UV c, k_h = [k_C_h; k_R]
        k_nope, v = self.wkv_b(c).view(B, T, self.H, self.N + self.V).split([self.N, self.V], -1)
        return torch.cat([k_nope, k_pe.unsqueeze(2).expand(-1, -1, self.H, -1)], -1), v

    def _absorbed(
        self,
        q_nope: Float[Tensor, "B S H N"],
        q_pe: Float[Tensor, "B S H R"],
        kv: Float[Tensor, "B T CR"],
        mask: Float[Tensor, "#B SH T"] | None,
    ) -> Float[Tensor, "B S H V"]:
        B, S, H, _ = q_nope.shape
        w_uk, w_uv = self.wkv_b.weight.view(H, self.N + self.V, self.C).split([self.N, self.V], 1)  # [H N C], [H V C]
        # q'_h = W_UK_h^T q_nope_h
        q_c = torch.bmm(q_nope.reshape(B * S, H, self.N).transpose(0, 1), w_uk).transpose(0, 1)  # [BS H C]
        q = torch.cat([q_c.reshape(B, S * H, self.C), q_pe.reshape(B, S * H, self.R)], -1) * self.scale  # [B SH C+R]
        # score_j = scale (q'_h . c_j + q_pe_h . k_pe_j),  z_h = sum_j softmax_j c_j: one key head for all H queries,
        # whose values are the keys' first C features
        scores = torch.bmm(q, kv.mT) if mask is None else torch.baddbmm(mask, q, kv.mT)  # [B SH T]
        z = torch.bmm(scores.softmax(-1), kv[..., : self.C])  # [B SH C]
        # o_h = W_UV_h z_h
        o = torch.bmm(z.reshape(B * S, H, self.C).transpose(0, 1), w_uv.transpose(1, 2))  # [H BS V]
        return o.transpose(0, 1).reshape(B, S, H, self.V)

    def new_cache(self, batch: int, max_len: int, impl: str = "absorb") -> KVCache | LatentCache:
        """An empty cache for `batch` sequences of at most `max_len` tokens, on the weights' device."""
        w = self.wkv_a.weight
        if impl == "naive":
            return KVCache(batch, max_len, self.H, self.N + self.R, self.V, w.device, w.dtype)
        if impl in IMPLS:
            return LatentCache(batch, max_len, self.C + self.R, w.device, w.dtype)
        raise ValueError(f"impl is one of {', '.join(IMPLS)}; got {impl!r}. absorb is the fast one for decoding.")

    def _check_cache(self, cache: KVCache | LatentCache, impl: str) -> None:
        if isinstance(cache, KVCache) != (impl == "naive"):
            raise ValueError(
                f"a cache belongs to the form it was made for; got impl={impl!r} with a {type(cache).__name__}. "
                f"Make it by new_cache(..., impl={impl!r})."
            )
