"""The whole model: embedding, blocks of attention and feed-forward, final norm, head, and the MTP modules beside them.

Paper: DeepSeek-V3 section 2, figure 2; sizes in section 4.2.

    h = embed(tokens)
    for each block:  h = h + attn(attn_norm(h));  h = h + ffn(ffn_norm(h))
    logits = head(norm(h))

The first `n_dense_layers` blocks have a dense FFN, the others a mixture of experts. One class serves every preset, from
the laptop's to the 671 B one. Build that on the meta device, where tensors have shapes and no memory:

    with torch.device("meta"):
        Transformer(v3())

Training calls `losses`, which never holds all logits of a batch.

Differs from the paper: the baselines of the course use GQA in the same class (`cfg.attn`).
Left out: tensor and pipeline parallelism (10_dualpipe, 11_expert_parallel), FP8 (09_fp8).
Notebook: 07_deepseek.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor, nn

from minids.attention import GQA, KVCache, segment_mask
from minids.config import Config
from minids.layers import MLP, RMSNorm, head_loss
from minids.mla import MLA, LatentCache, SlotCache
from minids.moe import Experts, MoE, Routing
from minids.mtp import MTP, mtp_loss
from minids.rope import precompute_freqs_cis
from minids.router import Gate

Cache = list[KVCache | LatentCache]


class Losses(NamedTuple):
    """One batch's losses in nats a token, and the routed load. `balance` and `mtp` come without alpha and lambda."""

    main: Tensor
    mtp: Tensor
    balance: Tensor  # mean over MoE layers of the sequence-wise balance loss
    load: Tensor  # [L_moe E] tokens routed to each expert, MTP's layers last; empty for a dense model


class Block(nn.Module):
    """Attention, then a dense or a mixture-of-experts FFN, each behind a norm and added to the residual stream."""

    def __init__(self, cfg: Config, moe: bool):
        super().__init__()
        self.attn_norm = RMSNorm(cfg.dim, cfg.norm_eps)
        self.attn = MLA(cfg) if cfg.attn == "mla" else GQA(cfg)
        self.ffn_norm = RMSNorm(cfg.dim, cfg.norm_eps)
        self.ffn = MoE(cfg) if moe else MLP(cfg.dim, cfg.inter_dim)

    def forward(
        self, x: Float[Tensor, "B S D"], freqs_cis: Complex[Tensor, "*b S P"], cache=None, impl: str = "naive",
        mask: Tensor | None = None,
    ) -> tuple[Float[Tensor, "B S D"], Routing | None]:  # fmt: skip
        how = (impl,) if isinstance(self.attn, MLA) else ()
        x = x + self.attn(self.attn_norm(x), freqs_cis, cache, *how, mask=mask)
        y = self.ffn(self.ffn_norm(x))
        y, routing = y if isinstance(y, tuple) else (y, None)
        return x + y, routing


class Transformer(nn.Module):
    """DeepSeek-V3 of any size. Weights are drawn by `generator`; the same seed gives the same model."""

    def __init__(self, cfg: Config, generator: torch.Generator | None = None):
        super().__init__()
        self.cfg = cfg
        self.embed = nn.Embedding(cfg.vocab_size, cfg.dim)
        self.layers = nn.ModuleList(Block(cfg, moe=i >= cfg.n_dense_layers) for i in range(cfg.n_layers))
        self.norm = RMSNorm(cfg.dim, cfg.norm_eps)
        self.head = nn.Linear(cfg.dim, cfg.vocab_size, bias=False)
        self.mtp = nn.ModuleList(MTP(cfg, Block(cfg, moe=cfg.has_experts)) for _ in range(cfg.n_mtp_modules))
        self.freqs_cis: Tensor
        self.register_buffer("freqs_cis", precompute_freqs_cis(cfg), persistent=False)
        self.reset_parameters(generator)

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw matrices from N(0, init_std), the paper's way with 0.006, and the embedding from N(0, embed_std)."""
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding, Experts, Gate)):
                std = self.cfg.embed_std if module is self.embed else self.cfg.init_std
                for p in module.parameters(recurse=False):
                    p.normal_(0.0, std, generator=generator)

    def _apply(self, fn, recurse=True):
        """What `to` does to each tensor; the angles move but are never cast: complex to real would drop the sines."""
        super()._apply(lambda t: t if t.is_complex() else fn(t), recurse)
        angles = precompute_freqs_cis(self.cfg) if self.freqs_cis.is_meta else self.freqs_cis
        self.freqs_cis = angles.to(self.norm.weight.device)
        return self

    def forward(
        self, tokens: Int[Tensor, "B S"], cache: Cache | None = None, impl: str | None = None
    ) -> Float[Tensor, "B S W"]:
        """Logits of the next token at every position. With a cache, `tokens` continue what it holds.

        `impl` (MLA only): "naive", "latent" or "absorb"; by default what the cache was made for, and naive without one.
        Raises ValueError for a context longer than `max_seq_len`.
        """
        return self.head(self.hidden(tokens, cache, impl)[0])

    def hidden(
        self, tokens: Int[Tensor, "B S"], cache: Cache | None = None, impl: str | None = None,
        segments: Int[Tensor, "B S"] | None = None,
    ) -> tuple[Float[Tensor, "B S D"], list[Routing]]:  # fmt: skip
        """(the trunk's output after the final norm, the routing of each MoE layer).

        `segments` number the samples of a packed row; a token sees its own sample alone (training: no cache, naive).
        """
        if segments is not None and (cache or impl not in (None, "naive")):
            raise ValueError(
                f"segments are for training on packed rows, without a cache and in the naive form; got impl={impl!r} "
                f"and {'a' if cache else 'no'} cache. Leave both out."
            )
        mask = None if segments is None else segment_mask(segments)
        freqs_cis = self._angles(tokens, cache)
        first = cache[0] if cache else None
        impl = impl or ("absorb" if isinstance(first, LatentCache) else "naive")
        if impl == "absorb" and isinstance(first, LatentCache):  # made once for all layers
            mask = first.mask(tokens.shape[1], self.cfg.n_heads, self.embed.weight.dtype)
        h, routings = self.embed(tokens), []
        for i, layer in enumerate(self.layers):
            h, routing = layer(h, freqs_cis, cache[i] if cache else None, impl, mask)
            routings += [routing] if routing is not None else []
        return self.norm(h), routings

    def losses(self, tokens: Int[Tensor, "B S1"]) -> Losses:
        """Next-token, MTP and balance losses of `tokens`: S inputs and one more as the last target (S1 = S + 1)."""
        inputs, targets = tokens[:, :-1], tokens[:, 1:]
        h, routings = self.hidden(inputs)
        main = self._head_loss(h, targets) / targets.numel()
        angles = self.freqs_cis[: inputs.shape[1]]
        mtp, more = mtp_loss(self.mtp, h, tokens, self.embed, self._head_loss, angles)
        routings += [r for r in more if r is not None]
        if not routings:
            return Losses(main, mtp, main.new_zeros(()), torch.zeros(0, 0, dtype=torch.long, device=main.device))
        balance = torch.stack([r.balance for r in routings]).mean()
        return Losses(main, mtp, balance, torch.stack([r.load for r in routings]))

    @torch.no_grad()
    def for_decoding(self) -> Transformer:
        """Itself, with every matrix laid out in memory as a product with few rows reads it: one row for each input.

        Same shapes, same numbers; at batch 8 a decoded token takes 0.9 times as long. Train it no more: an optimizer
        that takes weights and gradients as they lie would mix up two orders.
        """
        for module in self.modules():
            if isinstance(module, (nn.Linear, Experts)):
                for p in module.parameters(recurse=False):
                    p.data = p.mT.contiguous().mT
        return self

    def gates(self) -> list[Gate]:
        """The gates in the order of the rows of `Losses.load`."""
        return [m for m in self.modules() if isinstance(m, Gate)]

    def new_cache(self, batch: int, max_len: int | None = None, impl: str = "absorb") -> Cache:
        """Empty caches, one a layer, for `batch` sequences of at most `max_len` tokens (default: max_seq_len)."""
        max_len = max_len or self.cfg.max_seq_len
        how = (impl,) if self.cfg.attn == "mla" else ()
        return [layer.attn.new_cache(batch, max_len, *how) for layer in self.layers]  # type: ignore[union-attr,operator]

    def _head_loss(self, h: Float[Tensor, "B S D"], targets: Int[Tensor, "B S"]) -> Float[Tensor, ""]:
        return head_loss(h, self.head.weight, targets)

    def _angles(self, tokens: Int[Tensor, "B S"], cache: Cache | None) -> Complex[Tensor, "*b S P"]:
        start = cache[0].length if cache else 0
        end, longest = start + tokens.shape[1], self.cfg.max_seq_len
        if end > longest:
            raise ValueError(
                f"the context must fit into max_seq_len = {longest}; got {start} + {tokens.shape[1]} = {end} tokens. "
                "Shorten the prompt, or extend the model with YaRN (rope_factor, 12_long_context)."
            )
        first = cache[0] if cache else None
        return self.freqs_cis[first.positions(tokens.shape[1]) if isinstance(first, SlotCache) else slice(start, end)]
