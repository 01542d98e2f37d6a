"""Exercises of chapter 16, decoding: which tokens top-p keeps, what a penalty counts, when a draft is kept and what
replaces it, how far the caches go back, and what a cycle of drafts is worth.

Source: top-p arXiv 1904.09751; accepting and correcting arXiv 2302.01318 and 2211.17192; DeepSeek-V3 section 5.4.3.
The wrong answers are mistakes seen in public implementations.
Notebook: 16_decode.
"""

from __future__ import annotations

import random

import torch

from minids.exercises import define, ensure, expect_close, expect_equal, slip, wrong

# 16.1 -----------------------------------------------------------------------------------------------------------------


def top_p_keeps(p, top_p):
    """p [W] with the unlikely tokens at 0 and the rest summing to 1."""
    ranked, order = p.sort(descending=True)
    before = ranked.cumsum(0) - ranked  # the mass of the better tokens
    kept = torch.where(before < top_p, ranked, 0.0)
    out = torch.zeros_like(p)
    out[order] = kept / kept.sum()
    return out


def check_top_p_keeps(fn):
    W = random.randrange(9, 14)
    order = random.sample(range(W), W)
    ranked = (torch.rand(W, dtype=torch.float64) + 0.2).sort(descending=True).values
    ranked /= ranked.sum()
    n = random.randrange(3, W - 2)  # the crossing token is the n-th
    top_p = float(ranked[:n].sum() - ranked[n - 1] / 3)

    def kept(places, whole=False):
        x = torch.zeros_like(ranked)
        x[places] = ranked[places]
        out = torch.zeros_like(x)
        out[order] = x if whole else x / x.sum()
        return out

    p = kept(slice(None), whole=True)
    got = fn(p.clone(), top_p)
    expect_close(got, kept(slice(0, n)), what=f"top-p with {top_p:.3f} of {W} tokens", causes=[
        (kept(slice(0, n - 1)), "The token that crosses the line is cut. It is kept: the mass must *reach* top_p."),
        (kept(slice(0, n), whole=True), "The kept ones are not renormalised: they no longer sum to 1."),
        (kept(slice(0, n))[order], "The probabilities are right but stand in sorted order: put each back to its "
         "token."),
        (lambda got: got[order[0]] == 0 and got.sum() > 0, "The unlikely ones are kept: sort from the largest down."),
        (kept(slice(0, n + 1)), "One token too many: those before it have reached top_p already."),
    ])  # fmt: skip
    sure = torch.tensor([0.02, 0.95, 0.03], dtype=torch.float64)
    expect_close(fn(sure, 0.5), torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64),
                 what="top-p of 0.5 where the best token alone has 0.95",
                 cause="The best token is always kept, however much it exceeds top_p.")  # fmt: skip


TOP_P_KEEPS = define(
    "16.1", "The token that crosses the line", minutes=8, difficulty=2,
    statement="""
        Write `top_p_keeps(p, top_p)` for one distribution `p` `[W]`: the likeliest tokens are kept until their mass
        reaches `top_p`, the others get 0, and the kept ones are divided by their sum. Each probability stays at its
        own token.
    """,
    hints=(
        "Is the token at which the sum passes top_p kept or cut? Think of a best token with 0.95 and top_p 0.5.",
        "A token is kept when the mass of the tokens *before* it is still below top_p.",
        "`cumsum - ranked` is the mass before; `out[order] = kept / kept.sum()` puts them back.",
    ),
    check=check_top_p_keeps,
    solution=top_p_keeps,
    why="The kept set is the smallest one whose mass is at least top_p, so the token that crosses belongs to it. With "
    "`cumsum < top_p` a sure model would be left with no token at all.",
    wrong_answers=(
        slip("before = ranked.cumsum(0) - ranked", "before = ranked.cumsum(0)", draws="crosses the line",
             why="Compares the mass that includes the token itself."),
        slip("kept / kept.sum()", "kept", draws="not renormalised", why="Forgets that it must be a distribution."),
        slip("descending=True", "descending=False", draws="unlikely ones are kept", why="sort's default order."),
        slip("out[order] = kept / kept.sum()", "out = kept / kept.sum()", draws="sorted order",
             why="Forgets to undo the sort."),
    ),
)  # fmt: skip


# 16.2 -----------------------------------------------------------------------------------------------------------------


def penalise(logits, prompt, generated, penalty):
    """logits [W] after the frequency penalty; prompt and generated are lists of token ids."""
    counts = torch.bincount(torch.tensor(generated, dtype=torch.long), minlength=len(logits))
    return logits - penalty * counts


def check_penalise(fn):
    W, penalty = random.randrange(8, 12), random.choice([0.5, 0.7, 1.1])
    a, b, c, d = random.sample(range(W), 4)
    prompt, generated = [a, b, b, d], [c, b, c, c, a]
    logits = torch.randn(W)

    def less(tokens, each=True):
        out = logits.clone()
        for token in tokens if each else set(tokens):
            out[token] -= penalty
        return out

    expect_close(fn(logits.clone(), prompt, generated, penalty), less(generated), what="the logits", causes=[
        (less(prompt + generated), "The prompt is counted too. A question about a word would then make the answer "
         "avoid the word: only generated tokens count."),
        (less(generated, each=False), "Each token is charged once, however often it was said: that is the presence "
         "penalty. The frequency penalty counts."),
        (2 * logits - less(generated), "The sign is wrong: what was said often becomes likelier."),
        (less(prompt), "The prompt is counted in place of what was generated."),
        (logits, "Nothing changed."),
        (logits / (1 + penalty * (logits - less(generated)) / penalty), "The logits are divided: a negative logit "
         "would rise by that. The penalty is subtracted."),
    ])  # fmt: skip
    expect_close(fn(logits.clone(), prompt, [], penalty), logits, what="the logits before anything was generated")


PENALISE = define(
    "16.2", "What counts as said", minutes=5, difficulty=1,
    statement="""
        Write `penalise(logits, prompt, generated, penalty)`: `logits` `[W]` minus `penalty` for each time that a token
        was **generated**. `prompt` and `generated` are lists of token ids; both stand in the context.
    """,
    hints=(
        "A token that was said three times is charged three times.",
        "Which of the two lists counts? The module text of `minids.generate` says it.",
        "`torch.bincount(..., minlength=len(logits))` of the generated tokens; an empty list needs `dtype=torch.long`.",
    ),
    check=check_penalise,
    solution=penalise,
    why="The penalty is there against the model repeating *itself*. Words of the prompt are what the answer is about.",
    wrong_answers=(
        slip("torch.tensor(generated,", "torch.tensor(prompt + generated,", draws="prompt is counted too",
             why="Counts the whole context, which is what one has at hand."),
        slip("return logits - penalty * counts", "return logits - penalty * (counts > 0)", draws="presence penalty",
             why="The other penalty of the same interface."),
        slip("logits - penalty", "logits + penalty", draws="sign is wrong", why="Sign."),
        slip("torch.tensor(generated,", "torch.tensor(prompt,", draws="in place of", why="The wrong list."),
    ),
)  # fmt: skip


# 16.3 -----------------------------------------------------------------------------------------------------------------


def keep_and_correct(p, q):
    """(the probability that each draft is kept [W], what replaces a refused one [W])."""
    keep = (p / q).clamp(max=1)
    rest = (p - q).clamp(min=0)
    return keep, rest / rest.sum()


def check_keep_and_correct(fn):
    W = random.randrange(5, 9)
    p, q = torch.randn(2, W, dtype=torch.float64).softmax(-1)
    keep, rest = (p / q).clamp(max=1), (p - q).clamp(min=0)
    rest = rest / rest.sum()
    over = (p > q).double()
    over_q = (q - p).clamp(min=0)
    got = fn(p, q)
    ensure(isinstance(got, (tuple, list)) and len(got) == 2, "a pair (keep, rest)", got)
    expect_close(got[0], keep, what="the probability that a draft is kept", causes=[
        (over, "A draft is kept only where p > q, and never elsewhere. Below that it still has the chance p / q."),
        (p, "That is p itself, which forgets that a draft x comes along with probability q(x)."),
        (torch.minimum(p, q), "That is the probability that x is drafted *and* kept; x is drafted already."),
        ((q / p).clamp(max=1), "p and q are swapped: the main model's p stands above."),
        (p / q, "A probability of more than 1: min(1, p / q)."),
    ])  # fmt: skip
    expect_close(got[1], rest, what="the distribution that replaces a refused draft", causes=[
        (p, "It is drawn from p again. Tokens that q proposes too rarely then stay too rare: what is missing is "
         "max(p - q, 0)."),
        (rest * (p - q).clamp(min=0).sum(), "max(p - q, 0) is not a distribution yet: divide it by its sum."),
        (over_q / over_q.sum(), "That is max(q - p, 0): what the draft says too often, the wrong part."),
        ((p - q).abs() / (p - q).abs().sum(), "Where q exceeds p nothing is missing: that part is 0, not q - p."),
    ])  # fmt: skip


KEEP_AND_CORRECT = define(
    "16.3", "Keep and correct", minutes=10, difficulty=3,
    statement="""
        A draft was drawn from `q` `[W]` (all positive); the main model says `p` `[W]`. Write `keep_and_correct(p, q)`:
        the pair (`keep`, the probability that a draft x is kept, for each x; `rest`, the distribution from which the
        token is drawn that replaces a refused draft), so that the result has exactly the distribution p.
    """,
    hints=(
        "Drafts of x arrive with probability q(x). If q(x) is at most p(x), can you afford to refuse any?",
        "Where q(x) > p(x), keep so many that p(x) remain. Where q(x) < p(x), something is missing: how much?",
        "`keep` is min(1, p / q); `rest` is max(p - q, 0), divided by its sum.",
    ),
    check=check_keep_and_correct,
    solution=keep_and_correct,
    why="Kept drafts give min(p, q). What is missing to p is p - min(p, q) = max(p - q, 0), and its sum is just the "
    "probability of a refusal: so drawing from it after a refusal fills the gap exactly.",
    wrong_answers=(
        slip("rest = (p - q).clamp(min=0)", "rest = p", draws="drawn from p again", why="The obvious replacement."),
        slip("keep = (p / q).clamp(max=1)", "keep = (p > q).double()", draws="only where p > q",
             why="Takes the rule for a comparison."),
        slip("(p / q).clamp(max=1)", "torch.minimum(p, q)", draws="drafted already", why="Counts q twice."),
        slip("(p / q).clamp(max=1)", "(q / p).clamp(max=1)", draws="swapped", why="The fraction turned over."),
        slip("return keep, rest / rest.sum()", "return keep, rest", draws="not a distribution yet",
             why="Forgets to renormalise."),
        slip("(p - q).clamp(min=0)", "(p - q).abs()", draws="nothing is missing", why="abs for max(.., 0)."),
    ),
)  # fmt: skip


# 16.4 -----------------------------------------------------------------------------------------------------------------


def cached_after(length, drafts, accepted):
    """Tokens that the cache must hold when the cycle is over; `length` before the main model's pass."""
    read = length + 1 + drafts
    return read - (drafts - accepted)


def check_cached_after(fn):
    for _ in range(4):
        K, a = random.choice([(4, 1), (5, 1), (6, 1), (6, 2), (6, 4), (7, 2), (7, 5)])  # mistakes differ
        n = random.randrange(20, 60)
        want = n + 1 + a
        expect_equal(fn(n, K, a), want, what=f"length after {a} of {K} drafts were kept, {n} cached before", causes=[
            (want + 1, "One token too many stays: a refused draft is still in the cache, and every later token "
             "would look at it. The corrected token was not read yet."),
            (want - 1, "One kept token is thrown away: the pass read t_n *and* the drafts, and t_n stays."),
            (n + 1 + K, "Nothing is rolled back: all refused drafts stay in the cache."),
            (n, "All that the pass read is thrown away, the kept drafts with it."),
            (n + 1 + K - a, "It is rolled back by the number of kept drafts, not of refused ones."),
        ])  # fmt: skip


CACHED_AFTER = define(
    "16.4", "How far back?", minutes=5, difficulty=2,
    statement="""
        The cache holds `length` tokens. The main model's pass then reads the last drawn token $t_n$ and `drafts`
        drafts, of which `accepted` are kept; after them a token of its own is drawn. Write
        `cached_after(length, drafts, accepted)`: how many tokens the cache must hold for the next cycle.
    """,
    hints=(
        "How many did the pass write? Which of them are not part of the text?",
        "The token that is drawn last was not read yet, so it is in no cache.",
        "`length + 1 + drafts` were written; `drafts - accepted` of them go.",
    ),
    check=check_cached_after,
    solution=cached_after,
    why="What stays is $t_n$ and the kept drafts. The last token is what $t_n$ was in this cycle: drawn, unread.",
    wrong_answers=(
        slip("(drafts - accepted)", "(drafts - accepted - 1)", draws="too many stays",
             why="Takes the corrected token for one that is cached."),
        slip("length + 1 + drafts", "length + drafts", draws="thrown away", why="Forgets that the pass reads t_n."),
        slip("read - (drafts - accepted)", "read", draws="Nothing is rolled back", why="No roll back at all."),
        slip("read - (drafts - accepted)", "length", draws="All that the pass read", why="Back to the start."),
        slip("- (drafts - accepted)", "- accepted", draws="number of kept drafts", why="Kept and refused swapped."),
    ),
)  # fmt: skip


# 16.5 -----------------------------------------------------------------------------------------------------------------


def expected_tokens(a, K):
    """Tokens that a cycle of K drafts gives on average, when each draft is kept with probability a."""
    return sum(a**i for i in range(K + 1))


def check_expected_tokens(fn):
    for K in (1, 3, random.randrange(4, 8)):
        a = random.uniform(0.35, 0.9)
        want = (1 - a ** (K + 1)) / (1 - a)
        expect_close(float(fn(a, K)), want, what=f"tokens a cycle for a = {a:.3f}, K = {K}", causes=[
            (1 + a * K, "Each draft is counted as kept with probability a. But a draft counts only if all before it "
             "were kept: the i-th with a^i."),
            (want - 1, "The main model's own token is missing: every cycle gives at least one."),
            (want + a ** (K + 1), "One draft too many: a cycle has K."),
            ((1 + K) * a**K, "That counts only the cycles in which all drafts were kept."),
            (1 / (1 - a), "That is the limit of endless drafts."),
        ])  # fmt: skip
    expect_close(float(fn(1.0, 4)), 5.0, what="tokens a cycle when every draft of 4 is kept")
    expect_close(float(fn(0.0, 4)), 1.0, what="tokens a cycle when no draft is kept")


EXPECTED_TOKENS = define(
    "16.5", "What a cycle is worth", minutes=5, difficulty=2,
    statement="""
        Each of `K` drafts is kept with probability `a`, but only if all before it were kept. Then the main model adds
        one token. Write `expected_tokens(a, K)`: the tokens of a cycle on average. It must also work for `a = 1`.
    """,
    hints=(
        "With K = 1: one token always, a second one with probability a.",
        "The i-th draft reaches the text with probability a^i. Expectations add.",
        "$1 + a + \\dots + a^K$, which is $(1 - a^{K+1})/(1 - a)$ for a < 1.",
    ),
    check=check_expected_tokens,
    solution=expected_tokens,
    why="An expectation is the sum over the places in the text of the probability that the place is filled: 1 for the "
    "main model's token, a^i for the i-th draft.",
    wrong_answers=(
        slip("sum(a**i for i in range(K + 1))", "1 + a * K", draws="all before it", why="Independent drafts."),
        slip("range(K + 1)", "range(1, K + 1)", draws="own token is missing", why="Counts the drafts alone."),
        slip("range(K + 1)", "range(K + 2)", draws="One draft too many", why="Off by one."),
        wrong("""
            def expected_tokens(a, K):
                return 1 / (1 - a) if a < 1 else K + 1
        """, draws="endless drafts", why="The formula without its end."),
    ),
)  # fmt: skip
