"""DualPipe and DualPipeV: micro-batches from both ends, and a forward of one hides the communication of another.

Paper: DeepSeek-V3 section 3.2.1, figure 5 and table 2; the order is that of DeepSeek's own code (github deepseek-ai/
DualPipe, its README names the eight steps). DualPipeV: the "cut in half" of Qi et al. (same repository).

Every rank holds two stages: r for direction 0 and n - 1 - r for direction 1, so parameters are kept twice. With
H = n / 2, h the distance to the nearer end and c chunks a direction, "a" the direction that enters at the nearer end,
"b" the other one, each rank does

    1  2 (H - h - 1) x   Fa                   fill from the near side
    2  h + 1 x           Fa  Fb               fill from both
    3  H - h - 1 x       Ib  W  Fb            first backwards from the far side, their W as filling
    4  c - n + h + 1 x   Fa&Bb  Fb&Ba         the long middle: every forward overlaps with a backward
    5  H - h - 1 x       Bb  Fb&Ba
    6  h + 1 x           Bb  Ba               from the middle of this step on only I, W is put off
    7  H - h - 1 x       W  Ia
    8  h + 1 x           W                    what was put off

A V folds a pipe of 2n stages over n ranks: the second direction is the way back of the same chunks. Its rows are the
first n rows of DualPipe with 2n ranks and 2m chunks, with half the devices a stage.

Differs from the paper: nothing; an operation names the global direction, DeepSeek's code the local one ("a" is 0).
Left out: what overlaps inside a pair (figure 4), which 10_dualpipe draws.
Notebook: 10_dualpipe.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from minids.pipeline import Op, Row, Schedule, gpipe, one_f_one_b, zb1p


def dualpipe(ranks: int, chunks: int) -> Schedule:
    """Bidirectional: `chunks` counts both directions together, as DeepSeek's num_chunks does.

    ValueError for odd ranks, odd chunks and fewer than two chunks a rank.
    """
    if ranks < 2 or ranks % 2:
        raise ValueError(f"DualPipe pairs the ends of the pipe, so the ranks are even; got {ranks}. Take {ranks + 1}.")
    _enough("DualPipe", ranks, chunks)
    if chunks % 2:
        raise ValueError(f"DualPipe's chunks come from both ends, so they are even; got {chunks}. Take {chunks + 1}.")
    rows = []
    for r in range(ranks):
        h = min(r, ranks - 1 - r)
        rows.append(_row(ranks // 2, h, chunks // 2, flipped=r != h))
    return Schedule("dualpipe", tuple(rows), chunks // 2, "both")


def dualpipev(ranks: int, chunks: int) -> Schedule:
    """The V: 2 x `ranks` stages, every chunk goes down the ranks and back up. ValueError below two chunks a rank."""
    if ranks < 1:
        raise ValueError(f"a pipeline has at least 1 rank; got {ranks}. Try 4.")
    _enough("DualPipeV", ranks, chunks)
    rows = tuple(_row(ranks, r, chunks, flipped=False) for r in range(ranks))
    return Schedule("dualpipev", rows, chunks, "v")


def _enough(name: str, ranks: int, chunks: int) -> None:
    if chunks < 2 * ranks:
        raise ValueError(
            f"{name} needs two chunks a rank to fill the pipe from both ends: chunks >= 2 x ranks; "
            f"got {chunks} < 2 x {ranks}. Take {2 * ranks}, or fewer ranks."
        )


def _row(H: int, h: int, c: int, flipped: bool) -> Row:
    """One rank's eight steps: H ranks a half, h from the near end, c chunks a direction."""
    row, left = [], H - h - 1
    put_off: deque[Op] = deque()
    counts = {"F0": 0, "F1": 0, "B0": 0, "B1": 0}

    def op(kind: str, phase: int) -> Op:
        """The next chunk of a kind; `phase` 0 enters at the near end."""
        lane = ("F" if kind == "F" else "B") + str(phase)
        counts[lane] += 1
        made = Op(kind, phase ^ flipped, counts[lane] - 1)
        if kind == "I":
            put_off.append(Op("W", made.direction, made.chunk))
        return made

    for _ in range(2 * left):
        row.append((op("F", 0),))
    for _ in range(h + 1):
        row += [(op("F", 0),), (op("F", 1),)]
    for _ in range(left):
        row += [(op("I", 1),), (put_off.popleft(),), (op("F", 1),)]
    for i in range(c - 2 * H + h + 1):
        # the middle ranks' first two apart: the forward is done sooner, and the bubble is smaller (DeepSeek's note)
        first = [op("F", 0), op("B", 1)]
        row += [(first[0],), (first[1],)] if left == 0 and i == 0 else [tuple(first)]
        row.append((op("F", 1), op("B", 0)))
    for _ in range(left):
        row += [(op("B", 1),), (op("F", 1), op("B", 0))]
    for i in range(h + 1):
        row.append((op("I" if 2 * i + h % 2 > h else "B", 1),))
        row.append((op("I" if 2 * i >= h else "B", 0),))
    for _ in range(left):
        row += [(put_off.popleft(),), (op("I", 0),)]
    return row + [(w,) for w in put_off]


def chimera(ranks: int, chunks: int) -> Schedule:
    """Two 1F1B pipes from both ends, merged: each rank takes whichever operation is ready, a backward first.

    The paper's schedule for chunks = ranks; more chunks follow one another. ValueError for odd numbers.
    """
    if ranks < 2 or ranks % 2 or chunks % 2 or chunks < 2:
        raise ValueError(f"Chimera pairs both ends: even ranks and chunks; got {ranks} and {chunks}. Try 8 and 8.")
    pipes = one_f_one_b(ranks, chunks // 2).rows
    todo = []
    for r in range(ranks):
        other = [(Op(kind, 1, k),) for ((kind, _, k),) in pipes[ranks - 1 - r]]
        todo.append([deque(pipes[r]), deque(other)])
    empty = Schedule("chimera", tuple([] for _ in range(ranks)), chunks // 2, "both")
    done: dict = {}
    clock = 0
    while any(queue for queues in todo for queue in queues):
        for r, queues in enumerate(todo):
            ready = [q for q in queues if q and _ready(empty, r, q[0][0], done, clock)]
            if ready:
                # a backward frees memory and is waited for; then the direction that has come further
                queue = max(ready, key=lambda q: (q[0][0].kind == "B", len(q)))
                step = queue.popleft()
                empty.rows[r].append(step)
                done[empty.gives(r, step[0])] = clock + 1
        clock += 1
    return empty


def _ready(schedule: Schedule, rank: int, op: Op, done: dict, clock: int) -> bool:
    return all(done.get(need, clock + 1) <= clock for need in schedule.needs(rank, op))


SCHEDULES: dict[str, Callable[[int, int], Schedule]] = {
    "gpipe": gpipe, "1f1b": one_f_one_b, "zb1p": zb1p, "chimera": chimera,
    "dualpipe": dualpipe, "dualpipev": dualpipev,
}  # fmt: skip


def schedule(name: str, ranks: int, chunks: int) -> Schedule:
    """The schedule of that name. ValueError names the ones there are."""
    if name not in SCHEDULES:
        raise ValueError(f"there is no schedule {name!r}; the schedules are {', '.join(SCHEDULES)}.")
    return SCHEDULES[name](ranks, chunks)
