"""Exercises of chapter 17, serving: groups onto nodes, replicas for the hottest, bytes of a handover, goodput.

Source: DeepSeek-V3 (arXiv 2412.19437) section 3.4; DeepSeek's repository EPLB; for goodput DistServe (2401.09670).
The wrong answers are mistakes seen in public implementations and explanations.
Notebook: 17_serving.
"""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import pairwise

from minids.config import tiny, v3
from minids.costs import kv_bytes_per_token
from minids.exercises import define, expect_close, expect_equal, slip, wrong

# 17.1 -----------------------------------------------------------------------------------------------------------------


def nodes_of(load, groups, nodes):
    """The node of each expert. Groups stay whole: heaviest first, each onto the lightest node that has room."""
    size, room = len(load) // groups, groups // nodes
    total = [sum(load[g * size : (g + 1) * size]) for g in range(groups)]
    node_of_group, carried, held = [0] * groups, [0.0] * nodes, [0] * nodes
    for g in sorted(range(groups), key=lambda g: -total[g]):
        n = min((n for n in range(nodes) if held[n] < room), key=lambda n: carried[n])
        node_of_group[g] = n
        carried[n] += total[g]
        held[n] += 1
    return [node_of_group[e // size] for e in range(len(load))]


def placed(weights, nodes, room, order):
    """The node of each item, taken in `order`, each onto the lightest node that holds fewer than `room`."""
    where, content = [0] * len(weights), [[] for _ in range(nodes)]
    for i in order:
        free = [n for n in range(nodes) if len(content[n]) < room]
        where[i] = min(free, key=lambda n: (sum(weights[j] for j in content[n]), n))
        content[where[i]].append(i)
    return where


def placements(load, groups, nodes):
    """The right answer, and what mistakes would give, by their message."""
    size, E = len(load) // groups, len(load)
    whole = [load[g * size : (g + 1) * size] for g in range(groups)]
    total, top = [sum(w) for w in whole], [max(w) for w in whole]

    def heavy(weights):
        return sorted(range(len(weights)), key=lambda i: -weights[i])

    def spread(where):
        return [where[e // size] for e in range(E)]

    room = groups // nodes
    return {
        "right": spread(placed(total, nodes, room, heavy(total))),
        "The groups are taken in the order of index. A heavy group that comes last finds no room: heaviest first.":
            spread(placed(total, nodes, room, range(groups))),
        "Experts of one group lie on several nodes: the groups are split. A token may visit 4 groups only so that it "
        "visits at most 4 nodes, so a group stays whole.": placed(load, nodes, E // nodes, heavy(load)),
        "The lightest group is taken first, so the heaviest ones come last, when there is nothing left to even out.":
            spread(placed(total, nodes, room, heavy([-t for t in total]))),
        "A node holds more groups than another. Each has memory for the same number of experts.":
            spread(placed(total, nodes, groups, heavy(total))),
        "The groups are ordered by their heaviest expert. A node carries the sum.":
            spread(placed(top, nodes, room, heavy(top))),
    }  # fmt: skip


def check_nodes_of(fn):
    for groups, nodes, size in ((8, 2, 4), (9, 3, 3)):
        answers: dict[str, list[int]] = {}
        while len({tuple(a) for a in answers.values()}) < 6:  # drawn again until each mistake gives its own answer
            load = [round(1000 * random.random() ** 4) + e / 64 for e in range(groups * size)]
            answers = placements(load, groups, nodes)
        want = answers.pop("right")
        causes = [(wrong_answer, message) for message, wrong_answer in answers.items()]
        causes.append((want[::size], "That is the node of each group: say it for each expert."))
        what = f"the nodes of {groups * size} experts in {groups} groups, {nodes} nodes,"
        expect_equal(fn(load, groups, nodes), want, what=what, causes=causes)


NODES_OF = define(
    "17.1", "Groups onto nodes", minutes=12, difficulty=2,
    statement="""
        `load` is a list with the tokens of each expert; experts $0 .. E/G - 1$ form group 0, and so on. Write
        `nodes_of(load, groups, nodes)`: a list with the node of each **expert**. A group stays whole. Heaviest group
        first, each onto the node that carries least and still has room (each node takes `groups / nodes` groups);
        of equal nodes the lower number.
    """,
    hints=(
        "What are the items here, and what does one weigh?",
        "The items are groups, the weight of one is the sum of its experts. It is `pack` from above, on groups.",
        "Sort the groups by minus their sum; `min` over the nodes with room, by what they carry; then one entry for "
        "each expert: `node_of_group[e // size]`.",
    ),
    check=check_nodes_of,
    solution=nodes_of,
    why="The gate lets a token visit few groups. If a group lies on one node, the token visits as few nodes, and "
    "crosses the slow network as few times.",
    wrong_answers=(
        slip("sorted(range(groups), key=lambda g: -total[g])", "range(groups)", draws="order of index",
             why="Greedy, but not heaviest first."),
        wrong("""
            def nodes_of(load, groups, nodes):
                where, carried, held = [0] * len(load), [0.0] * nodes, [0] * nodes
                for e in sorted(range(len(load)), key=lambda e: -load[e]):
                    n = min((n for n in range(nodes) if held[n] < len(load) // nodes), key=lambda n: carried[n])
                    where[e] = n
                    carried[n] += load[e]
                    held[n] += 1
                return where
        """, draws="groups are split", why="Balances better and breaks the rule that limits traffic."),
        slip("-total[g]", "total[g]", draws="lightest group is taken first", why="Forgets the minus."),
        slip("if held[n] < room", "if held[n] < groups", draws="holds more groups", why="Forgets the memory."),
        slip("sum(load", "max(load", draws="heaviest expert", why="Looks at the hottest expert alone."),
        slip("[node_of_group[e // size] for e in range(len(load))]", "node_of_group", draws="each group",
             why="Stops at the groups."),
    ),
)  # fmt: skip


# 17.2 -----------------------------------------------------------------------------------------------------------------


def replicate(load, slots):
    """How many replicas each expert gets when there are `slots` in all; each has one at least."""
    count = [1] * len(load)
    for _ in range(slots - len(load)):
        most = max(range(len(load)), key=lambda e: load[e] / count[e])
        count[most] += 1
    return count


def counts_of(load, slots):
    """The right answer, from the levels load / k alone, and what mistakes would give, by their message."""
    E, extra = len(load), slots - len(load)
    ranked = sorted(range(E), key=lambda e: -load[e])
    levels = sorted(((load[e] / k, e) for e in range(E) for k in range(1, extra + 1)), reverse=True)[:extra]
    right = [1 + sum(e == chosen for _, chosen in levels) for e in range(E)]
    halved, left = [1] * E, list(load)
    for _ in range(extra):
        most = max(range(E), key=lambda e: left[e])
        halved[most], left[most] = halved[most] + 1, left[most] / 2
    return {
        "right": right,
        "The load is not divided by the count: the same expert stays the heaviest and gets every replica. Two replicas "
        "carry half each.": [1 + extra * (e == ranked[0]) for e in range(E)],
        "One replica for each of the heaviest. A very hot expert may need a third before another needs its second.":
            [1 + (e in ranked[:extra]) for e in range(E)],
        "The load is halved for each new replica. With a third one each carries a third, not a quarter.": halved,
        "The lightest expert gets them.": [1 + extra * (e == ranked[-1]) for e in range(E)],
        "These are the additional replicas: the first one counts too.": [c - 1 for c in right],
        "Replicas in proportion to the load, rounded: their sum need not be the number of slots.":
            [max(1, round(slots * x / sum(load))) for x in load],
    }  # fmt: skip


def check_replicate(fn):
    for E, extra in ((8, 5), (11, 7)):
        answers: dict[str, list[int]] = {}
        while len({tuple(a) for a in answers.values()}) < 7:  # drawn again until each mistake gives its own answer
            load = [1000 * random.random() ** 3 + 40 for _ in range(E)]
            load[random.randrange(E)] += 1900
            answers = counts_of(load, E + extra)
        want = answers.pop("right")
        causes = [(wrong_answer, message) for message, wrong_answer in answers.items()]
        expect_equal(fn(load, E + extra), want, what=f"replicas of {E} experts on {E + extra} slots", causes=causes)


REPLICATE = define(
    "17.2", "The next replica goes to the hottest", minutes=8, difficulty=1,
    statement="""
        Write `replicate(load, slots)`: a list that says how many replicas each expert gets. Everyone has one; each of
        the other `slots` $- E$ goes to the expert whose replicas carry most **at that moment**. The tokens of an expert
        are shared evenly among its replicas.
    """,
    hints=(
        "An expert with 900 tokens has three replicas, one with 400 has one. Who is next?",
        "What a replica carries is load / count, and it changes with each replica given.",
        "A loop over the extra slots: `max(range(E), key=lambda e: load[e] / count[e])`, then count it.",
    ),
    check=check_replicate,
    solution=replicate,
    why="It is the best that can be done for the heaviest replica: lowering a level L step by step, an expert needs "
    "load / L replicas, and greedy buys them in just that order.",
    wrong_answers=(
        slip("load[e] / count[e]", "load[e]", draws="not divided by the count", why="Looks at the expert, not at its "
             "replicas."),
        wrong("""
            def replicate(load, slots):
                extra = slots - len(load)
                hot = sorted(range(len(load)), key=lambda e: -load[e])[:extra]
                return [1 + (e in hot) for e in range(len(load))]
        """, draws="One replica for each", why="Top-k of the loads."),
        slip("load[e] / count[e]", "load[e] / 2 ** (count[e] - 1)", draws="halved", why="Splits a replica in two."),
        slip("most = max(", "most = min(", draws="lightest", why="The wrong end."),
        slip("return count", "return [c - 1 for c in count]", draws="additional replicas", why="Only extra ones."),
        wrong("""
            def replicate(load, slots):
                return [max(1, round(slots * x / sum(load))) for x in load]
        """, draws="in proportion", why="Shares by proportion, with rounding."),
    ),
)  # fmt: skip


# 17.3 -----------------------------------------------------------------------------------------------------------------


def handover_bytes(cfg, prompt, bytes_per_value=2):
    """Bytes of the latent cache of `prompt` tokens that prefill hands to decode."""
    values = cfg.kv_lora_rank + cfg.qk_rope_head_dim
    return prompt * cfg.n_layers * values * bytes_per_value


def check_handover_bytes(fn):
    small = replace(tiny(), n_layers=random.randrange(7, 12), kv_lora_rank=8 * random.randrange(5, 9) + 1)
    for cfg, prompt, b in ((v3(), random.randrange(1000, 5000), 2), (small, random.randrange(50, 99), 4)):
        C, R, H, per = cfg.kv_lora_rank, cfg.qk_rope_head_dim, cfg.n_heads, prompt * cfg.n_layers * b
        want = prompt * kv_bytes_per_token(cfg, b)
        naive = H * (cfg.qk_head_dim + cfg.v_head_dim) * per
        what = f"bytes for {prompt:,} tokens, {cfg.n_layers} layers, C={C}, R={R}, {b} bytes a value"
        expect_equal(fn(cfg, prompt, b), want, what=what, causes=[
            (want * H, f"Counted for each of {H} heads. The latent is shared by all heads: that is what MLA is for."),
            (naive, "Those are keys and values of all heads, what ordinary attention caches. MLA's are rebuilt from "
             "the latent, on the other side."),
            ((C + H * R) * per, "The rotated key is counted for each head: one of R values serves all."),
            (C * per, "The rotated key of R values is missing: it cannot be rebuilt from the latent."),
            (2 * want, "Twice: once as keys, once as values. Both are made of one latent."),
            (want // cfg.n_layers, "One layer only: each layer has a cache of its own."),
            (want // b, "These are values: times the bytes of one."),
            (want * 8, "These are bits."),
            (want // prompt, "For one token: the whole prompt travels."),
        ])  # fmt: skip


HANDOVER_BYTES = define(
    "17.3", "Bytes of a handover", minutes=5, difficulty=1,
    statement="""
        Write `handover_bytes(cfg, prompt, bytes_per_value=2)`: how many bytes of cache travel from prefill to decode
        for a prompt of so many tokens. The sizes are `cfg.kv_lora_rank` (C), `cfg.qk_rope_head_dim` (R) and
        `cfg.n_layers`.
    """,
    hints=(
        "What does MLA keep of a token in one layer, and how many of them are there for each head?",
        "C values of the latent and R of the rotated key, once for all heads.",
        "Four factors: tokens, layers, $C + R$, bytes.",
    ),
    check=check_handover_bytes,
    solution=handover_bytes,
    why="Decode needs the cache and one token, nothing else of what prefill computed.",
    wrong_answers=(
        slip("prompt * cfg.n_layers", "prompt * cfg.n_heads * cfg.n_layers", draws="for each of",
             why="Keys and values have heads, so the cache should have them."),
        slip("cfg.kv_lora_rank + cfg.qk_rope_head_dim", "cfg.n_heads * (cfg.qk_head_dim + cfg.v_head_dim)",
             draws="keys and values of all heads", why="The cache of ordinary attention."),
        slip("+ cfg.qk_rope_head_dim", "+ cfg.n_heads * cfg.qk_rope_head_dim", draws="rotated key is counted",
             why="Queries have R values a head; the key has not."),
        slip(" + cfg.qk_rope_head_dim", "", draws="rotated key of R values is missing", why="The latent alone."),
        slip("return prompt", "return 2 * prompt", draws="Twice", why="The usual 2 for K and V."),
        slip(" * cfg.n_layers", "", draws="One layer only", why="Forgets the layers."),
        slip(" * bytes_per_value", "", draws="These are values", why="Counts numbers."),
    ),
)  # fmt: skip


# 17.4 -----------------------------------------------------------------------------------------------------------------


def felt(requests, ttft_bound, tpot_bound):
    """(TTFT of each, TPOT of each, goodput); a request is (when it came, [when each of its tokens was there])."""
    ttft = [stamps[0] - came for came, stamps in requests]
    tpot = [(stamps[-1] - stamps[0]) / max(len(stamps) - 1, 1) for _, stamps in requests]
    span = max(stamps[-1] for _, stamps in requests) - min(came for came, _ in requests)
    good = sum(a <= ttft_bound and b <= tpot_bound for a, b in zip(ttft, tpot, strict=True))
    return ttft, tpot, good / span


def some_requests(n):
    """Requests with waits and gaps between tokens that differ, the second with one token only."""
    found = []
    for i in range(n):
        came = random.uniform(0, 4)
        stamps = [came + random.uniform(0.05, 0.6)]
        gap = random.uniform(0.01, 0.08)
        for _ in range(random.randrange(5, 12) if i != 1 else 0):
            stamps.append(stamps[-1] + gap * random.uniform(0.5, 1.5))
        found.append((came, stamps))
    return found


def check_felt(fn):
    good = either = 0
    while not 0 < good < either < 15:  # some are good, some miss one bound, some both
        requests = some_requests(17)
        first = [s[0] - came for came, s in requests]
        later = [sum(b - a for a, b in pairwise(s)) / (len(s) - 1) if s[1:] else 0.0
                 for _, s in requests]  # fmt: skip
        met = [(a <= 0.3, b <= 0.04) for a, b in zip(first, later, strict=True)]
        good, either = sum(a and b for a, b in met), sum(a or b for a, b in met)
    came, tokens = [c for c, _ in requests], [len(s) for _, s in requests]
    last = max(s[-1] for _, s in requests)
    span = last - min(came)
    whole = [(s[-1] - c) / len(s) for c, s in requests]
    by_n = [(s[-1] - s[0]) / len(s) for _, s in requests]
    answer = fn(requests, 0.3, 0.04)
    expect_equal(len(answer) if isinstance(answer, tuple | list) else answer, 3, what="the number of results",
                 cause="Three results: TTFT, TPOT, goodput.")  # fmt: skip
    expect_close(list(answer[0]), first, what="TTFT", causes=[
        ([s[0] - min(came) for _, s in requests], "Counted from the first request of all: each user's clock starts "
         "when the own request came."),
        ([s[0] for _, s in requests], "That is the hour of the first token: from it goes the hour at which it came."),
    ])  # fmt: skip
    expect_close(list(answer[1]), later, what="TPOT", causes=[
        (whole, "TPOT includes TTFT: the wait before the first token is counted again. It starts at the first token."),
        (by_n, "Divided by the number of tokens: n tokens have n - 1 gaps."),
        ([(s[-1] - c) / max(len(s) - 1, 1) for c, s in requests], "TPOT includes TTFT: it starts at the first token."),
    ])  # fmt: skip
    expect_close(answer[2], good / span, what="goodput (a second)", causes=[
        (either / span, "A request that met one of the bounds is counted: it must meet both."),
        (good / len(requests), "That is the share of good requests: goodput is how many a second."),
        (len(requests) / span, "That is throughput: only those that met both bounds count."),
        (float(good), "A count: divide by the seconds from the first arrival to the last token."),
        (sum(n for n, (a, b) in zip(tokens, met, strict=True) if a and b) / span, "Tokens a second: requests are "
         "counted."),
    ])  # fmt: skip


FELT = define(
    "17.4", "What a user feels", minutes=10, difficulty=2,
    statement="""
        `requests` is a list of pairs `(came, stamps)`: when a request came, and when each of its tokens was there, in
        seconds. Write `felt(requests, ttft_bound, tpot_bound)` and return `(ttft, tpot, goodput)`: two lists, and how
        many requests a second met both bounds (a value equal to the bound meets it), from the first arrival to the
        last token of all. TPOT of a single token is 0.
    """,
    hints=(
        "Which two moments does each measure lie between?",
        "TTFT: from `came` to the first stamp. TPOT: from the first stamp to the last, over the gaps between.",
        "`(stamps[-1] - stamps[0]) / max(len(stamps) - 1, 1)`; then count where both hold, and divide by the span.",
    ),
    check=check_felt,
    solution=felt,
    why="The two are parted because different machines answer for them: TTFT is prefill and the queue, TPOT is decode.",
    wrong_answers=(
        slip("(stamps[-1] - stamps[0]) / max(len(stamps) - 1, 1) for _,", "(stamps[-1] - came) / len(stamps) for came,",
             draws="TPOT includes TTFT", why="Whole time over tokens."),
        slip("max(len(stamps) - 1, 1)", "len(stamps)", draws="n - 1 gaps", why="Posts and gaps."),
        slip("a <= ttft_bound and b", "a <= ttft_bound or b", draws="must meet both", why="Either is fine."),
        slip("good / span", "good / len(requests)", draws="share of good", why="A rate taken for a share."),
        slip("good / span", "len(requests) / span", draws="That is throughput", why="Forgets the bounds."),
        slip("stamps[0] - came for came,", "stamps[0] - min(c for c, _ in requests) for _,",
             draws="first request of all", why="One clock for all."),
    ),
)  # fmt: skip
