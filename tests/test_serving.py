"""Serving: whoever else is in the batch, a request gets the text that it would get alone, and none is lost."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from minids.config import dense_active, tiny
from minids.generate import Sampling, generate
from minids.model import Transformer
from minids.serving import Engine, Full, Measured, Request, prefill, report, serve_all

W, LIMIT = 31, 40


@pytest.fixture(scope="module")
def model() -> Transformer:
    cfg = replace(tiny(), vocab_size=W, n_layers=2, n_mtp_modules=0, max_seq_len=LIMIT, original_seq_len=LIMIT)
    made = Transformer(cfg, torch.Generator().manual_seed(0)).eval()
    made.head.weight.data *= 8
    return made


def requests(n: int, **sampling: float) -> list[Request]:
    dice = torch.Generator().manual_seed(n)
    found = []
    for i in range(n):
        prompt = torch.randint(W, (1 + (7 * i) % 11,), generator=dice).tolist()
        found.append(Request(f"r{i}", prompt, 1 + (5 * i) % 13, Sampling(**({"temperature": 0.0} | sampling)), (3,), i))
    return found


@pytest.mark.parametrize("slots", [1, 2, 5])
def test_every_request_gets_the_greedy_text_that_it_would_get_alone(model: Transformer, slots: int) -> None:
    asked = requests(13)
    results = serve_all(Engine(model, slots), asked)
    for r in asked:
        alone = generate(model, r.prompt, r.max_new_tokens, temperature=0, stop_ids=r.stop_ids)
        assert results[r.name] == alone and results[r.name].reason == alone.reason  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "sampling", [{"temperature": 1.0}, {"temperature": 0.8, "top_p": 0.7}, {"frequency_penalty": 1.5}]
)
def test_draws_and_penalties_are_a_request_s_own(model: Transformer, sampling: dict) -> None:
    asked = requests(9, **sampling)
    together, alone = serve_all(Engine(model, 4), asked), {}
    for r in asked:
        alone |= serve_all(Engine(model, 1), [r])
        how = r.sampling
        plain = generate(model, r.prompt, r.max_new_tokens, how.temperature, how.top_p, how.frequency_penalty,
                         r.stop_ids, torch.Generator().manual_seed(r.seed))  # fmt: skip
        assert alone[r.name] == plain
    assert together == alone


def test_a_prompt_read_elsewhere_goes_on_to_the_same_text(model: Transformer) -> None:
    asked = requests(6, temperature=1.0)
    here, there = Engine(model, 3), Engine(model, 3)
    want = serve_all(here, asked)
    for r in asked:
        there.submit(r, prefill(model, r))
    got: dict[str, list[int]] = {r.name: [] for r in asked}
    for event in there.run():
        got[event.name].append(event.token)
    for r in asked:
        assert [t for t in got[r.name] if t not in r.stop_ids] == want[r.name]
    handed = prefill(model, asked[1])
    values = model.cfg.kv_lora_rank + model.cfg.qk_rope_head_dim
    assert handed.nbytes == 4 * model.cfg.n_layers * len(asked[1].prompt) * values


def test_a_text_ends_where_the_context_ends(model: Transformer) -> None:
    request = Request("long", list(range(30)), 100)
    assert len(serve_all(Engine(model, 2), [request])["long"]) == LIMIT - 30
    events = list(_submitted(model, request).run())
    assert events[-1].reason == "context" and [e.reason for e in events[:-1]] == [""] * (len(events) - 1)


def _submitted(model: Transformer, *asked: Request) -> Engine:
    engine = Engine(model, 4)
    for r in asked:
        engine.submit(r)
    return engine


def test_a_client_that_leaves_frees_its_slot_and_harms_no_other(model: Transformer) -> None:
    asked = [Request(f"r{i}", [i, i + 1], 12) for i in range(6)]
    want = serve_all(Engine(model, 6), asked)
    engine, got = _submitted(model, *asked), {r.name: [] for r in asked}
    for _ in range(3):
        for event in engine.step():
            got[event.name].append(event.token)
    assert engine.cancel("r1") and engine.cancel("r5") and not engine.cancel("r1")  # one decodes, one waits
    assert len(engine.rows) == 3
    for event in engine.run():
        got[event.name].append(event.token)
    assert all(got[name] == want[name] for name in ("r0", "r2", "r3", "r4")) and len(got["r1"]) == 4
    assert engine.idle and all(int(layer.lengths.sum()) == 0 for layer in engine.cache)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request("a", [], 3), "1 to 39 tokens"),
        (Request("a", [1] * 40, 3), "got 40. Shorten"),
        (Request("a", [1, W], 3), "from 0 to 30; got 31"),
        (Request("a", [1], 0), "at least 1; got 0"),
        (Request("a", [1], 3, Sampling(temperature=-1.0)), "temperature must be 0"),
    ],
)
def test_a_request_that_cannot_be_served_is_refused_before_it_waits(
    model: Transformer, request_: Request, message: str
) -> None:
    engine = Engine(model, 2)
    with pytest.raises(ValueError, match=message):
        engine.submit(request_)
    assert engine.idle


def test_a_full_queue_and_a_taken_name_are_refused(model: Transformer) -> None:
    engine = Engine(model, 1, max_waiting=2)
    engine.submit(Request("a", [1], 3))
    with pytest.raises(ValueError, match="'a' is taken"):
        engine.submit(Request("a", [1], 3))
    engine.submit(Request("b", [1], 3))
    with pytest.raises(Full, match="2 requests wait already"):
        engine.submit(Request("c", [1], 3))
    assert len(list(engine.run())) == 6
    engine.submit(Request("a", [1], 3))  # the first one has ended


def test_a_model_without_latents_cannot_be_served() -> None:
    with pytest.raises(ValueError, match="attn='gqa'"):
        Engine(Transformer(replace(dense_active(), n_layers=1, n_dense_layers=1)), 1).submit(Request("a", [1], 3))


def test_times_are_from_the_engine_s_clock(model: Transformer) -> None:
    ticks = iter(range(1000))
    engine = Engine(model, 2, clock=lambda: float(next(ticks)))
    for i in range(2):
        engine.submit(Request(f"r{i}", [1, 2 + i], 4))  # come at 0 and 1
    list(engine.run())
    one, two = engine.measured["r0"], engine.measured["r1"]
    assert (one.came, one.first, two.came, two.first) == (0, 2, 1, 3)
    assert one.ttft == 2 and one.tpot == 2 and one.tokens == 4  # two rows a step: two ticks


def test_goodput_counts_requests_that_met_both_bounds() -> None:
    measured = {"a": Measured(0, 1, 5, 5), "b": Measured(0, 4, 8, 5), "c": Measured(2, 3, 10, 3), "d": Measured(9)}
    found = report(measured, ttft=2, tpot=1)
    assert found.ttft == [1, 4, 1] and found.tpot == [1, 1, 3.5]
    assert found.goodput == pytest.approx(1 / 10) and found.tokens_per_second == pytest.approx(13 / 10)
    assert report({}, 1, 1).goodput == 0
