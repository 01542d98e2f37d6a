"""One run over several processes: pipelines side by side, their experts spread, moments shared out; the same recipe.

Paper: DeepSeek-V3 section 3.2: 16-way pipeline parallelism, 64-way expert parallelism, data parallelism with ZeRO-1.

The processes are a table, data x pipe x experts: process (d, p, e) is number (d P + p) N + e of D P N. For 1 x 2 x 2:

                stage 0           stage 1
    pipe e=0    process 0   ->    process 2      with rows 0..3 of a batch of 8
    pipe e=1    process 1   ->    process 3      with rows 4..7

    pipe       each of the D N pipes has rows of its own and follows the schedule (`pipeline_run`)
    experts    the N processes of a stage hold E / N experts each and send tokens to one another (`expert_parallel`)
    copies     what several processes hold gets the sum of its gradients: gate, attention and norms of a stage over its
               D N processes, an expert over D, the embedding over two stages
    ZeRO-1     the moments of a stage's copies are shared out over its D N processes (`sharded.optimizers`)
    clipping   the squares of all gradients are summed over all processes, a copy's in equal parts
    bias       moves by the load of all tokens, summed over all processes
    decisions  (how far the run is, stop, save) follow process 0's clock, so that nobody stops alone

It is `minids.run.Run` with these parts exchanged; schedule, rates, data and average are the same lines. Losses of the
first steps differ from one process's by rounding: sums come in another order.

Checkpoints are those of one process: process 0 collects what each alone has, and every process reads its part. So 4
processes go on where 1 stopped, and the other way round, and `minids generate` reads either. V3 writes its parts in
parallel instead; `sharded.save` shows that.

Differs from the paper: experts travel as they are, not in FP8; nothing overlaps.
Left out: GPUs, a growing batch, FP8 products and evaluation on the way: `minids train` has them.
Notebook: 11_expert_parallel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Int
from torch import Tensor

from minids import checkpoint
from minids.config import Config
from minids.dualpipe import schedule
from minids.expert_parallel import Wires, experts_each
from minids.model import Transformer
from minids.optim import MOMENTS, AdamW
from minids.pipeline import Schedule
from minids.pipeline_run import PipelineRank, Stage, blocks_of
from minids.processes import TIMEOUT, gathered, grid
from minids.recipe import TrainConfig
from minids.router import Gate
from minids.run import Run
from minids.sharded import clip, cut_parameters, inner, optimizers, spread

T = TypeVar("T")


@dataclass(frozen=True)
class Layout:
    """How many processes each dimension has, and the schedule of the pipes. ValueError for sizes below 1."""

    data: int = 1
    pipe: int = 1
    experts: int = 1
    schedule: str = "1f1b"

    def __post_init__(self):
        if min(self.data, self.pipe, self.experts) < 1:
            raise ValueError(
                f"each dimension has at least one process; got data={self.data}, pipe={self.pipe}, "
                f"experts={self.experts}. 1 leaves a dimension out."
            )

    @property
    def world(self) -> int:
        """All processes."""
        return self.data * self.pipe * self.experts

    @property
    def pipes(self) -> int:
        """Pipes that stand side by side."""
        return self.data * self.experts

    def rows(self, cfg: TrainConfig) -> Schedule:
        """The schedule of a step. Micro-batches have `micro_batch` sequences; by default there are two a stage."""
        mine = cfg.batch_size // self.pipes
        chunks = mine // cfg.micro_batch if cfg.micro_batch else min(2 * self.pipe, mine)
        if not chunks or cfg.batch_size % (self.pipes * chunks) or (cfg.micro_batch and mine % cfg.micro_batch):
            raise ValueError(
                f"{self.pipes} pipes have equally many micro-batches, of equally many sequences; got a batch of "
                f"{cfg.batch_size} with micro_batch={cfg.micro_batch}. "
                f"Take a batch_size that is a multiple of {self.pipes * max(chunks, 1) * max(cfg.micro_batch, 1)}."
            )
        return schedule(self.schedule, self.pipe, chunks)

    def check(self, model: Config, cfg: TrainConfig, world: int) -> None:
        """ValueError, with rule, value and remedy, for what this layout cannot train in `world` processes."""
        if world != self.world:
            raise ValueError(
                f"data x pipe x experts is the number of processes; got {self.data} x {self.pipe} x {self.experts} "
                f"for {world}. Start {self.world} processes, or change --dp, --pp or --ep."
            )
        if self.experts > 1 and not model.has_experts:
            raise ValueError(f"a dense model has no experts to spread; got experts={self.experts}. Take --ep 1.")
        if self.experts > 1:
            experts_each(model.n_routed_experts, self.experts)
        blocks_of(model.n_layers, self.rows(cfg).stages)
        for name, only in (("precision", "fp32"), ("eval_every", 0), ("ramp_tokens", 0)):
            if getattr(cfg, name) != only:
                raise ValueError(
                    f"several processes train with {name}={only}; got {getattr(cfg, name)}. "
                    "Leave it out, or train in one process."
                )


class Clock:
    """Process 0's seconds, the same for all: it stands still between two calls of `tick`, which all make together."""

    def __init__(self, clock: Callable[[], float]):
        self.clock = clock
        self.tick()

    def tick(self) -> None:
        now = torch.tensor([self.clock()], dtype=torch.float64)
        dist.broadcast(now, 0)
        self.now = now.item()

    def __call__(self) -> float:
        return self.now


class Together:
    """Several optimizers as one: the experts' and the copies'."""

    def __init__(self, of: list[torch.optim.Optimizer]):
        self.of = of

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return list(chain.from_iterable(o.param_groups for o in self.of))

    @property
    def state(self) -> dict[Tensor, dict[str, Any]]:
        """Of each parameter whose moments this process keeps."""
        kept = [inner(o) for o in self.of]
        return {p: o.state[p] for o in kept for group in o.param_groups for p in group["params"]}

    def step(self) -> None:
        for o in self.of:
            o.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        for o in self.of:
            o.zero_grad(set_to_none)


class ParallelRun(Run):
    """A run of which this process does its part. Make it in every process of the layout.

    `model` keeps the names of the whole, and only what this process has; the same for the average and `tensors`.
    """

    def __init__(
        self, layout: Layout, model_cfg: Config, cfg: TrainConfig, data: Any, device: torch.device,
        clock: Callable[[], float], tokenizer: Any = None,
    ):  # fmt: skip
        layout.check(model_cfg, cfg, dist.get_world_size())
        self.layout, self.tick = layout, Clock(clock)
        self.mesh = grid(data=layout.data, pipe=layout.pipe, node=1, local=layout.experts)
        self.place = self.mesh.get_local_rank("local")
        super().__init__(model_cfg, cfg, data, device, self.tick, tokenizer)

    @property
    def first(self) -> bool:
        return dist.get_rank() == 0

    def build(self, model: Transformer) -> None:
        if self.layout.experts > 1:
            spread(model, self.mesh["node", "local"], Wires("", ""))  # no rounding: as one process
        self.numbers = {id(gate): i for i, gate in enumerate(model.gates())}
        self.experts_cut = set(cut_parameters(model))
        self.pipe = PipelineRank(
            model.cfg, self.layout.rows(self.cfg), alpha=self.cfg.balance_alpha, model=model,
            group=self.mesh.get_group("pipe"), pipes=self.layout.pipes,
        )  # fmt: skip
        super().build(model)

    def make_optimizer(self, model: Transformer) -> Any:
        if self.layout.pipes == 1:  # a stage is in one process: nothing to share out
            return Together([super().make_optimizer(model)])
        same_stages = self.mesh.mesh.movedim(1, 0).flatten(1).tolist()  # all data, one place in the pipe, all experts
        group: Any
        group, _ = dist.new_subgroups_by_enumeration(same_stages, timeout=timedelta(seconds=TIMEOUT))
        kind: Any = torch.optim.AdamW if self.cfg.moments == "fp32" else AdamW
        how = {"fused": True} if self.cfg.moments == "fp32" else {"moments": MOMENTS[self.cfg.moments]}
        how |= {"lr": self.cfg.lr, "betas": self.cfg.betas}
        return Together(optimizers(model, kind, self.cfg.weight_decay, group, **how))

    # a step

    def backward(self, tokens: Int[Tensor, "B S1"], mtp_lambda: float) -> tuple[dict[str, Any], Tensor]:
        """As `Run.backward`, of all processes' rows."""
        stages = [stage for stage in self.pipe.stages.values() if isinstance(stage, Stage)]
        for stage in stages:
            stage.begin(mtp_lambda)
        pipe = self.mesh.get_local_rank("data") * self.layout.experts + self.place
        self.pipe.step(tokens.chunk(self.layout.pipes)[pipe])
        sums = torch.stack([stage.sums for stage in stages]).sum(0)
        load = torch.zeros(len(self.numbers), max(self.model.cfg.n_routed_experts, 1), dtype=torch.long)
        for stage in stages:
            for gate, row in zip(stage.gates(), stage.load if stage.load.ndim else (), strict=True):
                load[self.numbers[id(gate)]] += row
        dist.all_reduce(sums)
        dist.all_reduce(load)  # the bias follows the load of all tokens
        self.tick.tick()
        main, mtp, balance = (sums / (self.layout.pipes * self.pipe.schedule.micro_batches)).tolist()
        loss = main + mtp_lambda * mtp + self.cfg.balance_alpha * balance
        return {"loss": loss, "main": main, "mtp": mtp, "balance": balance}, load

    def clip(self) -> float:
        holders = {name: len(members) for name, members in self.pipe.members.items()}
        return clip(self.model, self.cfg.grad_clip, holders)

    def gates(self) -> list[tuple[int, Gate]]:
        return [(self.numbers[id(gate)], gate) for gate in self.model.gates()]

    def agreed(self, stop: bool) -> bool:
        wishes = torch.tensor([stop], dtype=torch.int)
        dist.all_reduce(wishes, dist.ReduceOp.MAX)
        return bool(wishes.item())

    # what is saved

    def save(self, out: Path) -> Path:
        """Collect all parts; process 0 writes them, the others wait until it has."""
        path, tensors = out / f"step-{self.step:08d}", self.collected()
        if self.first:
            path = checkpoint.save(out, self.step, tensors, self.state(), self.cfg.keep)
        dist.barrier()
        self.saved, self.saved_at = self.step, self.clock()
        return path

    def publish(self, out: Path) -> None:
        tensors, prefix = self.collected(), f"{'ema' if self.cfg.export == 'ema' else 'model'}."
        if self.first:
            whole = Transformer(self.model.cfg)
            whole.load_state_dict({k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)})
            checkpoint.save_model(out, whole, self.tokenizer)
        dist.barrier()

    def collected(self) -> dict[str, Tensor]:
        """In process 0 the tensors of a run in one process; in the others none."""
        here = {(name, self.place if self.is_cut(name, t) else 0): t for name, t in self.tensors().items()}
        senders: dict[tuple[str, int], int] = {}
        for process, keys in enumerate(gathered(list(here))):
            for key in keys:
                senders.setdefault(key, process)  # of copies the first one
        parts: list[Any] = [None] * self.layout.world
        send = {key: t for key, t in here.items() if senders[key] == dist.get_rank()}
        dist.gather_object(send, parts if self.first else None)
        found: dict[str, list[Tensor]] = {}
        for (name, _), t in sorted(chain.from_iterable(p.items() for p in parts if p), key=lambda item: item[0]):
            found.setdefault(name, []).append(t)
        return {name: torch.cat(pieces) if len(pieces) > 1 else pieces[0] for name, pieces in found.items()}

    def mine(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return dict(self._mine(tensors))

    def _mine(self, tensors: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        here = self.model.state_dict().keys()
        kept = {name for name, p in self.named.items() if p in self.optimizer.state}
        for name, t in tensors.items():
            part, _, rest = name.partition(".")
            rest = rest.partition(".")[2] if part == "optim" else rest
            if part in ("data", "rng") or (rest in (kept if part == "optim" else here)):
                yield name, t.chunk(self.layout.experts)[self.place] if self.is_cut(name, t) else t

    def is_cut(self, name: str, t: Tensor) -> bool:
        """Does each process of a stage have a part of its own of this tensor?"""
        return t.ndim == 3 and any(name.endswith("." + expert) for expert in self.experts_cut)


def in_turn(work: Callable[[], T]) -> T:
    """Call `work` in process 0, and when that is done in the others. What it raises in process 0 is raised in all."""
    said: list[Any] = [None]
    first = dist.get_rank() == 0
    try:
        done = work() if first else None
    except (ValueError, OSError) as error:
        said = [error]
    dist.broadcast_object_list(said)
    if said[0] is not None:
        raise said[0]
    return work() if not first else done  # type: ignore[return-value]
