"""Pictures of long contexts: angles that were never seen, frequencies bent by YaRN's ramp, needles found by place."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from minids.config import Config, v3
from minids.plot.style import BLUE, GREY, LINES, ORANGE, PALE, SKY, Picture, axes, styled, text_on
from minids.rope import inv_freq, yarn_freq, yarn_range


@styled
def bent_frequencies(
    scale: float = 40.0, beta_fast: float = 32.0, beta_slow: float = 1.0, cfg: Config | None = None
) -> Picture:
    """Tokens a turn of every pair: as trained, all slowed `scale` times, and by YaRN; under it, YaRN's ramp.

    Args:
        cfg: whose width, theta and trained length are drawn; V3's when left out. Its YaRN fields are replaced.
    """
    cfg = replace(cfg or v3(), rope_factor=float(scale), beta_fast=float(beta_fast), beta_slow=float(beta_slow))
    R, L0 = cfg.qk_rope_head_dim, cfg.original_seq_len
    before, after, pairs = inv_freq(R, cfg.rope_theta), yarn_freq(R, cfg), range(R // 2)
    low, high = yarn_range(R, cfg)
    ramp = ((torch.arange(R // 2) - low) / (high - low)).clamp(0, 1)
    fate = f"pairs up to {low:.0f} stay, from {high:.0f} on they are slowed {scale:g} times"
    alt = f"Frequencies under YaRN, scale {scale:g}, beta {beta_fast:g} and {beta_slow:g}: {fate}"
    picture, (ax, under) = axes(alt, 2, 1, height=4.6, sharex=True, height_ratios=(2.6, 1))
    for freq, name, colour, line, mark in (
        (before, "RoPE, as trained", BLUE, LINES[0], "o"),
        (before / scale, "position interpolation", SKY, LINES[3], "v"),
        (after, "YaRN", ORANGE, LINES[1], "s"),
    ):
        ax.plot(pairs, (2 * math.pi / freq).tolist(), line, color=colour, marker=mark, markersize=3.5, label=name)
    for length, name in {L0 * scale: "longest context", L0: "trained length"}.items():  # one line where s is 1
        ax.axhline(length, color=GREY, linewidth=1)
        ax.annotate(f"{name}, {length:,.0f}", (0, length), ha="left", va="bottom", fontsize=9, color=GREY)
    ax.set(yscale="log", ylabel="tokens a turn", title=fate[0].upper() + fate[1:])
    ax.legend(loc="lower right")
    under.bar(pairs, ramp.tolist(), color=[ORANGE if r else PALE for r in ramp.tolist()])
    under.plot(pairs, ramp.tolist(), color=ORANGE, linewidth=1.2)
    under.set(xlabel="pair i (fast to slow)", ylabel="ramp", ylim=(0, 1.08))
    return picture


@styled
def angles_seen(freqs: Mapping[str, float], length: int, longer: int) -> Picture:
    """A dial for each frequency: the angles met at distances up to `length`, and those that `longer` adds.

    Args:
        freqs: name -> radians a token.
    """
    new = [name for name, f in freqs.items() if length * f < 2 * math.pi]
    alt = f"Angles at distances up to {length:,} and {longer:,}: of {', '.join(freqs)}, new ones in {', '.join(new)}"
    picture, dials = axes(alt, 1, len(freqs), height=2.5, subplot_kw={"projection": "polar"}, squeeze=False)
    for ax, (name, f) in zip(dials[0], freqs.items(), strict=True):
        seen, met = (min(n * f, 2 * math.pi) for n in (length, longer))
        ax.bar(seen / 2, 1.0, width=seen, color=SKY, edgecolor=BLUE, linewidth=0.5)
        if met > seen:
            ax.bar((seen + met) / 2, 1.0, width=met - seen, color="white", edgecolor=ORANGE, hatch="////")
        ax.set(title=name, xticks=[], yticks=[], ylim=(0, 1))
        ax.set_xlabel(_turns(length * f) + f"\nthen {_turns(longer * f)}", fontsize=9)
    picture.suptitle(
        f"Angles met within {length:,} tokens (blue), and new ones within {longer:,} (hatched)",
        x=0.01,
        ha="left",
        size=11,
    )
    return picture


def _turns(angle: float) -> str:
    n = angle / (2 * math.pi)
    return f"{n:,.0f} turns" if n >= 10 else f"{n:.2g} turns"


@styled
def needle_maps(
    maps: Mapping[str, Sequence[Sequence[float]]], lengths: Sequence[int], depths: Sequence[float], trained: int = 0
) -> Picture:
    """Heat maps of the needles found: a row for each depth, a column for each length, a panel for each model.

    Args:
        maps: name -> shares from 0 to 1, [depths][lengths].
        trained: a line is drawn behind the last length up to this one.
    """
    means = ", ".join(f"{name} {100 * _mean(m):.0f} %" for name, m in maps.items())
    columns = min(3, len(maps))
    rows = -(-len(maps) // columns)
    picture, grid = axes(f"Needles found, mean of all lengths and depths: {means}", rows, columns,
                         height=0.9 + 2.0 * rows, sharex=True, sharey=True, squeeze=False)  # fmt: skip
    image = None
    for ax in grid.flat[len(maps) :]:
        ax.set_visible(False)
    for i, (name, found) in enumerate(maps.items()):
        ax = grid.flat[i]
        image = ax.imshow(found, cmap="cividis", vmin=0, vmax=1, aspect="auto")
        for y, line in enumerate(found):
            for x, share in enumerate(line):
                ink = text_on(_hex(image.cmap(image.norm(share))))
                ax.text(x, y, f"{100 * share:.0f}", ha="center", va="center", fontsize=8, color=ink)
        if trained:
            ax.axvline(sum(n <= trained for n in lengths) - 0.5, color=ORANGE, linewidth=2)
        ax.set_title(name, fontsize=10)
        ax.set_xticks(range(len(lengths)), [f"{n:,}" for n in lengths])
        ax.set_yticks(range(len(depths)), [f"{d:g}" for d in depths])
        ax.grid(visible=False)
        ax.tick_params(length=0)
        if i % columns == 0:
            ax.set_ylabel("depth of the needle")
        if i + columns >= len(maps):  # the lowest of its column
            ax.set_xlabel("length (words)")
            ax.tick_params(labelbottom=True)
    if image is not None:
        picture.colorbar(image, ax=grid, label="found", shrink=0.8, format=lambda share, _: f"{100 * share:.0f} %")
    return picture


def _mean(found: Sequence[Sequence[float]]) -> float:
    return sum(map(sum, found)) / max(sum(map(len, found)), 1)


def _hex(rgba: Any) -> str:
    return "#" + "".join(f"{round(255 * channel):02X}" for channel in rgba[:3])
