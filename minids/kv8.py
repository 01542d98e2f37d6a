"""A latent cache in FP8: one byte for each value of the latent, a scale for each 128 of them, the rotated key in BF16.

Source: the README of DeepSeek's FlashMLA describes this cache for V3.2; DeepSeek-V3 section 3.3.2 has the tiles. The
technical report of V3 itself says nothing of an FP8 cache.

    c      [C]  E4M3, tile j divided by s_j = max |c_tile| / 448      C bytes
    s      one FP32 scale for each tile of 128 values                 4 ceil(C / 128) bytes
    k_pe   [R]  BF16: positions are read as differences of angles, which 3 bits of mantissa would blur      2 R bytes

V3 (C 512, R 64): 512 + 16 + 128 = 656 bytes a token and layer, against 2 (C + R) = 1,152 in BF16.

Differs from FlashMLA: there the kernel expands the values while it reads them; here `append` expands the whole cache at
each step, so it saves memory between steps and costs time in them.
Left out: slots of different lengths in FP8 (17_serving keeps them in full).
Notebook: 16_decode.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from minids.attention import room
from minids.fp8 import TILE, quantize
from minids.mla import MLA, LatentCache
from minids.model import Cache, Transformer


class Fp8LatentCache(LatentCache):
    """One layer's latents as E4M3 codes with scales, and its rotated keys in BF16; `length` tokens are filled."""

    def __init__(self, batch: int, max_len: int, latent: int, rope: int, device=None):
        tiles = -(-latent // TILE[1])
        self.kv = torch.empty(batch, max_len, latent, device=device, dtype=torch.float8_e4m3fn)
        self.scale = torch.empty(batch, max_len, tiles, device=device)
        self.k_pe = torch.empty(batch, max_len, rope, device=device, dtype=torch.bfloat16)
        self.length = 0

    def append(self, c: Float[Tensor, "B S C"], k_pe: Float[Tensor, "B S R"]) -> Float[Tensor, "B T CR"]:
        """Round and write S new latents and rotated keys; returns all T so far as they are read back, [c | k_pe]."""
        start, self.length = self.length, room(self.length, c.shape[1], self.kv.shape[1])
        new, q = slice(start, self.length), quantize(c.flatten(0, 1), TILE)
        self.kv[:, new] = q.values.view_as(c).to(self.kv.dtype)  # on the grid already: exact
        self.scale[:, new] = q.scale.view(*c.shape[:2], -1)
        self.k_pe[:, new] = k_pe
        return torch.cat([self.latents().to(c.dtype), self.k_pe[:, : self.length].to(c.dtype)], -1)

    def latents(self) -> Float[Tensor, "B T C"]:
        """What the codes and scales mean, in FP32."""
        scale = self.scale[:, : self.length].repeat_interleave(TILE[1], -1)[..., : self.kv.shape[-1]]
        return self.kv[:, : self.length].float() * scale

    @property
    def nbytes_per_token(self) -> int:
        """Bytes of one token in this layer, for one sequence: codes, scales and rotated key."""
        return sum(part[0, 0].numel() * part.element_size() for part in (self.kv, self.scale, self.k_pe))


def new_fp8_cache(model: Transformer, batch: int, max_len: int | None = None) -> Cache:
    """Empty FP8 caches, one a layer, for the absorbed or the latent form."""
    attentions = [layer.attn for layer in model.layers]
    if not all(isinstance(attn, MLA) for attn in attentions):
        raise ValueError(f"an FP8 cache holds latents; got attn={model.cfg.attn!r}. Use attn='mla', or new_cache.")
    device, cfg = model.embed.weight.device, model.cfg
    n = max_len or cfg.max_seq_len
    return [Fp8LatentCache(batch, n, cfg.kv_lora_rank, cfg.qk_rope_head_dim, device) for _ in attentions]
