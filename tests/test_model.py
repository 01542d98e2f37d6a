"""The whole model: causality, seeds, caches, losses, and the 671 B one as shapes without memory."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from minids.config import dense_active, tiny, v3
from minids.model import Transformer

CFG = replace(tiny(), vocab_size=61, n_layers=3, max_seq_len=40)


@pytest.fixture
def model() -> Transformer:
    return Transformer(CFG, torch.Generator().manual_seed(1))


def test_a_seed_gives_the_same_weights_again_and_another_seed_others(model):
    again, other = (Transformer(CFG, torch.Generator().manual_seed(s)) for s in (1, 2))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert not torch.equal(model.head.weight, other.head.weight)


def test_no_logit_depends_on_a_later_token(model):
    tokens = torch.randint(0, 61, (2, 12))
    changed = tokens.clone()
    changed[:, 7:] = (changed[:, 7:] + 1) % 61
    torch.testing.assert_close(model(tokens)[:, :7], model(changed)[:, :7])


@pytest.mark.parametrize("impl", ["naive", "latent", "absorb"])
def test_decoding_with_any_cache_gives_the_logits_of_one_pass(model, impl):
    tokens = torch.randint(0, 61, (3, 14))
    cache = model.new_cache(3, 20, impl)
    with torch.no_grad():
        got = [model(tokens[:, a:b], cache, impl) for a, b in ((0, 6), (6, 7), (7, 8), (8, 14))]
        torch.testing.assert_close(torch.cat(got, 1), model(tokens), atol=1e-5, rtol=1e-5)
    assert all(c.length == 14 for c in cache)


def test_a_dense_model_of_the_same_class_decodes_too():
    model = Transformer(dense_active())
    tokens = torch.randint(0, 61, (2, 9))
    cache = model.new_cache(2, 9)
    with torch.no_grad():
        got = torch.cat([model(tokens[:, :5], cache), model(tokens[:, 5:], cache)], 1)
        torch.testing.assert_close(got, model(tokens), atol=1e-5, rtol=1e-5)


def test_the_main_loss_is_the_mean_cross_entropy_of_the_next_token(model):
    tokens = torch.randint(0, 61, (2, 10))
    want = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
    torch.testing.assert_close(model.losses(tokens).main, want)


def test_the_load_has_a_row_for_each_gate_and_counts_every_choice(model):
    load = model.losses(torch.randint(0, 61, (2, 10))).load
    assert load.shape == (len(model.gates()), 16) == (3, 16)  # two MoE layers and MTP's
    assert load.sum(1).tolist() == [2 * 9 * 4, 2 * 9 * 4, 2 * 8 * 4]


def test_every_parameter_gets_a_gradient(model):
    model.train()
    L = model.losses(torch.randint(0, 61, (8, 33)))
    (L.main + L.mtp + L.balance).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


def test_under_bf16_autocast_losses_and_gradients_stay_close_and_the_gate_chooses_in_fp32(model):
    model.train()
    tokens = torch.randint(0, 61, (4, 33))
    want = model.losses(tokens)
    with torch.autocast("cpu", torch.bfloat16):
        got = model.losses(tokens)
        assert model.layers[1].ffn.gate(torch.randn(3, 128))[2].dtype == torch.float32
    torch.testing.assert_close(got.main, want.main, atol=0.01, rtol=0)
    torch.testing.assert_close(got.mtp, want.mtp, atol=0.01, rtol=0)
    head = model.head.weight
    (a,), (b,) = torch.autograd.grad(got.main, head), torch.autograd.grad(want.main, head)
    assert (a - b).norm() < 0.03 * b.norm()  # BF16 keeps 8 bits


def test_a_context_longer_than_the_models_is_refused_with_both_numbers(model):
    with pytest.raises(ValueError, match=r"max_seq_len = 40; got 0 \+ 41 = 41 tokens.*YaRN"):
        model(torch.zeros(1, 41, dtype=torch.long))


def test_the_671b_model_builds_on_the_meta_device():
    with torch.device("meta"):
        model = Transformer(v3())
    assert model.layers[3].ffn.experts.w13.shape == (256, 4096, 7168)
    assert len(model.gates()) == 58 + 1
