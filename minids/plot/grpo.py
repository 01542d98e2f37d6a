"""Pictures of reinforcement learning: a run, what clipping and the KL do to one token, tries against hits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from minids.plot.style import BLUE, COLOURS, GREY, LINES, ORANGE, Picture, axes, styled


@styled
def reinforcement(
    accuracy: Sequence[float],
    worked: Sequence[float],
    thinking: Sequence[float],
    entropy: Sequence[float],
    total: int = 0,
) -> Picture:
    """A run of reinforcement learning, a value a step: what it earns and how it answers; how long and how surely.

    Args:
        accuracy, worked: shares of the sampled responses that are right, and that go step by step.
        thinking: tokens between the think tags, mean.
        entropy: nats a token.
        total: steps of the whole run, so that the axes stay still while it grows.
    """
    n = len(accuracy)
    alt = f"Reinforcement, {n} steps: right answers and step-by-step answers; tokens of thinking; entropy"
    picture, ax = axes(alt, 1, 3, height=2.9, width_ratios=(1.5, 1, 1))
    steps, end = range(1, n + 1), max(total, n, 2)
    ax[0].plot(steps, accuracy, LINES[0], color=BLUE, label="right")
    ax[0].plot(steps, worked, LINES[1], color=ORANGE, label="step by step")
    ax[0].set(title="share of the samples", ylim=(0, 1.02))
    ax[0].legend(loc="lower right")
    ax[1].plot(steps, thinking, color=COLOURS[2])
    ax[1].set(title="tokens of thinking", ylim=(0, None))
    ax[2].plot(steps, entropy, color=COLOURS[3])
    ax[2].set(title="entropy, nats a token", ylim=(0, None))
    for a in ax:
        a.set(xlabel="step", xlim=(1, end))
    return picture


@styled
def clipping(eps: float = 0.2, beta: float = 0.05) -> Picture:
    """The loss of one token against its ratio, for a good and a bad response, and the price of leaving the reference.

    Args:
        eps: how far the ratio may go before the push ends.
        beta: the weight of k3.
    """
    picture, ax = axes(f"Loss of a token with eps = {eps:g} and beta = {beta:g}", 1, 2, height=3.0)
    ratio = np.linspace(0.3, 1.9, 321)
    for A, name, line, colour in ((1, "good, A = 1", LINES[0], BLUE), (-1, "bad, A = -1", LINES[1], ORANGE)):
        ax[0].plot(ratio, -np.minimum(ratio * A, ratio.clip(1 - eps, 1 + eps) * A), line, color=colour, label=name)
    ax[0].axvspan(1 - eps, 1 + eps, color=GREY, alpha=0.15, linewidth=0)
    ax[0].axvline(1, color=GREY, linewidth=0.8)
    ax[0].set(title="clipped loss (grey: within eps)", xlabel="ratio to the old policy", ylabel="loss of the token",
              xlim=(0.3, 1.9), ylim=(-2, 2))  # fmt: skip
    ax[0].legend(loc="lower left")
    d = np.linspace(-2, 2, 321)  # log pi - log pi_ref
    ax[1].plot(d, beta * (np.exp(-d) + d - 1), color=COLOURS[2], label="beta k3")
    ax[1].plot(d, beta * d, LINES[2], color=GREY, label="beta k1")
    ax[1].set(title="price of leaving the reference", xlabel="log(policy / reference)", ylabel="added to the loss",
              xlim=(-2, 2), ylim=(-0.3, 0.9))  # fmt: skip
    ax[1].legend(loc="upper right")
    return picture


@styled
def tries(curves: Mapping[str, Sequence[tuple[int, float]]], votes: Mapping[str, float] | None = None) -> Picture:
    """The share of problems solved by at least one of k samples, a line for each policy.

    Args:
        curves: name -> (k, pass@k).
        votes: name -> share of problems whose most frequent answer is right, drawn as a level.
    """
    said = ", ".join(f"{name} {points[0][1]:.2f} to {points[-1][1]:.2f}" for name, points in curves.items())
    picture, ax = axes(f"Solved by one of k samples: {said}", height=3.2)
    for i, (name, points) in enumerate(curves.items()):
        k, value = zip(*points, strict=True)
        ax.plot(k, value, LINES[i % 4], marker="osD^"[i % 4], markersize=4, color=COLOURS[i % 7], label=name)
        if votes and name in votes:
            ax.plot(k[-1] * 1.12, votes[name], marker="*", markersize=11, color=COLOURS[i % 7], linestyle="none")
    ax.set_xscale("log", base=2)
    ticks = [k for k, _ in next(iter(curves.values()))]
    ax.set_xticks(ticks, [str(k) for k in ticks])
    ax.set(title="solved by at least one of k samples" + (" (star: by their vote)" if votes else ""),
           xlabel="k, samples a problem", ylabel="share of the problems", ylim=(0, 1.03))  # fmt: skip
    ax.legend(loc="lower right")
    return picture
