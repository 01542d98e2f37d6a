"""Exercises of chapter 11, experts on other processes: how much goes to whom, how results get home, bytes over
InfiniBand, how many experts cost nothing, bytes on one GPU.

Source: DeepSeek-V3 (arXiv 2412.19437) sections 3.2, 3.3; ZeRO (1910.02054).
The wrong answers are mistakes seen in public implementations and explanations.
Notebook: 11_expert_parallel.
"""

from __future__ import annotations

import random

import torch

from minids.exercises import define, expect_close, expect_equal, slip, wrong

# 11.1 -----------------------------------------------------------------------------------------------------------------


def splits(targets):
    """(sent, received): row r says how many rows process r sends to, and gets from, each process; [N N] both."""
    N = len(targets)
    sent = torch.stack([torch.bincount(t, minlength=N) for t in targets])
    return sent, sent.T


def check_splits(fn):
    for N in (3, 5):
        targets = [torch.randint(N - (r == 0), (random.randrange(4, 15),)) for r in range(N)]
        targets[1] = targets[1].fill_(2)  # one that sends everything to one place
        sent = torch.tensor([[sum(int(t) == i for t in row) for i in range(N)] for row in targets])
        start = sent.cumsum(1)
        expect_equal(fn(targets), (sent, sent.T), what=f"(sent, received) of {N} processes", causes=[
            ((sent, sent), "What a process receives is not what it sends: process r gets from i what i sends to r."),
            ((sent.T, sent), "Sent and received are swapped: the first row must sum to the number of process 0's own "
             "tokens."),
            ((start, start.T), "These are running totals: `all_to_all_single` wants the length of each piece."),
            ((sent.sum(1), sent.sum(0)), "These are totals a process: the exchange needs to know for each pair."),
            (((sent > 0).long(), (sent > 0).long().T), "That says who talks to whom, not with how many rows."),
        ])  # fmt: skip


SPLITS = define(
    "11.1", "How much goes to whom?", minutes=8, difficulty=1,
    statement="""
        `targets[r]` is a tensor that says, for each row of process r, to which of the N processes it goes. Write
        `splits(targets)`: two integer tensors `[N, N]`. Row r of the first says how many rows process r sends to each
        process, row r of the second how many it receives from each.
    """,
    hints=(
        "Process 2 gets from process 0 what process 0 sends to process 2.",
        "`torch.bincount` counts; a process to which nothing goes needs its 0 too (`minlength`).",
        "Stack the counts of all processes; what is received is the transpose.",
    ),
    check=check_splits,
    solution=splits,
    why="No process sees the whole table. Each knows its own row; a first small all-to-all of N numbers gives it its "
    "column. Only then can it allocate room for the rows.",
    wrong_answers=(
        slip("return sent, sent.T", "return sent, sent", draws="not what it sends", why="Takes traffic for symmetric."),
        slip("return sent, sent.T", "return sent.T, sent", draws="are swapped",
             why="`all_to_all_single` takes the output's splits first."),
        slip("sent, sent.T", "sent.cumsum(1), sent.cumsum(1).T", draws="running totals", why="Offsets, as for slices."),
        slip("sent, sent.T", "sent.sum(1), sent.sum(0)", draws="for each pair", why="Only the size of the buffers."),
        slip("return sent, sent.T", "return (sent > 0).long(), (sent > 0).long().T", draws="who talks to whom",
             why="A message a pair, of any length."),
    ),
)  # fmt: skip


# 11.2 -----------------------------------------------------------------------------------------------------------------


def bring_home(returned, order, token, T):
    """Sum the outputs of each token's experts, [T D]; returned[i] belongs to pair order[i], pair p to token[p]."""
    y = returned.new_zeros(T, returned.shape[1])
    return y.index_add(0, token[order], returned)


def check_bring_home(fn):
    T, K, D, N = random.randrange(5, 9), 3, 4, 5
    token = torch.arange(T).repeat_interleave(K)
    target = torch.randint(N, (T * K,))
    target[:4] = torch.tensor([4, 3, 1, 0])  # never in order already
    order = target.argsort(stable=True)
    returned = torch.randn(T * K, D, dtype=torch.float64)
    want, last, by_order = (torch.zeros(T, D, dtype=torch.float64) for _ in range(3))
    for i, p in enumerate(order.tolist()):
        want[p // K] += returned[i]
        last[p // K] = returned[i]
        by_order[i // K] += returned[order[i]]
    unsorted = returned.view(T, K, D).sum(1)
    expect_close(fn(returned, order, token, T), want, what="the sum of each token's outputs", causes=[
        (unsorted, "The rows are taken as if they came back in the order of the tokens: they come in the order in "
         "which they were sent, by process."),
        (by_order, "`order` is applied once more instead of being undone: row i of what returns belongs to pair "
         "`order[i]`."),
        (last, "A later row overwrites an earlier one of the same token: all K outputs must be added."),
        (want / K, "That is the mean: the gate's weights are in the rows already, so they are added."),
    ])  # fmt: skip


BRING_HOME = define(
    "11.2", "Back to the right token", minutes=10, difficulty=2,
    statement="""
        Before they were sent, the pairs (token, expert) were sorted by process: row i that left was pair `order[i]`,
        and pair p belongs to token `token[p]`. The experts' outputs, weighted by the gate, come back in the order in
        which the rows left: `returned` `[n, D]`. Write `bring_home(returned, order, token, T)`: the sum for each of the
        T tokens, `[T, D]`.
    """,
    hints=(
        "To which token does row i of `returned` belong?",
        "To `token[order[i]]`. Several rows belong to the same token.",
        "`zeros.index_add(0, token[order], returned)`.",
    ),
    check=check_bring_home,
    solution=bring_home,
    why="Indexing by `order` sorts, writing to the places `order` undoes it. `index_add` does that and the sum in one "
    "step, and its gradient is the dispatch of dy.",
    wrong_answers=(
        slip("token[order]", "token", draws="in the order in which they were sent", why="Forgets the sort."),
        wrong("""
            def bring_home(returned, order, token, T):
                y = returned.new_zeros(T, returned.shape[1])
                return y.index_add(0, token, returned[order])
        """, draws="instead of being undone", why="Takes a permutation for its own inverse."),
        wrong("""
            def bring_home(returned, order, token, T):
                y = returned.new_zeros(T, returned.shape[1])
                for i, p in enumerate(order.tolist()):
                    y[token[p]] = returned[i]
                return y
        """, draws="overwrites", why="One expert a token in mind."),
        slip("token[order], returned)", "token[order], returned) / (len(token) / T)", draws="the mean",
             why="Averages the experts."),
    ),
)  # fmt: skip


# 11.3 -----------------------------------------------------------------------------------------------------------------


def traffic(indices, experts_per_node, dim):
    """(bytes of dispatch, bytes of combine) over InfiniBand for all tokens; indices [T K]."""
    copies = sum(len(set(row)) for row in (indices // experts_per_node).tolist())
    there = dim + 4 * (dim // 128)
    back = 2 * dim
    return copies * there, copies * back


def check_traffic(fn):
    for dim in (128 * random.randrange(3, 9), 7168):
        T, K, per_node = random.randrange(6, 12), 6, 8
        indices = torch.stack([torch.randperm(40)[:K] for _ in range(T)])
        indices[0] = torch.arange(K) + 8  # all on one node
        nodes = [{e // per_node for e in row} for row in indices.tolist()]
        copies, tiles = sum(map(len, nodes)), dim // 128
        reached = len(set().union(*nodes))
        there, back = dim + 4 * tiles, 2 * dim
        expect_equal(fn(indices, per_node, dim), (copies * there, copies * back), what="bytes (there, back)", causes=[
            ((T * K * there, T * K * back), "A copy for each expert: a token crosses InfiniBand once for each NODE, "
             "and is forwarded inside."),
            ((copies * dim, copies * back), "The scales are missing: four bytes for each 128 numbers."),
            ((copies * (dim + tiles), copies * back), "A scale has four bytes: it is an FP32 number."),
            ((copies * there, copies * there), "The way back is BF16: two bytes a number, no scales."),
            ((copies * back, copies * back), "The way there is FP8: one byte a number and the scales."),
            ((T * there, T * back), "One copy a token: it goes to each of the nodes that hold one of its experts."),
            ((reached * there, reached * back), "These are the nodes that the batch reaches: each token sends its own "
             "copies."),
        ])  # fmt: skip


TRAFFIC = define(
    "11.3", "Count the bytes", minutes=10, difficulty=2,
    statement="""
        `indices` `[T, K]` are the experts of T tokens of `dim` numbers (a multiple of 128); node n holds the experts
        from n `experts_per_node` on. Write `traffic(indices, experts_per_node, dim)`: the bytes that cross InfiniBand
        for all tokens, as a pair: dispatch in FP8 (one byte a number, and an FP32 scale for each 128) and combine in
        BF16. As in the paper's model, the token's own node counts like any other.
    """,
    hints=(
        "How often does a token with experts 8, 9 and 10 cross, when a node holds 8?",
        "Copies are the *different* nodes of a token: `len(set(...))` of `row // experts_per_node`.",
        "There: `dim + 4 * dim / 128` bytes a copy. Back: `2 * dim`.",
    ),
    check=check_traffic,
    solution=traffic,
    why="The node, not the expert, is what InfiniBand sees. Back it is one row a node too, because the node adds up "
    "its experts' outputs before it sends. And the way back costs twice the way there.",
    wrong_answers=(
        slip("sum(len(set(row)) for row in (indices // experts_per_node).tolist())", "indices.numel()",
             draws="A copy for each expert", why="Traffic per expert instead of per node."),
        slip("dim + 4 * (dim // 128)", "dim", draws="scales are missing", why="The paper's round number."),
        slip("4 * (dim", "(dim", draws="four bytes", why="A scale in one byte."),
        slip("back = 2 * dim", "back = there", draws="two bytes a number", why="FP8 in both directions."),
        slip("there = dim + 4 * (dim // 128)", "there = 2 * dim", draws="one byte a number",
             why="BF16 in both directions."),
        slip("sum(len(set(row)) for row in (indices // experts_per_node).tolist())", "len(indices)",
             draws="One copy a token", why="A broadcast in mind."),
        slip("sum(len(set(row)) for row in (indices // experts_per_node).tolist())",
             "len(set((indices // experts_per_node).flatten().tolist()))", draws="that the batch reaches",
             why="unique() over everything."),
    ),
)  # fmt: skip


# 11.4 -----------------------------------------------------------------------------------------------------------------


def free_experts(nodes, ib, nvlink):
    """The largest number of experts a token with which NVLink needs no longer than InfiniBand."""
    return nodes * nvlink // ib


def check_free_experts(fn):
    fresh = (random.randrange(2, 7), random.choice([30, 40, 70]), random.choice([170, 190, 230]))
    for nodes, ib, nvlink in ((4, 50, 160), fresh, (4, 100, 450)):
        want = max(k for k in range(1000) if k * ib <= nodes * nvlink)
        share = nvlink / ib
        expect_equal(fn(nodes, ib, nvlink), want, causes=[
            (want + 1, "One too many: with it NVLink is the slower link already. For the H800 the formula gives "
             "12.8 on 4 nodes, which it rounds to 13; a token with 13 experts would take a little longer."),
            (lambda g: float(g) != int(g), "A token has a whole number of experts: the last one that is still free."),
            (int(share), "That is the number on ONE node: a token may use several."),
            (nodes * int(share), "Rounded down on each node: experts need not be spread evenly, so round at the end."),
            (8, "That is what V3 uses, not what would be free."),
            (nodes * ib // nvlink, "The ratio is upside down: NVLink is the faster one."),
        ], what=f"free experts on {nodes} nodes, {ib} and {nvlink} GB/s")  # fmt: skip


FREE_EXPERTS = define(
    "11.4", "How many experts cost nothing?", minutes=6, difficulty=1,
    statement="""
        A token visits `nodes` nodes; a GPU has `ib` GB/s of InfiniBand and `nvlink` GB/s of NVLink (whole numbers).
        Write `free_experts(nodes, ib, nvlink)`: the largest whole number of experts a token for which the transfer
        takes no longer than InfiniBand needs anyway.
    """,
    hints=(
        "Write both times for a copy of b bytes. Which one grows with the experts?",
        "$K b / \\mathrm{NV} \\le M b / \\mathrm{IB}$.",
        "$K \\le M \\cdot \\mathrm{NV} / \\mathrm{IB}$, rounded down, once.",
    ),
    check=check_free_experts,
    solution=free_experts,
    why="12.8 experts are free on the H800: 12 in whole numbers, 13 if one rounds as the paper does. V3 uses 8: it has "
    "room, and does not use it.",
    wrong_answers=(
        slip("nodes * nvlink // ib", "-(-nodes * nvlink // ib)", draws="rounds to 13", why="The paper's 13."),
        slip("//", "/", draws="whole number", why="12.8 experts."),
        slip("nodes * nvlink", "nvlink", draws="on ONE node", why="3.2 experts a node, taken for all."),
        slip("nodes * nvlink // ib", "nodes * (nvlink // ib)", draws="round at the end", why="3 a node on 4 nodes."),
        slip("nodes * nvlink // ib", "8", draws="what V3 uses", why="Reads it off the config."),
        slip("nvlink // ib", "ib // nvlink", draws="upside down", why="Swaps the two links."),
    ),
)  # fmt: skip


# 11.5 -----------------------------------------------------------------------------------------------------------------


def bytes_on_gpu(experts, rest, ep, dp):
    """Bytes of one GPU: a stage has `experts` and `rest` parameters, experts are cut over ep of the dp ranks."""
    here = experts / ep + rest
    sharded = experts / ep / (dp / ep) + rest / dp
    return (2 + 4) * here + (4 + 4) * sharded


def check_bytes_on_gpu(fn):
    for ep, dp in ((64, 128), (4, 4 * random.randrange(3, 8))):
        experts, rest = 1000 * random.randrange(30, 60) * dp, 1000 * random.randrange(3, 9) * dp
        here, cut = experts / ep + rest, (experts + rest) / dp
        everywhere = experts / dp + rest
        expect_close(float(fn(experts, rest, ep, dp)), 6 * here + 8 * cut, what=f"bytes, ep={ep}, dp={dp},", causes=[
            (14 * here, "Nothing is sharded: ZeRO-1 cuts masters and moments over the copies."),
            (14 * cut, "Everything is cut, weights and gradients too: that is ZeRO-3. ZeRO-1 leaves both whole."),
            (2 * here + 12 * cut, "Gradients are cut too: that is ZeRO-2."),
            (4 * here + 10 * cut, "ZeRO-1 divides the optimizer's share, not the weights: a product needs them whole."),
            (6 * everywhere + 8 * cut, "Experts are cut over all dp ranks: they are cut over ep of them, and there are "
             "dp / ep copies."),
            (6 * here + 8 * (experts / ep / dp + rest / dp), "An expert has dp / ep copies, not dp: its state is cut "
             "over those only, or part of it would be nowhere."),
            (6 * here + 8 * (experts / ep + rest / dp), "Experts have copies too, dp / ep: their state is cut."),
            (6 * (experts + rest) + 8 * cut, "Every expert is here: ep cuts them."),
            (6 * (experts + rest) / ep + 8 * cut, "Only the experts are cut by ep: the rest is on every rank."),
            (6 * here + 12 * cut, "The moments are BF16: two of two bytes. In FP32 they would have eight."),
        ])  # fmt: skip


BYTES_ON_GPU = define(
    "11.5", "Bytes on one GPU", minutes=10, difficulty=3,
    statement="""
        A pipeline stage has `experts` parameters in routed experts and `rest` others, on `dp` ranks. Experts are cut
        over `ep` of these ranks (so there are dp / ep copies of each), the rest is on all. A weight has 2 bytes (BF16),
        a gradient 4, an FP32 master 4, two BF16 moments 4 together. ZeRO-1 cuts masters and moments evenly over the
        copies of a parameter. Write `bytes_on_gpu(experts, rest, ep, dp)`.
    """,
    hints=(
        "How many parameters does a rank compute with? How many of them does it update?",
        "It computes with `experts / ep + rest`. Each copy of a parameter updates its part: 1 of dp / ep, or 1 of dp.",
        "6 bytes for each of the former, 8 for each of the latter, which are `(experts + rest) / dp`.",
    ),
    check=check_bytes_on_gpu,
    solution=bytes_on_gpu,
    why="However experts are placed, the dp ranks together hold each master once: (experts + rest) / dp a rank. What "
    "ep changes is the weights and gradients.",
    wrong_answers=(
        slip("sharded = experts / ep / (dp / ep) + rest / dp", "sharded = here", draws="Nothing is sharded",
             why="Plain data parallelism."),
        slip("(2 + 4) * here + (4 + 4) * sharded", "(2 + 4 + 4 + 4) * sharded", draws="ZeRO-3", why="Cuts everything."),
        slip("(2 + 4) * here + (4 + 4) * sharded", "2 * here + (4 + 4 + 4) * sharded", draws="ZeRO-2",
             why="Cuts gradients, as many libraries do next."),
        slip("(2 + 4) * here + (4 + 4) * sharded", "4 * here + (2 + 4 + 4) * sharded", draws="not the weights",
             why="ZeRO dividing the weights."),
        slip("here = experts / ep + rest", "here = experts / dp + rest", draws="over all dp ranks",
             why="EP over all ranks."),
        slip("experts / ep / (dp / ep)", "experts / ep / dp", draws="part of it would be nowhere", why="dp for all."),
        slip("experts / ep / (dp / ep)", "experts / ep", draws="Experts have copies too", why="Takes ep for dp."),
        slip("here = experts / ep + rest", "here = experts + rest", draws="Every expert is here", why="Forgets ep."),
        slip("here = experts / ep + rest", "here = (experts + rest) / ep", draws="on every rank", why="ep for all."),
        slip("(4 + 4) * sharded", "(4 + 8) * sharded", draws="moments are BF16", why="AdamW as torch has it."),
    ),
)  # fmt: skip
