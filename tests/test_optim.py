"""The schedule is the published one, AdamW is torch's with smaller moments, the average is the formula's."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from minids.optim import AdamW, BatchRamp, LRSchedule, averaged, make_optimizer, parameter_groups, state_bytes

T = 14.8  # trillion tokens of V3's pre-training


def test_schedule_has_the_published_rates_at_the_published_tokens():
    v3 = LRSchedule()
    late = 10**6
    assert v3.at(1000, 0.001) == pytest.approx(1.1e-4)  # half of the warm-up
    assert v3.at(2000, 0.002) == pytest.approx(2.2e-4)
    for tokens, rate in [(5, 2.2e-4), (10, 2.2e-4), (14.3, 2.2e-5), (14.6, 2.2e-5), (14.633, 7.3e-6), (14.799, 7.3e-6)]:
        assert v3.at(late, tokens / T) == pytest.approx(rate, rel=1e-12), tokens


@pytest.mark.parametrize("tokens", [10.0, 10.7, 12.15, 13.9, 14.2999])
def test_schedule_decays_by_the_papers_cosine(tokens):
    want = 2.2e-5 + 0.5 * 1.98e-4 * (1 + math.cos(math.pi * (tokens - 10) / 4.3))
    assert LRSchedule().at(10**6, tokens / T) == pytest.approx(want, rel=1e-9)


def test_schedule_keeps_its_shape_at_another_peak():
    small = LRSchedule(peak=3e-3, warmup_steps=10)
    for share in (0.0, 0.3, 0.7, 0.9, 0.97, 0.995):
        assert small.at(500, share) / 3e-3 == pytest.approx(LRSchedule().at(10**6, share) / 2.2e-4, rel=1e-9)


def test_warm_up_starts_above_zero_and_rises_in_a_straight_line():
    rates = [LRSchedule(peak=1.0, warmup_steps=4).at(step, 0.0) for step in range(1, 6)]
    assert rates == [0.25, 0.5, 0.75, 1.0, 1.0]


def test_schedule_refuses_stages_out_of_order():
    with pytest.raises(ValueError, match=r"follow one another.*got 0\.9"):
        LRSchedule(decay_start=0.9, decay_end=0.5)
    with pytest.raises(ValueError, match="peak is positive"):
        LRSchedule(peak=0.0)


def test_batch_grows_from_3072_to_15360_over_469_billion_tokens():
    ramp = BatchRamp()
    assert [ramp.at(t) for t in (0, 234_500_000_000, 469_000_000_000, 10**13)] == [3072, 9216, 15360, 15360]
    sizes = [ramp.at(t * 10**9) for t in range(0, 480, 7)]
    assert sizes == sorted(sizes)


def weights(dtype=torch.float32) -> list[nn.Parameter]:
    gen = torch.Generator().manual_seed(3)
    return [nn.Parameter(torch.randn(s, generator=gen).to(dtype)) for s in ((5, 7), (3, 2, 4), (11,))]


def run(params: list[nn.Parameter], optimizer: torch.optim.Optimizer, steps: int = 30) -> list[nn.Parameter]:
    gen = torch.Generator().manual_seed(4)
    for _ in range(steps):
        for p in params:
            p.grad = torch.randn(p.shape, generator=gen).to(p.dtype)
        optimizer.step()
    return params


def test_adamw_with_fp32_moments_is_torchs_to_the_bit():
    ours, theirs = weights(), weights()
    run(ours, AdamW(ours, lr=0.01, moments=torch.float32))
    run(theirs, torch.optim.AdamW(theirs, lr=0.01, betas=(0.9, 0.95), weight_decay=0.1, foreach=False))
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a, b)


def test_adamw_matches_the_formula_written_out_for_one_number():
    w, m, v, lr, b1, b2, eps, decay = 0.5, 0.0, 0.0, 0.1, 0.9, 0.95, 1e-8, 0.1
    p = nn.Parameter(torch.tensor([w]))
    optimizer = AdamW([p], lr=lr, moments=torch.float32)
    for t, g in enumerate([0.3, -0.2, 0.7], start=1):
        p.grad = torch.tensor([g])
        optimizer.step()
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        w = w * (1 - lr * decay) - lr * (m / (1 - b1**t)) / (math.sqrt(v / (1 - b2**t)) + eps)
    assert p.item() == pytest.approx(w, rel=1e-6)


def test_bf16_moments_take_half_the_bytes_and_stay_close():
    small, exact = weights(), weights()
    ours, theirs = AdamW(small, lr=0.01), torch.optim.AdamW(exact, lr=0.01, betas=(0.9, 0.95), weight_decay=0.1)
    run(small, ours)
    run(exact, theirs)
    n = sum(p.numel() for p in small)
    assert state_bytes(ours) == 4 * n + 4 * len(small)  # two moments of 2 bytes, and a counter a tensor
    assert state_bytes(theirs) == 8 * n + 4 * len(small)
    start = weights()
    for a, b, s in zip(small, exact, start, strict=True):
        # BF16 keeps 8 bits: each step's move is off by under 1 %, with changing sign
        assert (a - b).norm() < 0.01 * (b - s).norm()


def test_bf16_second_moment_forgets_at_0_95_but_would_stall_at_0_999():
    def last_v(b2: float) -> float:
        p = nn.Parameter(torch.zeros(1))
        optimizer = AdamW([p], betas=(0.9, b2))
        for g in [1.0] + [0.0] * 400:
            p.grad = torch.full((1,), g)
            optimizer.step()
        return optimizer.state[p]["exp_avg_sq"].item() / (1 - b2)

    assert last_v(0.95) < 1e-6
    assert last_v(0.999) == pytest.approx(1.0, rel=0.01)  # exact arithmetic: 0.999^400 = 0.67


def test_bf16_weights_gather_small_updates_in_an_fp32_master():
    p = nn.Parameter(torch.ones(6, dtype=torch.bfloat16))
    optimizer = AdamW([p], lr=1e-4, weight_decay=0.0)
    for _ in range(100):
        p.grad = torch.ones_like(p)
        optimizer.step()
    # 1 - 1e-4 rounds to 1 in BF16; a hundred such steps must show all the same
    torch.testing.assert_close(optimizer.state[p]["master"], torch.full((6,), 0.99), rtol=0, atol=1e-4)
    assert torch.equal(p, optimizer.state[p]["master"].bfloat16())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adamw_goes_on_from_its_state_dict_bit_for_bit(dtype):
    whole = weights(dtype)
    first = AdamW(whole)
    run(whole, first, 5)
    copy = [nn.Parameter(p.detach().clone()) for p in whole]
    second = AdamW(copy)
    second.load_state_dict(first.state_dict())
    assert second.state[copy[0]]["exp_avg"].dtype == torch.bfloat16
    for a, b in zip(run(whole, first, 5), run(copy, second, 5), strict=True):
        assert torch.equal(a, b)


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.norm, self.head = nn.Embedding(7, 5), nn.RMSNorm(5), nn.Linear(5, 3, bias=False)
        self.register_buffer("bias", torch.zeros(4))


def test_norms_and_embeddings_do_not_decay():
    model = Small()
    decays, rest = parameter_groups(model, 0.1)
    assert [p is model.head.weight for p in decays["params"]] == [True] and decays["weight_decay"] == 0.1
    assert {id(p) for p in rest["params"]} == {id(model.embed.weight), id(model.norm.weight)}
    assert rest["weight_decay"] == 0.0


def test_make_optimizer_takes_torchs_fused_adamw_for_fp32_moments_and_ours_for_bf16():
    stock = make_optimizer(Small(), 1e-3)
    assert type(stock) is torch.optim.AdamW and stock.defaults["fused"]
    assert isinstance(make_optimizer(Small(), 1e-3, moments="bf16"), AdamW)
    with pytest.raises(ValueError, match="'fp8'"):
        make_optimizer(Small(), 1e-3, moments="fp8")


def test_average_follows_the_formula_and_copies_buffers():
    model = Small()
    average, want = averaged(model, 0.75), None
    for step in range(4):
        with torch.no_grad():
            model.head.weight.add_(1.0 + step)
            model.bias.fill_(float(step))
        average.update_parameters(model)
        w = model.head.weight.detach().clone()
        want = w if want is None else 0.75 * want + 0.25 * w
    torch.testing.assert_close(average.module.head.weight, nn.Parameter(want))
    assert torch.equal(average.module.bias, model.bias)
    with pytest.raises(ValueError, match=r"decay lies in \[0, 1\)"):
        averaged(model, 1.0)
