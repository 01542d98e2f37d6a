"""EPLB: DeepSeek's published example, a slow second implementation, and what must hold for every input."""

from __future__ import annotations

import pytest
import torch

from minids.config import tiny
from minids.eplb import (
    ReplicatedExperts,
    balanced_packing,
    balancedness,
    gpu_loads,
    rebalance_experts,
    replicate_experts,
)
from minids.model import Transformer
from minids.moe import Experts

# the example of the README of DeepSeek's repository EPLB: 12 experts in 4 groups, 16 replicas, 2 nodes, 8 GPUs
WEIGHT = torch.tensor(
    [[90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86], [20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27]]
)
PUBLISHED = torch.tensor(
    [[5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1], [7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1]]
)
SIZES = [
    (12, 16, 4, 2, 8),
    (16, 24, 4, 2, 4),
    (24, 24, 3, 3, 6),
    (10, 12, 5, 2, 6),
    (256, 288, 8, 4, 32),
    (7, 21, 7, 1, 3),
]


def loads(seed: int, L: int, E: int) -> torch.Tensor:
    dice = torch.Generator().manual_seed(seed)
    return (torch.rand(L, E, generator=dice) ** 3 * 1000).round()


def test_the_published_example() -> None:
    phy2log, log2phy, logcnt = rebalance_experts(WEIGHT, 16, 4, 2, 8)
    assert torch.equal(phy2log, PUBLISHED)
    assert log2phy.shape == (2, 12, 2) and logcnt.sum().item() == 32


def slow(weight: list[float], R: int, groups: int, nodes: int, gpus: int) -> list[int]:
    """One layer, with lists and loops, from the description of the algorithm."""

    def pack(items: list[float], packs: int) -> list[tuple[int, int]]:
        room, where = len(items) // packs, [(0, 0)] * len(items)
        if room == 1:
            return [(i, 0) for i in range(len(items))]
        content: list[list[float]] = [[] for _ in range(packs)]
        for i in sorted(range(len(items)), key=lambda i: -items[i]):  # Python's sort is stable
            best = min((p for p in range(packs) if len(content[p]) < room), key=lambda p: total(content[p]))
            where[i] = (best, len(content[best]))
            content[best].append(items[i])
        return where

    def total(values: list[float]) -> float:
        return sum((torch.tensor(v) for v in values), torch.tensor(0.0)).item()  # in fp32, as the reference

    E = len(weight)
    if groups % nodes:
        groups = nodes = 1
    size = E // groups
    where = pack([total(weight[g * size : (g + 1) * size]) for g in range(groups)], nodes)
    slots = [-1] * R
    for node in range(nodes):
        mine = sorted((place, g) for g, (n, place) in enumerate(where) if n == node)
        experts = [g * size + i for _, g in mine for i in range(size)]
        count = dict.fromkeys(experts, 1)
        replicas = list(experts)
        while len(replicas) < R // nodes:
            most = max(experts, key=lambda e: torch.tensor(weight[e]) / count[e])
            replicas.append(most)
            count[most] += 1
        share = [(torch.tensor(weight[e]) / count[e]).item() for e in replicas]
        for e, (gpu, place) in zip(replicas, pack(share, gpus // nodes), strict=True):
            slots[node * R // nodes + gpu * R // gpus + place] = e
    return slots


@pytest.mark.parametrize("size", SIZES)
def test_the_plan_equals_a_slow_one_layer_by_layer(size: tuple[int, ...]) -> None:
    E, R, groups, nodes, gpus = size
    weight = loads(E, 3, E)
    weight[2] = 0  # all equal: only ties
    phy2log, _, _ = rebalance_experts(weight, R, groups, nodes, gpus)
    for row, want in zip(phy2log.tolist(), weight.tolist(), strict=True):
        assert row == slow(want, R, groups, nodes, gpus)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("seed", range(4))
def test_what_holds_for_every_load(size: tuple[int, ...], seed: int) -> None:
    E, R, groups, nodes, gpus = size
    weight = loads(seed, 5, E)
    phy2log, log2phy, logcnt = rebalance_experts(weight, R, groups, nodes, gpus)
    assert (logcnt >= 1).all() and (logcnt.sum(1) == R).all()
    for layer in range(5):
        assert torch.equal(torch.bincount(phy2log[layer], minlength=E), logcnt[layer])
        for e in range(E):
            slots = log2phy[layer, e]
            assert (slots >= 0).sum() == logcnt[layer, e] and (phy2log[layer][slots[slots >= 0]] == e).all()
            if groups % nodes == 0:  # all experts of a group, with their replicas, live on one node
                group = range(e // (E // groups) * (E // groups), (e // (E // groups) + 1) * (E // groups))
                homes = {int(s) // (R // nodes) for x in group for s in log2phy[layer, x] if s >= 0}
                assert len(homes) == 1
    shared = gpu_loads(weight, phy2log, gpus)
    torch.testing.assert_close(shared.sum(1), weight.sum(1))


def test_replicas_make_the_largest_gpu_load_smaller() -> None:
    weight = loads(0, 58, 256)
    plain = torch.arange(256).repeat(58, 1)
    before = balancedness(gpu_loads(weight, plain, 32))
    after = balancedness(gpu_loads(weight, rebalance_experts(weight, 288, 8, 4, 32)[0], 32))
    assert (after > before).all() and after.mean() > 0.9


def test_a_heavy_expert_is_split_until_its_share_is_no_longer_the_largest() -> None:
    expert, rank, count = replicate_experts(torch.tensor([[90.0, 10, 10, 10]]), 8)
    assert count.tolist() == [[5, 1, 1, 1]] and expert.tolist() == [[0, 1, 2, 3, 0, 0, 0, 0]]
    assert rank.tolist() == [[0, 0, 0, 0, 1, 2, 3, 4]]


def test_packing_fills_every_pack_and_puts_the_heaviest_on_the_lightest() -> None:
    pack, place = balanced_packing(torch.tensor([[5.0, 9, 1, 7, 3, 3]]), 2)
    # 9 | 7 5 3 -> 9 | 7; 5 onto 7; 3 onto 9 (9 + 3), 3 onto 12 or 12: the first; 1 where room is left
    assert pack.tolist() == [[1, 0, 1, 1, 0, 0]] and sorted(place[pack == 0].tolist()) == [0, 1, 2]
    with pytest.raises(ValueError, match="5 items for 2 packs"):
        balanced_packing(torch.ones(1, 5), 2)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((12, 16, 5, 1, 8), "12 experts, 5 groups"),
        ((12, 16, 4, 3, 8), "8 GPUs, 3 nodes"),
        ((12, 15, 4, 2, 8), "15 replicas, 8 GPUs"),
        ((12, 8, 4, 2, 8), "12 experts, 8 replicas"),
    ],
)
def test_sizes_that_do_not_divide_are_refused(size: tuple[int, ...], message: str) -> None:
    E, *rest = size
    with pytest.raises(ValueError, match=message):
        rebalance_experts(torch.ones(1, E), *rest)


def layer(T: int, E: int = 5, K: int = 2) -> tuple[Experts, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(experts, tokens, weights, indices); the first expert is in everybody's choice."""
    dice = torch.Generator().manual_seed(T)
    experts = Experts(E, 6, 3).requires_grad_(False)
    for p in experts.parameters():
        p.copy_(torch.randn(p.shape, generator=dice))
    others = torch.stack([1 + torch.randperm(E - 1, generator=dice)[: K - 1] for _ in range(T)])
    indices = torch.cat([torch.zeros(T, 1, dtype=torch.long), others], 1)
    return experts, torch.randn(T, 6, generator=dice), torch.rand(T, K, generator=dice), indices


@pytest.mark.parametrize("T", [1, 7, 300])  # gathered, every, sorted
def test_replicas_leave_a_layer_s_output_as_it_was(T: int) -> None:
    experts, x, weights, indices = layer(T)
    phy2log, log2phy, logcnt = (part[0] for part in rebalance_experts(loads(1, 1, 5), 8, 1, 1, 4))
    copies = ReplicatedExperts(experts, phy2log, log2phy, logcnt)
    with torch.no_grad():
        torch.testing.assert_close(copies(x, weights, indices), experts(x, weights, indices))
    assert torch.equal(phy2log[copies.slots(indices)], indices)  # each choice goes to a replica of the expert chosen


def test_the_replicas_of_an_expert_share_its_tokens_evenly() -> None:
    experts, _, _, indices = layer(302)
    plan = rebalance_experts(torch.bincount(indices.flatten(), minlength=5)[None], 8, 1, 1, 4)
    copies = ReplicatedExperts(experts, *(part[0] for part in plan))
    load = copies.load(indices)
    assert int(load.sum()) == 604 and int(plan[2][0, 0]) > 2
    for e in range(5):
        mine = load[plan[0][0] == e]
        assert int(mine.max() - mine.min()) <= 1


def test_a_whole_model_writes_the_same_with_replicas() -> None:
    model = Transformer(tiny(), torch.Generator().manual_seed(0)).requires_grad_(False).eval()
    tokens = torch.randint(100, (2, 37), generator=torch.Generator().manual_seed(1))
    want, routings = model.hidden(tokens)
    plan = rebalance_experts(torch.stack([r.load for r in routings]), 20, 1, 1, 4)
    for i, block in enumerate(b for b in model.layers if hasattr(b.ffn, "experts")):
        block.ffn.experts = ReplicatedExperts(block.ffn.experts, *(part[i] for part in plan))
    torch.testing.assert_close(model.hidden(tokens)[0], want)


def test_a_plan_for_another_number_of_experts_is_refused() -> None:
    plan = rebalance_experts(loads(1, 1, 7), 8, 1, 1, 4)
    with pytest.raises(ValueError, match="for 7 experts; the layer has 5"):
        ReplicatedExperts(layer(3)[0], *(part[0] for part in plan))
