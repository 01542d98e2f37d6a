"""Pictures of one text inside a model: the next token's probabilities, the residual stream, who answered for whom."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.colors import to_hex

from minids.plot.style import BLUE, GREEN, GREY, ORANGE, Picture, axes, label, styled, text_on


@styled
def next_tokens(tokens: Sequence[str], probabilities: Sequence[float], title: str = "The next token") -> Picture:
    """The likeliest next tokens, one bar each, in the order given.

    Args:
        tokens, probabilities: the texts and their shares (0 to 1).
    """
    listed = ", ".join(f"{label(t)} {100 * p:.0f}%" for t, p in zip(tokens, probabilities, strict=True))
    picture, ax = axes(f"Probability of the next token: {listed}", height=0.9 + 0.27 * len(tokens))
    ax.barh(range(len(tokens)), [100 * p for p in probabilities], color=BLUE, height=0.75)
    for y, p in enumerate(probabilities):
        ax.annotate(f"{100 * p:.1f}%", (100 * p, y), (4, 0), textcoords="offset points", va="center", fontsize=9)
    ax.set(title=title, xlabel="probability (%)", xlim=(0, 108), ylim=(len(tokens) - 0.4, -0.6))
    ax.set_yticks(range(len(tokens)), [label(t) for t in tokens])
    ax.grid(visible=False, axis="y")
    return picture


@styled
def residual_stream(added: Sequence[tuple[float, float]], start: float, guesses: Sequence[str]) -> Picture:
    """How far each part of each block moves one token's vector, and what the model would say if it stopped there.

    Args:
        added: for each block the length of what attention and what the FFN add to the vector.
        start: the embedding's length, drawn as a level line.
        guesses: the likeliest next token after the embedding and after each block: one more than `added`.
    """
    alt = f"What each block adds to one token's vector; its best guess: {', '.join(map(brief, guesses))}"
    picture, ax = axes(alt, height=3.2)
    x, (attention, ffn) = np.arange(1, len(added) + 1), zip(*added, strict=True)
    ax.bar(x - 0.18, attention, 0.34, color=BLUE, label="attention adds")
    ax.bar(x + 0.18, ffn, 0.34, color=ORANGE, hatch="//", edgecolor="white", label="FFN or experts add")
    ax.plot([0], [start], "o", color=GREEN, label="embedding")
    for i, guess in enumerate(guesses):
        ax.annotate(brief(guess), (i, 1), (0, 3), ("data", "axes fraction"), textcoords="offset points", ha="center")
    ax.annotate("if it stopped here, it would say:", (0, 1), (0, 19), "axes fraction", textcoords="offset points",
                fontsize=9, color=GREY)  # fmt: skip
    ax.set(xlabel="block", ylabel="length of the vector added", xlim=(-0.5, len(added) + 0.5))
    ax.set_xticks(range(len(guesses)), ["embed", *map(str, x)])
    ax.grid(visible=False, axis="x")
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=3)
    return picture


@styled
def experts_of_tokens(
    weights: Sequence[Sequence[float]], tokens: Sequence[str], groups: int = 1, title: str = "Who answers for whom"
) -> Picture:
    """A heat map: which experts answered for each token, and with which weight.

    Args:
        weights: [tokens, experts], 0 where an expert did not answer.
        tokens: the texts, top to bottom.
        groups: how many groups of equal size the experts form; lines part them.
    """
    w = np.asarray(weights, dtype=float)
    T, E = w.shape
    picture, ax = axes(f"Heat map of {T} tokens and {E} experts: weight of each expert", height=1.1 + 0.235 * T)
    image = ax.imshow(w, aspect="auto", cmap="Blues", vmin=0, vmax=max(float(w.max()), 1e-9))
    for t, e in zip(*np.nonzero(w), strict=True):
        colour = text_on(to_hex(image.cmap(image.norm(w[t, e]))))
        ax.text(e, t, f"{100 * w[t, e]:.0f}", ha="center", va="center", fontsize=8, color=colour)
    for border in range(E // groups, E, E // groups):
        ax.axvline(border - 0.5, color=GREY, linewidth=1)
    ax.set(title=title, xlabel="expert (lines part the groups; numbers: weight in %)")
    ax.set_yticks(range(T), [label(t) for t in tokens])
    ax.set_xticks(range(E))
    ax.grid(visible=False)
    return picture


def brief(text: str) -> str:
    """A token's text as a label of at most nine letters."""
    shown = label(text)
    return shown if len(shown) <= 9 else shown[:8] + "…"
