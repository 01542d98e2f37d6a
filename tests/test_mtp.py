"""Multi-token prediction against equations 21-25 written out position by position."""

from dataclasses import replace

import pytest
import torch

from minids.config import tiny
from minids.model import Transformer
from minids.mtp import shifted

CFG = replace(tiny(), vocab_size=29, n_layers=2, n_mtp_modules=2)


@pytest.fixture
def model() -> Transformer:
    return Transformer(replace(CFG, init_std=0.2)).train()


def test_depth_k_reads_the_token_k_ahead_and_predicts_the_one_after():
    tokens = torch.arange(7)[None]  # S = 6 inputs and the last target
    assert [t.tolist() for t in shifted(tokens, 1)] == [[[1, 2, 3, 4, 5]], [[2, 3, 4, 5, 6]]]
    assert [t.tolist() for t in shifted(tokens, 2)] == [[[2, 3, 4, 5]], [[3, 4, 5, 6]]]


def test_the_loss_is_eq_21_to_25_summed_position_by_position_over_t_not_t_minus_k(model):
    tokens = torch.randint(0, 29, (3, 10))
    B, S = 3, 9
    h, _ = model.hidden(tokens[:, :-1])
    total = 0.0
    for k, module in enumerate(model.mtp, start=1):
        n = S - k
        both = torch.cat([module.enorm(model.embed(tokens[:, k : k + n])), module.hnorm(h[:, :n])], -1)
        h, _ = module.block(both @ module.eh_proj.weight.T, model.freqs_cis[:n])
        h = module.norm(h)
        log_p = model.head(h).log_softmax(-1)
        L_k = 0.0
        for b in range(B):
            for i in range(n):
                L_k -= log_p[b, i, tokens[b, i + k + 1]] / (B * S)
        total += L_k / 2  # D = 2 depths
    torch.testing.assert_close(model.losses(tokens).mtp, total)


def test_the_last_target_reaches_depth_1_and_no_input_is_its_own_target(model):
    tokens = torch.randint(0, 29, (1, 8))
    other = tokens.clone()
    other[0, -1] = (other[0, -1] + 1) % 29
    a, b = model.losses(tokens), model.losses(other)
    assert a.mtp != b.mtp and a.main != b.main


def test_embedding_and_head_are_shared_and_get_gradients_from_both_losses(model):
    names = [n for n, _ in model.named_parameters() if n.startswith("mtp")]
    assert not [n for n in names if "embed" in n or "head" in n]
    loss = model.losses(torch.randint(0, 29, (2, 9)))
    only_mtp = torch.autograd.grad(loss.mtp, (model.embed.weight, model.head.weight))
    assert all(g.abs().sum() > 0 for g in only_mtp)


def test_without_modules_the_mtp_loss_is_zero_and_the_logits_are_the_same(model):
    tokens = torch.randint(0, 29, (2, 9))
    bare = Transformer(replace(model.cfg, n_mtp_modules=0))
    bare.load_state_dict(model.state_dict(), strict=False)
    assert bare.losses(tokens).mtp == 0
    torch.testing.assert_close(bare(tokens), model(tokens))


def test_the_last_position_alone_is_that_of_the_whole_pass_and_the_cache_holds_the_same_latents(model):
    module, attn, h = model.mtp[0], model.mtp[0].block.attn, torch.randn(1, 9, 128)
    emb = model.embed(torch.randint(0, 29, (1, 9)))
    whole, parts = attn.new_cache(1, 9), attn.new_cache(1, 9)
    with torch.no_grad():
        for a, b in ((0, 5), (5, 6), (6, 9)):
            want, _ = module(h[:, a:b], emb[:, a:b], model.freqs_cis[a:b], whole, "absorb")
            got = module.last(h[:, a:b], emb[:, a:b], model.freqs_cis[a:b], parts)
            torch.testing.assert_close(got, want[:, -1:], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(parts.kv, whole.kv, atol=1e-5, rtol=1e-4)
