"""Haystacks hold what they say: one needle for the question, at its depth, and an answer not to be guessed."""

import random
from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch import nn

from minids import needle
from minids.config import tiny
from minids.model import Transformer
from minids.needle import FORMS, IDS, NAMES, NUMBERS, WORDS


def facts_in(words):
    """Every `form name value name` of a list of words: (place of the value, form, name, value), found word by word."""
    return [
        (i + 2, *words[i : i + 3])
        for i in range(len(words) - 3)
        if words[i] in FORMS and words[i + 1] in NAMES and words[i + 3] == words[i + 1]
    ]


@pytest.mark.parametrize("length", [18, 21, 32, 257])
@pytest.mark.parametrize("depth", [0.0, 0.4, 1.0])
def test_a_haystack_has_its_length_its_needles_and_one_answer_to_its_question(length, depth):
    for seed in range(30):
        stack = needle.haystack(length, depth, random.Random(seed))
        facts = facts_in(stack.words)
        assert len(stack.words) == length and stack.words[-2] == "code"
        assert len(facts) == len({name for _, _, name, _ in facts}) == 4
        answers = [(place, value) for place, form, name, value in facts if (form, name) == stack.words[-2:]]
        assert answers == [(stack.place, stack.answer)]


def test_the_depth_is_where_the_needle_stands():
    places = [[needle.haystack(400, d / 8, random.Random(s)).place / 400 for s in range(20)] for d in range(9)]
    assert places[0] == [2 / 400] * 20 and places[8] == [396 / 400] * 20  # then name, "code", name
    for d, found in enumerate(places):
        assert abs(sum(found) / 20 - d / 8) < 0.03


def test_answers_are_uniform_over_20_numbers_and_independent_of_the_others():
    rng = random.Random(7)
    counts = Counter(needle.haystack(32, 0.5, rng).answer for _ in range(4000))
    assert counts.keys() == set(NUMBERS) and len(NUMBERS) == 20
    # 19 degrees of freedom: chi2 of 50 or more in 1 of 8,000 draws
    assert sum((n - 200) ** 2 / 200 for n in counts.values()) < 50


@pytest.mark.parametrize("length", [0, 3, 4, 5, 6, 7, 8, 50])
def test_filler_has_exactly_the_words_asked_for_and_no_fact(length):
    sentences = needle.filler(length, random.Random(length))
    words = [word for sentence in sentences for word in sentence]
    assert len(words) == length and all(3 <= len(s) <= 5 and s[-1] == "." for s in sentences)
    assert not set(words) & {*NAMES, *NUMBERS, *FORMS}


def test_a_row_marks_the_values_that_were_stated_before_and_nothing_else():
    for seed in range(40):
        tokens, known = needle.row(53, random.Random(seed), facts=3, times=4)
        words, seen, want = [WORDS[t] for t in tokens], set(), set()
        for place, *fact in facts_in(words):
            want |= {place} if tuple(fact) in seen else set()
            seen.add(tuple(fact))
        assert len(tokens) == len(known) == 53 and len(seen) == 3 and len(want) == 9
        assert {i for i, k in enumerate(known) if k} == want


def test_rows_of_one_form_hold_no_word_of_the_other():
    tokens, _ = needle.batch(40, 61, random.Random(3), forms=("gift",), facts=6)
    assert not {*map(IDS.get, (*NUMBERS, "code"))} & set(tokens.flatten().tolist())


def test_words_and_token_numbers_are_one_to_one():
    assert len(set(WORDS)) == len(WORDS) == len(IDS)
    assert needle.decode(needle.encode("code Mia 17 Mia")) == "code Mia 17 Mia"
    with pytest.raises(KeyError):
        needle.encode("code Mia 100 Mia")


class Reader(Transformer):
    """Answers by reading the words, but looks back only so far."""

    def __init__(self, reach: int):
        super().__init__(replace(tiny(), n_layers=1, n_dense_layers=1, n_mtp_modules=0, vocab_size=len(WORDS)))
        self.reach, self.head = reach, nn.Identity()

    def hidden(self, tokens, cache=None, impl=None):
        out = torch.zeros(*tokens.shape, len(WORDS))
        for b, row in enumerate(tokens.tolist()):
            words = [WORDS[t] for t in row]
            for place, form, name, value in facts_in(words):
                if [form, name] == words[-2:] and len(words) - place <= self.reach:
                    out[b, -1, IDS[value]] = 1
        return out, []


def test_the_score_is_the_share_of_needles_found_and_falls_to_nothing_beyond_the_reach():
    far, near = Reader(1000), Reader(60)
    assert needle.retrieval(far, 128, 0.5, n=20) == 1.0
    assert needle.retrieval(near, 128, 0.0, n=20) == 0.0 and needle.retrieval(near, 128, 1.0, n=20) == 1.0
    grid = needle.heat_map(near, [64, 128], [0.0, 0.5, 1.0], n=20)
    assert [len(line) for line in grid] == [2, 2, 2] and grid[2] == [1.0, 1.0] and grid[0] == [0.0, 0.0]


@pytest.mark.parametrize(("length", "depth", "others"), [(17, 0.5, 3), (19, 0.5, 3), (64, 1.2, 3), (400, 0.5, 12)])
def test_a_haystack_that_cannot_be_is_refused(length, depth, others):
    with pytest.raises(ValueError, match="a haystack holds"):
        needle.haystack(length, depth, random.Random(0), others)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_shipped_models_find_needles_at_their_length_and_not_far_beyond(seed):
    model = needle.shipped(seed)
    found = needle.heat_map(model, [64, 512], [0.0, 0.5, 1.0], n=32)
    at_home, far = (sum(column) / 3 for column in zip(*found, strict=True))
    assert at_home > 0.9 and far < 0.3
    assert model.cfg.original_seq_len == 64 and not model.training


def test_a_model_that_is_not_shipped_is_named():
    with pytest.raises(FileNotFoundError, match="no model of seed 7"):
        needle.shipped(7)


def test_the_loss_is_that_of_all_words_and_of_the_known_values_again():
    model = needle.shipped(1)
    tokens, known = needle.batch(3, 47, random.Random(5))
    nll = -model(tokens).log_softmax(-1)
    places = [(b, s) for b in range(3) for s in range(1, 47)]
    every = [nll[b, s - 1, tokens[b, s]] for b, s in places]
    asked = [nll[b, s - 1, tokens[b, s]] for b, s in places if known[b, s]]
    want = torch.stack(every).mean() + torch.stack(asked).mean()
    torch.testing.assert_close(needle.loss(model, tokens, known), want)


def test_training_touches_no_other_weights_and_is_repeated_by_its_seed():
    def trained():
        model = Transformer(needle.config(16), torch.Generator().manual_seed(3))
        rng = random.Random(4)
        rows = lambda: needle.batch(4, 16, rng, facts=2)  # noqa: E731
        for _ in needle.training([*model.layers[1].parameters()], lambda: needle.loss(model, *rows()), 3, rate=1e-3):
            pass
        return model

    before, after, again = Transformer(needle.config(16), torch.Generator().manual_seed(3)), trained(), trained()
    for (name, a), b, c in zip(before.named_parameters(), after.parameters(), again.parameters(), strict=True):
        assert torch.equal(b, c) and torch.equal(a, b) == (not name.startswith("layers.1."))
