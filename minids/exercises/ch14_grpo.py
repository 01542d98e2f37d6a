"""Exercises of chapter 14, GRPO: the advantage of a group, the clipped ratio, the KL estimate, how tokens are averaged,
and what pass@k means.

Source: DeepSeekMath (arXiv 2402.03300) eq. 3-4, DeepSeek-R1 (arXiv 2501.12948), Dr. GRPO (2503.20783); pass@k is
arXiv 2107.03374 eq. 1. The wrong answers are mistakes seen in public implementations and explanations.
Notebook: 14_grpo.
"""

from __future__ import annotations

import math
import random
from itertools import combinations

import torch

from minids.exercises import define, expect_close, slip, wrong

# 14.1 -----------------------------------------------------------------------------------------------------------------


def group_advantages(rewards):
    """The advantage of each response, [P G]; rewards [P G], a row for each question."""
    mean = rewards.mean(1, keepdim=True)
    std = rewards.std(1, keepdim=True)
    return (rewards - mean) / (std + 1e-4)


def check_group_advantages(fn):
    P, G = random.randrange(3, 6), random.randrange(6, 10)
    rewards = torch.rand(P, G, dtype=torch.float64) + torch.arange(P)[:, None]  # questions differ in difficulty
    rewards[0] = 1.0  # all right: nothing to compare
    centred = rewards - rewards.mean(1, keepdim=True)
    want = centred / (rewards.std(1, keepdim=True) + 1e-4)
    no_eps = centred / rewards.std(1, keepdim=True)
    expect_close(fn(rewards), want, what=f"the advantages of {P} questions x {G} responses", causes=[
        (centred / (rewards.std(1, correction=0, keepdim=True) + 1e-4), "The standard deviation divides by G; TRL and "
         "verl divide by G - 1. In a group of a few this matters."),
        ((rewards - rewards.mean()) / (rewards.std() + 1e-4), "The mean is over all questions: an easy question would "
         "look good whatever the response. Compare within the row."),
        (centred / (rewards.std() + 1e-4), "The spread is over all questions; the paper divides by the group's own."),
        (lambda got: got[0].isnan().any() and torch.allclose(got[1:], no_eps[1:]), "A group of equal rewards "
         "gives 0 / 0. Add 1e-4 to the standard deviation: then its advantage is 0."),
        (centred, "Not divided by the standard deviation: that is Dr. GRPO's choice, not GRPO's."),
        (rewards / (rewards.std(1, keepdim=True) + 1e-4), "Nothing is subtracted: then every right response is pushed, "
         "also where all were right."),
    ])  # fmt: skip


GROUP_ADVANTAGES = define(
    "14.1", "Better than the others", minutes=8, difficulty=1,
    statement="""
        `rewards` `[P, G]` holds a row for each question. Write `group_advantages(rewards)`:
        $A_i = (r_i - \\text{mean}) / (\\text{std} + 10^{-4})$ within each row, the standard deviation with $G - 1$ in
        its divisor, as TRL has it.
    """,
    hints=(
        "Each row is compared with itself alone. Which dimension is that?",
        "`keepdim=True` lets the mean of a row be subtracted from the row.",
        "`rewards.std(1, keepdim=True)` divides by G - 1; add 1e-4 before you divide.",
    ),
    check=check_group_advantages,
    solution=group_advantages,
    why="The group's mean takes the place of a value network: it estimates how good the policy is at this question. "
    "The 1e-4 gives a group without spread the advantage 0 and not NaN.",
    wrong_answers=(
        slip("rewards.std(1, keepdim=True)", "rewards.std(1, correction=0, keepdim=True)", draws="divides by G;",
             why="The population's standard deviation."),
        slip("mean = rewards.mean(1, keepdim=True)\n    std = rewards.std(1, keepdim=True)",
             "mean, std = rewards.mean(), rewards.std()", draws="mean is over all questions", why="The batch's mean."),
        slip("std = rewards.std(1, keepdim=True)", "std = rewards.std()", draws="spread is over all questions",
             why="The batch's spread."),
        slip("(std + 1e-4)", "std", draws="0 / 0", why="No epsilon."),
        slip(" / (std + 1e-4)", "", draws="Dr. GRPO", why="No division."),
        slip("(rewards - mean)", "rewards", draws="Nothing is subtracted", why="No baseline."),
    ),
)  # fmt: skip


# 14.2 -----------------------------------------------------------------------------------------------------------------


def clipped_loss(ratio, A, eps):
    """The loss of each token: ratio and A of one shape, eps a number."""
    bounded = ratio.clamp(1 - eps, 1 + eps)
    return -torch.minimum(ratio * A, bounded * A)


def check_clipped_loss(fn):
    n, eps = random.randrange(20, 40), random.choice((0.1, 0.2, 0.3))
    ratio = torch.linspace(0.4, 1.9, n, dtype=torch.float64)[torch.randperm(n)]
    A = torch.randn(n, dtype=torch.float64)
    bounded = ratio.clamp(1 - eps, 1 + eps)
    want = -torch.minimum(ratio * A, bounded * A)
    expect_close(fn(ratio, A, eps), want, what=f"the losses of {n} tokens with eps = {eps}", causes=[
        (-want, "The sign: a loss is made small, so a good token's must be negative."),
        (-torch.maximum(ratio * A, bounded * A), "`maximum` where `minimum` belongs: this clips on the wrong side. A "
         "good token that has become likelier would still be pushed, one that lost ground would not be helped back."),
        (-bounded * A, "Only the clipped product is left: a bad token that became likelier (ratio above 1 + eps, A < "
         "0) "
         "has no gradient any more. The minimum of both keeps it."),
        (-ratio * A, "Nothing is clipped."),
        (-torch.minimum(ratio, bounded) * A, "The minimum of the ratios is taken, then times A. For A < 0 the smaller "
         "product belongs to the larger ratio: multiply first."),
        (-torch.minimum(ratio * A, A.clamp(1 - eps, 1 + eps) * ratio), "The advantage is clipped; the ratio should "
         "be."),
        (-torch.minimum(ratio * A, ratio.clamp(-eps, eps) * A), "The ratio is clipped around 0; it lies around 1."),
    ])  # fmt: skip


CLIPPED_LOSS = define(
    "14.2", "Not too far", minutes=8, difficulty=2,
    statement="""
        `ratio` is $\\rho = \\pi(o_t) / \\pi_{old}(o_t)$ of each token, `A` its advantage. Write `clipped_loss(ratio,
        A, eps)`:
        $-\\min(\\rho A,\\ \\mathrm{clip}(\\rho, 1 - \\varepsilon, 1 + \\varepsilon)\\, A)$ for each token.
    """,
    hints=(
        "Four cases: A positive or negative, the ratio far above or far below 1. In which two should the push end?",
        "Take both products, with the ratio and with the clamped ratio, and keep the smaller one.",
        "`ratio.clamp(1 - eps, 1 + eps)`, `torch.minimum`, and a minus in front.",
    ),
    check=check_clipped_loss,
    solution=clipped_loss,
    why="The minimum makes the objective a pessimistic one: the push ends when a good token is likelier by eps, or a "
    "bad "
    "one less likely by eps. In the other two cases the token went the wrong way, and the gradient stays.",
    wrong_answers=(
        slip("-torch.minimum", "torch.minimum", draws="a good token's must be negative", why="The objective, not a "
        "loss."),
        slip("torch.minimum", "torch.maximum", draws="wrong side", why="Maximum for minimum."),
        slip("-torch.minimum(ratio * A, bounded * A)", "-bounded * A", draws="Only the clipped product",
             why="The clamp without the minimum."),
        slip("bounded * A)", "ratio * A)", draws="Nothing is clipped", why="The clamped ratio is never used."),
        slip("torch.minimum(ratio * A, bounded * A)", "torch.minimum(ratio, bounded) * A", draws="multiply first",
             why="Minimum of the ratios."),
        slip("clamp(1 - eps, 1 + eps)", "clamp(-eps, eps)", draws="around 0", why="The bounds forget the 1."),
    ),
)  # fmt: skip


# 14.3 -----------------------------------------------------------------------------------------------------------------


def kl_estimate(logp, ref_logp):
    """k3 for each token: logp and ref_logp are the log-probabilities of the sampled token."""
    d = ref_logp - logp
    return d.exp() - d - 1


def check_kl_estimate(fn):
    p, q = torch.randn(2, random.randrange(5, 9), dtype=torch.float64).log_softmax(-1)
    d = q - p
    expect_close(fn(p, q), d.exp() - d - 1, what="k3 of every token of a vocabulary", causes=[
        (-d, "This is k1, log pi - log pi_ref: right on average, but half of its values are negative and its spread is "
         "large."),
        (d.square() / 2, "This is k2, half the square: always positive, but its mean is not the KL."),
        ((-d).exp() + d - 1, "The two policies are swapped: the ratio in k3 is pi_ref / pi, since the samples are "
         "pi's."),
        (d.exp() - d, "The 1 is missing: two equal policies must give 0."),
        (d.exp() + d - 1, "The sign of the logarithm: k3 = ratio - log ratio - 1."),
        (d.exp() - 1, "The logarithm is missing: the mean of ratio - 1 is 0 for every pair of policies."),
    ])  # fmt: skip
    expect_close((p.exp() * fn(p, q)).sum(), (p.exp() * (p - q)).sum(), what="its mean over the policy")


KL_ESTIMATE = define(
    "14.3", "How far from the reference", minutes=6, difficulty=1,
    statement="""
        `logp` and `ref_logp` are the log-probabilities that the policy and the reference give the sampled token. Write
        `kl_estimate(logp, ref_logp)`: $k_3 = r - \\log r - 1$ with $r = \\pi_{ref} / \\pi$.
    """,
    hints=(
        "What is log r, from the two arguments?",
        "With d = log r: r is exp(d).",
        "`d = ref_logp - logp`, then exp(d) - d - 1.",
    ),
    check=check_kl_estimate,
    solution=kl_estimate,
    why="The mean of r - 1 over the policy is 0, so adding it to -log r changes no mean, only the spread; and r - 1 is "
    "never below log r, so that k3 is never negative.",
    wrong_answers=(
        slip("d.exp() - d - 1", "-d", draws="This is k1", why="The plain estimator."),
        slip("d.exp() - d - 1", "d ** 2 / 2", draws="This is k2", why="Half the square."),
        slip("ref_logp - logp", "logp - ref_logp", draws="swapped", why="pi / pi_ref."),
        slip(" - d - 1", " - d", draws="1 is missing", why="Without the 1."),
        slip("d.exp() - d", "d.exp() + d", draws="sign of the logarithm", why="A sign."),
        slip("d.exp() - d - 1", "d.exp() - 1", draws="logarithm is missing", why="Only the control variate."),
    ),
)  # fmt: skip


# 14.4 -----------------------------------------------------------------------------------------------------------------


def response_mean(losses, mask):
    """GRPO's number from the losses [B L] of the tokens; mask [B L] is True on response tokens."""
    each = (losses * mask).sum(1) / mask.sum(1)
    return each.mean()


def check_response_mean(fn):
    B, L = random.randrange(3, 6), random.randrange(7, 11)
    losses = torch.randn(B, L, dtype=torch.float64) + 1
    mask = torch.arange(L) < torch.randint(1, L, (B, 1))
    mask[0] = torch.arange(L) < L - 1
    mask[1] = torch.arange(L) < 2
    n = mask.sum(1)
    expect_close(fn(losses, mask), ((losses * mask).sum(1) / n).mean(), what=f"the mean over {B} responses", causes=[
        (losses.mean(), "The mask is missing: padding counts as if it had been written."),
        ((losses * mask).mean(), "Divided by the padded length: a short response weighs less, whatever it says. "
         "Divide by "
         "the response's own tokens."),
        ((losses * mask).sum() / n.sum(), "The mean over all tokens is DAPO's: a long response weighs more. GRPO takes "
         "each response's mean first."),
        (((losses * mask).sum(1) / n).sum(), "The sum over the responses; their mean is asked for."),
        ((losses * mask).sum(1).mean(), "Not divided by the lengths: with a constant divisor that would be Dr. "
         "GRPO's."),
    ])  # fmt: skip


RESPONSE_MEAN = define(
    "14.4", "Every response counts the same", minutes=6, difficulty=1,
    statement="""
        Write `response_mean(losses, mask)`: GRPO's own average. Each response's mean over its own tokens (where `mask`
        `[B, L]` is True), then the mean over the responses.
    """,
    hints=(
        "Two means, one after the other. Over which dimension goes the first?",
        "How many tokens does a response have? The mask knows.",
        "`(losses * mask).sum(1) / mask.sum(1)`, and the mean of that.",
    ),
    check=check_response_mean,
    solution=response_mean,
    why="1/|o_i| makes all responses count the same, so a token of a long response counts less. For wrong responses "
    "this "
    "makes length cheap: Dr. GRPO's point.",
    wrong_answers=(
        slip("each = (losses * mask).sum(1) / mask.sum(1)\n    return each.mean()", "return losses.mean()",
             draws="mask is missing", why="Padding counts."),
        slip(".sum(1) / mask.sum(1)", ".mean(1)", draws="padded length", why="A mean over the padded row."),
        slip("each = (losses * mask).sum(1) / mask.sum(1)\n    return each.mean()",
             "return (losses * mask).sum() / mask.sum()", draws="DAPO", why="All tokens alike."),
        slip("each.mean()", "each.sum()", draws="The sum over the responses", why="A sum."),
        slip(" / mask.sum(1)", "", draws="Not divided by the lengths", why="Sums."),
    ),
)  # fmt: skip


# 14.5 -----------------------------------------------------------------------------------------------------------------


def pass_at_k(n, c, k):
    """The probability that k of n samples, c of which are right, hold a right one."""
    return 1 - math.comb(n - c, k) / math.comb(n, k)


def check_pass_at_k(fn):
    for _ in range(6):
        n = random.choice((5, 9))  # odd, and k below a half: no two of the causes below are the same number
        c, k = random.randrange(1, n - 1), random.randrange(2, n // 2 + 1)
        ways = list(combinations(range(n), k))
        want = sum(any(i < c for i in way) for way in ways) / len(ways)
        expect_close(fn(n, c, k), want, what=f"pass@{k} from {n} samples, {c} right,", causes=[
            (1 - (1 - c / n) ** k, "This draws with replacement: the same sample could be counted twice, and the "
            "estimate "
             "is too low. The k are different ones of the n."),
            (min(1, k * c / n), "The expected number of right ones, not the probability of at least one."),
            (c / n, "That is pass@1."),
            (math.comb(c, k) / math.comb(n, k), "The probability that all k are right."),
            (math.comb(n - c, k) / math.comb(n, k), "The probability that all k are wrong: take it from 1."),
        ])  # fmt: skip
    expect_close(fn(7, 0, 3), 0.0, what="pass@3 when none is right")
    expect_close(fn(7, 5, 3), 1.0, what="pass@3 when only 2 of 7 are wrong")


PASS_AT_K = define(
    "14.5", "One of k", minutes=7, difficulty=2,
    statement="""
        Of `n` samples for a problem `c` were right. Write `pass_at_k(n, c, k)`: the probability that `k` different
        ones of them, drawn at random, hold at least one right one.
    """,
    hints=(
        "When is none of the k right? Count the ways.",
        "All k come from the n - c wrong ones: how many of all the choices of k out of n is that?",
        "`1 - math.comb(n - c, k) / math.comb(n, k)`.",
    ),
    check=check_pass_at_k,
    solution=pass_at_k,
    why="The mean over all choices of k out of the n samples: no sample is used twice, so nothing is biased.",
    wrong_answers=(
        wrong("def pass_at_k(n, c, k):\n    return 1 - (1 - c / n) ** k", draws="with replacement", why="Independent "
        "draws."),
        wrong("def pass_at_k(n, c, k):\n    return min(1, k * c / n)", draws="expected number", why="An expectation."),
        wrong("def pass_at_k(n, c, k):\n    return c / n", draws="pass@1", why="k is not used."),
        wrong("import math\ndef pass_at_k(n, c, k):\n    return math.comb(c, k) / math.comb(n, k)", draws="all k are "
        "right",
              why="All for one."),
        slip("1 - math", "math", draws="take it from 1", why="The complement."),
    ),
)  # fmt: skip
