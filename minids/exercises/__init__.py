'''Exercises that check themselves: statement, stub, three hints, a check that names the likely mistake, the solution.

For a learner:

    from minids.exercises import exercise
    ex = exercise("3.2"); ex                     # statement, minutes, difficulty
    ex.check(cache_floats_per_token)             # right / not attempted yet / not right: expected, got, likely cause
    ex.hint()                                    # the next of three hints;  ex.solution() shows one way, and why

For a writer: a file `minids/exercises/chNN_topic.py` is all there is. Every exercise bound to a name in it is found,
no list is edited. A whole one, to copy:

    from minids.config import v3
    from minids.exercises import define, expect_equal, slip, wrong

    def cache_floats_per_token(cfg):
        """How many numbers MLA keeps for one token in one layer."""
        return cfg.kv_lora_rank + cfg.qk_rope_head_dim

    def cache_floats_per_token__mha(cfg):
        return 2 * cfg.n_heads * cfg.v_head_dim

    def check_cache_floats(fn):
        cfg = v3()
        mha = 2 * cfg.n_heads * cfg.v_head_dim
        expect_equal(fn(cfg), 576, causes=[(mha, "That is plain MHA's cache: MLA keeps the latent instead.")])

    CACHE_FLOATS = define(
        "3.2",
        "The cache of one token",
        minutes=5,
        difficulty=1,
        statement="Write `cache_floats_per_token(cfg)`: ... (markdown, formulas in $...$)",
        hints=("Which tensors does `MLA` keep?", "One is shared by all heads.", "$C + R$: latent and rotated key."),
        check=check_cache_floats,
        solution=cache_floats_per_token,
        why="Keys and values are rebuilt from the latent; the rotated key is kept beside it, once for all heads.",
        wrong_answers=(
            slip("+ cfg.qk_rope_head_dim", "", draws="576", why="Forgets k_pe."),
            wrong(cache_floats_per_token__mha, draws="plain MHA", why="Counts as in the chapter before."),
            slip("cfg.qk_rope", "cfg.n_heads * cfg.qk_rope", draws="576", why="One k_pe a head, like q_pe."),
        ),
    )

- The solution is a real function or class (its source is read from the file), or a string of source. A string may
  define several names: then the learner calls `ex.check(first, second)` in the stub's order, and the check takes as
  many arguments. Use no name in it that the notebook has not imported by then: a test compares.
- The stub is made from the solution: signature, docstring, `raise NotImplementedError`. `stub="..."` gives another one;
  in it a line `...`, or `x = ...`, is a gap too. `print(exercise("3.2").stub)` prints it for the notebook's cell, and a
  test holds the two equal.
- `slip(old, new)` is the solution with one text replaced; most mistakes are that small. `wrong(...)` is a whole source,
  or a function `name__variant`, shown as `name`. `draws` is a piece of the message that the mistake must draw: a test
  runs every one under several seeds. `why` says why people make it (for the teacher).
- The check calls the learner's object as often as it likes and uses `expect_close`, `expect_equal`, `ensure`,
  `expect_raises` (see `expect.py`), or raises `Wrong(expected, got, cause)`. Draw fresh inputs with
  `torch.randn(..., dtype=torch.float64)`: random numbers are seeded anew for every check and put back after it, and
  so are gradient mode and default dtype. A function gets copies of its tensors, arrays, lists and dictionaries, and a
  change to one is reported; where the change is the task, say `changes_inputs=True`.
- A test calls `exercise("3.2").judge(...)`, which is `check` without printing.
'''

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any

from minids.exercises.expect import Wrong, ensure, expect_close, expect_equal, expect_raises, show
from minids.exercises.guard import explain, files_of, hand_copies, is_blank, is_unattempted, sandbox
from minids.exercises.source import clean, defines_only_callables, looks_like_source, names_in, run, source_of, stub_of

__all__ = [
    "Exercise",
    "Result",
    "Solution",
    "Wrong",
    "WrongAnswer",
    "all_exercises",
    "define",
    "ensure",
    "exercise",
    "expect_close",
    "expect_equal",
    "expect_raises",
    "show",
    "slip",
    "wrong",
]

RIGHT, NOT_ATTEMPTED, WRONG = "right", "not attempted", "wrong"


@dataclass(frozen=True)
class Card:
    """A text that a notebook shows as markdown and a terminal as it stands."""

    text: str

    def __repr__(self) -> str:
        return self.text

    def _repr_markdown_(self) -> str:
        return self.text


@dataclass(frozen=True)
class Solution:
    """One right answer and its reason. Calling it shows it."""

    source: str
    why: str

    def __call__(self) -> Card:
        return Card(f"```python\n{self.source}```\n{self.why}")

    def __repr__(self) -> str:
        return "ex.solution() shows one way to do it, and why"


@dataclass(frozen=True)
class WrongAnswer:
    """A mistake that people make: its source, a piece of the message it must draw, and why it is made."""

    source: str
    draws: str
    why: str


@dataclass(frozen=True)
class Slip:
    """A wrong answer told as one replacement in the solution."""

    old: str
    new: str
    draws: str
    why: str

    def applied_to(self, source: str) -> WrongAnswer:
        if (times := source.count(self.old)) != 1:
            raise ValueError(f"a slip's text occurs once in the solution, {self.old!r} {times} times: take another")
        return WrongAnswer(source.replace(self.old, self.new), self.draws, self.why)


@dataclass(frozen=True)
class Result:
    """What a check found: `status` is "right", "not attempted" or "wrong"; true when right."""

    number: str
    status: str
    message: str
    seed: int

    def __bool__(self) -> bool:
        return self.status == RIGHT

    def __repr__(self) -> str:
        return f"{self.number} {self.status}"

    def _ipython_display_(self) -> None:
        """Nothing: `check` has printed the message already."""


@dataclass
class Exercise:
    """One exercise. Made by `define`, found by `exercise` and `all_exercises`."""

    number: str
    title: str
    minutes: int
    difficulty: int
    statement: str
    stub: str
    hints: tuple[str, ...]
    checker: Callable[..., None]
    solution: Solution
    wrong_answers: tuple[WrongAnswer, ...]
    changes_inputs: bool = False
    hints_given: int = field(default=0, repr=False, compare=False)

    @property
    def names(self) -> list[str]:
        """What the stub defines, in its order: what `check` is called with."""
        return names_in(self.stub)

    @property
    def call(self) -> str:
        """How a learner has it checked."""
        return f"ex.check({', '.join(self.names)})"

    def check(self, *answers: Any, seed: int | None = None) -> Result:
        """Check the learner's objects, print what came of it, and leave the process as it was."""
        result = self.judge(*answers, seed=seed)
        print(f"Exercise {self.number}: {result.message}")
        return result

    def judge(self, *answers: Any, seed: int | None = None) -> Result:
        """`check` without printing. Also takes a source text, a `Solution` or a `WrongAnswer`.

        Errors in the learner's code, Ctrl-C included, become part of the result. The same seed draws the same inputs.
        """
        seed = secrets.randbelow(2**31) if seed is None else seed
        files: set[str] = set()
        try:
            with sandbox(seed):
                objects = self._objects(answers)
                files = files_of(*objects)
                if any(map(is_blank, objects)):
                    return self._not_attempted(seed)
                self._reject_misuse(objects)
                self.checker(*map(self._guarded, objects))
        except Wrong as problem:
            return self._wrong(problem, seed)
        except (Exception, SystemExit, KeyboardInterrupt) as error:
            if is_unattempted(error, files):
                return self._not_attempted(seed)
            return self._wrong(explain(error, files), seed)
        return Result(self.number, RIGHT, "right.", seed)

    def hint(self) -> Card:
        """The next hint, from gentle to plain."""
        self.hints_given += 1
        if self.hints_given > len(self.hints):
            return Card("No more hints. `ex.solution()` shows one way to do it, and why.")
        return Card(f"Hint {self.hints_given} of {len(self.hints)}: {self.hints[self.hints_given - 1]}")

    def build(self, source: str) -> list[Any]:
        """The objects that a source defines, as if typed after the imports of the chapter's file."""
        names = run(source, f"exercise {self.number}", inspect.unwrap(self.checker).__globals__)
        return [names[name] for name in self.names]

    def _objects(self, answers: tuple[Any, ...]) -> list[Any]:
        first = answers[0] if len(answers) == 1 else None
        if isinstance(first, Solution | WrongAnswer):
            return self.build(first.source)
        if isinstance(first, str) and looks_like_source(first, self.names):
            return self.build(first)
        return list(answers)

    def _reject_misuse(self, objects: list[Any]) -> None:
        if len(objects) != len(self.names):
            raise Wrong(self.call, f"{len(objects)} things to check")
        if defines_only_callables(self.stub) and not all(map(callable, objects)):
            came = next(obj for obj in objects if not callable(obj))
            raise Wrong(self.call, came, "Hand over the function itself, without calling it.")

    def _guarded(self, obj: Any) -> Any:
        return hand_copies(obj) if inspect.isfunction(obj) and not self.changes_inputs else obj

    def _not_attempted(self, seed: int) -> Result:
        message = "not attempted yet. ex.hint() gives the first of three hints."
        return Result(self.number, NOT_ATTEMPTED, message, seed)

    def _wrong(self, problem: Wrong, seed: int) -> Result:
        lines = ["not right yet.", f"  expected: {problem.expected}", f"  got:      {problem.got}"]
        lines += [f"  likely cause: {problem.cause}"] if problem.cause else []
        return Result(self.number, WRONG, "\n".join(lines), seed)

    def __repr__(self) -> str:
        cost = f"about {self.minutes} minutes, difficulty {self.difficulty} of 3"
        tail = f"`{self.call}` checks it, `ex.hint()` gives the next of three hints, `ex.solution()` shows one way."
        return f"Exercise {self.number}: {self.title} ({cost})\n\n{self.statement}\n\n{tail}"

    def _repr_markdown_(self) -> str:
        head = f"Exercise {self.number}: {self.title}"
        return f"**{head}**{repr(self).removeprefix(head)}"


def define(
    number: str,
    title: str,
    *,
    minutes: int,
    difficulty: int,
    statement: str,
    hints: tuple[str, str, str],
    check: Callable[..., None],
    solution: Callable[..., Any] | str,
    why: str,
    wrong_answers: tuple[WrongAnswer | Slip, ...],
    stub: str | None = None,
    changes_inputs: bool = False,
) -> Exercise:
    """An exercise from its parts; the module's docstring has a whole example.

    Raises: ValueError when the difficulty is not 1, 2 or 3, or a slip does not apply to the solution.
    """
    if difficulty not in (1, 2, 3):
        raise ValueError(f"a difficulty is 1, 2 or 3, not {difficulty!r}: take the nearest")
    source = source_of(solution)
    return Exercise(
        number=number,
        title=title,
        minutes=minutes,
        difficulty=difficulty,
        statement=clean(statement).strip(),
        stub=clean(stub) if stub else stub_of(source),
        hints=tuple(clean(hint).strip() for hint in hints),
        checker=check,
        solution=Solution(source, clean(why).strip()),
        wrong_answers=tuple(a.applied_to(source) if isinstance(a, Slip) else a for a in wrong_answers),
        changes_inputs=changes_inputs,
    )


def slip(old: str, new: str, *, draws: str, why: str) -> Slip:
    """A known wrong answer: the solution with `old`, which occurs in it once, replaced by `new`."""
    return Slip(old, new, draws, why)


def wrong(answer: Callable[..., Any] | str, *, draws: str, why: str) -> WrongAnswer:
    """A known wrong answer written out: a source, or a function called `name__variant`, which is shown as `name`."""
    return WrongAnswer(source_of(answer), draws, why)


def exercise(number: str) -> Exercise:
    """The exercise of that number, such as "3.2", with its hints unread. ValueError when there is none."""
    chapter = str(number).split(".")[0].zfill(2)
    found = [ex for name in _chapters() if name.startswith(f"ch{chapter}_") for ex in _exercises_in(_load(name))]
    for ex in found:
        if ex.number == str(number):
            return replace(ex, hints_given=0)
    known = ", ".join(ex.number for ex in found) or "none"
    raise ValueError(f"there is no exercise {number!r}: chapter {chapter} has {known}")


def all_exercises() -> list[Exercise]:
    """Every exercise of the course, in order."""
    found = [ex for name in _chapters() for ex in _exercises_in(_load(name))]
    return sorted(found, key=lambda ex: [int(part) for part in ex.number.split(".")])


def _chapters() -> list[str]:
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if re.fullmatch(r"ch\d\d_\w+", m.name))


def _load(name: str) -> ModuleType:
    return importlib.import_module(f"{__name__}.{name}")  # by name: a new chapter is found, not listed


def _exercises_in(module: ModuleType) -> list[Exercise]:
    return [value for value in vars(module).values() if isinstance(value, Exercise)]
