"""The drafter is the MTP module trained as decoding uses it; the main model is left alone."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

import pytest
import torch

from minids import checkpoint, drafter
from minids.config import tiny
from minids.corpus import documents
from minids.generate import generate
from minids.model import Transformer
from minids.speculate import Acceptance, speculate
from minids.tokenizer import default_tokenizer

W = 23


def make(**sizes) -> Transformer:
    cfg = replace(tiny(), **{"vocab_size": W, "n_layers": 2, "max_seq_len": 64, "original_seq_len": 64} | sizes)
    return Transformer(cfg, torch.Generator().manual_seed(0)).eval()


def test_the_loss_is_the_cross_entropy_of_each_draft_position_by_position() -> None:
    model, tokens, (B, S) = make(), torch.randint(W, (3, 7)), (3, 7)
    module = model.mtp[0]
    with torch.no_grad():
        h, _ = model.hidden(tokens)
        p, want = model.head(h).softmax(-1), 0.0
        for k in (1, 2):
            h, _ = module(h[:, : S - k], model.embed(tokens[:, k:]), model.freqs_cis[: S - k])  # type: ignore[operator]
            log_q = model.head(h).log_softmax(-1)
            for b in range(B):
                for i in range(S - k):
                    # h at i has read t_(i+k); the main model says what follows from its own state there
                    want -= float(p[b, i + k] @ log_q[b, i]) / (B * (S - k)) / 2
        assert drafter.drafter_loss(model, tokens, depth=2).item() == pytest.approx(want, rel=1e-5)


def test_rows_begin_as_given_and_go_on_as_the_main_model_writes() -> None:
    model, starts = make(), torch.randint(W, (3, 5))
    rows = drafter.written(model, starts, 11, temperature=0)
    assert rows.shape == (3, 11) and rows[:, :5].equal(starts)
    for start, row in zip(starts.tolist(), rows.tolist(), strict=True):
        assert row[5:] == generate(model, start, 6, temperature=0)


def test_training_lowers_the_loss_and_moves_the_module_alone() -> None:
    model, tokens = make(), torch.randint(W, (4, 12))
    model.head.weight.data *= 8  # something to be learned
    before = {name: t.clone() for name, t in model.state_dict().items()}
    losses = list(drafter.tune(model, lambda: tokens, steps=40, depth=2, rate=3e-3))
    assert losses[-1] < losses[0] - 0.1
    moved = {name for name, t in model.state_dict().items() if not t.equal(before[name])}
    assert moved and all(name.startswith("mtp.0.") for name in moved)


def test_a_model_without_a_module_and_a_depth_of_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="n_mtp_modules=0"):
        drafter.drafter_loss(make(n_mtp_modules=0), torch.zeros(1, 4, dtype=torch.long))
    with pytest.raises(ValueError, match="got depth=0"):
        next(drafter.tune(make(), lambda: torch.zeros(1, 4, dtype=torch.long), 1, depth=0))


def test_the_shipped_drafter_writes_the_same_text_in_fewer_cycles() -> None:
    tokenizer, old, new = default_tokenizer(), Acceptance(), Acceptance()
    plain, tuned = checkpoint.load_model(checkpoint.shipped())[0], drafter.shipped()
    texts = (tokenizer.encode(text, bos=True) for text in documents("en", "val"))
    prompts = list(islice((ids[:24] for ids in texts if len(ids) >= 48), 4))
    for ids, want in zip(prompts, generate(plain, prompts, 64, temperature=0), strict=True):
        for model, fate in ((plain, old), (tuned, new)):
            tokens, one = speculate(model, ids, 64, drafts=4)
            assert tokens == want
            fate.add(one)
    assert new.tokens_per_cycle > old.tokens_per_cycle
