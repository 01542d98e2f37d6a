"""Pictures of pipeline schedules: who computes what when, what each schedule pays, two lanes that hide each other."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.collections import PathCollection, PolyCollection
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Patch
from matplotlib.path import Path
from matplotlib.textpath import TextPath
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import Affine2D

from minids.pipeline import Op
from minids.plot.style import (
    BLUE,
    COLOURS,
    FONT,
    GOLD,
    GREEN,
    GREY,
    ORANGE,
    PALE,
    PINK,
    SKY,
    Picture,
    axes,
    styled,
    text_on,
)  # fmt: skip
from minids.simulator import Timeline

IDLE, FAINT, FOOT = "#F2F2F2", "#D9D9D9", "#222222"
FILL = {"F0": SKY, "F1": GOLD, "B0": GREEN, "B1": "#00664A", "I0": "#A6DCCB", "I1": "#7CC4AE", "W0": PINK, "W1": PINK}
MARKS = ("o", "s", "^", "D", "v", "P", "X")
NAMES = {"F": "F forward", "B": "B whole backward", "I": "I for the input", "W": "W for the weights"}


@styled
def pipeline_schedule(timeline: Timeline, title: str = "") -> Picture:
    """Every step of every rank on a time axis, as figure 5 of the V3 report: letters say what, numbers which chunk."""
    inches, height = min(11.0, max(6.2, 0.17 * timeline.makespan)), 1.15 + 0.3 * timeline.schedule.ranks
    picture, ax = axes(f"Pipeline schedule: {summary(timeline)}", width=inches + 0.9, height=height)
    _place(picture, inches)
    _grid(ax, timeline, timeline.makespan, inches)
    ax.set_title(title or summary(timeline))
    return picture


@styled
def pipeline_player(timeline: Timeline, now: float) -> Picture:
    """The schedule up to a moment: done in colour, to come in outline; beside it what each rank holds and has idled.

    Args:
        now: a time from 0 to the makespan; beyond it the last moment is shown.
    """
    now = min(max(now, 0.0), timeline.makespan)
    held, idle = held_at(timeline, now), idle_until(timeline, now)
    said = f"held now {_range(held)}, idle so far {_range(idle)}"
    inches, height = 9.0, 1.15 + 0.32 * timeline.schedule.ranks
    picture, (ax, memory, waste) = axes(
        f"Pipeline schedule at time {now:g}: {summary(timeline)}; {said}", 1, 3,
        width=inches + 3.3, height=height, sharey=True,
    )  # fmt: skip
    _place(picture, inches, 1.1, 1.1)
    _grid(ax, timeline, now, inches)
    ax.axvline(now, color=ORANGE, linewidth=2)
    ax.set_title(summary(timeline))
    _bars(memory, held, timeline.peaks, BLUE, "chunks held")
    _bars(waste, idle, timeline.bubbles, GREY, "time idle")
    return picture


@styled
def pipeline_costs(paid: Mapping[str, tuple[float, float, int]]) -> Picture:
    """Bubble against memory, a marker for each schedule: the lower left corner is where one wants to be.

    Args:
        paid: name -> (chunks held at the peak, share of time idle, copies of the parameters).
    """
    told = ", ".join(f"{name} {held:g} held and {share:.0%} idle" for name, (held, share, _) in paid.items())
    picture, ax = axes(f"What each schedule pays: {told}", width=6.6, height=3.8)
    for i, (name, (held, share, copies)) in enumerate(paid.items()):
        colour = COLOURS[i % len(COLOURS)]
        fill = colour if copies == 1 else "white"
        ax.plot(held, 100 * share, MARKS[i % len(MARKS)], color=colour, markerfacecolor=fill, markersize=9, mew=2)
        ax.annotate(name, (held, 100 * share), (8, 5), textcoords="offset points", color=text_on("white"))
    ax.set(xlabel="chunks whose activations the fullest rank holds", ylabel="longest idle time (%)")
    ax.set_ylim(0, 1.18 * max(100 * share for _, share, _ in paid.values()))
    ax.set_xlim(0, 1.2 * max(held for held, _, _ in paid.values()))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_title("filled: parameters once; hollow: twice")
    return picture


@styled
def bubble_by_chunks(shares: Mapping[str, Mapping[int, float]]) -> Picture:
    """Share of the time that the idlest rank idles, by the number of chunks, a line for each schedule."""
    ends = ", ".join(f"{name} {100 * list(by.values())[-1]:.0f}%" for name, by in shares.items())
    last = max(max(by) for by in shares.values())
    picture, ax = axes(f"Idle time against chunks in a batch; at {last} chunks: {ends}", width=6.6, height=3.4)
    for i, (name, by) in enumerate(shares.items()):
        style: dict[str, Any] = {"color": COLOURS[i % len(COLOURS)], "marker": MARKS[i % len(MARKS)], "markersize": 5}
        ax.plot(list(by), [100 * share for share in by.values()], label=name, **style)
    ax.set(
        xlabel="chunks in a batch", ylabel="longest idle time (%)", title="More chunks spread the same bubble thinner"
    )
    ax.set_ylim(0)
    ax.legend()
    return picture


Part = tuple[str, str, float, float]  # lane, what, from, to; what ends in (F) or (B)


@styled
def pair_lanes(runs: Mapping[str, Sequence[Part]]) -> Picture:
    """Computing and communication of a forward and a backward, a pair of lanes for each way to run them.

    Args:
        runs: title -> parts in time: (lane "compute" or "network", name such as "MLP (F)", begin, end).
    """
    ends = {name: max(end for *_, end in parts) for name, parts in runs.items()}
    alt = "Two lanes: " + ", ".join(f"{name} takes {end:g}" for name, end in ends.items())
    picture, all_axes = axes(alt, len(runs), width=9.5, height=0.7 + 1.35 * len(runs), sharex=True, squeeze=False)
    for ax, (name, parts) in zip(all_axes[:, 0], runs.items(), strict=True):
        for lane, what, start, end in parts:
            y, forward = ("network", "compute").index(lane), "(F)" in what
            backward = "(B)" in what or "(W)" in what
            colour = FILL["F0"] if forward else FILL["I0"] if backward else PALE
            ax.barh(y, end - start, 0.8, start, color=colour, edgecolor="white", hatch="////" if backward else None)
            box = {"facecolor": colour, "edgecolor": "none", "pad": 1}
            ax.text((start + end) / 2, y, what.replace(" (", "\n("), ha="center", va="center", fontsize=7.5, bbox=box)
        ax.set_title(f"{name}: {ends[name]:g}")
        ax.set_yticks([0, 1], ["network", "compute"])
        ax.grid(visible=False)
        ax.set(ylim=(-0.5, 1.5), xlim=(0, max(ends.values())))
    all_axes[-1, 0].set_xlabel("time; plain: the forward's chunk, hatched: the backward's")
    return picture


# --- what the pictures say in numbers


def summary(timeline: Timeline) -> str:
    s = timeline.schedule
    size = f"{s.name}, {s.ranks} ranks, {s.micro_batches} chunks"
    return f"{size}: {timeline.makespan:g} long, {timeline.bubble:g} of it idle, {max(timeline.peaks)} chunks held"


def held_at(timeline: Timeline, now: float) -> list[int]:
    """Chunks whose activations each rank holds at a moment: begun by an F, not yet let go by a B or W."""
    held = []
    for row in timeline.spans:
        begun = sum(op.kind == "F" for step, start, _ in row for op in step if start < now)
        held.append(begun - sum(op.kind in "BW" for step, _, end in row for op in step if end <= now))
    return held


def idle_until(timeline: Timeline, now: float) -> list[float]:
    """How long each rank has idled by a moment."""
    return [now - sum(min(end, now) - start for _, start, end in row if start < now) for row in timeline.spans]


def _range(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


# --- drawing


def _place(picture: Picture, *widths: float) -> None:
    """The axes side by side, in inches: a layout engine would draw everything twice, and the player moves at once."""
    picture.set_layout_engine("none")
    (wide, high), left = picture.get_size_inches(), 0.75
    for ax, width in zip(picture.axes, widths, strict=True):
        ax.set_position((left / wide, 0.75 / high, width / wide, 1 - 1.05 / high))
        left += width + 0.12


def _grid(ax: Any, timeline: Timeline, now: float, inches: float) -> None:
    """The cells up to `now` in colour with their texts, later ones as outlines, and a legend of what occurs."""
    s, end = timeline.schedule, timeline.makespan
    boxes, fills, labels = [], [], []
    for op, (x0, x1, y0, y1), begun in _cells(timeline, now):
        fill = FILL[f"{op.kind}{op.direction}"] if begun else "white"
        boxes.append([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])
        fills.append(fill)
        if begun:
            labels.append((f"{op.kind}{op.chunk}", (x0 + x1) / 2, (y0 + y1) / 2 - 0.03, text_on(fill), y1 - y0))
        if begun and op.direction:  # a dark foot marks the second direction
            boxes.append([(x0, y1 - 0.09), (x1, y1 - 0.09), (x1, y1), (x0, y1)])
            fills.append(FOOT)
    ax.add_collection(PolyCollection(boxes, facecolors=fills, edgecolors=FAINT, linewidths=0.5))
    shortest = min(span.end - span.start for row in timeline.spans for span in row)
    letters = 1 + len(str(s.chunks - 1))
    _texts(ax, labels, min(8.5, 0.78 * 72 * inches * shortest / end / (0.62 * letters)))
    ax.set_facecolor(IDLE)
    ax.grid(visible=False)
    ax.set(xlim=(0, end), ylim=(s.ranks - 0.5, -0.5), xlabel="time")
    ax.set_yticks(range(s.ranks), [f"rank {r}" for r in range(s.ranks)])
    ax.spines[["left", "bottom"]].set_visible(False)
    handles = _legend(timeline)
    ax.figure.legend(handles=handles, loc="lower left", ncols=7, handlelength=1.2, columnspacing=1.1, fontsize=8)


def _cells(timeline: Timeline, now: float) -> Iterator[tuple[Op, tuple[float, float, float, float], bool]]:
    """Each operation's box: a pair shares its time, the forward above the backward."""
    for rank, row in enumerate(timeline.spans):
        for step, start, end in row:
            high = 0.84 / len(step)
            for i, op in enumerate(step):
                y = rank - 0.42 + i * high
                yield op, (start, end, y, y + high), start < now


def _texts(ax: Any, labels: Sequence[tuple[str, float, float, str, float]], size: float) -> None:
    """All texts as outlines in one collection: hundreds of `ax.text` would take a second to redraw."""
    if not labels or size < 3:  # too small to be read
        return
    scale = Affine2D().scale(1 / 72) + ax.figure.dpi_scale_trans
    for full in (True, False):  # the halves of a pair get smaller letters
        chosen = [each for each in labels if (each[4] > 0.5) == full]
        if chosen:
            texts, xs, ys, inks, _ = zip(*chosen, strict=True)
            paths = [_outline(text, size if full else min(size, 6.5)) for text in texts]
            marks = PathCollection(paths, offsets=list(zip(xs, ys, strict=True)), offset_transform=ax.transData,
                                   facecolors=inks, edgecolors="none")  # fmt: skip
            marks.set_transform(scale)
            ax.add_collection(marks, autolim=False)


@functools.cache
def _outline(text: str, size: float) -> Path:
    """The outline of a text around its middle, in points."""
    path = TextPath((0, 0), text, size=size, prop=FontProperties(family=FONT))
    box = path.get_extents()
    return Path(np.asarray(path.vertices) - np.add(box.min, box.max) / 2, path.codes)


def _legend(timeline: Timeline) -> list[Patch]:
    found = {(op.kind, op.direction) for row in timeline.schedule.rows for step in row for op in step}
    handles = [Patch(facecolor=FILL[f"{kind}0"], label=NAMES[kind]) for kind in "FBIW" if (kind, 0) in found]
    if ("F", 1) in found:
        way = "on the way back" if timeline.schedule.way == "v" else "from the last rank"
        handles.append(Patch(facecolor=GOLD, label=f"F {way}"))
        handles.append(Patch(facecolor=FOOT, label=f"dark foot: {way}"))
    return [*handles, Patch(facecolor=IDLE, edgecolor=FAINT, label="idle")]


def _bars(ax: Any, values: Sequence[float], most: Sequence[float], colour: str, title: str) -> None:
    """A bar a rank up to now, in the outline of what it comes to."""
    rank, longest = range(len(values)), max(*most, 1)
    ax.barh(rank, most, 0.7, color="white", edgecolor=GREY, linewidth=1)
    ax.barh(rank, values, 0.7, color=colour)
    for y, (value, top) in enumerate(zip(values, most, strict=True)):
        ax.text(1.06 * longest, y, f"{value:g} of {top:g}", va="center", fontsize=7.5, color=GREY)
    ax.set(xlim=(0, 1.75 * longest))
    ax.set_title(title, fontsize=9)
    ax.set_axis_off()
