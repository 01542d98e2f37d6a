"""Pictures of attention with a cache: the time of each step, where the mask sits, turning pairs, what has to fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.patches import Circle, Rectangle

from minids.plot.style import BLUE, COLOURS, GREY, LINES, ORANGE, PALE, Picture, axes, styled


@styled
def step_times(seconds: Mapping[str, Sequence[float]], block: int = 1) -> Picture:
    """The time of each step of writing a text, and the sum of all steps so far, one line for each way to write.

    Args:
        seconds: name -> time of step 1, 2, ...
        block: so many steps are averaged for a point of the left panel.
    """
    picture, (ax, total) = axes(f"Time of each step and of all steps so far: {', '.join(seconds)}", 1, 2, height=3.1)
    for i, (name, values) in enumerate(seconds.items()):
        look: dict[str, Any] = {"linestyle": LINES[i % 4], "color": COLOURS[i % 7], "label": name}
        n = len(values) // block
        means = np.asarray(values)[: n * block].reshape(n, block).mean(1)
        ax.plot((np.arange(n) + 0.5) * block, 1000 * means, **look)
        total.plot(np.arange(1, len(values) + 1), np.cumsum(values), **look)
    ax.set(title="one step", xlabel="tokens so far", ylabel="milliseconds", xlim=(0, None), ylim=(0, None))
    total.set(title="all steps so far", xlabel="tokens so far", ylabel="seconds", xlim=(0, None), ylim=(0, None))
    total.legend()
    return picture


@styled
def mask_corners(queries: int, keys: int) -> Picture:
    """Two causal masks of the same shape side by side: aligned to the upper left corner, and to the lower right.

    Args:
        queries: S, the new tokens, at the end of `keys`, T, tokens; ValueError unless 1 <= S <= T.
    """
    if not 1 <= queries <= keys:
        raise ValueError(
            f"the queries are the last of the keys, so 1 <= S <= T; got S = {queries}, T = {keys}. Move one of the two."
        )
    alt = f"Which of {keys} keys {queries} queries see, with the mask at the upper left corner and at the lower right"
    picture, (left, right) = axes(alt, 1, 2, height=1.35 + 0.22 * queries)
    _mask(left, queries, keys, 0, "upper left: torch's is_causal=True")
    _mask(right, queries, keys, keys - queries, "lower right: what a cache needs")
    return picture


def _mask(ax: Any, queries: int, keys: int, offset: int, title: str) -> None:
    """Row i may see the keys up to i + offset (blue); the key of its own token has an orange frame."""
    first = keys - queries
    for i in range(queries):
        for j in range(keys):
            colour = BLUE if j <= i + offset else PALE
            ax.add_patch(Rectangle((j - 0.45, i - 0.42), 0.9, 0.84, facecolor=colour, edgecolor="none"))
        own = (first + i - 0.43, i - 0.4)
        ax.add_patch(Rectangle(own, 0.86, 0.8, facecolor="none", edgecolor=ORANGE, linewidth=2.2))
    ax.set(title=title, xlabel="key (framed: the query's own)", xlim=(-0.6, keys - 0.4))
    ax.set_ylim(queries - 0.4, -0.6)
    ax.set_xticks(range(keys))
    ax.set_yticks(range(queries), [f"query at {first + i}" for i in range(queries)])
    ax.grid(visible=False)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)


@styled
def turning_pairs(query: int, key: int, features: int = 16, theta: float = 10_000.0, longest: int = 200) -> Picture:
    """RoPE as clocks, one for each pair of features, and the score of two equal vectors against their distance.

    Args:
        query, key: the two positions; the clocks' hands have turned by position x f_i.
        features: R, even; theta: the base of the frequencies f_i = theta^(-2i/R).
        longest: the largest distance of the lower panel.
    """
    f = theta ** -(np.arange(0, features, 2) / features)
    distance = query - key
    score = float(np.cos(distance * f).mean())
    alt = f"RoPE: query at {query}, key at {key}, distance {distance}: the score of equal vectors is {score:.3f}"
    picture, (clocks, curve) = axes(alt, 2, 1, height=4.2, height_ratios=(1, 1.5))
    for i, frequency in enumerate(f):
        _clock(clocks, 2.5 * i, query * frequency, key * frequency)
        turn = f"{2 * np.pi / frequency:,.0f}" if i else "6.3"
        clocks.annotate(turn, (2.5 * i, -1.45), ha="center", va="top", fontsize=9, color=GREY)
    clocks.set(xlim=(-1.3, 2.5 * len(f) - 1.2), ylim=(-2.3, 1.2), aspect="equal", xticks=[], yticks=[])
    clocks.set_title(f"query at {query} (orange), key at {key} (blue, dashed); below: tokens for a full turn")
    clocks.spines[:].set_visible(False)
    d = np.linspace(0, longest, 8 * longest + 1)
    curve.plot(d, np.cos(d * f[0]), LINES[3], color=GREY, linewidth=0.8, label="the first pair alone")
    curve.plot(d, np.cos(np.outer(d, f)).mean(1), color=BLUE, label=f"all {len(f)} pairs")
    curve.plot([abs(distance)], [score], "o", color=ORANGE, markersize=9, zorder=3)
    curve.set(xlabel="distance (tokens)", ylabel="score", xlim=(0, longest), ylim=(-1.05, 1.05))
    curve.set_title(f"score of two equal vectors; at distance {distance}: {score:.3f}")
    curve.legend(loc="upper right", ncols=2, framealpha=1, frameon=True)
    return picture


def _clock(ax: Any, x: float, query: float, key: float) -> None:
    ax.add_patch(Circle((x, 0), 1, facecolor="white", edgecolor=GREY, linewidth=1))
    for angle, colour, line, width in ((query, ORANGE, "-", 2.6), (key, BLUE, (0, (3, 1.5)), 2.2)):
        ax.plot([x, x + np.cos(angle)], [0, np.sin(angle)], color=colour, linestyle=line, linewidth=width)


@styled
def what_fits(
    kinds: Mapping[str, tuple[float, float, float]],
    context: int,
    users: int,
    memory_gb: float,
    gb_per_second: float,
    contexts: tuple[int, int] = (256, 131_072),
) -> Picture:
    """What a machine must hold for all users, against their context; and the time of one step, reading and computing.

    Args:
        kinds: name -> (GB of weights, GB of cache per token and user, milliseconds of arithmetic in one step).
        context: tokens of each user, marked in the left panel; the right panel is drawn for it.
        memory_gb, gb_per_second: what the machine has (GB, 10^9 bytes).
    """
    held = {name: weights + users * context * cache for name, (weights, cache, _) in kinds.items()}
    listed = ", ".join(f"{name} {gb:,.0f} GB" for name, gb in held.items())
    alt = f"{users} users of {context:,} tokens need {listed}; there are {memory_gb:g} GB"
    picture, (ax, step) = axes(alt, 1, 2, height=3.4, width_ratios=(1.15, 1))
    tokens = np.geomspace(*contexts, 60)
    for i, (name, (weights, cache, _)) in enumerate(kinds.items()):
        fits = max(memory_gb - weights, 0) // (users * cache)
        text = f"{name}: up to {fits:,.0f}"
        ax.plot(tokens, weights + users * tokens * cache, LINES[i % 4], color=COLOURS[i % 7], label=text)
        ax.plot(context, held[name], "os^D"[i % 4], color=COLOURS[i % 7], markersize=7)
    ax.axhline(memory_gb, color=GREY, linewidth=1)
    ax.annotate(f"{memory_gb:g} GB", (contexts[0], memory_gb), (3, 3), textcoords="offset points", color=GREY)
    ax.axvline(context, color=PALE, linewidth=3, zorder=0)
    ax.set(xscale="log", yscale="log", xlim=contexts, ylim=(1, 1e6), ylabel="weights and all caches (GB)")
    ax.set(title=f"{users} users: who fits", xlabel="tokens of each user")
    ax.set_xticks([256 * 8**i for i in range(4)], ["256", "2K", "16K", "128K"])
    ax.set_yticks([10.0**i for i in range(6)], ["1", "10", "100", "1,000", "10,000", "100,000"])
    ax.minorticks_off()  # and plain labels: half the time to draw
    ax.legend(title="tokens that fit", loc="upper left", title_fontsize=9)
    _step_bars(step, kinds, {name: gb <= memory_gb for name, gb in held.items()}, users * context, gb_per_second)
    return picture


def _step_bars(
    ax: Any, kinds: Mapping[str, tuple[float, float, float]], fits: Mapping[str, bool], tokens: int, speed: float
) -> None:
    """One step of each kind: a bar for reading (weights, then caches), a thin one for arithmetic."""
    for y, (name, (weights, cache, arithmetic)) in enumerate(kinds.items()):
        first, rest = 1000 * weights / speed, 1000 * tokens * cache / speed
        if fits[name]:
            ax.barh(y, first, height=0.42, color=BLUE)
            ax.barh(y, rest, left=first, height=0.42, color=ORANGE, hatch="//", edgecolor="white")
            ax.barh(y + 0.32, arithmetic, height=0.16, color="black")
        text = f"{first + rest:.1f} ms" if fits[name] else "does not fit"
        ax.annotate(text, (first + rest if fits[name] else 0, y), (5, 0), textcoords="offset points", va="center")
    handles = [Rectangle((0, 0), 1, 1, color=BLUE), Rectangle((0, 0), 1, 1, fc=ORANGE, hatch="//", ec="white")]
    handles.append(Rectangle((0, 0), 1, 1, color="black"))
    names = ["read weights", "read caches", "arithmetic"]
    ax.legend(handles, names, loc="upper center", bbox_to_anchor=(0.4, -0.2), ncols=3, handlelength=1, columnspacing=1)
    longest = max(1000 * (w + tokens * c) / speed if fits[name] else 1.0 for name, (w, c, _) in kinds.items())
    ax.set(title="one step: a token for each user", xlabel="milliseconds", xlim=(0, 1.35 * longest))
    ax.set_ylim(len(kinds) - 0.4, -0.6)
    ax.set_yticks(range(len(kinds)), [name.replace(", ", ",\n") for name in kinds])
    ax.grid(visible=False, axis="y")
