"""Pictures of balancing: the load of each expert over a run, what balance costs, who works for which domain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.colors import to_hex

from minids.plot.style import BLUE, COLOURS, GREEN, GREY, LINES, ORANGE, PALE, Picture, axes, styled, text_on

LOAD: dict[str, Any] = {"cmap": "RdBu_r", "vmin": 0, "vmax": 2}  # 1, the fair share, is white
MARKS = "osD^v"


def _relative(loads: Sequence[Sequence[float]]) -> np.ndarray:
    """[E, steps]: load / fair share."""
    counts = np.asarray(loads, dtype=float)
    return (counts / np.maximum(counts.mean(1, keepdims=True), 1e-9)).T


@styled
def load_maps(runs: Mapping[str, Sequence[Sequence[float]]]) -> Picture:
    """The load of each expert at every step, a map for each run.

    Args:
        runs: name -> [steps, experts], tokens routed to each expert. Experts are shown by their load in the end.
    """
    alt = f"Load of each expert at each step, as a multiple of its fair share: {', '.join(runs)}"
    picture, ax = axes(alt, 1, len(runs), height=2.9, sharey=True, squeeze=False)
    image = None
    for a, (name, loads) in zip(ax[0], runs.items(), strict=True):
        shares = _relative(loads)
        shares = shares[np.argsort(-shares[:, -20:].mean(1), kind="stable")]
        E, n = shares.shape
        image = a.imshow(shares, aspect="auto", interpolation="nearest", extent=(0, n, E + 0.5, 0.5), **LOAD)
        a.set(title=name, xlabel="step")
        a.grid(visible=False)
    ax[0, 0].set_ylabel("experts, busiest first")
    if image is not None:
        bar = picture.colorbar(image, ax=ax, ticks=[0, 1, 2], extend="max", pad=0.02)
        bar.set_ticklabels(["0: idle", "1: fair", "2 or more"])
    return picture


@styled
def balance_curves(
    runs: Mapping[str, Sequence[Sequence[float]]], smooth: int = 20, lines: Sequence[float] = (), title: str = ""
) -> Picture:
    """MaxVio over a run: one line a seed, one style an arm.

    Args:
        runs: arm -> [seeds][steps].
        smooth: what is shown at a step is the mean of the last so many.
        lines: heights of level lines.
    """
    picture, ax = axes(f"MaxVio, mean of {smooth} steps, against steps: {', '.join(runs)}", height=3.0)
    for height in lines:
        ax.axhline(height, color=GREY, linewidth=0.8)
    for i, (name, seeds) in enumerate(runs.items()):
        for k, values in enumerate(seeds):
            mean = np.convolve(values, np.ones(smooth) / smooth, "valid")
            style = {"color": COLOURS[i % 7], "label": name if k == 0 else None, "linewidth": 1.4}
            ax.plot(range(smooth, len(values) + 1), mean, LINES[i % 4], **style)
    ax.set(title=title, xlabel="step", ylabel="MaxVio (0: balanced)", ylim=(0, None))
    ax.legend(ncols=2)
    return picture


@styled
def balance_cost(arms: Mapping[str, Sequence[tuple[str, float, float]]], ylabel: str = "loss") -> Picture:
    """What balance costs: the loss against MaxVio, a point for each setting of each method.

    Args:
        arms: method -> [(label, MaxVio, loss)] in the order in which the points are joined; a label may be empty.
    """
    alt = f"{ylabel} against MaxVio: {'; '.join(f'{n}: ' + ', '.join(p[0] for p in ps) for n, ps in arms.items())}"
    picture, ax = axes(alt, height=3.2)
    for i, (name, points) in enumerate(arms.items()):
        x, y = [p[1] for p in points], [p[2] for p in points]
        ax.plot(x, y, LINES[i % 4], marker=MARKS[i % 5], color=COLOURS[i % 7], label=name)
        for text, px, py in points:
            place = {"xytext": (4, -13 if i else 6), "textcoords": "offset points"}
            ax.annotate(text, (px, py), fontsize=9, color=COLOURS[i % 7], **place)
    right = 1.15 * max(p[1] for points in arms.values() for p in points)
    ax.margins(y=0.15)
    ax.set(xlabel="MaxVio (0: balanced)", ylabel=ylabel, xlim=(0, right), title="Lower left is better")
    ax.legend(loc="upper right")
    return picture


@styled
def router_lab(
    loads: Sequence[Sequence[float]],
    losses: Sequence[float],
    settings: Sequence[tuple[float, float, int, int]],
    window: int = 200,
) -> Picture:
    """A run that is being steered: the load of each expert, MaxVio and the error, over its last steps.

    It is drawn many times a second. So it has one pair of axes without ticks, which would take most of the time.

    Args:
        loads: [steps, experts]; losses: the error of each step; settings: gamma, alpha, K and M of each step.
        window: so many of the last steps are shown.
    """
    n, first = len(loads), max(0, len(loads) - window)
    shares = _relative(loads[first:]) if n else np.ones((16, 1))
    vio = shares.max(0) - 1
    gamma, alpha, top_k, groups = settings[-1] if n else (0.0, 0.0, 1, 1)
    now = f"step {n}: gamma {gamma:g}, alpha {alpha:g}, K {top_k}, M {groups}"
    recent = f"MaxVio {vio[-20:].mean():.2f}, error {np.mean(losses[-20:]) if n else 0:.3f} (mean of 20 steps)"
    picture = Picture(figsize=(7.0, 3.7))
    picture.alt = f"Router lab, {now}; {recent}"
    ax = picture.add_axes((0.0, 0.0, 1.0, 1.0), xlim=(-0.13 * window, 1.02 * window), ylim=(0, 100))
    ax.axis("off")
    pixels = mpl.colormaps["RdBu_r"](shares / 2, bytes=True)
    ax.imshow(pixels, aspect="auto", interpolation="nearest", extent=(0, shares.shape[1], 47, 84))
    _strip(ax, vio, (26, 43), 3.0, ORANGE, window)
    _strip(ax, losses[first:], (5, 22), 1.0, BLUE, window)
    changes = [i - first for i in range(max(first, 1), n) if settings[i] != settings[i - 1]]
    ax.vlines(changes, 5, 84, color="black", linewidth=1, linestyle=":")
    right: dict[str, Any] = {"ha": "right", "va": "center", "fontsize": 9}
    left = {**right, "ha": "left"}
    for y, text in ((82, "expert 1"), (49, str(len(shares))), (34, "MaxVio"), (13, "error")):
        ax.text(-0.012 * window, y, text, **right)
    for y, text in ((42, "3"), (27, "0"), (21, "1"), (6, "0")):
        ax.text(-0.012 * window, y, text, **right, color=GREY)
    ax.text(-0.12 * window, 95, f"{now}     {recent}", va="center", weight="bold")
    ax.text(0, 88.5, "red: twice its fair share or more; white: the fair share; blue: idle", **left)
    ax.text(0, 1.5, f"step {first}", **left, color=GREY)
    ax.text(window, 1.5, f"{first + window}", **right, color=GREY)
    return picture


def _strip(ax: Any, values: Any, place: tuple[float, float], top: float, colour: str, window: int) -> None:
    """A curve from 0 to `top` between two heights; what is higher runs along its upper edge."""
    low, high = place
    ax.hlines(place, 0, window, color=PALE, linewidth=1)
    ax.plot(
        np.arange(len(values)) + 0.5, low + (high - low) * np.clip(values, 0, top) / top, color=colour, linewidth=1.2
    )


@styled
def relative_load(
    maps: Mapping[str, Mapping[str, Sequence[float]]], numbers: bool = True, order_by: str | None = None
) -> Picture:
    """The load of each expert by domain, as a multiple of the fair share: the paper's figure 9.

    Args:
        maps: model -> domain -> [experts], loads that average to 1. Experts are ordered by the domain that uses them
            most, in each model for itself.
        numbers: write the values into the cells.
    """
    alt = f"Relative load of each expert by domain: {', '.join(maps)}"
    picture, ax = axes(alt, len(maps), 1, height=0.55 + 1.35 * len(maps), squeeze=False)
    for a, (name, loads) in zip(ax[:, 0], maps.items(), strict=True):
        grid = np.asarray(list(loads.values()), dtype=float)
        order = np.lexsort((-grid.max(0), grid.argmax(0)))
        grid = grid[:, order]
        colours = mpl.colormaps["RdBu_r"](grid / 2)
        a.imshow(colours, aspect="auto", interpolation="nearest")
        for (d, e), value in np.ndenumerate(grid):
            if numbers:
                ink = text_on(to_hex(tuple(colours[d, e].tolist())))
                a.text(e, d, f"{value:.1f}", ha="center", va="center", fontsize=8, color=ink)
        a.set_yticks(range(len(loads)), list(loads))
        a.set_xticks(range(grid.shape[1]), [str(e) for e in order])
        a.set_title(name)
        a.grid(visible=False)
        a.tick_params(length=0)
        a.spines[["left", "bottom"]].set_visible(False)
    ax[-1, 0].set_xlabel("expert (ordered by the domain that uses it most)")
    return picture


@styled
def domain_pair(first: Sequence[float], second: Sequence[float], names: tuple[str, str], title: str = "") -> Picture:
    """Two domains, expert by expert: how many times its fair share each one sends there.

    Args:
        first, second: [experts], relative loads; names: of the two domains.
    """
    a, b = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    order = np.argsort(a - b, kind="stable")
    picture, ax = axes(f"Relative load of each expert, {names[0]} against {names[1]}", height=2.9)
    x = np.arange(len(a))
    ax.axhline(1, color=GREY, linewidth=0.8)
    ax.vlines(x, a[order], b[order], color=PALE, linewidth=4, zorder=1)
    ax.scatter(x, a[order], 45, color=BLUE, marker="o", label=names[0], zorder=3)
    ax.scatter(x, b[order], 45, color=ORANGE, marker="s", label=names[1], zorder=3)
    ax.set_xticks(x, [str(e) for e in order])
    ax.set(title=title, xlabel=f"expert (from {names[1]}'s to {names[0]}'s)", ylabel="load / fair share")
    ax.set_ylim(0, None)
    ax.legend(loc="upper center", ncols=2)
    return picture


@styled
def node_traffic(between: Sequence[float], within: Sequence[float], marked: int, title: str = "") -> Picture:
    """How long a token's copies take on the two networks, for every limit M.

    Args:
        between, within: microseconds over the network between nodes, and over the links within one, for M = 1, 2, ...
        marked: the M that is looked at.
    """
    limits = np.arange(1, len(between) + 1)
    alt = f"Microseconds a token for M = 1 to {len(between)}: between nodes and within a node; M = {marked} is marked"
    picture, ax = axes(alt, height=2.9)
    ax.axvspan(marked - 0.5, marked + 0.5, color=PALE, zorder=0)
    ax.plot(limits, between, "-o", color=ORANGE, label="between nodes (InfiniBand)")
    ax.plot(limits, within, "--s", color=GREEN, label="within a node (NVLink)")
    ax.set(title=title, xlabel="M: nodes a token may use", ylabel="microseconds a token", ylim=(0, None))
    ax.set_xticks(limits)
    ax.legend(loc="upper left")
    return picture
