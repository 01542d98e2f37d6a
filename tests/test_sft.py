"""Fine-tuning: the loss is on the response alone, samples come back as they were, the cold start stops by its gate."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from minids import tasks
from minids.alphabet import Alphabet
from minids.config import policy
from minids.model import Transformer
from minids.sft import cold_start, demonstrations, fine_tune, pack_samples, rows, sft_loss
from minids.tokenizer import default_tokenizer

alphabet = Alphabet()
PAIRS = [
    ("12+3=", tasks.respond("2305", "15")),
    ("7+5=", tasks.respond("", "12")),
    ("sort:310", tasks.respond("", "013")),
]


def make(seed: int = 0) -> Transformer:
    return Transformer(policy(len(alphabet)), torch.Generator().manual_seed(seed))


def test_rows_end_their_prompts_in_one_column_and_mask_the_responses() -> None:
    tokens, mask = rows(PAIRS, alphabet, width=9)
    for (prompt, response), row, masked in zip(PAIRS, tokens, mask, strict=True):
        assert alphabet.decode(row[:9].tolist()) == prompt and row[9] == alphabet.encode(response)[0]
        assert alphabet.decode(row[masked].tolist()) == response and row[masked][-1] == alphabet.eos
        assert (row[9:][~masked[9:]] == alphabet.pad).all() and not masked[:9].any()


def test_a_sample_that_does_not_come_back_and_a_prompt_that_is_too_long_are_refused() -> None:
    with pytest.raises(ValueError, match="must come back"):
        rows([("1+1=", "2<eos>3")], alphabet)
    with pytest.raises(ValueError, match="at most 3 symbols; got '12\\+3='"):
        rows(PAIRS, alphabet, width=3)
    with pytest.raises(ValueError, match="'é' at 1"):
        alphabet.encode("1é")


def test_the_loss_is_the_mean_over_response_tokens_and_nothing_of_the_prompt() -> None:
    model = make()
    tokens, mask = rows(PAIRS, alphabet)
    total, n = 0.0, 0
    with torch.no_grad():
        for row, masked in zip(tokens, mask, strict=True):
            logits = model(row[None])[0]
            for t in range(1, len(row)):
                if masked[t]:
                    total += F.cross_entropy(logits[t - 1], row[t]).item()
                    n += 1
        assert sft_loss(model, tokens, mask).item() == pytest.approx(total / n, abs=1e-5)
        padded = torch.cat([tokens, torch.full((3, 4), alphabet.pad)], 1)
        more = torch.cat([mask, torch.zeros(3, 4, dtype=torch.bool)], 1)
        assert sft_loss(model, padded, more).item() == pytest.approx(total / n, abs=1e-5)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_demonstrations_show_the_long_form_as_often_as_asked(share: float) -> None:
    found = list(itertools.islice(demonstrations(tasks.problems(tasks.equation), share), 2000))
    worked = sum("<think></think>" not in response for _, response in found) / 2000
    assert abs(worked - share) < 0.05
    with pytest.raises(ValueError, match="from 0 to 1; got 40"):
        next(demonstrations(tasks.problems(tasks.equation), 40))


def test_a_few_steps_learn_a_few_samples() -> None:
    model = make()
    losses = fine_tune(model, itertools.cycle(PAIRS), alphabet, steps=60, batch=6, progress=False)
    assert losses[0] > 3 and losses[-1] < 0.1


def test_a_cold_start_stops_at_its_gate_and_says_when_it_never_gets_there() -> None:
    measured = iter([0.0, 0.1, 0.3, 0.9])
    found = cold_start(make(), itertools.cycle(PAIRS), alphabet, lambda: next(measured), until=0.2, every=2,
                       batch=3, progress=False)  # fmt: skip
    assert found == [(2, 0.0), (4, 0.1), (6, 0.3)]
    with pytest.raises(RuntimeError, match=r"20% of the training problems are solved; after 4 steps it is 5\.0%"):
        cold_start(make(), itertools.cycle(PAIRS), alphabet, lambda: 0.05, every=2, most=4, batch=3, progress=False)


def test_the_balancing_bias_moves_with_the_load() -> None:
    model = make()
    fine_tune(model, itertools.cycle(PAIRS), alphabet, steps=3, batch=3, progress=False)
    assert all(gate.bias is not None and gate.bias.abs().max() > 0 for gate in model.gates())


def samples() -> list[tuple[list[int], list[bool]]]:
    """PAIRS without padding, as (ids, mask)."""
    found = []
    for pair in PAIRS:
        tokens, mask = rows([pair], alphabet)
        found.append((tokens[0].tolist(), mask[0].tolist()))
    return found


@pytest.mark.parametrize("attn", ["mla", "gqa"])
def test_a_packed_row_has_exactly_the_losses_of_its_samples_alone(attn: str) -> None:
    gqa = {"n_kv_heads": 2, "qk_nope_head_dim": 0, "qk_rope_head_dim": 16, "kv_lora_rank": 0}
    shape = gqa if attn == "gqa" else {}
    model = Transformer(replace(policy(len(alphabet)), attn=attn, **shape), torch.Generator().manual_seed(3)).double()
    packed = pack_samples(samples(), 43, alphabet.pad)
    assert packed.tokens.shape == (1, 43), "three samples share a row"
    losses = [sft_loss(model, torch.tensor([ids]), torch.tensor([mask])) * sum(mask) for ids, mask in samples()]
    alone = sum(losses) / sum(sum(mask) for _, mask in samples())
    torch.testing.assert_close(sft_loss(model, *packed), alone, rtol=1e-9, atol=1e-9)
    unmasked = sft_loss(model, packed.tokens, packed.mask)
    assert abs(unmasked - alone) > 1e-3, "without segments the samples see each other"


def test_a_packed_sample_does_not_move_when_its_neighbour_does() -> None:
    model = make().double()
    tokens, _, segments = pack_samples(samples(), 43, alphabet.pad)
    other = torch.where(segments == 1, (tokens + 1) % len(alphabet), tokens)
    a, b = (model.hidden(t, segments=segments)[0] for t in (tokens, other))
    torch.testing.assert_close(a[segments != 1], b[segments != 1])
    assert (a[segments == 1] - b[segments == 1]).abs().max() > 1e-2


def test_packing_keeps_every_token_of_every_sample_once_and_pads_the_rest() -> None:
    tokenizer = default_tokenizer()
    talks = [
        tokenizer.chat_with_mask([{"role": "user", "content": "a " * n}, {"role": "assistant", "content": "b " * n}])
        for n in (3, 9, 5, 14, 2)
    ]
    tokens, mask, segments = pack_samples(talks, 40, tokenizer.pad)
    found = []
    for row, masked, numbers in zip(tokens, mask, segments, strict=True):
        for n in range(1, int(numbers.max()) + 1):
            found.append((row[numbers == n].tolist(), masked[numbers == n].tolist()))
    assert sorted(found) == sorted((list(ids), list(m)) for ids, m in talks)
    assert (tokens[segments == 0] == tokenizer.pad).all() and not mask[segments == 0].any()
    assert len(tokens) < len(talks)


def test_a_sample_that_no_row_holds_or_whose_first_token_has_a_loss_is_refused() -> None:
    with pytest.raises(ValueError, match="1 to 3 ids"):
        pack_samples([([1, 2, 3, 4], [False] * 4)], 3, 0)
    with pytest.raises(ValueError, match="the first one False"):
        pack_samples([([1, 2], [True, True])], 3, 0)
    model = make()
    with pytest.raises(ValueError, match="got impl='absorb' and no cache"):
        model.hidden(torch.ones(1, 3, dtype=torch.long), impl="absorb", segments=torch.ones(1, 3, dtype=torch.long))
