"""Thinking without a fixed length: what the demonstrations teach and do not, where responses stop, and the warning."""

from __future__ import annotations

import signal
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from minids import tasks, zero
from minids.alphabet import Alphabet
from minids.cli import main
from minids.tasks import Problem, accuracy, respond
from minids.zero import (
    MOST,
    STOP,
    ZeroConfig,
    ZeroRun,
    faultless,
    longer_without_better,
    stop_of,
    talkative,
    train_zero,
    tries_of,
    wandering,
)

SMALL: dict[str, Any] = {"steps": 4, "questions": 3, "group": 4, "every": 2, "samples": 1}
FITS = Problem("trial", "7x+3=4%", "3", "")  # the values of 7x + 3 modulo 10: 3, 0, 7, 4, ..
LIST = "0:3-;1:0-;2:7-;3:4+"


@pytest.fixture
def blank_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reinforcement starts from fresh weights: the cold start takes no step."""
    monkeypatch.setattr(zero, "cold_start", lambda *_, **__: [])


def demonstrated(n: int) -> list[tuple[Problem, str]]:
    source = tasks.take(tasks.trial, n)
    return list(zip(source, (response for _, response in wandering(iter(source))), strict=True))


def test_a_demonstration_makes_and_checks_tries_in_order_without_a_mistake() -> None:
    assert all(faultless(p, response) for p, response in demonstrated(300))
    assert faultless(FITS, respond(LIST, "3")) and faultless(FITS, respond(LIST[:9], "7"))
    for wrong in ("0:3-;1:1-", "1:0-", "0:3+", "0:3", "", LIST.replace("+", "-")):
        assert not faultless(FITS, respond(wrong, "3"))
    assert not faultless(FITS, "<think>0:3-</think>")
    assert zero.listed(FITS, 12).endswith("9:6-;0:3-;1:0-")


def test_demonstrations_stop_as_often_at_a_hit_as_anywhere_else() -> None:
    stopped = {True: [0, 0], False: [0, 0]}  # by whether the try fits: [stops, tries]
    for problem, response in demonstrated(4000):
        tries = tries_of(response) or []
        for i, (digit, _) in enumerate(tries[: MOST - 1]):
            count = stopped[str(digit) == problem.answer]
            count[0] += i == len(tries) - 1
            count[1] += 1
    for stops, n in stopped.values():
        assert n > 600 and stops / n == pytest.approx(STOP, abs=0.05)
    assert sum(accuracy(p, r) for p, r in demonstrated(4000)) / 4000 == pytest.approx(0.1, abs=0.03)


def test_no_held_out_problem_is_in_any_training_set() -> None:
    for name in ("trial", "addition"):
        run = ZeroRun(ZeroConfig(name, **SMALL))
        held = {p.prompt for p in tasks.take(tasks.TASKS[name], 500, "test", 7)}
        assert not held & {prompt for prompt, _ in islice(run.pairs(), 2000)}
        assert not held & {p.prompt for p in islice(run.rl.problems, 2000)}


def test_what_is_measured_is_held_out(monkeypatch: pytest.MonkeyPatch) -> None:
    run, seen = ZeroRun(ZeroConfig(**SMALL)), []

    def answers(problems, samples: int, seed: int = 0) -> list[list[str]]:
        seen.extend(problems)
        return [[respond(zero.listed(p, int(p.answer) + 1), p.answer), p.direct] for p in problems]

    monkeypatch.setattr(run, "sample", answers)
    row = run.look(3)
    assert seen and all(map(tasks.held_out, seen)) and len({p.prompt for p in seen}) == len(seen)
    assert row["accuracy"] == 1 and row["hit"] == row["early"] == 0.5 and row["past"] == row["other"] == 0
    lengths = [5 * int(p.answer) + 4 for p in seen]  # four symbols a try, and ; between them
    assert row["thinking"] == pytest.approx(sum(lengths) / len(lengths) / 2)


@pytest.mark.parametrize(
    ("thinking", "stop"),
    [
        (LIST, "hit"),
        ("0:4-", "hit"),  # wrong, but the value asked for: what is written counts
        ("0:3-;1:0-", "early"),
        ("", "early"),
        (LIST + ";4:1-", "past"),
        ("3:4+;4:1-;3:4+", "past"),
        ("0:3-;1", "other"),
        ("0:3-;;1:0-", "other"),
        ("0:3;1:0", "other"),
        ("7x", "other"),
    ],
)
def test_a_response_stops_at_a_hit_early_or_past_one(thinking: str, stop: str) -> None:
    assert stop_of(FITS, respond(thinking, "3")) == stop


def test_other_tasks_are_direct_or_worked_and_have_no_tries() -> None:
    problem = tasks.take(tasks.addition, 1)[0]
    assert stop_of(problem, problem.direct) == "direct" and stop_of(problem, problem.worked) == "worked"
    with pytest.raises(ValueError, match=r"a problem of tasks.trial"):
        zero.asked(problem)


def test_the_warning_s_reward_grows_with_length_and_never_reads_the_answer() -> None:
    short, long = respond("0:3-", "3"), respond("0:3-;1:0-", "9")
    assert 0 < talkative(FITS, short) < talkative(FITS, long) and talkative(FITS, long) == (
        talkative(FITS, long.replace("9", "3"))
    )
    assert talkative(FITS, "0:3-;1:0-;2:7-") == 0


def rows(thinking: list[float], accuracy: list[float]) -> list[dict]:
    return [{"step": i, "thinking": t, "accuracy": a} for i, (t, a) in enumerate(zip(thinking, accuracy, strict=True))]


def test_longer_without_better_is_said_when_it_is_so_and_only_then() -> None:
    flat, rising = [0.10, 0.12, 0.09, 0.11], [0.10, 0.2, 0.4, 0.6]
    assert "longer without better: from step 0 to 3" in longer_without_better(rows([10, 20, 30, 40], flat))
    assert longer_without_better(rows([10, 20, 30, 40], rising)) == ""  # longer and better
    assert longer_without_better(rows([10, 11, 10, 11], flat)) == ""  # no longer
    assert longer_without_better(rows([10, 20, 30], flat[:3])) == ""  # too early to say
    assert longer_without_better(rows([1, 10, 10, 10, 10], [0, *flat])) == ""  # grew before the window


@pytest.mark.usefixtures("blank_start")
def test_a_run_that_was_stopped_goes_on_to_the_same_bits_and_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, stopped = ZeroRun(ZeroConfig(**SMALL)), ZeroRun(ZeroConfig(**SMALL))
    want = train_zero(whole, progress=False)
    assert [row["step"] for row in want] == [0, 2, 4] and whole.finished

    def press(row: dict) -> None:
        if row["step"] == 2:
            signal.raise_signal(signal.SIGINT)

    train_zero(stopped, tmp_path, progress=False, on_row=press)
    assert not stopped.finished and "Stopped after step 2, saved in" in capsys.readouterr().out
    again = ZeroRun(ZeroConfig(**SMALL))
    again.rl.model.head.weight.data.zero_()  # the checkpoint brings all weights
    shown: list[dict] = []
    assert train_zero(again, tmp_path, progress=False, on_row=shown.append) == want == shown
    assert all(torch.equal(a, b) for a, b in zip(whole.rl.model.parameters(), again.rl.model.parameters(), strict=True))


@pytest.mark.usefixtures("blank_start")
def test_a_directory_of_another_reward_is_refused(tmp_path: Path) -> None:
    train_zero(ZeroRun(ZeroConfig(**SMALL)), tmp_path, progress=False)
    with pytest.raises(ValueError, match="a run with warning False; got True"):
        train_zero(ZeroRun(ZeroConfig(**SMALL, warning=True)), tmp_path, progress=False)


@pytest.mark.usefixtures("blank_start")
def test_a_run_ends_when_its_minutes_are_over(tmp_path: Path) -> None:
    run = ZeroRun(ZeroConfig(minutes=1e-3, questions=2, group=2, samples=1))
    train_zero(run, tmp_path, progress=False)
    assert run.finished and run.seconds >= 0.06 and run.rl.step < 50


@pytest.mark.parametrize("wrong", [{"task": "chess"}, {"minutes": 0.0}, {"steps": -1}, {"every": 0}])
def test_a_config_without_a_meaning_is_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match="got"):
        ZeroConfig(**wrong)


@pytest.mark.usefixtures("blank_start")
def test_the_command_prints_a_table_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["zero", "--steps", "1", "--out", str(tmp_path), "--quiet"]
    assert main(command) == 0
    first = capsys.readouterr().out
    assert "| step | accuracy | thinking | hit | early | past | other | entropy |" in first and "| 0 | 0.0" in first
    assert (tmp_path / "model.safetensors").exists()
    assert main(command) == 0 and "| 0 | 0.0" in capsys.readouterr().out
    assert main(["zero", "--task", "chess", "--out", str(tmp_path)]) == 2


def test_the_alphabet_holds_every_demonstration() -> None:
    run = ZeroRun(ZeroConfig(**SMALL))
    longest = max(len(Alphabet().encode(response)) for _, response in demonstrated(2000))
    assert longest + 1 <= run.new
