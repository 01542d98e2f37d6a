"""Pictures of decoding: what sampling does to a distribution, one cycle of drafts, acceptance against speed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.patches import FancyBboxPatch

from minids.plot.style import BLUE, COLOURS, GREEN, GREY, LINES, ORANGE, PALE, SKY, Picture, axes, label, styled

BOX: dict[str, Any] = {"boxstyle": "round,pad=0.02,rounding_size=0.08", "linewidth": 1}


@styled
def sampling_bars(tokens: Sequence[str], before: Sequence[float], after: Sequence[float], title: str) -> Picture:
    """The likeliest tokens with their probability before and after temperature, top-p and penalty.

    Args:
        tokens: in order of `before`, the likeliest first; before, after: their probabilities, from 0 to 1.
    """
    zero = [label(t) for t, p in zip(tokens, after, strict=True) if p == 0]
    picture, ax = axes(f"{title}: {len(tokens)} likeliest tokens, of which {len(zero)} can no longer be drawn")
    x = range(len(tokens))
    ax.bar([i - 0.2 for i in x], [100 * p for p in before], 0.38, color=SKY, label="as the model says")
    ax.bar([i + 0.2 for i in x], [100 * p for p in after], 0.38, color=ORANGE, hatch="//", label="as it is drawn")
    for i, p in enumerate(after):
        if p == 0:
            ax.text(i + 0.2, 0.5, "×", ha="center", va="bottom", color=ORANGE)
    names = [label(t) for t in tokens]
    ax.set_xticks(x, [n if len(n) <= 9 else n[:8] + "…" for n in names], rotation=45, ha="right")
    ax.set(ylabel="probability (%)", title=title, ylim=(0, 105))
    ax.grid(visible=False, axis="x")
    ax.legend()
    return picture


@styled
def draft_cycles(cycles: Sequence[tuple[Sequence[str], int, str]]) -> Picture:
    """Cycles of drafting and checking: kept drafts in green, refused ones in orange, the main model's own in blue.

    Args:
        cycles: (the drafts, how many were kept, the token that the main model adds) for each cycle.
    """
    total = sum(kept + 1 for _, kept, _ in cycles)
    alt = f"{len(cycles)} cycles of drafts give {total} tokens; kept drafts: {[kept for _, kept, _ in cycles]}"
    most = max(len(drafts) for drafts, _, _ in cycles)
    last = most + 0.3  # where the main model's own tokens stand
    picture, ax = axes(alt, height=0.7 + 0.46 * len(cycles))
    for row, (drafts, kept, own) in enumerate(cycles):
        for i, token in enumerate(drafts):
            lost = i >= kept
            _token(ax, i, row, token, "white" if lost else GREEN, ORANGE if lost else GREEN, struck=i == kept)
        _token(ax, last, row, own, BLUE, BLUE)
    heads = [f"draft {i + 1}" for i in range(most)]
    for x, text in (*enumerate(heads), (last, "main model adds")):
        ax.text(x, -0.75, text, ha="center", va="center", fontsize=9, color=GREY)
    ax.set(xlim=(-0.55, last + 0.55), ylim=(len(cycles) - 0.4, -1.05))
    ax.set_title(f"{len(cycles)} passes of the main model, {total} tokens")
    ax.set_yticks(range(len(cycles)), [f"cycle {i + 1}" for i in range(len(cycles))])
    ax.set_xticks([])
    ax.grid(visible=False)
    ax.spines[["left", "bottom"]].set_visible(False)
    ax.tick_params(length=0)
    return picture


def _token(ax: Any, x: float, y: float, text: str, fill: str, edge: str, struck: bool = False) -> None:
    ax.add_patch(FancyBboxPatch((x - 0.42, y - 0.3), 0.84, 0.6, facecolor=fill, edgecolor=edge, **BOX))
    shown = label(text)
    ink = edge if fill == "white" else "white"
    ax.text(x, y, shown if len(shown) <= 12 else shown[:11] + "…", ha="center", va="center", fontsize=9, color=ink)
    if struck:
        ax.plot([x - 0.36, x + 0.36], [y, y], color=edge, linewidth=1.2)


@styled
def draft_speed(
    acceptance: float, depth: int, verify: float, draft: float, marked: Mapping[str, tuple[float, float]]
) -> Picture:
    """Speed against acceptance for each number of drafts a cycle, and against the number of drafts.

    speed = (1 - a^(K+1)) / (1 - a) / (1 + (verify + draft) K): each draft and each further token to check has its cost.

    Args:
        acceptance: a, the share of drafts that are kept, 0 to 1; depth: K, drafts a cycle.
        verify: what one more token to check costs, draft: what a draft costs, both in plain steps.
        marked: name -> (acceptance, speed) measured elsewhere.
    """

    def speed(a: float, K: int) -> float:
        return sum(a**i for i in range(K + 1)) / (1 + K * (verify + draft))

    now, best = speed(acceptance, depth), max(range(9), key=lambda K: speed(acceptance, K))
    text = f"{acceptance:.0%} of the drafts kept, {depth} a cycle: {now:.2f} times the speed; best with {best}"
    picture, (ax, deep) = axes(text, 1, 2, height=3.6, width_ratios=(1.35, 1), sharey=True)
    shares = [i / 50 for i in range(51)]
    for i, K in enumerate((1, 2, 4)):
        ax.plot([100 * a for a in shares], [speed(a, K) for a in shares], LINES[i], color=COLOURS[i], label=f"K = {K}")
    for i, (name, (a, s)) in enumerate(marked.items()):
        ax.plot([100 * a], [s], "sD^v"[i % 4], color="black", markersize=6, zorder=4)
        ax.annotate(name, (100 * a, s), (-6, 4), textcoords="offset points", ha="right", fontsize=8.5)
    ax.plot([100 * acceptance], [now], "o", color=ORANGE, markersize=10, markeredgecolor="white")
    deep.plot(range(9), [speed(acceptance, K) for K in range(9)], "o-", color=GREY)
    deep.plot([depth], [now], "o", color=ORANGE, markersize=10, markeredgecolor="white")
    for each in (ax, deep):
        each.axhspan(0, 1, color=PALE, zorder=0)
    deep.text(8, 0.06, "slower than plain", ha="right", fontsize=9, color=GREY)
    ax.set(xlabel="drafts kept (%)", ylabel="speed (1 = plain decoding)", xlim=(0, 101), ylim=(0, 3.6))
    ax.set(title=f"{acceptance:.0%} kept, K = {depth}: {now:.2f} times")
    deep.set(xlabel="drafts a cycle, K", title=f"best with K = {best}")
    ax.legend(loc="upper left")
    return picture


@styled
def kept_by_depth(rows: Mapping[str, Sequence[float]]) -> Picture:
    """The share of drafts kept at each depth, of those that were looked at.

    Args:
        rows: domain -> share kept at depth 1, 2, .., from 0 to 1.
    """
    picture, ax = axes(f"Share of drafts kept by depth: {', '.join(rows)}", height=3.0)
    ax.axhspan(85, 90, color=PALE, label="V3 at depth 1")
    for i, (name, shares) in enumerate(rows.items()):
        depths = range(1, len(shares) + 1)
        marker = "osD^v"[i % 5]
        ax.plot(depths, [100 * s for s in shares], LINES[i % 4], marker=marker, color=COLOURS[i % 7], label=name)
    most = max(len(shares) for shares in rows.values())
    ax.set_xticks(range(1, most + 1))
    ax.set(xlabel="depth of the draft", ylabel="kept, of those looked at (%)", ylim=(0, 105), xlim=(0.6, most + 0.4))
    ax.legend(loc="lower left", ncols=3)
    return picture
