"""One grammar, run both ways: each phrase of the phrase book writes sentences and reads them back.

Not in the paper: this project's own data, and its judge. A phrase is cut into literal text and typed slots. Writing
fills the slots; reading matches a regular expression made of the same parts, and a slot that holds a phrase is read by
recursion. A pronoun may stand for a person only while this and the last sentence name nobody else of that gender; the
writer keeps the rule and the reader uses it to find who is meant.

    Rule    what can happen     name, category, effects, its phrases per language
    Event   what happened       a rule and its slots: {"a": "Mia", "item": "kite", "C": Event(...)}
    Reading what a sentence may say, before its pronouns are known

Differs from the paper: nothing, the paper has no such part.
Left out: probabilities; a sentence is in the grammar or not.
Notebook: 01_tokens.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache

from minids.events import EVENTS
from minids.lexicon import NUMBER_ROLES, PRONOUN_FORMS, form, gender, kind_of, pronoun, readings, settles
from minids.phrases import PHRASES
from minids.world import INTRODUCED, Contradiction, Value, World

LANGUAGES = ("en", "zh")
_SLOT = re.compile(r"\{(\w+)(?:\.(\w+))?\}")
_NESTED = ("C", "X", "Y")
_PRONOUN_SHARE = 0.75  # how often a person who may be called "she" is


@dataclass(frozen=True)
class Slot:
    role: str
    kind: str
    form: str
    capital: bool  # at the start of a sentence or of a speech

    def write(self, word: Value, slots: Mapping, lang: str) -> str:
        count = slots[self.form] if self.form in NUMBER_ROLES else None
        return form(self.kind, self.form, word, lang, count)


@dataclass(frozen=True)
class Phrase:
    rule: str
    lang: str
    parts: tuple[str | Slot, ...]

    @property
    def slots(self) -> list[Slot]:
        return [part for part in self.parts if isinstance(part, Slot)]


@dataclass(frozen=True)
class Rule:
    name: str
    category: str  # "S" a sentence, else the kind of slot that it fills
    effects: tuple[str, ...]
    phrases: dict[str, tuple[Phrase, ...]]


@dataclass(frozen=True)
class Event:
    rule: str
    slots: Mapping[str, Value | Event]

    @property
    def head(self) -> Value | None:
        """The word that a described thing is about: the dog, in `the dog that woke up the cat`."""
        value = self.slots.get("x", self.slots.get("holder"))
        return value if isinstance(value, str) else None


@dataclass(frozen=True)
class Reading:
    phrase: Phrase
    texts: tuple[str | Reading, ...]  # one for each slot, in order


@dataclass
class Mentions:
    """Who was named in this sentence and in the one before: the people a pronoun can stand for."""

    now: set[str] = field(default_factory=set)
    before: set[str] = field(default_factory=set)

    def only(self, which: str) -> str | None:
        people = [p for p in self.now | self.before if gender(p) == which]
        return people[0] if len(people) == 1 else None

    def next_sentence(self) -> Mentions:
        return Mentions(set(), set(self.now))

    def copy(self) -> Mentions:
        return Mentions(set(self.now), set(self.before))


def _compile_phrase(rule: str, lang: str, text: str, sentence: bool) -> Phrase:
    parts: list[str | Slot] = []
    end = 0
    for match in _SLOT.finditer(text):
        if match.start() > end:
            parts.append(text[end : match.start()])
        role = match[1]
        starts = (match.start() == 0 and sentence) or text[match.start() - 1] == '"'
        kind = role if role in _NESTED else kind_of(role)
        parts.append(Slot(role, kind, match[2] or "", lang == "en" and starts))
        end = match.end()
    return Phrase(rule, lang, (*parts, text[end:]) if text[end:] else tuple(parts))


def _read_rules(book: str) -> dict[str, Rule]:
    rules: dict[str, Rule] = {}
    for block in re.split(r"\n(?! )", book):
        head, *lines = block.splitlines()
        name, _, effects = head.partition(":")
        category, name = name.split() if " " in name else ("S", name)
        name += "?" if category == "Q" else ""
        said = [(line[2:4], line[5:]) for line in lines]
        phrases = {
            lang: tuple(_compile_phrase(name, lang, text, category == "S") for code, text in said if code == lang)
            for lang in LANGUAGES
        }
        kept = tuple(e.strip() for e in effects.split(" ; ") if e.strip())
        rules[name] = Rule(name, category, kept, phrases)
    return rules


RULES = _read_rules(PHRASES + "\n" + EVENTS)


# --- writing


def write(event: Event, lang: str, mentions: Mentions, rng: random.Random) -> str:
    """Say `event` in one of its phrases, with pronouns where the rule for them allows."""
    phrase = rng.choice(RULES[event.rule].phrases[lang])
    text = ""
    for part in phrase.parts:
        text += part if isinstance(part, str) else _write_slot(part, event, lang, mentions, rng)
    return text


def _write_slot(slot: Slot, event: Event, lang: str, mentions: Mentions, rng: random.Random) -> str:
    value = event.slots[slot.role]
    if isinstance(value, Event):
        return write(value, lang, mentions, rng)
    text = slot.write(value, event.slots, lang)
    if slot.kind == "person" and settles(slot.kind, slot.form):
        known = mentions.only(gender(str(value))) == value
        if slot.form in PRONOUN_FORMS and known and rng.random() < _PRONOUN_SHARE:
            text = pronoun(slot.form, str(value), lang)
        mentions.now.add(str(value))
    return text[0].upper() + text[1:] if slot.capital else text


# --- reading


@cache
def _pattern(phrase: Phrase) -> re.Pattern[str]:
    return re.compile(
        "".join(re.escape(p) if isinstance(p, str) else _alternatives(p, phrase.lang) for p in phrase.parts)
    )


@cache
def _alternatives(slot: Slot, lang: str) -> str:
    if slot.kind in _NESTED:
        return "(.+)"
    texts = sorted(readings(slot.kind, slot.form, lang), key=len, reverse=True)
    return "(" + "|".join(re.escape(t[0].upper() + t[1:] if slot.capital else t) for t in texts) + ")"


@cache
def _anchored(lang: str, category: str) -> list[tuple[str, Phrase]]:
    """The phrases of a category, each with the longest text that it cannot do without."""
    phrases = [phrase for rule in RULES.values() if rule.category == category for phrase in rule.phrases[lang]]
    return [(max([p for p in phrase.parts if isinstance(p, str)], key=len, default=""), phrase) for phrase in phrases]


def read(text: str, lang: str, category: str = "S") -> Iterator[Reading]:
    """Every way to read `text` as a phrase of `category`."""
    for anchor, phrase in _anchored(lang, category):
        if anchor in text:  # far cheaper than the pattern, and it rules out nearly all
            yield from _read_phrase(phrase, text)


def _read_phrase(phrase: Phrase, text: str) -> Iterator[Reading]:
    match = _pattern(phrase).fullmatch(text)
    if not match:
        return
    choices = [
        tuple(read(found, phrase.lang, slot.kind)) if slot.kind in _NESTED else (found,)
        for slot, found in zip(phrase.slots, match.groups(), strict=True)
    ]
    for texts in itertools.product(*choices):
        yield Reading(phrase, texts)


def resolve(reading: Reading, mentions: Mentions) -> Event:
    """The event that a reading stands for, its pronouns resolved. Raises Contradiction where nothing fits."""
    slots: dict[str, Value | Event] = {}
    typed = list(zip(reading.phrase.slots, reading.texts, strict=True))
    for slot, text in typed:
        if isinstance(text, Reading):
            slots[slot.role] = resolve(text, mentions)
        elif settles(slot.kind, slot.form):
            value = _settle(slot, text, reading.phrase.lang, mentions)
            if slots.setdefault(slot.role, value) != value:
                raise Contradiction(f"{slot.role} is both {slots[slot.role]} and {value}")
    for slot, text in typed:
        if isinstance(text, str):
            _agree(slot, text, slots, reading.phrase.lang)
    return Event(reading.phrase.rule, slots)


def _settle(slot: Slot, text: str, lang: str, mentions: Mentions) -> Value:
    known = readings(slot.kind, slot.form, lang)
    words = known.get(text) or known[text[0].lower() + text[1:]]
    if slot.kind != "person":
        return words[0]
    person = str(words[0]) if len(words) == 1 else mentions.only(gender(str(words[0])))
    if person is None:
        raise Contradiction(f"it is not clear who '{text}' is")
    mentions.now.add(person)
    return person


def _agree(slot: Slot, text: str, slots: Mapping, lang: str) -> None:
    if settles(slot.kind, slot.form) and slot.form not in NUMBER_ROLES:
        return
    due = slot.write(slots[slot.role], slots, lang)
    if text.lower() != due.lower():
        raise Contradiction(f"'{text}' should be '{due}'")


# --- what an event does to the world


def happen(event: Event, world: World) -> None:
    """Apply an event, and the phrases inside it, to `world`. Raises Contradiction where it does not fit."""
    flat: dict[str, Value] = {}
    for role, value in event.slots.items():
        if isinstance(value, Event):
            happen(value, world)
            if value.head is not None:
                flat[role] = value.head
        else:
            flat[role] = value
    named = tuple(v for r, v in flat.items() if r not in _NESTED and r != "guess" and kind_of(r) in INTRODUCED)
    world.apply(RULES[event.rule].effects, flat, named)
