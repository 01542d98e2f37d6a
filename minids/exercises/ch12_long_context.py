"""Exercises of chapter 12, long contexts: turns within the trained length, the ramp's ends, the bent frequencies, and
the temperature, once.

Source: YaRN (arXiv 2309.00071) section 3; DeepSeek-V3 (arXiv 2412.19437) section 4.3.
The wrong answers are mistakes seen in public implementations and explanations.
Notebook: 12_long_context.
"""

from __future__ import annotations

import math
import random

import torch

from minids.exercises import define, expect_close, slip, wrong

# 12.1 -----------------------------------------------------------------------------------------------------------------


def turns(dim, theta, length):
    """How often each of the dim/2 pairs turns within `length` tokens, a float64 tensor."""
    i = torch.arange(dim // 2, dtype=torch.float64)
    f = theta ** (-2 * i / dim)
    return length * f / (2 * math.pi)


def check_turns(fn):
    dim, theta, length = 2 * random.randrange(5, 17), random.choice((1e3, 1e4, 5e5)), random.randrange(50, 5000)
    i = torch.arange(dim // 2, dtype=torch.float64)
    want = torch.tensor(
        [length * theta ** (-2 * j / dim) / (2 * math.pi) for j in range(dim // 2)], dtype=torch.float64
    )
    expect_close(fn(dim, theta, length), want, what="the turns", causes=[
        (want * 2 * math.pi, "Those are radians: a turn has 2 pi of them."),
        (length * theta ** (-i / dim) / (2 * math.pi), "The exponent is -2i/dim, with i from 0 to dim/2 - 1: theta is "
         "nearly reached by the last pair."),
        (1 / want, "That is trained lengths a turn; the question is turns a trained length."),
        (2 * math.pi / (theta ** (-2 * i / dim)), "Those are the tokens that a turn takes: divide the length by them."),
        (length * theta ** (2 * i / dim) / (2 * math.pi), "The later pairs turn slower, not faster: the exponent is "
         "negative."),
        (lambda got: len(got) == dim, "There is one frequency a pair, dim/2 in all."),
    ])  # fmt: skip


TURNS = define(
    "12.1", "How often does each pair turn?", minutes=6, difficulty=1,
    statement=r"""
        RoPE turns pair $i$ of `dim` features by $f_i = \theta^{-2i/\mathrm{dim}}$ radians a token. Write
        `turns(dim, theta, length)`: how many whole or part turns each pair makes within `length` tokens, a float64
        tensor of dim/2 numbers. A pair with less than one turn has angles that training never showed.
    """,
    hints=(
        "How far, in radians, has pair i turned after `length` tokens?",
        "A turn has $2\\pi$ radians. The pairs are $i = 0 .. \\mathrm{dim}/2 - 1$.",
        "`length * theta ** (-2 * i / dim) / (2 * math.pi)`",
    ),
    check=check_turns,
    solution=turns,
    why="YaRN sorts the pairs by this number alone: with at least beta_fast turns a pair stays as it is, with at most "
    "beta_slow it is slowed down.",
    wrong_answers=(
        slip(" / (2 * math.pi)", "", draws="radians", why="The frequency is in radians a token."),
        slip("-2 * i / dim", "-i / dim", draws="exponent is -2i/dim", why="Counts features instead of pairs."),
        slip("length * f / (2 * math.pi)", "2 * math.pi / (length * f)", draws="turns a trained length",
             why="Upside down."),
        slip("length * f / (2 * math.pi)", "2 * math.pi / f", draws="tokens that a turn takes", why="The wavelength."),
        slip("-2 * i", "2 * i", draws="exponent is", why="Forgets the sign."),
        slip("torch.arange(dim // 2,", "torch.arange(dim,", draws="one frequency a pair", why="One a feature."),
    ),
)  # fmt: skip


# 12.2 -----------------------------------------------------------------------------------------------------------------


def ramp_ends(dim, theta, length, beta_fast, beta_slow):
    """(low, high): up to pair low nothing changes, from pair high on the frequency is divided by s."""

    def corr(r):
        return dim * math.log(length / (2 * math.pi * r)) / (2 * math.log(theta))

    low = max(math.floor(corr(beta_fast)), 0)
    high = min(math.ceil(corr(beta_slow)), dim - 1)
    return low, high


def check_ramp_ends(fn):
    settings = [
        (64, 1e4, 4096, 32, 1),  # V3
        (2 * random.randrange(20, 50), random.choice((1e4, 5e5)), random.randrange(3000, 9000), 32, 1),
        (8, 1e4, 30_000, 16, 0.5),  # the ramp ends beyond the last pair
        (16, 1e4, 32, 32, 1),  # no pair turns 32 times
    ]
    for dim, theta, length, fast, slow in settings:
        corr = [dim * math.log(length / (2 * math.pi * r)) / (2 * math.log(theta)) for r in (fast, slow)]
        radians = [dim * math.log(length / r) / (2 * math.log(theta)) for r in (fast, slow)]
        want = clamped(corr, dim)
        what = f"(low, high) for dim {dim}, theta {theta:g}, length {length}, betas {fast} and {slow}"
        expect_close(fn(dim, theta, length, fast, slow), want, what=what, causes=[
            (swapped(corr, dim), "beta_fast and beta_slow are swapped: many turns belong to the fast pairs, which have "
             "the low numbers."),
            ((want[0], min(math.ceil(corr[1]), dim // 2 - 1)), "The upper clamp is dim - 1, not dim/2 - 1: where the "
             "ramp would end beyond the last pair, it is cut there but not made steeper."),
            ((math.floor(corr[0]), want[1]), "There is no pair below 0: low is at least 0."),
            ((max(round(corr[0]), 0), min(round(corr[1]), dim - 1)), "Not rounded to the nearest: low goes down and "
             "high goes up, so that the ramp covers both ends."),
            ((max(math.ceil(corr[0]), 0), min(math.floor(corr[1]), dim - 1)), "Low goes down and high goes up, not the "
             "other way round."),
            (clamped(radians, dim), "2 pi is missing: beta counts turns, not radians."),
            (clamped([2 * c for c in corr], dim), "The 2 below is missing: f_i has the exponent -2i/dim."),
            (lambda got, corr=corr: abs(float(got[0]) - corr[0]) < 1e-9, "The ends are whole pairs: low is rounded "
             "down, high up."),
        ])  # fmt: skip


def clamped(corr: list[float], dim: int) -> tuple[int, int]:
    return max(math.floor(corr[0]), 0), min(math.ceil(corr[1]), dim - 1)


def swapped(corr: list[float], dim: int) -> tuple[int, int]:
    return clamped([corr[1], corr[0]], dim)


RAMP_ENDS = define(
    "12.2", "Where does the ramp begin and end?", minutes=12, difficulty=2,
    statement=r"""
        The pair that makes $r$ turns within the trained length $L_0$ is
        $$\mathrm{corr}(r) = \frac{R \ln\big(L_0 / (2\pi r)\big)}{2 \ln\theta}$$
        Write `ramp_ends(dim, theta, length, beta_fast, beta_slow)`: the ramp's two ends as whole numbers. `low` is
        rounded down and at least 0; `high` is rounded up and at most `dim - 1` (so the code of DeepSeek, and that of
        `transformers`).
    """,
    hints=(
        "Solve turns(i) = r for i: where does the formula come from? Then: which of the two betas belongs to low?",
        "Fast pairs have low numbers and make many turns: low belongs to beta_fast.",
        "`max(math.floor(corr(beta_fast)), 0), min(math.ceil(corr(beta_slow)), dim - 1)`",
    ),
    check=check_ramp_ends,
    solution=ramp_ends,
    why="For V3: 10 and 23. The clamp at dim - 1 looks odd, since pairs end at dim/2 - 1; it only matters where the "
    "ramp is cut, and there whoever clamps lower gets other frequencies than the released code.",
    wrong_answers=(
        wrong("""
            def ramp_ends(dim, theta, length, beta_fast, beta_slow):
                def corr(r):
                    return dim * math.log(length / (2 * math.pi * r)) / (2 * math.log(theta))

                return max(math.floor(corr(beta_slow)), 0), min(math.ceil(corr(beta_fast)), dim - 1)
        """, draws="swapped", why="The paper calls them alpha and beta, and lists the slow one first."),
        slip("dim - 1", "dim // 2 - 1", draws="not dim/2 - 1", why="The number of the last pair."),
        slip("max(math.floor(corr(beta_fast)), 0)", "math.floor(corr(beta_fast))", draws="no pair below 0",
             why="Invisible with V3's numbers."),
        slip("2 * math.pi * r", "r", draws="2 pi is missing", why="Radians for turns."),
        slip("(2 * math.log(theta))", "math.log(theta)", draws="The 2 below is missing", why="-i/dim in mind."),
        wrong("""
            def ramp_ends(dim, theta, length, beta_fast, beta_slow):
                def corr(r):
                    return dim * math.log(length / (2 * math.pi * r)) / (2 * math.log(theta))

                return max(round(corr(beta_fast)), 0), min(round(corr(beta_slow)), dim - 1)
        """, draws="Not rounded to the nearest", why="One rounding for both."),
    ),
)  # fmt: skip


# 12.3 -----------------------------------------------------------------------------------------------------------------


def bend(f, low, high, s):
    """The frequencies f [P] after YaRN: pairs up to low stay, pairs from high on are divided by s."""
    i = torch.arange(len(f), dtype=f.dtype)
    ramp = ((i - low) / (high - low)).clamp(0, 1)
    return f * (1 - ramp) + f / s * ramp


def check_bend(fn):
    P = random.randrange(20, 40)
    low, high, s = random.randrange(2, 6), random.randrange(9, 15), random.randrange(3, 41)
    f = 10_000.0 ** -(torch.arange(P, dtype=torch.float64) / P)
    ramp = torch.tensor([min(max((i - low) / (high - low), 0), 1) for i in range(P)], dtype=torch.float64)
    straight = (torch.arange(P, dtype=torch.float64) - low) / (high - low)
    expect_close(fn(f, low, high, s), f * (1 - ramp) + f / s * ramp, what="the bent frequencies", causes=[
        (f * ramp + f / s * (1 - ramp), "It is the other way round: the fast pairs, with low numbers, stay; the slow "
         "ones are divided by s."),
        (f / s, "That is position interpolation: all pairs are slowed, the fast ones too, and neighbours look alike."),
        (f * (1 - ramp) + f * s * ramp, "Slow pairs must turn s times slower, not faster: divide."),
        (1 / ((1 - ramp) / f + ramp * s / f), "Frequencies are blended, not the wavelengths: between low and high the "
         "two differ."),
        (f / s**ramp, "Frequencies are blended in a straight line, not their logarithms."),
        (f * (1 - straight) + f / s * straight, "The ramp leaves 0 to 1: clamp it."),
        (f * (ramp == 0) + f / s * (ramp > 0), "Between low and high the change is gradual: a ramp, not a step."),
        (f * (ramp < 1) + f / s * (ramp == 1), "Between low and high the change is gradual: a ramp, not a step."),
    ])  # fmt: skip


BEND = define(
    "12.3", "Bend the frequencies", minutes=8, difficulty=2,
    statement="""
        Write `bend(f, low, high, s)`: the frequencies of all pairs after YaRN. Up to pair `low` they stay, from pair
        `high` on they are divided by `s`, and between the two the result goes over from one to the other with
        the straight ramp $(i - low) / (high - low)$.
    """,
    hints=(
        "Make the ramp first: 0 for the fast pairs, 1 for the slow ones. `clamp` cuts it at both ends.",
        "The ramp is the share of the slowed frequency f / s; the rest is f.",
        "`f * (1 - ramp) + f / s * ramp`",
    ),
    check=check_bend,
    solution=bend,
    why="The mistake of the other way round is nasty: the model still runs, but its sense of neighbours is gone "
    "while the slow pairs still meet angles that they never saw.",
    wrong_answers=(
        slip("f * (1 - ramp) + f / s * ramp", "f * ramp + f / s * (1 - ramp)", draws="other way round",
             why="DeepSeek's and transformers' codes hold 1 - ramp in a variable; it is easily turned once too often."),
        slip("f * (1 - ramp) + f / s * ramp", "f / s", draws="position interpolation", why="Interpolates all pairs."),
        slip("f / s * ramp", "f * s * ramp", draws="not faster", why="Wavelength for frequency."),
        slip("f * (1 - ramp) + f / s * ramp", "1 / ((1 - ramp) / f + ramp * s / f)", draws="not the wavelengths",
             why="Blends tokens a turn."),
        slip(".clamp(0, 1)", "", draws="clamp it", why="Right between low and high only."),
        slip("((i - low) / (high - low)).clamp(0, 1)", "(i > low).to(f.dtype)", draws="not a step", why="No ramp."),
    ),
)  # fmt: skip


# 12.4 -----------------------------------------------------------------------------------------------------------------


def logit(q_nope, q_pe, k_nope, k_pe, s):
    """The attention scores [S T] under YaRN with scale s; the pe parts are turned already."""
    m = 0.1 * math.log(s) + 1
    width = q_nope.shape[-1] + q_pe.shape[-1]
    dots = q_nope @ k_nope.T + q_pe @ k_pe.T
    return dots * width**-0.5 * m**2


def check_logit(fn):
    S, T, N, R, s = 3, 5, random.randrange(9, 14), 2 * random.randrange(2, 4), float(random.randrange(4, 41))
    q_nope, k_nope = torch.randn(S, N, dtype=torch.float64), torch.randn(T, N, dtype=torch.float64)
    q_pe, k_pe = torch.randn(S, R, dtype=torch.float64), torch.randn(T, R, dtype=torch.float64)
    m, root = 0.1 * math.log(s) + 1, (N + R) ** -0.5
    nope, pe = q_nope @ k_nope.T, q_pe @ k_pe.T
    both = nope + pe
    expect_close(fn(q_nope, q_pe, k_nope, k_pe, s), both * root * m**2, what="the score", causes=[
        ((nope + pe * m**2) * root * m**2, "The factor is in twice: it multiplies cos and sin of the rotated part or "
         "the whole score, never both. For V3 cos and sin stay as they are."),
        (both * root * m**4, "The factor is in twice: the whole score is multiplied by m^2 once."),
        ((nope + pe * m**2) * root, "Only the rotated part is multiplied. V3's mscale_all_dim means what its name "
         "says: all features of queries and keys."),
        (both * root * m, "m goes to the query and to the key, so a score has m squared."),
        (both * root, "The temperature is missing."),
        (both * root / m**2, "Divided instead of multiplied: over more keys the softmax must be sharper, not flatter."),
        (both * N**-0.5 * m**2, "The root counts all features of a head, N + R."),
        (both * root * (0.1 * math.log10(s) + 1) ** 2, "The logarithm is the natural one."),
        (both * root * (math.log(s) + 1) ** 2, "0.1 is missing: m = 0.1 ln s + 1."),
    ])  # fmt: skip


LOGIT = define(
    "12.4", "The temperature, once and everywhere", minutes=10, difficulty=2,
    statement="""
        A head of V3 compares a query and a key by `N` features without position and `R` rotated ones. Write
        `logit(q_nope, q_pe, k_nope, k_pe, s)`: the scores `[S, T]` that go into the softmax, with YaRN's temperature
        for scale `s`. Queries are `[S, N]` and `[S, R]`, keys `[T, N]` and `[T, R]`; the rotation is done, with cos
        and sin as they are.
    """,
    hints=(
        "First the score without YaRN: the dot product over all N + R features, divided by a root.",
        "$m = 0.1 \\ln s + 1$. As if query and key were both multiplied by it, with all their features.",
        "`(q_nope @ k_nope.T + q_pe @ k_pe.T) * (N + R) ** -0.5 * m**2`",
    ),
    check=check_logit,
    solution=logit,
    why="The factor multiplies queries and keys, hence m squared. YaRN's first code put it into cos and sin, where it "
    "reaches the rotated features only; V3 puts it into the softmax scale, where it reaches all. Doing both gives m^4 "
    "on the rotated part.",
    wrong_answers=(
        slip("q_pe @ k_pe.T", "(m * q_pe) @ (m * k_pe).T", draws="in twice", why="On cos and sin, and in the scale."),
        slip("m**2", "m", draws="m squared", why="The published factor, put in as it is printed."),
        wrong("""
            def logit(q_nope, q_pe, k_nope, k_pe, s):
                m = 0.1 * math.log(s) + 1
                width = q_nope.shape[-1] + q_pe.shape[-1]
                return (q_nope @ k_nope.T + (m * q_pe) @ (m * k_pe).T) * width**-0.5
        """, draws="Only the rotated part", why="On cos and sin, as YaRN does where the whole head is rotated."),
        slip("width = q_nope.shape[-1] + q_pe.shape[-1]", "width = q_nope.shape[-1]", draws="all features of a head",
             why="128 for 192."),
        slip("* m**2", "/ m**2", draws="Divided instead", why="A temperature divides; m is its inverse root."),
        slip("math.log(s)", "math.log10(s)", draws="natural one", why="ln read as lg."),
    ),
)  # fmt: skip
