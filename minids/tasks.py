"""Problems whose answers a program can check, and the rewards that reinforcement learning pays for them.

Paper: DeepSeek-R1 (arXiv 2501.12948) section 2.2.2: accuracy rewards by rules, format rewards for
`<think>..</think><answer>..</answer>`, no neural reward model for reasoning; section 2.3.2: the language consistency
reward is the share of target-language words in the thinking.

    task       prompt                direct answer          step by step
    addition   8806+6615=            15421                  6501;0112;8614;8615 columns from the right
    chain      7+5*3-4%              2                      each partial result, modulo 10
    equation   3x+4=19               5                      3x=15;x=5
    order      sort:5291             1259                   what is left after taking the next digit, again and again
    countdown  3,8,4:20              (8-3)*4                the partial results
    trial      7x+3=5%               6                      tries 0, 1, 2, .. until one fits: no fixed length
    spoken     en:64+17= or zh:..    081                    the columns in words of the language asked for
    judge      en:64+17=082?         0                      the sum again; 1 where the proposed one is right

`%` at the end of a prompt means modulo 10. A direct answer leaves the thinking empty.
Held out: a problem whose prompt has crc32 % 10 == 0 never occurs in any training set (`held_out`); a sum that is held
out is so in both languages, and as something to judge. Answers are parsed by a small grammar; nothing is ever evaluated
as code. A reward is 0 for whatever does not parse, however long it is.

Differs from the paper: the problems. Its format reward's size is not published; here it is a number of the caller's.
Left out: rewards by compiling and running programs.
Notebook: 13_sft, 14_grpo, 15_r1.
"""

from __future__ import annotations

import random
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice

from minids.alphabet import ANSWER, CHINESE, END_ANSWER, END_THINK, ENGLISH, THINK

LONGEST = 400  # symbols of a response that a verifier looks at; a longer one earns nothing
_FORM = re.compile(f"{THINK}([^<]*){END_THINK}{ANSWER}([^<]*){END_ANSWER}")
_ANSWER = re.compile(f"{ANSWER}([^<]*){END_ANSWER}$")
_WORD = re.compile("|".join(map(re.escape, sorted((*ENGLISH, *CHINESE), key=len, reverse=True))))


@dataclass(frozen=True)
class Problem:
    """A prompt, its right answer, and the steps that lead to it. `targets` holds what a countdown must use and make."""

    task: str
    prompt: str
    answer: str
    steps: str
    targets: tuple[int, ...] = ()
    language: str = ""

    @property
    def direct(self) -> str:
        """The response without thinking."""
        return respond("", self.answer)

    @property
    def worked(self) -> str:
        """The response step by step."""
        return respond(self.steps, self.answer)


def respond(thinking: str, answer: str) -> str:
    """A response in the format that the rewards ask for."""
    return f"{THINK}{thinking}{END_THINK}{ANSWER}{answer}{END_ANSWER}"


# --- the tasks: each takes a random number generator and gives a problem


def addition(rng: random.Random, digits: int = 4) -> Problem:
    """Two numbers of `digits` digits; the steps are columns from the right, with the carry written out."""
    low = 10 ** (digits - 1)
    a, b = rng.randrange(low, 10 * low), rng.randrange(low, 10 * low)
    return Problem("addition", f"{a}+{b}=", f"{a + b:0{digits + 1}}", _columns(a, b, digits))


def _columns(a: int, b: int, digits: int) -> str:
    """Four digits a column: the two of the numbers, the carry that comes in, the digit to write."""
    steps, carry = [], 0
    for i in range(digits):
        x, y = a // 10**i % 10, b // 10**i % 10
        steps.append(f"{x}{y}{carry}{(x + y + carry) % 10}")
        carry = (x + y + carry) // 10
    return ";".join(steps)


def chain(rng: random.Random, terms: int = 6) -> Problem:
    """Operations from left to right, modulo 10: no way around the partial results but to compute them all at once."""
    value = rng.randrange(10)
    prompt, steps = str(value), []
    for _ in range(terms - 1):
        op, n = rng.choice("+-*"), rng.randrange(2, 10)
        new = {"+": value + n, "-": value - n, "*": value * n}[op] % 10
        prompt += f"{op}{n}"
        steps.append(f"{value}{op}{n}={new}")
        value = new
    return Problem("chain", prompt + "%", str(value), ";".join(steps))


def equation(rng: random.Random) -> Problem:
    """kx + c = n over the integers."""
    k, x, c = rng.randint(2, 9), rng.randint(0, 12), rng.randint(1, 30)
    return Problem("equation", f"{k}x+{c}={k * x + c}", str(x), f"{k}x={k * x};x={x}")


def order(rng: random.Random, digits: int = 5) -> Problem:
    """Sort or reverse digits; the steps are what is left, one digit less each time."""
    row = [rng.randrange(10) for _ in range(digits)]
    kind = rng.choice(("sort", "reverse"))
    want, left, steps = sorted(row) if kind == "sort" else row[::-1], list(row), []
    for digit in want[:-1]:
        left.pop(left.index(digit) if kind == "sort" else -1)
        steps.append(f"{digit}:{''.join(map(str, left))}")
    return Problem("order", f"{kind}:{''.join(map(str, row))}", "".join(map(str, want)), ";".join(steps))


def countdown(rng: random.Random) -> Problem:
    """Make a target from three numbers, each used once, with + - * and brackets."""
    while True:
        a, b, c = (rng.randint(1, 9) for _ in range(3))
        first, second = rng.choice("+-*"), rng.choice("+-*")
        left = _apply(first, Fraction(a), Fraction(b))
        target = _apply(second, left, Fraction(c))
        if 0 < target <= 99 and left >= 0:
            break
    numbers = rng.sample((a, b, c), 3)
    steps = f"{a}{first}{b}={left};{left}{second}{c}={target}"
    prompt = f"{','.join(map(str, numbers))}:{target}"
    return Problem("countdown", prompt, f"({a}{first}{b}){second}{c}", steps, (*sorted(numbers), int(target)))


def trial(rng: random.Random) -> Problem:
    """The smallest digit x with kx + c = r modulo 10, by trying 0, 1, 2, ..: the thinking is as long as it must be."""
    k, x, c = rng.choice((1, 3, 7, 9)), rng.randrange(10), rng.randrange(10)
    tries = [f"{n}:{(k * n + c) % 10}" for n in range(x + 1)]
    return Problem("trial", f"{k}x+{c}={(k * x + c) % 10}%", str(x), ";".join(tries))


def spoken(rng: random.Random, digits: int = 2, language: str = "") -> Problem:
    """Addition whose steps are said in words, English or Chinese as the prompt asks."""
    language = language or rng.choice(("en", "zh"))
    low = 10 ** (digits - 1)
    a, b = rng.randrange(low, 10 * low), rng.randrange(low, 10 * low)
    words = ENGLISH if language == "en" else CHINESE
    return Problem("spoken", f"{language}:{a}+{b}=", f"{a + b:0{digits + 1}}", _said(a, b, digits, words),
                   language=language)  # fmt: skip


def _said(a: int, b: int, digits: int, words: tuple[str, ...]) -> str:
    plus, carried, steps, carry = words[10], words[11], [], 0
    for i in range(digits):
        x, y = a // 10**i % 10, b // 10**i % 10
        total = x + y + carry
        steps.append(words[x] + plus + words[y] + (carried if carry else "") + "=" + words[total % 10])
        carry = total // 10
    return ";".join([*steps, words[carry]])


def judge(rng: random.Random) -> Problem:
    """A spoken addition with a proposed sum, wrong in one digit half of the time: 1 if it is right, else 0."""
    asked = spoken(rng)
    digits = list(asked.answer)
    right = rng.random() < 0.5
    if not right:
        i = rng.randrange(len(digits))
        digits[i] = rng.choice([d for d in "0123456789" if d != digits[i]])
    return judging(asked, "".join(digits))


def judging(asked: Problem, proposed: str) -> Problem:
    """The problem to say whether `proposed` answers the spoken problem `asked`."""
    verdict = str(int(proposed == asked.answer))
    return Problem("judge", f"{asked.prompt}{proposed}?", verdict, asked.steps, language=asked.language)


Task = Callable[[random.Random], Problem]
TASKS: dict[str, Task] = {
    "addition": addition, "chain": chain, "equation": equation, "order": order, "countdown": countdown,
    "trial": trial, "spoken": spoken, "judge": judge,
}  # fmt: skip


# --- the split


def held_out(problem: Problem) -> bool:
    """True for a tenth of all problems, by a hash of the prompt: they are for measuring, never for training.

    Neither the language asked for nor a sum proposed to a judge counts: who has seen one form has seen the problem.
    """
    question = problem.prompt.removeprefix(f"{problem.language}:")
    if problem.task == "judge":
        question = question.partition("=")[0] + "="
    return zlib.crc32(question.encode()) % 10 == 0


def problems(task: Task, split: str = "train", seed: int = 0) -> Iterator[Problem]:
    """Problems without end of one split, "train" or "test". The same seed gives the same ones."""
    if split not in ("train", "test"):
        raise ValueError(f'a split is "train" or "test"; got {split!r}. Measure on "test", learn from "train".')
    rng = random.Random(f"{split} {seed}")
    while True:
        problem = task(rng)
        if held_out(problem) == (split == "test"):
            yield problem


def take(task: Task, n: int, split: str = "train", seed: int = 0) -> list[Problem]:
    """The first `n` of `problems`."""
    return list(islice(problems(task, split, seed), n))


# --- the rewards: a response in, a number out


def answer_of(response: str) -> str | None:
    """What stands between the answer tags at the end of a response; None where they are not there exactly once."""
    if len(response) > 8 * LONGEST or response.count(ANSWER) != 1 or response.count(END_ANSWER) != 1:
        return None
    match = _ANSWER.search(response)
    return match[1] if match else None


def thinking_of(response: str) -> str:
    """The thinking of a response: all between <think> and </think>, or nothing."""
    return response.split(THINK, 1)[-1].split(END_THINK, 1)[0] if END_THINK in response else ""


def well_formed(response: str) -> float:
    """1 when the whole response is thinking and then an answer, each tag once, else 0."""
    return float(len(response) <= 8 * LONGEST and _FORM.fullmatch(response) is not None)


def accuracy(problem: Problem, response: str) -> float:
    """1 for the right answer, else 0; 0 too for what does not parse."""
    answer = answer_of(response)
    if answer is None:
        return 0.0
    if problem.task == "countdown":
        return float(makes(answer, problem.targets[:-1], problem.targets[-1]))
    return float(answer == problem.answer)


def words_of(text: str) -> list[str]:
    """The words of either language in a text, in their order."""
    return _WORD.findall(text)


def language_share(response: str, language: str) -> float:
    """Words of the language asked for / words of either in the thinking; 1 where it has no words."""
    words = words_of(thinking_of(response))
    right = ENGLISH if language == "en" else CHINESE
    return sum(word in right for word in words) / len(words) if words else 1.0


# --- a grammar for the answers of countdown:  sum = product (("+" | "-") product)*; product = atom (("*" | "/") atom)*;
#     atom = number | "(" sum ")"


def makes(expression: str, numbers: tuple[int, ...], target: int) -> bool:
    """Does the expression use exactly these numbers, each once, and have this value? False for what does not parse."""
    parsed = value_of(expression)
    return parsed is not None and sorted(parsed[1]) == sorted(numbers) and parsed[0] == target


def value_of(expression: str) -> tuple[Fraction, list[int]] | None:
    """(value, the numbers used) of an expression of at most 40 characters, or None where the grammar refuses it."""
    if len(expression) > 40:
        return None
    tokens = re.findall(r"\d{1,4}|[-+*/()]", expression)
    if not tokens or "".join(tokens) != expression:
        return None
    try:
        value, numbers, rest = _sum(tokens)
    except (ValueError, ZeroDivisionError):
        return None
    return None if rest else (value, numbers)


Parsed = tuple[Fraction, list[int], list[str]]


def _sum(tokens: list[str]) -> Parsed:
    return _operations(tokens, "+-", lambda rest: _operations(rest, "*/", _atom))


def _operations(tokens: list[str], signs: str, part: Callable[[list[str]], Parsed]) -> Parsed:
    value, numbers, rest = part(tokens)
    while rest and rest[0] in signs:
        right, more, after = part(rest[1:])
        value, numbers, rest = _apply(rest[0], value, right), numbers + more, after
    return value, numbers, rest


def _atom(tokens: list[str]) -> Parsed:
    if not tokens:
        raise ValueError("an expression ended where a number was due")
    head, rest = tokens[0], tokens[1:]
    if head == "(":
        value, numbers, rest = _sum(rest)
        if not rest or rest[0] != ")":
            raise ValueError("a bracket was not closed")
        return value, numbers, rest[1:]
    return Fraction(int(head)), [int(head)], rest  # ValueError for a sign


def _apply(sign: str, left: Fraction, right: Fraction) -> Fraction:
    if sign == "+":
        return left + right
    if sign == "-":
        return left - right
    return left * right if sign == "*" else left / right
