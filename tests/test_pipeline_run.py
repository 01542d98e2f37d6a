"""In real processes every schedule gives the gradients of one process, and torch's own DualPipeV has our order."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining._schedule_visualizer import get_schedule_ops
from torch.distributed.pipelining.schedules import get_schedule_class

from minids.config import tiny
from minids.dualpipe import SCHEDULES, dualpipev, schedule
from minids.model import Transformer
from minids.pipeline import Op, Schedule, Step, in_flight, one_f_one_b
from minids.pipeline_run import PipelineRank, Stage, blocks_of
from minids.processes import launch

SIZES: dict[str, Any] = {
    "vocab_size": 61, "dim": 24, "n_layers": 9, "n_dense_layers": 1, "inter_dim": 28, "moe_inter_dim": 12, "n_heads": 3,
    "init_std": 0.1, "n_mtp_modules": 1,
}  # fmt: skip
CFG = replace(tiny(), **SIZES)
ROWS, LENGTH, ALPHA, LAM = 16, 11, 0.02, 0.3
CHUNKS = {2: 4, 4: 8}  # ranks -> micro-batches
TORCH = {"GPipe": "gpipe", "1F1B": "1f1b", "ZBVZeroBubble": "dualpipev", "DualPipeV": "dualpipev"}  # stages as ours of


def batch() -> Tensor:
    return torch.randint(CFG.vocab_size, (ROWS, LENGTH + 1), generator=torch.Generator().manual_seed(5))


class Plain(nn.Module):
    """A stage as torch's schedules want it: no balance loss, for which they have no place, and no scalar output."""

    def __init__(self, stage: Stage):
        super().__init__()
        self.stage = stage

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        h, _ = self.stage(None if self.stage.first else x, tokens)
        return h.reshape(1) if self.stage.last else h * 1.0


def by_torch(name: str, like: Schedule) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """This rank's gradients from our executor, without a balance loss, and from torch's schedule of that name."""
    pipe = PipelineRank(CFG, like, seed=3, alpha=0.0, lam=LAM)
    pipe.step(batch())
    ours = {n: p.grad.clone() for n, p in pipe.named().items() if p.grad is not None}
    pipe.zero_grad()
    numbers = [like.stage(pipe.rank, d) for d in range(like.copies)]
    stages = [PipelineStage(Plain(pipe.stages[str(s)]), s, like.stages, torch.device("cpu")) for s in numbers]
    # scale_grads would divide the embedding, which lies in two stages of rank 0, twice: the loss is divided instead
    runs = get_schedule_class(name)(
        stages if len(stages) > 1 else stages[0],
        n_microbatches=like.micro_batches, loss_fn=lambda out, _: out.mean() / like.micro_batches, scale_grads=False,
    )  # fmt: skip
    inputs = (batch(),) if 0 in numbers else ()
    target = {"target": torch.zeros(like.micro_batches)} if like.stages - 1 in numbers else {}
    runs.step(*inputs, **target, tokens=batch())
    pipe.sum_copies()
    return ours, {n: p.grad for n, p in pipe.named().items() if p.grad is not None}


def in_one_of() -> dict[str, Any]:
    """What each process does: one batch with every schedule, ours and torch's; its gradients and losses."""
    world = dist.get_world_size()
    found: dict[str, Any] = {}
    for name in SCHEDULES:
        pipe = PipelineRank(CFG, schedule(name, world, CHUNKS[world]), seed=3, alpha=ALPHA, lam=LAM)
        losses = pipe.step(batch())
        found[name] = {"losses": losses, "grads": {n: p.grad for n, p in pipe.named().items()}}
    for name, like in TORCH.items():
        found[f"torch {name}"] = by_torch(name, schedule(like, world, CHUNKS[world]))
    pipe.zero_grad()
    pipe.step(batch())  # a second batch begins from nothing
    found["again"] = {n: p.grad for n, p in pipe.named().items()}
    try:
        PipelineRank(CFG, one_f_one_b(world + 1, 9))
    except ValueError as error:
        found["message"] = str(error)
    return found


@cache
def processes(world: int) -> list[dict[str, Any]]:
    return launch(in_one_of, world, timeout=120)


@cache
def single() -> tuple[float, dict[str, Tensor]]:
    """The whole batch at once in this process, by the model's own losses."""
    model = Transformer(CFG, torch.Generator().manual_seed(3))
    losses = model.losses(batch())
    loss = losses.main + LAM * losses.mtp
    (loss + ALPHA * losses.balance).backward()
    return loss.item(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("name", SCHEDULES)
def test_the_gradients_are_those_of_one_process(name: str, world: int) -> None:
    loss, want = single()
    found = [rank[name] for rank in processes(world)]
    assert sum(sum(f["losses"]) for f in found) / CHUNKS[world] == pytest.approx(loss, rel=1e-5)
    owned = {n for f in found for n, g in f["grads"].items() if g is not None}
    assert owned == set(want)
    for f in found:
        for n, g in f["grads"].items():
            scale = want[n].abs().max().item()
            torch.testing.assert_close(g, want[n], rtol=1e-4, atol=1e-5 * scale + 1e-8, msg=lambda m, n=n: f"{n}: {m}")


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("name", TORCH)
def test_torch_s_own_schedules_give_the_same_gradients_with_our_stages(name: str, world: int) -> None:
    for found in processes(world):
        ours, theirs = found[f"torch {name}"]
        assert set(ours) == set(theirs) and ours
        for n, g in theirs.items():
            torch.testing.assert_close(ours[n], g, rtol=1e-4, atol=1e-5 * g.abs().max().item() + 1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 4])
def test_parameters_lie_where_the_schedule_has_them_and_first_and_last_stage_share_an_embedding(world: int) -> None:
    ranks = processes(world)

    def holders(name: str, parameter: str) -> list[int]:
        return [r for r, found in enumerate(ranks) if parameter in found[name]["grads"]]

    assert holders("1f1b", "embed.weight") == [0, world - 1]  # a copy for the MTP module
    assert holders("dualpipev", "embed.weight") == holders("dualpipev", "head.weight") == [0]
    assert holders("dualpipe", "embed.weight") == holders("dualpipe", "head.weight") == [0, world - 1]
    assert holders("dualpipe", "layers.0.attn_norm.weight") == [0, world - 1]
    assert holders("zb1p", "head.weight") == [world - 1]


@pytest.mark.slow
def test_losses_end_where_the_chunks_end_and_a_second_batch_begins_anew() -> None:
    ranks = processes(4)
    counts = {name: [len(found[name]["losses"]) for found in ranks] for name in SCHEDULES}
    assert counts["1f1b"] == counts["gpipe"] == [0, 0, 0, 8]
    assert counts["dualpipe"] == counts["chimera"] == [4, 0, 0, 4] and counts["dualpipev"] == [8, 0, 0, 0]
    for found in ranks:
        last = list(SCHEDULES)[-1]
        for name, g in found["again"].items():
            torch.testing.assert_close(g, found[last]["grads"][name])
        assert "a row for each process; got 5 for 4. Start 5 processes." in found["message"]


def test_blocks_are_dealt_evenly_and_in_order() -> None:
    assert blocks_of(9, 4) == [range(0, 3), range(3, 5), range(5, 7), range(7, 9)]
    assert [len(b) for b in blocks_of(61, 16)] == [4] * 13 + [3] * 3
    with pytest.raises(ValueError, match="got 3 for 4 stages"):
        blocks_of(3, 4)


def ours(ranks: int, step: Step, rank: int) -> str:
    """A step in torch's words: 3F0 is the forward of stage 3 on chunk 0."""
    texts = [f"{rank if op.direction == 0 else 2 * ranks - 1 - rank}{op.kind}{op.chunk}" for op in step]
    return f"({';'.join(texts)})OVERLAP_F_B" if len(texts) > 1 else texts[0]


@pytest.mark.parametrize(("ranks", "chunks"), [(2, 4), (2, 7), (3, 6), (4, 8), (4, 11), (8, 20)])
def test_our_dualpipev_has_the_order_of_torch_s_own(ranks: int, chunks: int) -> None:
    theirs = get_schedule_ops("DualPipeV", ranks, chunks)
    for rank, row in enumerate(dualpipev(ranks, chunks).rows):
        want = [str(op) for op in theirs[rank] if op is not None]
        assert [ours(ranks, step, rank) for step in row] == want, rank


def test_in_flight_counts_what_an_executor_keeps() -> None:
    for name in SCHEDULES:
        s = schedule(name, 4, 8)
        for row, most in zip(s.rows, in_flight(s), strict=True):
            kept: set[Op] = set()
            peak = 0
            for step in row:
                for op in step:
                    key = op._replace(kind="")
                    kept = kept | {key} if op.kind == "F" else kept - {key} if op.kind in "BW" else kept
                    peak = max(peak, len(kept))
            assert peak == most
