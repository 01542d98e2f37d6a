"""Pipeline schedules as data: who computes which part of which micro-batch in which order, and the rules they obey.

Papers: GPipe arXiv 1811.06965, 1F1B (PipeDream-Flush) arXiv 2006.09503, zero bubble (ZB-H1, the V3 report's ZB1P) arXiv
2401.10241, Chimera arXiv 2107.06925; compared in DeepSeek-V3 section 3.2.1 and table 2.

A model is cut into stages, a batch into micro-batches ("chunks"). An operation is one stage's work on one chunk:

    F forward      B backward, whole      I gradient of the input alone      W gradient of the weights, any time later
    F1.4&B0.3      a forward and a backward whose computing hides each other's communication

I is what the stage before waits for; W is what nobody waits for: B = I + W. A `Schedule` is a row of steps for each
rank, nothing else; `violations` checks it against the rules, `minids.simulator` gives it time, `minids.pipeline_run`
executes it.

    rows of 1F1B, 3 ranks, 4 chunks
    rank 0  F0.0 F0.1 F0.2 B0.0 F0.3 B0.1 B0.2 B0.3
    rank 1  F0.0 F0.1 B0.0 F0.2 B0.1 F0.3 B0.2 B0.3
    rank 2  F0.0 B0.0 F0.1 B0.1 F0.2 B0.2 F0.3 B0.3

Differs from the paper: nothing; the V3 report counts its B as the whole backward, the zero-bubble paper's B is our I.
Left out: interleaved stages (several a rank in one direction).
Notebook: 10_dualpipe.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

KINDS = "FBIW"


class Op(NamedTuple):
    """One stage's work on one chunk. `direction` 0 enters at rank 0; in a V it is the half of the way."""

    kind: str
    direction: int
    chunk: int

    def __str__(self) -> str:
        return f"{self.kind}{self.direction}.{self.chunk}"


Step = tuple[Op, ...]  # one operation, or a forward and a backward that overlap
Row = list[Step]


def parse_step(text: str) -> Step:
    """ "F1.4&B0.3" as operations. ValueError for anything else."""
    ops = []
    for part in text.split("&"):
        direction, dot, chunk = part[1:].partition(".")
        if part[:1] not in tuple(KINDS) or not dot or not direction.isdigit() or not chunk.isdigit():
            raise ValueError(f"an operation reads like F0.3 (kind {', '.join(KINDS)}, direction, chunk); got {text!r}.")
        ops.append(Op(part[0], int(direction), int(chunk)))
    return tuple(ops)


@dataclass(frozen=True)
class Schedule:
    """A row of steps for each rank.

    `chunks` counts the micro-batches of a direction. `way` says where the stages lie: "line" (one stage a rank),
    "both" (two directions, stage r and n - 1 - r) or "v" (one way down the ranks and back up: stage r and 2n - 1 - r).
    """

    name: str
    rows: tuple[Row, ...]
    chunks: int
    way: str = "line"

    @property
    def ranks(self) -> int:
        return len(self.rows)

    @property
    def stages(self) -> int:
        return 2 * self.ranks if self.way == "v" else self.ranks

    @property
    def copies(self) -> int:
        """How many stages' parameters a rank holds."""
        return 1 if self.way == "line" else 2

    @property
    def micro_batches(self) -> int:
        """Micro-batches in all."""
        return 2 * self.chunks if self.way == "both" else self.chunks

    def stage(self, rank: int, direction: int) -> int:
        """The stage at which `rank` stands for a chunk of this direction."""
        return rank if direction == 0 else self.stages - 1 - rank

    def micro(self, op: Op) -> tuple[int, int]:
        """Which micro-batch an operation works on: in a V both halves of the way see the same ones."""
        return (0 if self.way == "v" else op.direction, op.chunk)

    def needs(self, rank: int, op: Op) -> Iterator[tuple[str, tuple[int, int], int]]:
        """(F or I, micro-batch, stage) of each result that `op` waits for; a whole backward gives the I."""
        stage, micro = self.stage(rank, op.direction), self.micro(op)
        if op.kind == "F" and stage > 0:
            yield "F", micro, stage - 1
        if op.kind in "BI":
            yield "F", micro, stage
            if stage < self.stages - 1:
                yield "I", micro, stage + 1
        if op.kind == "W":
            yield "I", micro, stage

    def gives(self, rank: int, op: Op) -> tuple[str, tuple[int, int], int]:
        """What `op` brings about, in the words of `needs`."""
        kind = "I" if op.kind == "B" else op.kind
        return kind, self.micro(op), self.stage(rank, op.direction)

    def lines(self) -> list[str]:
        """A line a rank."""
        return [" ".join("&".join(map(str, step)) for step in row) for row in self.rows]


# --- the rules


def violations(schedule: Schedule, peak: int | None = None) -> list[str]:
    """Every rule that a schedule breaks, in words; an empty list for a lawful one. `peak`: most chunks in flight."""
    found = [problem for rank in range(schedule.ranks) for problem in _row_violations(schedule, rank)]
    if not found:
        found += _waits(schedule)
    if peak is not None and not found:
        for rank, most in enumerate(in_flight(schedule)):
            if most > peak:
                found.append(f"rank {rank} holds {most} chunks at once, more than {peak}")
    return found


def _row_violations(schedule: Schedule, rank: int) -> Iterator[str]:
    row, where = schedule.rows[rank], f"rank {rank}"
    directions = range(schedule.copies)
    done = Counter(op for step in row for op in step)
    for op, times in done.items():
        if times > 1:
            yield f"{where}: {op} is done {times} times"
        if op.direction not in directions or op.chunk >= schedule.chunks:
            yield f"{where}: there is no chunk {op.direction}.{op.chunk}"
    for d in directions:
        for k in range(schedule.chunks):
            whole, parts = Op("B", d, k) in done, (Op("I", d, k) in done, Op("W", d, k) in done)
            if Op("F", d, k) not in done:
                yield f"{where}: the forward of {d}.{k} is missing"
            if whole and any(parts):
                yield f"{where}: {d}.{k} goes backward whole and in parts"
            if not whole and not all(parts):
                yield f"{where}: the backward of {d}.{k} is incomplete"
    yield from _order_violations(row, where)


def _order_violations(row: Row, where: str) -> Iterator[str]:
    """Forward before backward, I before W, pairs of one F and one B, and chunks in the same order everywhere."""
    last: dict[tuple[str, int], int] = {}
    seen: set[Op] = set()
    for step in row:
        if len(step) > 1 and [op.kind for op in step] != ["F", "B"]:
            yield f"{where}: only a forward and a backward overlap, got {'&'.join(map(str, step))}"
        for op in step:
            _, d, k = op
            if op.kind in "BI" and Op("F", d, k) not in seen:
                yield f"{where}: {op} comes before its forward"
            if op.kind == "W" and Op("I", d, k) not in seen:
                yield f"{where}: {op} comes before I{d}.{k}"
            # neighbours send and receive in order, so a direction's chunks come in order
            lane = ("back" if op.kind in "BI" else op.kind, d)
            if k < last.get(lane, -1):
                yield f"{where}: {op} comes after chunk {last[lane]}; neighbours exchange chunks in order"
            last[lane] = k
        seen.update(step)  # not earlier: the two of a pair run at the same time


def _waits(schedule: Schedule) -> list[str]:
    """Where the ranks wait for each other forever."""
    done: set = set()
    at = [0] * schedule.ranks
    moved = True
    while moved:
        moved = False
        for rank, row in enumerate(schedule.rows):
            while at[rank] < len(row):
                step = row[at[rank]]
                if not all(need in done for op in step for need in schedule.needs(rank, op)):
                    break
                done.update(schedule.gives(rank, op) for op in step)
                at[rank] += 1
                moved = True
    return [
        f"rank {rank} waits forever at {'&'.join(map(str, row[i]))}"
        for rank, (row, i) in enumerate(zip(schedule.rows, at, strict=True))
        if i < len(row)
    ]


def in_flight(schedule: Schedule) -> list[int]:
    """The most chunks whose activations a rank holds at once: from a forward to the W (or B) that needs them last."""
    peaks = []
    for row in schedule.rows:
        held = most = 0
        for step in row:
            held += sum(op.kind == "F" for op in step)
            most = max(most, held)  # within a pair the forward's activations come before the backward's go
            held -= sum(op.kind in "BW" for op in step)
        peaks.append(most)
    return peaks


# --- schedules in one direction


def gpipe(ranks: int, chunks: int) -> Schedule:
    """All forwards, then all backwards: every chunk's activations are held at once."""
    _check(ranks, chunks)
    row = [*_ops("F", 0, range(chunks)), *_ops("B", 0, range(chunks))]
    return Schedule("gpipe", tuple(list(row) for _ in range(ranks)), chunks)


def one_f_one_b(ranks: int, chunks: int) -> Schedule:
    """As few forwards ahead as the pipe needs to fill, then one forward, one backward: at most `ranks` in flight."""
    _check(ranks, chunks)
    rows = []
    for r in range(ranks):
        ahead = min(ranks - 1 - r, chunks)
        row = _ops("F", 0, range(ahead))
        for k in range(chunks):
            if ahead + k < chunks:
                row += _ops("F", 0, [ahead + k])
            row += _ops("B", 0, [k])
        rows.append(row)
    return Schedule("1f1b", tuple(rows), chunks)


def zb1p(ranks: int, chunks: int) -> Schedule:
    """1F1B with the backward in two: I goes on at once, W waits `rank` chunks and fills what would be a bubble."""
    _check(ranks, chunks)
    rows = []
    for r in range(ranks):
        ahead = min(ranks - 1 - r, chunks)
        row = _ops("F", 0, range(ahead))
        for k in range(chunks):
            if ahead + k < chunks:
                row += _ops("F", 0, [ahead + k])
            row += _ops("I", 0, [k])
            if k >= r:
                row += _ops("W", 0, [k - r])
        row += _ops("W", 0, range(max(chunks - r, 0), chunks))
        rows.append(row)
    return Schedule("zb1p", tuple(rows), chunks)


def _ops(kind: str, direction: int, chunks) -> Row:
    return [(Op(kind, direction, k),) for k in chunks]


def _check(ranks: int, chunks: int) -> None:
    if ranks < 1 or chunks < 1:
        raise ValueError(f"a pipeline has at least 1 rank and 1 chunk; got {ranks} and {chunks}. Try 8 and 20.")
