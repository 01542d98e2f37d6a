"""Exercises of chapter 10, pipeline schedules: the bubble of 1F1B, where the W's go, an unlawful operation, how many
micro-batches a rank meets, devices and stages of DualPipeV.

Source: DeepSeek-V3 (arXiv 2412.19437) section 3.2.1 and table 2; README and code of github deepseek-ai/DualPipe; zero
bubble (arXiv 2401.10241). The wrong answers are readings of these sources that are often met.
Notebook: 10_dualpipe.
"""

from __future__ import annotations

import random

from minids.dualpipe import dualpipe, dualpipev, schedule
from minids.exercises import define, expect_close, expect_equal, slip, wrong
from minids.pipeline import Schedule, one_f_one_b
from minids.simulator import Times, simulate

# 10.1 -----------------------------------------------------------------------------------------------------------------


def idle_of_1f1b(stages, chunks, F, I, W):
    """(idle time of a rank, its share of the whole); F, I, W: times of the three parts."""
    B = I + W
    idle = (stages - 1) * (F + B)
    busy = chunks * (F + B)
    return idle, idle / (busy + idle)


def check_idle_of_1f1b(fn):
    for _ in range(3):
        stages, (F, I, W) = random.randrange(3, 10), random.sample([1.0, 1.5, 2.0, 2.5, 3.0], 3)
        chunks = 2 * stages + random.randrange(1, 9)
        line = simulate(one_f_one_b(stages, chunks), Times(F=F, I=I, W=W))
        want, idle, busy = (line.bubble, line.bubble / line.makespan), line.bubble, line.busy[0]
        half, one = (stages - 1) * (F + I), stages * (F + I + W)
        what = f"(idle, share) for {stages} stages, {chunks} chunks, F={F:g}, I={I:g}, W={W:g}"
        expect_close(fn(stages, chunks, F, I, W), want, what=what, causes=[
            ((half, half / (busy + half)), "B is taken for the input's gradient alone. Here it is whole: B = I + W."),
            ((half, want[1]), "W is left out everywhere; the share forgives it, the time does not. Here B is I + W."),
            ((idle, idle / busy), "That is idle over busy. The share is of the whole time: idle over idle + busy."),
            ((one, one / (busy + one)), "One stage too many: a rank waits for the other stages - 1."),
            (((chunks - 1) * (F + I + W), (chunks - 1) / (stages + chunks - 1)), "Stages and chunks are swapped: the "
             "bubble comes from the other stages, whatever the number of chunks."),
        ])  # fmt: skip


IDLE_OF_1F1B = define(
    "10.1", "The bubble of 1F1B", minutes=6, difficulty=1,
    statement="""
        One forward takes `F`, the gradient of the input `I`, that of the weights `W`, each for one chunk at one stage.
        Write `idle_of_1f1b(stages, chunks, F, I, W)`: how long a rank idles in 1F1B, with nothing lost to
        communication, and which share of the whole time that is, as a tuple.
    """,
    hints=(
        "How long is the last rank busy? What does it do before its first chunk arrives, and after its last one left?",
        "Table 2: the idle time is $(PP - 1)(F + B)$. Which of `F`, `I`, `W` make up B there?",
        "Idle $(PP-1)(F+I+W)$, busy chunks $\\times (F+I+W)$; the share is idle over their sum.",
    ),
    check=check_idle_of_1f1b,
    solution=idle_of_1f1b,
    why="In the share F + B cancels: (PP - 1) / (chunks + PP - 1), whatever the times are. Only more chunks, or less "
    "waiting for each, make it smaller.",
    wrong_answers=(
        slip("(stages - 1) * (F + B)", "(stages - 1) * (F + I)", draws="Here it is whole",
             why="The zero-bubble paper's B, which leaves W out, put into V3's formula."),
        slip("B = I + W", "B = I", draws="W is left out everywhere", why="The zero-bubble paper's B throughout."),
        slip("idle / (busy + idle)", "idle / busy", draws="idle over idle + busy", why="Many papers quote this ratio."),
        slip("(stages - 1)", "stages", draws="One stage too many", why="Counts itself among those it waits for."),
        slip("idle = (stages - 1) * (F + B)\n    busy = chunks", "idle = (chunks - 1) * (F + B)\n    busy = stages",
             draws="swapped", why="The chunks seem to cause the wait."),
    ),
)  # fmt: skip


# 10.2 -----------------------------------------------------------------------------------------------------------------


def split_backwards(row, wait):
    """A 1F1B row ["F0", "B0", ..] with I for B, and behind it the W of the chunk `wait` earlier."""
    split, waiting = [], []
    for step in row:
        if step[0] == "F":
            split.append(step)
            continue
        split.append("I" + step[1:])
        waiting.append("W" + step[1:])
        if len(waiting) > wait:
            split.append(waiting.pop(0))
    return split + waiting


def check_split_backwards(fn):
    for _ in range(3):
        ranks = random.randrange(3, 6)
        chunks = ranks + random.randrange(2, 5)
        for r in (ranks - 1, 1, 0):
            row = plain(one_f_one_b(ranks, chunks), r)
            want = plain(schedule("zb1p", ranks, chunks), r)
            got = fn(row, r)
            expect_equal(
                got, want, what=f"rank {r} of {ranks} with {chunks} chunks, wait={r}", causes=_split_causes(row, r)
            )


def plain(s: Schedule, rank: int) -> list[str]:
    """A row of a one-way schedule without the direction: F3 for F0.3."""
    return [f"{op.kind}{op.chunk}" for (op,) in s.rows[rank]]


def _split_causes(row: list[str], wait: int):
    backs = [step[1:] for step in row if step[0] == "B"]
    at_once = [part for step in row for part in ([step] if step[0] == "F" else ["I" + step[1:], "W" + step[1:]])]
    inputs = ["I" + step[1:] if step[0] == "B" else step for step in row]
    return [
        (row, "Nothing is split: every B becomes an I and, later, a W."),
        (at_once, "Each W directly behind its I is the whole backward again, only written as two: it must wait."),
        ([*inputs, *("W" + c for c in backs)], "All W's at the end: then every chunk's activations are held till "
         "then, and nothing fills the gaps."),
        (inputs, "The W's are missing: without them no weight gets a gradient."),
        (lambda got: sorted(got) != sorted([*inputs, *("W" + c for c in backs)]), "Some W's are lost or doubled: what "
         "still waits at the end of the row follows there."),
        (lambda got: any(got.index("W" + c) < got.index("I" + c) for c in backs), "A W stands before its I: the "
         "gradient at the stage's output comes first."),
        (lambda got: [s for s in got if s[0] == "W"] != ["W" + c for c in backs], "The W's come last in, first out: "
         "the oldest chunk's activations then wait longest. Take the oldest first."),
        (lambda got: [s for s in got if s[0] != "W"] == inputs, "F and I stand where they should, the W's a place off: "
         "behind the I of chunk k stands the W of chunk k - wait."),
    ]  # fmt: skip


SPLIT_BACKWARDS = define(
    "10.2", "Place the W's", minutes=10, difficulty=2,
    statement="""
        `row` is a rank's row in 1F1B, such as `["F0", "F1", "B0", "F2", "B1", "B2"]`. Write
        `split_backwards(row, wait)`: the row of ZB1P. Each `B` becomes an `I` at the same place; behind the `I` of
        chunk k follows the `W` of chunk k - `wait`, if there is one. What is left over at the end follows there,
        oldest first.
    """,
    hints=(
        "Walk along the row. What must you remember of a B until its W may be written?",
        "A list of the W's that wait, first in, first out. One leaves as soon as more than `wait` are in it.",
        "On a B: append the I, queue the W, `if len(waiting) > wait: split.append(waiting.pop(0))`; then the rest.",
    ),
    check=check_split_backwards,
    solution=split_backwards,
    why="I is on the way that other ranks wait for, so it keeps its place. W is not: put off by `rank` chunks it fills "
    "the gaps at the end of the row, and every rank holds PP chunks, as many as the first one of 1F1B.",
    wrong_answers=(
        slip("len(waiting) > wait", "waiting", draws="must wait", why="Splits, and puts the parts back together."),
        wrong("""
            def split_backwards(row, wait):
                split = ["I" + step[1:] if step[0] == "B" else step for step in row]
                return split + ["W" + step[1:] for step in row if step[0] == "B"]
        """, draws="All W's at the end", why="W's are not urgent, but their activations take memory."),
        slip("return split + waiting", "return split", draws="lost or doubled", why="Forgets what still waits."),
        slip("pop(0)", "pop()", draws="last in, first out", why="A stack in place of a queue."),
        slip("> wait", ">= wait", draws="a place off", why="One chunk less put off."),
    ),
)  # fmt: skip


# 10.3 -----------------------------------------------------------------------------------------------------------------


def first_illegal(row):
    """The first operation that may not stand in a rank's row ["F0", "I0", "W0", ..], or None."""
    done = set()
    for step in row:
        kind, chunk = step[0], step[1:]
        if step in done:
            return step
        if kind in "BI" and "F" + chunk not in done:
            return step
        if kind == "W" and "I" + chunk not in done:
            return step
        if kind in "BI" and {"B" + chunk, "I" + chunk} & done:
            return step
        done.add(step)
    return None


def check_first_illegal(fn):
    lawful = plain(schedule("zb1p", random.randrange(2, 5), random.randrange(5, 8)), 1)
    expect_equal(fn(lawful), None, what=f"the first illegal operation of the lawful {' '.join(lawful)}", causes=[
        (lambda got: str(got)[0] == "W", "A W may stand behind other chunks' operations: only its own I must be done."),
    ], cause="Nothing is wrong with this row.")  # fmt: skip
    a, b, c = random.sample(range(2, 9), 3)
    cases = [
        (f"F{a} F{b} I{b} W{a} I{a}", f"W{a}", "W needs the I of its own chunk; that its F is done does not help: I "
         "brings the gradient to this stage's output."),
        (f"F{a} B{b} F{b} B{a}", f"B{b}", "A backward needs its own forward: some forward is done, not this one's."),
        (f"F{a} F{b} B{a} F{a} B{b}", f"F{a}", "Nothing is done twice."),
        (f"F{a} I{a} F{b} B{a} W{a}", f"B{a}", "A backward goes whole or in parts: after I only W is left, B would "
         "do I again."),
        (f"F{a} F{c} B{c} W{c} B{a}", f"W{c}", "A whole B is I and W already: a W behind it has no I of its own."),
        (f"F{a} I{b} W{a} F{b}", f"I{b}", "The first one out of place counts; later ones may only follow from it."),
    ]  # fmt: skip
    for text, want, cause in cases:
        expect_equal(fn(text.split()), want, what=f"the first illegal operation of {text}", cause=cause)


FIRST_ILLEGAL = define(
    "10.3", "Find the illegal operation", minutes=8, difficulty=2,
    statement="""
        `row` is a list of operations of one rank, such as `["F0", "F1", "I0", "W0", "B1"]`. Write `first_illegal(row)`:
        the first one that may not stand there, or `None`. Look only at this rank: a backward (`B` or `I`) needs the
        chunk's `F`; a `W` needs the chunk's `I`; nothing is done twice; a backward is a `B` alone, or an `I` and a `W`.
    """,
    hints=(
        "Keep a set of what is done, and ask of each operation whether what it needs is in it.",
        "Four questions: done already? `B` or `I` without its `F`? `W` without its `I`? `B` and `I` of the same chunk?",
        "`chunk = step[1:]`, then `\"F\" + chunk in done` and so on; the chunk's number decides, not the position.",
    ),
    check=check_first_illegal,
    solution=first_illegal,
    why="These are the rules that a rank can check alone. Whether the ranks together ever get to the end is another "
    "question: `minids.pipeline.violations` asks both.",
    wrong_answers=(
        slip('kind == "W" and "I" + chunk not in done', 'kind == "W" and "F" + chunk not in done',
             draws="W needs the I", why="Takes W for any backward."),
        slip('kind in "BI" and "F" + chunk not in done', 'kind in "BI" and not any(d[0] == "F" for d in done)',
             draws="its own forward", why="Asks for some forward."),
        wrong("""
            def first_illegal(row):
                done = set()
                for step in row:
                    kind, chunk = step[0], step[1:]
                    if kind in "BI" and "F" + chunk not in done:
                        return step
                    if kind == "W" and "I" + chunk not in done:
                        return step
                    done.add(step)
                return None
        """, draws="done twice", why="A set forgets how often."),
        slip('{"B" + chunk, "I" + chunk} & done', "step in done", draws="whole or in parts",
             why="Looks for the same letter only."),
        slip('"I" + chunk not in done', 'not {"I" + chunk, "B" + chunk} & done', draws="I and W already",
             why="Takes B for an I."),
    ),
)  # fmt: skip


# 10.4 -----------------------------------------------------------------------------------------------------------------


def counts_of_rank(ranks, chunks, rank):
    """In DualPipe: (forwards, pairs) in the row of a rank; `chunks` is DeepSeek's num_chunks."""
    half = ranks // 2
    h = min(rank, ranks - 1 - rank)
    c = chunks // 2
    forwards = 2 * c
    step4 = 2 * (c - ranks + h + 1) - (h == half - 1)
    step5 = half - h - 1
    return forwards, step4 + step5


def check_counts_of_rank(fn):
    for _ in range(3):
        ranks = 2 * random.randrange(2, 5)
        chunks = 2 * (ranks + random.randrange(1, 6))
        for rank in (0, ranks // 2 - 1, ranks - 1, ranks // 2):
            forwards, pairs = counted(ranks, chunks, rank)
            h, half, c = min(rank, ranks - 1 - rank), ranks // 2, chunks // 2
            middle = int(h == half - 1)
            twice = 2 * (chunks - ranks + h + 1) - middle + half - h - 1
            far = 2 * (c - ranks + rank + 1) - int(rank == half - 1) + half - rank - 1
            what = f"(forwards, pairs) of rank {rank} of {ranks} with {chunks} chunks"
            expect_equal(fn(ranks, chunks, rank), (forwards, pairs), what=what, causes=[
                ((2 * forwards, twice), "The chunks are counted per direction. `chunks` is the total: in the paper's "
                 "figure 5 its 20 are 10 from each end."),
                ((2 * forwards, pairs), "Twice as many forwards: `chunks` is the total of both directions."),
                ((forwards // 2, pairs), "Only one direction's forwards are counted: a rank meets all chunks, with "
                 "one of its two stages or the other."),
                ((forwards, pairs + 1), "One pair too many, and only in the middle: the first F and B of a middle rank "
                 "are not overlapped, so that the F is done sooner."),
                (lambda got, p=pairs, m=middle: m and got[1] == p + 1, "The first F and B of a middle rank are not "
                 "overlapped, so that the F is done sooner."),
                ((forwards, far), "h is the distance to the *nearer* end; for the far half it is ranks - 1 - rank."),
                ((forwards, 2 * (c - ranks + h + 1) - middle), "Step 5 has pairs too, one each time."),
                (lambda got, p=pairs: got[1] < p, "Step 4 holds two pairs each time: Fa&Bb and Fb&Ba."),
            ])  # fmt: skip


def counted(ranks: int, chunks: int, rank: int) -> tuple[int, int]:
    row = dualpipe(ranks, chunks).rows[rank]
    return sum(op.kind == "F" for step in row for op in step), sum(len(step) == 2 for step in row)


COUNTS_OF_RANK = define(
    "10.4", "Count the micro-batches", minutes=10, difficulty=3,
    statement="""
        In DualPipe with `chunks` as DeepSeek counts them (`num_chunks`), write `counts_of_rank(ranks, chunks, rank)`:
        how many forwards stand in the row of a rank, and how many overlapped pairs, as a tuple. Use the eight steps, do
        not call `minids`.
    """,
    hints=(
        "How many chunks come from each end? How many of them pass this rank?",
        "Pairs stand in steps 4 and 5. Step 4 has $c - n + h + 1$ rounds, with $c$ the chunks of one direction.",
        "Pairs: $2(c-n+h+1) + (n/2-h-1)$, minus one on the two middle ranks, whose first F and B do not overlap.",
    ),
    check=check_counts_of_rank,
    solution=counts_of_rank,
    why="Every chunk, whichever end it comes from, passes every rank once: as many forwards as chunks in all. The "
    "outer ranks have fewer pairs, because they fill and drain for longer.",
    wrong_answers=(
        slip("c = chunks // 2", "c = chunks", draws="counted per direction",
             why="Reads figure 5's 20 micro-batches as 20 from each end."),
        slip("forwards = 2 * c", "forwards = c", draws="one direction's", why="Forgets the rank's second stage."),
        slip(" - (h == half - 1)", "", draws="middle rank are not overlapped", why="Table of steps without its note."),
        slip("h = min(rank, ranks - 1 - rank)", "h = rank", draws="*nearer* end", why="The near half's h for all."),
        slip("step4 + step5", "step4", draws="Step 5 has pairs", why="Looks at the long middle only."),
    ),
)  # fmt: skip


# 10.5 -----------------------------------------------------------------------------------------------------------------


def v_layout(devices, device):
    """In DualPipeV: (stages, the two of this device, PP of table 2, chunks held at the peak)."""
    stages = 2 * devices
    own = (device, stages - 1 - device)
    return stages, own, stages, stages + 1


def check_v_layout(fn):
    for devices in random.sample(range(3, 9), 3):
        device = random.randrange(devices - 1)
        s = dualpipev(devices, 2 * devices + 1)
        own, peak = (s.stage(device, 0), s.stage(device, 1)), simulate(s).peaks[device]
        want = (s.stages, own, s.stages, peak)
        what = f"(stages, own stages, PP, chunks held) of device {device} of {devices}"
        expect_equal(fn(devices, device), want, what=what, causes=[
            ((devices, (device, devices - 1 - device), devices, devices + 1), "That is DualPipe: as many stages "
             "as devices. The V lays two different stages on each device: twice as many stages."),
            ((s.stages, own, devices, devices + 1), "PP is taken for the number of devices. In table 2 it is the "
             "number of stages: PP / 2 devices in DualPipeV."),
            ((s.stages, own, devices, peak), "PP is taken for the number of devices. In table 2 it counts stages."),
            ((s.stages, (2 * device, 2 * device + 1), s.stages, peak), "Neighbouring stages on one device: a cut "
             "without a fold. The way back must end where the way began."),
            ((s.stages, (device, devices + device), s.stages, peak), "That is interleaving: the second half begins "
             "again at device 0. In a V it turns round: device 0 has the first and the last stage."),
            ((s.stages, own, s.stages, s.stages), "PP chunks are what 1F1B's first rank holds. Here it is one more: in "
             "a pair the forward's activations come before the backward's go."),
        ])  # fmt: skip


V_LAYOUT = define(
    "10.5", "The devices of a V", minutes=6, difficulty=2,
    statement="""
        DualPipeV runs on `devices` devices. Write `v_layout(devices, device)`: a tuple of the number of stages of the
        model, the pair of stages (from 0) that this device holds, first the one on the way down, the PP of table 2, and
        the most chunks that the device holds at once.
    """,
    hints=(
        "A chunk goes down all devices and back up. How many stages does it pass?",
        "Device 0 has the first stage and the last one. In table 2, devices are PP / 2 for the V.",
        "PP = 2 x devices; stages r and PP - 1 - r; PP + 1 chunks.",
    ),
    check=check_v_layout,
    solution=v_layout,
    why="DualPipe keeps each stage twice, once for each direction. The V keeps each once and folds: half the devices "
    "for as many stages, or the same devices with stages half as deep.",
    wrong_answers=(
        slip("stages = 2 * devices", "stages = devices", draws="twice as many stages", why="DualPipe's layout."),
        slip("return stages, own, stages, stages + 1", "return stages, own, devices, devices + 1",
             draws="In table 2 it is the number of", why="PP read as the pipeline-parallel world size."),
        slip("(device, stages - 1 - device)", "(2 * device, 2 * device + 1)", draws="without a fold", why="Pairs."),
        slip("(device, stages - 1 - device)", "(device, devices + device)", draws="interleaving",
             why="Virtual stages as in Megatron."),
        slip("stages + 1", "stages", draws="one more", why="1F1B's memory."),
    ),
)  # fmt: skip
