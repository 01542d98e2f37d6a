"""Pictures of the training floor: curves that grow while a model learns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from minids.plot.style import COLOURS, LINES, Picture, axes, styled


@styled
def curves(
    series: Mapping[str, Sequence[float]], title: str = "", xlabel: str = "step", ylabel: str = "loss", every: int = 1
) -> Picture:
    """One line for each series over its index.

    Args:
        series: name -> values; a series that is still empty is left out.
        every: steps between two values.
    """
    picture, ax = axes(f"Curves of {ylabel} against {xlabel}: {', '.join(series)}")
    for i, (name, values) in enumerate(series.items()):
        if len(values):
            x = [every * (n + 1) for n in range(len(values))]
            ax.plot(x, values, LINES[i % len(LINES)], color=COLOURS[i % len(COLOURS)], label=name)
    ax.set(title=title, xlabel=xlabel, ylabel=ylabel)
    if any(len(values) for values in series.values()) and len(series) > 1:
        ax.legend()
    return picture
