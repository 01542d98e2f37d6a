"""Time for a schedule: when each step begins and ends, how long each rank idles, how many chunks it holds.

Paper: DeepSeek-V3 section 3.2.1, table 2; Zero Bubble (arXiv 2401.10241) section 2 counts the same way.

A step begins when its rank is free and all it waits for is there; what comes from another rank comes `send` later.
A pair takes `pair`, F + B by default; less where it hides communication.

    bubble of a rank = makespan - the time in which the rank computes
    table 2          1F1B (PP - 1)(F + B)   ZB1P (PP - 1)(F + B - 2 W)   DualPipe (PP/2 - 1)(F&B + B - 3 W)

with B = I + W the whole backward and PP the number of stages. The paper prints no conditions. On this clock, without
sending time, 1F1B's formula equals the longest bubble for all times, ZB1P's for W <= F and W <= I, DualPipe's for
F = I and W <= F, with a pair from B to F + B. When I is longer than F it overestimates, when it is shorter it
underestimates; a W longer than F does not fit into the gaps and shrinks nothing more.

Differs from the paper: nothing.
Left out: contention for the network (`minids.network` prices that).
Notebook: 10_dualpipe.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from minids.pipeline import Schedule, Step, in_flight


@dataclass(frozen=True)
class Times:
    """Durations in any unit. `pair` of a forward and a backward that overlap: 0 stands for F + I + W."""

    F: float = 1.0
    I: float = 1.0
    W: float = 1.0
    pair: float = 0.0
    send: float = 0.0

    @property
    def B(self) -> float:
        """The whole backward."""
        return self.I + self.W

    def of(self, step: Step) -> float:
        """How long a step takes."""
        if len(step) == 2:
            return self.pair or self.F + self.B
        return getattr(self, step[0].kind)


class Span(NamedTuple):
    """One step in time."""

    step: Step
    start: float
    end: float


@dataclass(frozen=True)
class Timeline:
    """A schedule with times: `spans[rank]` in order."""

    schedule: Schedule
    times: Times
    spans: tuple[list[Span], ...]

    @property
    def makespan(self) -> float:
        return max(row[-1].end for row in self.spans)

    @property
    def busy(self) -> list[float]:
        return [sum(span.end - span.start for span in row) for row in self.spans]

    @property
    def bubbles(self) -> list[float]:
        """Idle time of each rank within the makespan."""
        return [self.makespan - busy for busy in self.busy]

    @property
    def bubble(self) -> float:
        """The longest of them."""
        return max(self.bubbles)

    @property
    def peaks(self) -> list[int]:
        """The most chunks that each rank holds at once."""
        return in_flight(self.schedule)


def simulate(schedule: Schedule, times: Times | None = None) -> Timeline:
    """Run a schedule against the clock. ValueError where ranks wait for each other forever."""
    times = times or Times()
    spans: tuple[list[Span], ...] = tuple([] for _ in schedule.rows)
    done: dict = {}  # what is there -> (when, at which rank)
    moved = True
    while moved:
        moved = False
        for rank, row in enumerate(schedule.rows):
            while len(spans[rank]) < len(row):
                step = row[len(spans[rank])]
                needs = [need for op in step for need in schedule.needs(rank, op)]
                if not all(need in done for need in needs):
                    break
                there = [when + (times.send if where != rank else 0.0) for when, where in map(done.__getitem__, needs)]
                start = max([spans[rank][-1].end if spans[rank] else 0.0, *there])
                spans[rank].append(Span(step, start, start + times.of(step)))
                done.update({schedule.gives(rank, op): (spans[rank][-1].end, rank) for op in step})
                moved = True
    stuck = [rank for rank, row in enumerate(schedule.rows) if len(spans[rank]) < len(row)]
    if stuck:
        step = schedule.rows[stuck[0]][len(spans[stuck[0]])]
        raise ValueError(
            f"a schedule must not wait for itself; rank {stuck[0]} waits forever at {'&'.join(map(str, step))}. "
            "Ask minids.pipeline.violations what is wrong with it."
        )
    return Timeline(schedule, times, spans)


def formula(name: str, stages: int, times: Times) -> float | None:
    """Table 2's bubble for a number of stages; None for schedules that are not in it."""
    t = times
    pair = t.pair or t.F + t.B
    if name == "1f1b":
        return (stages - 1) * (t.F + t.B)
    if name == "zb1p":
        return (stages - 1) * (t.F + t.B - 2 * t.W)
    if name in ("dualpipe", "dualpipev"):
        return (stages / 2 - 1) * (pair + t.B - 3 * t.W)
    return None
