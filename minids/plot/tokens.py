"""Pictures of what a model reads: merges one by one, bytes per token, documents in rows, what follows a cut prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from minids.plot.style import BLUE, COLOURS, GREY, LINES, ORANGE, PALE, SKY, Picture, axes, label, styled, text_on


@styled
def merge_wall(text: str, merges: Sequence[tuple[str, str]], n: int) -> Picture:
    """How a text falls into tokens after 0, 1, .. `n` merges, a row each; what the last merge made stands out.

    Args:
        text: its characters are the tokens of row 0.
        merges: the pairs in order.
        n: how many of them are applied, 0 to len(merges). ValueError beyond.
    """
    if not 0 <= n <= len(merges):
        raise ValueError(f"{len(merges)} merges are given; got n={n}. Take from 0 to {len(merges)}.")
    rows = [list(text)]
    for pair in merges[:n]:
        rows.append(_merged(rows[-1], pair))
    last = "".join(merges[n - 1]) if n else None
    made = len(rows[-2]) - len(rows[-1]) if n else 0
    said = f"after {n} merges: {len(rows[-1])} tokens"
    said += f"; the last made {label(last)} ({made} times)" if last else ""
    picture, ax = axes(f"A text of {len(text)} characters: {said}", height=1.1 + 0.24 * (len(merges) + 1))
    for y, row in enumerate(rows):
        _bricks(ax, y, row, fresh=last if y == n else None, strong=y == n)
    for x, character in enumerate(text):
        ax.text(x + 0.5, -0.85, label(character), ha="center", va="center", fontsize=9)
    _write(ax, n, rows[-1], last)
    ax.set(xlim=(0, len(text)), ylim=(len(merges) + 0.5, -1.4), ylabel="merges", title=f"{said[0].upper()}{said[1:]}")
    ax.set_yticks(range(0, len(merges) + 1, 2))
    ax.set_xticks([])
    ax.grid(visible=False)
    ax.spines[["left", "bottom"]].set_visible(False)
    return picture


def _merged(row: Sequence[str], pair: tuple[str, str]) -> list[str]:
    out: list[str] = []
    for token in row:
        if out and (out[-1], token) == pair:  # what was just joined is longer than pair[0]: it is not joined again
            out[-1] += token
        else:
            out.append(token)
    return out


def _bricks(ax: Any, y: int, row: Sequence[str], fresh: str | None, strong: bool) -> None:
    starts = [sum(map(len, row[:i])) for i in range(len(row))]
    colours = [_brick(token, fresh, strong) for token in row]
    bars = [(x + 0.06, len(token) - 0.12) for x, token in zip(starts, row, strict=True)]
    ax.broken_barh(bars, (y - 0.4, 0.8), facecolors=colours)


def _brick(token: str, fresh: str | None, strong: bool) -> str:
    if token == fresh:
        return ORANGE
    return PALE if len(token) == 1 else BLUE if strong else SKY


def _write(ax: Any, y: int, row: Sequence[str], fresh: str | None) -> None:
    x = 0.0
    for token in row:
        ink = text_on(_brick(token, fresh, strong=True))
        ax.text(x + len(token) / 2, y, label(token), ha="center", va="center", fontsize=8, color=ink)
        x += len(token)


@styled
def bytes_per_token(vocabulary: Sequence[int], domains: Mapping[str, Sequence[float]]) -> Picture:
    """How much text one token holds, against the size of the vocabulary.

    Args:
        vocabulary: numbers of tokens, rising.
        domains: kind of text -> bytes per token for each size.
    """
    picture, ax = axes(f"Bytes per token against vocabulary size: {', '.join(domains)}", height=3.3)
    for i, (name, values) in enumerate(domains.items()):
        style = f"{'osD^v'[i % 5]}{LINES[i % 4]}"
        ax.plot(vocabulary, values, style, color=COLOURS[i % 7], markersize=5)
        end, ink = (vocabulary[-1], values[-1]), COLOURS[i % 7]
        ax.annotate(f"{name} {values[-1]:.1f}", end, (8, 0), textcoords="offset points", va="center", color=ink)
    ax.set_xscale("log", base=2)
    ax.set_xticks(vocabulary, [f"{size:,}" for size in vocabulary])
    ax.minorticks_off()
    ax.set(xlabel="tokens in the vocabulary", ylabel="bytes per token", title="The next merge buys less than the last")
    ax.set(xlim=(vocabulary[0] * 0.95, vocabulary[-1] * 1.35), ylim=(0, None))
    return picture


Rows = Sequence[Sequence[tuple[int, int]]]


@styled
def documents_in_rows(ways: Mapping[str, Rows], length: int, most: int = 12) -> Picture:
    """Which documents share a row, for several ways to fill rows; what is left empty is hatched.

    Args:
        ways: name -> rows of (document's number, tokens of it), each row at most `length` tokens.
        length: tokens in a row.
        most: rows drawn of each way.
    """
    counts = ", ".join(f"{name} {len(rows)} rows" for name, rows in ways.items())
    picture, panels = axes(f"Documents in rows of {length} tokens: {counts}", 1, len(ways), height=3.2, sharey=True)
    for ax, (name, rows) in zip(panels, ways.items(), strict=True):
        for y, row in enumerate(rows[:most]):
            x = 0
            for document, size in row:
                ax.broken_barh([(x, size)], (y - 0.42, 0.84), facecolors=COLOURS[document % 6], edgecolor="white")
                if size > length / 9:
                    ink = text_on(COLOURS[document % 6])
                    ax.text(x + size / 2, y, str(document), ha="center", va="center", fontsize=7, color=ink)
                x += size
            if x < length:
                ax.broken_barh(
                    [(x, length - x)], (y - 0.42, 0.84), facecolors="white", edgecolor=GREY, hatch="////", lw=0
                )
        empty = 1 - sum(size for row in rows for _, size in row) / (len(rows) * length)
        ax.set(title=f"{name}\n{len(rows)} rows, {empty:.0%} empty", xlim=(0, length), ylim=(most - 0.4, -0.6))
        ax.set(xlabel="token of the row", xticks=[0, length // 2, length], yticks=[])
        ax.grid(visible=False)
        ax.spines["left"].set_visible(False)
    panels[0].set_ylabel(f"the first {most} rows")
    return picture


@styled
def after_the_cut(
    mark: str,
    law: Sequence[tuple[float, float]],
    healed: float,
    measured: Mapping[str, Sequence[tuple[float, float]]],
) -> Picture:
    """The probability of a line break after a cut prompt, against the share of joined tokens that training splits.

    Args:
        mark: the punctuation mark that curve and line belong to.
        law: points (share, probability) of the curve, shares from 0 to 1.
        healed: the probability when the prompt is healed: as high as splitting can bring it.
        measured: name -> points (share, probability).
    """
    said = ", ".join(f"{name} {y:.2f} at {x:g}" for name, points in measured.items() for x, y in points)
    picture, ax = axes(f"Probability of a line break after a cut prompt, by share split: {said}", height=3.3)
    ax.plot(*zip(*law, strict=True), color=BLUE, label=f"formula for {label(mark)}")
    ax.axhline(healed, color=GREY, linestyle=LINES[3], linewidth=1.4)
    line = f"{label(mark)} in a healed prompt: {healed:.2f}"
    ax.annotate(line, (0.98, healed - 0.02), ha="right", va="top", fontsize=9, color=GREY)
    for i, (name, points) in enumerate(measured.items(), 1):
        xs, ys = zip(*points, strict=True)
        ax.plot(xs, ys, "sD^v"[i % 4], color=COLOURS[i % 7], markersize=7, label=name, clip_on=False, zorder=3)
    ax.set(xlabel="share r of the joined tokens that training splits", ylabel="P(line break | cut prompt)")
    ax.set(xlim=(-0.02, 1.0), ylim=(0, 1.05), title="How far splitting goes, and how far a short training gets")
    ax.legend(loc="lower right")
    return picture
