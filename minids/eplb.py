"""Expert-parallel load balancing: which experts get replicas, and on which GPU each replica lives.

Paper: DeepSeek-V3 section 3.4 (redundant experts); the algorithm is that of DeepSeek's repository EPLB, `eplb.py`.

    weight [L E]   tokens that each expert of each layer got
    phy2log [L R]  the expert that each of R physical slots holds; GPU g owns the slots g R/gpus .. (g + 1) R/gpus
    log2phy [L E X] the slots of each expert's replicas, -1 where it has fewer than X
    logcnt [L E]   how many replicas each expert has

Three steps, each greedy: pack the groups of experts onto nodes; give replicas, one at a time, to the expert whose load
per replica is largest; pack the replicas onto the GPUs of their node. Packing: heaviest first, each onto the lightest
pack that has room. Where the groups cannot be split over the nodes evenly there is one node and one group (`global`).

All layers run at once: the loops go over experts, never over layers.

`ReplicatedExperts` runs a layer by such a plan: the tokens of an expert go to its replicas in turn, and nothing else
changes, least of all the gate.

Differs from the paper: ties are broken the same way everywhere (the lower index first). DeepSeek's code sorts without
that promise, and replicas of one expert always tie, so its result may depend on the build; the loads are the same.
Left out: prediction of the load (the paper uses statistics of past traffic).
Notebook: 17_serving.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from minids.moe import Experts
from minids.router import expert_load


def balanced_packing(weight: Float[Tensor, "X n"], packs: int) -> tuple[Int[Tensor, "X n"], Int[Tensor, "X n"]]:
    """(pack of each item, its place in the pack): n / packs items each, heaviest first onto the lightest with room."""
    X, n = weight.shape
    if n % packs:
        raise ValueError(f"packs hold equally many items; got {n} items for {packs} packs. Add or drop some.")
    room = n // packs
    if room == 1:
        return torch.arange(n).expand(X, n), torch.zeros(X, n, dtype=torch.long)
    order = weight.sort(dim=-1, descending=True, stable=True).indices
    pack, place = torch.empty(X, n, dtype=torch.long), torch.empty(X, n, dtype=torch.long)
    load, filled = torch.zeros(X, packs), torch.zeros(X, packs, dtype=torch.long)
    for i in range(n):
        item = order[:, i : i + 1]  # [X 1]
        # the lightest pack with room, the first of equally light ones
        best = load.masked_fill(filled == room, float("inf")).argmin(-1, keepdim=True)
        pack.scatter_(1, item, best)
        place.scatter_(1, item, filled.gather(1, best))
        load.scatter_add_(1, best, weight.gather(1, item))
        filled.scatter_add_(1, best, torch.ones_like(best))
    return pack, place


def replicate_experts(
    weight: Float[Tensor, "X n"], replicas: int
) -> tuple[Int[Tensor, "X R"], Int[Tensor, "X R"], Int[Tensor, "X n"]]:
    """(expert of each replica, which of its replicas it is, replicas of each expert): the next to the most loaded."""
    X, n = weight.shape
    expert = torch.arange(n).repeat(X, 1)
    rank, count = torch.zeros(X, n, dtype=torch.long), torch.ones(X, n, dtype=torch.long)
    experts, ranks = [expert], [rank]
    for _ in range(replicas - n):
        # the expert whose replicas carry most, the first of equals
        most = (weight / count).argmax(-1, keepdim=True)  # [X 1]
        experts.append(most)
        ranks.append(count.gather(1, most))
        count.scatter_add_(1, most, torch.ones_like(most))
    return torch.cat(experts, 1), torch.cat(ranks, 1), count


def rebalance_experts(
    weight: Tensor, num_replicas: int, num_groups: int, num_nodes: int, num_gpus: int
) -> tuple[Int[Tensor, "L R"], Int[Tensor, "L E X"], Int[Tensor, "L E"]]:
    """(phy2log, log2phy, logcnt) for the loads `weight` [L E]; names and order as in DeepSeek's code.

    ValueError for sizes that do not divide, or too few replicas.
    """
    L, E = weight.shape
    _check(E, num_replicas, num_groups, num_nodes, num_gpus)
    weight = weight.detach().float().cpu()
    if num_groups % num_nodes:  # the global policy: groups may be torn apart
        num_groups = num_nodes = 1
    phy2log, rank, logcnt = _hierarchical(weight, num_replicas, num_groups, num_nodes, num_gpus)
    log2phy = torch.full((L, E, int(logcnt.max())), -1)
    slots = torch.arange(num_replicas).expand(L, -1)
    log2phy.view(L, -1).scatter_(1, phy2log * log2phy.shape[-1] + rank, slots)
    return phy2log, log2phy, logcnt


def _hierarchical(weight: Tensor, replicas: int, groups: int, nodes: int, gpus: int) -> tuple[Tensor, Tensor, Tensor]:
    """(phy2log, which replica of its expert each slot holds, logcnt)."""
    L, E = weight.shape
    size, per_node, gpus_per_node = E // groups, E // nodes, gpus // nodes
    # 1 groups onto nodes; then experts are numbered node by node
    node, place = balanced_packing(weight.view(L, groups, size).sum(-1), nodes)
    first = (node * (groups // nodes) + place) * size  # [L groups]: where a group's experts begin
    log2mid = (first.unsqueeze(-1) + torch.arange(size)).view(L, E)
    mid2log = log2mid.argsort(-1)
    # 2 replicas within each node
    loads = weight.gather(1, mid2log).view(L * nodes, per_node)
    expert, rank, count = replicate_experts(loads, replicas // nodes)
    # 3 replicas onto the node's GPUs, by load a replica
    pack, place = balanced_packing((loads / count).gather(1, expert), gpus_per_node)
    slot = pack * (replicas // gpus) + place  # within the node
    at = slot.argsort(-1)  # the replica that each slot holds
    mid = expert.gather(1, at).view(L, nodes, -1) + torch.arange(nodes)[:, None] * per_node
    phy2log = mid2log.gather(1, mid.view(L, replicas))
    logcnt = count.view(L, E).gather(1, log2mid)
    return phy2log, rank.gather(1, at).view(L, replicas), logcnt


class ReplicatedExperts(Experts):
    """The experts of one layer in R slots, by its row of a plan; put it in the place of `MoE.experts`.

    The same sums as without replicas. ValueError for the plan of another number of experts.
    """

    def __init__(
        self, experts: Experts, phy2log: Int[Tensor, "R"], log2phy: Int[Tensor, "E X"], logcnt: Int[Tensor, "E"]
    ):
        E, D, F = experts.w2.shape
        if len(logcnt) != E:
            raise ValueError(f"the plan is for {len(logcnt)} experts; the layer has {E}. Plan with this model's loads.")
        super().__init__(len(phy2log), D, F)
        self.w13 = nn.Parameter(experts.w13.detach()[phy2log])
        self.w2 = nn.Parameter(experts.w2.detach()[phy2log])
        self.register_buffer("log2phy", log2phy)
        self.register_buffer("logcnt", logcnt)
        self.log2phy: Tensor
        self.logcnt: Tensor

    def forward(
        self, x: Float[Tensor, "T D"], weights: Float[Tensor, "T K"], indices: Int[Tensor, "T K"]
    ) -> Float[Tensor, "T D"]:
        """sum_k weights_k E_(indices_k)(x), each by one of the expert's replicas."""
        return super().forward(x, weights, self.slots(indices))

    def slots(self, indices: Int[Tensor, "T K"]) -> Int[Tensor, "T K"]:
        """The slot for each choice: the n-th token of an expert goes to its replica n mod logcnt."""
        chosen = torch.zeros(len(indices), len(self.logcnt), dtype=torch.long, device=indices.device)
        chosen.scatter_(1, indices, 1)
        turn = (chosen.cumsum(0).gather(1, indices) - 1) % self.logcnt[indices]
        return self.log2phy[indices, turn]

    def load(self, indices: Int[Tensor, "T K"]) -> Int[Tensor, "R"]:
        """Tokens that each slot gets."""
        return expert_load(self.slots(indices), len(self.w2))


def gpu_loads(weight: Tensor, phy2log: Int[Tensor, "L R"], num_gpus: int) -> Float[Tensor, "L gpus"]:
    """Tokens on each GPU when an expert's tokens are shared evenly among its replicas."""
    L, R = phy2log.shape
    count = torch.zeros(weight.shape).scatter_add_(1, phy2log, torch.ones(L, R))
    return (weight.float() / count.clamp(min=1)).gather(1, phy2log).view(L, num_gpus, -1).sum(-1)


def balancedness(loads: Float[Tensor, "L gpus"]) -> Float[Tensor, "L"]:
    """Mean load / largest load: 1 is perfect; the step takes as long as the slowest GPU."""
    return loads.mean(-1) / loads.amax(-1)


def _check(E: int, replicas: int, groups: int, nodes: int, gpus: int) -> None:
    rules = (
        (E % groups == 0, "num_groups divides the experts", f"{E} experts, {groups} groups"),
        (gpus % nodes == 0, "num_nodes divides num_gpus", f"{gpus} GPUs, {nodes} nodes"),
        (replicas % gpus == 0, "num_gpus divides num_replicas", f"{replicas} replicas, {gpus} GPUs"),
        (replicas >= E, "every expert needs a replica", f"{E} experts, {replicas} replicas"),
    )
    for ok, rule, got in rules:
        if not ok:
            raise ValueError(f"{rule}; got {got}. V3 decodes 256 experts with 320 replicas on 320 GPUs.")
