"""Two languages in one chain of thought, the reward that mends it, and the filter for what is readable.

Paper: DeepSeek-R1 (arXiv 2501.12948) sections 2.3.2 (language consistency, added to the accuracy) and 2.3.3 (rejection
sampling, 600K reasoning samples beside 200K others).

    worked    en:64+17=  ->  <think>four加seven=one;六plusone进=eight;零</think><answer>081</answer>     words of both
    reward    accuracy + (words of the language asked for / words of either, in the thinking)
    readable  right, well-formed, thought out, and in one language: what rejection sampling keeps

The problems are a mixture of three tasks: sums said in words (`spoken`), sums of three digits (`addition`), and
proposed sums to call right or wrong (`judge`). Beside them stand open prompts (`reward_model.count`), the "other data".

Differs from the paper: the words are mixed by our demonstrations, half and half; R1-Zero's mixing arose by itself.
Left out: a format reward of its own (an answer without its tags is wrong already).
Notebook: 15_r1.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from functools import partial

from minids import tasks
from minids.alphabet import CHINESE, ENGLISH
from minids.reward_model import count, counted
from minids.sft import Pair
from minids.tasks import Problem, accuracy, respond, thinking_of, well_formed, words_of

EXAMS = {"spoken": tasks.spoken, "addition": partial(tasks.addition, digits=3), "judge": tasks.judge}
SHARES = {"spoken": 0.5, "addition": 0.25, "judge": 0.25}


def mixture(seed: int = 0, split: str = "train", shares: dict[str, float] = SHARES) -> Iterator[Problem]:
    """Problems of all tasks, each with its share."""
    rng = random.Random(f"mixture {seed}")
    streams = {name: tasks.problems(EXAMS[name], split, seed) for name in shares}
    while True:
        yield next(streams[rng.choices(list(shares), list(shares.values()))[0]])


def mixed(text: str, rng: random.Random, share: float = 0.5) -> str:
    """The text with each of its words put into the other language with probability `share`."""
    for word in words_of(text):
        other = CHINESE[ENGLISH.index(word)] if word in ENGLISH else ENGLISH[CHINESE.index(word)]
        text = text.replace(word, f"\0{other if rng.random() < share else word}\0", 1)
    return text.replace("\0", "")


def first_demonstrations(seed: int = 0, worked: float = 0.5, other: float = 0.15) -> Iterator[Pair]:
    """What the cold start imitates: sums worked (in mixed languages) or direct, and a share of other responses."""
    rng, source = random.Random(f"first {seed}"), mixture(seed)
    while True:
        if rng.random() < other:
            open_problem = count(rng)
            yield open_problem.prompt, counted(open_problem, rng)
            continue
        problem = next(source)
        yield (
            problem.prompt,
            respond(mixed(problem.steps, rng), problem.answer) if rng.random() < worked else (problem.direct),
        )


def sft_mixture(kept: Sequence[Pair], seed: int = 0, other: float = 0.25) -> Iterator[Pair]:
    """Kept samples, shuffled anew in every epoch, and a share of other responses (R1: 600K and 200K)."""
    rng = random.Random(f"sft {seed}")
    while True:
        epoch = list(kept) or [(p.prompt, counted(p, rng)) for p in [count(rng)]]
        rng.shuffle(epoch)
        for pair in epoch:
            while rng.random() < other:
                open_problem = count(rng)
                yield open_problem.prompt, counted(open_problem, rng)
            yield pair


def language_reward(problem: Problem, response: str) -> float:
    """Words of the language asked for / words of either in the thinking; 0 where there are none or none is asked for.

    The paper leaves 0 / 0 open. Paid as 1 it would reward to think in no words at all.
    """
    said = words_of(thinking_of(response))
    right = ENGLISH if problem.language == "en" else CHINESE
    return sum(word in right for word in said) / len(said) if said and problem.language else 0.0


def rule_reward(problem: Problem, response: str) -> float:
    """Accuracy plus the language reward, with weight 1 each, as in R1's first stage of reinforcement."""
    return accuracy(problem, response) + language_reward(problem, response)


def readable(problem: Problem, response: str) -> bool:
    """What rejection sampling keeps: right, well-formed, thought out, in one language."""
    thought = bool(thinking_of(response)) and (not problem.language or language_reward(problem, response) == 1)
    return thought and accuracy(problem, response) == 1 == well_formed(response)
