"""Short stories in English and Chinese, told from one world, and the judge that reads them.

Not in the paper: this project's own data, seeded, so that the course needs no download and each fact can be checked.
A plot (`minids.tales`) lists events; the world (`minids.world`) refuses what does not fit. The grammar
(`minids.grammar`) then says each event in English or in Chinese: same seed, same facts, two texts.

    story(7, "en")         Story: text, facts, questions, plot
    grammatical(text)      Verdict: share of sentences that parse, ok when all do and agree with each other

Differs from the paper: DeepSeek-V3 reads 14.8T tokens of other people's text; this is a toy language of our own.
Left out: anything a reader could not check from the text alone.
Notebook: 01_tokens; every chapter that trains a model uses these stories.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

from minids.grammar import LANGUAGES, Mentions, happen, read, resolve, write
from minids.tales import PLOTS, Plot
from minids.world import Contradiction, Key, Value, World


@dataclass(frozen=True)
class Story:
    """`facts` is the world behind the text, the same in both languages; `questions` holds (question, answer) pairs."""

    text: str
    facts: dict[Key, Value]
    questions: tuple[tuple[str, str], ...]
    plot: str
    lang: str


@dataclass(frozen=True)
class Verdict:
    """What the judge found.

    `share` (0 to 1) of the sentences parse; `ok` when all do and none contradicts another; `first_bad` is the first
    sentence that does not parse or does not fit, and `why` says what is wrong with it.
    """

    share: float
    ok: bool
    first_bad: str | None
    why: str | None
    sentences: int


_QUESTIONS = 2  # asked at the end of a story


def story(seed: int, lang: str = "en") -> Story:
    """The story of `seed`: the same world in either language, told with phrasings drawn for that language."""
    if lang not in LANGUAGES:
        raise ValueError(f"a story is told in one of {LANGUAGES}; got lang={lang!r}. Choose one of the two.")
    rng = random.Random(f"story {seed}")
    name = rng.choice(list(PLOTS))
    plot = Plot(rng)
    PLOTS[name](plot)
    asked = rng.sample(plot.questions, min(_QUESTIONS, len(plot.questions)))
    voice = random.Random(f"voice {seed} {lang}")
    mentions, said = Mentions(), []
    for event in plot.events:
        mentions = mentions.next_sentence()
        said.append(write(event, lang, mentions, voice))
    questions = tuple(_question(write(q, lang, Mentions(), voice), lang) for q in asked)
    body = (" " if lang == "en" else "").join(said)
    lines = [f"{q_word}{q}\n{a_word}{a}" for q_word, a_word in [ASKS[lang]] for q, a in questions]
    return Story("\n".join([body, *lines]), plot.world.facts, questions, name, lang)


ASKS = {"en": ("Question: ", "Answer: "), "zh": ("问题：", "答案：")}


def _question(text: str, lang: str) -> tuple[str, str]:
    question, answer = text.removeprefix(ASKS[lang][0]).split(ASKS[lang][1])
    return question.strip(), answer.strip()


# --- the judge

_ENDS = {
    "en": re.compile(r'(?<=[.!?])\s+(?=[A-Z"])|(?<=[.!?]")\s+(?=[A-Z"])'),
    "zh": re.compile(r"(?<=[。！？]”)|(?<=[。！？])(?!”)"),
}


def sentences(text: str, lang: str) -> list[tuple[str, str]]:
    """The sentences of `text`, each with its category: "S" told, "Q" a question with its answer."""
    asks, answers = ASKS[lang]
    found: list[tuple[str, str]] = []
    for line in text.split("\n"):
        if line.startswith(answers) and found and found[-1][1] == "Q":
            found[-1] = (found[-1][0] + (" " if lang == "en" else "") + line, "Q")
        elif line.startswith(asks):
            found.append((line, "Q"))
        else:
            found += [(part.strip(), "S") for part in _ENDS[lang].split(line) if part.strip()]
    return found


def grammatical(text: str, lang: str | None = None) -> Verdict:
    """Parse `text` as one story. A text cut off inside a sentence has a last sentence that does not parse."""
    lang = lang or ("zh" if re.search(r"[一-鿿]", text) else "en")
    if lang not in LANGUAGES:
        raise ValueError(f"the judge reads {LANGUAGES}; got lang={lang!r}. Choose one, or None to find out.")
    world, mentions, parsed, first_bad, why = World(), Mentions(), 0, None, None
    units = sentences(text, lang)
    for unit, category in units:
        mentions = mentions.next_sentence() if category == "S" else Mentions()
        options = list(read(unit, lang, category))
        parsed += bool(options)
        world, mentions, problem = _accept(options, world, mentions)
        if problem and first_bad is None:
            first_bad, why = unit, problem
    share = parsed / len(units) if units else 0.0
    return Verdict(share, bool(units) and first_bad is None, first_bad, why, len(units))


def _accept(options: list, world: World, mentions: Mentions) -> tuple[World, Mentions, str | None]:
    """The world after the first reading that fits; else the world as it was, and why none does."""
    why = "not a sentence of the grammar"
    for option in options:
        trial, heard = world.copy(), mentions.copy()
        try:
            happen(resolve(option, heard), trial)
        except Contradiction as problem:
            why = str(problem)
        else:
            return trial, heard, None
    return world, mentions, why
