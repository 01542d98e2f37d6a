"""Exercises of chapter 8, pre-training: a comparable loss, the length of a run, AdamW, micro-batches, the bias.

Source: DeepSeek-V3 (arXiv 2412.19437) section 4.2 and 2.1.2; AdamW is arXiv 1711.05101; the bias rule is arXiv
2408.15664, Algorithm 1. The wrong answers are mistakes seen in public implementations and explanations.
Notebook: 08_pretrain.
"""

from __future__ import annotations

import math
import random

import torch
from torch import nn

from minids.exercises import Wrong, define, expect_close, expect_equal, slip, wrong
from minids.optim import BatchRamp

# 8.1 ------------------------------------------------------------------------------------------------------------------


def bits_per_byte(nats, n_bytes):
    """nats: the losses of each text's tokens, a list of tensors; n_bytes: the bytes of each text, a list of ints."""
    total = sum(losses.sum() for losses in nats)
    return total / math.log(2) / sum(n_bytes)


def check_bits_per_byte(fn):
    lengths = random.sample(range(3, 40), 4)
    nats = [3 * torch.rand(n, dtype=torch.float64) + k for k, n in enumerate(lengths)]
    n_bytes = [n * random.randint(2, 5) + k for k, n in enumerate(lengths)]
    total, n = sum(t.sum() for t in nats), sum(n_bytes)
    ratios = [t.sum() / b for t, b in zip(nats, n_bytes, strict=True)]
    bits = total / math.log(2)
    expect_close(fn(nats, n_bytes), bits / n, what="bits per byte", causes=[
        (total / n, "That is nats per byte: one bit is ln 2 nats."),
        (total * math.log(2) / n, "That multiplies by ln 2: a nat is more than a bit, so the number must grow."),
        (bits / sum(lengths), "That divides by the number of tokens: another tokenizer gives another answer."),
        (sum(ratios) / 4 / math.log(2), "That is the mean of each text's own ratio: short texts count like long ones."),
        (sum(t.mean() for t in nats) / math.log(2) / n, "That adds mean losses: probabilities multiply over tokens."),
        (bits / n / 8, "That divides by bits of text: divide by bytes."),
    ])  # fmt: skip


BITS_PER_BYTE = define(
    "8.1", "A loss that does not depend on the tokenizer", minutes=5, difficulty=1,
    statement="""
        Write `bits_per_byte(nats, n_bytes)` for a set of texts. `nats[i]` is a tensor with the losses of text i's
        tokens in nats; `n_bytes[i]` is that text's length in bytes. Return one number for the whole set: how many bits
        the model needs to write down one byte.
    """,
    hints=(
        "What is the loss of all texts together, if probabilities multiply?",
        "Sum everything first, divide once at the end. A nat is more than a bit, so there are more bits than nats.",
        "The sum of all losses, divided by `math.log(2)`, divided by the sum of the bytes.",
    ),
    check=check_bits_per_byte,
    solution=bits_per_byte,
    why="The texts' probability is a product over tokens, so its logarithm is a sum. Bytes are the same for everybody.",
    wrong_answers=(
        slip(" / math.log(2)", "", draws="nats per byte", why="Nats taken for bits."),
        slip("/ math.log(2)", "* math.log(2)", draws="multiplies by ln 2", why="The conversion the wrong way round."),
        slip("sum(n_bytes)", "sum(map(len, nats))", draws="number of tokens", why="Per token, as logs show it."),
        slip("losses.sum()", "losses.mean()", draws="mean losses", why="Mean and sum mixed up."),
        wrong("""
            def bits_per_byte(nats, n_bytes):
                ratios = [losses.sum() / n for losses, n in zip(nats, n_bytes)]
                return sum(ratios) / len(ratios) / math.log(2)
        """, draws="mean of each text's own ratio", why="An average of averages."),
    ),
)  # fmt: skip


# 8.2 ------------------------------------------------------------------------------------------------------------------


def steps_to(tokens, ramp, seq_len):
    """Optimizer steps until at least `tokens` tokens are read, in sequences of `seq_len`."""
    seen = steps = 0
    while seen < tokens:
        seen += ramp.at(seen) * seq_len
        steps += 1
    return steps


def check_steps_to(fn):
    seq_len, start = random.randint(5, 9), random.randint(3, 6)
    end = start * random.randint(4, 6)
    ramp = BatchRamp(start, end, 400 * seq_len * start)
    tokens = 3 * ramp.tokens + random.randrange(seq_len * end)

    def walked(batch, unit=seq_len):
        seen = steps = 0
        while seen < tokens:
            seen += batch(seen, steps) * unit
            steps += 1
        return steps

    want = walked(lambda seen, _: ramp.at(seen))
    by_mean = (ramp.tokens / ((start + end) / 2) + (tokens - ramp.tokens) / end) / seq_len
    what = f"the steps for {tokens:,} tokens, batch {start} to {end}, sequences of {seq_len}"
    expect_equal(fn(tokens, ramp, seq_len), want, what=what, causes=[
        (walked(lambda seen, _: ramp.at(seen), unit=1), "A batch is counted in sequences: each has seq_len tokens."),
        (walked(lambda _, steps: ramp.at(steps)), "It goes by the tokens read; this gives it the number of steps."),
        (walked(lambda seen, _: ramp.at(seen // seq_len)), "It goes by the tokens read; this gives it sequences."),
        (walked(lambda *_: end), "That has the final batch from the first step on: the ramp is missing."),
        (walked(lambda *_: start), "That keeps the first batch for good: ask the ramp anew at every step."),
        (want - 1, "One too few: the last step is whole, even if it reads more than was left."),
        (want + 1, "One too many: once `tokens` are read, the run is over."),
        (lambda got: abs(got - by_mean) <= 1, "That takes the mean batch: small ones last for more steps."),
    ])  # fmt: skip


STEPS_TO = define(
    "8.2", "How many steps is that?", minutes=8, difficulty=2,
    statement="""
        Write `steps_to(tokens, ramp, seq_len)`: how many optimizer steps it takes until at least `tokens` tokens are
        read. `ramp.at(seen)` is the batch of the next step, in sequences of `seq_len` tokens, when `seen` tokens were
        read before.
    """,
    hints=(
        "The batch depends on what was read, and what is read depends on the batch: walk through the run.",
        "Keep two numbers, tokens seen and steps done. A step adds batch x seq_len to the first and 1 to the second.",
        "`while seen < tokens:` add `ramp.at(seen) * seq_len` to `seen`, and 1 to `steps`.",
    ),
    check=check_steps_to,
    solution=steps_to,
    why="The recipe speaks of steps (warm-up), of tokens (decay, gamma, lambda) and of sequences (the batch). "
    "Nearly every mistake in copying it is a wrong unit.",
    wrong_answers=(
        slip(" * seq_len\n", "\n", draws="counted in sequences", why="The batch taken for tokens."),
        slip("at(seen)", "at(steps)", draws="number of steps", why="The ramp read as one over steps."),
        slip("ramp.at(seen)", "ramp.end", draws="ramp is missing", why="The ramp forgotten."),
        slip("return steps", "return steps - 1", draws="One too few", why="Drops the last step, which reads too much."),
        wrong("""
            def steps_to(tokens, ramp, seq_len):
                mean = (ramp.start + ramp.end) / 2
                return math.ceil((ramp.tokens / mean + (tokens - ramp.tokens) / ramp.end) / seq_len)
        """, draws="mean batch", why="The arithmetic mean, where the logarithmic one is due."),
    ),
)  # fmt: skip


# 8.3 ------------------------------------------------------------------------------------------------------------------


def adamw_update(w, m, v, t, lr, decay, eps):
    """The weights after step t (1 is the first). m and v are the moments, already updated; betas 0.9 and 0.95."""
    m_hat = m / (1 - 0.9**t)
    v_hat = v / (1 - 0.95**t)
    return w * (1 - lr * decay) - lr * m_hat / (v_hat.sqrt() + eps)


def check_adamw_update(fn):
    for t in (1, random.randint(2, 9)):
        check_step_of_adamw(fn, t)


def check_step_of_adamw(fn, t: int):
    lr, decay, eps = 0.05 + 0.1 * random.random(), 0.1 + 0.3 * random.random(), 1e-3 * (1 + random.random())
    w, g = torch.randn(3, 5, dtype=torch.float64), 0.02 * torch.randn(3, 5, dtype=torch.float64)
    m, v = (1 - 0.9**t) * g, (1 - 0.95**t) * (g * g + 1e-4)  # as after t similar gradients
    a, b, kept = g, (g * g + 1e-4).sqrt(), w * (1 - lr * decay)
    early = (m / (1 - 0.9 ** (t - 1)) / ((v / (1 - 0.95 ** (t - 1))).sqrt() + eps)) if t > 1 else g / 0.0
    got = fn(w, m, v, t, lr, decay, eps)
    expect_close(got, kept - lr * a / (b + eps), what=f"the weights after step {t}", causes=[
        (kept - lr * m / (v.sqrt() + eps), "The bias correction is missing: the moments start at 0, and after t steps "
         "hold only 1 - beta^t of what they should."),
        (kept - lr * a / (v.sqrt() + eps), "v is not corrected: it holds only 1 - 0.95^t of what it should."),
        (kept - lr * m / (b + eps), "m is not corrected: it holds only 1 - 0.9^t of what it should."),
        (kept - lr * a / (b * b + eps).sqrt(), "eps is inside the square root: outside, it bounds the divisor by eps, "
         "inside by the root of eps, which is far more."),
        (w - lr * (a + decay * w) / (b + eps), "The decay is divided by sqrt(v), as if it were part of the gradient. "
         "Decoupled means: it shrinks the weight beside the adaptive step."),
        (w * (1 - decay) - lr * a / (b + eps), "The decay does not follow the learning rate: it is lr x decay."),
        (w - lr * a / (b + eps), "The weight decay is missing."),
        (w * (1 + lr * decay) - lr * a / (b + eps), "The sign of the decay: weights shrink."),
        (kept + lr * a / (b + eps), "The sign of the step: downhill is against the gradient."),
        (kept - lr * a / (b * b + eps), "The square root of v is missing."),
        (kept - lr * early if t > 1 else lambda x: not x.isfinite().any(), "The first step is number 1: with t - 1 its "
         "correction divides by 0."),
    ])  # fmt: skip


ADAMW_UPDATE = define(
    "8.3", "AdamW moves a weight", minutes=10, difficulty=2,
    statement="""
        Write `adamw_update(w, m, v, t, lr, decay, eps)`: the weights after step `t`, given the moments that step `t`
        has already updated ($\\beta_1 = 0.9$, $\\beta_2 = 0.95$).

        $$\\hat m = \\frac{m}{1 - \\beta_1^t}, \\qquad \\hat v = \\frac{v}{1 - \\beta_2^t}, \\qquad
        w \\leftarrow w\\,(1 - \\eta\\,\\mathrm{decay}) - \\eta\\, \\frac{\\hat m}{\\sqrt{\\hat v} + \\epsilon}$$
    """,
    hints=(
        "Three traps: what corrects the moments, where eps stands, and what the decay multiplies.",
        "The decay shrinks w itself, by lr x decay; it never meets sqrt(v).",
        "`w * (1 - lr * decay) - lr * m_hat / (v_hat.sqrt() + eps)`, with `m_hat = m / (1 - 0.9**t)`.",
    ),
    check=check_adamw_update,
    solution=adamw_update,
    why="The decay is decoupled (the W of AdamW): in the gradient it would be divided by sqrt(v), and weights with "
    "large gradients would hardly decay. The moments start at 0, so early ones are too small by known factors.",
    wrong_answers=(
        wrong("""
            def adamw_update(w, m, v, t, lr, decay, eps):
                return w * (1 - lr * decay) - lr * m / (v.sqrt() + eps)
        """, draws="bias correction is missing", why="As in RMSProp."),
        slip("(v_hat.sqrt() + eps)", "(v_hat + eps).sqrt()", draws="inside the square root", why="As printed."),
        slip("w * (1 - lr * decay) - lr * m_hat", "w - lr * (m_hat + decay * w)", draws="Decoupled", why="L2."),
        slip("(1 - lr * decay)", "(1 - decay)", draws="does not follow the learning rate", why="A rate of its own."),
        slip("w * (1 - lr * decay)", "w", draws="decay is missing", why="Plain Adam."),
        slip("v / (1 - 0.95**t)", "v", draws="v is not corrected", why="Only one moment corrected."),
        wrong("""
            def adamw_update(w, m, v, t, lr, decay, eps):
                m_hat, v_hat = m / (1 - 0.9 ** (t - 1)), v / (1 - 0.95 ** (t - 1))
                return w * (1 - lr * decay) - lr * m_hat / (v_hat.sqrt() + eps)
        """, draws="number", why="Steps counted from 0."),
    ),
)  # fmt: skip


# 8.4 ------------------------------------------------------------------------------------------------------------------


def batch_gradient(loss_sum, w, parts):
    """w.grad of the mean loss over all targets; loss_sum(w, part) is the SUM over the len(part) targets of a part."""
    n = sum(len(part) for part in parts)
    for part in parts:
        (loss_sum(w, part) / n).backward()
    return w.grad


def check_batch_gradient(fn):
    lengths = random.sample(range(3, 12), 3)
    parts = [torch.randn(n, 4, dtype=torch.float64) + k for k, n in enumerate(lengths)]
    start = torch.randn(4, dtype=torch.float64)
    carried: list[bool] = []  # at each call: had an earlier part been carried back?

    def loss_sum(w, part):
        carried.append(w.grad is not None)
        return ((part @ w - 1) ** 2).sum()

    each = [2 * part.T @ (part @ start - 1) for part in parts]
    means, n = [g / k for g, k in zip(each, lengths, strict=True)], sum(lengths)
    expect_close(fn(loss_sum, nn.Parameter(start.clone()), parts), sum(each) / n, what="the gradient", causes=[
        (sum(means) / len(parts), "That is the mean of the parts' means: a target in a short part weighs more than one "
         "in a long part. Divide each sum by the number of targets in the whole batch."),
        (sum(means), "That adds the parts' means: the gradient grows with the number of parts."),
        (sum(each), "That is the gradient of the sum: it grows with the batch."),
        (sum(each) / len(parts), "That divides by the number of parts: divide by the targets in all of them."),
        (each[-1] / n, "Only the last part is left: gradients must add up until the optimizer steps."),
        (each[0] / n, "Only the first part is there: carry each of them back."),
    ])  # fmt: skip
    if not any(carried):
        cause = "The number is right, but each part's graph is kept until the end: no memory is saved."
        raise Wrong("`backward()` after each part", "no gradient until every part was computed", cause)


BATCH_GRADIENT = define(
    "8.4", "A batch in parts", minutes=8, difficulty=2,
    statement="""
        A batch that does not fit into memory is computed in parts, whose gradients add up in `w.grad`. Write
        `batch_gradient(loss_sum, w, parts)`: the gradient of the **mean loss over all targets**. `loss_sum(w, part)`
        gives the **sum** of the losses of the `len(part)` targets of a part; parts differ in length. Call `backward()`
        for each part, so that only one graph is in memory at a time.
    """,
    hints=(
        "If all parts were one batch, by which number would its sum of losses be divided?",
        "The same number divides every part; find it before the loop.",
        "`n = sum(len(p) for p in parts)`; for each part `(loss_sum(w, part) / n).backward()`; return `w.grad`.",
    ),
    check=check_batch_gradient,
    solution=batch_gradient,
    why="Gradients are linear: parts divided by the whole batch's number of targets add up to the batch's gradient. "
    "The mean of means is right only for parts of equal length; widely used trainers had this wrong until late 2024.",
    wrong_answers=(
        slip("/ n)", "/ len(part) / len(parts))", draws="parts' means", why="The mean of means."),
        slip(" / n)", ")", draws="gradient of the sum", why="The division forgotten."),
        slip("sum(len(part) for part in parts)", "len(parts)", draws="number of parts", why="Divides by the steps."),
        slip("in parts:\n", "in parts:\n        w.grad = None\n", draws="Only the last part", why="zero_grad inside."),
        wrong("""
            def batch_gradient(loss_sum, w, parts):
                n = sum(len(part) for part in parts)
                total = sum(loss_sum(w, part) for part in parts)
                (total / n).backward()
                return w.grad
        """, draws="memory", why="The right number, without the purpose."),
    ),
)  # fmt: skip


# 8.5 ------------------------------------------------------------------------------------------------------------------


def update_biases(bias, loads, gamma):
    """The gates' biases [L E] after one optimizer step; loads [P L E]: tokens to each expert, for each of P parts."""
    load = loads.sum(0).double()
    error = load.mean(-1, keepdim=True) - load
    return bias + gamma * error.sign()


def check_update_biases(fn):
    P, L, E, gamma = 3, 5, 9, 0.001 * (1 + random.random())
    bias = 0.01 * torch.randn(L, E, dtype=torch.float64)
    loads = torch.randint(0, 90, (P, L, E)) + 10 * torch.arange(L)[:, None]  # no two layers see as many tokens
    loads[:, 0] = torch.tensor([20, 30, 25, 25, 25, 10, 40, 15, 35])  # three exactly at the mean
    parts, load = loads.double(), loads.sum(0).double()
    error = load.mean(-1, keepdim=True) - load
    signs = (parts.mean(-1, keepdim=True) - parts).sign()
    proportional = "The step is in proportion to the error: V3 takes its sign, so every expert moves by gamma."
    layers = "The mean goes over layers: each layer balances its own experts."
    expect_close(fn(bias, loads, gamma), bias + gamma * error.sign(), what="the biases", causes=[
        (bias - gamma * error.sign(), "The sign is turned round: a busy expert becomes busier still."),
        (bias + gamma * signs.sum(0), "The bias moves once for each part: add all loads, then move once a step."),
        (bias + gamma * signs.mean(0), "The parts' signs are averaged: the sign of the whole batch's load counts."),
        (bias + gamma * signs[-1], "Only the last part's load counts here: add them all."),
        (bias + gamma * (load.mean() - load).sign(), layers),
        (bias + gamma * (load.mean(0, keepdim=True) - load).sign(), layers),
        (bias + gamma * error, proportional),
        (bias + gamma * error / load.mean(-1, keepdim=True), proportional),
        (bias + gamma * torch.where(error > 0, 1.0, -1.0), "An expert exactly at the mean stays: sign(0) is 0."),
        (bias + gamma * torch.where(error >= 0, 1.0, -1.0), "An expert exactly at the mean stays: sign(0) is 0."),
        (gamma * error.sign(), "That is the change alone: add it to the bias that there was."),
    ])  # fmt: skip


MEAN = "load.mean(-1, keepdim=True)"

UPDATE_BIASES = define(
    "8.5", "The bias moves once a step", minutes=8, difficulty=2,
    statement="""
        Write `update_biases(bias, loads, gamma)`: the biases `[L, E]` of L layers' gates after one optimizer step.
        `loads` is `[P, L, E]`, integers: how many tokens each of the P parts of the batch sent to each expert. In each
        layer, an expert that got more than its layer's mean over the **whole batch** loses `gamma`; one that got less
        gains `gamma`; one exactly at the mean stays.
    """,
    hints=(
        "What is the load of the whole batch, and over which axis is its mean taken?",
        "Sum over the parts first. The mean goes over experts, the last axis, with `keepdim=True`.",
        "`load = loads.sum(0).double()`, then `bias + gamma * (load.mean(-1, keepdim=True) - load).sign()`.",
    ),
    check=check_update_biases,
    solution=update_biases,
    why="The sign makes the step independent of the batch's size; the whole batch's load makes it independent of how "
    "the batch was cut. On many GPUs the loads of all of them are summed first.",
    wrong_answers=(
        slip(f"{MEAN} - load", f"load - {MEAN}", draws="turned round", why="The excess, read as the error."),
        wrong("""
            def update_biases(bias, loads, gamma):
                for load in loads.double():
                    bias = bias + gamma * (load.mean(-1, keepdim=True) - load).sign()
                return bias
        """, draws="once for each part", why="The update inside the loop over micro-batches."),
        slip(MEAN, "load.mean(0, keepdim=True)", draws="goes over layers", why="The wrong axis."),
        slip(MEAN, "load.mean()", draws="goes over layers", why="No axis."),
        slip("error.sign()", "error", draws="in proportion", why="Tried by DeepSeek too, and slightly worse."),
        slip("loads.sum(0)", "loads[-1]", draws="last part", why="Whatever the loop left over."),
        slip("error.sign()", "torch.where(error > 0, 1.0, -1.0)", draws="sign(0) is 0", why="Two cases for three."),
    ),
)  # fmt: skip
