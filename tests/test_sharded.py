"""A model over processes trains as in one, keeps its moments once, and leaves checkpoints that any number can read."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from minids.checkpoint import checkpoints
from minids.config import tiny
from minids.expert_parallel import Wires
from minids.model import Transformer
from minids.optim import parameter_groups
from minids.processes import grid, launch
from minids.recipe import TrainConfig
from minids.sharded import cut_parameters, load, optimizers, save, spread, tensors, train_step

CFG = replace(
    tiny(), vocab_size=61, dim=24, n_layers=3, inter_dim=40, moe_inter_dim=12, n_heads=2, n_routed_experts=8
)  # fmt: skip
OPTIONS: dict[str, Any] = {"lr": 1e-2, "betas": (0.9, 0.95), "eps": 1e-5}


def whole() -> Transformer:
    return Transformer(CFG, torch.Generator().manual_seed(2)).double()


def batch(step: int) -> Tensor:
    return torch.randint(61, (4, 12), generator=torch.Generator().manual_seed(step))


RECIPE = TrainConfig(steps=9, grad_clip=0.05, gamma=0.01, balance_alpha=0.01)


def one_step(model: Any, of: list[torch.optim.Optimizer], step: int, rank: int, world: int) -> None:
    rows = batch(step).chunk(world)[rank]
    if world > 1:
        train_step(model, of, rows, RECIPE)
        return
    losses = model.losses(rows)
    (losses.main + 0.3 * losses.mtp + 0.01 * losses.balance).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 0.05)
    for optimizer in of:
        optimizer.step()
        optimizer.zero_grad()
    for gate, load_ in zip(model.gates(), losses.load, strict=True):
        gate.update_bias(load_, 0.01)


def alone(steps: int) -> tuple[Transformer, list[torch.optim.Optimizer]]:
    model = whole()
    of: list[torch.optim.Optimizer] = [torch.optim.AdamW(parameter_groups(model, 0.1), **OPTIONS)]
    for step in range(steps):
        one_step(model, of, step, 0, 1)
    return model, of


def together(folder: str) -> dict[str, Any]:
    """Three steps, a checkpoint after each; then the last one read into a fresh model, and one more step from there."""
    rank, world = dist.get_rank(), dist.get_world_size()
    mesh = grid(node=1, local=world)
    model = whole()
    spread(model, mesh, Wires("", ""))
    of = optimizers(model, torch.optim.AdamW, **OPTIONS)
    for step in range(3):
        one_step(model, of, step, rank, world)
        path = save(folder, step + 1, tensors(model, of))
    sizes = {name: t.numel() for name, t in tensors(model, of).items() if name.endswith("exp_avg")}
    # one step more changes everything; the checkpoint brings it back
    one_step(model, of, 99, rank, world)
    load(path, tensors(model, of))
    one_step(model, of, 3, rank, world)
    own = {name: p.detach() for name, p in cut_parameters(model).items()}
    bias = torch.stack([gate.bias for gate in model.gates() if gate.bias is not None])
    return {"bias": bias, "own": own, "head": model.get_parameter("head.weight").detach(), "moments": sizes}


@cache
def two() -> tuple[list[dict[str, Any]], Path]:
    folder = mkdtemp()
    return launch(together, 2, folder), Path(folder)


@pytest.mark.slow
def test_two_processes_go_on_from_their_checkpoint_as_one_process_that_never_stopped() -> None:
    found, _ = two()
    model, _ = alone(4)
    for rank, each in enumerate(found):
        torch.testing.assert_close(each["head"], model.head.weight.detach(), rtol=1e-7, atol=1e-9)
        assert torch.equal(each["bias"], torch.stack([gate.bias for gate in model.gates() if gate.bias is not None]))
        for name, p in each["own"].items():
            want = model.get_parameter(name).detach().chunk(2)[rank]
            torch.testing.assert_close(p, want, rtol=1e-7, atol=1e-9)


@pytest.mark.slow
def test_a_checkpoint_of_two_processes_is_read_by_one() -> None:
    _, folder = two()
    assert [p.name for p in checkpoints(folder)] == ["step-00000002", "step-00000003"]
    assert [p.name for p in folder.iterdir() if p.name.endswith(".tmp")] == []
    model, of = alone(1)  # other weights, other moments
    load(checkpoints(folder)[-1], tensors(model, of))
    straight, _ = alone(4)
    one_step(model, of, 3, 0, 1)
    for name, p in model.named_parameters():
        torch.testing.assert_close(p, straight.get_parameter(name), rtol=1e-7, atol=1e-9)


@pytest.mark.slow
def test_the_moments_of_what_is_copied_are_kept_once() -> None:
    found, _ = two()
    experts = set(found[0]["own"])
    copied = [{name for name in each["moments"] if name.split(":")[0] not in experts} for each in found]
    everything = {f"{name}:exp_avg" for name, _ in whole().named_parameters() if name not in experts}
    assert not copied[0] & copied[1] and copied[0] | copied[1] == everything
    assert all(copied)
