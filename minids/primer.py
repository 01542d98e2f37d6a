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

from minids.lexicon import WORDS, form

SHORTEST, LONGEST = 5, 10  # sentences

# The first English and the first Chinese line of FACTS introduce a child.
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
FACTS = (
    """
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
""",
    """
en The {animal} of {a} is called {pet}.
en The {animal} runs to {a}.
en {b} sees {pet}, the {animal}.
en {pet} and {a} play.
en {a} looks for the {animal}.
zh {a}养了一只{animal}，名叫{pet}。
zh {animal}跑向{a}。
zh {b}看见了{animal}{pet}。
zh {pet}和{a}在玩。
zh {a}在找{animal}。
""",
    """
en {a} is {place}.
en {b} finds {a} {place}.
en {a} plays {place}.
en "{a} is {place}," says {b}.
zh {a}在{place}。
zh {b}在{place}找到了{a}。
zh {a}在{place}玩。
zh {b}说：“{a}在{place}。”
""",
)
KINDS = {"a": "person", "colour": "colour", "item": "item", "animal": "animal", "pet": "pet", "place": "place"}
Child = dict[str, str]  # slot -> word: her name as "a", and what is hers


def primer(seed: int) -> str:
    """The primer of this seed, in English or Chinese."""
    rng = random.Random(f"primer {seed}")
    lang, facts = rng.choice(("en", "zh")), rng.choice(FACTS)
    drawn = [rng.sample(sorted(WORDS[kind]), 3) for kind in KINDS.values()]
    cast: list[Child] = [dict(zip(KINDS, row, strict=True)) for row in zip(*drawn, strict=True)][
        : rng.choice((2, 2, 3))
    ]
    first = [_say(_lines(facts, lang)[0], child, child, lang) for child in cast]
    rest = [_sentence(cast, rng.choice((PEOPLE, facts)), lang, rng) for _ in range(rng.randint(SHORTEST, LONGEST))]
    return (" " if lang == "en" else "").join(dict.fromkeys(first + rest))  # a sentence comes once


def _sentence(cast: list[Child], table: str, lang: str, rng: random.Random) -> str:
    a, b = rng.sample(cast, 2)
    return _say(rng.choice(_lines(table, lang)), a, b, lang)


def _lines(table: str, lang: str) -> list[str]:
    return [line[3:] for line in table.splitlines() if line.startswith(lang)]


def _say(line: str, a: Child, b: Child, lang: str) -> str:
    words = {slot: form(kind, "", a[slot], lang) for slot, kind in KINDS.items()}
    return line.format(**words, b=form("person", "", b["a"], lang))
