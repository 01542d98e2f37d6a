"""Speculative decoding changes the speed and nothing else: the same greedy text, the same distribution when sampled."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from minids import checkpoint
from minids.config import tiny
from minids.generate import generate, probabilities
from minids.model import Transformer
from minids.speculate import Acceptance, Speculator, speculate
from minids.stories import story
from minids.tokenizer import default_tokenizer

W = 5


def make(seed: int = 0, **sizes) -> Transformer:
    cfg = replace(tiny(), **{"vocab_size": W, "n_layers": 2, "max_seq_len": 64, "original_seq_len": 64} | sizes)
    model = Transformer(cfg, torch.Generator().manual_seed(seed)).eval()
    model.head.weight.data *= 8  # far from uniform, so that drafts are accepted and refused
    return model


@pytest.fixture(scope="module")
def trained() -> Transformer:
    return checkpoint.load_model(checkpoint.shipped())[0]


def test_greedy_text_is_that_of_plain_decoding_for_fifty_prompts(trained: Transformer) -> None:
    tokenizer, fates = default_tokenizer(), Acceptance()
    prompts = [tokenizer.encode(story(10**6 + seed).text, bos=True)[: 12 + seed % 9] for seed in range(50)]
    for seed, plain in enumerate(generate(trained, prompts, 12, temperature=0)):  # those of one length together
        tokens, fate = speculate(trained, prompts[seed], 12, drafts=1 + seed % 3)
        assert tokens == plain and tokens.reason == plain.reason  # type: ignore[union-attr]
        fates.add(fate)
    assert fates.tokens_per_cycle > 1.5


@pytest.mark.parametrize("drafts", [0, 1, 2, 5])
@pytest.mark.parametrize("seed", range(2))
def test_greedy_text_is_that_of_plain_decoding_to_the_end_of_the_context(drafts: int, seed: int) -> None:
    model = make(seed)
    for n in (1, 50, 62, 63):
        prompt = torch.randint(W, (n,), generator=torch.Generator().manual_seed(n)).tolist()
        assert speculate(model, prompt, 100, drafts)[0] == generate(model, prompt, 100, temperature=0)


@pytest.mark.parametrize("drafts", [1, 3])
def test_a_stop_token_ends_the_text_wherever_it_falls_in_a_cycle(drafts: int) -> None:
    model = make(1)
    for stop in range(W):
        for new in (2, 3, 12):
            plain = generate(model, [1, 2, 3], new, temperature=0, stop_ids=(stop,))
            tokens, _ = speculate(model, [1, 2, 3], new, drafts, stop_ids=(stop,))
            assert tokens == plain and tokens.reason == plain.reason  # type: ignore[union-attr]


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 0.8)])
def test_accepting_and_correcting_together_draw_from_the_main_model(temperature: float, top_p: float) -> None:
    n, dice = 6000, torch.Generator().manual_seed(0)
    run = Speculator(make(), [1], 4, 1, temperature, top_p, dice)
    logits = torch.randn(2, 6, generator=dice) * 1.5
    p, q = probabilities(logits[0], temperature, top_p), torch.randn(6, generator=dice).softmax(-1)
    counts = torch.zeros(6)
    for guess in torch.multinomial(q, n, replacement=True, generator=dice):
        accepted, token = run.verify(guess.view(1, 1), [q], logits)
        counts[guess if accepted else token] += 1
    assert (counts[p == 0] == 0).all()
    assert ((counts / n - p).abs() <= 5 * (p * (1 - p) / n).sqrt()).all()  # five standard errors


def test_sampled_text_is_what_the_main_model_may_say() -> None:
    model, prompt, dice = make(2), [3, 1, 4], torch.Generator().manual_seed(0)
    texts = [tuple(speculate(model, prompt, 4, 2, 1.0, 0.6, generator=dice)[0]) for _ in range(60)]
    found = sorted(set(texts))
    assert len(found) > 5
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *text] for text in found]))
    for text, p in zip(found, probabilities(logits, 1.0, 0.6), strict=True):
        assert all(p[len(prompt) - 1 + i, token] > 0 for i, token in enumerate(text))


def test_some_sampled_drafts_are_kept_and_some_refused() -> None:
    dice = torch.Generator().manual_seed(0)
    _, fate = speculate(make(2), [3, 1, 4], 40, 2, 1.0, generator=dice)
    assert 0 < sum(fate.kept) < sum(fate.tried)


@pytest.mark.parametrize("seed", range(3))
def test_after_each_cycle_the_caches_hold_what_reading_the_text_again_would_give(seed: int) -> None:
    model, prompt = make(seed), [1, 4, 2, 3]
    run = Speculator(model, prompt, 30, 3, 0.0, 1.0, None)
    text = list(prompt)
    for _, tokens in zip(range(6), run.cycles(Acceptance()), strict=False):
        text += tokens
        read = len(text) - 1  # the last token is drawn and not yet read
        assert [layer.length for layer in run.cache] == [read] * 2
        fresh = model.new_cache(1, 64)
        with torch.no_grad():
            model.hidden(torch.tensor([text[:-1]]), fresh, "absorb")
        for layer, want in zip(run.cache, fresh, strict=True):
            torch.testing.assert_close(layer.kv[:, :read], want.kv[:, :read], atol=1e-5, rtol=1e-4)  # type: ignore[union-attr]


def test_counting_looks_at_drafts_up_to_the_first_refusal() -> None:
    fate = Acceptance()
    fate.count(accepted=1, drafted=3)
    fate.count(accepted=3, drafted=3)
    fate.count(accepted=0, drafted=2)
    assert (fate.tried, fate.kept, fate.cycles, fate.tokens) == ([3, 2, 1], [2, 1, 1], 3, 7)
    assert fate.rate == pytest.approx(2 / 3) and Acceptance().rate == Acceptance().tokens_per_cycle == 0


def test_fates_of_two_texts_add_up_depth_by_depth() -> None:
    one, two, both = Acceptance(), Acceptance(), Acceptance()
    for accepted, drafted in ((1, 3), (0, 2), (1, 1)):
        one.count(accepted, drafted)
        both.count(accepted, drafted)
    for accepted, drafted in ((3, 3), (4, 4)):
        two.count(accepted, drafted)
        both.count(accepted, drafted)
    one.add(two)
    assert one == both


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="n_mtp_modules=0"):
        speculate(make(n_mtp_modules=0), [1], 4)
    with pytest.raises(ValueError, match="drafts a cycle are 0 or more; got -1"):
        speculate(make(), [1], 4, -1)
    with pytest.raises(ValueError, match="1 to 63 tokens"):
        speculate(make(), [], 4)
