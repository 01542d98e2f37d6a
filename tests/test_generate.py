"""Generation: the cache changes nothing, sampling follows its written definition, and every ending has its reason."""

from __future__ import annotations

import copy
import math
import random
from dataclasses import replace

import pytest
import torch

from minids import checkpoint
from minids.config import Config, dense_active
from minids.generate import Sampling, Text, Tokens, draw, generate, nucleus, penalised, probabilities, stream
from minids.hf import to_hf
from minids.model import Transformer
from minids.tokenizer import default_tokenizer

CFG = Config(
    vocab_size=61, dim=36, n_layers=3, n_dense_layers=1, inter_dim=52, n_heads=3, q_lora_rank=20, kv_lora_rank=18,
    qk_nope_head_dim=10, qk_rope_head_dim=8, v_head_dim=14, moe_inter_dim=16, n_routed_experts=12, n_shared_experts=1,
    n_activated_experts=4, n_expert_groups=4, n_limited_groups=2, init_std=0.3, max_seq_len=40, original_seq_len=40,
)  # fmt: skip
PROMPT = [5, 60, 17, 0, 8, 33, 21]


@pytest.fixture
def model() -> Transformer:
    return Transformer(CFG, torch.Generator().manual_seed(3)).eval()


@torch.no_grad()
def greedy(model: Transformer, ids: list[int], n: int, penalty: float = 0.0) -> list[int]:
    """Slow and plain: the whole text through the model for every token, no cache."""
    out: list[int] = []
    for _ in range(n):
        logits = model(torch.tensor([ids + out]), impl="naive")[0, -1]
        for token in out:
            logits[token] -= penalty
        out.append(int(logits.argmax()))
    return out


@pytest.mark.parametrize("impl", ["naive", "latent", "absorb"])
def test_greedy_decoding_from_the_cache_equals_reading_everything_again(model, impl):
    want = greedy(model, PROMPT, 15)
    assert len(set(want)) > 3
    assert generate(model, PROMPT, 15, temperature=0, impl=impl) == want


def test_a_dense_model_generates_too():
    dense = Transformer(replace(dense_active(), n_layers=2, n_dense_layers=2)).eval()
    assert generate(dense, PROMPT, 6, temperature=0) == greedy(dense, PROMPT, 6)


@pytest.mark.parametrize("penalty", [0.5, -0.2])
def test_the_frequency_penalty_counts_generated_tokens_only(model, penalty):
    want = greedy(model, PROMPT, 20, penalty)
    assert want != greedy(model, PROMPT, 20)
    assert generate(model, PROMPT, 20, temperature=0, frequency_penalty=penalty) == want


def test_penalised_subtracts_the_penalty_once_for_each_occurrence():
    logits, counts = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.0, 1.0, 3.0])
    torch.testing.assert_close(penalised(logits, counts, 0.5), torch.tensor([1.0, 1.5, 1.5]))


def test_prompts_of_any_lengths_give_what_each_gives_alone(model):
    prompts = [PROMPT, [9, 9], [1, 2, 3, 4, 5, 6, 7], [44]]
    together = generate(model, prompts, 12, temperature=0)
    assert together == [generate(model, p, 12, temperature=0) for p in prompts]
    assert generate(model, torch.tensor([PROMPT]), 12, temperature=0) == [together[0]]
    assert generate(model, torch.tensor(PROMPT), 12, temperature=0) == together[0]


def test_a_stream_gives_the_same_tokens_and_returns_the_reason(model):
    want = generate(model, PROMPT, 9, generator=torch.Generator().manual_seed(1))
    run, got = stream(model, PROMPT, 9, generator=torch.Generator().manual_seed(1)), []
    while True:
        try:
            got.append(next(run))
        except StopIteration as end:
            assert (got, end.value) == (list(want), "length")
            break


def test_the_same_seed_gives_the_same_text_and_another_seed_another(model):
    texts = [generate(model, PROMPT, 25, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_a_stop_token_ends_the_text_and_is_not_part_of_it(model):
    free = generate(model, PROMPT, 15, temperature=0)
    stop = free[6]
    n = free.index(stop)
    stopped = generate(model, PROMPT, 15, temperature=0, stop_ids=[stop])
    assert (list(stopped), stopped.reason, free.reason) == (free[:n], "stop", "length")
    assert list(stream(model, PROMPT, 15, temperature=0, stop_ids={stop})) == free[:n]


def test_a_row_that_stopped_early_stays_short_while_others_go_on(model):
    a, b = PROMPT, list(reversed(PROMPT))
    free_a, free_b = (generate(model, p, 15, temperature=0) for p in (a, b))
    stop = next(t for t in free_a if t not in free_b)
    got_a, got_b = generate(model, [a, b], 15, temperature=0, stop_ids=[stop])
    assert (got_a, got_a.reason) == (free_a[: free_a.index(stop)], "stop")
    assert (got_b, got_b.reason) == (free_b, "length")


def test_a_full_context_ends_the_text_with_its_reason(model):
    out = generate(model, PROMPT, 1000, temperature=0)
    assert (len(out), out.reason) == (CFG.max_seq_len - len(PROMPT), "context")
    assert out == greedy(model, PROMPT, len(out))
    last = generate(model, list(range(CFG.max_seq_len - 1)), 5)
    assert (len(last), last.reason) == (1, "context")


def test_asking_for_nothing_gives_nothing(model):
    assert generate(model, PROMPT, 0) == [] and list(stream(model, PROMPT, 0)) == []


def reference(logits: list[float], temperature: float, top_p: float) -> list[float]:
    """The definition, one token at a time."""
    powers = [math.exp((x - max(logits)) / temperature) for x in logits]
    p = [x / sum(powers) for x in powers]
    kept, mass = [], 0.0
    for i in sorted(range(len(p)), key=lambda i: -p[i]):
        if kept and mass >= top_p:
            break
        kept.append(i)
        mass += p[i]
    return [p[i] / mass if i in kept else 0.0 for i in range(len(p))]


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("top_p", [0.0, 0.05, 0.5, 0.93, 1.0])
def test_probabilities_follow_their_definition(temperature, top_p):
    logits = 2 * torch.randn(4, 23, dtype=torch.float64)
    want = torch.tensor([reference(row.tolist(), temperature, top_p) for row in logits], dtype=torch.float64)
    torch.testing.assert_close(probabilities(logits, temperature, top_p), want)


def test_temperature_0_puts_all_mass_on_the_best_and_a_tiny_one_does_not_overflow():
    logits = torch.tensor([[1.0, 900.0, -3.0]])
    for temperature in (0, 1e-30):
        assert probabilities(logits, temperature).tolist() == [[0.0, 1.0, 0.0]]


def test_top_p_keeps_the_best_token_and_no_more_than_it_needs():
    p = torch.tensor([[0.2, 0.5, 0.3]])
    assert nucleus(p, 0.0).tolist() == [[0.0, 1.0, 0.0]]
    assert nucleus(p, 0.5).tolist() == [[0.0, 1.0, 0.0]]
    torch.testing.assert_close(nucleus(p, 0.51), torch.tensor([[0.0, 0.625, 0.375]]))


def test_drawn_tokens_have_the_frequencies_of_their_probabilities():
    logits = torch.randn(1, 7).expand(40_000, -1)
    counts = torch.bincount(draw(logits, 0.8, 0.9, torch.Generator().manual_seed(0)), minlength=7)
    p = probabilities(logits[0], 0.8, 0.9)
    # five standard deviations of a binomial count
    assert ((counts - 40_000 * p).abs() <= 5 * (40_000 * p * (1 - p)).sqrt() + 1e-3).all()
    assert (p == 0).any() and (counts[p == 0] == 0).all()


@torch.no_grad()
def test_generated_first_tokens_have_the_model_s_probabilities(model):
    p = probabilities(model(torch.tensor([PROMPT]))[0, -1])
    rows = generate(model, [PROMPT] * 4000, 1, generator=torch.Generator().manual_seed(0))
    counts = torch.bincount(torch.tensor([row[0] for row in rows]), minlength=CFG.vocab_size)
    assert ((counts - 4000 * p).abs() <= 5 * (4000 * p * (1 - p)).sqrt() + 1).all()


@pytest.mark.parametrize(
    ("ids", "changes", "message"),
    [
        (PROMPT, {"temperature": -1}, r"temperature must be 0 \(greedy\) or more; got -1"),
        (PROMPT, {"temperature": float("nan")}, "temperature must be 0"),
        (PROMPT, {"top_p": 1.5}, "top_p is a share of probability, from 0 to 1; got 1.5"),
        (PROMPT, {"frequency_penalty": 3}, "frequency_penalty lies from -2 to 2; got 3"),
        (PROMPT, {"max_new_tokens": -1}, "max_new_tokens must be 0 or more; got -1"),
        ([], {}, "at least one token; got none"),
        ([3, 61], {}, "integers from 0 to 60; got 61"),
        ([3, -1], {}, "got -1"),
        ([0] * 40, {}, "max_seq_len = 40; the prompt has 40"),
        (PROMPT, {"impl": "fast"}, "impl is one of naive, latent, absorb; got 'fast'"),
    ],
)  # fmt: skip
def test_values_without_a_meaning_are_refused_at_once(model, ids, changes, message):
    arguments = {"max_new_tokens": 2} | changes
    with pytest.raises(ValueError, match=message):
        generate(model, ids, **arguments)
    with pytest.raises(ValueError, match=message):
        next(stream(model, ids, **arguments))


def test_a_stream_takes_one_prompt(model):
    with pytest.raises(ValueError, match=r"one prompt; got 2\. Use generate"):
        stream(model, torch.tensor([[1], [2]]), 3)


def test_a_stream_left_open_leaves_gradients_of_its_caller_alone(model):
    run = stream(model, PROMPT, 9)
    next(run)
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    model(torch.tensor([PROMPT])).sum().backward()
    assert model.embed.weight.grad is not None
    next(run)


def test_generation_builds_no_graph(model, monkeypatch):
    modes, forward = [], model.hidden
    monkeypatch.setattr(model, "hidden", lambda *a: (modes.append(torch.is_inference_mode_enabled()), forward(*a))[1])
    generate(model, PROMPT, 3)
    assert modes == [True] * 3


@torch.no_grad()
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("T", [1, 5, 40])
def test_the_three_ways_to_run_the_experts_are_one_function(model, T, turned):
    moe = (model.for_decoding() if turned else model).layers[1].ffn
    x = torch.randn(T, CFG.dim)
    weights, indices, _ = moe.gate(x)
    want = moe.experts.sorted(x, weights, indices)
    for way in (moe.experts.gathered, moe.experts.every, moe.experts):
        torch.testing.assert_close(way(x, weights, indices), want)


def test_a_model_laid_out_for_decoding_has_the_same_weights_and_writes_the_same(model, tmp_path):
    turned = copy.deepcopy(model).for_decoding()
    matrices = [name for name, p in turned.named_parameters() if p.ndim > 1 and p.mT.is_contiguous()]
    assert len(matrices) == sum(p.ndim > 1 for p in model.parameters()) - 1 - len(model.gates())  # embedding and gates
    for name, p in turned.state_dict().items():
        assert torch.equal(p, model.state_dict()[name]), name
    for how, of in (("plain", model), ("turned", turned)):
        checkpoint.save_model(tmp_path / how, of, None)
        to_hf(of, tmp_path / f"{how} hf")
    for path in tmp_path.glob("plain*/*"):
        twin = tmp_path / path.parent.name.replace("plain", "turned") / path.name
        assert path.read_bytes() == twin.read_bytes(), path.name
    for prompts in ([PROMPT], [PROMPT, PROMPT[::-1]] * 4):
        assert generate(turned, prompts, 15, temperature=0) == generate(model, prompts, 15, temperature=0)


def test_an_interrupted_generation_leaves_the_model_as_it_was(model, monkeypatch):
    before = generate(model, PROMPT, 6, temperature=0)
    forward, calls = model.hidden, []

    def interrupted(*args):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return forward(*args)

    monkeypatch.setattr(model, "hidden", interrupted)
    with pytest.raises(KeyboardInterrupt):
        generate(model, PROMPT, 6, temperature=0)
    monkeypatch.undo()
    assert generate(model, PROMPT, 6, temperature=0) == before
    assert not torch.is_inference_mode_enabled()


def upto(text: str, stops: list[str]) -> str:
    """Letter after letter, until a stop string is complete."""
    for end in range(len(text) + 1):
        for stop in sorted(stops, key=len, reverse=True):
            if text[:end].endswith(stop):
                return text[: end - len(stop)]
    return text


STOPS = [["ab"], ["the", "h"], ["aab", "ab"], ["abab"], ["aaa", "b b"], ["b", "xyz"], ["a 小"], ["小明", "明"], []]


@pytest.mark.parametrize("stops", STOPS)
def test_text_ends_before_the_stop_string_that_is_complete_first_however_tokens_lie(stops):
    tokenizer, dice = default_tokenizer(), random.Random(0)
    for _ in range(200):
        text = "".join(dice.choices(["a", "b", "aab", " ", "小", "明", "the "], k=12))
        for ids in (tokenizer.encode(text), [i for letter in text for i in tokenizer.encode(letter)]):
            run = Text(tokenizer, stops)
            pieces = [run.add(i) for i in ids]
            assert "".join(pieces) + run.close() == upto(text, stops)
            assert run.stopped == any(stop in text for stop in stops)


def test_text_holds_back_only_what_may_become_a_stop_string():
    tokenizer = default_tokenizer()
    run = Text(tokenizer, ["abc", "bd"])
    assert [run.add(tokenizer.encode(c)[0]) for c in "xababbe"] == ["x", "", "", "ab", "", "ab", "be"]
    assert run.add(tokenizer.encode("a")[0]) == "" and run.close() == "a"
    with pytest.raises(ValueError, match="at least one character"):
        Text(tokenizer, ["a", ""])


def test_tokens_are_a_list_with_a_reason():
    assert Tokens([1, 2]) == [1, 2] and Tokens().reason == "length"
    assert Sampling().check() == Sampling(1.0, 1.0, 0.0)
