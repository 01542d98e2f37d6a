"""Exercises of chapter 4, the mixture of experts: cutting an FFN, the gate's weights, the layer, dispatch, the count.

Source: DeepSeek-V3 (arXiv 2412.19437) section 2.1.2, eq. 12-15, and section 4.2; DeepSeekMoE (2401.06066) section 3.
The wrong answers are mistakes seen in public implementations and explanations.
Notebook: 04_moe.
"""

from __future__ import annotations

import functools
import random
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from minids.config import tiny, v2, v3
from minids.costs import attention_params, expert_params, gate_params, params
from minids.exercises import define, ensure, expect_close, expect_equal, slip, wrong

randn = functools.partial(torch.randn, dtype=torch.float64)


# 4.1 ------------------------------------------------------------------------------------------------------------------


def cut(w13, w2, parts):
    """(w13 [E 2F/E D], w2 [E D F/E]) of E = parts experts; w13 [2F D] and w2 [D F] are the FFN's."""
    D, F = w2.shape
    w1, w3 = w13.view(2, parts, F // parts, D)
    return torch.cat([w1, w3], dim=1), w2.view(D, parts, F // parts).transpose(0, 1)


def swiglu(x: Tensor, w13: Tensor, w2: Tensor) -> Tensor:
    gate, up = (x @ w13.T).chunk(2, -1)
    return (F.silu(gate) * up) @ w2.T


def check_cut(fn):
    D, parts = random.choice([5, 7]), random.choice([3, 4])
    width = random.choice([2, 6])
    inner = parts * width
    w13, w2, x = randn(2 * inner, D), randn(D, inner), randn(11, D)
    got13, got2 = fn(w13, w2, parts)
    rows = "The first matrix of each expert has 2F/E rows, half of them from w1 and half from w3."
    columns = "A neuron is a column of w2 [D F]: cut its columns. All D outputs stay in every expert."
    ensure(got13.shape == (parts, 2 * width, D), f"w13 of shape {[parts, 2 * width, D]}", list(got13.shape), rows)
    ensure(got2.shape == (parts, D, width), f"w2 of shape {[parts, D, width]}", list(got2.shape), columns)
    got, want = sum(swiglu(x, a, b) for a, b in zip(got13, got2, strict=True)), swiglu(x, w13, w2)
    plain13, plain2 = w13.view(parts, 2 * width, D), w2.view(parts, D, width)
    right13, right2 = cut(w13, w2, parts)
    interleaved = w13.view(2, width, parts, D).permute(2, 0, 1, 3).reshape(parts, 2 * width, D)

    def total(a, b):
        return sum(swiglu(x, p, q) for p, q in zip(a, b, strict=True))

    expect_close(got, want, what="the experts' sum", causes=[
        (total(plain13, right2), "w13 is cut straight through: its first half is all of w1, so an expert gets rows of "
         "w1 alone (or of w3 alone). Cut each half."),
        (total(right13, plain2), "w2 is reshaped, not cut: view(E, D, F/E) deals its numbers out row by row. Split the "
         "columns, then bring the expert to the front."),
        (total(interleaved, right2), "The rows of w1 and w3 are dealt out in turn, the columns of w2 in blocks: expert "
         "e must keep the columns of its own neurons."),
        (total(right13.roll(width, 1), right2), "w1 and w3 have changed places: w1's rows come first."),
    ])  # fmt: skip


CUT = define(
    "4.1", "Cut an FFN into experts", minutes=10, difficulty=2,
    statement="""
        Write `cut(w13, w2, parts)`. An FFN has `w13` `[2F, D]` (the F rows of $W_1$, then those of $W_3$) and `w2`
        `[D, F]`. Return the stacked matrices of `parts` experts, `[E, 2F/E, D]` and `[E, D, F/E]`, whose **sum** is the
        same function.
    """,
    hints=(
        "What belongs to one hidden neuron: which row of $W_1$, of $W_3$, and what of $W_2$?",
        "Expert 0 takes the first F/E rows of $W_1$, the first F/E rows of $W_3$, the first F/E columns of $W_2$.",
        "`w13.view(2, parts, F // parts, D)` parts both halves; `w2.view(D, parts, F // parts)` parts the columns.",
    ),
    check=check_cut,
    solution=cut,
    why="A neuron is a row of $W_1$, the same row of $W_3$ and a column of $W_2$; the output is a sum over neurons, "
    "and a sum may be taken in parts. Whoever converts a dense checkpoint into experts does this.",
    wrong_answers=(
        slip("    w1, w3 = w13.view(2, parts, F // parts, D)\n    return torch.cat([w1, w3], dim=1), ",
             "    return w13.view(parts, 2 * F // parts, D), ", draws="straight through",
             why="chunk(parts) of the stacked matrix."),
        slip("w2.view(D, parts, F // parts).transpose(0, 1)", "w2.reshape(parts, D, F // parts)",
             draws="reshaped, not cut", why="The shape is right, the numbers are not."),
        slip("w2.view(D, parts, F // parts).transpose(0, 1)", "w2.T.reshape(parts, F // parts, D)",
             draws="cut its columns", why="Rows for columns: each expert transposed."),
        slip("w1, w3 = w13.view(2, parts, F // parts, D)",
             "w1, w3 = w13.view(2, F // parts, parts, D).transpose(1, 2)", draws="in turn", why="Rows 0, E, 2E, ..."),
        slip("torch.cat([w1, w3], dim=1)", "torch.cat([w3, w1], dim=1)", draws="changed places", why="Which is gated."),
    ),
)  # fmt: skip


# 4.2 ------------------------------------------------------------------------------------------------------------------


def gate_row(logits, k, scale):
    """The gate's weights [T E]: 0 where an expert does not answer; logits [T E]."""
    s = logits.sigmoid()
    kept, chosen = s.topk(k, dim=-1)
    g = scale * kept / kept.sum(-1, keepdim=True)
    return torch.zeros_like(s).scatter(-1, chosen, g)


def check_gate_row(fn):
    T, E, k = 5, random.randrange(9, 14), 3
    scale = random.choice([2.5, 1.7])
    logits = 2 * randn(T, E)
    where = logits >= logits.sort(dim=-1, descending=True).values[:, k - 1 : k]
    s, soft, outside = logits.sigmoid(), logits.softmax(-1) * where, (logits * where).sigmoid()
    own = s * where
    right = scale * own / own.sum(-1, keepdim=True)
    expect_close(fn(logits, k, scale), right, what="the weights", causes=[
        (right / scale, "The weights sum to 1: the scale is missing, or was applied before normalising, where it "
         "cancels."),
        (scale * own / s.sum(-1, keepdim=True), "Divided by the sum over all experts. Normalise over the chosen ones."),
        (scale * soft / soft.sum(-1, keepdim=True), "Softmax scores, as in V2 and Mixtral. V3 takes the sigmoid "
         "of each logit."),
        (scale * own, "The chosen scores are scaled, but not divided by their sum."),
        (own, "These are the bare scores: divide by their sum, then multiply by the scale."),
        (scale * outside / outside.sum(-1, keepdim=True), "Masked before the sigmoid: a logit of 0 is a score "
         "of one half, so every expert answers. Mask the scores."),
        (lambda got: ((got > 0).sum(0) == k).all(), "The k largest of each column: there experts choose their tokens. "
         "A token chooses its experts, along the last axis."),
    ])  # fmt: skip


GATE_ROW = define(
    "4.2", "The gate's weights", minutes=8, difficulty=2,
    statement="""
        Write `gate_row(logits, k, scale)`: V3's weights $g$, `[T, E]`, from the logits $W_g x$, `[T, E]`. The k experts
        that a token chose have their weight, all others exactly 0.
    """,
    hints=(
        "Four steps: score, choose, normalise, scale. Which of them look at one token's chosen experts only?",
        "The score is a sigmoid. The sum in the denominator runs over the k chosen scores.",
        "`s.topk(k, dim=-1)` gives scores and places; `torch.zeros_like(s).scatter(-1, places, weights)` puts them "
        "back.",
    ),
    check=check_gate_row,
    solution=gate_row,
    why="Eq. 13 to 15, without the bias of chapter 5, which would change who is chosen and nothing else. Each row sums "
    "to the scale.",
    wrong_answers=(
        slip("scale * kept / kept.sum(-1, keepdim=True)", "scale * kept / (scale * kept).sum(-1, keepdim=True)",
             draws="it cancels", why="Scales first, then normalises."),
        slip("kept.sum(-1, keepdim=True)", "s.sum(-1, keepdim=True)", draws="over all experts",
             why="Normalises before choosing."),
        slip("logits.sigmoid()", "logits.softmax(-1)", draws="as in V2", why="Every older gate is a softmax."),
        slip("scale * kept / kept.sum(-1, keepdim=True)", "scale * kept", draws="not divided by their sum",
             why="V2's gate does not normalise."),
        wrong("""
            def gate_row(logits, k, scale):
                mask = torch.zeros_like(logits).scatter(-1, logits.topk(k, dim=-1).indices, 1.0)
                s = (logits * mask).sigmoid()
                return scale * s / s.sum(-1, keepdim=True)
        """, draws="score of one half", why="Masks the logits with 0 in place of the scores."),
        wrong("""
            def gate_row(logits, k, scale):
                s = logits.sigmoid()
                chosen = s.topk(k, dim=0).indices
                g = torch.zeros_like(s).scatter(0, chosen, s.gather(0, chosen))
                return scale * g / g.sum(-1, keepdim=True).clamp(min=1e-9)
        """, draws="experts choose their tokens", why="The wrong axis."),
    ),
)  # fmt: skip


# 4.3 ------------------------------------------------------------------------------------------------------------------


def moe_layer(x, logits, experts, shared, k, scale):
    """The layer's output for one token x [D], without the residual; experts: a list of functions."""
    s, chosen = logits.sigmoid().topk(k)
    g = scale * s / s.sum()
    routed = sum(weight * experts[e](x) for weight, e in zip(g, chosen.tolist(), strict=True))
    return shared(x) + routed


def check_moe_layer(fn):
    D, E, k, scale = 6, random.randrange(7, 11), 3, random.choice([2.5, 1.6])
    x, logits, matrices, common = randn(D), randn(E), randn(E, D, D), randn(D, D)
    calls: list[int] = []

    def expert(x: Tensor, number: int) -> Tensor:
        calls.append(number)
        return matrices[number] @ x

    experts = [lambda x, e=e: expert(x, e) for e in range(E)]
    got = fn(x, logits, experts, lambda x: common @ x, k, scale)
    best = sorted(range(E), key=lambda e: -float(logits[e]))[:k]
    s = torch.stack([torch.sigmoid(logits[e]) for e in best])
    outputs, own = torch.stack([matrices[e] @ x for e in best]), common @ x
    routed, plain = scale * (s / s.sum()) @ outputs, s @ outputs
    expect_close(got, own + routed, what="the layer's output", causes=[
        (routed, "The shared expert is missing: it answers for every token."),
        (scale * own + routed, "The shared expert is scaled too. The scale belongs to the gate's weights alone."),
        (scale * (own + plain) / (s.sum() + 1), "The shared expert is normalised with the others. It has no weight: "
         "its output is added as it is."),
        (own + scale * plain / (s.sum() + 1), "The shared expert counts in the normalisation. Divide by the sum of the "
         "chosen scores alone."),
        (x + own + routed, "The residual is added here: the block adds it, outside the layer."),
    ])  # fmt: skip
    ensure(set(calls) == set(best), f"{k} routed experts at work", f"{len(set(calls))} of {E}",
           "The result is right, but experts were run that were not chosen. Weights of 0 save nothing: choose first, "
           "then compute.")  # fmt: skip


MOE_LAYER = define(
    "4.3", "The whole layer, for one token", minutes=8, difficulty=2,
    statement="""
        Write `moe_layer(x, logits, experts, shared, k, scale)` for one token `x` `[D]`: what the layer gives to the
        residual stream. `logits` `[E]` are the gate's, `experts` is a list of E functions, `shared` one more.
        Run only those that are needed.
    """,
    hints=(
        "Which of the E + 1 functions have no weight, and which are not to be called at all?",
        "The gate's weights concern the routed experts only. The shared output is added as it is.",
        "`logits.sigmoid().topk(k)` gives scores and numbers; sum `weight * experts[e](x)` over them, add `shared(x)`.",
    ),
    check=check_moe_layer,
    solution=moe_layer,
    why="Eq. 12 without its $u_t$, which the block adds. A weight of 0 gives the same numbers for all of the cost; the "
    "point is not to run what is not chosen.",
    wrong_answers=(
        wrong("""
            def moe_layer(x, logits, experts, shared, k, scale):
                s = logits.sigmoid()
                kept, chosen = s.topk(k)
                g = torch.zeros_like(s).scatter(0, chosen, scale * kept / kept.sum())
                return shared(x) + g @ torch.stack([expert(x) for expert in experts])
        """, draws="were not chosen", why="Computes everything and throws most of it away."),
        slip("shared(x) + routed", "scale * shared(x) + routed", draws="scaled too", why="Scales the whole sum."),
        slip("return shared(x) + routed", "return (shared(x) * scale + routed * s.sum()) / (s.sum() + 1)",
             draws="normalised with the others", why="Takes the shared expert for one of the k + 1, with score 1."),
        slip("s.sum()", "(s.sum() + 1)", draws="counts in the norm", why="Leaves room for the shared one."),
        slip("shared(x) + routed", "x + shared(x) + routed", draws="residual", why="Eq. 12 as it is printed."),
    ),
)  # fmt: skip


# 4.4 ------------------------------------------------------------------------------------------------------------------


def dispatch(x, weights, indices, experts):
    """Each token's weighted sum of its experts, [T D]; an expert runs at most once."""
    order = indices.flatten().argsort()
    token = order // indices.shape[1]
    counts = indices.flatten().bincount(minlength=len(experts)).tolist()
    parts = x[token].split(counts)
    ys = torch.cat([expert(rows) for expert, rows in zip(experts, parts, strict=True)])
    ys = ys * weights.flatten()[order].unsqueeze(-1)
    return torch.zeros_like(x).index_add(0, token, ys)


def check_dispatch(fn):
    T, E, K, D = random.randrange(9, 13), 5, 3, 4
    x, weights, matrices = randn(T, D), torch.rand(T, K, dtype=torch.float64) + 0.2, randn(E, D, D)
    indices = torch.stack([torch.randperm(E - 1)[:K] for _ in range(T)])  # the last expert gets no token
    calls = [0] * E

    def expert(rows: Tensor, number: int) -> Tensor:
        ensure(rows.ndim == 2 and rows.shape[-1] == D, f"rows [n, {D}]", list(rows.shape), "One token a row.")
        calls[number] += 1
        return torch.tanh(rows @ matrices[number].T)

    terms = torch.stack([
        torch.stack([weights[t, j] * torch.tanh(matrices[indices[t, j]] @ x[t]) for j in range(K)]) for t in range(T)
    ])  # [T K D]  # fmt: skip
    bare = terms / weights.unsqueeze(-1)
    order = indices.flatten().argsort()
    shuffled = bare.flatten(0, 1)[order] * weights.flatten().unsqueeze(-1)
    unsorted = torch.zeros_like(x).index_add(0, order // K, shuffled)

    experts = [lambda rows, e=e: expert(rows, e) for e in range(E)]

    def one_term(got: Tensor) -> bool:
        return bool(torch.isclose(got.unsqueeze(1), terms).all(-1).any(1).all())

    expect_close(fn(x, weights, indices, experts), terms.sum(1), what="the sum", causes=[
        (one_term, "Each token has the output of one expert only: the others were overwritten. y[token] = ... and "
         "y[token] += ... write a repeated row once; index_add adds every time."),
        (terms.flatten(0, 1)[order].view(T, K, D).sum(1), "The rows are still sorted by expert when they are added: "
         "bring them back to their tokens first."),
        (bare.sum(1), "The weights are missing."),
        (lambda got: torch.allclose(got, unsorted), "The weights are in the tokens' order, the rows in the experts': "
         "sort the weights along."),
        (lambda got: got.shape == (T, D), "Whose is a sorted pair? Number p of the flattened [T, K] is token p // K."),
    ])  # fmt: skip
    ensure(max(calls) <= 1, "each expert run at most once", f"one was run {max(calls)} times",
           "The result is right, but slow: hand an expert all of its tokens in one call.")  # fmt: skip


DISPATCH = define(
    "4.4", "To the experts and back", minutes=12, difficulty=3,
    statement="""
        Write `dispatch(x, weights, indices, experts)` for T tokens `x` `[T, D]`: each token's weighted sum of its K
        experts, `[T, D]`. `weights` and `indices` are `[T, K]`; `experts` is a list of functions from rows to rows.
        Call each expert at most once, with all its tokens; some have none (calling it with no rows is fine).
        Do it in any way you like.
    """,
    hints=(
        "There are T K pairs. In which order would every expert find its rows side by side?",
        "`indices.flatten().argsort()` is that order. Pair p belongs to token `p // K`. Three things travel in that "
        "order: rows, weights, and the number of the token.",
        "Split the sorted rows by `bincount`, run, concatenate, multiply by the sorted weights, then `index_add` at "
        "the tokens.",
    ),
    check=check_dispatch,
    solution=dispatch,
    why="A token stands in K places, so its row is written K times: `index_add` adds, while `+=` at repeated places "
    "keeps one. The other way round, the inverse order and a sum over K, is what `minids.moe` does.",
    wrong_answers=(
        slip("return torch.zeros_like(x).index_add(0, token, ys)",
             "y = torch.zeros_like(x)\n    y[token] += ys\n    return y", draws="overwritten",
             why="+= with repeated indices looks as if it added."),
        slip("torch.zeros_like(x).index_add(0, token, ys)", "ys.view(*indices.shape, -1).sum(1)",
             draws="still sorted by expert", why="Forgets to undo the order."),
        slip("weights.flatten()[order]", "weights.flatten()", draws="sort the weights along",
             why="Sorts rows, not weights."),
        slip("order // indices.shape[1]", "order % len(x)", draws="p // K", why="A remainder."),
        wrong("""
            def dispatch(x, weights, indices, experts):
                y = torch.zeros_like(x)
                for t in range(len(x)):
                    for g, e in zip(weights[t], indices[t].tolist()):
                        y[t] = y[t] + g * experts[e](x[t : t + 1])[0]
                return y
        """, draws="right, but slow", why="Token by token: many small products."),
    ),
)  # fmt: skip


# 4.5 ------------------------------------------------------------------------------------------------------------------


def activated(cfg):
    """Parameters that one token uses: with the head, without the embedding table."""
    D = cfg.dim
    every = cfg.n_layers * (attention_params(cfg) + 2 * D)
    dense = cfg.n_dense_layers * 3 * D * cfg.inter_dim
    answering = cfg.n_activated_experts + cfg.n_shared_experts
    moe = cfg.n_moe_layers * (answering * expert_params(cfg) + gate_params(cfg))
    return every + dense + moe + D + cfg.vocab_size * D


def check_activated(fn):
    small = replace(tiny(), dim=8 * random.randrange(11, 16), n_layers=random.randrange(7, 12), n_shared_experts=2)
    for name, cfg in {"V3": v3(), "V2": v2(), "a small model": small}.items():
        p, expert = params(cfg), expert_params(cfg)
        want, dense = p.activated, cfg.n_dense_layers
        in_all = dense * ((cfg.n_activated_experts + cfg.n_shared_experts) * expert + gate_params(cfg))
        expect_equal(fn(cfg), want, what=f"activated parameters of {name}", causes=[
            (want + p.embedding, "The embedding table is counted. A token reads one row of it; the papers' 37 and 21 "
             "billion leave it out."),
            (want - p.shared_experts, "The shared experts are missing: they answer for every token."),
            (want - p.head, "The head is missing: all of it is multiplied for every token."),
            (want + p.idle_experts, "All routed experts are counted, also those that do not answer."),
            (want + in_all, "Experts are counted in the first layers too, which have a dense FFN in their place."),
            (want - p.dense_ffn + in_all, "Every layer is counted as an MoE layer: the first ones are dense."),
            (want - p.gates, "The gates are missing: to choose, a token meets the rows of all experts."),
            (want - p.dense_ffn, "The dense FFN of the first layers is missing."),
        ])  # fmt: skip


ACTIVATED = define(
    "4.5", "How many are at work?", minutes=10, difficulty=2,
    statement="""
        Write `activated(cfg)`: how many parameters one token uses in the model that `cfg` describes, counted as in the
        papers: with the head, without the embedding table. `attention_params(cfg)`, `expert_params(cfg)` and
        `gate_params(cfg)` give the parts of one layer; a layer has two norms of `cfg.dim`, the model one more.
    """,
    hints=(
        "Go through a token's way: layers of two kinds, and what comes after the last.",
        "`cfg.n_dense_layers` layers have an FFN of width `cfg.inter_dim`; in the `cfg.n_moe_layers` others answer "
        "`cfg.n_activated_experts` and `cfg.n_shared_experts` experts, and the whole gate.",
        "Attention and two norms in all layers, $3 D F$ in the dense ones, (K + shared) experts and a gate in the "
        "others, one norm, $W D$ for the head.",
    ),
    check=check_activated,
    solution=activated,
    why="36.63 billion for V3, 20.85 for V2. With the embedding table it would be 37.55 and 21.38: the convention is "
    "the one that also gives the 2.4 of V2-Lite.",
    wrong_answers=(
        slip("+ cfg.vocab_size * D", "+ 2 * cfg.vocab_size * D", draws="one row of it", why="Counts both tables."),
        slip("cfg.n_activated_experts + cfg.n_shared_experts", "cfg.n_activated_experts",
             draws="shared experts are missing", why="8 in place of 9."),
        slip("cfg.n_activated_experts + cfg", "cfg.n_routed_experts + cfg", draws="All routed", why="All there are."),
        slip("moe = cfg.n_moe_layers", "moe = cfg.n_layers", draws="in the first layers too", why="61 for 58."),
        slip(" + gate_params(cfg)", "", draws="gates are missing", why="Small, but all of it is used."),
        slip(" + D + cfg.vocab_size * D", " + D", draws="head is missing", why="Leaves out both tables."),
        slip("dense + moe", "moe", draws="dense FFN of the first", why="Only the MoE layers are in mind."),
    ),
)  # fmt: skip
