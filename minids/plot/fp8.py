"""Pictures of 8-bit training: how finely a format can count, what one outlier costs, the three products' tiles, sums
that lose their tail, runs beside each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.patches import FancyArrowPatch, Rectangle

from minids.plot.style import COLOURS, GREEN, GREY, LINES, ORANGE, PALE, SKY, Picture, axes, styled

ERRORS = (0.0, 0.01, 0.0325, 0.0635, 0.25, 0.999, 1e9)  # bounds of the colours in `outlier_map`
NAMES = ("below 1 %", "1 to 3 %", "3 to 6 %", "6 to 25 %", "25 to 99 %", "lost: now zero")


@styled
def rounding_error(formats: Mapping[str, Sequence[float]], low: int = -20, high: int = 18) -> Picture:
    """The largest relative error of rounding, by magnitude.

    Args:
        formats: name -> the format's positive finite values, in any order.
        low, high: the powers of two between which it is drawn.
    """
    picture, ax = axes(f"Largest relative rounding error by magnitude: {', '.join(formats)}", height=3.2)
    for i, (name, values) in enumerate(formats.items()):
        v = np.unique(np.asarray(values, dtype=float))
        middles = (v[1:] + v[:-1]) / 2  # the numbers that are farthest from a value
        x = np.concatenate([2.0 ** np.arange(low, np.log2(v[0])), middles])
        error = np.concatenate([np.ones(len(x) - len(middles)), (v[1:] - v[:-1]) / (v[1:] + v[:-1])])
        power = np.floor(np.log2(x))
        worst = [100 * error[power == p].max() for p in np.unique(power)]
        ends, worst = [*np.unique(power), np.log2(v[-1])], [*worst, worst[-1]]
        ax.step(ends, worst, LINES[i % 4], where="post", color=COLOURS[i % 7], label=name)
        ax.plot(ends[-1:], worst[-1:], "osD^"[i % 4], color=COLOURS[i % 7])
    ax.set(xlim=(low, high), ylim=(0.5, 140), yscale="log", xlabel="size of the number, as a power of two")
    ax.set(ylabel="error at worst (%)", title="Where a format counts finely; the marker is its largest value")
    ax.set_yticks([1, 3, 6, 12, 25, 50, 100], ["1", "3", "6", "12", "25", "50", "100"])
    ax.minorticks_off()
    ax.legend(loc="lower left")
    return picture


@styled
def outlier_map(x: Any, rounded: Any, tile: tuple[int, int], outlier: tuple[int, int]) -> Picture:
    """The relative error of every number of a matrix after quantising, by colour; the tiles' edges as lines.

    Args:
        x, rounded: [tokens, features], before and after.
        tile: rows and columns that share a scale, 0 means all; outlier: the place of the huge value.
    """
    x, rounded = np.asarray(x, dtype=float), np.asarray(rounded, dtype=float)
    R, C = x.shape
    error = np.abs(rounded - x) / np.abs(x)
    lost = int((rounded == 0).sum())
    title = f"outlier {abs(x[outlier]):,.0f}: {lost:,} of {x.size:,} numbers lost, typical error "
    title += f"{100 * np.median(error):.1f} %"
    picture, ax = axes(f"Error of each number, {_tile_name(tile)}; {title}", height=2.7)
    picture.set_layout_engine("none")  # placed by hand: a picture that is dragged must be quick
    ax.set_position((0.08, 0.2, 0.71, 0.66))
    colours = ListedColormap(["#FFFFFF", "#D6E8F3", "#8FC1DF", "#E69F00", "#D55E00", "#000000"])
    ax.pcolorfast((0, C), (0, R), error, cmap=colours, norm=BoundaryNorm(ERRORS, 6))
    h, w = tile[0] or R, tile[1] or C
    ax.vlines(range(w, C, w), 0, R, color=GREY, linewidth=0.8)
    ax.hlines(range(h, R, h), 0, C, color=GREY, linewidth=0.4)
    ring = {"markersize": 13, "markerfacecolor": "none", "markeredgecolor": GREEN, "markeredgewidth": 2.2}
    ax.plot([outlier[1] + 0.5], [outlier[0] + 0.5], "o", **ring)
    ax.set(xlim=(0, C), ylim=(R, 0), xlabel="feature", ylabel="token", title=title[0].upper() + title[1:])
    ax.set_xticks(range(0, C + 1, 128))
    ax.set_yticks([r + 0.5 for r in range(0, R, 5)], [str(r) for r in range(0, R, 5)])
    ax.grid(visible=False)
    keys = [Rectangle((0, 0), 1, 1, facecolor=c, edgecolor=GREY, linewidth=0.5) for c in colours.colors]  # type: ignore
    ax.legend(keys, NAMES, loc="center left", bbox_to_anchor=(1.0, 0.5), title="error", fontsize=8)
    return picture


def _tile_name(tile: tuple[int, int]) -> str:
    return "one scale for the matrix" if tile == (0, 0) else f"scales for {tile[0] or 'all'} x {tile[1] or 'all'}"


@styled
def three_products() -> Picture:
    """The three matrix products of a linear layer, the axis that each sums over, and the tiles of their operands."""
    text = "forward, dgrad and wgrad of a linear layer, with the tiles that share a scale"
    picture, rows = axes(f"Three products: {text}", 3, 1, height=6.0)
    T, K, N = 4, 6, 5  # tokens, features in, features out; a tile is drawn 2 long
    draw = (
        ("forward", "y", ("x", T, K, (1, 2)), (r"$W^\top$", K, N, (2, 2)), "features in"),
        ("dgrad", "dx", ("dy", T, N, (1, 2)), ("W", N, K, (2, 2)), "features out"),
        ("wgrad", "dW", (r"$dy^\top$", N, T, (1, 2)), ("x", T, K, (2, 1)), "tokens"),
    )
    for ax, (name, out, left, right, axis) in zip(rows, draw, strict=True):
        end = _matrix(ax, 0.0, *left, summed="right")
        ax.text(end + 0.6, 0, "×", ha="center", va="center", fontsize=14)
        end = _matrix(ax, end + 1.2, *right, summed="down")
        ax.text(end + 1.2, 0, "=", ha="center", va="center", fontsize=14)
        end = _matrix(ax, end + 1.9, out, left[1], right[2], None)
        ax.set(xlim=(-4.2, 27.5), ylim=(-3.9, 3.9), aspect="equal")
        ax.text(-0.5, 0, name, ha="right", va="center", fontsize=11, weight="bold")
        ax.text(end + 0.6, 0, _reading(name, axis), ha="left", va="center", fontsize=9)
        ax.axis("off")
    return picture


def _reading(name: str, axis: str) -> str:
    second = {"wgrad": "x again in 128 x 1,\nfrom the stored 1 x 128"}.get(name, "W in 128 x 128")
    first = {"forward": "x in 1 x 128", "dgrad": "dy in 1 x 128", "wgrad": "dy in 128 x 1"}[name]
    return f"sums over {axis}\n{first}\n{second}"


def _matrix(
    ax: Any, left: float, name: str, rows: int, columns: int, tile: tuple[int, int] | None, summed: str = ""
) -> float:
    """One matrix, centred on the line; its tiles, one of them filled. Returns where it ends."""
    top = rows / 2
    ax.add_patch(Rectangle((left, -top), columns, rows, facecolor="white", edgecolor=GREY, linewidth=1.2))
    if tile:
        h, w = tile
        for r in range(0, rows, h):
            for c in range(0, columns, w):
                size = min(w, columns - c), min(h, rows - r)
                fill = ORANGE if (r, c) == (0, 0) else SKY if (r // h + c // w) % 2 else "white"
                corner = left + c, top - r - size[1]
                ax.add_patch(Rectangle(corner, *size, facecolor=fill, edgecolor=GREY, linewidth=0.8))
    else:
        ax.add_patch(Rectangle((left, -top), columns, rows, facecolor=PALE, edgecolor=GREY, linewidth=1.2))
    ax.text(left + columns / 2, top + 0.25, name, ha="center", va="bottom", fontsize=11)
    ends = {
        "right": ((left, -top - 0.45), (left + columns, -top - 0.45)),
        "down": ((left + columns + 0.35, top), (left + columns + 0.35, -top)),
    }
    if summed:
        arrow: dict[str, Any] = {"arrowstyle": "-|>", "mutation_scale": 10, "color": GREEN, "linewidth": 1.6}
        ax.add_patch(FancyArrowPatch(*ends[summed], shrinkA=0, shrinkB=0, **arrow))
    return left + columns


@styled
def accumulation_error(lengths: Sequence[int], errors: Mapping[str, Sequence[float]], paper: float = 2.0) -> Picture:
    """The error of matrix products against the length of their sums, a line for each way of adding.

    Args:
        lengths: K, the number of products in a sum.
        errors: name -> the largest error for each K, in per cent of a typical result.
        paper: what the paper reports for K = 4096, in per cent.
    """
    picture, ax = axes(f"Error of sums against their length: {', '.join(errors)}", height=3.3)
    for i, (name, error) in enumerate(errors.items()):
        ax.plot(lengths, error, f"{'osD^v'[i % 5]}{LINES[i % 4]}", color=COLOURS[i % 7], label=name, markersize=5)
    ax.plot([4096], [paper], "*", color="black", markersize=11, label="the paper's, K = 4096", linestyle="none")
    ax.set(xscale="log", yscale="log", xlabel="K, products in a sum", ylabel="largest error (%)")
    ax.set(title="Sums of 14 bits, moved to FP32 after every N_C products")
    ax.set_xticks(lengths, [f"{k:,}" for k in lengths])
    ax.set_yticks([0.01, 0.1, 1.0, 10.0], ["0.01", "0.1", "1", "10"])
    ax.minorticks_off()
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return picture


@styled
def loss_runs(
    curves: Mapping[str, Sequence[float]], step: int, differences: Mapping[str, Sequence[float]], bound: float = 0.25
) -> Picture:
    """Loss curves of several arms; beside them each arm's difference from the baseline at the end, a point a seed.

    Args:
        curves: arm -> the mean loss of each `step` steps.
        differences: arm -> one difference in per cent for each seed; bound: the paper's, in per cent.
    """
    text = "; ".join(f"{arm} {', '.join(f'{d:+.2f} %' for d in found)}" for arm, found in differences.items())
    picture, (ax, zoom) = axes(f"Loss by arm; against the baseline: {text}", 1, 2, height=3.2, width_ratios=(1.25, 1))
    for i, (arm, loss) in enumerate(curves.items()):
        x = [step * (k + 1) for k in range(len(loss))]
        ax.plot(x, loss, LINES[i % 4], color=COLOURS[i % 7], label=arm)
    ax.set(xlabel="step", ylabel="loss (nats per token)", title="Mean over the seeds")
    ax.legend()
    zoom.axvspan(-bound, bound, color=PALE)
    zoom.axvline(0, color=GREY, linewidth=1)
    for i, found in enumerate(differences.values()):
        for seed, d in enumerate(found):
            zoom.plot([d], [i + 0.16 * (1 - seed)], "osD^v"[seed % 5], color=COLOURS[seed % 7], markersize=6)
    zoom.set_yticks(range(len(differences)), list(differences))
    zoom.set(ylim=(len(differences) - 0.5, -0.5), xlabel="difference (%), a mark a seed")
    zoom.set_title(f"Grey: within {bound:g} %")
    return picture
