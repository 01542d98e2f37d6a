"""A judge that is learned from preferences, for what no rule can check; and what it pays for too much.

Paper: DeepSeek-R1 (arXiv 2501.12948) section 2.3.4 and its supplement: a helpfulness model trained on 66K pairs, batch
256, one epoch, which looks at the final summary alone; DeepSeek-V3 section 5.2.1. The pairwise loss is Bradley and
Terry's (1952).

    count     en:3?  ->  <think></think><answer>fourfivesix</answer>      an open prompt: no answer is the right one
    liking    a reader likes each word that says the number after the one before, in the language asked for, shrugs at
              any other word, and dislikes whatever comes after the fifth      known to the reader alone
    pair      two responses to one prompt, and which one the reader took: P(first) = sigmoid(liking_1 - liking_2)
    score     one number: a linear layer on the trunk's output at the response's last token        RewardModel
    loss      -log sigmoid(score of the taken one - score of the other)                            bradley_terry

Only differences of scores are learned; their zero is not. The model sees pairs of one policy's responses. There longer
ones are mostly better, and it has never met one that is too long.

Differs from the paper: the reader is a program, so that we can see what the model gets wrong; the policy never sees it.
Left out: a model that judges in words (V3's generative reward model); 15_r1 lets the policy judge its own sums.
Notebook: 15_r1.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from copy import deepcopy

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from minids.alphabet import CHINESE, ENGLISH, Alphabet
from minids.model import Transformer
from minids.optim import make_optimizer
from minids.rollout import rollout
from minids.sft import Pair, rows
from minids.tasks import Problem, answer_of, respond, words_of

PATIENCE = 5  # numbers after which the reader has had enough


# --- the open task and its reader


def count(rng: random.Random) -> Problem:
    """Count on from a digit, as long as you think right. There is no right answer, so a rule can pay nothing."""
    language, digit = rng.choice(("en", "zh")), rng.randrange(10)
    return Problem("count", f"{language}:{digit}?", "", "", language=language)


def counted(problem: Problem, rng: random.Random, longest: int = 4) -> str:
    """A response as people write them: 1 to `longest` words, now and then a wrong number or the other language."""
    digit, said = int(problem.prompt[3]), []
    for _ in range(rng.randint(1, longest)):
        digit = (digit + 1) % 10 if rng.random() < 0.8 else rng.randrange(10)
        english = (problem.language == "en") == (rng.random() < 0.8)
        said.append((ENGLISH if english else CHINESE)[digit])
    return respond("", "".join(said))


def counting() -> Iterator[Problem]:
    """Open prompts without end, always the same ones: there are only twenty."""
    rng = random.Random("count")
    while True:
        yield count(rng)


def liking(problem: Problem, response: str) -> float:
    """How much the reader likes a response to `count`: up to PATIENCE, 0 for none, less than 0 for many words."""
    words = ENGLISH if problem.language == "en" else CHINESE
    before, points = int(problem.prompt[3]), 0.0
    for i, word in enumerate(words_of(answer_of(response) or "")):
        number = (ENGLISH if word in ENGLISH else CHINESE).index(word)
        points += -1.0 if i >= PATIENCE else float(word == words[(before + 1) % 10])
        before = number if number < 10 else before
    return points


def takes_first(problem: Problem, first: str, second: str, rng: random.Random) -> bool:
    """Which of two responses the reader takes; with equal liking a coin decides."""
    margin = liking(problem, first) - liking(problem, second)
    return rng.random() < torch.sigmoid(torch.tensor(margin)).item()


# --- the model


class RewardModel(nn.Module):
    """A copy of a policy's trunk with one number for a head: the score of a prompt with a response."""

    def __init__(self, policy: Transformer, alphabet: Alphabet, width: int):
        super().__init__()
        self.trunk, self.alphabet, self.width = deepcopy(policy), alphabet, width
        self.value = nn.Linear(policy.cfg.dim, 1, bias=False)
        nn.init.zeros_(self.value.weight)

    def forward(self, tokens: Int[Tensor, "B T"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B"]:
        """Scores of rows as `sft.rows` makes them; the mask is True on responses."""
        B, T = tokens.shape
        h, _ = self.trunk.hidden(tokens)  # [B T D]
        last = (mask * torch.arange(T)).argmax(1)
        return self.value(h[torch.arange(B), last])[:, 0]

    def score(self, pairs: Sequence[Pair]) -> Float[Tensor, "B"]:
        """Scores of (prompt, response) pairs. The thinking is taken out: only the answer is judged."""
        return self(*rows([(prompt, summary(text)) for prompt, text in pairs], self.alphabet, self.width))


def summary(response: str) -> str:
    """The response without its thinking; without an answer, what is left is an empty one."""
    return respond("", answer_of(response) or "")


def bradley_terry(taken: Float[Tensor, "N"], other: Float[Tensor, "N"]) -> Float[Tensor, ""]:
    """Mean of -log sigmoid(s_taken - s_other), in nats a pair; log 2 for a model that cannot tell."""
    return -F.logsigmoid(taken - other).mean()


class Preferences:
    """Training of a reward model on the reader's choices between two samples of `policy`. `advance` is one step."""

    def __init__(self, policy: Transformer, alphabet: Alphabet, width: int, lr: float = 1e-3, pairs: int = 128,
                 max_new: int = 40, seed: int = 0):  # fmt: skip
        self.policy, self.alphabet, self.max_new = policy, alphabet, max_new
        self.model = RewardModel(policy, alphabet, width)
        self.optimizer = make_optimizer(self.model, lr, weight_decay=0.0)
        self.problems, self.questions, self.seed = counting(), pairs, seed
        self.dice, self.step = torch.Generator().manual_seed(seed), 0

    def advance(self) -> dict[str, float]:
        """Fresh pairs, one step. The record: the loss, the share of pairs in which the taken one scores higher."""
        asked = [next(self.problems) for _ in range(self.questions)]
        chosen, other = self.choose(asked)
        scores = self.model.score([(p.prompt, t) for p, t in zip(asked * 2, chosen + other, strict=True)])
        taken, left = scores.chunk(2)
        loss = bradley_terry(taken, left)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return {"step": self.step, "loss": loss.item(), "agrees": (taken > left).float().mean().item()}

    def choose(self, asked: Sequence[Problem]) -> tuple[list[str], list[str]]:
        """Two samples for each prompt, (those taken, the others)."""
        texts = sample(self.policy, asked, self.alphabet, self.model.width, 2, self.max_new, self.dice)
        rng, chosen, other = random.Random(f"reader {self.seed} {self.step}"), [], []
        for problem, (a, b) in zip(asked, texts, strict=True):
            first = takes_first(problem, a, b, rng)
            chosen.append(a if first else b)
            other.append(b if first else a)
        return chosen, other


def sample(model: Transformer, asked: Sequence[Problem], alphabet: Alphabet, width: int, group: int, max_new: int,
           dice: torch.Generator, temperature: float = 1.0) -> list[list[str]]:  # fmt: skip
    """`group` responses to each problem, as texts."""
    prompts = alphabet.encode_prompts([p.prompt for p in asked], width)
    out = rollout(model, prompts, group, max_new, alphabet.eos, alphabet.pad, temperature, dice)
    texts = [alphabet.decode(row) for row in out.responses()]
    return [texts[i : i + group] for i in range(0, len(texts), group)]
