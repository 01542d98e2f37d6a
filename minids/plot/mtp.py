"""Pictures of multi-token prediction: which token goes where, runs with and without it, when a draft agrees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.patches import FancyBboxPatch

from minids.plot.style import BLUE, COLOURS, GREEN, GREY, LINES, ORANGE, PALE, SKY, Picture, axes, label, styled

BOX: dict[str, Any] = {"boxstyle": "round,pad=0.02,rounding_size=0.08"}


@styled
def shifted_sequences(tokens: Sequence[str], position: int, depth: int, depths: int = 2) -> Picture:
    """The rows of eq. 21-24: what the state of one position at one depth is made of, and which token it must predict.

    Args:
        tokens: S inputs and the last target.
        position: 0 to S - 1; depth: 0, the main model, to `depths`, the number of MTP modules drawn. ValueError beyond.
    """
    S = len(tokens) - 1
    if not (0 <= position < S and 0 <= depth <= depths < S):
        raise ValueError(
            f"a position lies between 0 and {S - 1}, a depth between 0 and {depths}, below {S}; got position "
            f"{position}, depth {depth}. {len(tokens)} tokens are {S} inputs and the last target."
        )
    alt, fate = _fate(tokens, position, depth)
    picture, ax = axes(alt, height=1.5 + 0.72 * (depths + 3))
    top, alive = depths + 2, position + depth < S
    for x, token in enumerate(tokens):
        known, target = alive and x <= position + depth, alive and x == position + depth + 1
        read = alive and position < x <= position + depth
        _box(ax, x, 0, f"$t_{{{x}}}$ {_brief(token)}", ORANGE if read else SKY if known else None)
        _box(ax, x, top, f"$t_{{{x}}}$ {_brief(token)}", GREEN if target else None)
    for k in range(depths + 1):
        for x in range(S):
            text = f"$h^{{{k}}}_{{{x}}}$" if x < S - k else "no target"
            used = alive and x <= position and k <= depth  # the block looks back at the earlier positions of its row
            _box(ax, x, k + 1, text, (BLUE if x == position else SKY) if used else None, faint=x >= S - k)
    if not alive:
        _box(ax, position, depth + 1, "no target", ORANGE)
    if alive:
        _arrows(ax, position, depth, top)
    names = ["main model", *(f"MTP depth {k}" for k in range(1, depths + 1))]
    ax.set_yticks(range(top + 1), ["reads", *names, "predicts"])
    ax.set(xlim=(-0.55, S + 0.55), ylim=(-0.75, top + 0.5), title=fate)
    ax.set_xticks(range(S + 1))
    ax.set_xlabel("position i")
    ax.grid(visible=False)
    ax.spines[["left", "bottom"]].set_visible(False)
    ax.tick_params(length=0)
    return picture


def _fate(tokens: Sequence[str], position: int, depth: int) -> tuple[str, str]:
    """(the description, the title): what the state at a position and depth may know, and what it must predict."""
    S, who = len(tokens) - 1, f"depth {depth}" if depth else "the main model"
    if position + depth >= S:
        last = f"{who} at position {position}: its target would be t{position + depth + 1}, but the last token is t{S}"
        return f"Shifted sequences: {last}", f"{last[0].upper()}{last[1:]}"
    target = f"t{position + depth + 1}, {label(tokens[position + depth + 1].strip())}"
    text = f"{who} at position {position} knows t0 to t{position + depth} and must predict {target}"
    return f"Shifted sequences: {text}", f"{text[0].upper()}{text[1:]}"


def _box(ax: Any, x: float, y: float, text: str, colour: str | None = None, faint: bool = False) -> None:
    edge = "white" if faint else (colour or GREY)
    fill = "white" if faint or colour is None else colour
    ax.add_patch(FancyBboxPatch((x - 0.42, y - 0.24), 0.84, 0.48, facecolor=fill, edgecolor=edge, linewidth=1, **BOX))
    dark = colour in (BLUE, ORANGE, GREEN)
    ink = "white" if dark and not faint else GREY if faint or colour is None else "black"
    ax.text(x, y, text, ha="center", va="center", fontsize=8 if faint else 9, color=ink)


def _arrows(ax: Any, position: int, depth: int, top: int) -> None:
    """What flows into the state: the tokens up to the position, one token more at each depth; and out: its target."""
    arrow: dict[str, Any] = {"arrowstyle": "-|>", "shrinkA": 0, "shrinkB": 0, "linewidth": 1.6}
    for x in range(position + 1):  # attention looks back
        ends = (position - 0.05 * (position - x), 0.72), (x, 0.28)
        ax.annotate("", *ends, arrowprops={**arrow, "color": SKY, "linewidth": 1.2})
    for k in range(1, depth + 1):
        ax.annotate("", (position, k + 0.72), (position, k + 0.28), arrowprops={**arrow, "color": BLUE})
        ends = (position + 0.3, k + 0.72), (position + k, 0.28)
        ax.annotate("", *ends, arrowprops={**arrow, "color": ORANGE, "linestyle": LINES[1]})
        ax.annotate(f"embedding\nfor depth {k}", (position + k, -0.3), ha="center", va="top", fontsize=8, color=ORANGE)
    ends = (position + depth + 1, top - 0.28), (position + 0.3, depth + 1.28)
    ax.annotate("", *ends, arrowprops={**arrow, "color": GREEN, "linewidth": 2.2})


def _brief(token: str) -> str:
    shown = label(token.strip() or token)
    return shown if len(shown) <= 7 else shown[:6] + "…"


@styled
def paired_runs(runs: Mapping[str, Sequence[float]], ylabel: str = "loss (bits per byte)") -> Picture:
    """The results of the same seeds in several arms; beside it, how far the second arm is from the first, by seed.

    Args:
        runs: arm -> one result for each seed, in the same order in every arm; at least two arms and two seeds.
    """
    first, second, *_ = runs
    picture, (ax, zoom) = axes(f"{ylabel} of each seed: {', '.join(runs)}", 1, 2, height=3.0, width_ratios=(1.6, 1))
    for i, results in enumerate(zip(*runs.values(), strict=True)):
        line = f"{'osD^v'[i % 5]}{LINES[i % 4]}"
        ax.plot(range(len(runs)), results, line, color=COLOURS[i % 7], linewidth=1.2, label=f"seed {i}")
        zoom.plot([i], [results[1] - results[0]], "osD^v"[i % 5], color=COLOURS[i % 7], markersize=8)
    mean = sum(runs[first]) / len(runs[first])
    spread = max(abs(result - mean) for result in runs[first])
    zoom.axhspan(-spread, spread, color=PALE, zorder=0)
    zoom.annotate("the grey band: other seeds", (0.02, 0.02), xycoords="axes fraction", fontsize=9, color=GREY)
    zoom.axhline(0, color=GREY, linewidth=1)
    reach = 1.6 * max(spread, *(abs(b - a) for a, b in zip(runs[first], runs[second], strict=True)))
    ax.set(title="One line a seed", ylabel=ylabel, xlim=(-0.4, len(runs) - 0.6))
    ax.set_xticks(range(len(runs)), [name.replace(", ", ",\n") for name in runs])
    ax.grid(visible=False, axis="x")
    ax.legend()
    zoom.set(title=f"{second} minus {first}", xlabel="seed", ylim=(-reach, reach), xlim=(-0.5, len(runs[first]) - 0.5))
    zoom.set_xticks(range(len(runs[first])))
    return picture


@styled
def agreement(rows: Mapping[str, Sequence[tuple[float, float, int]]], title: str = "Drafts that agree") -> Picture:
    """How often a draft is what the main model says, against how sure the main model is.

    Args:
        rows: domain -> (mean probability of the main model's choice, share that agrees, number of drafts) for each
            bin; shares from 0 to 1, the size of a marker grows with the number.
    """
    picture, ax = axes(f"Share of drafts that agree, by how sure the main model is: {', '.join(rows)}", height=3.2)
    ax.axhspan(85, 90, color=PALE)
    ax.annotate("V3 reports 85 to 90 %", (2, 90.5), fontsize=9, color=GREY)
    for i, (name, bins) in enumerate(rows.items()):
        colour, total = COLOURS[i % 7], sum(n for *_, n in bins)
        sure, share = [100 * p for p, *_ in bins], [100 * a for _, a, _ in bins]
        ax.plot(sure, share, LINES[i % 4], color=colour, label=name)
        ax.scatter(sure, share, [20 + 200 * n / total for *_, n in bins], color=colour, marker="osD^"[i % 4], zorder=3)
    ax.set(xlabel="probability that the main model gives to its choice (%)", ylabel="drafts that agree (%)")
    ax.set(title=title, xlim=(0, 103), ylim=(0, 106))
    ax.legend(loc="lower right")
    return picture
