"""Pictures of the model floor: the cache of attention, a model's parts, its depth, and conversions that went wrong."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from minids.plot.style import BLUE, COLOURS, GREY, LINES, SKY, Picture, axes, styled, text_on


@styled
def cache_bytes(per_token: Mapping[str, float], max_context: int = 131_072, memory_gb: float | None = None) -> Picture:
    """Memory of the cache against context length, one line for each kind of attention.

    Args:
        per_token: name -> bytes that one token adds to the cache, over all layers.
        max_context: tokens at the right end; ValueError unless positive.
        memory_gb: when given, a level line: the memory there is (GB, 10^9 bytes).
    """
    if max_context <= 0:
        raise ValueError(f"a context has at least one token, not {max_context}: take a positive max_context")
    picture, ax = axes(f"Cache memory up to {max_context} tokens: {', '.join(per_token)}")
    tokens = np.array([0, max_context])
    for i, (name, size) in enumerate(per_token.items()):
        ax.plot(tokens, tokens * size / 1e9, LINES[i % len(LINES)], color=COLOURS[i % len(COLOURS)], label=name)
    if memory_gb is not None:
        ax.axhline(memory_gb, color=GREY, linewidth=1)
        text = f"{memory_gb:g} GB of memory"
        ax.annotate(text, (max_context, memory_gb), (-4, 3), textcoords="offset points", ha="right", color=GREY)
    ax.set(title="What one sequence keeps", xlabel="context (tokens)", ylabel="cache (GB)", xlim=(0, max_context))
    ax.set_ylim(bottom=0)
    ax.legend()
    return picture


@styled
def anatomy(parts: Mapping[str, Mapping[str, int]], title: str = "Where the parameters are") -> Picture:
    """Parameters of one or several models, each a bar that is cut into its parts.

    Args:
        parts: model -> (part -> parameters). Bars are shares of the whole, so tiny and 671B stand side by side.
    """
    names = list(dict.fromkeys(part for model in parts.values() for part in model))
    picture, ax = axes(f"Shares of the parameters by part: {', '.join(parts)}", height=0.8 + 0.62 * len(parts))
    left = np.zeros(len(parts))
    totals = np.array([sum(model.values()) for model in parts.values()], dtype=float)
    for i, part in enumerate(names):
        share = np.array([model.get(part, 0) for model in parts.values()]) / totals
        bars = ax.barh(list(parts), share, left=left, color=COLOURS[i % len(COLOURS)], label=part, edgecolor="white")
        texts = [f"{100 * s:.0f}%" if s > 0.05 else "" for s in share]
        ax.bar_label(bars, texts, label_type="center", color=text_on(COLOURS[i % len(COLOURS)]), fontsize=9)
        left = left + share
    for y, total in enumerate(totals):
        ax.annotate(_short(total), (1, y), (5, 0), textcoords="offset points", va="center", annotation_clip=False)
    ax.set(xlim=(0, 1), xticks=[])
    ax.invert_yaxis()
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)
    picture.suptitle(title, x=0.01, ha="left", fontsize=11)
    picture.legend(loc="outside lower left", ncols=4)
    return picture


def _short(count: float) -> str:
    """A count in words' length: 671.0B, 1.8M, 512."""
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if count >= size:
            return f"{count / size:.1f}{letter}"
    return f"{count:.0f}"


@styled
def by_depth(lines: Mapping[str, Sequence[float]], ylabel: str, title: str = "") -> Picture:
    """A number after each block, from the first to the last, one line for each way to build the blocks.

    Args:
        lines: name -> one positive number a block; a line ends where its numbers are no longer finite.
        ylabel: what the numbers are. Their axis is logarithmic.
    """
    picture, ax = axes(f"{title or ylabel} by depth: {', '.join(lines)}", height=3.0)
    for i, (name, values) in enumerate(lines.items()):
        colour, shown = COLOURS[i % len(COLOURS)], [v for v in values if math.isfinite(v)]
        ax.plot(range(1, len(shown) + 1), shown, LINES[i % len(LINES)], color=colour, label=name)
        if len(shown) < len(values):
            ax.plot(len(shown), shown[-1], "X", color=colour, markersize=9)
            text = f"beyond the largest number after block {len(shown)}"
            ax.annotate(text, (len(shown), shown[-1]), (8, 0), textcoords="offset points", va="center", color=colour)
    ax.set(title=title, xlabel="block", ylabel=ylabel, yscale="log")
    ax.margins(y=0.12)
    ax.legend()
    return picture


@styled
def conversions(found: Mapping[str, tuple[float, float]], right: float, rounding: float) -> Picture:
    """Mistakes in converting weights: the largest difference of a logit, and what it does to the text's prediction.

    Args:
        found: mistake -> (largest difference of a logit, bits per byte afterwards).
        right: bits per byte without a mistake.
        rounding: the difference of a logit that rounding makes.
    """
    names = list(found)
    picture, (left, other) = axes(f"Converted with a mistake: {', '.join(names)}", 1, 2, height=1.1 + 0.3 * len(names))
    for ax, start, column, form in ((left, rounding, 0, "{:.2g}"), (other, 0.0, 1, "{:.2f}")):
        values = [pair[column] for pair in found.values()]
        ax.barh(names, [v - start for v in values], left=start, color=(BLUE, SKY)[column], height=0.55)
        for y, v in enumerate(values):
            ax.annotate(form.format(v), (v, y), (4, 0), textcoords="offset points", va="center", fontsize=9)
        mark, text = ((rounding, "rounding"), (right, "as trained"))[column]
        ax.axvline(mark, color=GREY, linewidth=1, linestyle="--")
        ax.annotate(text, (mark, -0.75), (4, 0), textcoords="offset points", va="center", fontsize=9, color=GREY)
        ax.set_ylim(len(names) - 0.4, -1.1)
        ax.grid(visible=False, axis="y")
    most, worst = (max(pair[column] for pair in found.values()) for column in (0, 1))
    left.set(title="largest difference of a logit", xscale="log", xlim=(rounding / 2, 30 * most))
    other.set(title="bits per byte, unseen stories", yticks=[], xlim=(0, 1.25 * worst))
    return picture
