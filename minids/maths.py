"""Short documents of arithmetic with worked steps, correct by construction.

Not in the paper: this project's own data. Each problem is a question, the steps a pupil would write, and the answer:

    Question: What is 47 + 38?
    7 + 8 = 15, write 5, carry 1.
    4 + 3 + 1 = 8.
    Answer: 85

Differs from the paper: nothing, the paper has no such part.
Left out: fractions, negative answers in subtraction, anything past school arithmetic.
Notebook: 01_tokens; 14_grpo trains on such questions with a reward.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from minids.lexicon import WORDS


@dataclass(frozen=True)
class Problem:
    question: str
    steps: tuple[str, ...]
    answer: str

    def __str__(self) -> str:
        return "\n".join([f"Question: {self.question}", *self.steps, f"Answer: {self.answer}"])


def _size(rng: random.Random) -> int:
    """A number of one to three digits, each length about as often."""
    return rng.randint(*rng.choice([(2, 9), (10, 99), (10, 99), (100, 999)]))


def _columns(a: int, b: int) -> list[tuple[int, int]]:
    """The digits of both numbers, ones first."""
    width = max(len(str(a)), len(str(b)))
    return [(a // 10**i % 10, b // 10**i % 10) for i in range(width)]


def addition(rng: random.Random) -> Problem:
    a, b = _size(rng), _size(rng)
    steps, carry = [], 0
    columns = _columns(a, b)
    for i, (x, y) in enumerate(columns):
        total = x + y + carry
        line = f"{x} + {y}" + (" + 1" if carry else "") + f" = {total}"
        carry = total // 10
        more = carry and i < len(columns) - 1
        steps.append(line + (f", write {total % 10}, carry 1." if more else "."))
    return Problem(f"What is {a} + {b}?", tuple(steps), str(a + b))


def subtraction(rng: random.Random) -> Problem:
    b, a = sorted((_size(rng), _size(rng)))
    steps, borrow = [], 0
    for x, y in _columns(a, b):
        top = x - borrow
        borrow = int(top < y)
        top += 10 * borrow
        steps.append(f"{top} - {y} = {top - y}" + (", borrow 1." if borrow else "."))
    return Problem(f"What is {a} - {b}?", tuple(steps), str(a - b))


def multiplication(rng: random.Random) -> Problem:
    a, b = rng.randint(2, 99), rng.randint(2, 12)
    if a < 10 or b > 9:
        tens, ones = divmod(b, 10)
        parts = [(10 * tens, a), (ones, a)]
    else:
        tens, ones = divmod(a, 10)
        parts = [(10 * tens, b), (ones, b)]
    parts = [(x, y) for x, y in parts if x]
    steps = [f"{x} x {y} = {x * y}." for x, y in parts]
    if len(parts) == 2:
        one, two = (x * y for x, y in parts)
        steps.append(f"{one} + {two} = {a * b}.")
    return Problem(f"What is {a} x {b}?", tuple(steps), str(a * b))


def equation(rng: random.Random) -> Problem:
    k, x, c = rng.randint(2, 9), rng.randint(1, 20), rng.randint(1, 30)
    steps = (f"{k}x = {k * x + c} - {c} = {k * x}.", f"x = {k * x} / {k} = {x}.")
    return Problem(f"If {k}x + {c} = {k * x + c}, what is x?", steps, str(x))


def comparison(rng: random.Random) -> Problem:
    numbers = rng.sample(range(2, 1000), rng.randint(2, 4))
    word, pick = rng.choice([("largest", max), ("smallest", min)])
    best, steps = numbers[0], []
    for n in numbers[1:]:
        steps.append(f"{best} {'<' if best < n else '>'} {n}, keep {pick(best, n)}.")
        best = pick(best, n)
    return Problem(f"Which is the {word}: {', '.join(map(str, numbers))}?", tuple(steps), str(best))


def sequence(rng: random.Random) -> Problem:
    start, step = rng.randint(1, 50), rng.randint(2, 12)
    terms = [start + i * step for i in range(4)]
    shown = ", ".join(map(str, terms))
    steps = (f"{terms[1]} - {terms[0]} = {step}.", f"{terms[3]} + {step} = {terms[3] + step}.")
    return Problem(f"What comes next: {shown}?", steps, str(terms[3] + step))


def word_problem(rng: random.Random) -> Problem:
    a, b = rng.sample(sorted(WORDS["person"]), 2)
    things = rng.choice(sorted(WORDS["things"].values()))[3]
    n, m = rng.randint(5, 60), rng.randint(2, 40)
    k = rng.randint(1, n + m - 1)
    question = f"{a} has {n} {things}. {b} gives {a} {m} more, and then {a} loses {k}. How many {things} does {a} have?"
    return Problem(question, (f"{n} + {m} = {n + m}.", f"{n + m} - {k} = {n + m - k}."), str(n + m - k))


def groups(rng: random.Random) -> Problem:
    a = rng.choice(sorted(WORDS["person"]))
    things = rng.choice(sorted(WORDS["things"].values()))[3]
    m, k, c = rng.randint(2, 9), rng.randint(2, 12), rng.randint(1, 20)
    question = f"{a} has {m} boxes with {k} {things} each and {c} {things} more. How many {things} is that?"
    return Problem(question, (f"{m} x {k} = {m * k}.", f"{m * k} + {c} = {m * k + c}."), str(m * k + c))


KINDS: tuple[Callable[[random.Random], Problem], ...] = (
    addition, subtraction, multiplication, equation, comparison, sequence, word_problem, groups,
)  # fmt: skip


def problems(seed: int, keep: Callable[[str], bool] | None = None) -> list[Problem]:
    """Four to eight problems; `keep` may refuse a question, and another is drawn in its place."""
    rng = random.Random(f"maths {seed}")
    wanted, found = rng.randint(4, 8), []
    while len(found) < wanted:
        problem = rng.choice(KINDS)(rng)
        if keep is None or keep(problem.question):
            found.append(problem)
    return found


def maths(seed: int, keep: Callable[[str], bool] | None = None) -> str:
    """One document of worked problems, always the same for a seed. See `problems` for `keep`."""
    return "\n\n".join(str(problem) for problem in problems(seed, keep))
