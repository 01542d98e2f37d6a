"""Pipeline schedules in real processes: each rank holds its stages, follows its row, and talks to its neighbours.

Paper: DeepSeek-V3 section 3.2.1; what a schedule is stands in `minids.pipeline`, this file executes any of them.

    F    receive h from the stage before, run the stage, keep input and output, send h on
    B    receive the gradient of the output, go back through the stage, send the gradient of the input
    I    the same for the input alone, and W, later, for the weights alone
    F&B  here one after the other: a processor has no second lane

The sends do not wait, and each message has a tag of its own, so ranks wait only for what their next operation needs.
Embedding, head and MTP: the last stage needs the embedding too, for the MTP module. With two directions, and in a V,
first and last stage share a rank and physically one embedding, as the paper says; else the last rank holds a copy.
After the batch every parameter that lies on several ranks (such a copy, or the second direction's stages) gets the sum
of its gradients: one all-reduce, not DDP, whose hooks fire at I and miss W.

    pipe = PipelineRank(cfg, dualpipe(4, 8), seed=0)      in each of 4 processes, torch.distributed ready
    losses = pipe.step(tokens)                            the chunks' losses; gradients are then in pipe.parameters()

Several pipes may stand side by side, each with rows of its own (`minids.parallel`): the copies are then summed over all
of them, and an expert that lies in one part of the processes over those that have it.

Differs from the paper: no overlap; W goes back through the stage once more, where DeepSeek keeps what I has computed.
Left out: the optimizer, and reading data on the ranks that need it: each gets all tokens.
Notebook: 10_dualpipe.
"""

from __future__ import annotations

from datetime import timedelta
from itertools import accumulate

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor, nn

from minids.config import Config
from minids.expert_parallel import ExpertParallel
from minids.model import Transformer
from minids.mtp import mtp_loss
from minids.pipeline import Op, Schedule, violations
from minids.processes import TIMEOUT, gathered
from minids.router import Gate
from minids.sharded import cut_parameters


class Stage(nn.Module):
    """Some blocks of a model; the first stage has the embedding before them, the last one all losses behind them.

    Returns (h, or the loss at the last stage; the stage's share of the balance loss, with its alpha). `sums` and `load`
    add up what has passed since `begin`: [main, MTP, balance loss], and the tokens of each expert of the stage's gates.
    """

    def __init__(self, model: Transformer, blocks: range, alpha: float, lam: float):
        super().__init__()
        cfg = model.cfg
        self.first, self.last = blocks.start == 0, blocks.stop == cfg.n_layers
        self.layers = nn.ModuleList(model.layers[i] for i in blocks)
        self.embed = model.embed if self.first or (self.last and cfg.n_mtp_modules) else None
        self.norm, self.head, self.mtp = (model.norm, model.head, model.mtp) if self.last else (None, None, None)
        self.freqs_cis: Tensor
        self.register_buffer("freqs_cis", model.freqs_cis, persistent=False)
        self.alpha, self.gates_in_all = alpha, max(len(model.gates()), 1)
        self.begin(lam)

    def begin(self, lam: float) -> None:
        """Count from nothing, with this weight of the MTP loss."""
        self.lam, self.sums, self.load = lam, torch.zeros(3, dtype=torch.float64), torch.zeros((), dtype=torch.long)

    def gates(self) -> list[Gate]:
        """In the order of the rows of `load`."""
        return [m for m in self.modules() if isinstance(m, Gate)]

    def forward(self, x: Tensor | None, tokens: Int[Tensor, "B S1"]) -> tuple[Tensor, Tensor]:
        inputs, routings = tokens[:, :-1], []
        h = self.embed(inputs) if self.first and self.embed is not None else x
        assert h is not None, "every stage but the first gets an input"
        angles = self.freqs_cis[: inputs.shape[1]]
        for layer in self.layers:
            h, routing = layer(h, angles)
            routings.append(routing)
        if self.last:
            h, more = self._losses(h, tokens, angles)
            routings += more
        routings = [r for r in routings if r is not None]
        balance = (
            sum((r.balance for r in routings), h.new_zeros(())) / self.gates_in_all
        )  # the mean over all MoE layers
        if routings:
            self.load = self.load + torch.stack([r.load for r in routings])
        self.sums[2] += balance.detach()
        return h, self.alpha * balance

    def _losses(self, h: Float[Tensor, "B S D"], tokens: Int[Tensor, "B S1"], angles: Tensor) -> tuple[Tensor, list]:
        norm, head, mtp, embed = self.norm, self.head, self.mtp, self.embed
        assert norm is not None and head is not None and mtp is not None

        def head_loss(x: Tensor, targets: Tensor) -> Tensor:
            return nn.functional.cross_entropy(head(x).flatten(0, 1).float(), targets.flatten(), reduction="sum")

        h, targets = norm(h), tokens[:, 1:]
        loss = head_loss(h, targets) / targets.numel()
        self.sums[0] += loss.detach()
        if embed is None:  # no MTP module
            return loss, []
        second, routings = mtp_loss(mtp, h, tokens, embed, head_loss, angles)
        self.sums[1] += second.detach()
        return loss + self.lam * second, routings


def blocks_of(n_layers: int, stages: int) -> list[range]:
    """The blocks of each stage, as even as they go, longer stages first. ValueError for fewer blocks than stages."""
    if n_layers < stages:
        raise ValueError(f"a stage holds at least one block; got {n_layers} for {stages} stages. Take fewer ranks.")
    sizes = [n_layers // stages + (s < n_layers % stages) for s in range(stages)]
    return [range(end - size, end) for size, end in zip(sizes, accumulate(sizes), strict=True)]


def _leave(model: Transformer, modules: set[nn.Module]) -> None:
    """Take from a whole model all parts that are not among these. What is left keeps its name."""
    for i, block in enumerate(model.layers):
        if block not in modules:
            setattr(model.layers, str(i), None)
    for name in ("embed", "norm", "head", "mtp"):
        if getattr(model, name) not in modules:
            setattr(model, name, None)


class PipelineRank(nn.Module):
    """One rank's stages and its row of a schedule. Make it in every process of a group of `schedule.ranks`.

    Args:
        seed: of the weights; the same model whatever the schedule and the number of ranks.
        alpha, lam: the weights of balance loss and MTP loss.
        model: a whole model instead, its experts cut or not (`sharded.spread`). It loses what is not this rank's.
        group: the processes of this pipe; None for all there are.
        pipes: how many stand side by side.

    Raises: ValueError for a schedule that breaks a rule, and for one that is made for another number of processes.
    """

    def __init__(
        self, cfg: Config, schedule: Schedule, seed: int = 0, alpha: float = 1e-4, lam: float = 0.3,
        model: Transformer | None = None, group: dist.ProcessGroup | None = None, pipes: int = 1,
    ):  # fmt: skip
        super().__init__()
        if problems := violations(schedule):
            raise ValueError(f"a schedule must be lawful; {problems[0]}.")
        if schedule.ranks != dist.get_world_size(group):
            raise ValueError(
                f"a schedule has a row for each process; got {schedule.ranks} for {dist.get_world_size(group)}. "
                f"Start {schedule.ranks} processes."
            )
        self.schedule, self.rank, self.dim = schedule, dist.get_rank(group), cfg.dim
        self.group, self.pipes = group, pipes
        model = model or Transformer(cfg, torch.Generator().manual_seed(seed))
        blocks = blocks_of(cfg.n_layers, schedule.stages)
        mine = sorted({schedule.stage(self.rank, d) for d in range(schedule.copies)})
        self.stages = nn.ModuleDict({str(s): Stage(model, blocks[s], alpha, lam) for s in mine})
        self.names = {id(p): name for name, p in model.named_parameters()}
        cut = {id(p) for p in cut_parameters(model).values()}
        _leave(model, set(self.stages.modules()))
        # of an expert's tensor every process has the part of its place: not the same thing under the same name
        place = next((m.rank for m in model.modules() if isinstance(m, ExpertParallel)), 0)
        parts = {name: f"{name} {place}" if id(p) in cut else name for name, p in self.named().items()}
        self.members, self._groups = self._copies(parts)
        self._reset()

    def named(self) -> dict[str, nn.Parameter]:
        """This rank's parameters by their names in the whole model."""
        return {self.names[id(p)]: p for p in self.parameters()}

    def step(self, tokens: Int[Tensor, "M S1"]) -> list[float]:
        """One batch, cut into the schedule's micro-batches. Returns the losses of those that end on this rank.

        The gradients of the mean over all micro-batches are added to `.grad`. ValueError unless they divide the batch.
        """
        count = self.schedule.micro_batches
        if len(tokens) % count:
            raise ValueError(f"the micro-batches divide the batch; got {len(tokens)} rows for {count}.")
        self._chunks = tokens.chunk(count)
        for step in self.schedule.rows[self.rank]:
            for op in step:
                {"F": self._forward, "B": self._backward, "I": self._input, "W": self._weights}[op.kind](op)
        for sent, _ in self._sent:
            sent.wait()
        self.sum_copies()
        losses = list(self._losses)
        self._reset()
        return losses

    # --- the four operations

    def _forward(self, op: Op) -> None:
        s = self.schedule.stage(self.rank, op.direction)
        x, tokens = None, self._tokens(op)
        if s > 0:
            x = self._receive("F", op, s - 1, (len(tokens), tokens.shape[1] - 1, self.dim)).requires_grad_()
        h, balance = self.stages[str(s)](x, tokens)
        # a stage of dense layers has no balance loss to go back through
        self._kept[op.direction, op.chunk] = (x, [h, balance] if balance.requires_grad else [h], [])
        if s < self.schedule.stages - 1:
            self._send("F", op, s, s + 1, h.detach())
        else:
            self._losses.append(h.item())

    def _backward(self, op: Op) -> None:
        s, (x, out, _) = self._take(op)
        torch.autograd.backward(out, self._gradients(op, s, out))
        if x is not None:
            self._send("I", op, s, s - 1, x.grad)

    def _input(self, op: Op) -> None:
        s, (x, out, _) = self._take(op)
        g = self._gradients(op, s, out)
        if x is not None:  # the first stage has no input that wants a gradient: all its work is W
            (grad,) = torch.autograd.grad(out, [x], g, retain_graph=True)
            self._send("I", op, s, s - 1, grad)
        self._kept[op.direction, op.chunk] = (x, out, g)

    def _weights(self, op: Op) -> None:
        s, (_, out, g) = self._take(op)
        torch.autograd.backward(out, g, inputs=list(self.stages[str(s)].parameters()))

    def _take(self, op: Op) -> tuple[int, tuple]:
        return self.schedule.stage(self.rank, op.direction), self._kept.pop((op.direction, op.chunk))

    def _gradients(self, op: Op, s: int, out: list[Tensor]) -> list[Tensor]:
        """Of the output and of the balance loss, if there is one; the objective is the mean over all micro-batches."""
        share = out[0].new_tensor(1 / (self.schedule.micro_batches * self.pipes))
        first = share if s == self.schedule.stages - 1 else self._receive("I", op, s + 1, out[0].shape)
        return [first, share][: len(out)]

    # --- messages

    def _tokens(self, op: Op) -> Tensor:
        direction, chunk = self.schedule.micro(op)
        return self._chunks[direction * self.schedule.chunks + chunk]

    def _place(self, op: Op, stage: int) -> int:
        """The rank that has a stage for the chunks of this operation's way."""
        ways = [op.direction] if self.schedule.way == "both" else range(self.schedule.copies)
        found = [r for r in range(self.schedule.ranks) for d in ways if self.schedule.stage(r, d) == stage]
        return found[0]

    def _tag(self, kind: str, op: Op, stage: int) -> int:
        direction, chunk = self.schedule.micro(op)
        number = direction * self.schedule.chunks + chunk
        return (number * self.schedule.stages + stage) * 2 + (kind == "I")

    def _send(self, kind: str, op: Op, s: int, to: int, value: Tensor | None) -> None:
        assert value is not None
        target, tag, value = self._place(op, to), self._tag(kind, op, s), value.contiguous()
        if target == self.rank:  # the turn of a V
            self._here[tag] = value
        else:
            sent = dist.isend(value, group=self.group, group_dst=target, tag=tag)
            assert sent is not None
            self._sent.append((sent, value))  # the tensor lives until it has arrived

    def _receive(self, kind: str, op: Op, stage: int, shape: tuple[int, ...]) -> Tensor:
        source, tag = self._place(op, stage), self._tag(kind, op, stage)
        if source == self.rank:
            return self._here.pop(tag)
        value = torch.empty(shape)
        dist.recv(value, group=self.group, group_src=source, tag=tag)
        return value

    # --- parameters that lie on several ranks

    def _copies(
        self, parts: dict[str, str]
    ) -> tuple[dict[str, tuple[int, ...]], dict[tuple[int, ...], dist.ProcessGroup]]:
        """(the processes that hold each parameter; a group for each set of several that this process is in)."""
        owners: dict[str, list[int]] = {}
        for process, held in enumerate(gathered(sorted(parts.values()))):
            for part in held:
                owners.setdefault(part, []).append(process)
        members = {name: tuple(owners[part]) for name, part in parts.items()}
        wait, groups = timedelta(seconds=TIMEOUT), {}
        for several in sorted({tuple(o) for o in owners.values() if len(o) > 1}):  # all make all, in the same order
            made = dist.new_group(list(several), timeout=wait)
            if several in members.values():
                groups[several] = made
        return members, groups

    def sum_copies(self) -> None:
        """Add up the gradients of every parameter that lies in several processes; `step` does it at its end."""
        for members, group in self._groups.items():
            params = [p for name, p in self.named().items() if self.members[name] == members]
            grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in params]
            flat = torch.cat([g.flatten() for g in grads])  # one message, not one for each
            dist.all_reduce(flat, group=group)
            for p, g in zip(params, flat.split([p.numel() for p in params]), strict=True):
                p.grad = g.view_as(p)

    def _reset(self) -> None:
        self._kept: dict[tuple[int, int], tuple] = {}
        self._here: dict[int, Tensor] = {}
        self._sent: list[tuple[dist.Work, Tensor]] = []
        self._losses: list[float] = []
        self._chunks: tuple[Tensor, ...] = ()
