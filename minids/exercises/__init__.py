'''Exercises that check themselves: statement, stub, three hints, a check that names the likely mistake, the solution and its reason.

For a learner:

    from minids.exercises import exercise
    ex = exercise("3.2"); ex                     # statement, minutes, difficulty
    ex.check(cache_floats_per_token)             # right / not attempted yet / wrong: expected, got, likely cause
    ex.hint()                                    # the next of three hints;  ex.solution() shows the solution and why

For a writer: a file `minids/exercises/chNN_topic.py` is all there is; every `Exercise` bound to a name in it is found. No list to edit. A whole one:

    from minids.exercises import define, expect_equal, slip, wrong

    def cache_floats_per_token(cfg):
        """How many numbers MLA keeps for one token in one layer."""
        return cfg.kv_lora_rank + cfg.qk_rope_head_dim

    def check_cache_floats(fn):
        cfg = v3()
        mha = 2 * cfg.n_heads * cfg.v_head_dim
        expect_equal(fn(cfg), 576, causes=[(mha, "That is the cache of plain MHA: MLA keeps the latent instead.")])

    CACHE_FLOATS = define(
        "3.2", "The cache of one token", minutes=5, difficulty=1,
        statement="Write `cache_floats_per_token(cfg)`: ... (markdown, formulas in $...$)",
        hints=("Which two tensors does `MLA` keep?", "One is shared by all heads.", "$C + R$: the latent and the rotated key."),
        check=check_cache_floats,
        solution=cache_floats_per_token,
        why="Keys and values are rebuilt from the latent; only the rotated key must be kept beside it, once for all heads.",
        wrong_answers=(
            slip("+ cfg.qk_rope_head_dim", "", draws="rotated key", why="Forgets k_pe."),
            slip("cfg.kv_lora_rank", "2 * cfg.n_heads * cfg.v_head_dim", draws="plain MHA", why="Counts as before MLA."),
            wrong("def cache_floats_per_token(cfg):\\n    return 512", draws="...", why="..."),
        ),
    )

- The solution is a real function or class (its source is taken from the file) or a string of source, which may define several names: the
  learner then calls `ex.check(first, second)`, in the stub's order, and the check takes as many arguments. Keep it to names that the notebook has imported.
- The stub is made from the solution: signature, docstring, `raise NotImplementedError`. Give `stub="..."` for another one (a line with `...` is a gap
  too). `print(exercise("3.2").stub)` gives the text for the notebook's cell.
- `slip(old, new)` is the solution with one text replaced: most mistakes are that small. `wrong(...)` is a whole other source.
  `draws` is a piece of the message that this mistake must draw: a test runs them all.
- The check gets the learner's object, calls it as often as it likes, and uses `expect_close`, `expect_equal`, `ensure`, `expect_raises` (see
  `expect.py`) or raises `Wrong(expected, got, cause)` itself. Draw inputs afresh with `torch.randn(..., dtype=torch.float64)`: random
  numbers are seeded anew for each check and restored after it. A function gets copies of its tensors and lists, and changing them is
  reported; where changing an argument is the task, say `changes_inputs=True`.
'''

from __future__ import annotations

import ast
import importlib
import inspect
import linecache
import pkgutil
import re
import secrets
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any

from minids.exercises.expect import Wrong, ensure, expect_close, expect_equal, expect_raises, show
from minids.exercises.guard import explain, files_of, hand_copies, is_blank, is_unattempted, sandbox

__all__ = [
    "Exercise", "Result", "Solution", "Wrong", "WrongAnswer", "all_exercises", "define", "ensure", "exercise",
    "expect_close", "expect_equal", "expect_raises", "show", "slip", "wrong",
]  # fmt: skip

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
        return "solution(): call it to see the answer"


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
        if source.count(self.old) != 1:
            raise ValueError(
                f"a slip replaces a text that occurs once in the solution; {self.old!r} occurs {source.count(self.old)} times: choose a longer piece"
            )
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
    """One exercise. Made by `define`, found by `exercise` and `all_exercises`; the module's docstring shows both sides."""

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
        """What the stub defines, in its order: the names that `check` is called with."""
        names: list[str] = []
        for node in ast.parse(self.stub).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                names.append(node.name)
            elif isinstance(node, ast.Assign):
                names += [target.id for target in node.targets if isinstance(target, ast.Name)]
        return names

    def check(self, *answers: Any, seed: int | None = None) -> Result:
        """Check the learner's objects (or a source text), print what came of it, and leave the process as it was."""
        result = self.judge(*answers, seed=seed)
        print(f"Exercise {self.number}: {result.message}")
        return result

    def judge(self, *answers: Any, seed: int | None = None) -> Result:
        """`check` without printing. Errors in the learner's code, Ctrl-C included, become part of the result."""
        seed = secrets.randbelow(2**31) if seed is None else seed
        files: set[str] = set()
        try:
            with sandbox(seed):
                objects = self._objects(answers)
                files = files_of(*objects)
                if any(map(is_blank, objects)):
                    return self._not_attempted(seed)
                self._reject_misuse(objects)
                self.checker(*(self._guarded(obj) for obj in objects))
        except Wrong as problem:
            return self._wrong(problem, seed)
        except (Exception, SystemExit, KeyboardInterrupt) as error:
            return (
                self._not_attempted(seed) if is_unattempted(error, files) else self._wrong(explain(error, files), seed)
            )
        return Result(self.number, RIGHT, "right.", seed)

    def hint(self) -> Card:
        """The next hint, from gentle to plain."""
        self.hints_given += 1
        if self.hints_given > len(self.hints):
            return Card("No more hints. `ex.solution()` shows one way to do it, and why.")
        return Card(f"Hint {self.hints_given} of {len(self.hints)}: {self.hints[self.hints_given - 1]}")

    def build(self, source: str) -> list[Any]:
        """The objects that a source text defines, as if typed in a notebook that imported what the chapter's file imports."""
        filename = f"<exercise {self.number}, {secrets.token_hex(4)}>"
        linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
        namespace = {**self.checker.__globals__, "__name__": "learner"}
        exec(compile(source, filename, "exec"), namespace)
        return [namespace[name] for name in self.names]

    def _objects(self, answers: tuple[Any, ...]) -> list[Any]:
        if len(answers) == 1 and isinstance(answers[0], Solution | WrongAnswer):
            return self.build(answers[0].source)
        if len(answers) == 1 and isinstance(answers[0], str) and any(f"{name}" in answers[0] for name in self.names):
            return self.build(answers[0])
        return list(answers)

    def _reject_misuse(self, objects: list[Any]) -> None:
        call = f"ex.check({', '.join(self.names)})"
        if len(objects) != len(self.names):
            raise Wrong(call, f"{len(objects)} things to check", "")
        wants_callable = [isinstance(n, ast.FunctionDef | ast.ClassDef) for n in ast.parse(self.stub).body]
        if all(wants_callable) and not all(map(callable, objects)):
            raise Wrong(
                call,
                show(next(o for o in objects if not callable(o))),
                "Hand over the function itself, without calling it.",
            )

    def _guarded(self, obj: Any) -> Any:
        return hand_copies(obj) if inspect.isfunction(obj) and not self.changes_inputs else obj

    def _not_attempted(self, seed: int) -> Result:
        return Result(self.number, NOT_ATTEMPTED, "not attempted yet. ex.hint() gives the first of three hints.", seed)

    def _wrong(self, problem: Wrong, seed: int) -> Result:
        lines = [f"not right yet.\n  expected: {problem.expected}\n  got:      {problem.got}"]
        lines += [f"  likely cause: {problem.cause}"] if problem.cause else []
        return Result(self.number, WRONG, "\n".join(lines), seed)

    def __repr__(self) -> str:
        return f"Exercise {self.number}: {self.title}"

    def _repr_markdown_(self) -> str:
        call = f"ex.check({', '.join(self.names)})"
        head = f"**Exercise {self.number}: {self.title}** · about {self.minutes} minutes · difficulty {self.difficulty} of 3"
        tail = (
            f"`{call}` checks your answer · `ex.hint()` gives the next of three hints · `ex.solution()` shows one way"
        )
        return f"{head}\n\n{self.statement}\n\n{tail}"


def define(
    number: str, title: str, *, minutes: int, difficulty: int, statement: str, hints: tuple[str, str, str], check: Callable[..., None],
    solution: Callable[..., Any] | str, why: str, wrong_answers: tuple[WrongAnswer | Slip, ...], stub: str | None = None,
    changes_inputs: bool = False,
) -> Exercise:  # fmt: skip
    """An exercise from its parts. The module's docstring has a whole example.

    Raises: ValueError when a slip does not apply, or the difficulty is not 1, 2 or 3.
    """
    if difficulty not in (1, 2, 3):
        raise ValueError(f"difficulty is 1, 2 or 3, not {difficulty!r}")
    source = source_of(solution)
    answers = tuple(a.applied_to(source) if isinstance(a, Slip) else a for a in wrong_answers)
    return Exercise(
        number, title, minutes, difficulty, _clean(statement).strip(), _clean(stub) if stub else stub_of(source),
        tuple(_clean(h).strip() for h in hints), check, Solution(source, _clean(why).strip()), answers, changes_inputs,
    )  # fmt: skip


def slip(old: str, new: str, *, draws: str, why: str) -> Slip:
    """A known wrong answer: the solution with `old` (which occurs once) replaced by `new`."""
    return Slip(old, new, draws, why)


def wrong(answer: Callable[..., Any] | str, *, draws: str, why: str) -> WrongAnswer:
    """A known wrong answer written out: a source text, or a function called `name__variant`, which is shown as `name`."""
    return WrongAnswer(source_of(answer), draws, why)


def source_of(answer: Callable[..., Any] | str) -> str:
    """The source of a function or class without decorators, `name__variant` as `name`; a text as it is, dedented."""
    if isinstance(answer, str):
        return _clean(answer)
    text = textwrap.dedent(inspect.getsource(answer))
    node = ast.parse(text).body[0]
    text = "".join(text.splitlines(keepends=True)[node.lineno - 1 :])
    name = answer.__name__
    return re.sub(rf"\b{re.escape(name)}\b", name.split("__")[0], text) if "__" in name.strip("_") else text


def stub_of(source: str) -> str:
    """What is handed out: the solution's definitions with their docstrings, every body `raise NotImplementedError`."""
    lines = source.splitlines()
    for node in sorted(_bodies(ast.parse(source)), key=lambda n: -n.lineno):
        keep = 1 if ast.get_docstring(node) is not None else 0
        start = node.body[0].end_lineno if keep else node.body[0].lineno - 1
        indent = " " * node.body[0].col_offset
        lines[start : node.end_lineno] = [f"{indent}raise NotImplementedError"]
    return "\n".join(lines) + "\n"


def _bodies(tree: ast.Module) -> list[ast.FunctionDef]:
    methods = [m for c in tree.body if isinstance(c, ast.ClassDef) for m in c.body if isinstance(m, ast.FunctionDef)]
    return [n for n in tree.body if isinstance(n, ast.FunctionDef)] + methods


def _clean(text: str) -> str:
    return textwrap.dedent(text).strip("\n") + "\n"


def exercise(number: str) -> Exercise:
    """The exercise of that number, such as "3.2", with all its hints unread. ValueError when there is none."""
    chapter = str(number).split(".")[0].zfill(2)
    found = [ex for name in _chapter_files() if name.startswith(f"ch{chapter}") for ex in _exercises_in(_load(name))]
    for ex in found:
        if ex.number == str(number):
            return replace(ex)
    known = ", ".join(ex.number for ex in found) or "none"
    raise ValueError(
        f"there is no exercise {number!r}; chapter {int(chapter) if chapter.isdigit() else chapter} has: {known}"
    )


def all_exercises() -> list[Exercise]:
    """Every exercise of the course, in order."""
    found = [replace(ex) for name in _chapter_files() for ex in _exercises_in(_load(name))]
    return sorted(found, key=lambda ex: [int(part) for part in ex.number.split(".")])


def _chapter_files() -> list[str]:
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if re.fullmatch(r"ch\d\d_\w+", m.name))


def _load(name: str) -> ModuleType:
    return importlib.import_module(
        f"{__name__}.{name}"
    )  # by name and only when asked: a chapter's file is found, not listed


def _exercises_in(module: ModuleType) -> list[Exercise]:
    return [value for value in vars(module).values() if isinstance(value, Exercise)]
