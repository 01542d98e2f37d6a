"""What moves the weights: the learning rate over a run, the growing batch, AdamW with small moments, averaged weights.

Paper: DeepSeek-V3 section 4.2 (hyper-parameters), 3.3.3 (moments in BF16), 3.2.3 (the average of the weights).

Learning rate (`LRSchedule.at`), peak 2.2e-4 over 14.8 T tokens; `share` is the part of the run already done:

    warm-up      0 -> peak, a straight line over 2,000 steps        steps, whatever the share is
    constant     peak                                               until 10 T tokens       decay_start
    cosine       peak -> peak / 10 over the next 4.3 T tokens       until 14.3 T            decay_end
    constant     peak / 10 for 333 B tokens                         until 14.633 T          last_start
    constant     7.3e-6 for the last 167 B tokens                   until 14.8 T

Batch (`BatchRamp.at`): from 3,072 to 15,360 sequences over the first 469 B tokens.

AdamW (arXiv 1711.05101), for a weight w with gradient g at step t:

    m = b1 m + (1 - b1) g        m is `exp_avg`, in BF16
    v = b2 v + (1 - b2) g^2      v is `exp_avg_sq`, in BF16
    w = w (1 - lr decay) - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)       w in FP32: the master weight

Sums are made in FP32 and only stored in BF16. That is safe because b2 is 0.95: a step may change v by 5 %, and BF16
resolves 0.4 %. With the usual b2 = 0.999 a step's change would be rounded away, and v would never shrink.

Differs from the paper: three things that it does not say are ours. The batch grows in a straight line in tokens, eps is
1e-8, and norms and the embedding do not decay (`parameter_groups`).
Left out: Muon; the copy of the average in CPU memory, moved while the next step runs (section 3.2.3).
Notebook: 08_pretrain.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

MOMENTS = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class LRSchedule:
    """V3's learning rate; the defaults are the published numbers.

    `decayed` and `final` are parts of the peak; decay_start, decay_end and last_start are shares of the run.
    """

    peak: float = 2.2e-4
    warmup_steps: int = 2000
    decay_start: float = 10 / 14.8
    decay_end: float = 14.3 / 14.8
    last_start: float = 14.633 / 14.8
    decayed: float = 0.1
    final: float = 7.3e-6 / 2.2e-4

    def __post_init__(self):
        if not 0 <= self.decay_start <= self.decay_end <= self.last_start <= 1:
            raise ValueError(
                "the stages of the schedule follow one another, 0 <= decay_start <= decay_end <= last_start <= 1; "
                f"got {self.decay_start}, {self.decay_end}, {self.last_start}. "
                "V3 has 10/14.8, 14.3/14.8 and 14.633/14.8."
            )
        if self.peak <= 0 or self.warmup_steps < 0:
            raise ValueError(
                f"the peak is positive and warmup_steps not negative; got {self.peak} and {self.warmup_steps}. "
                "V3 has 2.2e-4 and 2000."
            )

    def at(self, step: int, share: float) -> float:
        """The rate of step number `step` (1 is the first), when `share` of the run lies behind it."""
        warm = min(1.0, step / self.warmup_steps) if self.warmup_steps else 1.0
        return warm * self.peak * self.factor(share)

    def factor(self, share: float) -> float:
        """The rate as a part of the peak, without the warm-up."""
        if share >= self.last_start:
            return self.final
        if share >= self.decay_end:
            return self.decayed
        if share < self.decay_start:
            return 1.0
        done = (share - self.decay_start) / (self.decay_end - self.decay_start)
        # decayed + (1 - decayed) / 2 (1 + cos(pi done))
        return self.decayed + 0.5 * (1 - self.decayed) * (1 + math.cos(math.pi * done))


@dataclass(frozen=True)
class BatchRamp:
    """Sequences a step: from `start` to `end` over the first `tokens` tokens, in a straight line.

    Small batches make more of each token while the gradient is large and plain; large ones average out its noise later.
    """

    start: int = 3072
    end: int = 15360
    tokens: int = 469_000_000_000

    def at(self, tokens: int) -> int:
        """The batch, in sequences, when `tokens` have been seen."""
        if tokens >= self.tokens:
            return self.end
        return self.start + (self.end - self.start) * tokens // self.tokens


class AdamW(torch.optim.Optimizer):
    """AdamW as V3 runs it: moments in `moments` (BF16), weights updated in FP32.

    A parameter in lower precision gets an FP32 copy, `master`, that takes the updates; the parameter is its rounding.
    With FP32 moments it is torch.optim.AdamW.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.1,
        moments: torch.dtype = torch.bfloat16,
    ):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self.moments = moments

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update from the gradients that are there."""
        with torch.enable_grad():
            loss = closure() if closure else None
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._update(p, group)
        return loss

    def _update(self, p: Tensor, group: dict) -> None:
        state = self.state[p] or self._start(p)
        state["step"] += 1
        (b1, b2), lr, t = group["betas"], group["lr"], state["step"].item()
        w, g = state.get("master", p), p.grad.float()  # type: ignore[union-attr]
        # m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2
        m = state["exp_avg"].float().lerp_(g, 1 - b1)
        v = state["exp_avg_sq"].float().mul_(b2).addcmul_(g, g, value=1 - b2)
        # w = w (1 - lr decay) - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)
        root = (v.sqrt() / math.sqrt(1 - b2**t)).add_(group["eps"])
        w.mul_(1 - lr * group["weight_decay"]).addcdiv_(m, root, value=-lr / (1 - b1**t))
        state["exp_avg"].copy_(m)
        state["exp_avg_sq"].copy_(v)
        if w is not p:
            p.copy_(w)

    def _start(self, p: Tensor) -> dict:
        state = self.state[p]
        state["step"] = torch.zeros(())
        state["exp_avg"] = torch.zeros_like(p, dtype=self.moments)
        state["exp_avg_sq"] = torch.zeros_like(p, dtype=self.moments)
        if p.dtype.itemsize < 4:
            state["master"] = p.float()
        return state

    def load_state_dict(self, state_dict: dict) -> None:
        """As torch's, which would cast moments and `master` to the parameter's type: here each keeps its own."""
        super().load_state_dict(state_dict)
        params = [p for group in self.param_groups for p in group["params"]]
        for i, saved in state_dict["state"].items():
            self.state[params[i]] = {k: v.detach().clone().to(params[i].device) for k, v in saved.items()}


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Two groups: every matrix decays, norms (one dimension) and embeddings do not.

    The paper is silent. A norm's weight sets a scale, which decay would only fight; the embedding of a rare token would
    shrink between its visits.
    """
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    params = [p for p in model.parameters() if p.requires_grad]
    decays = [p.ndim >= 2 and id(p) not in embeddings for p in params]
    return [
        {"params": [p for p, d in zip(params, decays, strict=True) if d], "weight_decay": weight_decay},
        {"params": [p for p, d in zip(params, decays, strict=True) if not d], "weight_decay": 0.0},
    ]


def make_optimizer(
    model: nn.Module,
    lr: float,
    weight_decay: float = 0.1,
    betas: tuple[float, float] = (0.9, 0.95),
    eps: float = 1e-8,
    moments: str = "fp32",
) -> torch.optim.Optimizer:
    """AdamW for `model`: torch's fused one with moments="fp32" (fast), the one above with "bf16" (the paper's)."""
    if moments not in MOMENTS:
        raise ValueError(f'moments are kept in "fp32" or "bf16"; got {moments!r}. "fp32" is the faster on a CPU.')
    groups = parameter_groups(model, weight_decay)
    if moments == "fp32":
        return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps, fused=True)
    return AdamW(groups, lr=lr, betas=betas, eps=eps, moments=MOMENTS[moments])


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes that the optimizer keeps beside the weights."""
    tensors = [v for state in optimizer.state.values() for v in state.values() if isinstance(v, Tensor)]
    return sum(t.numel() * t.element_size() for t in tensors)


def averaged(model: nn.Module, decay: float) -> AveragedModel:
    """An exponential moving average of the weights: a = decay a + (1 - decay) w at each `update_parameters(model)`.

    The first update copies. The gates' biases are copied, not averaged. Keep the weights in FP32: in BF16 the average's
    small steps would be rounded away.
    """
    if not 0 <= decay < 1:
        raise ValueError(f"the average's decay lies in [0, 1); got {decay}. 0.99 remembers about 100 steps.")
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))
