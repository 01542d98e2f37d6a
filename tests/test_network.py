"""The network's price and the parallel plan: the paper's numbers from its formulas, slow sums beside fast ones."""

from __future__ import annotations

import pytest

from minids.config import tiny, v3
from minids.costs import params
from minids.network import Links, combine_bytes, dispatch_bytes, nodes_visited, overlapped, transfer
from minids.plan import Plan, bytes_per_gpu, days, gpu_hours_per_trillion, params_per_gpu


def test_dispatch_and_combine_of_v3_take_the_times_of_the_formula() -> None:
    there = transfer(dispatch_bytes(7168, scales=False), nodes=4, experts=8)
    back = transfer(combine_bytes(7168), nodes=4, experts=8)
    assert [round(t, 3) for t in (*there, *back)] == [0.573, 0.358, 1.147, 0.717]
    assert there.time == there.ib and dispatch_bytes(7168) == 7168 + 56 * 4 and dispatch_bytes(130) == 130 + 2 * 4


@pytest.mark.parametrize("nodes", [1, 2, 4, 8])
def test_experts_cost_nothing_up_to_3_2_a_node(nodes: int) -> None:
    free = int(Links().experts_per_node * nodes)
    assert free == int(3.2 * nodes)
    times = [transfer(1000, nodes, experts).time for experts in range(nodes, 40)]
    assert all(t == times[0] for experts, t in zip(range(nodes, 40), times, strict=True) if experts <= free)
    assert all(t > times[0] for experts, t in zip(range(nodes, 40), times, strict=True) if experts > free)


def test_what_no_network_does_is_refused() -> None:
    with pytest.raises(ValueError, match="got 9 nodes, 8 experts"):
        transfer(1, 9, 8)
    with pytest.raises(ValueError, match="above 0 GB/s; got 0 and 160"):
        Links(ib=0)
    with pytest.raises(ValueError, match="chunks 1 or more"):
        overlapped(1, 1, 0)


def by_ticks(compute: int, communicate: int, chunks: int) -> int:
    """The same overlap, a tick at a time."""
    c, m = compute // chunks, communicate // chunks
    sent = worked = ticks = 0
    while worked < c * chunks:
        can = sent // m if m else chunks
        worked += worked < can * c
        sent += sent < m * chunks
        ticks += 1
    return ticks


@pytest.mark.parametrize(
    ("compute", "communicate", "chunks"), [(12, 12, 4), (12, 12, 1), (24, 8, 4), (6, 30, 3), (5, 0, 5)]
)
def test_overlap_in_chunks_takes_what_a_clock_says(compute: int, communicate: int, chunks: int) -> None:
    found = overlapped(compute, communicate, chunks)
    assert found.together == pytest.approx(by_ticks(compute, communicate, chunks), abs=1e-9)
    assert max(compute, communicate) <= found.together <= found.alone == compute + communicate


def test_more_chunks_hide_more_until_only_the_first_is_left() -> None:
    hidden = [overlapped(1.0, 1.0, n).hidden for n in (1, 2, 4, 100)]
    assert hidden == pytest.approx([0, 0.5, 0.75, 0.99])


def test_a_token_visits_the_nodes_of_its_experts() -> None:
    assert nodes_visited([[0, 1, 7], [8, 16, 24], [9, 8, 10]], 8) == [1, 3, 1]


def test_the_plan_places_every_parameter_as_often_as_it_says() -> None:
    cfg, plan = v3(), Plan()
    experts, rest = params_per_gpu(cfg, plan)
    held = experts * plan.pp * plan.ep + rest * plan.pp  # one copy of everything, in both directions
    assert held == pytest.approx(2 * params(cfg).total)
    one_way = params_per_gpu(cfg, Plan(stages_per_rank=1))
    assert (experts, rest) == (2 * one_way[0], 2 * one_way[1])


def test_zero_1_keeps_each_master_and_moment_once_in_the_cluster() -> None:
    cfg, plan = v3(), Plan()
    sizes = bytes_per_gpu(cfg, plan)
    assert sizes["masters (FP32)"] * plan.gpus == pytest.approx(4 * params(cfg).total)
    without = bytes_per_gpu(cfg, Plan(zero1=False))
    assert without["masters (FP32)"] == 2 * sizes["weights (BF16)"] == without["weights (BF16)"] * 2
    assert without["gradients (FP32)"] == sizes["gradients (FP32)"]


def test_the_bill_of_the_paper() -> None:
    assert gpu_hours_per_trillion() == 180_000
    assert round(days(180_000), 1) == 3.7


def test_plans_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="2048 GPUs, pp=15"):
        Plan(pp=15)
    with pytest.raises(ValueError, match="= 128; got ep=48"):
        Plan(ep=48)
    with pytest.raises(ValueError, match="got 16 experts, ep=64"):
        params_per_gpu(tiny(), Plan())
