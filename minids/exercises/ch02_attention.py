"""Exercises of chapter 2, attention with a cache: the mask, the trap of `is_causal`, RoPE, one decoded token, memory.

Source: Vaswani et al. (arXiv 1706.03762) section 3.2; DeepSeek-V2 (arXiv 2405.04434) section 2.1.1 and table 1; RoPE
(arXiv 2104.09864) section 3.2; GQA (arXiv 2305.13245). The wrong answers are mistakes seen in public implementations
and in code written from memory.
Notebook: 02_attention.
"""

from __future__ import annotations

import math
import random
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from minids.attention import attend
from minids.config import Config, dense_active
from minids.costs import params
from minids.exercises import define, ensure, expect_close, expect_equal, slip, wrong
from minids.rope import apply_rotary_emb, inv_freq


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


# 2.1 ------------------------------------------------------------------------------------------------------------------


def causal_attention(q, k, v):
    """Causal attention of all heads at once: q, k [B S H d], v [B S H V] to [B S H V]."""
    S, d = q.shape[1], q.shape[-1]
    scores = torch.einsum("bshd,bthd->bhst", q, k) / math.sqrt(d)
    future = torch.ones(S, S, dtype=torch.bool).triu(1)
    p = scores.masked_fill(future, -math.inf).softmax(-1)
    return torch.einsum("bhst,bthv->bshv", p, v)


def weighted(q: Tensor, k: Tensor, v: Tensor, scale: float, fill: float = -math.inf, axis: int = -1, at: int = 1):
    """Attention with exchangeable parts: what stands at masked places, the softmax's axis, where the mask begins."""
    scores = torch.einsum("bshd,bthd->bhst", q, k) * scale
    future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(at)
    return torch.einsum("bhst,bthv->bshv", scores.masked_fill(future, fill).softmax(axis), v)


def check_causal_attention(fn):
    B, S, H, d, V = 2, random.randrange(6, 9), 3, 4, 5
    q, k, v = randn(B, S, H, d), randn(B, S, H, d), randn(B, S, H, V)
    scale, never = d**-0.5, S + 1
    p = (torch.einsum("bshd,bthd->bhst", q, k) * scale).softmax(-1).tril()
    expect_close(fn(q, k, v), attend(q, k, v, scale), what="the heads' outputs", causes=[
        (weighted(q, k, v, scale, fill=0.0), "Masked scores became 0, and exp(0) = 1 is a weight like any other. A "
         "token that must not be seen needs the score -inf, whose exp is 0."),
        (weighted(q, k, v, scale, at=never), "There is no mask: each position also reads what comes after it."),
        (lambda got: got.isnan()[:, 0].all(), "The first position is NaN: it may see nothing, not even itself. The "
         "mask begins above the diagonal."),
        (weighted(q, k, v, (H * d) ** -0.5), "Divided by sqrt(H d), the whole model's width: a dot product runs over "
         "the d features of one head."),
        (weighted(q, k, v, 1.0), "The scores are not divided by sqrt(d)."),
        (weighted(q, k, v, 1 / d), "Divided by d: a sum of d random products spreads by sqrt(d)."),
        (weighted(q, k, v, scale, axis=-2), "The softmax runs over the queries: for each query, the weights of the "
         "keys sum to 1."),
        (torch.einsum("bhst,bthv->bshv", p, v), "The mask came after the softmax: the future has had its share of the "
         "weight, and the rows sum to less than 1."),
    ])  # fmt: skip


CAUSAL_ATTENTION = define(
    "2.1", "Causal attention, all heads at once", minutes=10, difficulty=2,
    statement="""
        Write `causal_attention(q, k, v)` without loops, for `q` and `k` of shape `[B, S, H, d]` and `v` of shape
        `[B, S, H, V]`: each head by itself, position i sees positions 0 to i. The result is `[B, S, H, V]`.
    """,
    hints=(
        "Two einsums with a mask and a softmax between them. Which letters do the scores of all heads have?",
        "Scores `[B, H, S, T]` over sqrt(d); -inf above the diagonal; softmax over the last axis; mix the values.",
        '`einsum("bshd,bthd->bhst")`, `masked_fill(ones.triu(1), -inf)`, `softmax(-1)`, `einsum("bhst,bthv->bshv")`.',
    ),
    check=check_causal_attention,
    solution=causal_attention,
    why="The mask must act before the softmax, since the softmax shares out a fixed weight of 1: whoever is masked "
    "later has taken a part of it. And a head's dot product has d terms, so d is what the scale undoes.",
    wrong_answers=(
        slip("-math.inf", "0.0", draws="exp(0) = 1", why="Masks by zero, as one does behind the softmax."),
        slip("triu(1)", "triu()", draws="not even itself", why="Masks the diagonal too."),
        slip("math.sqrt(d)", "math.sqrt(d * q.shape[2])", draws="whole model's width", why="d_model in place of d_k."),
        slip(" / math.sqrt(d)", "", draws="not divided", why="The scale forgotten."),
        slip("math.sqrt(d)", "d", draws="spreads by sqrt(d)", why="The square root forgotten."),
        slip("softmax(-1)", "softmax(-2)", draws="over the queries", why="The wrong one of two axes of equal size."),
        slip(".masked_fill(future, -math.inf)", "", draws="no mask", why="Attention of an encoder."),
        slip("scores.masked_fill(future, -math.inf).softmax(-1)", "scores.softmax(-1).masked_fill(future, 0.0)",
             draws="rows sum to less than 1", why="Masks the weights instead of the scores."),
    ),
)  # fmt: skip


# 2.2 ------------------------------------------------------------------------------------------------------------------


def cached_attention(q, k, v):
    """Attention of the last S of T positions, by torch: q [B H S d], k and v [B H T d] to [B H S d]."""
    S, T = q.shape[2], k.shape[2]
    past = torch.ones(S, T, dtype=torch.bool).tril(T - S)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=past)


def check_cached_attention(fn):
    most = random.randrange(8, 12)
    for S, T in ((1, most), (3, most + 1), (5, 5)):
        q, k, v = randn(2, 3, S, 4), randn(2, 3, T, 4), randn(2, 3, T, 4)

        def seen(offset: int, q=q, k=k, v=v) -> Tensor:
            shape = q.shape[2], k.shape[2]
            return F.scaled_dot_product_attention(q, k, v, torch.ones(shape, dtype=torch.bool).tril(offset))

        what = f"{S} new token{'s' * (S > 1)} at the end of {T}"
        expect_close(fn(q, k, v), seen(T - S), what=what, causes=[
            (lambda got: got.isnan().any() or (got == 0).all(), "A query sees no key at all. In these masks True "
             "means: may be seen."),
            (seen(0), "That is the mask aligned to the upper left corner, where torch puts it: the first new token "
             "sees the oldest key and nothing else. The new tokens are the last: align to the lower right."),
            (seen(T), "There is no mask: a new token reads the new tokens after it. That is right for a single one."),
            (seen(T - S - 1), "One key too few: a token also sees its own key, which is in the cache by now."),
            (seen(T - S + 1), "One key too many: each token but the last sees the one after it."),
        ])  # fmt: skip


CACHED_ATTENTION = define(
    "2.2", "A few new tokens behind a cache", minutes=6, difficulty=2,
    statement="""
        S new tokens come at the end of a text of T tokens. Write `cached_attention(q, k, v)` with
        `F.scaled_dot_product_attention`, for `q` of shape `[B, H, S, d]`, `k` and `v` of shape `[B, H, T, d]`, so that
        it is right for one new token (decoding), for all of them (S = T), and for anything between.
    """,
    hints=(
        "At which position does the first of the S queries stand? Which keys may it see?",
        "Query i stands at T - S + i. Make the mask yourself, `[S, T]` with True where a key may be seen.",
        "`torch.ones(S, T, dtype=torch.bool).tril(T - S)`",
    ),
    check=check_cached_attention,
    solution=cached_attention,
    why="`is_causal=True` fills the triangle from the upper left corner, whatever S and T are: right for S = T alone. "
    "With S = 1 no mask is needed, and that is how most decoders get away with it until they read a prompt in pieces.",
    wrong_answers=(
        slip("attn_mask=past", "is_causal=True", draws="upper left", why="The flag's name says what one wants."),
        slip("attn_mask=past", "is_causal=S > 1", draws="upper left", why="A common line; wrong for 1 < S < T."),
        slip("attn_mask=past", "is_causal=S == T", draws="no mask", why="Leaks within a piece of a prompt."),
        slip(", attn_mask=past", "", draws="no mask", why="All keys in the cache are older, so why mask?"),
        slip("tril(T - S)", "tril()", draws="upper left", why="The mask of S = T, cut to another shape."),
        slip("tril(T - S)", "tril(T - S - 1)", draws="its own key", why="Counts from the wrong end."),
        slip("tril(T - S)", "tril(T - S + 1)", draws="One key too many", why="triu's offset taken over."),
        slip("attn_mask=past", "attn_mask=~past", draws="may be seen", why="True means masked in nn.Transformer."),
    ),
)  # fmt: skip


# 2.3 ------------------------------------------------------------------------------------------------------------------


def rotate(x, start, theta):
    """RoPE on x [B S H R], whose S tokens stand from `start` on: pairs (x0, x1), (x2, x3), .."""
    S, R = x.shape[1], x.shape[-1]
    f = theta ** -(torch.arange(0, R, 2) / R)
    angle = torch.outer(start + torch.arange(S), f)[:, None]
    x0, x1 = x[..., 0::2], x[..., 1::2]
    y0 = x0 * angle.cos() - x1 * angle.sin()
    y1 = x0 * angle.sin() + x1 * angle.cos()
    return torch.stack([y0, y1], -1).flatten(-2)


def turned(x: Tensor, start: int, f: Tensor, sign: float = 1.0) -> Tensor:
    angle = sign * torch.outer(start + torch.arange(x.shape[1]), f)
    return apply_rotary_emb(x, torch.polar(torch.ones_like(angle), angle))


def check_rotate(fn):
    B, S, H, R = 2, 5, 3, 8
    start, theta = random.randrange(3, 40), random.choice([100.0, 1000.0])
    x, f = randn(B, S, H, R), inv_freq(R, theta)
    halves = turned(x.unflatten(-1, (2, R // 2)).transpose(-1, -2).flatten(-2), start, f)
    back = halves.unflatten(-1, (R // 2, 2)).transpose(-1, -2).flatten(-2)
    shallow = theta ** -(torch.arange(R // 2) / R)
    # float32 angles are good enough: 1e-4
    expect_close(fn(x, start, theta), turned(x, start, f), what=f"x from {start} on", rtol=1e-4, atol=1e-4, causes=[
        (turned(x, 0, f), "The first token is turned as if it stood at position 0. With a cache the new tokens stand "
         "behind it: a decoded token that always sits at 0 has the wrong distance to every key."),
        (turned(x, start + 1, f), "All positions are one too high."),
        (turned(x, start, f, sign=-1), "The pairs turn the other way: y0 = x0 cos - x1 sin, y1 = x0 sin + x1 cos."),
        (back, "The pairs are (x0, x1), (x2, x3), ..: this turned x0 with the middle feature, the layout of LLaMA's "
         "rotate_half. Both are RoPE; weights made for one do not work with the other."),
        (turned(x, start, f).unflatten(-1, (R // 2, 2)).transpose(-1, -2).flatten(-2), "The right numbers in another "
         "order: y0 and y1 of a pair stand side by side, so stack them on a new last axis and flatten."),
        (turned(x, start, shallow), "The frequencies fall half as fast as they should: f_i = theta^(-2i/R)."),
        (turned(x, start, theta ** (torch.arange(0, R, 2) / R)), "theta^(+2i/R): the frequencies grow, and "
         "all pairs but the first spin wildly."),
        (lambda got: (got.norm(dim=-1) - x.norm(dim=-1)).abs().max() > 1e-3, "The vectors have changed length, so this "
         "is no rotation: look at the signs and at which of cos and sin goes where."),
    ])  # fmt: skip


ROTATE = define(
    "2.3", "Turn the pairs", minutes=10, difficulty=2,
    statement="""
        Write `rotate(x, start, theta)`: RoPE on `x` of shape `[B, S, H, R]`. Its S tokens stand at the positions
        `start`, `start + 1`, ... Pair i, the features $x_{2i}$ and $x_{2i+1}$, turns by $f_i = \\theta^{-2i/R}$ radians
        a token.
    """,
    hints=(
        "Frequencies first: R/2 of them. Then one angle for each position and pair. Then four products.",
        "`x[..., 0::2]` and `x[..., 1::2]` are the pairs' parts; the angles `[S, R/2]` lack the H axis.",
        "`angle = torch.outer(positions, f)[:, None]`; y0 = x0 cos - x1 sin, y1 = x0 sin + x1 cos; stack and flatten.",
    ),
    check=check_rotate,
    solution=rotate,
    why="A pair is a complex number, and turning multiplies it by exp(i position f). `start` is where the cache ends: "
    "forgotten, the first decoded token already looks from the wrong place.",
    wrong_answers=(
        slip("start + torch.arange(S)", "torch.arange(S)", draws="wrong distance", why="Positions restart at 0."),
        slip("start + torch.arange(S)", "start + 1 + torch.arange(S)", draws="one too high", why="Counts from one."),
        wrong("""
            def rotate(x, start, theta):
                S, R = x.shape[1], x.shape[-1]
                f = theta ** -(torch.arange(0, R, 2) / R)
                angle = torch.outer(start + torch.arange(S), torch.cat([f, f]))[:, None]
                x0, x1 = x.chunk(2, -1)
                return x * angle.cos() + torch.cat([-x1, x0], -1) * angle.sin()
        """, draws="rotate_half", why="LLaMA's code, right for LLaMA's weights."),
        slip("- x1 * angle.sin()", "+ x1 * angle.sin()", draws="no rotation", why="A sign lost."),
        slip("torch.stack([y0, y1], -1).flatten(-2)", "torch.cat([y0, y1], -1)", draws="another order",
             why="Interleaved in, halves out."),
        slip("torch.arange(0, R, 2) / R", "torch.arange(R // 2) / R", draws="half as fast", why="i instead of 2i."),
        slip("theta ** -(", "theta ** (", draws="spin wildly", why="The exponent's sign."),
    ),
)  # fmt: skip


# 2.4 ------------------------------------------------------------------------------------------------------------------


def decode_step(q, k, v, k_cache, v_cache, freqs_cis):
    """One new token behind T cached ones: (output [B 1 H d], the two caches, one token longer)."""
    T, d, share = k_cache.shape[1], q.shape[-1], q.shape[2] // k.shape[2]
    here = freqs_cis[T : T + 1]
    q, k = apply_rotary_emb(q, here), apply_rotary_emb(k, here)
    k_cache, v_cache = torch.cat([k_cache, k], 1), torch.cat([v_cache, v], 1)
    keys = k_cache.repeat_interleave(share, 2)
    values = v_cache.repeat_interleave(share, 2)
    p = (torch.einsum("bshd,bthd->bhst", q, keys) / math.sqrt(d)).softmax(-1)
    return torch.einsum("bhst,bthd->bshd", p, values), k_cache, v_cache


def check_decode_step(fn):
    B, T, G, share, d = 2, random.randrange(5, 9), 2, 3, 8
    q, k, v = randn(B, 1, G * share, d), randn(B, 1, G, d), randn(B, 1, G, d)
    old_k, old_v = randn(B, T, G, d), randn(B, T, G, d)
    angle = torch.outer(torch.arange(T + 3.0), inv_freq(d, 100.0))
    angles = torch.polar(torch.ones_like(angle), angle)
    here = angles[T : T + 1]

    def turn(x: Tensor, by: Tensor = here) -> Tensor:
        return apply_rotary_emb(x, by)

    new_k, new_v = torch.cat([old_k, turn(k)], 1), torch.cat([old_v, v], 1)

    def out(q: Tensor, k: Tensor = new_k, v: Tensor = new_v, tile: bool = False) -> Tensor:
        k, v = (t.repeat(1, 1, share, 1) if tile else t.repeat_interleave(share, 2) for t in (k, v))
        return attend(q, k, v, d**-0.5)

    answer = fn(q, k, v, old_k, old_v, angles)
    ensure(isinstance(answer, tuple | list) and len(answer) == 3, "three things: output, k_cache, v_cache", answer)
    o, got_k, got_v = answer
    again = torch.cat([turn(old_k, angles[:T]), turn(k)], 1)
    expect_close(got_v, new_v, what="v_cache", causes=[
        (torch.cat([old_v, turn(v)], 1), "The value is rotated. Position decides where a head looks, by q and k; what "
         "it reads there is the value as it is."),
        (old_v, "The new token's value is not in the cache: it sees itself, and so do all later ones."),
    ])  # fmt: skip
    expect_close(got_k, new_k, what="k_cache", causes=[
        (torch.cat([old_k, k], 1), "The new key is cached as it came in: not turned, or turned by position 0, which is "
         "the same. It stands behind T tokens, at position T; turn it once, before it is cached."),
        (again, "The cached keys are turned a second time: they were turned when they came in."),
        (old_k, "The new token's key is not in the cache: it sees itself, and so do all later ones."),
        (lambda got: got.shape[2] == G * share, "The cache holds a copy for each query head, as much as MHA's: repeat "
         "for the scores only, and keep G heads."),
    ])  # fmt: skip
    expect_close(o, out(turn(q)), what="the output", causes=[
        (out(turn(q), tile=True), "Query heads 0, 1, 2, .. were given the key-value heads 0, 1, 0, 1, ..: `repeat` "
         "copies the whole row. Neighbours share a head, 0, 0, 0, 1, 1, 1: `repeat_interleave`."),
        (out(q), "The query is not turned, or by position 0, which is the same: every decoded token would look from "
         "the beginning of the text."),
        (out(turn(q), old_k, old_v), "The new token does not see itself: append first, then look."),
    ])  # fmt: skip


TURN_BOTH = "q, k = apply_rotary_emb(q, here), apply_rotary_emb(k, here)"
APPEND = "k_cache, v_cache = torch.cat([k_cache, k], 1), torch.cat([v_cache, v], 1)\n    "
SPREAD = "keys = k_cache.repeat_interleave(share, 2)\n    values = v_cache.repeat_interleave(share, 2)"

DECODE_STEP = define(
    "2.4", "Decode one token", minutes=12, difficulty=3,
    statement="""
        Write `decode_step(q, k, v, k_cache, v_cache, freqs_cis)` for **one** new token. `q` is `[B, 1, H, d]`, `k` and
        `v` are `[B, 1, G, d]`, all before RoPE; the caches `[B, T, G, d]` hold T tokens, keys turned already.
        `freqs_cis[position]` belongs to `position`; `apply_rotary_emb(x, freqs_cis[a:b])` turns `x`.
        Return the output `[B, 1, H, d]` and both caches with the new token.
    """,
    hints=(
        "Where does the new token stand? Which of q, k and v does RoPE turn? Which key-value head serves query head 4?",
        "Turn q and k by row T; append k and v; give each key-value head to H/G neighbouring query heads; no mask.",
        "`freqs_cis[T : T + 1]`, `torch.cat([k_cache, k], 1)`, `.repeat_interleave(H // G, 2)`, then attention.",
    ),
    check=check_decode_step,
    solution=decode_step,
    why="The position is the length of the cache. Keys are turned once, when they come in; values never. Sharing is a "
    "matter of reading: the cache itself holds G heads.",
    wrong_answers=(
        slip("freqs_cis[T : T + 1]", "freqs_cis[:1]", draws="at position T", why="S = 1, so position 0."),
        slip(TURN_BOTH, "q, k, v = (apply_rotary_emb(t, here) for t in (q, k, v))", draws="value is rotated",
             why="All three treated alike."),
        slip(TURN_BOTH, "q = apply_rotary_emb(q, here)", draws="turn it once", why="Caches raw keys."),
        slip(TURN_BOTH, "k = apply_rotary_emb(k, here)", draws="query is not turned", why="Turns what is cached."),
        slip("torch.cat([k_cache, k], 1), torch.cat([v_cache, v], 1)",
             "torch.cat([apply_rotary_emb(k_cache, freqs_cis[:T]), k], 1), torch.cat([v_cache, v], 1)",
             draws="a second time", why="Turns all keys at every step."),
        slip(SPREAD, SPREAD.replace("_interleave(share, 2)", "(1, 1, share, 1)"), draws="repeat_interleave",
             why="repeat and repeat_interleave give the same shape."),
        slip(APPEND + SPREAD, f"old = k_cache, v_cache\n    {APPEND}" + SPREAD.replace("k_cache", "old[0]").replace(
             "v_cache", "old[1]"), draws="append first", why="Looks first and remembers afterwards."),
    ),
)  # fmt: skip


# 2.5 ------------------------------------------------------------------------------------------------------------------


def users_that_fit(cfg, context, memory):
    """How many users with `context` tokens each fit into `memory` bytes beside the weights; BF16."""
    weights = 2 * params(cfg).total
    cache = 2 * cfg.n_kv_heads * cfg.v_head_dim * cfg.n_layers * context * 2
    return (memory - weights) // cache


def check_users_that_fit(fn):
    groups = random.choice([2, 4])
    layers = random.randrange(3, 9)
    cfg = replace(dense_active(), n_heads=4 * groups, n_kv_heads=groups, n_layers=layers, n_dense_layers=layers)
    check_users(fn, cfg, random.randrange(700, 900))
    check_users(fn, replace(cfg, n_kv_heads=4 * groups), random.randrange(300, 400))


def check_users(fn, c: Config, context: int):
    weights, one = 2 * params(c).total, 4 * c.n_kv_heads * c.v_head_dim * c.n_layers * context
    memory = weights + 96 * one + one // 2  # half a user is left over
    what = f"users of {context} tokens, {c.n_layers} layers, {c.n_heads} heads, {c.n_kv_heads} of keys and values"
    expect_equal(fn(c, context, memory), 96, what=what, causes=[
        (193, "Twice too many: either the two numbers of a feature, one for the key and one for the value, or the two "
         "bytes of a number are missing."),
        (386, "Four times too many: count a key and a value (2), and two bytes a number (2)."),
        ((memory - weights) // (one * c.n_heads // c.n_kv_heads), "That keeps a key and a value for each query head: "
         "the cache has n_kv_heads of them."),
        ((memory - weights) // (one // c.n_layers), "That is the cache of one layer: each layer has its own."),
        (memory // one, "The weights are in that memory too: what is left for users is memory minus weights."),
        ((memory - weights // 2) // one, "The weights are counted with one byte each: BF16 takes two."),
        (97, "Half a user does not fit: round down."),
        (lambda got: 96 < got < 97, "Half a user does not fit: a whole number, rounded down."),
        ((memory - weights) // (one // context), "That is how many tokens fit; a user has `context` of them."),
    ])  # fmt: skip


USERS_THAT_FIT = define(
    "2.5", "How many users fit", minutes=5, difficulty=1,
    statement="""
        Write `users_that_fit(cfg, context, memory)`: beside the weights, how many users with `context` tokens each have
        room for their caches in `memory` bytes. Weights and caches are BF16, 2 bytes a number; `params(cfg).total` is
        the number of weights. Use `cfg.n_layers`, `cfg.n_kv_heads` and `cfg.v_head_dim`.
    """,
    hints=(
        "What does one token of one user leave in one layer? Then all layers, all tokens, and bytes.",
        "A key and a value of n_kv_heads x v_head_dim numbers, in each layer, for each token, 2 bytes each.",
        "`(memory - 2 * weights) // (2 * n_kv_heads * v_head_dim * n_layers * context * 2)`",
    ),
    check=check_users_that_fit,
    solution=users_that_fit,
    why="There are two factors of 2, and they have nothing to do with each other: a key and a value, and two bytes a "
    "number. The weights are there once, however many users come; the caches are not.",
    wrong_answers=(
        slip("cache = 2 * cfg", "cache = cfg", draws="Twice too many", why="Counts keys or values, not both."),
        slip("context * 2", "context", draws="Twice too many", why="Numbers taken for bytes."),
        slip("cfg.n_kv_heads", "cfg.n_heads", draws="each query head", why="GQA counted as MHA."),
        slip(" * cfg.n_layers", "", draws="one layer", why="Layers forgotten."),
        slip("(memory - weights)", "memory", draws="weights are in that memory", why="Weights forgotten."),
        slip("weights = 2 *", "weights =", draws="one byte each", why="Bytes of the weights forgotten."),
        slip("// cache", "/ cache", draws="Half a user", why="Not rounded."),
        slip("* context", "", draws="how many tokens", why="One token for a user."),
    ),
)  # fmt: skip
