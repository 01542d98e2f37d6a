"""Group Relative Policy Optimization: advantages from a group of samples, a clipped ratio, the KL in the loss.

Paper: DeepSeekMath (arXiv 2402.03300) eq. 3-4; DeepSeek-V3 eq. 26-28; DeepSeek-R1 (arXiv 2501.12948) eq. 1-3. Dr. GRPO
is arXiv 2503.20783, DAPO's token mean arXiv 2503.14476, the k3 estimator joschu.net/blog/kl-approx.html.

    A_i  = (r_i - mean(r)) / (std(r) + eps)          one number a response, for all its tokens          advantages
    rho  = exp(log pi(o_t) - log pi_old(o_t))        1 at the first update after a rollout
    l_t  = -min(rho A, clip(rho, 1 - eps, 1 + eps) A) + beta k3
    k3   = exp(d) - d - 1,  d = log pi_ref - log pi  >= 0, and its mean over samples of pi is KL(pi || pi_ref)

How l_t becomes one number is what the variants differ in (m: mask of response tokens, B rows, L the longest allowed):

    grpo     mean over rows of  sum_t l m / sum_t m        a token of a short response counts more
    bnpo     sum l m / sum m    over this batch            every token counts the same
    dapo     sum l m / tokens of the whole rollout         the same, whatever the minibatches
    dr_grpo  sum l m / (B L)                               a constant divisor; with scale="none" it is Dr. GRPO

Why does the loss start at 0? With rho = 1 its value is -mean(A), and A sums to 0 in each group. Its gradient is
-A grad log pi, which is not 0.

Differs from the paper: it does not say which std; `ddof` 1 is TRL's and verl's. A group without spread gets A = 0.
Left out: the value network (GRPO has none), dual clipping, importance sampling a sequence.
Notebook: 14_grpo.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from minids.model import Transformer

AVERAGES = ("grpo", "bnpo", "dapo", "dr_grpo")


def advantages(
    rewards: Float[Tensor, "P G"], scale: str = "group", ddof: int = 1, eps: float = 1e-4
) -> Float[Tensor, "P G"]:
    """(r - mean) / (std + eps) within each group; 0 where all rewards of a group are equal.

    `scale`: "group"; "batch" divides by the std of all rewards; "none" by nothing (Dr. GRPO).
    """
    centred = rewards - rewards.mean(1, keepdim=True)
    if scale == "none":
        return centred
    if scale not in ("group", "batch"):
        raise ValueError(f'scale is "group", "batch" or "none"; got {scale!r}. The paper divides by the group\'s std.')
    if rewards.shape[1] <= ddof and scale == "group":
        raise ValueError(f"a std with ddof={ddof} needs more rows a group; got G={rewards.shape[1]}. The paper has 16.")
    std = rewards.std(1, correction=ddof, keepdim=True) if scale == "group" else rewards.std(correction=ddof)
    return centred / (std + eps)


def k3(logp: Float[Tensor, "*b"], ref_logp: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
    """Schulman's third estimator of KL(pi || pi_ref) from a sample of pi: never negative, low variance."""
    # pi_ref / pi - log(pi_ref / pi) - 1
    d = ref_logp - logp
    return d.exp() - d - 1


class PolicyLoss(NamedTuple):
    """The loss of a minibatch and what to watch: the share of clipped tokens, and the mean k3."""

    loss: Float[Tensor, ""]
    clipped: float
    kl: float


def policy_loss(
    logp: Float[Tensor, "B L"],
    old_logp: Float[Tensor, "B L"],
    advantage: Float[Tensor, "B"],
    mask: Bool[Tensor, "B L"],
    clip: float = 0.2,
    beta: float = 0.0,
    ref_logp: Float[Tensor, "B L"] | None = None,
    average: str = "dapo",
    divisor: float = 0.0,
) -> PolicyLoss:
    """DeepSeekMath eq. 3, negated. `divisor` is for `dapo` (the rollout's tokens) and `dr_grpo` (L, the longest).

    ValueError for a KL without a reference and an unknown average.
    """
    if beta and ref_logp is None:
        raise ValueError(f"a KL needs the reference's log-probabilities; got beta={beta} without ref_logp.")
    A = advantage[:, None]
    # rho_t = pi(o_t) / pi_old(o_t)
    rho = (logp - old_logp).exp()
    bounded = rho.clamp(1 - clip, 1 + clip)
    # l_t = -min(rho A, clip(rho) A) + beta k3
    token_loss = -torch.minimum(rho * A, bounded * A)
    n, kl = mask.sum().clamp(min=1), 0.0
    if ref_logp is not None:
        penalty = k3(logp, ref_logp)
        token_loss = token_loss + beta * penalty
        kl = (penalty * mask).sum().item() / n.item()
    clipped = (((rho < 1 - clip) & (A < 0)) | ((rho > 1 + clip) & (A > 0))) & mask
    return PolicyLoss(averaged(token_loss, mask, average, divisor), clipped.sum().item() / n.item(), kl)


def averaged(
    token_loss: Float[Tensor, "B L"], mask: Bool[Tensor, "B L"], average: str, divisor: float = 0.0
) -> Float[Tensor, ""]:
    """One number from a loss a token, in one of the four ways of the module's table."""
    B, L = mask.shape
    masked = token_loss * mask
    if average == "grpo":
        return (masked.sum(1) / mask.sum(1).clamp(min=1)).mean()
    if average in ("bnpo", "dapo"):
        tokens = divisor if average == "dapo" and divisor else mask.sum().clamp(min=1)
        return masked.sum() / tokens
    if average == "dr_grpo":
        return masked.sum() / (B * (divisor or L))
    raise ValueError(f"an average is one of {', '.join(AVERAGES)}; got {average!r}. R1's formula is grpo.")


def log_probs(model: Transformer, tokens: Int[Tensor, "B T"], n: int) -> Float[Tensor, "B L"]:
    """log pi of the last `n` tokens of each row, each given all before it."""
    h, _ = model.hidden(tokens[:, :-1])
    logits = model.head(h[:, -n:]).float()
    return logits.log_softmax(-1).gather(2, tokens[:, -n:, None])[..., 0]


def informative(rewards: Float[Tensor, "P G"]) -> Bool[Tensor, "P"]:
    """Groups whose rewards differ: the others have A = 0 and teach nothing."""
    return rewards.amax(1) > rewards.amin(1)
