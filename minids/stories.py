"""Short stories in English and Chinese, told from one world, and the judge that reads them.

Not in the paper: this project's own data, seeded, so that the course needs no download and each fact can be checked.
A plot is a function that lists events; the world (`minids.world`) takes part and refuses what does not fit. The grammar
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
from collections.abc import Callable
from dataclasses import dataclass

from minids.grammar import LANGUAGES, RULES, Event, Mentions, happen, read, resolve, write
from minids.lexicon import WORDS
from minids.world import Contradiction, Key, Value, World


@dataclass(frozen=True)
class Story:
    """`facts` is the world behind the text, the same in both languages; `questions` pairs each question with its answer."""

    text: str
    facts: dict[Key, Value]
    questions: tuple[tuple[str, str], ...]
    plot: str
    lang: str


@dataclass(frozen=True)
class Verdict:
    """What the judge found: `share` of the sentences that parse (0 to 1), `ok` when all parse and none contradicts another."""

    share: float
    ok: bool
    first_bad: str | None
    why: str | None
    sentences: int


class Plot:
    """A story being planned: draws words without repeating one, and keeps the events and the questions."""

    def __init__(self, rng: random.Random):
        self.rng, self.world = rng, World()
        self.events: list[Event] = []
        self.questions: list[Event] = []
        self._drawn: set[Value] = set()

    def draw(self, kind: str) -> str:
        free = [w for w in WORDS[kind] if w not in self._drawn]
        word = self.rng.choice(free)
        self._drawn.add(word)
        return word

    def some(self, kinds: str) -> list[str]:
        return [self.draw(kind) for kind in kinds.split()]

    def number(self, low: int, high: int) -> int:
        return self.rng.randint(low, high)

    def maybe(self, share: float = 0.5) -> bool:
        return self.rng.random() < share

    def say(self, rule: str, **slots: Value | Event) -> Event:
        event = Event(rule, _with_moods(slots, self.rng, rule))
        happen(event, self.world)
        self.events.append(event)
        return event

    def ask(self, rule: str, **slots: Value) -> None:
        event = Event(rule + "?", slots)
        happen(event, self.world)
        self.questions.append(event)

    def hero_and_friend(self) -> tuple[str, str]:
        a, b = self.some("person person")
        self.say("intro", a=a, trait=self.draw("trait"), home=self.draw("home"))
        if self.maybe(0.75):
            rel = self.draw("rel")
            self.say("friend", a=a, b=b, rel=rel)
            if self.maybe(0.3):
                self.ask("friend", a=a, b=b, rel=rel)
        else:
            self.say("sibling", a=a, b=b)
        if self.maybe(0.2):
            self.ask("home", a=a, home=self.world.facts["home", a])
        return a, b

    def close(self, a: str, b: str) -> None:
        """One to three sentences that end any story."""
        for rule, share in (("evening", 0.5), ("both", 0.6), ("moral", 0.4)):
            if self.maybe(share):
                self.say(rule, a=a, b=b)
        if self.maybe(0.5):
            self.say("glad", a=a)


def _with_moods(slots: dict, rng: random.Random, rule: str) -> dict:
    """Moods and times of day that a plot does not care about are drawn here."""
    free = {"gloom", "glad", "time"} - slots.keys()
    drawn = {mood: rng.choice(list(WORDS[mood])) for mood in sorted(free)}
    return {**slots, **{k: v for k, v in drawn.items() if k in _slots_of(rule)}}


def _slots_of(rule: str) -> set[str]:
    return {p.role for lang in LANGUAGES for phrase in RULES[rule].phrases[lang] for p in phrase.parts if not isinstance(p, str)}


def _hearsay(p: Plot, clause: Event, people: list[str]) -> Event:
    """Wrap a clause: c had said that d was sure that ... (one level for each of `people`)."""
    for person in people:
        clause = Event("say", {"c": person, "C": clause})
    return clause


# --- plots: each lists its events; names of rules are those of the phrase book


def lost(p: Plot) -> None:
    a, b = p.hero_and_friend()
    item, colour, here, there, far = p.some("item colour place place place")
    p.say("own", a=a, item=item, colour=colour)
    p.say("miss", a=a, item=item)
    if p.maybe(0.6):
        p.say("search", a=a, item=item, place=here, place2=there)
    p.say("gloomy", a=a)
    p.say("ask", a=a, b=b, item=item)
    clue = Event("saw", {"item": item, "place": far})
    p.say("tell", a=a, b=b, C=clue)
    p.say("find", a=a, item=item, place=far)
    if p.maybe():
        p.say("shine", item=item, colour=colour)
    p.say("thank", a=a, b=b)
    if p.maybe():
        p.say("careful", a=a, item=item)
    p.close(a, b)
    p.ask("colour", item=item, colour=colour)
    p.ask("where", item=item, place=far)
    p.ask("hint", a=a, b=b)


def relay(p: Plot) -> None:
    a, b = p.hero_and_friend()
    c, d, place = p.some("person person place")
    p.say("others", c=c, d=d)
    p.say("wonder", a=a, c=c)
    if p.maybe():
        p.say("gloomy", a=a)
    clause = Event("waits", {"c": c, "place": place})
    p.say("tell", a=a, b=b, C=_hearsay(p, clause, [d, b][: p.number(0, 1)] if p.maybe(0.2) else [d]))
    p.say("off", a=a, place=place)
    p.say("meet", a=a, c=c, place=place)
    if p.maybe():
        p.say("thank", a=a, b=b)
    p.close(a, c)
    p.ask("met", c=c, place=place)
    p.ask("hint", a=a, b=b)


def share(p: Plot) -> None:
    a, b = p.hero_and_friend()
    things, place, here = p.some("things place place")
    n, m = p.number(3, 12), p.number(2, 8)
    p.say("day", a=a, place=here)
    p.say("has", a=a, things=things, n=n)
    p.say("picks", a=a, things=things, m=m, place=place)
    total = n + m
    if p.maybe(0.3):
        lost_ones = p.number(1, min(4, total - 2))
        p.say("drops", a=a, things=things, m=lost_ones)
        total -= lost_ones
    if p.maybe():
        p.say("now", a=a, things=things, j=total)
    k = p.number(1, total - 1)
    p.say("beg", b=b)
    p.say("gives", a=a, b=b, things=things, k=k)
    p.say("now", a=a, things=things, j=total - k)
    p.say("thank", a=b, b=a)
    p.close(a, b)
    p.ask("howmany", a=a, things=things, j=total - k)
    p.ask("howmany", a=b, things=things, j=k)


def feast(p: Plot) -> None:
    a, b = p.hero_and_friend()
    (things,) = p.some("things")
    m, k = p.number(2, 5), p.number(2, 6)
    n = p.number(1, m * k - 1)
    p.say("has", a=a, things=things, n=n)
    p.say("hasmore", b=b, things=things, m=m * k - n)
    p.say("together", things=things, j=m * k)
    p.say("split", things=things, j=m * k, m=m, k=k)
    if p.maybe():
        p.say("thank", a=b, b=a)
    p.close(a, b)
    p.ask("total", things=things, j=m * k)
    p.ask("each", things=things, k=k)


def market(p: Plot) -> None:
    a, b = p.hero_and_friend()
    item, item2, colour, colour2, place = p.some("item item colour colour place")
    n = p.number(8, 30)
    k = p.number(2, n // 2)
    m = p.number(2, n - k - 2)
    p.say("coins", a=a, n=n)
    p.say("day", a=a, place=place)
    p.say("buy", a=a, item=item, colour=colour, k=k)
    p.say("purse", a=a, j=n - k)
    p.say("buy", a=a, item=item2, colour=colour2, k=m)
    p.say("purse", a=a, j=n - k - m)
    p.say("admire", a=a, b=b, item=item)
    p.close(a, b)
    p.ask("money", a=a, j=n - k - m)
    p.ask("price", item=item, k=k)
    p.ask("colour", item=item2, colour=colour2)


def planting(p: Plot) -> None:
    a, b = p.hero_and_friend()
    crop, place, animal = p.some("crop place animal")
    n = p.number(5, 15)
    k = p.number(1, n - 2)
    p.say("plant", a=a, crop=crop, n=n, place=place)
    p.say("ate", a=a, animal=animal, crop=crop, k=k)
    p.say("gloomy", a=a)
    p.say("water", a=a, b=b)
    p.say("grew", a=a, crop=crop, j=n - k)
    p.close(a, b)
    p.ask("grown", a=a, crop=crop, j=n - k)
    p.ask("thief", crop=crop, animal=animal)


def race(p: Plot) -> None:
    a, b = p.hero_and_friend()
    c, place, item, colour = p.some("person place item colour")
    p.say("third", c=c)
    p.say("race", a=a, b=b, c=c, place=place)
    one, two, three = p.rng.sample([a, b, c], 3)
    pairs = [(two, three), (one, two)]
    for fast, slow in p.rng.sample(pairs, 2):
        p.say("faster", a=fast, b=slow)
    p.say("podium", a=one, b=two, c=three)
    p.say("cheer", b=one, c=three)
    p.say("prize", a=one, item=item, colour=colour)
    p.close(one, three)
    p.ask("first", a=one)
    p.ask("last", a=three)
    p.ask("colour", item=item, colour=colour)


def swap(p: Plot) -> None:
    a, b = p.hero_and_friend()
    item, item2, colour, colour2, place = p.some("item item colour colour place")
    p.say("own", a=a, item=item, colour=colour)
    p.say("own", a=b, item=item2, colour=colour2)
    p.say("day", a=a, place=place)
    p.say("admire", a=a, b=b, item=item)
    if p.maybe():
        p.say("admire", a=b, b=a, item=item2)
    if p.maybe(0.7):
        p.say("swap", a=a, b=b, item=item, item2=item2)
    else:
        p.say("lend", a=a, b=b, item=item)
    p.say("thank", a=b, b=a)
    p.close(a, b)
    p.ask("owner", item=item, a=p.world.facts["owner", item])
    p.ask("owner", item=item2, a=p.world.facts["owner", item2])
    p.ask("colour", item=item2, colour=colour2)


def walk(p: Plot) -> None:
    a, b = p.hero_and_friend()
    first, second, third = p.some("place place place")
    one, two = p.some("animal animal")
    p.say("day", a=a, place=first)
    p.say("sees", a=a, animal=one, place=first)
    p.say("greet", a=a, animal=one)
    p.say("goes", a=a, place=first, place2=second)
    p.say("sees", a=a, animal=two, place=second)
    p.say("greet", a=a, animal=two)
    p.say("goes", a=a, place=second, place2=third)
    p.close(a, b)
    p.ask("saw", a=a, place=first, animal=one)
    p.ask("next", a=a, place=second, place2=third)
    p.ask("saw", a=a, place=second, animal=two)


def rescue(p: Plot) -> None:
    a, b = p.hero_and_friend()
    animal, pet, place = p.some("animal pet place")
    p.say("stuck", a=a, animal=animal, place=place)
    p.say("heavy", a=a, animal=animal)
    p.say("call", a=a, b=b, animal=animal)
    p.say("free", a=a, b=b, animal=animal)
    p.say("name", a=p.rng.choice([a, b]), animal=animal, pet=pet)
    p.say("petend", pet=pet)
    p.close(a, b)
    p.ask("stuck", animal=animal, place=place)
    p.ask("species", pet=pet, animal=animal)


def present(p: Plot) -> None:
    a, b = p.hero_and_friend()
    item, colour, one, two = p.some("item colour item item")
    p.say("birthday", a=a, b=b)
    p.say("gift", a=a, item=item, colour=colour)
    for guess in (one, two)[: p.number(1, 2)]:
        p.say("guess", b=b, guess=guess)
        p.say("wrong", a=a, guess=guess)
    p.say("unwrap", a=a, b=b, item=item)
    p.say("shine", item=item, colour=colour)
    p.say("thank", a=b, b=a)
    p.close(a, b)
    p.ask("owner", item=item, a=b)
    p.ask("colour", item=item, colour=colour)


def belief(p: Plot) -> None:
    a, b = p.hero_and_friend()
    item, colour, here, there = p.some("item colour spot spot")
    p.say("own", a=a, item=item, colour=colour)
    p.say("put", a=a, b=b, item=item, spot=here)
    p.say("moves", a=a, b=b, item=item, spot=here, spot2=there)
    p.say("thinks", a=a, item=item, spot=here)
    if p.maybe(0.6):
        p.say("knows", b=b, C=Event("believes", {"a": a, "item": item, "spot": here}))
    p.say("shows", a=a, b=b, item=item, spot=there)
    p.close(a, b)
    p.ask("looked", a=a, item=item, spot=here)
    p.ask("really", item=item, spot=there)
    p.ask("mover", b=b, item=item, spot2=there)


def treasure(p: Plot) -> None:
    a, b = p.hero_and_friend()
    item, colour = p.some("item colour")
    holders = p.some("holder holder holder")[: p.number(2, 3)]
    p.say("own", a=a, item=item, colour=colour)
    inner = Event("plain", {"holder": holders[0]})
    for holder in holders[1:]:
        inner = Event("within", {"holder": holder, "Y": inner})
    p.say("hide", a=a, item=item, Y=inner)
    p.say("seek", b=b, item=item)
    if p.maybe():
        p.say("gloomy", a=b)
    for outer, inner_one in zip(holders, holders[1:], strict=False):
        p.say("opens", b=b, holder=outer, holder2=inner_one)
    p.say("gets", b=b, holder=holders[-1], item=item)
    p.close(a, b)
    p.ask("inside", item=item, holder=holders[-1])
    p.ask("holder", holder=holders[0], holder2=holders[1])
    p.ask("colour", item=item, colour=colour)


def chain(p: Plot) -> None:
    a, b = p.hero_and_friend()
    (treat,) = p.some("treat")
    p.say("bakes", a=a, x=treat)
    np = Event("thing", {"x": treat})
    for step in range(p.number(2, 3)):
        x, verb = p.some("animal took" if step == 0 else "animal verb")
        role = "took" if step == 0 else "verb"
        p.say("steals" if step == 0 else "chases", x=x, X=np, **{role: verb})
        p.ask("taken" if step == 0 else "target", x=x, y=np.head or "", **{role: verb})
        np = Event("thief" if step == 0 else "doer", {"x": x, "X": np, role: verb})
    p.say("scolds", a=a, X=np)
    p.close(a, b)


PLOTS: dict[str, Callable[[Plot], None]] = {
    f.__name__: f
    for f in (
        lost, relay, share, feast, market, planting, race, swap, walk, rescue, present, belief, treasure, chain,
    )
}  # fmt: skip
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
