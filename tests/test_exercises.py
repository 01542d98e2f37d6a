"""Every exercise holds what it promises: its stub, its solution, and each known wrong answer with its own message."""

from __future__ import annotations

import ast
import builtins
import re
from functools import cache
from pathlib import Path

import nbformat
import pytest

from minids.exercises import NOT_ATTEMPTED, RIGHT, WRONG, Exercise, Result, WrongAnswer, all_exercises, exercise

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
EXERCISES = all_exercises()
MISTAKES = [(ex, answer) for ex in EXERCISES for answer in ex.wrong_answers]
MISTAKE_NAMES = [f"{ex.number}-{i}" for ex in EXERCISES for i in range(1, len(ex.wrong_answers) + 1)]
SEEDS = (0, 1, 2)
each_exercise = pytest.mark.parametrize("ex", EXERCISES, ids=lambda ex: ex.number)


def notebooks_of(ex: Exercise) -> list[Path]:
    return sorted(NOTEBOOKS.glob(f"{int(ex.number.split('.')[0]):02d}_*.ipynb"))


def code_of(ex: Exercise) -> list[str]:
    """The code cells of the exercise's chapter; skips, and says so, while the chapter has no notebook."""
    if not (found := notebooks_of(ex)):
        pytest.skip(f"chapter {ex.number.split('.')[0]} has no notebook yet")
    return [cell.source for cell in nbformat.read(found[0], 4).cells if cell.cell_type == "code"]


@cache
def judged(number: str, answer: WrongAnswer, seed: int) -> Result:
    return exercise(number).judge(answer, seed=seed)


@each_exercise
def test_the_stub_is_not_attempted(ex: Exercise) -> None:
    assert ex.judge(ex.stub).status == NOT_ATTEMPTED


@each_exercise
@pytest.mark.parametrize("seed", SEEDS)
def test_the_solution_is_right_whatever_the_inputs(ex: Exercise, seed: int) -> None:
    result = ex.judge(ex.solution, seed=seed)
    assert result.status == RIGHT, result.message


@pytest.mark.parametrize(("ex", "answer"), MISTAKES, ids=MISTAKE_NAMES)
@pytest.mark.parametrize("seed", SEEDS)
def test_a_known_wrong_answer_draws_its_own_message(ex: Exercise, answer: WrongAnswer, seed: int) -> None:
    result = judged(ex.number, answer, seed)
    assert result.status == WRONG
    assert answer.draws and answer.draws in result.message


@each_exercise
def test_the_mistakes_are_told_apart(ex: Exercise) -> None:
    assert len({answer.source for answer in ex.wrong_answers}) == len(ex.wrong_answers) >= 3
    assert all(answer.why for answer in ex.wrong_answers)
    causes = {cause_in(judged(ex.number, answer, 0).message) for answer in ex.wrong_answers}
    assert len(causes) > 1, "all mistakes draw the same message: it cannot help"


def cause_in(message: str) -> str:
    """What a message says beyond the numbers, which differ by inputs."""
    return re.sub(r"-?\d+(\.\d+)?(e-?\d+)?", "N", message)


@each_exercise
def test_an_exercise_is_complete(ex: Exercise) -> None:
    assert len(ex.hints) == 3 and len(set(ex.hints)) == 3 and all(ex.hints)
    assert ex.title and ex.statement and ex.solution.why and ex.minutes > 0


def test_the_exercises_of_a_chapter_are_numbered_from_one() -> None:
    chapters: dict[str, list[int]] = {}
    for ex in EXERCISES:
        chapter, number = ex.number.split(".")
        chapters.setdefault(chapter, []).append(int(number))
    assert chapters == {chapter: list(range(1, len(found) + 1)) for chapter, found in chapters.items()}
    assert [c for c, found in chapters.items() if not 3 <= len(found) <= 5] == [], "three to five in each chapter"


@each_exercise
def test_the_notebook_holds_the_stub_and_the_check(ex: Exercise) -> None:
    cells = code_of(ex)
    assert any(ex.stub.strip() in cell for cell in cells), f"its cell must read:\n{ex.stub}"
    assert any(f'exercise("{ex.number}")' in cell for cell in cells)
    assert any(f".check({', '.join(ex.names)})" in cell for cell in cells)


@each_exercise
def test_the_solution_uses_only_names_that_the_notebook_has_by_then(ex: Exercise) -> None:
    cells = code_of(ex)
    place = next(i for i, cell in enumerate(cells) if f'exercise("{ex.number}")' in cell)
    known = set().union(*(bound_names(cell) for cell in cells[: place + 1]), dir(builtins))
    assert used_names(ex.solution.source) - bound_names(ex.solution.source) - known == set()


def bound_names(source: str) -> set[str]:
    """Names that a source gives a value: by assignment, import, definition or as an argument."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            found |= {alias.asname or alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.arg):
            found.add(node.arg)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
    return found


def used_names(source: str) -> set[str]:
    return {n.id for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_asks_the_exercises_of_its_own_chapter_all_of_them(path: Path) -> None:
    sources = [cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]
    asked = [number for source in sources for number in re.findall(r'exercise\("([\d.]+)"\)', source)]
    chapter = str(int(path.stem[:2]))
    assert sorted(set(asked)) == sorted(ex.number for ex in EXERCISES if ex.number.split(".")[0] == chapter)
