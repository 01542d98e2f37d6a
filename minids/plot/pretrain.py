"""Pictures of the pre-training chapter: the schedule, a run while it runs, models raced against each other."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from minids.plot.style import BLUE, COLOURS, GREY, LINES, ORANGE, Picture, axes, label, styled

# A race: model -> one run a seed; a run is (loss of each step, seconds at the end of each step).
Runs = Mapping[str, Sequence[tuple[Sequence[float], Sequence[float]]]]


@styled
def schedule(
    tokens: Sequence[float], rates: Sequence[float], batches: Sequence[float], unit: str = "tokens", note: str = ""
) -> Picture:
    """The learning rate and the batch over a run, side by side.

    Args:
        tokens: where the values were taken, in `unit`.
        rates, batches: the learning rate, and sequences a step, at each of them.
        note: a line above the picture: what follows from the schedule.
    """
    picture, ax = axes(f"Learning rate and batch against {unit}", 1, 2, height=2.9, width_ratios=(1.6, 1))
    ax[0].plot(tokens, rates, color=BLUE)
    ax[0].fill_between(tokens, rates, color=BLUE, alpha=0.12, linewidth=0)
    ax[0].set(title="learning rate", xlabel=unit, ylabel="rate", ylim=(0, None), xlim=(0, tokens[-1]))
    ax[0].ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    ax[1].plot(tokens, batches, LINES[1], color=ORANGE)
    # the ramp is over early: show it, and as much again of what follows
    grown = next((t for t, b in zip(tokens, batches, strict=True) if b >= batches[-1]), tokens[-1])
    ax[1].set(title="batch", xlabel=unit, ylabel="sequences a step", ylim=(0, None))
    ax[1].set_xlim(0, min(2 * grown, tokens[-1]) or tokens[-1])
    if note:
        picture.suptitle(note, x=0.01, ha="left", fontsize=9.5, color=GREY)
    return picture


@styled
def live_run(
    losses: Mapping[str, Sequence[float]],
    loads: Sequence[Sequence[float]],
    sample: str = "",
    total: int = 0,
    marks: Mapping[str, int] | None = None,
) -> Picture:
    """A run as it goes: its losses, the load of one layer's experts, and a text of the model as it is now.

    Args:
        losses: name -> value at each step, from the first.
        loads: [steps, experts], tokens routed to each expert.
        sample: a generated text.
        total: steps of the whole run, so that the axes stay still while it grows.
        marks: name -> step: level lines of time, such as the start of the decay.
    """
    alt = "A run: its losses, the share of each expert of one layer at every step, and a text sampled from the model"
    picture, ax = axes(alt, 2, 2, height=4.3, height_ratios=(2.6, 1), width_ratios=(1, 1.15))
    (left, right), below = ax[0], _joined(picture, ax[1])
    steps = max((len(v) for v in losses.values()), default=0)
    end = max(total, steps, 2)
    for i, (name, values) in enumerate(losses.items()):
        left.plot(range(1, len(values) + 1), values, LINES[i % 4], color=COLOURS[i % 7], label=name, linewidth=1.3)
    for name, step in (marks or {}).items():
        left.axvline(step, color=GREY, linewidth=0.8)
        place = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points"}
        left.annotate(name, (step, 1), (3, -10), fontsize=8, color=GREY, **place)
    left.set(title=f"loss after {steps} of {end} steps", xlabel="step", ylabel="nats per token", xlim=(1, end))
    left.legend(loc="lower left")
    _load_map(picture, right, loads, end)
    text = "".join(ch if ch in " \n" else label(ch) for ch in sample)
    lines = [piece for line in text.splitlines() for piece in textwrap.wrap(line, 92) or [""]]
    words = "the model writes:\n" + "\n".join(lines[:5])
    below.text(0, 1.0, words, va="top", fontsize=9.5, linespacing=1.35, in_layout=False)
    return picture


def _joined(picture: Picture, row: np.ndarray) -> Any:
    """One empty place where a row of axes was."""
    grid, number = row[0].get_gridspec(), row[0].get_subplotspec().rowspan.start
    for a in row:
        a.remove()
    place = picture.add_subplot(grid[number, :])
    place.axis("off")
    return place


def _load_map(picture: Picture, ax: Any, loads: Sequence[Sequence[float]], end: int) -> None:
    shares = np.asarray(loads, dtype=float).T if len(loads) else np.zeros((1, 1))
    shares = shares / np.maximum(shares.mean(0, keepdims=True), 1e-9)
    E, n = shares.shape
    colours = {"cmap": "RdBu_r", "vmin": 0, "vmax": 2}
    image = ax.imshow(shares, aspect="auto", interpolation="nearest", extent=(1, max(n, 2), E - 0.5, -0.5), **colours)
    ax.set(title="load of each expert (1 = its fair share)", xlabel="step", ylabel="expert", xlim=(1, end))
    ax.grid(visible=False)
    picture.colorbar(image, ax=ax, shrink=0.9, extend="max", ticks=[0, 1, 2])


@styled
def race(runs: Runs, tokens_per_step: int, smooth: int = 8, title: str = "") -> Picture:
    """The same runs against tokens and against seconds: one line for each seed, one style for each model.

    Args:
        runs: model -> [(losses, seconds) of each seed], both with one value a step.
        smooth: the loss shown is the mean of so many steps.
    """
    picture, ax = axes(f"Loss against tokens and against seconds: {', '.join(runs)}", 1, 2, height=3.2, sharey=True)
    for i, (name, seeds) in enumerate(runs.items()):
        for k, (losses, seconds) in enumerate(seeds):
            mean = np.convolve(losses, np.ones(smooth) / smooth, "valid")
            style = {"color": COLOURS[i % 7], "label": name if k == 0 else None, "alpha": 1.0 if k == 0 else 0.55}
            ax[0].plot(tokens_per_step * np.arange(smooth, len(losses) + 1) / 1000, mean, LINES[i % 4], **style)
            ax[1].plot(seconds[smooth - 1 :], mean, LINES[i % 4], **style)
    ax[0].set(title="at equal tokens", xlabel="thousand tokens read", ylabel=f"nats per token, mean of {smooth} steps")
    ax[1].set(title="at equal time", xlabel="seconds of one core")
    ax[1].legend()
    if title:
        picture.suptitle(title, x=0.01, ha="left", fontsize=11)
    return picture


@styled
def spike(updates: Mapping[str, Sequence[float]], at: int) -> Picture:
    """The size of an optimizer's updates around one bad gradient, a line for each way to meet it.

    Args:
        updates: name -> the update of each step as a part of the learning rate.
        at: the step of the bad gradient.
    """
    picture, ax = axes(f"Size of the update at each step around a bad gradient: {', '.join(updates)}", height=2.9)
    for i, (name, values) in enumerate(updates.items()):
        ax.plot(range(1, len(values) + 1), values, LINES[i % 4], color=COLOURS[i % 7], label=name)
    ax.axvline(at, color=GREY, linewidth=0.8)
    ax.annotate("one bad batch", (at, 0), (4, 4), textcoords="offset points", color=GREY, fontsize=9)
    ax.set(title="How far a step goes", xlabel="step", ylabel="update / learning rate", ylim=(0, None))
    ax.legend()
    return picture
