"""Pictures of the attention chapters: how far keys and values compress, what decoding costs, the cache of models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from minids.plot.style import BLUE, COLOURS, GREY, LINES, ORANGE, SKY, Picture, axes, styled


@styled
def low_rank(matrix: Sequence[Sequence[float]], rank: int, cut: int | None = None) -> Picture:
    """A matrix of tokens and features, its best approximation of a rank, and the error at every rank.

    Args:
        matrix: [tokens, features], the keys and values of a text.
        rank: numbers kept per token; ValueError unless 1 or more.
        cut: the feature where values begin, marked by a line.
    """
    if rank < 1:
        raise ValueError(f"an approximation keeps at least one number per token, not {rank}: take a rank from 1 on")
    m = np.asarray(matrix, dtype=float)
    u, s, vh = np.linalg.svd(m, full_matrices=False)
    error = 100 * np.sqrt(np.append(np.cumsum(s[::-1] ** 2)[::-1], 0.0) / np.sum(s**2))
    rank = min(rank, len(s))
    alt = f"Keys and values of a text, their best copy of rank {rank}, and the error at every rank"
    picture, ax = axes(alt, 1, 3, height=2.9, width_ratios=(1, 1, 1.25))
    limit = np.percentile(np.abs(m), 99)
    for a, values, title in ((ax[0], m, "keys | values"), (ax[1], u[:, :rank] * s[:rank] @ vh[:rank], f"rank {rank}")):
        a.imshow(values, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest")
        a.set(title=title, xlabel="feature", ylabel="token" if a is ax[0] else "")
        a.grid(visible=False)
        if cut is not None:
            a.axvline(cut - 0.5, color="black", linewidth=1)
    ax[2].plot(np.arange(len(error)), error)
    ax[2].plot([rank], [error[rank]], "o", color=ORANGE)
    ax[2].annotate(f"{error[rank]:.1f}%", (rank, error[rank]), (7, 5), textcoords="offset points")
    ax[2].set(title="error", xlabel="numbers kept per token", ylabel="% of the matrix", ylim=(0, 100), xlim=(0, None))
    return picture


@styled
def quality_by_cache(
    curves: Mapping[str, Mapping[int, float]], full: float, ylabel: str = "loss (bits per byte)"
) -> Picture:
    """Loss against the numbers cached per token, one line of points for each way to shrink the cache.

    Args:
        curves: name -> (numbers per token and layer -> loss).
        full: the loss with nothing taken away, drawn as a level line.
    """
    picture, ax = axes(f"Loss against numbers cached per token: {', '.join(curves)}")
    for i, (name, points) in enumerate(curves.items()):
        marker = "os^D"[i % 4]
        ax.plot(list(points), list(points.values()), LINES[i % 4], marker=marker, color=COLOURS[i % 7], label=name)
    ax.axhline(full, color=GREY, linewidth=1)
    left: Any = ("axes fraction", "data")
    ax.annotate("nothing taken away", (0.01, full), (0, 4), left, textcoords="offset points", color=GREY)
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_formatter(lambda v, _: f"{v:g}")
    ax.set(title="What it costs to cache less", xlabel="numbers cached per token and layer", ylabel=ylabel)
    ax.legend()
    return picture


@styled
def numbers_per_token(rows: Mapping[str, Mapping[str, int]], cached: Sequence[str] = ()) -> Picture:
    """How many numbers one token is made of at each stage, drawn to scale: one bar a stage, cut into parts.

    Args:
        rows: stage -> (part -> numbers).
        cached: the stages that stay in memory, hatched.
    """
    totals = [sum(parts.values()) for parts in rows.values()]
    listed = ", ".join(f"{name} {total:,}" for name, total in zip(rows, totals, strict=True))
    picture, ax = axes(f"Numbers of one token, to scale: {listed}", height=0.7 + 0.42 * len(rows))
    for y, (name, parts) in enumerate(rows.items()):
        left, kept = 0, name in cached
        for i, numbers in enumerate(parts.values()):
            colour = ORANGE if kept else (BLUE, SKY)[i % 2]
            ax.barh(y, numbers, left=left, color=colour, hatch="//" if kept else None, edgecolor="white", height=0.7)
            left += numbers
        text = " + ".join(f"{part} {numbers:,}" for part, numbers in parts.items())
        ax.annotate(text, (left, y), (5, 0), textcoords="offset points", va="center", fontsize=9)
    ax.set(xlim=(0, 1.5 * max(totals)), ylim=(len(rows) - 0.4, -0.6), xlabel="numbers per token and layer")
    ax.set_yticks(range(len(rows)), list(rows))
    ax.xaxis.set_major_formatter(lambda v, _: f"{v:,.0f}")
    ax.grid(visible=False, axis="y")
    return picture


@styled
def decode_cost(
    context: Sequence[float], work: Mapping[str, Sequence[float]], reads: Mapping[str, Sequence[float]]
) -> Picture:
    """Two panels for one decoded token in one layer: multiplications, and cached numbers read, against the context.

    Args:
        context: tokens already cached.
        work, reads: form of attention -> one value for each context.
    """
    picture, ax = axes(f"Multiplications and cache reads per decoded token: {', '.join(work)}", 1, 2, height=3.3)
    panels = ((ax[0], work, "multiplications"), (ax[1], reads, "numbers read from the cache"))
    for a, series, title in panels:
        for i, (name, values) in enumerate(series.items()):
            a.plot(context, values, LINES[i % 4], color=COLOURS[i % 7], label=name, linewidth=3.2 - 0.7 * i)
        a.set(title=title, xlabel="tokens in the cache", xscale="log", yscale="log")
        a.legend()
    ax[0].set_ylabel("per token and layer")
    return picture


@styled
def cache_of_models(
    models: Mapping[str, float], context: int, memory_gb: float = 80.0, marked: Sequence[str] = ()
) -> Picture:
    """Cache of one sequence at a context length, one row a model, on a logarithmic axis with a line at the memory.

    Args:
        models: name -> bytes per token, over all layers.
        context: tokens in the sequence.
        memory_gb: where the line stands (GB, 10^9 bytes).
        marked: names drawn as squares in the second colour: the ones that the reader moves.
    """
    sizes = [b * context / 1e9 for b in models.values()]
    listed = ", ".join(f"{name} {size:.3g} GB" for name, size in zip(models, sizes, strict=True))
    picture, ax = axes(f"Cache of {context:,} tokens: {listed}", height=0.9 + 0.3 * len(models))
    ax.axvline(memory_gb, color=GREY, linewidth=1)
    ax.annotate(f"{memory_gb:g} GB of memory", (memory_gb, -0.9), (3, 0), textcoords="offset points", color=GREY)
    paper = {"facecolor": "white", "edgecolor": "none", "pad": 1}
    for y, (name, size) in enumerate(zip(models, sizes, strict=True)):
        colour, marker = (ORANGE, "s") if name in marked else (BLUE, "o")
        ax.plot([1e-3, size], [y, y], color=colour, linewidth=2.5)
        ax.plot(size, y, marker, color=colour, markersize=9)
        ax.annotate(f"{size:.3g} GB", (size, y), (9, 0), "data", "offset points", va="center", fontsize=9, bbox=paper)
    ax.set(xscale="log", xlim=(0.01, 3000), ylim=(len(models) - 0.4, -1.1), xlabel="cache of one sequence (GB)")
    ax.set_title(f"{context:,} tokens in BF16")
    ax.set_yticks(range(len(models)), list(models))
    ax.grid(visible=False, axis="y")
    return picture
