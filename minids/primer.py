"""First readers: a few short sentences about two or three children, in which nearly every word has come before.

Not in the paper: this project's own data. A story names its people every ten words or so, among thousands of words that
need no memory, and a small model learns those first; meanwhile attention, which then adds little but noise, is turned
down, and a run of half an hour never learns to look back. In a primer nearly the only question is who or what is named
next, so copying from the context is learnt in two hundred steps, and it stays when the stories come (`corpus`,
`Mixture(primer=..)`). `tests/benchmarks/copying.py` measures it.

    Tom has the red kite. Mia has the blue drum. Mia sees Tom. "Hello, Tom," says Mia. The kite is red. ...

Differs from the paper: it needs no such beginning; it reads 14.8 T tokens, and more of what asks for memory.
Left out: questions, and a plot.
Notebook: 08_pretrain.
"""

from __future__ import annotations

import random
from typing import NamedTuple

from minids.lexicon import WORDS, form

SHORTEST, LONGEST = 5, 10  # sentences

PEOPLE = """
en {a} sees {b}.
en {a} and {b} play.
en "Hello, {a}," says {b}.
en "Where is {a}?" asks {b}.
en {a} runs. {b} runs to {a}.
en {b} looks for {a}. {a} smiles at {b}.
zh {a}看见了{b}。
zh {a}和{b}在玩。
zh {b}说：“你好，{a}。”
zh {b}问：“{a}在哪里？”
zh {a}跑了，{b}跟着{a}跑。
zh {b}在找{a}，{a}对{b}笑。
"""
THINGS = """
en {a} has the {colour} {item}.
en The {item} is {colour}.
en {a} shows {b} the {colour} {item}.
en {b} asks {a} for the {item}.
en {a} likes the {item}.
zh {a}有{colour}的{item}。
zh {item}是{colour}的。
zh {a}给{b}看{colour}的{item}。
zh {b}问{a}要{item}。
zh {a}喜欢{item}。
"""


class Owner(NamedTuple):
    """A child with a thing."""

    name: str
    colour: str
    item: str


def primer(seed: int) -> str:
    """The primer of this seed, in English or Chinese."""
    rng = random.Random(f"primer {seed}")
    lang = rng.choice(("en", "zh"))
    names, colours, items = (rng.sample(sorted(WORDS[kind]), 3) for kind in ("person", "colour", "item"))
    cast = [Owner(*row) for row in zip(names, colours, items, strict=True)][: rng.choice((2, 2, 3))]
    first = [_say(_lines(THINGS, lang)[0], who, who, lang) for who in cast]
    rest = dict.fromkeys(_sentence(cast, lang, rng) for _ in range(rng.randint(SHORTEST, LONGEST)))  # each once
    return (" " if lang == "en" else "").join([*first, *rest])


def _sentence(cast: list[Owner], lang: str, rng: random.Random) -> str:
    a, b = rng.sample(cast, 2)
    return _say(rng.choice(_lines(rng.choice((PEOPLE, PEOPLE, THINGS)), lang)), a, b, lang)


def _lines(table: str, lang: str) -> list[str]:
    return [line[3:] for line in table.splitlines() if line.startswith(lang)]


def _say(line: str, a: Owner, b: Owner, lang: str) -> str:
    words = {"a": ("person", a.name), "b": ("person", b.name), "colour": ("colour", a.colour), "item": ("item", a.item)}
    return line.format(**{slot: form(kind, "", word, lang) for slot, (kind, word) in words.items()})
