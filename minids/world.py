"""The small world behind a story: who is there, what is known, and what a sentence changes.

Not in the paper: this project's own data, so that the course needs no download.
A sentence has effects, written as short formulas over its slots. One `World` applies them while a story is written and
again while a story is judged, so the writer and the judge cannot disagree.

    new a                     a comes into the story, and was not in it before
    colour item = colour      set when unknown, else it must be the same
    place item := place       set whatever it was: things move
    count a things += n       add; -= takes away and may not go below 0
    count a things == n       must be known and equal
    not place item = place    the thing is not there: a later `place item = place` contradicts it

`total things`, `plus n m`, `minus n m` and `times n m` are computed, not stored.
Differs from the paper: nothing, the paper has no such part.
Left out: time, and anything that is not said in the text.
Notebook: 01_tokens shows a story beside its facts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

Value = str | int
Key = tuple[Value, ...]
# Slots of these types name something that must have come into the story before it is spoken of.
INTRODUCED = frozenset({"person", "pet", "item", "things", "crop", "animal", "x"})


class Contradiction(ValueError):
    """A sentence that does not fit the world so far."""


@dataclass
class World:
    """What is known: `facts` maps (relation, thing, ...) to a value; `seen` holds all that was introduced."""

    facts: dict[Key, Value] = field(default_factory=dict)
    seen: set[Value] = field(default_factory=set)

    def copy(self) -> World:
        return World(dict(self.facts), set(self.seen))

    def apply(self, effects: tuple[str, ...], slots: Mapping[str, Value], named: tuple[Value, ...]) -> None:
        """Apply a sentence's effects. `named`: the values that must be known before or be new in this sentence."""
        for effect in effects:
            words = effect.split()
            if words[0] == "new":
                self._introduce(slots[words[1]])
        for value in named:
            if value not in self.seen:
                raise Contradiction(f"{value} was not introduced")
        for effect in effects:
            words = effect.split()
            if words[0] != "new":
                self._relate(words, slots)

    def _introduce(self, value: Value) -> None:
        if value in self.seen:
            raise Contradiction(f"{value} is introduced twice")
        self.seen.add(value)

    def _relate(self, words: list[str], slots: Mapping[str, Value]) -> None:
        *left, op, right = words
        negated = left[0] == "not"
        left = left[1:] if negated else left
        key = (left[0], *(slots.get(w, w) for w in left[1:]))
        value = slots.get(right, int(right) if right.isdigit() else right)
        if negated:
            self._deny(key, value)
        elif op in ("=", ":="):
            self._set(key, value, op)
        elif op == "==":
            self._check(key, value)
        else:
            self._count(key, op, int(value))

    def _deny(self, key: Key, value: Value) -> None:
        if self.facts.get(key) == value:
            raise Contradiction(f"{_show(key)} is {value}, and the text denies it")
        self.facts[("not", *key, value)] = "yes"

    def _set(self, key: Key, value: Value, op: str) -> None:
        known = self.facts.get(key)
        if op == "=" and known is not None and known != value:
            raise Contradiction(f"{_show(key)} is {known}, not {value}")
        if op == "=" and ("not", *key, value) in self.facts:
            raise Contradiction(f"{_show(key)} was said not to be {value}")
        self.facts[key] = value

    def _check(self, key: Key, value: Value) -> None:
        known = self._computed(key)
        if known != value:
            raise Contradiction(f"{_show(key)} is {'not known' if known is None else known}, not {value}")

    def _count(self, key: Key, op: str, n: int) -> None:
        known = self.facts.get(key)
        if op == "-=" and (known is None or int(known) < n):
            raise Contradiction(f"{_show(key)} is {known or 0}, so {n} cannot be taken away")
        self.facts[key] = int(known or 0) + (n if op == "+=" else -n)

    def _computed(self, key: Key) -> Value | None:
        name, *args = key
        if name == "total":
            counts = [int(v) for k, v in self.facts.items() if k[0] == "count" and k[-1] == args[0]]
            return sum(counts) if counts else None
        if name in ("plus", "minus", "times"):
            n, m = int(args[0]), int(args[1])
            return {"plus": n + m, "minus": n - m, "times": n * m}[name]
        return self.facts.get(key)


def _show(key: Key) -> str:
    return " ".join(str(part) for part in key)
