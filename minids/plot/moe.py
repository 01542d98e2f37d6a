"""Pictures of a mixture of experts: what cutting changes, who answers, how pairs are sorted, what a token uses."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.patches import Rectangle

from minids.plot.style import BLUE, COLOURS, GREEN, GREY, LINES, ORANGE, PALE, SKY, Picture, axes, label, styled


@styled
def teams(chosen: Sequence[Sequence[bool]], cut: int, lost: Mapping[int, float]) -> Picture:
    """A few tokens' choices from a layer cut into experts; beside it, what is lost when only a quarter may answer.

    Args:
        chosen: [tokens, neurons], whether the neuron's expert was chosen for the token.
        cut: into how many experts the layer is cut here.
        lost: number of experts -> share (0 to 1) of the squared output that is lost.
    """
    picked = np.asarray(chosen, dtype=float)
    F = picked.shape[1]
    n = math.comb(cut, cut // 4)
    many = f"{n:,}" if n < 10**9 else f"about 10^{len(str(n)) - 1}"
    alt = f"{cut} experts of {F // cut} neurons, {cut // 4} answer: {many} teams, {100 * lost[cut]:.1f} % lost"
    picture, (left, right) = axes(alt, 1, 2, height=3.1, width_ratios=(1.45, 1))
    left.imshow(picked, aspect="auto", cmap="Blues", vmin=0, vmax=1.4, interpolation="nearest")
    if cut <= 32:
        for border in range(F // cut, F, F // cut):
            left.axvline(border - 0.5, color="white", linewidth=1)
    left.set(title=f"{cut} experts, {cut // 4} answer: {many} teams", xlabel="neuron", ylabel="token")
    left.grid(visible=False)
    sizes = sorted(lost)
    right.plot(sizes, [100 * lost[s] for s in sizes], "o-", color=BLUE, markersize=4)
    right.plot([cut], [100 * lost[cut]], "D", color=ORANGE, markersize=10)
    right.annotate(f"{100 * lost[cut]:.1f} %", (cut, 100 * lost[cut]), (6, 8), textcoords="offset points", color=ORANGE)
    right.set(title="Lost of the squared output", xlabel="experts", ylabel="lost (%)", ylim=(0, None))
    right.set_xscale("log", base=2)
    right.set_xticks(sizes[::2], [str(s) for s in sizes[::2]])
    right.set_xlim(sizes[0] / 1.4, sizes[-1] * 1.9)
    return picture


@styled
def flow(
    tokens: Sequence[str], weights: Sequence[Sequence[float]], token: int, shared: int = 1, groups: int = 1
) -> Picture:
    """Lines from tokens to the experts that answer for them; the heavy ones are one token's.

    Args:
        tokens: the texts, left to right.
        weights: [tokens, routed experts], 0 where an expert does not answer.
        token: which token is drawn in colour. ValueError beyond the text.
        shared: how many experts answer for every token.
        groups: how many groups of equal size the routed experts form; dotted lines part them.
    """
    w = np.asarray(weights, dtype=float)
    T, E = w.shape
    if not 0 <= token < T or len(tokens) != T:
        raise ValueError(f"a token of the text lies between 0 and {T - 1}; got {token} of {len(tokens)} tokens.")
    mine, load = np.flatnonzero(w[token]), (w > 0).sum(0)
    who, names = label(tokens[token].strip() or tokens[token]), ", ".join(map(str, mine))
    alt = f"token {token}, {who}, flows to routed experts {names} of {E} and to {shared} shared"
    picture, ax = axes(f"Tokens and experts: {alt}", height=4.1)
    place = (np.arange(T) + 0.5) * (E + shared) / T - 0.5  # tokens and experts share one width
    others = [t for t in range(T) if t != token]
    ends = [(t, e) for t in others for e in (*np.flatnonzero(w[t]), *range(E, E + shared))]
    lines = [np.array([[place[t], 0], [e, 1.08]]) for t, e in ends]
    ax.add_collection(LineCollection(lines, colors="#D0D0D0", linewidths=0.7))
    for e in mine:
        ax.plot([place[token], e], [0, 1.08], color=BLUE, linewidth=1 + 3 * w[token, e] / w[token].max(), zorder=3)
    for e in range(E, E + shared):
        ax.plot([place[token], e], [0, 1.08], LINES[1], color=GREEN, linewidth=2.8, zorder=3)
    for t in range(T):
        text, chosen = label(tokens[t].strip() or tokens[t]), t == token
        ax.text(place[t], -0.06, text if len(text) < 9 else text[:8] + "…", ha="center", va="top", fontsize=9,
                color=ORANGE if chosen else GREY, weight="bold" if chosen else "normal")  # fmt: skip
    for e in range(E + shared):
        _expert(ax, e, e in mine, None if e >= E else int(load[e]), int(load.max()), w[token, e] if e < E else 0)
    for border in range(E // groups, E, E // groups):
        ax.plot([border - 0.5] * 2, [1.05, 2.35], LINES[3], color=GREY, linewidth=1.4)
    note = "above: tokens of this text that each routed expert gets; in blue: its weight; S: shared, gets all"
    ax.text(-0.6, 2.5, note, fontsize=9, color=GREY)
    ax.set(title=f"Token {token}, {who}: {len(mine)} of {E} routed experts answer", xlim=(-0.7, E + shared - 0.3))
    ax.set(ylim=(-0.3, 2.8), xticks=[], yticks=[])
    ax.grid(visible=False)
    ax.spines[["left", "bottom"]].set_visible(False)
    return picture


def _expert(ax: Any, e: int, answers: bool, load: int | None, most: int, weight: float) -> None:
    """One expert's box; `load` None is a shared expert."""
    shared = load is None
    colour = GREEN if shared else BLUE if answers else PALE
    ink = "white" if shared or answers else GREY
    ax.bar(e, 1, 0.86, bottom=1.1, color=colour)
    ax.text(e, 1.15, "S" if shared else e, ha="center", va="bottom", fontsize=9, color=ink)
    if load is not None:
        ax.text(e, 2.13, load, ha="center", va="bottom", fontsize=8, color=GREY)
        ax.bar(e, 0.38 * load / max(most, 1), 0.5, bottom=1.42, color=SKY if answers else GREY)
    if answers:
        ax.text(e, 2.06, f"{weight:.2f}", ha="center", va="top", fontsize=8, color=ink)


@styled
def sorted_pairs(indices: Sequence[Sequence[int]], n_experts: int) -> Picture:
    """The (token, expert) pairs of a small batch in the tokens' order, and under it in the experts' order.

    Args:
        indices: [tokens, K], the experts chosen for each token.
        n_experts: how many experts there are.
    """
    idx = np.asarray(indices)
    T, K = idx.shape
    flat = idx.flatten()
    order = np.argsort(flat, kind="stable")
    alt = f"{T * K} pairs of {T} tokens and {n_experts} experts: by token above, sorted by expert below"
    picture, ax = axes(alt, height=2.9)
    for below, pair in enumerate(order):
        colour = COLOURS[flat[pair] % len(COLOURS)]
        ax.plot([pair, below], [1.62, 0.98], color=colour, linewidth=1.3, linestyle=LINES[flat[pair] % 4])
        for x, y in ((int(pair), 1.65), (below, 0.4)):
            ax.add_patch(_tile(x, y, colour))
            ink = "black" if colour in (SKY, "#CC79A7", "#E69F00") else "white"
            ax.text(x, y + 0.28, f"t{pair // K}\nE{flat[pair]}", ha="center", va="center", fontsize=8, color=ink)
    for t in range(T):
        ax.text(t * K + (K - 1) / 2, 2.35, f"token {t}", ha="center", fontsize=9, color=GREY)
    start = 0
    for e, n in enumerate(np.bincount(flat, minlength=n_experts)):
        if n:
            ax.plot([start - 0.42, start + n - 0.58], [0.3, 0.3], color=GREY, linewidth=1)
            ax.text(start + (n - 1) / 2, 0.05, f"expert {e}: {n}", ha="center", fontsize=8, color=GREY)
        start += n
    ax.set(title="Top: as the gate gives them. Bottom: sorted by expert", xlim=(-0.8, T * K - 0.2), ylim=(-0.1, 2.6))
    ax.set(xticks=[], yticks=[])
    ax.grid(visible=False)
    ax.spines[["left", "bottom"]].set_visible(False)
    return picture


def _tile(x: float, y: float, colour: str) -> Any:
    return Rectangle((x - 0.43, y), 0.86, 0.56, facecolor=colour, edgecolor="white")


@styled
def dispatch_times(tokens: Sequence[int], times: Mapping[str, Sequence[float]], title: str = "") -> Picture:
    """Processor time of a token against the tokens that run together, one line for each way to run experts.

    Args:
        tokens: batch sizes.
        times: way -> microseconds a token at each size; a shorter list stops early.
    """
    picture, ax = axes(f"Microseconds a token against the tokens of a batch: {', '.join(times)}", height=3.3)
    for i, (name, values) in enumerate(times.items()):
        style = f"{'osD^v'[i % 5]}{LINES[i % 4]}"
        ax.plot(tokens[: len(values)], values, style, color=COLOURS[i % 7], label=name)
    ax.set(xlabel="tokens that run together", ylabel="processor time (µs a token)", title=title)
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ax.set_xticks(list(tokens), [f"{n:,}" for n in tokens])
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return picture


@styled
def used_parameters(parts: Mapping[str, tuple[float, float]]) -> Picture:
    """For each part of a model its parameters, and beside it those that one token uses; two scales, both linear.

    Args:
        parts: part -> (parameters, parameters used for a token).
    """
    total, used = (sum(pair[i] for pair in parts.values()) for i in (0, 1))
    alt = f"Parameters by part: {total / 1e9:.0f} billion there, {used / 1e9:.0f} used for a token"
    picture, panels = axes(alt, 1, 2, height=0.9 + 0.3 * len(parts), sharey=True)
    for i, (ax, name, colour) in enumerate(zip(panels, ("there", "used for one token"), (GREY, BLUE), strict=True)):
        sizes = [pair[i] / 1e9 for pair in parts.values()]
        ax.barh(range(len(parts)), sizes, 0.7, color=colour)
        for y, size in enumerate(sizes):
            ax.annotate(f"{size:.2f}", (size, y), (4, 0), textcoords="offset points", va="center", fontsize=9)
        ax.set(title=f"{name}: {sum(sizes):.1f} billion", xlabel="parameters (billions)", xlim=(0, 1.25 * max(sizes)))
        ax.grid(visible=False, axis="y")
    panels[0].set_yticks(range(len(parts)), list(parts))
    panels[0].set_ylim(len(parts) - 0.45, -0.55)
    return picture


@styled
def shares(loads: Mapping[str, Sequence[float]], fair: float, ylabel: str = "tokens (% of all)") -> Picture:
    """Bars: the share of the tokens that each expert gets, one panel for each name, busiest first.

    Args:
        loads: name -> share of the tokens (0 to 1) of each expert.
        fair: the share when all get the same, drawn as a line.
    """
    busiest = {name: max(load) / fair for name, load in loads.items()}
    alt = "Share of tokens by expert; busiest: " + ", ".join(f"{n} {b:.1f} times the mean" for n, b in busiest.items())
    picture, panels = axes(alt, 1, len(loads), height=2.6, sharey=True, squeeze=False)
    for i, (ax, (name, load)) in enumerate(zip(panels[0], loads.items(), strict=True)):
        ax.bar(range(len(load)), sorted((100 * share for share in load), reverse=True), color=COLOURS[i % 7])
        ax.axhline(100 * fair, color="black", linestyle=LINES[1], linewidth=1.2)
        ax.set(title=name, xlabel="experts, busiest first")
        ax.grid(visible=False, axis="x")
    panels[0][0].set_ylabel(ylabel)
    panels[0][0].annotate("all equal", (len(next(iter(loads.values()))) - 0.5, 100 * fair), (0, 4),
                          textcoords="offset points", ha="right", fontsize=9)  # fmt: skip
    return picture
