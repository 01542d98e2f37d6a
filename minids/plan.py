"""DeepSeek-V3's parallel plan as arithmetic: what lies on one of 2,048 GPUs, and what the training cost.

Paper: DeepSeek-V3 section 3.2 (16-way pipeline, 64-way experts over 8 nodes, ZeRO-1), section 3.3.3 (BF16 moments, FP32
masters and gradients), table 1 (GPU hours), section 1 (180 K hours a trillion tokens, 3.7 days on 2,048 GPUs).

    ranks in all = pp x dp                          2,048 = 16 x 128: no tensor parallelism
    experts      are cut over ep of the dp ranks    256 / 64 = 4 a layer and GPU, in dp / ep = 2 copies
    the rest     is on all dp ranks                 128 copies
    DualPipe     gives every rank two stages        parameters twice, gradients too
    ZeRO-1       cuts masters and moments over the copies of a parameter; weights and gradients stay whole

Differs from the paper: layers are spread evenly over the stages, as a mean; the paper puts embedding and head on the
first and last. Bytes of activations are not published, so they are not here.
Left out: activations, buffers, the MTP module's share (it sits with the head).
Notebook: 11_expert_parallel.
"""

from __future__ import annotations

from dataclasses import dataclass

from minids.config import Config
from minids.costs import expert_params, params


@dataclass(frozen=True)
class Plan:
    """How the ranks are used. ValueError where the numbers do not divide."""

    pp: int = 16
    ep: int = 64
    gpus: int = 2048
    zero1: bool = True
    stages_per_rank: int = 2  # DualPipe's two directions; 1 without

    def __post_init__(self):
        if self.gpus % self.pp:
            raise ValueError(f"pp divides the GPUs; got {self.gpus} GPUs, pp={self.pp}. V3: 2,048 and 16.")
        if self.dp % self.ep:
            raise ValueError(
                f"ep divides the data-parallel ranks, gpus / pp = {self.dp}; got ep={self.ep}. V3: 64 of 128."
            )

    @property
    def dp(self) -> int:
        """Ranks that hold the same stage."""
        return self.gpus // self.pp


# bytes a parameter: BF16 weights (the FP8 copies are made for each product), FP32 gradients, masters, two BF16 moments
WEIGHT, GRADIENT, MASTER, MOMENTS = 2, 4, 4, 4


def params_per_gpu(cfg: Config, plan: Plan) -> tuple[float, float]:
    """(expert parameters, other parameters) on one GPU, embedding and head spread over the stages.

    ValueError where ep does not divide the experts.
    """
    if cfg.n_routed_experts % plan.ep:
        raise ValueError(
            f"ep divides the routed experts; got {cfg.n_routed_experts} experts, ep={plan.ep}. "
            "Choose a divisor, so that every GPU holds equally many."
        )
    routed = cfg.n_moe_layers * cfg.n_routed_experts * expert_params(cfg)
    rest = params(cfg).total - routed
    return plan.stages_per_rank * routed / plan.pp / plan.ep, plan.stages_per_rank * rest / plan.pp


def bytes_per_gpu(cfg: Config, plan: Plan) -> dict[str, float]:
    """Bytes on one GPU by kind, activations left out."""
    experts, rest = params_per_gpu(cfg, plan)
    copies = (plan.dp / plan.ep * plan.stages_per_rank, plan.dp * plan.stages_per_rank)
    cut = copies if plan.zero1 else (1, 1)
    sharded = experts / cut[0] + rest / cut[1]
    return {
        "weights (BF16)": WEIGHT * (experts + rest),
        "gradients (FP32)": GRADIENT * (experts + rest),
        "masters (FP32)": MASTER * sharded,
        "moments (2 x BF16)": MOMENTS * sharded,
    }


def days(gpu_hours: float, gpus: int = 2048) -> float:
    """Days that so many GPU hours take on so many GPUs."""
    return gpu_hours / gpus / 24


def gpu_hours_per_trillion(pretraining_hours: float = 2_664_000, trillions: float = 14.8) -> float:
    """The paper's 180 K hours for a trillion tokens, from its table 1."""
    return pretraining_hours / trillions
