"""Pictures of serving: gaps between tokens, who holds which slot, goodput against load, replicas of hot experts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from minids.plot.style import BLUE, COLOURS, GREY, LINES, ORANGE, PALE, SKY, Picture, axes, styled, text_on


@styled
def token_gaps(gaps: Mapping[str, Sequence[float]], event: int, what: str) -> Picture:
    """The wait before each token of one text, in milliseconds, a line for each way of serving.

    Args:
        gaps: way -> ms before each token.
        event: the token before which something happened; `what` names it.
    """
    worst = "; ".join(f"{name}: longest {max(values):.0f} ms" for name, values in gaps.items())
    picture, ax = axes("Wait before each token of one text", height=2.8)
    for i, (name, values) in enumerate(gaps.items()):
        ax.plot(range(len(values)), values, f"{'os^'[i % 3]}{LINES[i % 4]}", color=COLOURS[1 - i % 2], ms=4, label=name)
    ax.axvline(event, color=GREY, linestyle=":", linewidth=1.2, zorder=0)
    ax.annotate(f"  {what}", (event, 0.97), xycoords=("data", "axes fraction"), fontsize=9, color=GREY, va="top")
    ax.set(xlabel="token of the text", ylabel="wait (ms)", ylim=(0, None), title=worst)
    ax.legend(loc="center right")
    return picture


@styled
def slots_over_time(ways: Mapping[str, Sequence[tuple[int, int, int]]], slots: int) -> Picture:
    """Which request holds which slot at which step, a panel for each way of batching.

    Args:
        ways: way -> (slot, first step, steps) of each request, in the order of arrival.
    """
    ends = {name: max(start + n for _, start, n in spans) for name, spans in ways.items()}
    alt = "Slots over steps: " + "; ".join(f"{name} ends after {end} steps" for name, end in ends.items())
    picture, panels = axes(alt, len(ways), 1, height=0.7 + len(ways) * (0.6 + 0.24 * slots), sharex=True, squeeze=False)
    for ax, (name, spans) in zip(panels[:, 0], ways.items(), strict=True):
        busy = sum(n for *_, n in spans) / (slots * ends[name])
        for i, (slot, start, n) in enumerate(spans):
            colour = COLOURS[i % 6]
            ax.barh(slot, n, left=start, height=0.8, color=colour, edgecolor="white")
            ax.text(start + n / 2, slot, str(i), ha="center", va="center", fontsize=8, color=text_on(colour))
        ax.set(title=f"{name}: {ends[name]} steps, {busy:.0%} of the slots at work", ylabel="slot")
        ax.set(yticks=range(slots), ylim=(slots - 0.45, -0.55), xlim=(0, 1.01 * max(ends.values())))
        ax.grid(visible=False, axis="y")
    panels[-1, 0].set_xlabel("decoding step; the number is the request's")
    return picture


@styled
def goodput(rates: Sequence[float], arms: Mapping[str, Sequence[float]], bounds: str) -> Picture:
    """Requests a second that met both bounds, against the requests a second that came.

    Args:
        rates: requests a second; arms: way of serving -> goodput at each rate.
    """
    picture, ax = axes(f"Goodput against arriving requests: {', '.join(arms)}", height=3.1)
    for i, (name, values) in enumerate(arms.items()):
        ax.plot(rates, values, f"{'os^'[i % 3]}{LINES[i % 4]}", color=COLOURS[1 - i % 2], label=name)
    top = 1.35 * max(max(values) for values in arms.values())
    ax.set(xlabel="requests that come a second", ylabel="goodput (requests a second)", ylim=(0, top))
    ax.set(title=f"Good: {bounds}")
    ax.set_xticks(list(rates))
    ax.legend(loc="upper right")
    return picture


@styled
def expert_replicas(
    load: Sequence[float], before: Sequence[Sequence[int]], after: Sequence[Sequence[int]], what: str = ""
) -> Picture:
    """What each GPU carries, expert by expert, before and after replicas; experts with replicas stand out.

    Args:
        load: tokens of each expert, shared evenly among its replicas.
        before, after: the experts of each GPU's slots; each expert is somewhere in both.
    """
    peaks = [_peak(load, plan) for plan in (before, after)]
    picture, panels = axes("", 1, 2, height=3.5, sharey=True)
    copies = np.bincount([e for gpu in after for e in gpu], minlength=len(load))
    for ax, plan, peak, name in zip(panels, (before, after), peaks, ("in order", "balanced"), strict=True):
        _gpus(ax, load, plan, copies > 1)
        slots = sum(map(len, plan))
        ax.axhline(1, color="black", linestyle="--", linewidth=1.2)
        ax.set(title=f"{name}: {slots} slots, slowest GPU {peak:.2f}", xlabel="GPU")
        ax.set_xticks(range(len(plan)))
        ax.grid(visible=False, axis="x")
    panels[0].set(ylabel="load (1: the mean GPU)", ylim=(0, 1.08 * max(*peaks, 1.2)))
    picture.suptitle(what or "", fontsize=10, x=0.02, ha="left")
    picture.alt = (
        f"Load of {len(before)} GPUs by expert{', ' + what if what else ''}: slowest {peaks[0]:.2f} times the mean in "
        f"order, {peaks[1]:.2f} with {sum(map(len, after)) - len(load)} replicas; orange experts have replicas"
    )
    return picture


def _share(load: Sequence[float], plan: Sequence[Sequence[int]]) -> list[float]:
    """What one replica of each expert carries, as a multiple of the mean GPU's load."""
    count = np.bincount([e for gpu in plan for e in gpu], minlength=len(load))
    mean = max(sum(load), 1e-9) / len(plan)
    return [x / n / mean for x, n in zip(load, count, strict=True)]


def _peak(load: Sequence[float], plan: Sequence[Sequence[int]]) -> float:
    each = _share(load, plan)
    return max(sum(each[e] for e in gpu) for gpu in plan)


def _gpus(ax: object, load: Sequence[float], plan: Sequence[Sequence[int]], hot: np.ndarray) -> None:
    """A column for each GPU, the pieces of its experts from the heaviest up."""
    each, depth = _share(load, plan), max(map(len, plan))
    stacks = [sorted(gpu, key=lambda e: -each[e]) for gpu in plan]
    floor = np.zeros(len(plan))
    for level in range(depth):
        experts = [stack[level] for stack in stacks]
        heights = np.array([each[e] for e in experts])
        colours = [ORANGE if hot[e] else (SKY if e % 2 else BLUE) for e in experts]
        ax.bar(range(len(plan)), heights, 0.86, floor, color=colours, edgecolor="white", linewidth=0.8)  # type: ignore
        for x, (e, low, high) in enumerate(zip(experts, floor, heights, strict=True)):
            if high > 0.07:
                ink = text_on(colours[x])
                ax.text(x, low + high / 2, str(e), ha="center", va="center", fontsize=8, color=ink)  # type: ignore
        floor += heights


@styled
def two_batches(ways: Mapping[str, Sequence[tuple[str, int, float, float]]]) -> Picture:
    """Who computes and who sends, a panel for each way, time along the axis.

    Args:
        ways: way -> (kind, micro-batch, start, length) of each piece; kinds attention, dispatch, experts, combine.
    """
    ends = {name: max(start + n for *_, start, n in pieces) for name, pieces in ways.items()}
    alt = "Computing and network: " + "; ".join(f"{name} ends at {end:.1f}" for name, end in ends.items())
    picture, panels = axes(alt, len(ways), 1, height=0.8 + 1.25 * len(ways), sharex=True, squeeze=False)
    for ax, (name, pieces) in zip(panels[:, 0], ways.items(), strict=True):
        for kind, batch, start, n in pieces:
            colour = (BLUE, ORANGE)[batch]
            row = 1 if kind in ("dispatch", "combine") else 0
            ax.barh(row, n, left=start, height=0.8, color=colour, edgecolor="white", hatch=("", "//")[batch])
            if n > 0.02 * max(ends.values()):
                box = {"facecolor": "white", "edgecolor": "none", "pad": 1}
                ax.text(start + n / 2, row, kind[0].upper(), ha="center", va="center", fontsize=8, bbox=box)
        ax.set(title=f"{name}: {ends[name]:.2f}", ylim=(1.55, -0.55), xlim=(0, 1.01 * max(ends.values())))
        ax.set_yticks((0, 1), ("computing", "network"))
        ax.set_facecolor(PALE)
        ax.grid(visible=False)
    panels[-1, 0].set_xlabel("microseconds a token; A attention, D dispatch, E experts, C combine; hatched: batch 2")
    return picture
