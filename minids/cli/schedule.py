"""`minids schedule`: the order of a pipeline's operations, table 2 of the V3 report by formula and clock, a picture."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

from minids.cli.options import Command
from minids.dualpipe import SCHEDULES, schedule
from minids.simulator import Timeline, Times, formula, simulate

HEAD = ("schedule", "devices", "stages", "parameters", "chunks held", "bubble, formula", "bubble, simulated", "length")


def add(command: Command) -> None:
    parser = command("schedule", _schedule, "order, bubble and memory of a pipeline schedule")
    parser.add_argument("name", nargs="?", default="dualpipe", help=", ".join(SCHEDULES))
    parser.add_argument("--ranks", type=int, default=8, help="devices; with --table the stages of the model")
    parser.add_argument("--chunks", type=int, default=20, help="micro-batches of a batch, both directions together")
    parser.add_argument("--ops", action="store_true", help="a line a rank: every operation in order")
    parser.add_argument("--table", action="store_true", help="all schedules beside each other, as table 2 of V3")
    parser.add_argument("--draw", metavar="FILE.png", help="a picture in the manner of figure 5 of V3")
    for name, default, text in (
        ("f", 1.0, "a forward"), ("i", 1.0, "a backward for the input"), ("w", 1.0, "a backward for the weights"),
        ("pair", 0.0, "an overlapped forward and backward; 0: their sum"), ("send", 0.0, "a message between ranks"),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=float, default=default, help=f"time of {text}")


def _schedule(args: argparse.Namespace) -> None:
    times = _times(args)
    timeline = simulate(schedule(args.name, args.ranks, args.chunks), times)
    if args.draw:
        _draw(timeline, Path(args.draw))
    if args.table:
        print("\n".join(_table(args.ranks, args.chunks, times)))
    elif args.ops:
        print("\n".join(timeline.schedule.lines()))
    elif not args.draw:
        print("\n".join(_summary(timeline)))


def _times(args: argparse.Namespace) -> Times:
    for name in ("f", "i", "w", "pair", "send"):
        value, least = getattr(args, name), "above 0" if name in "fiw" else "0 or more"
        if not (value > 0 or (value == 0 and least == "0 or more")) or value == float("inf"):
            raise ValueError(f"a time is {least}; got --{name} {value:g}. 1 is the usual unit.")
    return Times(F=args.f, I=args.i, W=args.w, pair=args.pair, send=args.send)


def _summary(timeline: Timeline) -> list[str]:
    s, t = timeline.schedule, timeline.times
    published = formula(s.name, s.stages, t)
    by_formula = "not in table 2 of V3" if published is None else f"{published:g}"
    return [
        f"{s.name}: {s.stages} stages on {s.ranks} devices, {s.micro_batches} chunks, parameters {s.copies}x",
        f"  length                {timeline.makespan:g}",
        f"  longest bubble        {timeline.bubble:g}   ({timeline.bubble / timeline.makespan:.1%} of the length)",
        f"  bubble by formula     {by_formula}",
        f"  bubble of each rank   {' '.join(f'{b:g}' for b in timeline.bubbles)}",
        f"  chunks held at once   {' '.join(map(str, timeline.peaks))}",
        "--ops prints the order, --table compares, --draw FILE.png draws.",
    ]


def _table(stages: int, chunks: int, times: Times) -> list[str]:
    """Every schedule for a model of `stages` stages; the V folds two of them onto each device."""
    rows: list[tuple[str, ...]] = [HEAD]
    for name in SCHEDULES:
        s = schedule(name, stages // 2 if name == "dualpipev" else stages, chunks)
        line, published = simulate(s, times), formula(name, s.stages, times)
        rows.append((
            name, str(s.ranks), str(s.stages), f"{s.copies}x", str(max(line.peaks)),
            "-" if published is None else f"{published:g}", f"{line.bubble:g}", f"{line.makespan:g}",
        ))  # fmt: skip
    wide = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [row[0].ljust(wide[0]) + "".join(map(str.rjust, row[1:], (w + 2 for w in wide[1:]))) for row in rows]
    where = f"{stages} stages, {chunks} chunks; F = {times.F:g}, I = {times.I:g}, W = {times.W:g}, B = I + W"
    return [where, *lines, *_remarks(times)]


def _remarks(times: Times) -> list[str]:
    held = "Chunks held: by the fullest rank, counted in chunks of one stage. '-': not in table 2 of V3."
    pair = times.pair or times.F + times.B
    if times.F == times.I >= times.W and not times.send and times.B <= pair <= times.F + times.B:
        return [held]
    return [held, "The formulas hold for F = I, W no longer, a pair from B to F + B, nothing sent: here they need not."]


def _draw(timeline: Timeline, path: Path) -> None:
    if path.suffix.lower() != ".png":
        raise ValueError(f"the picture is a PNG file; got --draw {path}. Call it {path.with_suffix('.png')}.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no directory {path.parent} to draw into. Make it first.")
    plot = importlib.import_module("minids.plot")  # here: matplotlib takes a second to load, and only this needs it
    path.write_bytes(plot.pipeline_schedule(timeline).png())
    print(f"wrote {path}")
