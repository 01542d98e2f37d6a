"""Multi-token prediction: small extra modules, one block each, that predict the token after next from the same trunk.

Paper: DeepSeek-V3 section 2.2, eq. 21-25; names as in the released weights (`norm` is their shared_head.norm).

Depth k at position i sees the hidden state h^(k-1)_i and the embedding of the token k ahead; it predicts the next one:

    h'_i = M_k [RMSNorm(Emb(t_(i+k))) ; RMSNorm(h^(k-1)_i)]    enorm, hnorm, eh_proj     eq. 21
    h^k  = TRM_k(h'_(1..T-k))                                  block                     eq. 22
    P^k_(i+k+1) = OutHead(h^k_i)                               norm, the shared head     eq. 23
    L^k = -1/T sum_i log P^k_(i+k+1)[t_(i+k+1)]                T - k terms, divided by T eq. 24
    L_MTP = lambda / D sum_k L^k                               `mtp_loss` (no lambda)    eq. 25

    position i        0    1    2    3    4    5      T = 6 inputs; t_6 is the last target
    main predicts     t1   t2   t3   t4   t5   t6
    depth 1 reads     t1   t2   t3   t4   t5   -      (with h_i)
    depth 1 predicts  t2   t3   t4   t5   t6   -

The embedding and the head are the main model's own. At decoding the module is dropped, or drafts a token to be
verified.

Differs from the paper: the concatenation puts the embedding first, as the released weights do; eq. 21 prints the hidden
state first, the same function after swapping M_k's column halves. h^0 is the trunk's output after its final norm, as
`transformers` and vLLM take it; the paper does not say.
Left out: masking targets across document borders (V3 packs without masks in pre-training).
Notebook: 06_mtp.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor, nn

from minids.config import Config
from minids.layers import RMSNorm


class MTP(nn.Module):
    """One depth of multi-token prediction around a transformer `block` of its own."""

    def __init__(self, cfg: Config, block: nn.Module):
        super().__init__()
        self.enorm = RMSNorm(cfg.dim, cfg.norm_eps)
        self.hnorm = RMSNorm(cfg.dim, cfg.norm_eps)
        self.eh_proj = nn.Linear(2 * cfg.dim, cfg.dim, bias=False)
        self.block = block
        self.norm = RMSNorm(cfg.dim, cfg.norm_eps)

    def forward(
        self,
        h: Float[Tensor, "B S D"],
        emb: Float[Tensor, "B S D"],
        freqs_cis: Complex[Tensor, "*b S P"],
        cache=None,
        impl: str = "naive",
    ):
        """(h^k [B S D] ready for the shared head, the block's routing); `emb` embeds the token k ahead of h's."""
        # eq. 22
        x, routing = self.block(self.project(h, emb), freqs_cis, cache, impl)
        return self.norm(x), routing

    def project(self, h: Float[Tensor, "B S D"], emb: Float[Tensor, "B S D"]) -> Float[Tensor, "B S D"]:
        """Eq. 21: the block's input, from the hidden states and the embeddings of the tokens k ahead of them."""
        return self.eh_proj(torch.cat([self.enorm(emb), self.hnorm(h)], -1))

    def last(
        self, h: Float[Tensor, "B S D"], emb: Float[Tensor, "B S D"], freqs_cis: Complex[Tensor, "S P"], cache
    ) -> Float[Tensor, "B 1 D"]:
        """h^k of the last position alone: of the others a single block needs no more than their latents in the cache.

        For drafting over MLA's latent cache; the same numbers as `forward(..., "absorb")[:, -1:]`.
        """
        x, block = self.project(h, emb), self.block
        if x.shape[1] > 1:
            cache.append(*block.attn.latents(block.attn_norm(x[:, :-1]), freqs_cis[:-1]))  # type: ignore[union-attr,operator]
        return self.norm(block(x[:, -1:], freqs_cis[-1:], cache, "absorb")[0])


def mtp_loss(
    modules: Sequence[MTP] | nn.ModuleList,
    h: Float[Tensor, "B S D"],
    tokens: Int[Tensor, "B S1"],
    embed: nn.Module,
    head_loss: Callable[[Tensor, Tensor], Tensor],
    freqs_cis: Complex[Tensor, "S P"],
) -> tuple[Float[Tensor, ""], list]:
    """(mean over depths of L^k, the routings): `tokens` holds the S inputs and the last target, S1 = S + 1.

    `head_loss(h, targets)` is the summed cross-entropy of the shared head. Lambda is the caller's.
    """
    B, S, _ = h.shape
    total, routings = h.new_zeros(()), []
    for k, module in enumerate(modules, start=1):
        reads, targets = shifted(tokens, k)
        n = reads.shape[1]  # S - k: the last k positions have no target
        h, routing = module(h[:, :n], embed(reads), freqs_cis[:n])
        # eq. 24: n terms a sequence, divided by T = S
        total = total + head_loss(h, targets) / (B * S)
        routings.append(routing)
    return total / max(len(modules), 1), routings


def shifted(tokens: Int[Tensor, "B S1"], k: int) -> tuple[Int[Tensor, "B n"], Int[Tensor, "B n"]]:
    """(what depth k reads, what it must predict) for the positions that have both; k = 0 is the main model."""
    n = tokens.shape[1] - 1 - k
    return tokens[:, k : k + n], tokens[:, k + 1 : k + 1 + n]


def module_of(model: Any) -> MTP:
    """The first MTP module of a `Transformer` over MLA, which drafts; ValueError for a model without one."""
    if not len(model.mtp) or model.cfg.attn != "mla":
        raise ValueError(
            "drafts come from an MTP module over MLA; this model has "
            f"n_mtp_modules={len(model.mtp)}, attn={model.cfg.attn!r}. Train one, or use generate."
        )
    return model.mtp[0]
