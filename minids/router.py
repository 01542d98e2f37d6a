"""The gate: which K of E experts answer for a token, with which weights, and what keeps all experts busy.

Paper: DeepSeek-V3 section 2.1.2 (eq. 13-20); the bias is Algorithm 1 of arXiv 2408.15664; V2's gate is arXiv
2405.04434 section 2.2.

    1 s  = sigmoid(W_g x)     affinity of each expert, in fp32                                    scores   [T E]
    2 s' = s + b              the balancing bias is added for CHOOSING only
    3 a group's score is the sum of its two largest s'; the best `n_limited_groups` groups stay, the others become -inf
    4 the K largest s' that remain are the token's experts                                        indices  [T K]
    5 g  = s[indices]         the ORIGINAL scores; divided by their sum, then times `route_scale` weights  [T K]

Balancing without a loss: after each optimizer step an expert that got more than the mean load loses gamma of bias, one
that got less gains gamma (`Gate.update_bias`). The whole batch's load counts. No gradient passes through b.
A weak sequence-wise loss (eq. 17-20, alpha 1e-4) guards against a single sequence that leans on few experts
(`sequence_balance_loss`).

score_func="softmax" is V2's gate: softmax scores, a group's score is its largest one, no bias, no normalisation.

Differs from the paper: f_i of eq. 18 counts the experts that were really chosen (bias and groups included), as
implementations do.
Left out: V2's device and communication losses, token dropping (V3 drops none).
Notebook: 04_moe (the gate), 05_balance (the bias, the loss, the groups).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from minids.config import Config


class Gate(nn.Module):
    """Chooses K of E experts for each token. `bias` [E] is a buffer: it is moved by the load, never by a gradient."""

    def __init__(self, cfg: Config):
        super().__init__()
        self.cfg = cfg
        self.weight = nn.Parameter(torch.empty(cfg.n_routed_experts, cfg.dim))
        self.register_buffer("bias", torch.zeros(cfg.n_routed_experts) if cfg.score_func == "sigmoid" else None)
        self.bias: Tensor | None

    def forward(self, x: Float[Tensor, "T D"]) -> tuple[Float[Tensor, "T K"], Int[Tensor, "T K"], Float[Tensor, "T E"]]:
        """(weights, indices, scores): the order of a token's K experts is unspecified."""
        if torch.is_autocast_enabled(x.device.type):  # asked first: to enter the context costs as much as to choose
            with torch.autocast(x.device.type, enabled=False):  # choosing experts is too delicate for BF16
                return self(x)
        logits = F.linear(x.float(), self.weight.float()) if x.dtype.itemsize < 4 else F.linear(x, self.weight)
        scores = logits.sigmoid() if self.cfg.score_func == "sigmoid" else logits.softmax(-1)
        indices = self.choose(scores.detach())
        # g_i = s_i / sum_j s_j * route_scale, over the chosen, without the bias
        weights = scores.gather(1, indices)
        if self.cfg.norm_topk_prob:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        return (weights * self.cfg.route_scale).to(x.dtype), indices, scores

    def choose(self, scores: Float[Tensor, "T E"]) -> Int[Tensor, "T K"]:
        """The K experts of each token: by score plus bias, within the best groups."""
        s = scores if self.bias is None else scores + self.bias
        if self.cfg.n_limited_groups < self.cfg.n_expert_groups:
            s = limit_groups(s, self.cfg.n_expert_groups, self.cfg.n_limited_groups, best=self.group_best)
        return s.topk(self.cfg.n_activated_experts, dim=-1, sorted=False).indices

    @property
    def group_best(self) -> int:
        """How many of a group's scores make the group's score: V3 sums two, V2 takes the largest."""
        return 2 if self.cfg.score_func == "sigmoid" else 1

    @torch.no_grad()
    def update_bias(self, load: Int[Tensor, "E"], gamma: float) -> None:
        """b_i += gamma sign(mean load - load_i), from the load of the whole batch (all micro-batches, all ranks)."""
        if self.bias is not None:
            load = load.to(self.bias.dtype)
            self.bias += gamma * torch.sign(load.mean() - load)


def limit_groups(s: Float[Tensor, "T E"], groups: int, keep: int, best: int = 2) -> Float[Tensor, "T E"]:
    """-inf in all but the `keep` best of `groups` contiguous groups, which score by the sum of their `best` largest."""
    T, E = s.shape
    grouped = s.view(T, groups, E // groups)
    group_scores = grouped.topk(best, dim=-1).values.sum(-1)  # [T G]
    # not 0: biased scores may be negative, and a forbidden expert at 0 would win
    lost = group_scores.topk(groups - keep, dim=-1, largest=False, sorted=False).indices
    return grouped.scatter(1, lost.unsqueeze(-1).expand(-1, -1, E // groups), float("-inf")).view(T, E)


def expert_load(indices: Int[Tensor, "T K"], n_experts: int) -> Int[Tensor, "E"]:
    """How many tokens each expert got."""
    return torch.bincount(indices.flatten(), minlength=n_experts)


def max_violation(load: Int[Tensor, "*layers E"]) -> Float[Tensor, "*layers"]:
    """MaxVio = max_i load_i / mean load - 1 (arXiv 2408.15664, eq. 4): 0 is perfect balance, 1 is twice the mean."""
    load = load.float()
    return load.amax(-1) / load.mean(-1) - 1


def mutual_information(counts: Shaped[Tensor, "*more A E"]) -> Float[Tensor, "*more"]:
    """Bits that the expert tells about the row (a domain), from a table of counts; 0 where all rows look alike.

    sum p(a, e) log2 p(a, e) / (p(a) p(e)). From few counts it comes out too large: compare with shuffled rows.
    """
    p = counts.double() / counts.sum((-2, -1), keepdim=True)
    independent = p.sum(-1, keepdim=True) * p.sum(-2, keepdim=True)
    return torch.where(p > 0, p * (p / independent).log2(), 0.0).sum((-2, -1))


def sequence_balance_loss(scores: Float[Tensor, "B S E"], indices: Int[Tensor, "B S K"]) -> Float[Tensor, ""]:
    """Eq. 17-20 without alpha, per sequence, averaged over the batch: sum_i f_i P_i, 1 when perfectly balanced.

    f_i counts choices (no gradient), P_i is the mean normalised affinity (the gradient's way in).
    """
    B, S, E = scores.shape
    K = indices.shape[-1]
    rows = torch.arange(B, device=indices.device)[:, None, None] * E
    # f_i = E / (K S) sum_t 1[expert i chosen by token t]
    f = torch.bincount((indices + rows).flatten(), minlength=B * E).view(B, E) * (E / (K * S))
    # P_i = 1/S sum_t s_it / sum_j s_jt
    P = (scores / scores.sum(-1, keepdim=True)).mean(1)
    return (f * P).sum(-1).mean()
