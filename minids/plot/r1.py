"""Pictures of R1's recipe: its stages, the language of the thinking, a learned judge, votes, students."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.patches import FancyBboxPatch

from minids.plot.style import BLUE, COLOURS, GREEN, GREY, LINES, ORANGE, PALE, SKY, Picture, axes, label, styled

KINDS = {"imitate": SKY, "reinforce": ORANGE, "sample": PALE, "prefer": PALE}


@styled
def recipe(stages: Sequence[tuple[str, str, float]], restart: tuple[int, int] | None = None) -> Picture:
    """The stages from left to right, as wide as their time, and the arrow from where a stage starts again.

    Args:
        stages: (name, kind of work, share of the time).
        restart: (from, to): stage `to` begins with the model that came out of stage `from`.
    """
    picture, ax = axes(f"The recipe's stages: {', '.join(name for name, _, _ in stages)}", width=9.5, height=2.9)
    total, x, middles = sum(share for *_, share in stages), 0.0, []
    for i, (name, kind, share) in enumerate(stages):
        wide = share / total
        ax.add_patch(FancyBboxPatch((x + 0.004, 0), wide - 0.008, 1, boxstyle="round,pad=0,rounding_size=0.004",
                                    facecolor=KINDS.get(kind, PALE), edgecolor=GREY))  # fmt: skip
        ax.text(x + wide / 2, 0.5, f"{i + 1}", ha="center", va="center", fontsize=12)
        ax.text(x + wide / 2, -0.25 - 0.42 * (i % 3), f"{i + 1} {name}", ha="center", va="top", fontsize=9)
        middles.append(x + wide / 2)
        x += wide
    if restart:
        begin, end = (middles[i] for i in restart)
        ax.annotate("", (end, 1.02), (begin, 1.02), arrowprops={"arrowstyle": "->", "color": BLUE, "linewidth": 1.8,
                                                                "connectionstyle": "arc3,rad=-0.25"})  # fmt: skip
        ax.text((begin + end) / 2, 2.12, "starts again from here", ha="center", color=BLUE, fontsize=9)
    ax.set(xlim=(-0.02, 1.04), ylim=(-1.7, 2.5), title="blue: imitation, orange: reinforcement; width: time")
    ax.axis("off")
    return picture


@styled
def languages(runs: Mapping[str, Mapping[str, Sequence[float]]]) -> Picture:
    """Runs of reinforcement side by side, a value a step.

    Args:
        runs: name -> {"language": share of words in the language asked for, "accuracy": share of right responses,
            "thinking": tokens}.
    """
    said = ", ".join(f"{name} {run['language'][0]:.2f} to {run['language'][-1]:.2f}" for name, run in runs.items())
    picture, ax = axes(f"Share of words in the language asked for: {said}", 1, 3, width=9.5, height=3.0)
    titles = {"language": "words in the language asked for", "accuracy": "right", "thinking": "tokens of thinking"}
    for a, (what, title) in zip(ax, titles.items(), strict=True):
        for i, (name, run) in enumerate(runs.items()):
            steps = range(1, len(run[what]) + 1)
            a.plot(steps, run[what], LINES[i % 4], color=COLOURS[i % 7], label=name)
        a.set(title=title, xlabel="step", ylim=(0, None if what == "thinking" else 1.03))
    ax[2].legend(loc="lower left")
    return picture


@styled
def over_reward(
    score: Sequence[float], liking: Sequence[float], seen: int, run: Mapping[str, Sequence[float]]
) -> Picture:
    """What a learned judge and the reader say about good answers of 1, 2, 3, .. words; and a policy that is paid by it.

    Args:
        score, liking: of an answer of that many words, all of them right.
        seen: words of the longest answers in its training pairs.
        run: "paid", "liking" and "length", a value a step of reinforcement.
    """
    alt = f"Learned score and the reader's liking by length; paid alone, liking goes to {run['liking'][-1]:.1f}"
    picture, ax = axes(alt, 1, 3, width=9.5, height=3.0)
    words = range(1, len(score) + 1)
    ax[0].axvspan(0.5, seen + 0.5, color=PALE)
    ax[0].plot(words, score, LINES[0], marker="o", markersize=3, color=ORANGE, label="learned judge")
    ax[0].plot(words, liking, LINES[1], marker="s", markersize=3, color=BLUE, label="reader")
    ax[0].set(title="a faultless answer (grey: usual)", xlabel="its words", ylabel="points")
    ax[0].legend(loc="lower left")
    steps = range(1, len(run["paid"]) + 1)
    ax[1].plot(steps, run["paid"], LINES[0], color=ORANGE, label="paid by the judge")
    ax[1].plot(steps, run["liking"], LINES[1], color=BLUE, label="the reader's liking")
    ax[1].set(title="while it is reinforced", xlabel="step", ylabel="points")
    ax[1].legend(loc="lower left")
    ax[2].plot(steps, run["length"], color=GREEN)
    ax[2].set(title="tokens of a response", xlabel="step", ylim=(0, None))
    return picture


@styled
def ballot(counts: Mapping[str, int], right: str, curve: Sequence[tuple[int, float]], k: int, single: float) -> Picture:
    """The votes for one problem, and the share of all problems that votes of k samples solve.

    Args:
        counts: answer -> how many of the k samples gave it, the most frequent first.
        right: the right answer.
        curve: (k, cons@k).
        k: the one looked at.
        single: pass@1.
    """
    here = dict(curve).get(k, float("nan"))
    picture, (left, ax) = axes(f"Votes of {k} samples solve {here:.2f} of the problems; one sample {single:.2f}", 1, 2,
                               width=9.0, height=3.1)  # fmt: skip
    names = list(counts)[:8]
    colours = [GREEN if name == right else GREY for name in names]
    left.barh([label(name) for name in names], [counts[name] for name in names], color=colours)
    left.invert_yaxis()
    left.set(title=f"one problem, {k} samples (green: {label(right)}, right)", xlabel="votes", xlim=(0, max(k, 2)))
    ks, shares = zip(*curve, strict=True)
    ax.plot(ks, shares, marker="o", markersize=4, color=BLUE, label="cons@k")
    ax.axhline(single, linestyle="--", color=ORANGE, label="pass@1")
    ax.plot([k], [here], marker="o", markersize=11, markerfacecolor="none", color=BLUE, linestyle="none")
    ax.set(title="all problems", xlabel="k, samples a problem", ylabel="share solved", ylim=(0, 1.03))
    ax.legend(loc="lower right")
    return picture


@styled
def students(solved: Mapping[str, Mapping[str, Sequence[float]]]) -> Picture:
    """Ways to train a small model, side by side: a bar for the mean of the seeds, a dot for each.

    Args:
        solved: way -> {task -> pass@1 of each seed}.
    """
    tasks = list(next(iter(solved.values())))
    said = ", ".join(f"{way} {np.mean(list(by[tasks[0]])):.2f}" for way, by in solved.items())
    picture, ax = axes(f"pass@1 of {tasks[0]}: {said}", height=3.1)
    wide = 0.8 / len(solved)
    for i, (way, by) in enumerate(solved.items()):
        at = np.arange(len(tasks)) + (i - (len(solved) - 1) / 2) * wide
        ax.bar(at, [float(np.mean(by[t])) for t in tasks], wide * 0.92, color=COLOURS[i % 7], alpha=0.55, label=way,
               hatch=("", "//", "..", "xx")[i % 4])  # fmt: skip
        for x, t in zip(at, tasks, strict=True):
            ax.plot([x] * len(by[t]), by[t], "o", markersize=4, color="black")
    ax.set_xticks(range(len(tasks)), tasks)
    ax.set(title="held-out problems, one sample (dots: seeds)", ylabel="share solved", ylim=(0, 1.05))
    ax.legend(loc="upper right", ncol=2)
    return picture
