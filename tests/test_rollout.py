"""Rollouts: the same tokens as generation without a cache, the right probabilities, whatever row ends first."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from minids.config import policy
from minids.grpo import log_probs
from minids.model import Transformer
from minids.rollout import draw, rollout

P, S, G, NEW, END, PAD, W = 3, 5, 4, 9, 1, 0, 13


def make(seed: int = 0) -> tuple[Transformer, Tensor]:
    dice = torch.Generator().manual_seed(seed)
    model = Transformer(policy(W), dice)
    model.head.weight.data *= 4  # so that the likeliest token is not always the same
    return model, torch.randint(2, W, (P, S), generator=dice)


def test_greedy_rollouts_equal_the_model_asked_again_from_the_start() -> None:
    model, prompts = make()
    out = rollout(model, prompts, G, NEW, END, PAD, temperature=0)
    assert out.tokens.shape[0] == P * G
    for row, response in zip(out.tokens, out.responses(), strict=True):
        assert torch.equal(row[:S], prompts[out.tokens.eq(row).all(1).nonzero()[0, 0] // G])
        tokens = row[:S]
        for token in response:
            with torch.no_grad():
                assert model(tokens[None])[0, -1].argmax() == token
            tokens = torch.cat([tokens, torch.tensor([token])])


@pytest.mark.parametrize("seed", range(3))
def test_the_kept_log_probabilities_are_those_of_a_fresh_forward_pass(seed: int) -> None:
    model, prompts = make(seed)
    out = rollout(model, prompts, G, NEW, END, PAD, generator=torch.Generator().manual_seed(seed))
    lengths = out.lengths
    assert lengths.min() < lengths.max(), "rows of one length would not test what leaves the batch"
    with torch.no_grad():
        fresh = log_probs(model, out.tokens, out.mask.shape[1])
    torch.testing.assert_close(out.logp[out.mask], fresh[out.mask], atol=1e-4, rtol=0)
    assert (out.logp[~out.mask] == 0).all() and (out.tokens[:, S:][~out.mask] == PAD).all()


def test_a_row_ends_once_and_what_was_cut_is_known() -> None:
    model, prompts = make(5)
    out = rollout(model, prompts, 16, NEW, END, PAD, generator=torch.Generator().manual_seed(5))
    for response, finished in zip(out.responses(), out.finished.tolist(), strict=True):
        assert response.count(END) == finished and (response[-1] == END) == finished
        assert finished or len(response) == NEW
    assert 0 < out.finished.float().mean() < 1


def test_the_same_seed_gives_the_same_samples() -> None:
    model, prompts = make()
    one, two, other = (
        rollout(model, prompts, G, NEW, END, PAD, generator=torch.Generator().manual_seed(seed)) for seed in (7, 7, 8)
    )
    assert (torch.equal(one.tokens, two.tokens) and one.tokens.shape != other.tokens.shape) or (
        not torch.equal(one.tokens, other.tokens)
    )


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_the_exponential_race_draws_from_the_softmax(temperature: float) -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])
    n = 40_000
    drawn = draw(logits.log_softmax(-1).expand(n, 4), temperature, torch.Generator().manual_seed(0))
    p = (logits / temperature).softmax(-1)
    share = torch.bincount(drawn, minlength=4) / n
    assert ((share - p).abs() < 5 * (p * (1 - p) / n).sqrt()).all()  # five standard errors
    assert (draw(logits.expand(3, 4), 0, None) == 0).all()


def test_the_entropy_is_the_mean_over_the_response_tokens() -> None:
    model, prompts = make(1)
    out = rollout(model, prompts, G, NEW, END, PAD, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        h, _ = model.hidden(out.tokens[:, :-1])
        p = model.head(h[:, -out.mask.shape[1] :]).softmax(-1)
    entropy = -(p * p.log()).sum(-1)[out.mask].mean().item()
    assert out.entropy == pytest.approx(entropy, abs=1e-4)


def test_what_does_not_fit_the_context_is_refused() -> None:
    model, prompts = make()
    with pytest.raises(ValueError, match=r"max_seq_len = 128.*5 \+ 124"):
        rollout(model, prompts, G, 124, END, PAD)
