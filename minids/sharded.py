"""A model over several processes: experts cut, the rest in copies, ZeRO-1, checkpoints that any number of them reads.

Paper: DeepSeek-V3 section 3.2 (experts over ranks, data parallelism with ZeRO-1); ZeRO, arXiv 1910.02054.

    spread(model, mesh)        every MoE layer keeps this process's experts only; all else stays, as a copy
    sum_gradients(model)       after the backward pass: add up the copies' gradients (an expert's are whole already)
    optimizers(model, ..)      one for the experts here; one for the copies, whose moments are shared out (ZeRO-1)
    train_step(model, ..)      a step as one process would make it: gradients, clipping, load, over all
    save, load                 `torch.distributed.checkpoint`: each process writes what only it has. Experts are
                               DTensors cut along their first axis: another number of processes finds its slices

`torchrun --nproc-per-node 4 -m minids.sharded --steps 100` trains the tiny model on four processes.

What torch takes a second to import is imported where it is used: `minids train` imports this file too.

Atomic as `checkpoint` is: the files are written under a name that ends in `.tmp`; when all processes have finished, one
renames the directory.

Differs from the paper: ZeroRedundancyOptimizer shares out whole tensors, not equal parts of each.
Left out: the model's other cut, the pipeline (10_dualpipe); saving while training goes on.
Notebook: 11_expert_parallel.
"""

from __future__ import annotations

import argparse
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from minids import checkpoint
from minids.config import tiny
from minids.corpus import Packed
from minids.expert_parallel import ExpertParallel, Wires
from minids.model import Transformer
from minids.moe import MoE
from minids.optim import AdamW, parameter_groups
from minids.processes import grid, join, launch
from minids.recipe import TrainConfig
from minids.tokenizer import default_tokenizer


def spread(model: nn.Module, mesh: DeviceMesh, wires: Wires | None = None) -> None:
    """Put an `ExpertParallel` in the place of every MoE layer: the same function, a part of the experts."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, MoE):
                setattr(parent, name, ExpertParallel(child, mesh, wires))


def cut_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of which every process has its own: the experts, by name."""
    layers = {name: m for name, m in model.named_modules() if isinstance(m, ExpertParallel)}
    return {f"{name}.experts.{part}": p for name, m in layers.items() for part, p in m.experts.named_parameters()}


def sum_gradients(model: nn.Module) -> None:
    """Add up, over all processes, the gradients of what they have copies of."""
    own = {id(p) for p in cut_parameters(model).values()}
    for p in model.parameters():
        if id(p) not in own:
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
            dist.all_reduce(p.grad)


def optimizers(
    model: nn.Module, kind: type[torch.optim.Optimizer], weight_decay: float = 0.1,
    group: dist.ProcessGroup | None = None, **options: Any,
) -> list[torch.optim.Optimizer]:  # fmt: skip
    """[of the experts here, if any; of the copies]: the last keeps moments for its share and hands out new weights.

    The copies are in all processes of `group`, by default in all there are.
    """
    with warnings.catch_warnings():  # torch compiles old TorchScript when this is imported, which it warns of
        warnings.simplefilter("ignore", DeprecationWarning)
        from torch.distributed.optim import ZeroRedundancyOptimizer
    own = {id(p) for p in cut_parameters(model).values()}
    groups = parameter_groups(model, weight_decay)
    cut, copied = (
        [{**g, "params": [p for p in g["params"] if (id(p) in own) == here]} for g in groups] for here in (True, False)
    )
    shared_out = ZeroRedundancyOptimizer(
        copied[0]["params"], kind, process_group=group, **options, weight_decay=weight_decay
    )
    shared_out.add_param_group(copied[1])
    here = [g for g in cut if g["params"]]  # a stage of dense layers has none
    return [*([kind(here, **options)] if here else []), shared_out]


def inner(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """What keeps the moments here: ZeRO's optimizer has one for this process's share."""
    return getattr(optimizer, "optim", optimizer)


def moments(model: nn.Module, of: list[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """What the optimizers of this process keep, by parameter: "layers.1.ffn.gate.weight:exp_avg"."""
    names: dict[Tensor, str] = {p: name for name, p in model.named_parameters()}
    kept: dict[str, Tensor] = {}
    for optimizer in of:
        for p, state in inner(optimizer).state.items():
            kept |= {f"{names[p]}:{key}": value for key, value in state.items()}
    return kept


def tensors(model: nn.Module, of: list[torch.optim.Optimizer] | None = None) -> dict[str, Tensor]:
    """Everything that a checkpoint holds: weights, buffers and moments; slices know where they belong."""
    from torch.distributed.tensor import DTensor, Shard

    layers = {name: m for name, m in model.named_modules() if isinstance(m, ExpertParallel)}
    found = {**model.state_dict(), **moments(model, of or [])}
    for name, layer in layers.items():
        for key in [k for k in found if k.startswith(f"{name}.experts.") and found[k].ndim == 3]:
            # a table of processes: the first axis is cut by node, each piece by place in the node
            found[key] = DTensor.from_local(found[key], layer.mesh, [Shard(0), Shard(0)], run_check=False)
    return found


def save(run: str | Path, step: int, state: dict[str, Tensor], keep: int = 2) -> Path:
    """Write `run/step-...` from all processes and delete all but the last `keep`. Returns its path."""
    import torch.distributed.checkpoint as dcp

    path = Path(run) / f"step-{step:08d}"
    tmp, first = path.with_name(path.name + checkpoint.TMP), dist.get_rank() == 0
    if first:
        checkpoint.sweep(run)
    dist.barrier()
    dcp.save(state, checkpoint_id=tmp)
    dist.barrier()  # nobody writes any more
    if first:
        if path.exists():  # the same step, saved again
            _out_of_sight(path)
        os.replace(tmp, path)
        for old in checkpoint.checkpoints(run)[: -max(keep, 1)]:
            _out_of_sight(old)
        checkpoint.sweep(run)
    dist.barrier()
    return path


def _out_of_sight(path: Path) -> None:
    """A half deleted directory must not look like a checkpoint: rename it first."""
    os.replace(path, path.with_name(path.name + ".old" + checkpoint.TMP))


def load(path: str | Path, state: dict[str, Tensor]) -> None:
    """Fill the tensors of `state`, in place, from a checkpoint of any number of processes, in one or in several."""
    import torch.distributed.checkpoint as dcp

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # one process: so it is meant
        dcp.load(state, checkpoint_id=path, no_dist=not dist.is_initialized())


def clip(model: nn.Module, most: float, holders: Mapping[str, int] | None = None) -> float:
    """Scale all gradients so that their norm over all processes is at most `most`. Returns the norm before.

    `holders`: how many processes hold each parameter; by default 1 for experts, all for the rest.
    """
    own, world = cut_parameters(model), dist.get_world_size()
    held = holders or {name: 1 if name in own else world for name, _ in model.named_parameters()}
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    square = torch.stack([g.square().sum() / held[name] for name, g in grads.items()]).sum()  # a copy counts in part
    dist.all_reduce(square)
    norm = square.sqrt().item()
    scale = most / (norm + 1e-6)  # as torch's clip_grad_norm_
    for g in grads.values() if scale < 1 else ():
        g.mul_(scale)
    return norm


def train_step(model: Transformer, of: list[torch.optim.Optimizer], rows: Tensor, recipe: TrainConfig) -> float:
    """One step on this process's rows, the same for all as one process would make on all rows. Returns the loss.

    Every process has equally many rows.
    """
    world = dist.get_world_size()
    losses = model.losses(rows)
    loss = losses.main + recipe.mtp_lambda[0] * losses.mtp + recipe.balance_alpha * losses.balance
    (loss / world).backward()
    sum_gradients(model)
    clip(model, recipe.grad_clip)
    for optimizer in of:
        optimizer.step()
        optimizer.zero_grad()
    load_, mean = losses.load.clone(), losses.main.detach() / world
    dist.all_reduce(load_)  # the bias follows the load of all tokens
    dist.all_reduce(mean)
    for gate, row in zip(model.gates(), load_, strict=True):
        gate.update_bias(row, recipe.gamma)
    return mean.item()


def run(nodes: int, steps: int, batch: int, seq_len: int, out: str) -> list[float]:
    """In one of several processes: train the tiny model, and leave a checkpoint in `out`. Returns the losses."""
    rank, world = dist.get_rank(), dist.get_world_size()
    recipe = TrainConfig(steps=steps, batch_size=batch, seq_len=seq_len)
    model = Transformer(tiny(), torch.Generator().manual_seed(recipe.seed))
    spread(model, grid(node=nodes, local=world // nodes))
    of = optimizers(model, AdamW, recipe.weight_decay, lr=recipe.lr)
    data = Packed(default_tokenizer(), seq_len, seed=recipe.seed)
    losses = []
    for step in range(steps):
        rows = data.batch(batch)  # all read the same, and take their part of it
        losses.append(train_step(model, of, rows[rank::world], recipe))
        if rank == 0:
            print(f"step {step + 1}: loss {losses[-1]:.3f}", flush=True)
    path = save(out, steps, tensors(model, of))
    if rank == 0:
        print(f"The checkpoint is in {path}.", flush=True)
    return losses


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the tiny model over several processes.")
    parser.add_argument("--world", type=int, default=2, help="processes; under torchrun, those that it started")
    parser.add_argument("--nodes", type=int, default=1, help="nodes that they are counted to")
    parser.add_argument("--steps", type=int, default=20, help="steps")
    parser.add_argument("--batch", type=int, default=8, help="sequences a step, a multiple of the processes")
    parser.add_argument("--seq-len", type=int, default=128, help="tokens a sequence")
    parser.add_argument("--out", default="runs/sharded", help="directory of the checkpoint")
    args = parser.parse_args()
    rest = (args.nodes, args.steps, args.batch, args.seq_len, args.out)
    if dist.is_torchelastic_launched():
        join()
        run(*rest)
        dist.destroy_process_group()
    else:
        launch(run, args.world, *rest)


if __name__ == "__main__":
    main()
