"""A mixture-of-experts layer small enough to be trained while you move its balancing: a few milliseconds a step.

Paper: DeepSeek-V3 section 2.1.2 (bias, sequence-wise loss, node limit); the layer is `minids.moe.MoE`, nothing simpler.

    lesson   a trained model is frozen; the tokens that enter its last MoE layer, and what that layer makes of them
    layer    a new MoE of the same width with narrow experts learns to give the same outputs, by mean squared error
    steer    before each step gamma, alpha, K and M may change: the run goes on with the new values       `advance`

The layer has no shared expert, so every token has to be served by routed ones. The bias moves after each step, from the
load of the step's batch, as in `minids.train`.

Differs from the paper: one layer instead of a model; K and M change during a run, which no one would do in earnest.
Left out: the layers around it. They would move too, and a step would take a hundred times as long.
Notebook: 05_balance.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from minids.config import tiny
from minids.model import Transformer
from minids.moe import MoE
from minids.router import max_violation


class Lesson(NamedTuple):
    """What a trained MoE layer reads and what it answers, for N sequences."""

    x: Tensor  # [N S D]
    y: Tensor  # [N S D]


@torch.no_grad()
def lesson(model: Transformer, rows: Int[Tensor, "N S"]) -> Lesson:
    """Inputs and outputs of the model's last MoE layer on `rows`, the outputs scaled to a mean square of 1.

    ValueError for a model without such a layer.
    """
    layer = model.layers[-1].ffn
    if not isinstance(layer, MoE):
        raise ValueError("the last layer must be a mixture of experts; it is a dense FFN. Take a model with experts.")
    kept: list[tuple[Tensor, Tensor]] = []
    hook = layer.register_forward_hook(lambda _, args, out: kept.append((args[0], out[0])))
    model.hidden(rows)
    hook.remove()
    [(x, y)] = kept
    return Lesson(x, y / y.square().mean().sqrt())


class RouterLab:
    """One run that can be steered. `loads` [steps, E], `losses` and `settings` hold what has happened so far."""

    def __init__(self, given: Lesson, seed: int = 0, batch: int = 8, lr: float = 3e-3, n_experts: int = 16,
                 n_groups: int = 4, width: int = 16):  # fmt: skip
        self.given, self.seed, self.batch, self.lr = given, seed, batch, lr
        self.cfg = replace(
            tiny(), dim=given.x.shape[-1], moe_inter_dim=width, n_routed_experts=n_experts, n_expert_groups=n_groups,
            n_limited_groups=n_groups, n_activated_experts=1, n_shared_experts=0,
        )  # fmt: skip
        self.restart()

    def restart(self) -> None:
        """Back to the first weights: the same seed, so the same run if nothing is moved."""
        self.dice = torch.Generator().manual_seed(self.seed)
        self.layer = MoE(self.cfg)
        for p in self.layer.parameters():
            torch.nn.init.normal_(p, std=self.cfg.init_std, generator=self.dice)
        self.optimizer = torch.optim.AdamW(self.layer.parameters(), self.lr, betas=(0.9, 0.95), weight_decay=0.0)
        self.tick = 0
        self.loads: list[list[int]] = []
        self.losses: list[float] = []
        self.settings: list[tuple[float, float, int, int]] = []  # gamma, alpha, K, M of each step

    def advance(self, steps: int, gamma: float, alpha: float, top_k: int, groups: int) -> None:
        """Train on for `steps` steps. ValueError, from `Config`, where K experts do not fit into M groups."""
        self.layer.gate.cfg = replace(self.cfg, n_activated_experts=top_k, n_limited_groups=groups)
        for _ in range(steps):
            some = torch.randint(len(self.given.x), (self.batch,), generator=self.dice)
            y, routing = self.layer(self.given.x[some])
            loss = F.mse_loss(y, self.given.y[some])
            (loss + alpha * routing.balance).backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.layer.gate.update_bias(routing.load, gamma)
            self.loads.append(routing.load.tolist())
            self.losses.append(loss.item())
            self.settings.append((gamma, alpha, top_k, groups))

    def follow(self, tick: int, gamma: float, alpha: float, top_k: int, groups: int, steps: int = 5) -> None:
        """One call for each tick of a clock or move of a slider: train on, or begin anew when the clock went back."""
        if tick < self.tick:
            self.restart()
        self.tick = tick
        self.advance(steps, gamma, alpha, top_k, groups)

    @property
    def max_vio(self) -> Float[Tensor, "steps"]:
        """MaxVio of each step."""
        return max_violation(torch.tensor(self.loads).view(-1, self.cfg.n_routed_experts))
