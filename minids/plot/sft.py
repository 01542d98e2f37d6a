"""Pictures of supervised fine-tuning: which token is seen, learned and predicted; how much leaves rewards a signal."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.patches import Rectangle

from minids.plot.style import BLUE, GREEN, GREY, LINES, ORANGE, PALE, SKY, Picture, axes, label, styled


@styled
def token_masks(
    tokens: Sequence[str], learned: Sequence[bool], segments: Sequence[int], position: int, isolated: bool = True
) -> Picture:
    """A packed row from one position: the tokens that it sees, the one that it predicts, whether that has a loss; and
    the whole mask beside it.

    Args:
        tokens: the row's tokens as text; learned: True where a token has a loss; segments: the sample of each token.
        position: 0 to the last but one; ValueError beyond. isolated: samples are kept apart.
    """
    S = len(tokens)
    if not (len(learned) == len(segments) == S and 0 <= position < S - 1):
        raise ValueError(
            f"a row of {S} tokens has as many values of `learned` and `segments`, and positions 0 to {S - 2}, since "
            f"the last token predicts nothing here; got {len(learned)}, {len(segments)} and {position}."
        )
    seen = np.array([[j <= i and (not isolated or segments[i] == segments[j]) for j in range(S)] for i in range(S)])
    has_loss, what = learned[position + 1], _shown(tokens[position + 1])
    said = f"Token {position} sees {int(seen[position].sum())} tokens; its prediction of {what} has "
    said += "a loss" if has_loss else "no loss"
    picture, (ax, grid) = axes(
        f"Masks of a packed row: {said}", 1, 2, width=9.0, height=1.2 + 0.16 * S, width_ratios=(1, 1.05)
    )
    cells = np.zeros((S, 3), dtype=int)  # white
    cells[seen[position], 0], cells[position, 0] = 1, 2
    cells[position + 1, 1] = 3
    cells[np.array(learned), 2] = 4
    colours = ListedColormap(["white", SKY, BLUE, GREEN if has_loss else ORANGE, PALE])
    ax.pcolormesh(np.arange(4), np.arange(S + 1), cells, cmap=colours, vmin=0, vmax=4, edgecolor=PALE, linewidth=0.8)
    for i, token in enumerate(tokens):
        ax.text(-0.1, i + 0.5, _shown(token), ha="right", va="center", fontsize=8)
        if i == 0 or segments[i] != segments[i - 1]:
            dark = i == position
            ax.text(0.5, i + 0.5, f"sample {segments[i]}", ha="center", va="center", fontsize=8,
                    color="white" if dark else "black")  # fmt: skip
    told = "a loss" if has_loss else "no loss"
    ax.text(1.5, position + 1.5, told, ha="center", va="center", fontsize=8, color="white")
    ax.set(xlim=(-1.25, 3.05), ylim=(S, 0), title=said.replace("; ", ",\n"))
    ax.set_xticks([0.5, 1.5, 2.5], ["is seen", "is predicted", "has a loss"])
    ax.xaxis.tick_top()
    _draw_grid(grid, seen, position, segments)
    for each in (ax, grid):
        each.set_yticks([])
        each.grid(visible=False)
        each.tick_params(length=0)
        each.spines[["left", "bottom", "top"]].set_visible(False)
    return picture


def _shown(token: str) -> str:
    return label(token.strip()) or "space"


def _draw_grid(ax, seen: np.ndarray, position: int, segments: Sequence[int]) -> None:
    """The mask: a row looks, a column is looked at; a frame around the row of `position`, lines between samples."""
    S = len(seen)
    shown = seen.astype(int)
    shown[position] *= 2
    ax.imshow(shown, cmap=ListedColormap(["white", SKY, BLUE]), vmin=0, vmax=2, aspect="auto", extent=(0, S, S, 0))
    for border in (i for i in range(1, S) if segments[i] != segments[i - 1]):
        ax.axhline(border, color=GREY, linewidth=0.8, linestyle=":")
        ax.axvline(border, color=GREY, linewidth=0.8, linestyle=":")
    ax.add_patch(Rectangle((0, position), S, 1, fill=False, edgecolor=ORANGE, linewidth=1.6))
    ax.set(title="Row i may look at column j", xlabel="token j", ylabel="token i", xlim=(0, S), ylim=(S, 0))
    ax.set_xticks([])


@styled
def cold_starts(steps: Sequence[int], solved: Sequence[float], signal: Sequence[float], group: int = 16) -> Picture:
    """What fine-tuning leaves for rewards: problems solved, and groups in which some samples are right and some wrong.

    Args:
        steps: of fine-tuning, rising; solved: pass@1 from 0 to 1; signal: the share of mixed groups of `group` samples.
    """
    best = max(range(len(steps)), key=lambda i: signal[i])
    told = f"mixed groups peak at step {steps[best]} with {signal[best]:.0%}, where {solved[best]:.0%} is solved"
    picture, ax = axes(f"Fine-tuning before rewards: {told}", height=3.3)
    ax.plot(steps, [100 * s for s in solved], f"o{LINES[0]}", color=BLUE, label="right (pass@1)")
    ax.plot(steps, [100 * s for s in signal], f"s{LINES[1]}", color=ORANGE, label=f"groups of {group} with a signal")
    ax.axhline(20, color=GREY, linewidth=1, linestyle=":")
    ax.annotate("14_grpo starts here", (steps[len(steps) // 2], 21), ha="left", va="bottom", fontsize=9, color=GREY)
    ax.set(
        xlabel="steps of fine-tuning", ylabel="of held-out problems (%)", ylim=(-3, 105), title="What is left to learn"
    )
    ax.legend(loc="lower center", bbox_to_anchor=(0.7, 1.0), ncols=2)
    return picture
