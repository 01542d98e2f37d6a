"""Primers: short, about two or three children whose names come again and again, in two languages."""

import re

from minids.lexicon import WORDS
from minids.primer import LONGEST, SHORTEST, primer

TEXTS = [primer(seed) for seed in range(300)]
KINDS = ("person", "colour", "item")
FORMS = {form for kind in KINDS for row in WORDS[kind].values() for form in row[:2]}
WORD = re.compile("|".join(sorted(FORMS, key=len, reverse=True)))


def content(text: str) -> list[str]:
    """The names, colours and things of a text, in their order."""
    return WORD.findall(text)


def test_after_the_introductions_nothing_new_is_spoken_of():
    for text in TEXTS:
        sentences = re.split("[.。]", text)
        assert set(content("|".join(sentences[3:]))) <= set(content("|".join(sentences[:3]))), text


def test_most_words_with_a_choice_have_come_before():
    again = total = 0
    for text in TEXTS:
        words = content(text)
        again += sum(word in words[:i] for i, word in enumerate(words))
        total += len(words)
    assert 0.5 < again / total < 0.9


def test_a_primer_is_short():
    for text in TEXTS:
        n_sentences = len(re.findall("[.。?？]", text))
        assert SHORTEST < n_sentences <= 2 * LONGEST + 3, text  # two in a line at most, and three introductions


def test_both_languages_come_and_a_seed_is_a_text():
    english = sum(text.isascii() for text in TEXTS)
    assert 100 < english < 200
    assert primer(11) == primer(11) != primer(12)
