"""Exercises of the balancing chapter: measuring imbalance, moving the bias, choosing with it, the loss, the traffic.

Source: DeepSeek-V3 (arXiv 2412.19437) section 2.1.2, eq. 14-20, section 3.2.2; arXiv 2408.15664, Algorithm 1.
The wrong answers are mistakes seen in public implementations and explanations.
Notebook: 05_balance.
"""

from __future__ import annotations

import random

import torch
from torch import Tensor

from minids.exercises import define, expect_close, slip, wrong

# 5.1 ------------------------------------------------------------------------------------------------------------------


def max_vio(loads):
    """MaxVio of one step; loads [n, E]: tokens that each of its n micro-batches sent to each expert."""
    load = loads.sum(0).double()
    return load.max() / load.mean() - 1


def check_max_vio(fn):
    n, E = 3, random.randrange(5, 9)
    loads = torch.randint(1, 40, (n, E))
    loads[torch.arange(n), torch.randperm(E)[:n]] += 60  # another expert is the busiest in each micro-batch
    load = loads.sum(0).double()
    each = loads.double().amax(1) / loads.double().mean(1) - 1
    want = load.max() / load.mean() - 1
    expect_close(fn(loads), want, what="MaxVio", dtype=False, causes=[
        (each.mean(), "That is the mean of the micro-batches' own MaxVio. Each of them is too small to be even; what "
         "counts is the load of all tokens of the step: add the loads first."),
        (each.max(), "That is the worst micro-batch. Add the loads first: the step is one batch."),
        (each, "One number for each micro-batch. Add the loads first: the step is one batch."),
        (want + 1, "The 1 is not taken off: perfect balance must give 0."),
        (load.max() - load.mean(), "That is in tokens. MaxVio is relative to the mean load."),
        (load.max() / load.sum() - 1, "Divided by all tokens instead of the mean load."),
        (load.max() / load.sum(), "That is the busiest expert's share of all tokens, which depends on E."),
        (1 - load.min() / load.mean(), "That looks at the idlest expert. The busiest one is what everybody waits for."),
        (load.std() / load.mean(), "That is the relative spread. MaxVio looks at the busiest expert alone."),
    ])  # fmt: skip


MAX_VIO = define(
    "5.1", "How uneven was that step?", minutes=5, difficulty=1,
    statement="""
        A batch is often computed in pieces, *micro-batches*. `loads` `[n, E]` has one row for each of the n pieces of a
        step: how many tokens it sent to each expert. Write `max_vio(loads)`: the MaxVio of the whole step.
    """,
    hints=(
        "What would `loads` be if the step had been computed in one piece?",
        "Add the rows. Then: how far is the largest number above the mean, as a part of the mean?",
        "`load = loads.sum(0).double()`, then max over mean, minus 1.",
    ),
    check=check_max_vio,
    solution=max_vio,
    why="A small piece of text is uneven whatever the router does, so a mean over small pieces says more about their "
    "size than about the router. The paper's figure is for the global batch.",
    wrong_answers=(
        wrong("""
            def max_vio(loads):
                loads = loads.double()
                return (loads.amax(1) / loads.mean(1) - 1).mean()
        """, draws="mean of the micro-batches", why="Logged once a micro-batch, then averaged."),
        slip("/ load.mean() - 1", "/ load.mean()", draws="must give 0", why="The ratio itself, as V2 plots it."),
        slip("/ load.mean() - 1", "- load.mean()", draws="in tokens", why="An absolute difference."),
        slip("load.max() / load.mean() - 1", "1 - load.min() / load.mean()", draws="idlest", why="The dead expert."),
        slip("load.max() / load.mean() - 1", "load.std() / load.mean()", draws="relative spread",
             why="The coefficient of variation, used by older MoE papers."),
        slip("/ load.mean() - 1", "/ load.sum()", draws="busiest expert's share", why="Mean and sum confused."),
    ),
)  # fmt: skip


# 5.2 ------------------------------------------------------------------------------------------------------------------


def moved_bias(bias, loads, gamma):
    """The bias [E] after a step whose n micro-batches sent loads [n, E] tokens to the experts."""
    load = loads.sum(0).to(bias.dtype)
    return bias + gamma * torch.sign(load.mean() - load)


def check_moved_bias(fn):
    E, gamma = random.randrange(6, 10), random.uniform(0.002, 0.02)
    bias = torch.randn(E, dtype=torch.float64)
    total = torch.randint(40, 160, (E,))
    total[0] += -total[:-1].sum() % (E - 1)
    total[-1] = total[:-1].sum() // (E - 1)  # exactly the mean load: the last expert must not move
    first, second = ((total * torch.rand(E) * 0.5).long() for _ in range(2))  # each piece is uneven in its own way
    loads = torch.stack([first, second, total - first - second])
    load, each = loads.sum(0).double(), loads.double()
    want = bias + gamma * (load.mean() - load).sign()
    per_piece = bias + gamma * (each.mean(1, keepdim=True) - each).sign().sum(0)
    expect_close(fn(bias, loads, gamma), want, what="the bias", causes=[
        (bias - gamma * (load.mean() - load).sign(), "The sign is turned around: the busy expert is made even more "
         "attractive. Who has too much must lose."),
        (per_piece, "The bias moved after every micro-batch. It moves once a step, from the load of all of them."),
        (bias + gamma * (each.mean(1, keepdim=True) - each).sign().mean(0), "The signs of the micro-batches are "
         "averaged. Add the loads first: the sign is taken once."),
        (bias + gamma * (load.mean() - load), "The step is as long as the error. The rule takes its sign only, so "
         "that gamma alone says how fast the bias moves."),
        (bias + gamma * (load.mean() - load) / load.mean(), "The step is as long as the relative error. The rule takes "
         "its sign only."),
        (bias + torch.where(load > load.mean(), -gamma, gamma), "An expert with exactly the mean load moved. The sign "
         "of 0 is 0."),
        (bias + gamma * (load.median() - load).sign(), "Compared with the median. The fair share is the mean."),
        (gamma * (load.mean() - load).sign(), "The old bias is lost: the step is added to it."),
    ])  # fmt: skip


MOVED_BIAS = define(
    "5.2", "Move the bias", minutes=6, difficulty=1,
    statement="""
        The same `loads` `[n, E]` of a step in n micro-batches, and the experts' `bias` `[E]`. Write
        `moved_bias(bias, loads, gamma)`: the bias that the next step chooses with.
    """,
    hints=(
        "Which experts should become more attractive: those with more tokens than the mean, or those with fewer?",
        "Every bias moves by gamma up, gamma down, or not at all. And it moves once a step.",
        "`bias + gamma * torch.sign(load.mean() - load)`, with the load of all micro-batches.",
    ),
    check=check_moved_bias,
    solution=moved_bias,
    why="The step is a batch of its own size only when all its pieces, and on a cluster all machines, are counted "
    "together. One piece sees mostly one text, and the bias would run after it.",
    wrong_answers=(
        slip("load.mean() - load", "load - load.mean()", draws="turned around", why="The error's sign inverted."),
        wrong("""
            def moved_bias(bias, loads, gamma):
                for load in loads.to(bias.dtype):
                    bias = bias + gamma * torch.sign(load.mean() - load)
                return bias
        """, draws="after every micro-batch", why="The update sits inside the loop over micro-batches."),
        slip("torch.sign(load.mean() - load)", "(load.mean() - load)", draws="as long as the error",
             why="A proportional controller; the paper tried one too."),
        slip("torch.sign(load.mean() - load)", "(1 - load / load.mean())", draws="relative error",
             why="The same, in fair shares."),
        slip("gamma * torch.sign(load.mean() - load)", "torch.where(load > load.mean(), -gamma, gamma)",
             draws="sign of 0", why="Two cases where there are three."),
    ),
)  # fmt: skip


# 5.3 ------------------------------------------------------------------------------------------------------------------


def route(scores, bias, groups, M, K):
    """(weights, indices), [T, K] each, of V3's gate: scores [T, E], K experts from M of the groups."""
    T, E = scores.shape
    s = scores + bias
    best = s.view(T, groups, E // groups).topk(2, -1).values.sum(-1)
    kept = torch.zeros_like(best).scatter(1, best.topk(M, -1).indices, 1.0)
    s = s.masked_fill(kept.repeat_interleave(E // groups, 1) == 0, float("-inf"))
    indices = s.topk(K, -1).indices
    weights = scores.gather(1, indices)
    return weights / weights.sum(-1, keepdim=True), indices


def check_route(fn):
    groups, each, M, K, T = 4, random.randrange(3, 6), 2, 3, 64
    scores = torch.rand(T, groups * each, dtype=torch.float64)
    bias = torch.randn(groups * each, dtype=torch.float64) * 0.4 - 1.1  # so low that most s + b are below 0
    weights, indices = fn(scores, bias, groups, M, K)
    got = torch.zeros_like(scores).scatter(1, indices, weights)
    allowed = slow_route(scores, bias, groups, M, each * M) != 0  # everybody in the best groups
    for i, (row, want) in enumerate(zip(got, slow_route(scores, bias, groups, M, K), strict=True)):
        expect_close(row, want, what=f"token {i}'s weights by expert", causes=[
            (lambda _: same(got, scores, bias, groups, M, K, weigh=True), "The weights contain the bias. It is for "
             "choosing only: what an expert's answer is worth is its own score."),
            (lambda _: same(got, scores, bias, groups, M, K, group_bias=False), "The groups are chosen without the "
             "bias: it must count in their scores too, or a group of idle experts stays out of reach."),
            (lambda _: same(got, scores, bias, groups, M, K, best=1), "A group's score is its largest one here. That "
             "is V2's rule; V3 adds the two largest."),
            (lambda _: same(got, scores, bias, groups, groups, K), "No group is forbidden: only the M best may stay."),
            (lambda _: same(got, scores, bias, groups, M, K, normalise=False), "The weights of a token must add up "
             "to 1."),
            (lambda _: same(got, scores, torch.zeros_like(bias), groups, M, K), "The bias has no effect at all."),
            (lambda _: bool(((got != 0) & ~allowed).any()), "An expert of a forbidden group was chosen. Are they "
             "set to 0? Scores with bias can be negative, and then 0 wins: take -inf."),
        ])  # fmt: skip


def slow_route(
    scores: Tensor, bias: Tensor, groups: int, M: int, K: int, *,
    weigh: bool = False, group_bias: bool = True, best: int = 2, floor: float = float("-inf"), normalise: bool = True,
) -> Tensor:  # fmt: skip
    """Weights [T E], token by token; the switches are the known mistakes."""
    out = torch.zeros_like(scores)
    each = scores.shape[1] // groups
    for row, s in zip(out, scores, strict=True):
        b = s + bias
        ranked = sorted(range(groups), key=lambda g: -((b if group_bias else s)[g * each :][:each].topk(best)[0].sum()))
        allowed = {e for g in ranked[:M] for e in range(g * each, (g + 1) * each)}
        value = [b[e].item() if e in allowed else floor for e in range(len(s))]
        chosen = sorted(range(len(s)), key=lambda e: -value[e])[:K]
        g = (b if weigh else s)[chosen]
        row[chosen] = g / g.sum() if normalise else g
    return out


def same(got: Tensor, *args, **switches) -> bool:
    return torch.allclose(got, slow_route(*args, **switches))


ROUTE = define(
    "5.3", "Choose with the bias, weigh without it", minutes=12, difficulty=3,
    statement="""
        Write V3's whole gate after the sigmoid: `route(scores, bias, groups, M, K)`. `scores` is `[T, E]`, the E
        experts sit in `groups` equal groups of neighbours. A group's score is the sum of its two largest $s + b$; the
        M best groups stay; of their experts the K largest $s + b$ are chosen. Return the pair (weights, indices), both
        `[T, K]`: each token's weights add up to 1. The order of a token's experts is free.
    """,
    hints=(
        "Four steps: add, score the groups, forbid, choose. In which of them does the bias count? In which not?",
        "`view(T, groups, E // groups)` gives the groups an axis; `topk(2)` on the last one, summed, is their score.",
        "Mask with -inf, not with 0; take `topk(K)` of the masked $s + b$; `gather` the weights from `scores`.",
    ),
    check=check_route,
    solution=route,
    why="The bias decides who works, never what the work is worth. So it can be moved by a rule, without a gradient: "
    "the layer's output depends on it only through the choice.",
    wrong_answers=(
        slip("scores.gather(1, indices)", "s.gather(1, indices)", draws="contain the bias",
             why="One tensor for both purposes."),
        slip("best = s.view", "best = scores.view", draws="chosen without the bias",
             why="The bias is added after the groups were chosen."),
        slip("topk(2, -1).values.sum(-1)", "amax(-1)", draws="V2's rule", why="DeepSeek-V2's group score."),
        slip('float("-inf")', "0.0", draws="take -inf", why="As in an early published modelling file."),
        slip("best.topk(M, -1)", "best.topk(groups, -1)", draws="No group is forbidden", why="The limit forgotten."),
        slip("weights / weights.sum(-1, keepdim=True), indices", "weights, indices", draws="add up to 1",
             why="Sigmoid scores taken for probabilities."),
    ),
)  # fmt: skip


# 5.4 ------------------------------------------------------------------------------------------------------------------


def sequence_loss(scores, indices):
    """Mean over sequences of sum_i f_i P_i; scores [B, S, E] after the sigmoid, indices [B, S, K]."""
    S, E = scores.shape[1:]
    K = indices.shape[-1]
    chosen = torch.zeros_like(scores).scatter(2, indices, 1.0)
    f = chosen.sum(1) * E / (K * S)
    P = (scores / scores.sum(-1, keepdim=True)).mean(1)
    return (f * P).sum(-1).mean()


def check_sequence_loss(fn):
    B, S, E, K = 4, random.randrange(7, 11), 6, 2
    scores = torch.rand(B, S, E, dtype=torch.float64) ** 3
    indices = (scores + torch.rand(B, 1, E, dtype=torch.float64)).topk(K, -1).indices  # each sequence leans its way
    want = torch.zeros((), dtype=torch.float64)
    known = {name: torch.zeros((), dtype=torch.float64) for name in ("counts", "share", "plain", "softmax")}
    for b in range(B):
        for i in range(E):
            hits = sum(i in row for row in indices[b].tolist())
            mean = (scores[b, :, i] / scores[b].sum(-1)).mean()
            want += hits * E / (K * S) * mean / B
            known["counts"] += hits * mean / B
            known["share"] += hits / S * mean / B
            known["plain"] += hits * E / (K * S) * scores[b, :, i].mean() / B
            known["softmax"] += hits * E / (K * S) * scores[b].softmax(-1)[:, i].mean() / B
    whole = batch_loss(scores, indices)
    expect_close(fn(scores, indices), want, what="the loss", dtype=False, causes=[
        (known["counts"], "f counts tokens. Without E / (K S) the loss grows with the length; balanced must give 1."),
        (known["share"], "f is the share of tokens that chose the expert. E / K is missing: balanced must give 1."),
        (known["plain"], "P is the mean of the scores as they are. A sigmoid's scores do not add up to 1: divide each "
         "token's by their sum, or the loss can be made small by lowering all of them."),
        (known["softmax"], "P comes from a softmax of the scores. Divide them by their sum."),
        (whole, "f and P are taken over the whole batch. Then one sequence may lean on few experts as long as others "
         "lean elsewhere: take them for each sequence, and average the results."),
        (want * B, "Summed over sequences: the average is meant, or alpha would depend on the batch."),
        (want / E, "Averaged over experts: the sum is meant."),
    ])  # fmt: skip


def batch_loss(scores: Tensor, indices: Tensor) -> Tensor:
    (B, S, E), K = scores.shape, indices.shape[-1]
    hits = torch.bincount(indices.flatten(), minlength=E)
    P = (scores / scores.sum(-1, keepdim=True)).mean((0, 1))
    return (hits.to(P.dtype) * E / (K * B * S) * P).sum()


SEQUENCE_LOSS = define(
    "5.4", "One sequence at a time", minutes=10, difficulty=2,
    statement="""
        `scores` `[B, S, E]` are the sigmoid scores of B sequences of S tokens, `indices` `[B, S, K]` the experts that
        were chosen. Write `sequence_loss(scores, indices)`: eq. 17 to 20 without alpha, for each sequence, then the
        mean over the sequences.
    """,
    hints=(
        "Begin with one sequence: how often was each expert chosen, and how often would be fair?",
        "$f$ is the hits divided by their fair number $K S / E$; $P$ is the mean of the scores, each token's divided "
        "by their sum.",
        "`chosen = torch.zeros_like(scores).scatter(2, indices, 1.0)`; sum over axis 1 gives the hits, `[B, E]`.",
    ),
    check=check_sequence_loss,
    solution=sequence_loss,
    why="At balance every f is 1 and the P add up to 1, so the loss is 1 whatever E, K and S are, and alpha means the "
    "same for every model. Hits have no gradient; it comes through P and pushes down the scores of busy experts.",
    wrong_answers=(
        slip("chosen.sum(1) * E / (K * S)", "chosen.sum(1)", draws="f counts tokens", why="The scale left out."),
        slip("chosen.sum(1) * E / (K * S)", "chosen.mean(1)", draws="E / K is missing", why="A share is not yet f."),
        slip("(scores / scores.sum(-1, keepdim=True)).mean(1)", "scores.mean(1)", draws="do not add up to 1",
             why="With a softmax gate, as in V2, nothing has to be divided."),
        slip("(scores / scores.sum(-1, keepdim=True)).mean(1)", "scores.softmax(-1).mean(1)", draws="from a softmax",
             why="A second squashing of scores that are one already."),
        wrong("""
            def sequence_loss(scores, indices):
                scores, indices = scores.flatten(0, 1), indices.flatten(0, 1)
                T, E = scores.shape
                chosen = torch.zeros_like(scores).scatter(1, indices, 1.0)
                P = (scores / scores.sum(-1, keepdim=True)).mean(0)
                return (chosen.sum(0) * E / (indices.shape[1] * T) * P).sum()
        """, draws="over the whole batch", why="The classical loss: the batch flattened first."),
        slip(".sum(-1).mean()", ".sum()", draws="Summed over sequences", why="One sum too many."),
    ),
)  # fmt: skip


# 5.5 ------------------------------------------------------------------------------------------------------------------


def copies(indices, home, per_node):
    """Mean number of copies of a token sent to other nodes; expert e is on node e // per_node."""
    sent = 0
    for experts, own in zip(indices.tolist(), home.tolist(), strict=True):
        nodes = {e // per_node for e in experts}
        sent += len(nodes - {own})
    return sent / len(home)


def check_copies(fn):
    nodes, per_node, K, T = 4, random.randrange(5, 8), 6, 40
    known: dict[str, float] = {}
    while len(set(known.values())) < 6:  # drawn again until each mistake gives a number of its own
        indices, home = torch.rand(T, nodes * per_node).topk(K, -1).indices, torch.randint(nodes, (T,))
        known = counts_of_copies(indices, home, nodes, per_node)
    want = known.pop("right")
    expect_close(fn(indices, home, per_node), want, what="copies a token", dtype=False, rtol=1e-6, causes=[
        *((number, cause) for cause, number in known.items()),
        (want * T, "That is the number for all tokens: divide by how many they are."),
    ])  # fmt: skip
    few = fn(torch.arange(K).repeat(5, 1), torch.full((5,), nodes - 1), 3)  # all on nodes 0 and 1
    dealt = "Experts are dealt out like cards here: those of one block of neighbours live together."
    expect_close(few, 2.0, what="copies to two nodes", dtype=False, cause=dealt)


def counts_of_copies(indices: Tensor, home: Tensor, nodes: int, per_node: int) -> dict[str, float]:
    """The right number, and what mistakes would give, by their message."""
    hit = torch.zeros(len(home), nodes).scatter(1, indices // per_node, 1.0)
    dealt = torch.zeros(len(home), nodes).scatter(1, indices % nodes, 1.0)
    away = (indices // per_node != home[:, None]).sum(1).float()
    at_home, dealt_home = (table.gather(1, home[:, None])[:, 0] for table in (hit, dealt))
    return {
        "right": (hit.sum(1) - at_home).mean().item(),
        "One copy for each expert. Experts on the same node share one: it is handed on inside the node.":
            away.mean().item(),
        "The token's own node is counted: what stays at home does not travel.": hit.sum(1).mean().item(),
        "One copy for each expert, wherever it lives.": float(indices.shape[1]),
        "Experts are dealt out like cards here. They live in blocks of neighbours: expert e on node e // per_node.":
            (dealt.sum(1) - dealt_home).mean().item(),
        "A node less for every token. But not every token has an expert at home.": hit.sum(1).mean().item() - 1,
    }  # fmt: skip


COPIES = define(
    "5.5", "What travels", minutes=8, difficulty=2,
    statement="""
        Expert e lives on node `e // per_node`. `indices` `[T, K]` are the experts of T tokens, `home` `[T]` the node
        where each token is. A node gets one copy of a token however many of its experts are wanted. Write
        `copies(indices, home, per_node)`: how many copies a token sends to *other* nodes, on average.
    """,
    hints=(
        "Take one token. Which nodes do its K experts live on? How many different ones are not its own?",
        "A set of nodes counts each once: `{e // per_node for e in experts}`.",
        "Take the own node out of the set, add up the lengths, divide by the number of tokens.",
    ),
    check=check_copies,
    solution=copies,
    why="The slow network carries a token once for each node, the fast links inside a node then bring it to the "
    "experts. That is why limiting nodes, not experts, limits the traffic.",
    wrong_answers=(
        wrong("""
            def copies(indices, home, per_node):
                return (indices // per_node != home[:, None]).sum(1).double().mean().item()
        """, draws="One copy for each expert", why="The all-to-all of a flat layout."),
        slip("len(nodes - {own})", "len(nodes)", draws="own node is counted", why="The paper's own upper bound, M."),
        slip("len(nodes - {own})", "len(nodes) - 1", draws="not every token has an expert at home",
             why="Takes the own node off without looking."),
        slip("{e // per_node for", "{e % (1 + max(home.tolist())) for", draws="like cards", why="Round robin."),
        slip("sent / len(home)", "sent", draws="divide by how many", why="Forgets to divide."),
    ),
)  # fmt: skip
