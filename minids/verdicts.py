"""The policy as a judge: it is asked whether an answer is right, its own ones too, and its verdicts are counted.

Paper: DeepSeek-V3 (arXiv 2412.19437) section 5.4.2 (DeepSeek-V3 judges, and votes make its judgement better);
DeepSeek-R1 (2501.12948), cons@k.

    cons@k         the most frequent of k answers                               rl.Score.votes
    verdict        en:64+17=082? -> the policy works the sum out again -> 0      tasks.judging
    by judgement   among the answers given, the one with the largest share of verdicts 1

A judgement is a sample like any other, so it can be asked for more than once.

Differs from the paper: a verdict is one bit about a sum, not a text about an answer.
Left out: judgements as a reward (V3's self-rewarding); they would pay the policy for agreeing with itself.
Notebook: 15_r1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from minids.alphabet import Alphabet
from minids.model import Transformer
from minids.reward_model import sample
from minids.rl import majority
from minids.tasks import Problem, answer_of, judging


def can_be_judged(answer: str | None) -> bool:
    """Whether an answer fits into a judge's prompt: three digits."""
    return answer is not None and len(answer) == 3 and answer.isdigit()


def verdicts(model: Transformer, asked: Sequence[Problem], proposed: Sequence[str], alphabet: Alphabet, votes: int,
             width: int, max_new: int, seed: int = 0) -> list[list[str | None]]:  # fmt: skip
    """For each problem and the answer proposed to it, `votes` sampled verdicts: "1", "0", or None where none parsed."""
    questions = [judging(p, answer) for p, answer in zip(asked, proposed, strict=True)]
    texts = sample(model, questions, alphabet, width, votes, max_new, torch.Generator().manual_seed(seed))
    return [[answer_of(text) for text in row] for row in texts]


def best_judged(answers: Sequence[str], judged: Sequence[Sequence[str | None]]) -> str | None:
    """The answer with the largest share of verdicts 1; the more frequent of equals, then the earlier; None of none."""
    shares: dict[str, float] = {}
    for answer, row in zip(answers, judged, strict=True):
        shares.setdefault(answer, sum(v == "1" for v in row) / max(len(row), 1))
    if not shares:
        return None
    return max(shares, key=lambda answer: (shares[answer], answers.count(answer)))


def by_judgement(
    model: Transformer,
    asked: Sequence[Problem],
    answers: Sequence[Sequence[str | None]],
    alphabet: Alphabet,
    votes: int,
    width: int,
    max_new: int,
    seed: int = 0,
) -> list[str | None]:
    """For each problem the one of its sampled answers that the model itself judges best."""
    flat = [(i, a) for i, row in enumerate(answers) for a in dict.fromkeys(row) if can_be_judged(a)]
    given = verdicts(model, [asked[i] for i, _ in flat], [str(a) for _, a in flat], alphabet, votes, width, max_new,
                     seed)  # fmt: skip
    found: list[str | None] = []
    for i, row in enumerate(answers):
        said = {str(a): v for (j, a), v in zip(flat, given, strict=True) if j == i}
        kept = [str(a) for a in row if a in said]
        found.append(best_judged(kept, [said[a] for a in kept]) or majority(row))
    return found
