"""Exercises of chapter 18, comparing two models: paired differences, false alarms, and what a nat a token is worth.

Source: Student's t test (1908); bits per byte as in arXiv 2101.00027 section 3. The wrong answers are mistakes seen in
public comparisons of models.
Notebook: 18_capstone.
"""

from __future__ import annotations

import math
import random
import statistics

from minids.exercises import define, expect_close, slip, wrong

# 18.1 -----------------------------------------------------------------------------------------------------------------


def paired(reference, change):
    """(mean difference, its standard error) of two lists of numbers, paired by seed."""
    d = [c - r for r, c in zip(reference, change, strict=True)]
    return statistics.mean(d), statistics.stdev(d) / math.sqrt(len(d))


def check_paired(fn):
    n = random.randrange(4, 7)
    luck = [random.gauss(0, 1) for _ in range(n)]  # what a seed does to both
    reference = [2 + u for u in luck]
    change = [1.9 + u + random.gauss(0, 0.02) for u in luck]
    d = [c - r for r, c in zip(reference, change, strict=True)]
    mean, sd = statistics.mean(d), statistics.stdev(d)
    apart = math.sqrt(statistics.variance(reference) / n + statistics.variance(change) / n)
    expect_close(fn(reference, change), (mean, sd / math.sqrt(n)), what=f"(mean, error) over {n} seeds", causes=[
        ((-mean, sd / math.sqrt(n)), "The difference is the change minus the reference: lower is better, so a better "
         "change has a negative one."),
        ((mean, sd), "That is the deviation of one difference. The mean of n differences is surer: divide by sqrt(n)."),
        ((mean, sd / n), "Divided by n: the error of a mean falls with the root of n."),
        ((mean, apart), "The two lists are taken as strangers. Both saw the same seeds: first the differences, then "
         "their "
         "spread."),
        ((mean, statistics.pstdev(d) / math.sqrt(n)), "`pstdev` divides by n, as if the mean were known: use `stdev`."),
    ])  # fmt: skip


PAIRED = define(
    "18.1", "The same seeds", minutes=8, difficulty=2,
    statement="""
        `reference[i]` and `change[i]` come from runs with the same seed i. Write `paired(reference, change)`: the
        mean of
        the differences (change minus reference), and its standard error.
    """,
    hints=(
        "Make one list of two: what did the change do, seed by seed?",
        "`statistics.stdev` gives the deviation of one difference. And of the mean of n?",
        "`(statistics.mean(d), statistics.stdev(d) / math.sqrt(len(d)))`.",
    ),
    check=check_paired,
    solution=paired,
    why="A seed moves both runs together. In the difference that common part is gone, and what is left is the change.",
    wrong_answers=(
        slip("c - r", "r - c", draws="change minus the reference", why="The other way round."),
        slip(" / math.sqrt(len(d))", "", draws="deviation of one difference", why="Deviation for error."),
        slip("math.sqrt(len(d))", "len(d)", draws="Divided by n", why="No root."),
        slip("statistics.stdev(d) / math.sqrt(len(d))",
             "math.sqrt((statistics.variance(reference) + statistics.variance(change)) / len(d))",
             draws="taken as strangers", why="Unpaired."),
        slip("statistics.stdev", "statistics.pstdev", draws="as if the mean were known", why="The population's."),
    ),
)  # fmt: skip


# 18.2 -----------------------------------------------------------------------------------------------------------------


def false_alarm(k, rate=0.05):
    """The chance of at least one false verdict in k comparisons, each wrong at `rate`."""
    return 1 - (1 - rate) ** k


def check_false_alarm(fn):
    k, rate = random.randrange(5, 20), random.uniform(0.02, 0.08)
    expect_close(fn(k, rate), 1 - (1 - rate) ** k, what=f"the chance with {k} comparisons at {rate:.3f}", causes=[
        (k * rate, "k times the rate is the expected number of false ones; as a chance it would pass 1 for large k."),
        (rate, "That is the chance of one comparison."),
        ((1 - rate) ** k, "The chance that all are right: take it from 1."),
        (rate**k, "The chance that all are wrong."),
    ])  # fmt: skip


FALSE_ALARM = define(
    "18.2", "Look often enough", minutes=5, difficulty=1,
    statement="""
        You try `k` changes that do nothing. Each comparison says "better" or "worse" with probability `rate` all the
        same.
        Write `false_alarm(k, rate)`: the chance that at least one of them does.
    """,
    hints=(
        "When is there no false alarm at all?",
        "All k must be quiet; they are independent.",
        "1 minus (1 - rate) to the power k.",
    ),
    check=check_false_alarm,
    solution=false_alarm,
    why="With twenty tries at 5 % the chance is 64 %. Whoever shows the best of twenty shows luck.",
    wrong_answers=(
        slip("1 - (1 - rate) ** k", "k * rate", draws="expected number", why="A sum of chances."),
        slip("1 - (1 - rate) ** k", "rate", draws="chance of one", why="k is not used."),
        slip("1 - (1", "(1", draws="all are right", why="The complement."),
        slip("1 - (1 - rate) ** k", "rate ** k", draws="all are wrong", why="All at once."),
    ),
)  # fmt: skip


# 18.3 -----------------------------------------------------------------------------------------------------------------


def bits_per_byte(nats_per_token, n_tokens, n_bytes):
    """Bits per byte from a mean loss in nats a token; n_tokens stand for n_bytes."""
    return nats_per_token * n_tokens / math.log(2) / n_bytes


def check_bits_per_byte(fn):
    nats, tokens = random.uniform(1, 4), random.randrange(500, 900)
    n_bytes = int(tokens * random.uniform(2.5, 4))
    want = nats * tokens / math.log(2) / n_bytes
    expect_close(fn(nats, tokens, n_bytes), want, what=f"{nats:.2f} nats, {tokens} tokens, {n_bytes} bytes", causes=[
        (nats * tokens / n_bytes, "These are nats a byte: a bit is ln 2 nats."),
        (nats / math.log(2), "These are bits a token: another tokenizer would change the number, with the same model."),
        (nats * math.log(2) * tokens / n_bytes, "Multiplied by ln 2; a nat is more than a bit."),
        (nats / math.log(2) * n_bytes / tokens, "Tokens and bytes are swapped."),
        (nats / math.log(2) / n_bytes, "The loss is a mean a token: take the sum over all tokens first."),
    ])  # fmt: skip


BITS_PER_BYTE = define(
    "18.3", "A unit that survives the tokenizer", minutes=5, difficulty=1,
    statement="""
        A model has a mean loss of `nats_per_token` on a text of `n_tokens` tokens that stand for `n_bytes` bytes. Write
        `bits_per_byte(nats_per_token, n_tokens, n_bytes)`.
    """,
    hints=(
        "What is the loss of the whole text?",
        "A nat is 1 / ln 2 bits.",
        "Sum over the tokens, to bits, then divide by the bytes.",
    ),
    check=check_bits_per_byte,
    solution=bits_per_byte,
    why="The text has the same bytes for every tokenizer. So a change of the vocabulary can be compared too.",
    wrong_answers=(
        slip(" / math.log(2)", "", draws="nats a byte", why="No conversion."),
        slip(" * n_tokens / math.log(2) / n_bytes", " / math.log(2)", draws="bits a token", why="Per token."),
        slip("/ math.log(2)", "* math.log(2)", draws="Multiplied by ln 2", why="The wrong way."),
        wrong("import math\ndef bits_per_byte(nats_per_token, n_tokens, n_bytes):\n"
              "    return nats_per_token / math.log(2) * n_bytes / n_tokens", draws="swapped", why="Upside down."),
        slip(" * n_tokens", "", draws="mean a token", why="One token's loss over all bytes."),
    ),
)  # fmt: skip
