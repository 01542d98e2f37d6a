"""A check tells right from wrong in words that help, and leaves the learner's process as it was."""

from __future__ import annotations

import math
import os
import random
import signal
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from minids.exercises import (
    NOT_ATTEMPTED,
    RIGHT,
    WRONG,
    Exercise,
    Wrong,
    define,
    exercise,
    expect_close,
    expect_equal,
    expect_raises,
    slip,
    wrong,
)


def attend(q: Float[Tensor, "S D"], k: Float[Tensor, "T D"], v: Float[Tensor, "T V"]) -> Float[Tensor, "S V"]:
    """Attention of S queries over T keys.

    The scale is 1 / sqrt(D).
    """
    scores = q @ k.T / math.sqrt(q.shape[-1])
    return scores.softmax(-1) @ v


def check_attend(fn: Callable[..., Tensor]) -> None:
    q, k, v = (torch.randn(*shape, dtype=torch.float64) for shape in [(3, 4), (5, 4), (5, 7)])
    want = (q @ k.T / 2).softmax(-1) @ v
    unscaled = (q @ k.T).softmax(-1) @ v
    expect_close(fn(q, k, v), want, causes=[(unscaled, "The scale is missing.")])


def define_attend(**other: Any) -> Exercise:
    parts: dict[str, Any] = {
        "minutes": 10,
        "difficulty": 2,
        "statement": "Write `attend`.",
        "hints": ("first", "second", "third"),
        "check": check_attend,
        "solution": attend,
        "why": "A large score saturates the softmax.",
        "wrong_answers": (slip(" / math.sqrt(q.shape[-1])", "", draws="scale is missing", why="Forgotten."),),
    }
    return define("99.1", "Attention", **(parts | other))


ATTEND = define_attend()


def test_the_stub_keeps_signature_and_docstring_and_nothing_of_the_answer() -> None:
    stub = ATTEND.stub
    assert stub.startswith('def attend(q: Float[Tensor, "S D"], k')
    assert stub.endswith('    The scale is 1 / sqrt(D).\n    """\n    raise NotImplementedError\n')
    assert "softmax(-1)" not in stub


def test_a_stub_of_a_class_and_of_several_functions_blanks_every_body() -> None:
    source = "class A:\n    x = 1\n\n    def f(self):\n        'Doc.'\n        return 1\n\ndef g(a): return a\n"
    ex = define_attend(solution=source, check=lambda a, g: expect_equal((a().f(), g(3)), (1, 3)), wrong_answers=())
    assert ex.stub.count("raise NotImplementedError") == 2 and "return" not in ex.stub
    assert ex.names == ["A", "g"]
    assert ex.judge(ex.stub).status == NOT_ATTEMPTED
    assert ex.judge(source).status == RIGHT
    assert ex.judge(source.replace("return a", "return -a")).status == WRONG


def dots(q, k, v):
    q @ k.T
    ...


def gap(q, k, v):
    scores = ...
    return scores


def raises(q, k, v):
    raise NotImplementedError("your turn")


@pytest.mark.parametrize("answer", [None, ..., dots, gap, raises, ATTEND.stub])
def test_an_untouched_stub_is_not_attempted(answer: object) -> None:
    assert ATTEND.judge(answer).status == NOT_ATTEMPTED


def library_error(q, k, v):
    return torch.utils.data.Dataset()[0]


def test_a_not_implemented_error_from_inside_a_library_is_an_error_not_an_untouched_stub() -> None:
    assert ATTEND.judge(library_error).status == WRONG


def swapped(q, k, v):
    return attend(q, k, v).T


def single(q, k, v):
    return attend(q, k, v).float()


def tupled(q, k, v):
    return (attend(q, k, v),)


def nans(q, k, v):
    return attend(q, k, v) * math.nan


def nothing(q, k, v):
    attend(q, k, v)


def in_place(q, k, v):
    q /= 2
    return (q @ k.T).softmax(-1) @ v


def named_wrongly(q, k, v):
    return attend(q, k, values)


def endless(q, k, v):
    return endless(q, k, v)


def leaves(q, k, v):
    raise SystemExit


MESSAGES = [
    (swapped, "two axes are swapped"),
    (single, "dtype torch.float32"),
    (tupled, "tuple"),
    (nans, "There are NaNs in it"),
    (nothing, "is a `return` missing?"),
    (in_place, "`q` changed by the function"),
    (named_wrongly, "NameError: name 'values' is not defined (line"),
    (named_wrongly, "return attend(q, k, values)"),
    (endless, "calls itself and never comes to an end"),
    (leaves, "asked Python to exit"),
    ("def attend(q):\n    return q\n", "arguments renamed, added or lost"),
    (torch.ones(2), "without calling it"),
]


@pytest.mark.parametrize(("answer", "message"), MESSAGES, ids=[message for _, message in MESSAGES])
def test_a_wrong_answer_is_told_what_is_wrong(answer: object, message: str) -> None:
    result = ATTEND.judge(answer, seed=1)
    assert result.status == WRONG and not result
    assert message in result.message


def test_the_first_difference_is_given_with_its_place_and_the_known_cause() -> None:
    got = torch.zeros(2, 3)
    want = got.clone()
    want[1, 2] = 1.5
    with pytest.raises(Wrong) as caught:
        expect_close(got, want, what="y", causes=[(torch.ones(2, 3), "Ones."), (lambda y: y.sum() == 0, "All zero.")])
    assert caught.value.expected == "y[1, 2] = 1.5"
    assert caught.value.got == "1 of 6 values differ; the first is 0"
    assert caught.value.cause == "All zero."


@pytest.mark.parametrize(
    ("got", "want"),
    [
        (3, 3.0),
        (torch.tensor(3.0), 3),
        (np.float32(0.5), 0.5),
        (0.1 + 0.2, 0.3),
        ([1.0, 2.0], (1, 2)),
        ({"a": torch.ones(2)}, {"a": torch.ones(2)}),
        (torch.tensor([1, 2], dtype=torch.int32), torch.tensor([1, 2])),
        (float("nan"), float("nan")),
        ("text", "text"),
        (True, True),
    ],
)
def test_answers_that_mean_the_same_are_accepted(got: object, want: object) -> None:
    expect_close(got, want)


@pytest.mark.parametrize(
    ("got", "want"),
    [
        (3.001, 3.0),
        ("3", 3),
        ([1, 2], [1, 2, 3]),
        ({"a": 1}, {"b": 1}),
        (torch.ones(2, dtype=torch.int64), torch.ones(2)),
        (torch.ones(2), torch.ones(2, dtype=torch.bool)),
        (torch.ones(1, 2), torch.ones(2)),
        (False, True),
        (None, 1),
        (torch.ones(3), "text"),
    ],
)
def test_answers_that_differ_are_not_accepted(got: object, want: object) -> None:
    with pytest.raises(Wrong):
        expect_close(got, want)


def test_expect_raises_wants_that_error() -> None:
    expect_raises(ZeroDivisionError, lambda: 1 / 0)
    with pytest.raises(Wrong, match="a ValueError"):
        expect_raises(ValueError, lambda: 3)


def vandal(q, k, v):
    torch.manual_seed(3), random.seed(3), np.random.seed(3)
    torch.set_grad_enabled(False)
    torch.set_default_dtype(torch.float64)
    return q


def test_the_process_is_left_as_it_was() -> None:
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    assert ATTEND.judge(vandal).status == WRONG
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (random.getstate(), np.random.get_state()[1].tolist())
    assert torch.is_grad_enabled() and torch.get_default_dtype() == torch.float32


@pytest.mark.skipif(os.name == "nt", reason="Windows delivers Ctrl-C to the whole console, pytest included")
def test_an_endless_loop_can_be_stopped_and_says_so() -> None:
    def loop(q, k, v):
        signal.raise_signal(signal.SIGINT)
        while True:
            pass

    result = ATTEND.judge(loop)
    assert "you stopped it" in result.message and "does not end" in result.message


def test_gradients_flow_through_the_copies_that_a_function_gets() -> None:
    def check(fn: Callable[[Tensor], Tensor]) -> None:
        x = torch.randn(3, dtype=torch.float64, requires_grad=True)
        fn(x).sum().backward()
        expect_close(x.grad, 2 * x.detach())

    ex = define_attend(solution="def square(x):\n    return x * x\n", check=check, wrong_answers=())
    assert ex.judge(ex.solution).status == RIGHT


def test_an_exercise_whose_task_is_to_change_its_argument_allows_it() -> None:
    def check(fn: Callable[[Tensor], None]) -> None:
        x = torch.zeros(3)
        fn(x)
        expect_close(x, torch.ones(3))

    source = "def bump(x):\n    x += 1\n"
    for allowed, status in ((True, RIGHT), (False, WRONG)):
        ex = define_attend(solution=source, check=check, wrong_answers=(), changes_inputs=allowed)
        assert ex.judge(source).status == status


def test_inputs_are_fresh_for_each_check_and_the_same_for_the_same_seed() -> None:
    def drawn(seed: int | None) -> float:
        found: list[float] = []
        ex = define_attend(check=lambda fn: found.append(torch.randn(()).item()))
        ex.judge(ex.solution, seed=seed)
        return found[0]

    assert drawn(None) != drawn(None)
    assert drawn(7) == drawn(7)


def test_hints_come_one_by_one_and_then_point_to_the_solution() -> None:
    ex = define_attend()
    texts = [repr(ex.hint()) for _ in range(4)]
    assert texts[:3] == ["Hint 1 of 3: first", "Hint 2 of 3: second", "Hint 3 of 3: third"]
    assert "ex.solution()" in texts[3]
    assert "softmax(-1)" in repr(ex.solution()) and "saturates" in repr(ex.solution())


def test_what_is_shown_is_the_same_in_every_run(capsys: pytest.CaptureFixture[str]) -> None:
    result = ATTEND.check(attend)
    assert capsys.readouterr().out == "Exercise 99.1: right.\n"
    assert repr(result) == "99.1 right"
    assert repr(ATTEND).startswith(
        "Exercise 99.1: Attention (about 10 minutes, difficulty 2 of 3)\n\nWrite `attend`.\n"
    )
    assert "`ex.check(attend)` checks it" in repr(ATTEND)
    assert ATTEND._repr_markdown_().startswith("**Exercise 99.1: Attention** (about 10 minutes")


def test_a_slip_must_occur_once_in_the_solution() -> None:
    with pytest.raises(ValueError, match=r"'q' .* times"):
        define_attend(wrong_answers=(slip("q", "p", draws="x", why="y"),))


def attend__unscaled(q, k, v):
    return (q @ k.T).softmax(-1) @ v


def test_a_wrong_answer_may_be_a_function_named_after_the_solution() -> None:
    answer = wrong(attend__unscaled, draws="scale is missing", why="Forgotten.")
    assert answer.source.startswith("def attend(q, k, v):")
    assert answer.draws in ATTEND.judge(answer).message


def test_an_unknown_number_names_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"no exercise '99\.1': chapter 99 has none"):
        exercise("99.1")
