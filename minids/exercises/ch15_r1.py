"""Exercises of chapter 15, R1: the language reward, the filter of rejection sampling, the pairwise loss, cons@k.

Source: DeepSeek-R1 (arXiv 2501.12948) sections 2.3.2 to 2.3.4; the pairwise loss is Bradley and Terry's. The wrong
answers are mistakes seen in public implementations and explanations.
Notebook: 15_r1.
"""

from __future__ import annotations

import random
from collections import Counter

import torch
import torch.nn.functional as F

from minids.exercises import define, ensure, expect_close, expect_equal, slip, wrong

# 15.1 -----------------------------------------------------------------------------------------------------------------


def language_reward(words, right, correct):
    """Accuracy plus the share of words of the language asked for.

    words: list of the thinking's words; right: set of that language's words; correct: was the answer right?
    """
    share = sum(word in right for word in words) / len(words) if words else 0.0
    return float(correct) + share


def check_language_reward(fn):
    english, chinese = ["one", "three", "seven", "eleven"], ["一", "三", "七"]
    for correct in (False, True):
        a, b = random.randrange(2, 5), random.randrange(5, 8)
        words = [random.choice(english) for _ in range(a)] + [random.choice(chinese) for _ in range(b)]
        random.shuffle(words)
        share, letters = a / (a + b), sum(len(w) for w in words if w in english) / sum(map(len, words))
        expect_close(float(fn(words, set(english), correct)), correct + share, atol=1e-9,
                     what=f"the reward of {a} words of the language and {b} others, the answer "
                          f"{'right' if correct else 'wrong'},", causes=[
            (correct + letters, "Letters are counted, not words: an English word would weigh more than a Chinese one."),
            (share, "The accuracy is missing: a wrong answer would be paid like a right one."),
            (correct * share, "Multiplied. R1 adds the two: so a wrong answer in the right language still earns its "
             "share, and the policy hears about the language from every response."),
            (correct + 1 - share, "The share of the *other* language: what is paid is what grows."),
            (correct + a, "The number of words, not their share: longer thinking would be paid without end."),
        ])  # fmt: skip
    expect_close(float(fn([], set(english), True)), 1.0, atol=1e-9, what="the reward of a right answer without words",
                 causes=[(2.0, "0 / 0 is paid as 1: then to think in no words at all is the surest way to the reward. "
                          "Pay 0.")])  # fmt: skip


LANGUAGE_REWARD = define(
    "15.1", "In one language", minutes=7, difficulty=1,
    statement="""
        `words` are the words of the thinking, `right` the set of all words of the language asked for, `correct` says
        whether the answer was right. Write `language_reward(words, right, correct)`: the accuracy, 1 or 0, plus the
        share of the words that are of that language. No words at all earn no share.
    """,
    hints=(
        "A share has two counts. Which one can be 0?",
        "`sum(word in right for word in words)` counts one of them.",
        "Divide by `len(words)` if there are any, else take 0, and add `float(correct)`.",
    ),
    check=check_language_reward,
    solution=language_reward,
    why="Both are added with weight 1, as in R1. The share is bounded, so more words pay nothing; and silence is not "
    "paid, or the policy would stop thinking.",
    wrong_answers=(
        wrong("""
            def language_reward(words, right, correct):
                letters = sum(len(word) for word in words if word in right)
                return float(correct) + (letters / sum(map(len, words)) if words else 0.0)
        """, draws="Letters are counted", why="Characters are easier to count than words."),
        slip("float(correct) + share", "float(correct) * share", draws="Multiplied", why="As a factor."),
        slip("word in right for", "word not in right for", draws="other* language", why="The wrong language's share."),
        slip("float(correct) + share", "share", draws="accuracy is missing", why="The language alone."),
        slip(" / len(words) if words else 0.0", "", draws="number of words", why="No division."),
        slip("if words else 0.0", "if words else 1.0", draws="no words at all", why="Nothing wrong was said."),
    ),
)  # fmt: skip


# 15.2 -----------------------------------------------------------------------------------------------------------------


def keep(samples):
    """The samples to learn from: right, in one language, each (prompt, text) once, in their order.

    samples: list of (prompt, text, correct, share).
    """
    good = [(prompt, text) for prompt, text, correct, share in samples if correct and share == 1]
    return list(dict.fromkeys(good))


def check_keep(fn):
    made = [(f"q{random.randrange(4)}", f"t{random.randrange(3)}", random.random() < 0.6,
             random.choice((1.0, 1.0, 0.75))) for _ in range(40)]  # fmt: skip
    made += [("q0", "t0", True, 1.0), ("q9", "t0", True, 1.0), ("q0", "t0", True, 1.0), ("q0", "bad", False, 1.0),
             ("q0", "mixed", True, 0.9), ("q0", "later", True, 1.0)]  # fmt: skip
    rows = [(p, t) for p, t, correct, share in made if correct and share == 1]
    firsts = list({p: (p, t) for p, t in reversed(rows)}.values())
    texts = list({t: (p, t) for p, t in reversed(rows)}.values())
    got = fn(made)
    ensure(isinstance(got, list), "keep returns a list of (prompt, text) pairs", got)
    expect_equal(got, list(dict.fromkeys(rows)), what=f"what is kept of {len(made)} samples", causes=[
        (rows, "The same text is kept more than once: what the policy says most often would be learned most."),
        (list(dict.fromkeys((p, t) for p, t, correct, _ in made if correct)), "Mixed languages are kept: the filter is "
         "there to throw them out."),
        (list(dict.fromkeys((p, t) for p, t, _, share in made if share == 1)), "Wrong answers are kept: the student "
         "would learn them too."),
        (lambda got: sorted(got) == sorted(firsts), "Only one sample a prompt is left. R1 keeps all the good ones."),
        (lambda got: sorted(got) == sorted(texts), "The same text to another prompt is another sample: compare pairs."),
    ])  # fmt: skip


KEEP = define(
    "15.2", "What is worth learning", minutes=7, difficulty=1,
    statement="""
        Each sample is `(prompt, text, correct, share)`: `share` is the language's share, from 0 to 1. Write
        `keep(samples)`: the list of `(prompt, text)` pairs of those that are right and wholly in one language, each
        pair once, in the order of their first appearance.
    """,
    hints=(
        "Two conditions and one more rule: no pair twice.",
        "A `set` would lose the order. What keeps keys in order?",
        "`list(dict.fromkeys(pairs))` drops what was there before.",
    ),
    check=check_keep,
    solution=keep,
    why="The filter is the whole teacher: the next model imitates whatever passes. Double texts go, or the policy's "
    "habits would be amplified and not its best work.",
    wrong_answers=(
        slip("list(dict.fromkeys(good))", "good", draws="more than once", why="Doubles stay."),
        slip(" and share == 1", "", draws="Mixed languages", why="Only the answer is looked at."),
        slip("if correct and share == 1", "if share == 1", draws="Wrong answers", why="Only the language is."),
        slip("list(dict.fromkeys(good))", "list({prompt: (prompt, text) for prompt, text in reversed(good)}.values())",
             draws="one sample a prompt", why="A dictionary by prompt."),
        slip("list(dict.fromkeys(good))", "list({text: (prompt, text) for prompt, text in reversed(good)}.values())",
             draws="compare pairs", why="Doubles by text."),
    ),
)  # fmt: skip


# 15.3 -----------------------------------------------------------------------------------------------------------------


def pairwise_loss(taken, other):
    """The loss of a reward model: scores of the taken responses and of the ones beside them, both [N]."""
    return -F.logsigmoid(taken - other).mean()


def check_pairwise_loss(fn):
    n = random.randrange(6, 12)
    taken, other = torch.randn(n, dtype=torch.float64) + 0.5, 2 * torch.randn(n, dtype=torch.float64)
    d = taken - other
    expect_close(torch.as_tensor(fn(taken, other)), -d.sigmoid().log().mean(), what=f"the loss of {n} pairs", causes=[
        (-(-d).sigmoid().log().mean(), "The sign: this teaches the model to score the refused one higher."),
        (d.sigmoid().log().mean(), "A loss is made small: take the minus."),
        (-d.mean(), "The mean difference of scores has no lowest value: the scores would grow without end. The "
         "logarithm of the sigmoid stops rewarding a pair that is decided."),
        (-(taken.mean() - other.mean()).sigmoid().log(), "The means are compared, not the pairs: who was better than "
         "whom is lost."),
        (-d.sigmoid().mean(), "The logarithm is missing: a pair that is badly wrong has hardly any gradient."),
        (-(taken[:, None] - other).sigmoid().log().mean(), "Every taken one is compared with every other one: they "
         "answer different prompts, and the reader never compared them."),
        (-d.sigmoid().log().sum(), "The sum; the mean over the pairs is asked for."),
    ])  # fmt: skip


PAIRWISE_LOSS = define(
    "15.3", "The better of two", minutes=8, difficulty=2,
    statement="""
        By Bradley and Terry, a reader takes the first of two responses with probability
        $\\sigma(s_1 - s_2)$. Write `pairwise_loss(taken, other)`: the mean of
        $-\\log \\sigma(s_{taken} - s_{other})$ over the pairs, `taken` and `other` of shape `[N]`.
    """,
    hints=(
        "What is the probability of the choice that was made?",
        "A loss is minus its logarithm. Pair by pair, then the mean.",
        "`F.logsigmoid(taken - other)`: minus its mean.",
    ),
    check=check_pairwise_loss,
    solution=pairwise_loss,
    why="Only differences count, so scores have no zero, and a score is comparable within one prompt alone. "
    "`logsigmoid` is the safe way to write log of a sigmoid.",
    wrong_answers=(
        slip("taken - other", "other - taken", draws="refused one", why="The difference the other way round."),
        slip("-F.logsigmoid", "F.logsigmoid", draws="take the minus", why="The log-likelihood, not a loss."),
        slip("-F.logsigmoid(taken - other).mean()", "-(taken - other).mean()", draws="without end", why="No sigmoid."),
        slip("-F.logsigmoid(taken - other).mean()", "-F.logsigmoid(taken.mean() - other.mean())",
             draws="means are compared", why="The mean of the rewards first."),
        slip("F.logsigmoid(taken - other)", "torch.sigmoid(taken - other)", draws="logarithm is missing",
             why="The mean probability."),
        slip("taken - other", "taken[:, None] - other", draws="different prompts", why="All against all."),
        slip(".mean()", ".sum()", draws="The sum", why="A sum."),
    ),
)  # fmt: skip


# 15.4 -----------------------------------------------------------------------------------------------------------------


def cons_at_k(answers, right, k):
    """Whether the vote of the first k answers is right: the most frequent one, of equals the earliest; None is no vote.

    answers: list of texts or None, one a sample; right: the right answer.
    """
    votes = Counter(a for a in answers[:k] if a is not None)
    return bool(votes) and votes.most_common(1)[0][0] == right


def check_cons_at_k(fn):
    def ask(answers, right, k, cause):
        votes = Counter(a for a in answers[:k] if a is not None)
        want = bool(votes) and votes.most_common(1)[0][0] == right
        expect_equal(bool(fn(list(answers), right, k)), want, what=f"cons@{k} of {answers} when {right} is right,",
                     causes=[(not want, cause)])  # fmt: skip

    a, b, c, d = random.sample(["12", "13", "14", "15"], 4)
    ask([b, a, b], a, 3, "One right answer among them is pass@k. A vote needs the most frequent one.")
    ask([c, a, b, a, d], a, 5, "An absolute majority is not needed: the most frequent answer wins.")
    ask([None, a, None, None, b, a], a, 6, "What did not parse is counted as an answer: None is no vote.")
    ask([a, b, b, a], a, 4, "Of equally frequent answers the earliest one counts, here and in `minids`.")
    ask([b, a, a, b], a, 4, "Of equally frequent answers the earliest one counts, here and in `minids`.")
    ask([a, b, b, a, a], a, 3, "Only the first k samples vote.")
    ask([None, None], a, 2, "Where nothing parsed there is no vote, and nothing is right.")


CONS_AT_K = define(
    "15.4", "A vote", minutes=8, difficulty=2,
    statement="""
        `answers` holds one answer a sample, a text, or None where nothing parsed. Write `cons_at_k(answers, right, k)`:
        True when the most frequent answer among the first `k` is `right`. Of equally frequent ones the earliest counts;
        None has no vote; without any vote the result is False.
    """,
    hints=(
        "Who may vote? Throw the others out first.",
        "`collections.Counter` counts, and keeps the order in which it met the answers.",
        "`Counter(...).most_common(1)[0][0]`; ask before whether there are any votes.",
    ),
    check=check_cons_at_k,
    solution=cons_at_k,
    why="R1's cons@64 is this, over 64 samples. A vote needs no judge: it is right whenever the right answer is more "
    "frequent than each single wrong one, even if wrong ones are more in all.",
    wrong_answers=(
        wrong("""
            def cons_at_k(answers, right, k):
                return right in answers[:k]
        """, draws="pass@k", why="Any right one."),
        wrong("""
            from collections import Counter
            def cons_at_k(answers, right, k):
                return Counter(answers[:k]).most_common(1)[0][0] == right
        """, draws="None is no vote", why="What did not parse votes too."),
        wrong("""
            def cons_at_k(answers, right, k):
                return 2 * answers[:k].count(right) > k
        """, draws="absolute majority", why="More than half."),
        wrong("""
            def cons_at_k(answers, right, k):
                said = [a for a in answers[:k] if a is not None]
                return bool(said) and max(sorted(said), key=said.count) == right
        """, draws="the earliest one counts", why="Ties by the alphabet."),
        slip("answers[:k]", "answers", draws="first k", why="All samples vote."),
    ),
)  # fmt: skip
