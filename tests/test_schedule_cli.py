"""`minids schedule`: DeepSeek's order, table 2 of the V3 report by formula and by the clock, a picture, errors."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image

from minids.cli import main
from minids.dualpipe import SCHEDULES, schedule
from minids.pipeline import Schedule, parse_step, violations


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    assert main(["schedule", *words]) == 0
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_printed_order_read_back_is_the_schedule_and_obeys_every_rule(name: str, capsys) -> None:
    lines = printed(capsys, name, "--ranks", "4", "--chunks", "10", "--ops")
    want = schedule(name, 4, 10)
    rows = tuple([parse_step(step) for step in line.split()] for line in lines)
    assert rows == want.rows
    assert violations(Schedule(name, rows, want.chunks, want.way)) == []


def test_the_table_is_table_2_by_formula_and_by_the_clock(capsys) -> None:
    head, names, *rows = printed(capsys, "--table", "--ranks", "8", "--chunks", "20")
    assert head.startswith("8 stages, 20 chunks; F = 1, I = 1, W = 1")
    cells = {row.split()[0]: row.split()[1:] for row in rows[: len(SCHEDULES)]}
    # devices, stages, parameters, chunks held, bubble by formula and simulated; PP = 8, F = I = W = 1
    assert cells["1f1b"][:6] == ["8", "8", "1x", "8", "21", "21"]  # (8 - 1)(1 + 2)
    assert cells["zb1p"][:6] == ["8", "8", "1x", "8", "7", "7"]  # (8 - 1)(1 + 2 - 2)
    assert cells["dualpipe"][:6] == ["8", "8", "2x", "9", "6", "6"]  # (4 - 1)(3 + 2 - 3)
    assert cells["dualpipev"][:6] == ["4", "8", "2x", "9", "6", "6"]  # the same stages on half the devices
    assert [cells[name][4] for name in ("gpipe", "chimera")] == ["-", "-"]
    assert cells["gpipe"][3] == "20" and cells["dualpipe"][6] == "66"
    assert "chunks held" in names and not any("need not" in row for row in rows)


@pytest.mark.parametrize("times", [("--i", "2"), ("--send", "0.5"), ("--pair", "4"), ("--pair", "1.5"), ("--w", "2")])
def test_the_table_says_when_its_formulas_need_not_hold(times: tuple[str, str], capsys) -> None:
    assert "need not" in printed(capsys, "--table", "--ranks", "4", "--chunks", "8", *times)[-1]


def test_without_options_it_tells_length_bubble_and_memory(capsys) -> None:
    text = "\n".join(printed(capsys))
    assert "dualpipe: 8 stages on 8 devices, 20 chunks, parameters 2x" in text
    assert "length                66" in text and "longest bubble        6 " in text
    assert "chunks held at once   9 9 9 9 9 9 9 9" in text
    slower = printed(capsys, "gpipe", "--ranks", "3", "--chunks", "4", "--f", "2", "--i", "3", "--w", "5")
    assert slower[1].split() == ["length", "60"]  # (4 + 3 - 1)(2 + 3 + 5)
    assert slower[3].endswith("not in table 2 of V3")


def test_the_picture_is_written_as_a_png(tmp_path: Path, capsys) -> None:
    target = tmp_path / "figure5.png"
    assert printed(capsys, "dualpipe", "--ranks", "4", "--chunks", "8", "--draw", str(target)) == [f"wrote {target}"]
    assert Image.open(io.BytesIO(target.read_bytes())).format == "PNG"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["dualpipe", "--ranks", "3"], "the ranks are even; got 3. Take 4"),
        (["dualpipe", "--chunks", "14"], "chunks >= 2 x ranks; got 14 < 2 x 8. Take 16"),
        (["dualpipe", "--chunks", "21"], "got 21. Take 22"),
        (["pipedream"], "the schedules are gpipe, 1f1b"),
        (["1f1b", "--ranks", "0"], "at least 1 rank and 1 chunk"),
        (["1f1b", "--f", "0"], "a time is above 0; got --f 0"),
        (["1f1b", "--send", "-1"], "a time is 0 or more; got --send -1"),
        (["1f1b", "--w", "nan"], "a time is above 0; got --w nan"),
        (["1f1b", "--table", "--ranks", "5"], "even ranks and chunks; got 5"),
        (["1f1b", "--draw", "x.gif"], "the picture is a PNG file; got --draw x.gif. Call it x.png."),
        (["1f1b", "--draw", "no/such/x.png"], "there is no directory"),
    ],
)
def test_a_size_without_a_schedule_is_one_line_and_exit_code_2(words: list[str], message: str, capsys) -> None:
    assert main(["schedule", *words]) == 2
    err = capsys.readouterr().err
    assert err.startswith("minids schedule: ") and message in err and err.count("\n") == 1
