"""Experts on other processes: a token is sent to where its experts are (dispatch), their outputs come back (combine).

Paper: DeepSeek-V3 section 3.2.2 (a token goes over InfiniBand once for each target node, then over NVLink to its
experts), section 3.3.3 (FP8 dispatch with scales that are powers of two, BF16 combine), section 2.1.2 (node limit).

N processes hold E / N experts each, process r those from r E / N on; the gate and the shared experts are on all. The
processes are a table of nodes and of GPUs in a node (`processes.grid(node=.., local=..)`):

    1 hop over InfiniBand     a copy of x for each NODE that holds an expert of the token, to the GPU of the same place
    2 hop over NVLink         a copy for each expert on this node, to the GPU that holds it
    3 experts                 g_k E_k(x) where the expert is
    4 back over NVLink        summed on the GPU that forwarded: one row a token and node
    5 back over InfiniBand    summed on the token's own GPU

Each hop is one `all_to_all_single` with as many rows for each process as happen to go there (`Hop`). Backward the same
hops run in reverse: the gradient of a combine is a dispatch and travels in FP8, that of a dispatch travels in BF16.

The second hop quantises again what the first one brought. With scales that are powers of two that changes nothing:
every number is on its grid already.

Differs from the paper: one copy over NVLink for each expert, as the paper counts; DeepEP sends one a GPU. Here steps
follow one another; the paper overlaps them, and gives them 20 of a GPU's 132 SMs.
Left out: RDMA, low-latency kernels for decoding, redundant experts (17_serving).
Notebook: 11_expert_parallel.
"""

from __future__ import annotations

import argparse
import copy
import json
from dataclasses import replace
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from jaxtyping import Float, Int, Shaped, UInt8
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.distributed.device_mesh import DeviceMesh

from minids.config import Config, tiny
from minids.fp8 import TILE, Quantized, quantize
from minids.moe import Experts, MoE, Routing
from minids.network import nodes_visited
from minids.processes import gathered, grid, join, launch


class Wires(NamedTuple):
    """How rows travel: "fp8", "bf16", or "" for as they are."""

    dispatch: str = "fp8"
    combine: str = "bf16"


class Meter:
    """Bytes that this process handed to an all-to-all, by what they were ("ib dispatch") and by process of the group.

    Those for itself are among them: the paper's model counts a copy for each node, the token's own one too.
    """

    def __init__(self):
        self.bytes: dict[str, list[int]] = {}

    def add(self, what: str, row_bytes: int, rows: list[int]) -> None:
        """`rows[i]` rows of `row_bytes` go to process i of the group."""
        before = self.bytes.get(what, [0] * len(rows))
        self.bytes[what] = [b + row_bytes * n for b, n in zip(before, rows, strict=True)]

    def sent(self, what: str) -> int:
        """All bytes of a kind."""
        return sum(self.bytes.get(what, ()))


def pack(x: Shaped[Tensor, "n D"], wire: str) -> UInt8[Tensor, "n bytes"]:
    """Rows as bytes. FP8: D codes, then an FP32 scale for each 128 of them."""
    if wire == "fp8" and len(x):
        # no floor for activations: a gradient of 1e-6 needs its scale
        q = quantize(x, TILE, power_of_two=True, floor=1e-30)
        return torch.cat([q.values.to(torch.float8_e4m3fn).view(torch.uint8), q.scale.view(torch.uint8)], 1)
    if wire == "fp8":
        return torch.empty(0, x.shape[1] + 4 * -(-x.shape[1] // TILE[1]), dtype=torch.uint8, device=x.device)
    return (x.bfloat16() if wire == "bf16" else x).contiguous().view(torch.uint8)


def unpack(data: UInt8[Tensor, "n bytes"], wire: str, dim: int, dtype: torch.dtype) -> Shaped[Tensor, "n D"]:
    """The rows that `pack` made into bytes, rounded to what the wire can carry."""
    if not wire:
        return data.view(dtype)
    if wire == "bf16" or not len(data):
        return (data.view(torch.bfloat16) if len(data) else data.new_empty(0, dim)).to(dtype)
    codes, scale = data[:, :dim].view(torch.float8_e4m3fn), data[:, dim:].contiguous().view(torch.float32)
    return Quantized(codes.float(), scale, TILE).dequantize().to(dtype)


class _Exchange(torch.autograd.Function):
    """Rows to the processes, `send[i]` consecutive ones to process i; backward they go home."""

    @staticmethod
    def forward(ctx, x, hop, send, recv, wires, names):
        ctx.hop, ctx.send, ctx.recv, ctx.wires, ctx.names = hop, send, recv, wires, names
        return hop.exchange(x, send, recv, wires[0], names[0])

    @staticmethod
    @once_differentiable
    def backward(ctx, d):  # type: ignore[override]
        return ctx.hop.exchange(d, ctx.recv, ctx.send, ctx.wires[1], ctx.names[1]), *(None,) * 5


class Hop:
    """One all-to-all of a group, there and back again: n rows, row i to the process `target[i]` of the group."""

    def __init__(self, target: Int[Tensor, "n"], group: dist.ProcessGroup, link: str, meter: Meter):
        self.group, self.link, self.meter = group, link, meter
        self.order = target.argsort(stable=True)
        send = torch.bincount(target, minlength=dist.get_world_size(group))
        recv = torch.empty_like(send)
        dist.all_to_all_single(recv, send, group=group)  # how many rows will come
        self.send, self.recv = send.tolist(), recv.tolist()

    def exchange(
        self, x: Shaped[Tensor, "n D"], send: list[int], recv: list[int], wire: str, name: str
    ) -> Shaped[Tensor, "m D"]:
        data = pack(x, wire)
        out = data.new_empty(sum(recv), data.shape[1])
        dist.all_to_all_single(out, data, recv, send, group=self.group)
        self.meter.add(f"{self.link} {name}", data.shape[1], send)
        return unpack(out, wire, x.shape[1], x.dtype)

    def dispatch(self, rows: Float[Tensor, "n D"], wires: Wires) -> Float[Tensor, "m D"]:
        """Rows to their targets; what arrives is ordered by the process that it comes from."""
        names = ("dispatch", "dispatch backward")
        return self.there(rows, (wires.dispatch, wires.combine), names)

    def combine(self, rows: Float[Tensor, "m D"], wires: Wires) -> Float[Tensor, "n D"]:
        """A row for each that arrived, home again, in the order of `target`."""
        names = ("combine", "combine backward")
        y = _Exchange.apply(rows, self, self.recv, self.send, (wires.combine, wires.dispatch), names)
        return torch.empty_like(y).index_copy(0, self.order, y)

    def there(
        self,
        rows: Shaped[Tensor, "n D"],
        wires: tuple[str, str] = ("", ""),
        names: tuple[str, str] = ("routing", "routing backward"),
    ) -> Shaped[Tensor, "m D"]:
        """`dispatch` of anything, integers too, by default as it is."""
        return _Exchange.apply(rows.index_select(0, self.order), self, self.send, self.recv, wires, names)


class ExpertParallel(nn.Module):
    """A MoE layer of which this process holds its share of the experts. The same function as the layer it came from.

    Args:
        moe: the whole layer; gate and shared experts are used as they are, the experts here are a copy of a slice.
        mesh: a table of processes, `grid(node=.., local=..)`, or such a part of a larger one.
        once_a_node: False sends a copy for each expert straight to its process, over both links at once; the table then
            has all processes.
    Gradients: an expert's are whole. Those of gate and shared experts are of this process's tokens: `sum_replicated`.
    """

    def __init__(self, moe: MoE, mesh: DeviceMesh, wires: Wires | None = None, once_a_node: bool = True):
        super().__init__()
        E, D, F_ = moe.experts.w2.shape
        self.world = mesh.size()
        self.rank = mesh.get_local_rank("node") * mesh["local"].size() + mesh.get_local_rank("local")  # in the table
        share = experts_each(E, self.world)
        own = slice(self.rank * share, (self.rank + 1) * share)
        self.gate, self.shared_experts = moe.gate, moe.shared_experts
        self.experts = Experts(share, D, F_).to(moe.experts.w2)
        with torch.no_grad():
            self.experts.w13.copy_(moe.experts.w13[own])
            self.experts.w2.copy_(moe.experts.w2[own])
        self.mesh, self.wires, self.once_a_node, self.meter = mesh, wires or Wires(), once_a_node, Meter()

    def __deepcopy__(self, memo: dict) -> ExpertParallel:
        """Another layer, for averages of weights; its processes are the same."""
        memo[id(self)] = twin = self.__new__(type(self))
        memo[id(self.mesh)] = self.mesh
        twin.__dict__ = copy.deepcopy(self.__dict__, memo)
        return twin

    def forward(self, x: Float[Tensor, "B S D"]) -> tuple[Float[Tensor, "B S D"], Routing]:
        B, S, D = x.shape
        flat = x.reshape(B * S, D)
        weights, indices, scores = self.gate(flat)
        routed = self.by_node if self.once_a_node else self.straight
        y = routed(flat, weights, indices).view(B, S, D)
        if self.shared_experts is not None:
            y = y + self.shared_experts(x)
        return y, Routing(scores.view(B, S, -1), indices.view(B, S, -1))

    def straight(
        self, x: Float[Tensor, "T D"], weights: Float[Tensor, "T K"], indices: Int[Tensor, "T K"]
    ) -> Float[Tensor, "T D"]:
        """A copy for each of the T K pairs, in one all-to-all over all processes."""
        T, K = indices.shape
        share = self.experts.w13.shape[0]
        token, expert = torch.arange(T * K, device=x.device) // K, indices.flatten()
        hop = Hop(expert // share, dist.group.WORLD, "any", self.meter)  # pyright: ignore[reportArgumentType]
        rows = hop.dispatch(x.index_select(0, token), self.wires)
        y = self.compute(rows, hop.there(weights.reshape(-1, 1)), hop.there(expert.unsqueeze(-1)))
        return x.new_zeros(x.shape).index_add(0, token, hop.combine(y, self.wires))

    def by_node(
        self, x: Float[Tensor, "T D"], weights: Float[Tensor, "T K"], indices: Int[Tensor, "T K"]
    ) -> Float[Tensor, "T D"]:
        """A copy for each node of a token's experts, and from there one for each expert on that node."""
        share = self.experts.w13.shape[0]
        on_node = share * self.mesh["local"].size()
        # [T nodes]: does the token have an expert there?
        visits = torch.zeros(len(x), self.mesh["node"].size(), dtype=torch.bool, device=x.device)
        token, node = visits.scatter_(1, indices // on_node, True).nonzero().unbind(1)
        far = Hop(node, self.mesh.get_group("node"), "ib", self.meter)
        rows = far.dispatch(x.index_select(0, token), self.wires)
        g, experts = far.there(weights.index_select(0, token)), far.there(indices.index_select(0, token))
        # which of a row's K experts are on this node, and on which of its GPUs?
        row, k = (experts // on_node == self.mesh.get_local_rank("node")).nonzero().unbind(1)
        expert = experts[row, k]
        near = Hop(expert % on_node // share, self.mesh.get_group("local"), "nvlink", self.meter)
        copies = near.dispatch(rows.index_select(0, row), self.wires)
        y = self.compute(copies, near.there(g[row, k].unsqueeze(-1)), near.there(expert.unsqueeze(-1)))
        # summed in the node, then at home
        y = torch.zeros_like(rows).index_add(0, row, near.combine(y, self.wires))
        return torch.zeros_like(x).index_add(0, token, far.combine(y, self.wires))

    def compute(
        self, rows: Float[Tensor, "m D"], g: Float[Tensor, "m 1"], expert: Int[Tensor, "m 1"]
    ) -> Float[Tensor, "m D"]:
        """g E(x) of each row that arrived, by the experts of this process."""
        return self.experts.sorted(rows, g, expert - self.rank * self.experts.w13.shape[0])

    def sum_replicated(self) -> None:
        """After the backward pass: add up the gradients of gate and shared experts over all processes."""
        shared = self.shared_experts.parameters() if self.shared_experts is not None else ()
        for p in (*self.gate.parameters(), *shared):
            if p.grad is None:  # no token here, but others wait
                p.grad = torch.zeros_like(p)
            dist.all_reduce(p.grad)


def experts_each(experts: int, world: int) -> int:
    """How many experts a process holds. ValueError unless it is the same number for all."""
    if world < 1 or experts % world:
        fit = ", ".join(str(n) for n in range(1, experts + 1) if experts % n == 0)
        raise ValueError(
            f"every process holds equally many experts: {experts} experts do not divide over {world} processes. "
            f"Start one of {fit} processes, or change n_routed_experts."
        )
    return experts // world


def compare(nodes: int, cfg: Config, once_a_node: bool, wires: tuple[str, str], seed: int = 0) -> dict[str, Any]:
    """In one of several processes: the layer cut over all of them beside the whole layer in this one. What differs?

    Relative differences of the output and of three gradients; the rows that this process got; its bytes and those that
    the model predicts. Each process has another number of tokens.
    """
    world, rank = dist.get_world_size(), dist.get_rank()
    torch.manual_seed(seed)
    whole = MoE(cfg)
    for p in whole.parameters():
        nn.init.normal_(p, std=0.1)
    batches = [torch.randn(1, 21 + 8 * r, cfg.dim, requires_grad=True) for r in range(world)]
    outputs = [whole(x) for x in batches]
    cut = ExpertParallel(copy.deepcopy(whole), grid(node=nodes, local=world // nodes), Wires(*wires), once_a_node)
    x = batches[rank].detach().requires_grad_()
    y, routing = cut(x)
    torch.stack([out.square().sum() for out, _ in outputs]).sum().backward()
    y.square().sum().backward()
    cut.sum_replicated()
    share = len(cut.experts.w13)
    own = slice(rank * share, (rank + 1) * share)
    pairs = {
        "output": (y, outputs[rank][0]),
        "gradient of x": (x.grad, batches[rank].grad),
        "gradient of experts": (cut.experts.w13.grad, whole.experts.w13.grad[own]),  # pyright: ignore
        "gradient of gate": (cut.gate.weight.grad, whole.gate.weight.grad),
    }
    visits = nodes_visited(routing.indices.flatten(0, 1).tolist(), cfg.n_routed_experts // nodes)
    return {
        "tokens": x.shape[1],
        "nodes visited": sum(visits),
        "experts": x.shape[1] * cfg.n_activated_experts,
        "difference": {name: ((a - b).norm() / b.norm()).item() for name, (a, b) in pairs.items()},
        "bytes": cut.meter.bytes,
    }


def _arms(world: int, nodes: int) -> dict[str, Any]:
    """What `python -m minids.expert_parallel` runs: the same layer, with more and more of what the paper does."""
    small = {"dim": 256, "moe_inter_dim": 32, "n_routed_experts": 4 * world, "n_activated_experts": 6}
    cfg = replace(tiny(), **small, n_expert_groups=nodes, n_limited_groups=nodes)
    limited = replace(cfg, n_limited_groups=max(1, nodes // 2))
    return {
        "a copy an expert": (cfg, False, ("", "")),
        "a copy a node": (cfg, True, ("", "")),
        "half of the nodes": (limited, True, ("", "")),
        "FP8 and BF16": (limited, True, ("fp8", "bf16")),
    }


def _all_arms(world: int, nodes: int) -> dict[str, Any]:
    return {name: compare(nodes, *arm) for name, arm in _arms(world, nodes).items()}


def report(results: list[dict[str, Any]]) -> str:
    """The results of all processes as a table of text: worst difference, and bytes of all processes."""
    lines = [f"{len(results)} processes, {sum(r['a copy a node']['tokens'] for r in results)} tokens, forward:"]
    for name in results[0]:
        arms = [r[name] for r in results]
        worst = max(max(arm["difference"].values()) for arm in arms)
        total = {kind: sum(sum(arm["bytes"][kind]) for arm in arms) for kind in arms[0]["bytes"]}
        shown = ", ".join(f"{kind} {n:,}" for kind, n in total.items() if kind.endswith(("dispatch", "combine")))
        lines.append(f"{name:18} differs by {worst:.0e} from one process; bytes: {shown}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="A MoE layer on several processes, compared with one process.")
    parser.add_argument("--world", type=int, default=4, help="processes; under torchrun, those that it started")
    parser.add_argument("--nodes", type=int, default=2, help="nodes that they are counted to")
    parser.add_argument("--json", action="store_true", help="print the results of each process as JSON")
    args = parser.parse_args()
    if dist.is_torchelastic_launched():
        join()
        results = gathered(_all_arms(dist.get_world_size(), args.nodes))
    else:
        results = launch(_all_arms, args.world, args.world, args.nodes)
    if not dist.is_initialized() or dist.get_rank() == 0:
        print(json.dumps(results) if args.json else report(results))


if __name__ == "__main__":
    main()
