"""Exercises of chapter 13, supervised fine-tuning: the template as ids, the loss on the answer, who sees whom in a
packed row, and the learning rate.

Source: DeepSeek-V3 (arXiv 2412.19437) section 5.1; the chat template of its tokenizer_config.json.
The wrong answers are mistakes of public training scripts.
Notebook: 13_sft.
"""

from __future__ import annotations

import math
import random

import torch
import torch.nn.functional as F
from torch import Tensor

from minids.attention import segment_mask
from minids.exercises import define, ensure, expect_close, expect_equal, slip, wrong
from minids.tokenizer import default_tokenizer

# 13.1 -----------------------------------------------------------------------------------------------------------------


def template(question, answer, tok):
    """(ids, mask) of one turn: what is read, and which tokens have a loss."""
    read = [tok.bos, tok.user, *tok.encode(question), tok.assistant]
    said = [*tok.encode(answer), tok.eos]
    return read + said, [False] * len(read) + [True] * len(said)


def check_template(fn):
    tok = default_tokenizer()
    for question in (f"What is {random.randrange(10, 99)} + 7?", "Does <｜Assistant｜> end my turn?"):
        answer = f"It is {random.randrange(100)}."
        ids, mask = fn(question, answer, tok)
        want, wanted = tok.chat_with_mask(
            [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        )
        ids = list(ids)
        expect_equal(ids, want, what=f"the ids for the question {question!r}", causes=[
            (lambda got: got.count(tok.assistant) == 2, "The user's words became a control token: whoever types "
             "<｜Assistant｜> opens the assistant's turn. Encode the words as plain text and set the control tokens "
             "by id."),
            (want[:-1], "eos is missing at the end: the model would never learn to stop."),
            (want[1:], "bos is missing: every text of the pre-training began with it."),
            ([i for i in want if i != tok.assistant], "The assistant's turn is not opened: the model could not tell "
             "whose words come next."),
        ])  # fmt: skip
        start = want.index(tok.assistant)
        everything = [True] * len(want)
        expect_equal(list(mask), wanted, what="the mask", causes=[
            ([*wanted[:-1], False], "eos has no loss: the end of the answer is the assistant's to say, and has to be "
             "learned."),
            ([i >= start for i in range(len(want))], "<｜Assistant｜> has a loss: the program writes it."),
            (everything, "Everything has a loss: the question is read, not learned."),
            ([not m for m in wanted], "Turned round: true marks what is learned."),
        ])  # fmt: skip


TEMPLATE = define(
    "13.1", "A question and its answer as ids", minutes=10, difficulty=2,
    statement="""
        Write `template(question, answer, tok)`: the pair (ids, mask) of one turn, both lists. The ids are bos, the user
        token, the question, the assistant token, the answer, eos. The mask is True where the *assistant* speaks: those
        tokens will have a loss. `tok` has the ids `bos`, `eos`, `user`, `assistant`, and `tok.encode(text)`.
    """,
    hints=(
        "Which of the six parts does the model itself have to write when it answers?",
        "Words go through `tok.encode`, control tokens are set by their ids. The model writes the answer and eos.",
        "`read = [bos, user, *question, assistant]`, `said = [*answer, eos]`; the mask is False on all of `read`.",
    ),
    check=check_template,
    solution=template,
    why="Words are never searched for control tokens, so nothing that a user types can act as one. eos belongs to the "
    "answer: a model without a loss on it talks on, usually as the next user.",
    wrong_answers=(
        wrong("""
            def template(question, answer, tok):
                text = f"<｜begin▁of▁sentence｜><｜User｜>{question}<｜Assistant｜>{answer}<｜end▁of▁sentence｜>"
                ids = tok.encode(text, allow_special=True)
                start = ids.index(tok.assistant)
                return ids, [i > start for i in range(len(ids))]
        """, draws="became a control token", why="The template rendered as a text, and the text encoded."),
        slip("[*tok.encode(answer), tok.eos]", "tok.encode(answer)", draws="never learn to stop", why="No eos."),
        slip("[True] * len(said)", "[True] * (len(said) - 1) + [False]", draws="eos has no loss",
             why="The mask covers the words alone."),
        slip("[False] * len(read) + [True] * len(said)", "[True] * len(read + said)", draws="Everything has a loss",
             why="No mask: the question is learned too."),
        slip("[False] * len(read) + [True] * len(said)", "[False] * (len(read) - 1) + [True] * (len(said) + 1)",
             draws="the program writes it", why="Off by one: a loss on the assistant token."),
        slip("[tok.bos, tok.user", "[tok.user", draws="bos is missing", why="Forgets how every text begins."),
    ),
)  # fmt: skip


# 13.2 -----------------------------------------------------------------------------------------------------------------


def answer_loss(logits, tokens, mask):
    """The mean cross-entropy of the masked tokens; logits [B T W], tokens and mask [B T]."""
    wanted = mask[:, 1:]
    return F.cross_entropy(logits[:, :-1][wanted], tokens[:, 1:][wanted])


def check_answer_loss(fn):
    B, T, W = 3, 11, 17
    logits = 2 * torch.randn(B, T, W, dtype=torch.float64)
    tokens = torch.randint(W, (B, T))
    ends = [random.randrange(6, 9), T, random.randrange(9, T)]  # rows end in padding
    starts = [random.randrange(2, 5), 3, random.randrange(4, 7)]
    mask = torch.tensor([[a <= t < b for t in range(T)] for a, b in zip(starts, ends, strict=True)])
    real = torch.tensor([[t < b for t in range(T)] for b in ends])
    nll = {
        (b, t): -logits[b, t - 1].log_softmax(-1)[tokens[b, t]].item() for b in range(B) for t in range(1, T)
    }  # fmt: skip
    masked = [nll[b, t] for b, t in nll if mask[b, t]]

    def mean(values) -> Tensor:
        values = list(values)
        return torch.tensor(sum(values) / len(values), dtype=torch.float64)

    by_row = [mean(nll[b, t] for t in range(1, T) if mask[b, t]).item() for b in range(B)]
    same = F.cross_entropy(logits[mask], tokens[mask])
    expect_close(fn(logits, tokens, mask), mean(masked), what=f"loss of {len(masked)} masked tokens", causes=[
        (mean(nll[b, t] for b, t in nll if mask[b, t - 1]), "The mask is not shifted: mask[:, :-1] is about the token "
         "that is read at t, the loss is about the one after it. That puts a loss on what follows eos, and none on "
         "the answer's first token."),
        (same, "Nothing is shifted: logits[:, t] predict token t + 1, and here they are compared with token t."),
        (mean(nll.values()), "The mask is not used: the question, and the padding, have a loss."),
        (mean(nll[b, t] for b, t in nll if real[b, t]), "The question has a loss."),
        (torch.tensor(sum(masked) / len(nll), dtype=torch.float64), "The masked-out tokens are counted in the mean: "
         "their zeros make the loss smaller the longer the padding is."),
        (mean(by_row), "That is the mean of each row's mean: a token of a short answer then counts more. Here every "
         "masked token counts the same."),
        (torch.tensor(sum(masked), dtype=torch.float64), "That is the sum: divide by the number of masked tokens."),
        (mean(nll[b, t] for b, t in nll if mask[b, t] and t + 1 < T and mask[b, t + 1]), "The last token of the "
         "answer, its eos, has no loss."),
    ])  # fmt: skip


ANSWER_LOSS = define(
    "13.2", "The loss on the answer", minutes=10, difficulty=2,
    statement="""
        `logits` `[B, T, W]` come from `tokens` `[B, T]`; `logits[:, t]` predict the token at t + 1. `mask` `[B, T]`,
        bool, is True on the answers' tokens. Write `answer_loss(logits, tokens, mask)`: the mean cross-entropy over all
        masked tokens of the batch.
    """,
    hints=(
        "The token at t = 0 is never predicted. Which logits predict the first token of the answer?",
        "Logits lose their last column; tokens lose their first. The mask speaks about tokens: which does it lose?",
        "`wanted = mask[:, 1:]`; pick with it from `logits[:, :-1]` and from `tokens[:, 1:]`.",
    ),
    check=check_answer_loss,
    solution=answer_loss,
    why="The mask moves with the targets, because it says which *targets* count. Picking before the mean keeps zeros "
    "out of it.",
    wrong_answers=(
        slip("mask[:, 1:]", "mask[:, :-1]", draws="mask is not shifted", why="Cut like the logits."),
        slip("wanted = mask[:, 1:]", "wanted = torch.ones_like(mask[:, 1:])", draws="mask is not used",
             why="Loss on the question."),
        wrong("""
            def answer_loss(logits, tokens, mask):
                return F.cross_entropy(logits[mask], tokens[mask])
        """, draws="Nothing is shifted", why="The model is asked to repeat what it reads."),
        wrong("""
            def answer_loss(logits, tokens, mask):
                nll = F.cross_entropy(logits[:, :-1].transpose(1, 2), tokens[:, 1:], reduction="none")
                return (nll * mask[:, 1:]).mean()
        """, draws="counted in the mean", why="Padding and question in the mean, as zeros."),
        wrong("""
            def answer_loss(logits, tokens, mask):
                nll = F.cross_entropy(logits[:, :-1].transpose(1, 2), tokens[:, 1:], reduction="none")
                wanted = mask[:, 1:]
                return ((nll * wanted).sum(1) / wanted.sum(1)).mean()
        """, draws="each row's mean", why="Each answer counts the same."),
        wrong("""
            def answer_loss(logits, tokens, mask):
                wanted = mask[:, 1:] & F.pad(mask[:, 2:], (0, 1))
                return F.cross_entropy(logits[:, :-1][wanted], tokens[:, 1:][wanted])
        """, draws="its eos, has no loss", why="eos left out of the loss."),
    ),
)  # fmt: skip


# 13.3 -----------------------------------------------------------------------------------------------------------------


def may_look(segments):
    """[B S S]: True where token i may look at token j of its packed row; segments [B S]."""
    S = segments.shape[1]
    same = segments[:, :, None] == segments[:, None, :]
    return same & torch.ones(S, S, dtype=torch.bool).tril()


def check_may_look(fn):
    lengths = [random.sample(range(2, 6), 3) for _ in range(2)]
    S = max(map(sum, lengths)) + 1
    rows = [[n for n, many in enumerate(row, 1) for _ in range(many)] for row in lengths]
    segments = torch.tensor([row + [0] * (S - len(row)) for row in rows])
    want = segment_mask(segments)
    causal = torch.ones(S, S, dtype=torch.bool).tril()
    same = segments[:, :, None] == segments[:, None, :]
    got = fn(segments)
    if isinstance(got, Tensor) and got.dtype != torch.bool:
        ensure(got.is_floating_point() is False, "a mask of True and False", got, "Compare, do not add -inf here.")
    expect_equal(got, want, what=f"the mask of rows with samples of {lengths} tokens", causes=[
        (same, "Samples are kept apart, but inside one a token sees what comes after it: the mask must be causal too."),
        (causal.expand_as(want), "Samples see each other: that is the causal mask alone."),
        (want.transpose(1, 2), "Rows and columns are swapped: row i is the token that looks."),
        (~want, "Turned round: True means may look."),
        (same | causal, "Either rule lets it through: both must hold."),
        (same & causal.tril(-1), "A token cannot see itself. Then the first token of each sample sees nothing, and its "
         "softmax is NaN."),
        (same[:1].expand_as(same) & causal, "The first row's samples are used for every row."),
    ])  # fmt: skip


MAY_LOOK = define(
    "13.3", "Who sees whom", minutes=8, difficulty=2,
    statement="""
        `segments` `[B, S]` gives the number of the sample that each token of a packed row belongs to. Write
        `may_look(segments)`: a bool tensor `[B, S, S]`, True at `[b, i, j]` where token i may look at token j.
    """,
    hints=(
        "Two rules: one about samples, one about time.",
        "Compare `segments` with itself, once as a column and once as a row. The other rule is a triangle.",
        "`segments[:, :, None] == segments[:, None, :]`, and `.tril()` of ones.",
    ),
    check=check_may_look,
    solution=may_look,
    why="The result is a chain of triangles along the diagonal. Padding has a number of its own and sees itself: a "
    "token that sees nothing would make NaN.",
    wrong_answers=(
        slip("same & torch.ones(S, S, dtype=torch.bool).tril()", "same", draws="must be causal too",
             why="The block mask without causality."),
        slip("same & torch.ones(S, S, dtype=torch.bool).tril()",
             "torch.ones(S, S, dtype=torch.bool).tril().expand_as(same)", draws="Samples see each other",
             why="As in pre-training."),
        slip(".tril()", ".triu()", draws="Rows and columns", why="The wrong triangle."),
        slip("same & ", "same | ", draws="both must hold", why="or for and."),
        slip(".tril()", ".tril(-1)", draws="cannot see itself", why="The diagonal left out."),
    ),
)  # fmt: skip


# 13.4 -----------------------------------------------------------------------------------------------------------------


def rate(step, steps, high=5e-6, low=1e-6):
    """The learning rate after `step` of `steps` steps: a cosine from high to low."""
    done = step / steps
    return low + (high - low) * (1 + math.cos(math.pi * done)) / 2


def check_rate(fn):
    steps = random.randrange(90, 130)
    for step in (steps // 3, 0, steps // 7, steps // 2, steps):
        done = step / steps
        high, low = 5e-6, 1e-6
        half = (1 + math.cos(math.pi * done)) / 2
        want = low + (high - low) * half
        expect_close(fn(step, steps), want, what=f"the rate after {step} of {steps} steps", rtol=1e-6, causes=[
            (high + (low - high) * done, "A straight line: the cosine begins and ends level."),
            (high * half, "It falls to 0: the paper's ends at 1e-6."),
            (low + high * half, "It begins at 6e-6: what is scaled by the cosine is the difference, high - low."),
            (low + (high - low) * math.cos(math.pi / 2 * done), "A quarter of a wave: it ends steep. Half a wave is "
             "level at both ends."),
            (low + (high - low) * (1 - math.cos(math.pi * done)) / 2, "It rises."),
            (low + (high - low) * math.cos(math.pi * done), "cos runs from 1 to -1: take (1 + cos) / 2."),
            (low + (high - low) * (1 + math.cos(2 * math.pi * done)) / 2, "A whole wave: at the end it is back at the "
             "top."),
            (high * (low / high) ** done, "That is an exponential decay."),
        ], atol=1e-12)  # fmt: skip


RATE = define(
    "13.4", "From 5e-6 to 1e-6", minutes=6, difficulty=1,
    statement="""
        V3 fine-tunes with a learning rate that follows a cosine from $5 \\cdot 10^{-6}$ to $1 \\cdot 10^{-6}$. Write
        `rate(step, steps)`: the rate after `step` of `steps` steps, 5e-6 at `step = 0` and 1e-6 at `step = steps`.
    """,
    hints=(
        "Make a curve that falls from 1 to 0 first, then scale it.",
        "$(1 + \\cos(\\pi\\, t)) / 2$ falls from 1 to 0 as t goes from 0 to 1.",
        "low + (high - low) times that, with t = step / steps.",
    ),
    check=check_rate,
    solution=rate,
    why="The floor is a fifth of the start: the last samples still teach something. Both epochs share one decay.",
    wrong_answers=(
        slip("(1 + math.cos(math.pi * done)) / 2", "(1 - done)", draws="A straight line", why="Linear decay."),
        slip("low + (high - low) * (1", "high * (1", draws="falls to 0", why="The usual cosine, without a floor."),
        slip("(high - low)", "high", draws="begins at 6e-6", why="The floor added on top."),
        slip("(1 + math.cos(math.pi * done)) / 2", "math.cos(math.pi / 2 * done)", draws="A quarter",
             why="Half of the half wave."),
        slip("(1 + math", "(1 - math", draws="It rises", why="A sign."),
    ),
)  # fmt: skip
