"""RoPE turns pairs of features by an angle that grows with the position; YaRN bends the angles for longer contexts.

Paper: RoPE arXiv 2104.09864; YaRN arXiv 2309.00071; their use in DeepSeek-V3 sections 2.1.1 (eq. 3 and 8) and 4.3.

Pair i of R features turns at f_i = theta^(-2i/R) radians a token. A dot product of a query turned by its position s and
a key turned by t depends on s - t alone: that is the point. Position s multiplies the pair, read as one complex number,
by exp(i s f_i); `freqs_cis[s, i]` holds that number.

YaRN with factor s (`rope_factor`) over the trained length L0 (`original_seq_len`):
    corr(r) = R ln(L0 / (2 pi r)) / (2 ln theta)       the pair that makes r turns within L0
    low = floor(corr(beta_fast)),  high = ceil(corr(beta_slow))
    ramp_i = clamp((i - low) / (high - low), 0, 1)
    f'_i = f_i (1 - ramp_i) + f_i / s ramp_i           fast pairs stay, slow pairs are slowed s times
and a temperature: the softmax scale is multiplied by m^2, m = 0.1 mscale_all_dim ln s + 1 (`softmax_mscale`).
For V3 (R 64, L0 4096, s 40): low 10, high 23, m^2 = 1.8738542.

Differs from the paper: nothing; where papers are silent we do what `transformers` does: frequencies bent at every
length, high clamped at R - 1, cos and sin multiplied by the ratio of mscale to mscale_all_dim, which is 1 for V3.
Left out: the other scalings (linear, dynamic NTK).
Notebook: 02_attention (RoPE), 12_long_context (YaRN).
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from minids.config import Config


def inv_freq(dim: int, theta: float) -> Float[Tensor, "P"]:
    """Radians a token of each of the dim/2 pairs: theta^(-2i/dim)."""
    return theta ** -(torch.arange(0, dim, 2, dtype=torch.float32) / dim)


def yarn_range(dim: int, cfg: Config) -> tuple[float, float]:
    """(low, high): pairs up to low keep their frequency, pairs from high on are divided by `rope_factor`."""

    def corr(turns: float) -> float:
        # corr(r) = R ln(L0 / (2 pi r)) / (2 ln theta)
        return dim * math.log(cfg.original_seq_len / (turns * 2 * math.pi)) / (2 * math.log(cfg.rope_theta))

    low = float(max(math.floor(corr(cfg.beta_fast)), 0))
    high = float(min(math.ceil(corr(cfg.beta_slow)), dim - 1))
    return low, high if high != low else high + 0.001


def yarn_freq(dim: int, cfg: Config) -> Float[Tensor, "P"]:
    """The pairs' frequencies after YaRN; unchanged when `rope_factor` is 1."""
    f = inv_freq(dim, cfg.rope_theta)
    if cfg.rope_factor == 1:
        return f
    low, high = yarn_range(dim, cfg)
    ramp = ((torch.arange(dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    # f'_i = f_i (1 - ramp_i) + f_i / s ramp_i
    return f * (1 - ramp) + f / cfg.rope_factor * ramp


def get_mscale(factor: float, mscale: float) -> float:
    """m = 0.1 mscale ln s + 1, the root of YaRN's attention temperature; 1 without scaling."""
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0


def softmax_mscale(cfg: Config) -> float:
    """m^2, by which YaRN multiplies the softmax scale of all query and key features: 1.8738542 for V3."""
    return get_mscale(cfg.rope_factor, cfg.mscale_all_dim) ** 2


def rotary_mscale(cfg: Config) -> float:
    """What YaRN multiplies cos and sin by: m(mscale) / m(mscale_all_dim), or m(1) when either is 0. It is 1 for V3."""
    if cfg.mscale and cfg.mscale_all_dim:
        return get_mscale(cfg.rope_factor, cfg.mscale) / get_mscale(cfg.rope_factor, cfg.mscale_all_dim)
    return get_mscale(cfg.rope_factor, 1.0)


def precompute_freqs_cis(cfg: Config) -> Complex[Tensor, "L P"]:
    """exp(i s f) for every position s below `max_seq_len` (rows) and every pair (columns), on the default device."""
    with torch.device("cpu"):  # the same numbers for every device
        angle = torch.outer(torch.arange(cfg.max_seq_len, dtype=torch.float32), yarn_freq(cfg.qk_rope_head_dim, cfg))
        table = torch.polar(torch.full_like(angle, rotary_mscale(cfg)), angle)
    return table.to(torch.get_default_device())


def apply_rotary_emb(x: Float[Tensor, "B S H R"], freqs_cis: Complex[Tensor, "*b S P"]) -> Float[Tensor, "B S H R"]:
    """Turn the pairs (x0,x1), (x2,x3), .. of each head by its position's angle: DeepSeek's interleaved layout.

    The angles are the same for all rows, or [B S P] where rows stand at different positions.
    """
    B, S, H, R = x.shape
    wide = (x if x.dtype.itemsize >= 4 else x.float()).contiguous()
    z = torch.view_as_complex(wide.view(B, S, H, R // 2, 2))  # [B S H R/2]
    # (x0 + i x1) exp(i s f)
    return torch.view_as_real(z * freqs_cis.unsqueeze(-2)).view(B, S, H, R).to(x.dtype)
