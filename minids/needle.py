"""A needle in a haystack: rows of tiny sentences, a fact to be found again in them, and the share of facts found.

Paper: DeepSeek-V3 section 4.3, figure 8, tests its 128K context so; the paper's haystacks are essays, ours generated.

    old foxes sleep .  code Mia 47 Mia  lamps glow .  code Ben 18 Ben  ...  cold boats turn .  code Mia  -> 47
                       needle                         one that looks alike                     question  answer

A *needle* says which code a name has. A *haystack* of S tokens holds the needle at a depth (0 first, 1 last), others
that look alike, filler between them, and ends with the question. The answer is one of 90 numbers: by chance 1.1 % are
right. A model must find the name's own needle, however far back.

A training *row* states facts and later states them again: the second statement can be known, the first cannot. Facts
come in two forms with separate values, "code Mia 47" and "gift Mia tea". So the form that is tested may be kept out
of long rows: then what a model finds at long distance, it has not been trained to find there.

Not in the paper: the language, one token a word, is this project's own.
Left out: needles whose answer takes more than one fact.
Notebook: 12_long_context.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from minids.model import Transformer


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NAMES = _words("Ada Ben Cleo Dan Eva Finn Gus Hana Ida Jon Kai Lea Mia Noah Olga Pia Quinn Rosa Sam Tom Uma Vera")
NUMBERS = tuple(str(n) for n in range(10, 100))
THINGS = _words(
    "tea milk rain snow bread honey salt soup jazz chess maps kites trains stars roses apples plums nuts rice corn "
    "pears figs dates mint gold silk wool clay ink glass"
)
FILLER = {
    "adjective": _words("old cold small green quick quiet round tall"),
    "noun": _words("foxes boats lamps hills birds doors clouds wheels rivers bells trees stones"),
    "verb": _words("sleep turn glow wait sing fall move rest shine grow drift shake"),
    "adverb": _words("softly slowly again often today alone together early"),
}
FORMS = {"code": NUMBERS, "gift": THINGS}  # the two forms of a fact, and what may stand last in them
WORDS = (".", *FORMS, *NAMES, *NUMBERS, *THINGS, *(word for words in FILLER.values() for word in words))
IDS = {word: i for i, word in enumerate(WORDS)}


def encode(text: str) -> list[int]:
    """Token numbers of words that are separated by spaces. KeyError for a word that is not in `WORDS`."""
    return [IDS[word] for word in text.split()]


def decode(tokens: Sequence[int] | Tensor) -> str:
    """The words of token numbers."""
    return " ".join(WORDS[int(t)] for t in tokens)


@dataclass(frozen=True)
class Haystack:
    """A text that ends in a question, as words; `place` is the position of the answer's token in it."""

    words: tuple[str, ...]
    answer: str
    place: int

    @property
    def text(self) -> str:
        return " ".join(self.words)


def haystack(length: int, depth: float, rng: random.Random, others: int = 3) -> Haystack:
    """`length` words that end in a question; its needle stands at `depth`, `others` of the same form at random places.

    Raises: ValueError when the needles do not fit.
    """
    room = length - 2 - 4 * (1 + others)  # for filler: the question takes 2 words, a needle 4
    if not 0 <= depth <= 1 or others < 0 or others >= len(NAMES) or (room < 3 and room != 0):
        raise ValueError(
            f"a haystack holds 4 words a needle, 2 for the question and at least 3 of filler, and depth lies in 0 to "
            f"1; got length {length}, depth {depth}, {others} others. Take a longer haystack or fewer others."
        )
    names = rng.sample(NAMES, 1 + others)
    needles = [("code", name, rng.choice(NUMBERS)) for name in names]
    sentences = [*filler(room, rng), *(_fact(*needle) for needle in needles[1:])]
    rng.shuffle(sentences)
    at = round(depth * len(sentences))
    sentences.insert(at, _fact(*needles[0]))
    words = [word for sentence in sentences for word in sentence]
    place = sum(map(len, sentences[:at])) + 2
    return Haystack((*words, "code", names[0]), needles[0][2], place)


def _fact(form: str, name: str, value: str) -> tuple[str, ...]:
    return form, name, value, name


def filler(length: int, rng: random.Random) -> list[tuple[str, ...]]:
    """Sentences of 3 to 5 words, `length` words in all (0, or 3 and more)."""
    sizes = []
    while length:
        sizes.append(rng.choice([n for n in (3, 4, 5) if length - n == 0 or length - n >= 3]))
        length -= sizes[-1]
    kinds = {3: ("noun", "verb"), 4: ("adjective", "noun", "verb"), 5: ("adjective", "noun", "verb", "adverb")}
    return [(*(rng.choice(FILLER[kind]) for kind in kinds[n]), ".") for n in sizes]


def row(
    length: int, rng: random.Random, forms: Sequence[str] = tuple(FORMS), facts: int = 3, times: int = 2
) -> tuple[list[int], list[bool]]:
    """(tokens, which of them can be known) of `facts` facts, each stated `times` times at random places among filler.

    Each fact takes one of `forms`. Known are the name that closes a fact, and the value when it was stated before.
    """
    stated = []
    for name in rng.sample(NAMES, facts):
        form = rng.choice(forms)
        stated += [_fact(form, name, rng.choice(FORMS[form]))] * times
    sentences = [*filler(length - 4 * times * facts, rng), *stated]
    rng.shuffle(sentences)
    tokens: list[int] = []
    known: list[bool] = []
    seen: set[tuple[str, ...]] = set()
    for sentence in sentences:
        tokens += [IDS[word] for word in sentence]
        known += [sentence in stated and (i == 3 or (i == 2 and sentence in seen)) for i in range(len(sentence))]
        seen |= {sentence} & set(stated)
    return tokens, known


def batch(
    size: int, length: int, rng: random.Random, forms: Sequence[str] = tuple(FORMS), facts: int = 3, times: int = 2
) -> tuple[Int[Tensor, "B S"], Bool[Tensor, "B S"]]:
    """`size` rows as tensors: (tokens, which of them can be known)."""
    rows = [row(length, rng, forms, facts, times) for _ in range(size)]
    return torch.tensor([tokens for tokens, _ in rows]), torch.tensor([known for _, known in rows])


def loss(model: Transformer, tokens: Int[Tensor, "B S"], known: Bool[Tensor, "B S"]) -> Float[Tensor, ""]:
    """Mean cross-entropy of the tokens that can be known, each predicted from what stands before it."""
    h, _ = model.hidden(tokens[:, :-1])
    asked = known[:, 1:]
    return F.cross_entropy(model.head(h[asked]), tokens[:, 1:][asked])


@torch.no_grad()
def retrieval(model: Transformer, length: int, depth: float, n: int = 32, seed: int = 0, others: int = 3) -> float:
    """Share of `n` haystacks whose question the model answers: its likeliest word of all is the needle's number."""
    rng, right = random.Random(f"{seed} {length} {depth}"), 0
    for start in range(0, n, 16):  # a few at a time: long ones take memory
        stacks = [haystack(length, depth, rng, others) for _ in range(min(16, n - start))]
        h, _ = model.hidden(torch.tensor([[IDS[word] for word in stack.words] for stack in stacks]))
        answers = torch.tensor([IDS[stack.answer] for stack in stacks])
        right += int((model.head(h[:, -1]).argmax(-1) == answers).sum())
    return right / n


def heat_map(
    model: Transformer, lengths: Sequence[int], depths: Sequence[float], n: int = 32, seed: int = 0
) -> list[list[float]]:
    """Shares found, [depths][lengths]: the needle test's figure."""
    return [[retrieval(model, length, depth, n, seed) for length in lengths] for depth in depths]
