"""Problems with answers that a program checks: right ones pay, nothing else does, no test problem is trained on."""

from __future__ import annotations

import random
import re
import time
from fractions import Fraction

import pytest

from minids import tasks
from minids.alphabet import ANSWER, END_ANSWER, Alphabet
from minids.tasks import (
    TASKS,
    accuracy,
    held_out,
    language_share,
    makes,
    problems,
    respond,
    take,
    value_of,
    well_formed,
)

each_task = pytest.mark.parametrize("name", TASKS)


@each_task
def test_both_forms_of_every_problem_are_right_and_well_formed(name: str) -> None:
    alphabet = Alphabet()
    for problem in take(TASKS[name], 200):
        for response in (problem.direct, problem.worked):
            assert accuracy(problem, response) == well_formed(response) == 1
            assert alphabet.decode(alphabet.encode(problem.prompt + response)) == problem.prompt + response
        assert len(problem.worked) > len(problem.direct) == len(respond("", problem.answer))


@each_task
def test_a_changed_answer_earns_nothing(name: str) -> None:
    for problem in take(TASKS[name], 50):
        digit = problem.answer[-1]
        for other in "0123456789":
            if name != "countdown" and other != digit:
                assert accuracy(problem, respond(problem.steps, problem.answer[:-1] + other)) == 0
        assert accuracy(problem, respond(problem.steps, problem.answer + "0")) == 0


@each_task
def test_the_split_is_by_the_prompt_and_no_held_out_problem_is_ever_trained_on(name: str) -> None:
    train, test = take(TASKS[name], 500), take(TASKS[name], 50, "test")
    assert not any(map(held_out, train)) and all(map(held_out, test))
    assert {p.prompt for p in train}.isdisjoint({p.prompt for p in test})
    assert take(TASKS[name], 20, seed=1) == take(TASKS[name], 20, seed=1) != take(TASKS[name], 20, seed=2)


def test_a_split_of_another_name_is_refused() -> None:
    with pytest.raises(ValueError, match='"train" or "test"; got \'dev\''):
        next(problems(tasks.addition, "dev"))


def test_the_columns_of_an_addition_are_what_a_pupil_writes() -> None:
    for problem in take(tasks.addition, 100):
        a, b = map(int, problem.prompt[:-1].split("+"))
        columns = problem.steps.split(";")
        assert int(problem.answer) == a + b
        for i, (x, y, carry, digit) in enumerate(map(int, column) for column in columns):
            assert (x, y) == (a // 10**i % 10, b // 10**i % 10)
            assert carry == (a % 10**i + b % 10**i) // 10**i and digit == (a + b) // 10**i % 10


def test_a_chain_runs_from_left_to_right_modulo_ten() -> None:
    for problem in take(tasks.chain, 100):
        value = int(problem.prompt[0])
        for op, n, step in zip(problem.prompt[1:-1:2], problem.prompt[2:-1:2], problem.steps.split(";"), strict=True):
            value = {"+": value + int(n), "-": value - int(n), "*": value * int(n)}[op] % 10
            assert step.endswith(f"={value}")
        assert problem.answer == str(value)


def test_a_trial_stops_at_the_first_number_that_fits() -> None:
    lengths = set()
    for problem in take(tasks.trial, 200):
        k, c, r = map(int, re.fullmatch(r"(\d)x\+(\d)=(\d)%", problem.prompt).groups())  # type: ignore[union-attr]
        tries = [tuple(map(int, t.split(":"))) for t in problem.steps.split(";")]
        assert tries == [(n, (k * n + c) % 10) for n in range(len(tries))]
        assert [value == r for _, value in tries] == [False] * (len(tries) - 1) + [True]
        lengths.add(len(tries))
    assert lengths == set(range(1, 11))


def test_an_order_takes_one_digit_after_the_other() -> None:
    for problem in take(tasks.order, 100):
        kind, row = problem.prompt.split(":")
        assert problem.answer == ("".join(sorted(row)) if kind == "sort" else row[::-1])
        for step in problem.steps.split(";"):
            digit, left = step.split(":")
            assert sorted(digit + left) == sorted(row)
            row = left


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_language_reward_is_the_share_of_words_of_the_language_asked_for(language: str) -> None:
    rng = random.Random(0)
    for _ in range(30):
        problem = tasks.spoken(rng, language=language)
        assert language_share(problem.worked, language) == 1
        assert language_share(problem.worked, {"en": "zh", "zh": "en"}[language]) == 0
    mixed = respond("sixplus七=three;one", "13")
    assert language_share(mixed, "en") == 4 / 5 and language_share(mixed, "zh") == 1 / 5
    assert language_share(respond("", "13"), "zh") == 1


PARSES = {
    "1+2*3": 7, "(1+2)*3": 9, "8/4/2": 1, "9-4-3": 2, "((5))": 5, "1/3+1/6": Fraction(1, 2), "2*(3-(4-1))": 0,
}  # fmt: skip


@pytest.mark.parametrize("expression", PARSES)
def test_the_grammar_gives_the_value_and_the_numbers_used(expression: str) -> None:
    value, numbers = value_of(expression) or (None, None)
    assert value == PARSES[expression] and numbers == [int(n) for n in re.findall(r"\d+", expression)]


@pytest.mark.parametrize(
    "expression",
    ["", "1+", "+1", "(1", "1)", "1 + 2", "1//2", "2**9", "1/0", "()", "__import__('os')", "9" * 10**5, "(" * 39 + "1"],
)
def test_the_grammar_refuses_everything_else(expression: str) -> None:
    assert value_of(expression) is None


def test_a_countdown_must_use_each_number_once() -> None:
    assert makes("(8-3)*4", (3, 4, 8), 20) and makes("4*(8-3)", (3, 4, 8), 20)
    assert not makes("4*5", (3, 4, 8), 20) and not makes("20", (3, 4, 8), 20)
    assert not makes("4*(8-3)+3-3", (3, 4, 8), 20) and not makes("(8-3)*4", (3, 4, 8), 21)


BAD = [
    "", ANSWER, END_ANSWER + ANSWER, "__import__('os')", respond("", "__import__('os').system('x')"), respond("", ""),
    respond("", "1" + "0" * 10**6), "9" * 10**7, respond("", "15421") * 2, f"{ANSWER}15421", f"15421{END_ANSWER}",
    respond("", "15421") + "x", respond("", "１５４２１"), respond("", " 15421"), "<think>" * 10**5,
]  # fmt: skip


@pytest.mark.parametrize("response", BAD, ids=range(len(BAD)))
def test_what_is_no_answer_earns_nothing_and_harms_nothing(response: str) -> None:
    problem = tasks.Problem("addition", "8806+6615=", "15421", "")
    other = tasks.Problem("countdown", "3,8,4:20", "(8-3)*4", "", (3, 4, 8, 20))
    begin = time.process_time()
    assert accuracy(problem, response) == accuracy(other, response) == 0
    assert language_share(response, "en") in (0, 1)
    assert time.process_time() - begin < 1


def test_the_format_reward_wants_each_tag_once_and_in_order() -> None:
    assert well_formed("<think>1</think><answer>2</answer>") == 1
    for bad in (
        "<answer>2</answer>", "<think>1<answer>2</answer>", "<answer>2</answer><think>1</think>",
        "<think>1</think><answer>2</answer>3", "<think><think>1</think></think><answer>2</answer>",
        "0<think>1</think><answer>2</answer>",
    ):  # fmt: skip
        assert well_formed(bad) == 0
