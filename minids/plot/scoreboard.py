"""Pictures of the scoreboard: what a seed alone does, and each arm's runs beside the reference's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from minids.plot.style import COLOURS, GREY, Picture, axes, styled

MARKS = "osD^v"


@styled
def paired_results(results: Mapping[str, Sequence[float]], unit: str = "bits per byte") -> Picture:
    """Every run of every arm, and beside it each arm's difference to the first one, seed by seed.

    Args:
        results: arm -> a value for each seed, in the same order; the first arm is the reference. Lower is better.
    """
    names = list(results)
    reference = results[names[0]]
    said = ", ".join(f"{name} {sum(v) / len(v):.3f}" for name, v in results.items())
    picture, ax = axes(f"Runs of each arm, seed by seed: {said}", 1, 2, height=0.9 + 0.5 * len(names), sharey=True)
    for row, name in enumerate(names):
        for seed, value in enumerate(results[name]):
            look = {"marker": MARKS[seed % 5], "markersize": 7, "color": COLOURS[seed % 7], "linestyle": "none"}
            ax[0].plot(value, row, label=f"seed {seed}" if row == 0 else None, **look)
            ax[1].plot(value - reference[seed], row, **look)
        d = [v - r for v, r in zip(results[name], reference, strict=True)]
        ax[1].plot([sum(d) / len(d)] * 2, [row - 0.28, row + 0.28], color="black", linewidth=1.5)
    ax[0].set_yticks(range(len(names)), names)
    ax[0].set(title="each run", xlabel=unit, ylim=(len(names) - 0.5, -0.5))
    ax[1].set(title="minus the reference of the same seed", xlabel=f"{unit} (left: better)")
    ax[1].axvline(0, color=GREY, linewidth=0.8)
    picture.legend(loc="outside lower center", ncols=len(reference))
    return picture
