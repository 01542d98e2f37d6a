"""Parameters as areas: a rectangle for each part of a model, and in it, solid, the share that one token touches.

    treemap({"routed experts": 654e9, "attention": 11.4e9}, touched={"routed experts": 20.4e9}, title="DeepSeek-V3")

The areas are true to scale. Rectangles are cut off the longer side of what is left, a row at a time, and a row ends
where one more rectangle would make its worst one longer and thinner ("squarified": Bruls, Huizing and van Wijk, 2000).
A part without a place for its name carries its number in the list, or nothing where even that does not fit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.colors import to_rgb
from matplotlib.patches import Rectangle

from minids.plot.machine import short
from minids.plot.style import BLUE, COLOURS, GOLD, GREEN, GREY, ORANGE, PINK, SKY, Picture, axes, styled, text_on

Box = tuple[float, float, float, float]  # left, bottom, width, height, in inches

WIDTH, HEIGHT, MAP = 7.0, 3.9, (0.05, 0.05, 4.25, 3.5)
KNOWN = {
    "routed experts": ORANGE, "shared experts": GOLD, "attention": BLUE, "dense FFN": SKY, "head": GREEN,
    "embedding": GREY, "gates": PINK, "norms": "#000000",
    "wo": BLUE, "wq": ORANGE, "wq_b": ORANGE, "wq_a": GOLD, "wkv_b": GREEN, "wkv_a": PINK, "q_norm": SKY,
    "kv_norm": "#000000",
}  # fmt: skip  # one colour for a part, whatever else is shown
LETTER = 0.078  # inches: the mean width of a letter at 9 points


@styled
def treemap(parts: Mapping[str, float], touched: Mapping[str, float] | None = None, title: str = "Model") -> Picture:
    """Parameters of a model by part, as areas.

    Args:
        parts: part -> parameters; parts of none are left out. ValueError when nothing is left or one is negative.
        touched: part -> how many of them one token touches, where that is not all of them.
        title: what the parts are parts of.
    """
    if not parts or min(parts.values()) < 0 or not sum(parts.values()):
        raise ValueError(
            f"an area needs parameters, none of them negative; got {dict(parts)}: give each part its count"
        )
    held = dict(sorted(((k, float(n)) for k, n in parts.items() if n), key=lambda item: -item[1]))
    lit = {name: min(1.0, (touched or {}).get(name, n) / n) for name, n in held.items()}
    total, used = sum(held.values()), sum(n * lit[name] for name, n in held.items())
    said = f"{short(total)} parameters"
    if used < 0.9995 * total:
        said += f"; solid: {short(used)} ({100 * used / total:.1f}%), touched by one token"
    picture, ax = axes(f"Treemap of {title}: {said}; {_shares(held, total)}", width=WIDTH, height=HEIGHT)
    picture.set_layout_engine("none")  # the drawing has a grid of its own
    ax.set_position((0, 0, 1, 1))
    ax.set(xlim=(0, WIDTH), ylim=(0, HEIGHT))
    ax.axis("off")
    ax.text(0.05, HEIGHT - 0.2, title, fontsize=11.5, weight="bold", va="center")
    ax.text(MAP[0] + MAP[2] + 0.2, 0.05, said.replace("; ", "\n").replace(", t", "\nt"), fontsize=9, va="bottom")
    for row, (name, box) in enumerate(zip(held, squarify(list(held.values()), MAP), strict=True), 1):
        colour = KNOWN.get(name, COLOURS[(row - 1) % len(COLOURS)])
        _part(ax, box, colour, lit[name], (name, short(held[name]), str(row)))
        _listed(ax, row, name, colour, short(held[name]), held[name] / total)
    return picture


def squarify(sizes: list[float], box: Box) -> list[Box]:
    """Boxes with areas in the proportions of `sizes`, which fall from first to last; together they fill `box`."""
    x, y, w, h = box
    rest = [size * w * h / sum(sizes) for size in sizes]
    found: list[Box] = []
    while rest:
        side, n = min(w, h), 1
        while n < len(rest) and _worst(rest[: n + 1], side) <= _worst(rest[:n], side):
            n += 1
        thick, along = sum(rest[:n]) / side, 0.0
        for area in rest[:n]:
            found.append((x, y + along, thick, area / thick) if w >= h else (x + along, y, area / thick, thick))
            along += area / thick
        x, y, w, h = (x + thick, y, w - thick, h) if w >= h else (x, y + thick, w, h - thick)
        rest = rest[n:]
    return found


def _worst(row: list[float], side: float) -> float:
    """The largest ratio of a long side to a short one among boxes of these areas side by side along `side`."""
    thick = sum(row) / side
    return max(max(thick * thick / area, area / (thick * thick)) for area in row)


def _shares(held: Mapping[str, float], total: float) -> str:
    return ", ".join(f"{name} {100 * n / total:.1f}%" for name, n in held.items())


def _part(ax: Any, box: Box, colour: str, lit: float, texts: tuple[str, str, str]) -> None:
    """One rectangle: pale, from below solid as far as it is touched, with its name and count or its number."""
    x, y, w, h = box
    pale = tuple(0.55 + 0.45 * c for c in to_rgb(colour))
    style = {"linewidth": 0, "snap": False}
    ax.add_patch(Rectangle((x, y), w, h, facecolor=pale, **style))
    ax.add_patch(Rectangle((x, y), w, h * lit, facecolor=colour, **style))
    ax.add_patch(Rectangle((x, y), w, h, fill=False, edgecolor="white", linewidth=min(0.8, 20 * min(w, h))))
    name, count, number = texts
    wide = max(len(name), len(count)) * LETTER + 0.08
    fits = next((t for t, needed in ((f"{name}\n{count}", (wide, 0.36)), (number, (0.16, 0.16)))
                 if needed[0] < w and needed[1] < h), "")  # fmt: skip
    middle = 0.5 if lit in (0.0, 1.0) else (1 + lit) / 2 if lit < 0.5 else lit / 2
    ink = text_on(colour) if middle <= lit else "black"
    ax.text(x + w / 2, y + h * middle, fits, fontsize=9, ha="center", va="center", color=ink)


def _listed(ax: Any, row: int, name: str, colour: str, count: str, share: float) -> None:
    """A line of the list beside the map: number, colour, name, count, share."""
    left, y = MAP[0] + MAP[2] + 0.15, HEIGHT - 0.2 - 0.27 * row
    ax.add_patch(Rectangle((left + 0.2, y - 0.07), 0.14, 0.14, facecolor=colour, linewidth=0))
    ax.text(left + 0.13, y, str(row), fontsize=9, ha="right", va="center")
    ax.text(left + 0.42, y, name, fontsize=9, va="center")
    ax.text(left + 2.0, y, count, fontsize=9, ha="right", va="center")
    percent = f"{100 * share:.1f}%" if share >= 0.0005 else "<0.1%"
    ax.text(left + 2.48, y, percent, fontsize=9, ha="right", va="center")
