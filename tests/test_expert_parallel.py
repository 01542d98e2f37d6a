"""Experts over real processes: equal to one process forward and backward, with the bytes that the model predicts."""

from __future__ import annotations

import copy
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from minids.config import tiny
from minids.expert_parallel import ExpertParallel, Wires, experts_each, pack, report, unpack
from minids.fp8 import TILE, quantize
from minids.moe import MoE
from minids.network import combine_bytes, dispatch_bytes, nodes_visited
from minids.processes import grid, launch, start_method

SIZES: dict[str, Any] = {"dim": 136, "moe_inter_dim": 20, "n_routed_experts": 12, "n_activated_experts": 5}
PLAIN, PAPER = ("", ""), ("fp8", "bf16")
# arm: nodes that a token may use of 2, wires, one copy a node, is every token sent to the experts of process 0?
ARMS: dict[str, tuple[int, tuple[str, str], bool, bool]] = {
    "once a node": (2, PLAIN, True, False),
    "once an expert": (2, PLAIN, False, False),
    "one node only": (1, PLAIN, True, False),
    "the paper's wires": (2, PAPER, True, False),
    "all to one process": (2, PLAIN, True, True),
}


def layer_and_batches(world: int, limit: int, crowd: bool) -> tuple[MoE, list[Tensor]]:
    """The same in every process: a whole layer in fp64, and another number of tokens for each process."""
    torch.manual_seed(3)
    moe = MoE(replace(tiny(), **SIZES, n_expert_groups=2, n_limited_groups=limit)).double()
    for p in moe.parameters():
        torch.nn.init.normal_(p, std=0.2)
    if crowd:
        assert moe.gate.bias is not None
        moe.gate.bias[: 12 // world] = 9.0
        moe.gate.cfg = replace(moe.gate.cfg, n_activated_experts=3)
    return moe, [torch.randn(1, 7 * r + 2, 136, dtype=torch.float64) for r in range(world)]


def cut_layer(arm: str, world: int) -> dict[str, Any]:
    """In one of the processes: its part of everything, forward and backward."""
    limit, wires, once, crowd = ARMS[arm]
    moe, batches = layer_and_batches(world, limit, crowd)
    layer = ExpertParallel(moe, grid(node=2, local=world // 2), Wires(*wires), once)
    x = batches[dist.get_rank()].requires_grad_()
    y, routing = layer(x)
    y.square().sum().backward()
    layer.sum_replicated()
    gradients = {name: p.grad for name, p in layer.named_parameters()}
    return {"y": y.detach(), "x": x.grad, **gradients, "indices": routing.indices[0], "bytes": layer.meter.bytes}


def everything(world: int) -> dict[str, Any]:
    found: dict[str, Any] = {arm: cut_layer(arm, world) for arm in ARMS}
    try:
        grid(node=3, local=world)
    except ValueError as error:
        found["message"] = str(error)
    return found


@cache
def processes(world: int) -> list[dict[str, Any]]:
    return launch(everything, world, world)


class Wire(torch.autograd.Function):
    """What a wire does to numbers, there and, for the gradient, back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, there: str, back: str) -> Tensor:
        ctx.back = back
        return unpack(pack(x, there), there, x.shape[1], x.dtype)

    @staticmethod
    def backward(ctx: Any, *d: Tensor) -> tuple[Tensor, None, None]:
        return unpack(pack(d[0], ctx.back), ctx.back, d[0].shape[1], d[0].dtype), None, None


def slowly(moe: MoE, x: Tensor, wires: Sequence[str]) -> Tensor:
    """The layer for one process, node by node and expert by expert, all experts at hand."""
    dispatch, combine = wires
    x = x[0]
    weights, indices, _ = moe.gate(x)
    y = torch.zeros_like(x)
    for node in (range(6), range(6, 12)):
        there = [t for t in range(len(x)) if set(indices[t].tolist()) & set(node)]
        if not there:
            continue
        rows = dict(zip(there, Wire.apply(x[there], dispatch, combine), strict=True))
        sums = {t: torch.zeros_like(x[0]) for t in there}
        for e in node:
            for t, k in (indices == e).nonzero().tolist():
                copy_ = Wire.apply(rows[t][None], dispatch, combine)[0]
                gate, up = (moe.experts.w13[e] @ copy_).chunk(2)
                out = weights[t, k] * (moe.experts.w2[e] @ (F.silu(gate) * up))
                sums[t] = sums[t] + Wire.apply(out[None], combine, dispatch)[0]
        home = Wire.apply(torch.stack([sums[t] for t in there]), combine, dispatch)
        y = y.index_add(0, torch.tensor(there), home)
    assert moe.shared_experts is not None
    return (y + moe.shared_experts(x))[None]


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("arm", ARMS)
def test_the_layer_on_several_processes_equals_one_process_forward_and_backward(arm: str, world: int) -> None:
    limit, wires, _, crowd = ARMS[arm]
    moe, batches = layer_and_batches(world, limit, crowd)
    found = [each[arm] for each in processes(world)]
    share = 12 // world
    for r, x in enumerate(batches):
        y = slowly(moe, x.requires_grad_(), wires)
        y.square().sum().backward()
        torch.testing.assert_close(found[r]["y"], y.detach(), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(found[r]["x"], x.grad, rtol=1e-9, atol=1e-9)
    for r in range(world):
        for name, p in moe.named_parameters():
            assert p.grad is not None
            want = p.grad[r * share : (r + 1) * share] if "experts.w" in name and "shared" not in name else p.grad
            torch.testing.assert_close(found[r][name], want, rtol=1e-9, atol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("arm", ["once a node", "one node only", "the paper's wires"])
def test_bytes_on_the_wire_are_those_that_the_model_predicts(arm: str, world: int) -> None:
    there, back = (dispatch_bytes(136), combine_bytes(136)) if arm == "the paper's wires" else (8 * 136, 8 * 136)
    found = [each[arm] for each in processes(world)]
    visits = [sum(nodes_visited(each["indices"].tolist(), 6)) for each in found]
    pairs = sum(each["indices"].numel() for each in found)
    for each, nodes in zip(found, visits, strict=True):
        assert sum(each["bytes"]["ib dispatch"]) == nodes * there == sum(each["bytes"]["ib combine backward"])
    for kind, copies in (("ib", sum(visits)), ("nvlink", pairs)):
        sent = {what: sum(sum(each["bytes"][f"{kind} {what}"]) for each in found) for what in ("dispatch", "combine")}
        assert sent == {"dispatch": copies * there, "combine": copies * back}
    if arm == "one node only":
        assert sum(visits) == sum(len(each["indices"]) for each in found)


@pytest.mark.slow
def test_a_copy_for_each_expert_sends_more_than_a_copy_for_each_node() -> None:
    found = processes(4)
    for each in found:
        once = sum(each["once a node"]["bytes"]["ib dispatch"])
        assert sum(each["once an expert"]["bytes"]["any dispatch"]) == 5 * 8 * 136 * len(each["once a node"]["indices"])
        assert once <= 2 * 8 * 136 * len(each["once a node"]["indices"])


@pytest.mark.slow
def test_processes_without_a_row_take_part() -> None:
    for each in processes(4):
        bytes_ = each["all to one process"]["bytes"]
        assert bytes_["ib dispatch"][1] == 0 and sum(bytes_["ib dispatch"]) > 0
    for each in processes(4)[1:]:
        assert each["all to one process"]["experts.w13"].abs().sum() == 0


@pytest.mark.parametrize("dim", [136, 128, 5])
def test_a_wire_brings_rows_of_the_promised_size(dim: int) -> None:
    x = torch.randn(3, dim) * torch.tensor([[1e-6], [1.0], [3e4]])
    for wire, size in (("fp8", dispatch_bytes(dim)), ("bf16", combine_bytes(dim)), ("", 4 * dim)):
        data = pack(x, wire)
        assert data.shape == (3, size) and data.dtype == torch.uint8
        assert pack(x[:0], wire).shape == (0, size)
        assert unpack(pack(x[:0], wire), wire, dim, x.dtype).shape == (0, dim)
    assert torch.equal(unpack(pack(x, ""), "", dim, x.dtype), x)
    assert torch.equal(unpack(pack(x, "bf16"), "bf16", dim, x.dtype), x.bfloat16().float())
    error = (unpack(pack(x, "fp8"), "fp8", dim, x.dtype) - x).abs() / x.abs().amax(1, keepdim=True)
    assert error.max() < 2**-4


def test_a_second_hop_loses_nothing_because_scales_are_powers_of_two() -> None:
    x = torch.randn(300, 200)
    once = unpack(pack(x, "fp8"), "fp8", 200, x.dtype)
    assert torch.equal(unpack(pack(once, "fp8"), "fp8", 200, x.dtype), once)
    other = quantize(x, TILE).dequantize()
    assert not torch.equal(quantize(other, TILE, power_of_two=True).dequantize(), other)


def test_experts_that_do_not_divide_are_refused() -> None:
    assert experts_each(256, 64) == 4
    with pytest.raises(ValueError, match=r"12 experts do not divide over 5 processes. Start one of 1, 2, 3, 4, 6, 12"):
        experts_each(12, 5)


@pytest.mark.slow
def test_a_table_of_another_size_than_the_world_is_refused() -> None:
    for each in processes(2):
        assert each["message"].startswith("node x local is the number of processes; got 3 x 2 for 2. Start 6 processes")


def test_less_than_one_process_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one process; got 0"):
        launch(everything, 0, 0)


def test_a_temporary_folder_whose_name_is_too_long_for_a_socket_costs_the_quick_start_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/tmp")
    assert start_method() == ("forkserver" if sys.platform == "linux" else "spawn")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / ("long" * 20)))
    assert start_method() == "spawn"


def broken(world: int) -> None:
    if dist.get_rank() == 1:
        raise KeyError("the disk of rank 1 is full")
    dist.barrier()


@pytest.mark.slow
def test_an_error_in_one_process_ends_all_and_is_told() -> None:
    with pytest.raises(torch.multiprocessing.ProcessRaisedException, match=r"rank 1 is full|closed by peer"):
        launch(broken, 2, 2)


ONE_RANK = """
import sys, torch
from pathlib import Path
from minids.expert_parallel import Hop, Meter
from minids.processes import grid, join
rank = int(sys.argv[1])
join(rank, 2, Path(sys.argv[2]), timeout=120)
mesh = grid(timeout=float(sys.argv[3]), node=2, local=1)
print("ready", flush=True)
if rank == 1:
    sys.stdin.read()  # alive, and takes no part
else:
    Hop(torch.tensor([0, 1]), mesh.get_group("node"), "ib", Meter())
"""


@pytest.mark.slow
@pytest.mark.parametrize("killed", [True, False], ids=["killed", "silent"])
def test_when_one_process_is_gone_the_others_end_within_a_minute(killed: bool, tmp_path: Path) -> None:
    seconds = "300" if killed else "2"
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", ONE_RANK, str(rank), str(tmp_path / "meeting"), seconds],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        assert ranks[1].stdout is not None and ranks[1].stdout.readline() == "ready\n"
        if killed:
            ranks[1].kill()
        _, errors = ranks[0].communicate(timeout=60)
        assert ranks[0].returncode == 1 and "RuntimeError" in errors
        assert ("Timed out" in errors or "timeout" in errors.lower()) or killed
    finally:
        for process in ranks:
            process.kill()
            process.communicate()


def test_the_report_names_each_arm_with_its_bytes() -> None:
    arm = {"tokens": 3, "difference": {"output": 1e-7}, "bytes": {"ib dispatch": [5, 6], "ib routing": [1, 1]}}
    text = report([{"a copy a node": copy.deepcopy(arm)}, {"a copy a node": arm}])
    assert "2 processes, 6 tokens" in text and "1e-07" in text and "ib dispatch 22" in text and "routing" not in text
