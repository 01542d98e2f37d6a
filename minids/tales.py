"""Fourteen plots: each draws its people and things and lists what happens, sentence by sentence.

Not in the paper: this project's own data. A plot is a function over a `Plot`, which draws words without repeating one
and asks the world (`minids.world`) about every event: a plot that contradicts itself stops there. The names of events
are those of the phrase book (`minids.phrases`, `minids.events`), where they are said in two languages.

Differs from the paper: nothing, the paper has no such part.
Left out: plots longer than a page.
Notebook: 01_tokens.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache
from itertools import pairwise

from minids.grammar import LANGUAGES, RULES, Event, happen
from minids.lexicon import WORDS, kind_of
from minids.world import Value, World

_DETAILS = {  # event -> the slots to draw, the questions that may ask about it
    "wears": ("garment colour feet colour2", "wore shod"),
    "likes": ("hobby hobby2", "likes"),
    "meal": ("food food2 food3", "meal"),
    "age": ("n", "age"),
    "weather": ("", ""),
    "pet": ("pet animal", "species"),
}


class Plot:
    """A story being planned: draws words without repeating one, and keeps the events and the questions."""

    def __init__(self, rng: random.Random):
        self.rng, self.world = rng, World()
        self.events: list[Event] = []
        self.questions: list[Event] = []
        self._drawn: set[Value] = set()

    def draw(self, kind: str) -> str:
        word = self.rng.choice([w for w in WORDS[kind] if w not in self._drawn])
        self._drawn.add(word)
        return word

    def some(self, kinds: str) -> list[str]:
        return [self.draw(kind) for kind in kinds.split()]

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
        self.details(a, b)
        return a, b

    def details(self, a: str, b: str) -> None:
        """One to three things about the people that the plot does not need: facts to remember among others."""
        who = self.rng.choice([a, a, b])
        for rule in self.rng.sample(list(_DETAILS), self.rng.randint(1, 3)):
            roles, questions = _DETAILS[rule]
            slots = {
                role: self.rng.randint(4, 12) if role == "n" else self.draw(kind_of(role)) for role in roles.split()
            }
            self.say(rule, a=who, **slots)
            if questions and self.maybe(0.3):
                self.ask(self.rng.choice(questions.split()), a=who, **slots)

    def bystander(self) -> str | None:
        """Half of the time, one more child who may know something."""
        if not self.maybe():
            return None
        c = self.draw("person")
        self.say("third", c=c)
        return c

    def close(self, a: str, b: str) -> None:
        """One to three sentences that end any story."""
        if self.maybe():
            self.say("evening")
        for rule in self.rng.sample(["both", "moral", "glad"], self.rng.randint(1, 2)):
            self.say(rule, a=a, b=b)


_COLOUR = ("gloom", "glad", "time", "then", "food", "sky", "noise", "place", "wild", "dream", "hobby", "trait")


def _with_moods(slots: dict, rng: random.Random, rule: str) -> dict:
    """Moods, times of day and other colour that a plot does not care about are drawn here."""
    free = set(_COLOUR) - slots.keys()
    drawn = {mood: rng.choice(list(WORDS[mood])) for mood in sorted(free)}
    return {**slots, **{k: v for k, v in drawn.items() if k in _slots_of(rule)}}


@cache
def _slots_of(rule: str) -> set[str]:
    return {slot.role for lang in LANGUAGES for phrase in RULES[rule].phrases[lang] for slot in phrase.slots}


def _hearsay(clause: Event, people: list[str]) -> Event:
    """Wrap a clause, once for each of `people`: Tom said that Mia was sure that ..."""
    for person in people:
        clause = Event("say", {"c": person, "C": clause})
    return clause


# --- plots: each lists its events; names of rules are those of the phrase book


def lost(p: Plot) -> None:
    a, b = p.hero_and_friend()
    item, colour, here, there, far = p.some("item colour place place place")
    c = p.bystander()
    p.say("own", a=a, item=item, colour=colour)
    p.say("miss", a=a, item=item)
    if p.maybe(0.6):
        p.say("search", a=a, item=item, place=here, place2=there)
    p.say("gloomy", a=a)
    p.say("ask", a=a, b=b, item=item)
    clue = Event("saw", {"item": item, "place": far})
    if c:
        clue = _hearsay(clue, [c])
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
    c, d, e, place = p.some("person person person place")
    p.say("others", c=c, d=d)
    people = [d]
    if p.maybe():
        p.say("third", c=e)
        people = p.rng.sample([d, e], 2)
    p.say("wonder", a=a, c=c)
    if p.maybe():
        p.say("gloomy", a=a)
    clause = Event("waits", {"c": c, "place": place})
    p.say("tell", a=a, b=b, C=_hearsay(clause, people))
    p.say("off", a=a, place=place)
    p.say("meet", a=a, c=c, place=place)
    if p.maybe():
        p.say("thank", a=a, b=b)
    p.close(a, c)
    p.ask("met", c=c, place=place)
    p.ask("hint", a=a, b=b)


def share(p: Plot) -> None:
    a, b = p.hero_and_friend()
    things, place = p.some("things place")
    n, m = p.rng.randint(3, 12), p.rng.randint(2, 8)
    p.say("day", a=a, place=place)
    p.say("has", a=a, things=things, n=n)
    p.say("picks", a=a, things=things, m=m, place=place)
    total = n + m
    if p.maybe(0.3):
        lost_ones = p.rng.randint(1, min(4, total - 2))
        p.say("drops", a=a, things=things, m=lost_ones)
        total -= lost_ones
    if p.maybe():
        p.say("now", a=a, things=things, j=total)
    k = p.rng.randint(1, total - 1)
    p.say("beg", b=b)
    p.say("gives", a=a, b=b, things=things, k=k)
    p.say("left", a=a, things=things, j=total - k)
    p.say("thank", a=b, b=a)
    p.close(a, b)
    p.ask("howmany", a=a, things=things, j=total - k)
    p.ask("howmany", a=b, things=things, j=k)


def feast(p: Plot) -> None:
    a, b = p.hero_and_friend()
    (things,) = p.some("things")
    m, k = p.rng.randint(2, 5), p.rng.randint(2, 6)
    n = p.rng.randint(1, m * k - 1)
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
    item, item2, colour, colour2 = p.some("item item colour colour")
    n = p.rng.randint(8, 30)
    k = p.rng.randint(2, n // 2)
    m = p.rng.randint(2, n - k - 2)
    p.say("coins", a=a, n=n)
    p.say("day", a=a, place="at the market")
    p.say("buy", a=a, item=item, colour=colour, k=k)
    p.say("purse", a=a, j=n - k)
    p.say("buy", a=a, item=item2, colour=colour2, k=m)
    p.say("purse", a=a, j=n - k - m)
    p.say("admire", a=a, b=b, item=item)
    p.close(a, b)
    p.ask("money", a=a, j=n - k - m)
    p.ask("price", item=item, k=k)
    p.ask("colour", item=item2, colour=colour2)


_FIELDS = ("in the garden", "in the orchard", "on the hill", "near the well", "behind the school", "near the mill")


def planting(p: Plot) -> None:
    a, b = p.hero_and_friend()
    crop, animal = p.some("crop animal")
    place = p.rng.choice(_FIELDS)
    n = p.rng.randint(5, 15)
    k = p.rng.randint(1, n - 2)
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
    for guess in (one, two)[: p.rng.randint(1, 2)]:
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
    c = p.bystander()
    p.say("own", a=a, item=item, colour=colour)
    p.say("put", a=a, b=b, item=item, spot=here)
    p.say("moves", a=a, b=b, item=item, spot=here, spot2=there)
    p.say("thinks", a=a, item=item, spot=here)
    if p.maybe(0.6):
        thought = Event("believes", {"a": a, "item": item, "spot": here})
        p.say("knows", b=b, C=thought)
        if c:
            p.say("knows", b=c, C=Event("aware", {"b": b, "C": thought}))
    p.say("shows", a=a, b=b, item=item, spot=there)
    p.close(a, b)
    p.ask("looked", a=a, item=item, spot=here)
    p.ask("really", item=item, spot=there)
    p.ask("mover", b=b, item=item, spot2=there)


def treasure(p: Plot) -> None:
    a, b = p.hero_and_friend()
    item, colour = p.some("item colour")
    holders = p.some("holder holder holder holder")[: p.rng.randint(2, 4)]
    p.say("own", a=a, item=item, colour=colour)
    inner = Event("plain", {"holder": holders[0]})
    for holder in holders[1:]:
        inner = Event("within", {"holder": holder, "Y": inner})
    p.say("hide", a=a, item=item, Y=inner)
    p.say("seek", b=b, item=item)
    if p.maybe():
        p.say("gloomy", a=b)
    for outer, within in pairwise(holders):
        p.say("opens", b=b, holder=outer, holder2=within)
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
    for step in range(p.rng.randint(2, 3)):
        x, verb = p.some("animal took" if step == 0 else "animal verb")
        role = "took" if step == 0 else "verb"
        p.say("steals" if step == 0 else "chases", x=x, X=np, **{role: verb})
        p.ask("taken" if step == 0 else "target", x=x, y=np.head or "", **{role: verb})
        np = Event("thief" if step == 0 else "doer", {"x": x, "X": np, role: verb})
    p.say("scolds", a=a, X=np)
    p.close(a, b)


_TALES = (lost, relay, share, feast, market, planting, race, swap, walk, rescue, present, belief, treasure, chain)
PLOTS: dict[str, Callable[[Plot], None]] = {tale.__name__: tale for tale in _TALES}
