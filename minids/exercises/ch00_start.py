"""Exercises of chapter 0, the first look: the size of an expert, a temperature, bits per byte, what a token touches.

Source: DeepSeek-V3 (arXiv 2412.19437) sections 2.1.2 and 4.2. They need no later chapter: plain tensors and counts.
Notebook: 00_start.
"""

from __future__ import annotations

import math
import random
from dataclasses import replace

import torch
from torch import Tensor

from minids import costs
from minids.config import Config, tiny, v2_lite, v3
from minids.exercises import define, ensure, expect_close, expect_equal, slip, wrong

# 0.1 ------------------------------------------------------------------------------------------------------------------


def expert_size(dim, inter_dim):
    """How many parameters one expert has."""
    return 3 * dim * inter_dim


def check_expert_size(fn):
    def one(D, F):
        expect_equal(
            fn(D, F),
            3 * D * F,
            what=f"an expert with D = {D:,}, F = {F:,}",
            causes=[
                (2 * D * F,
                 "That counts two matrices, as in a plain FFN. SwiGLU has a third: w1 gates what w3 lets in."),
                (D * F, "That is one matrix. Count those in the formula: w1, w2 and w3."),
                (3 * D * F + 2 * F + D, "There are no biases: every matrix in DeepSeek-V3 stands alone."),
                (3 * D * D, "Each matrix connects D features with F: one side is D, the other F."),
                (3 * (D + F), "A matrix of D columns and F rows has D times F numbers, not D plus F."),
                (4 * D * F, "w1 and w3 are stacked in one tensor w13 of 2F rows: that already holds both."),
            ],
        )  # fmt: skip

    one(random.randrange(5, 40), random.randrange(41, 90))
    one(v3().dim, v3().moe_inter_dim)


EXPERT_SIZE = define(
    "0.1",
    "The size of one expert",
    minutes=4,
    difficulty=1,
    statement="""
        An expert is a SwiGLU network: $E(x) = W_2\\,(\\mathrm{silu}(W_1 x) \\odot W_3 x)$, where $\\odot$ multiplies
        feature by feature and silu, a smooth ReLU, has no parameters. It turns D features into F and back, without
        biases. Write `expert_size(dim, inter_dim)`: its number of parameters, for D = `dim` and F = `inter_dim`.
    """,
    hints=(
        "How many matrices are in the formula? How many numbers has each?",
        "W1 and W3 take D features to F, W2 takes F back to D. All three have the same number of entries.",
        "$3 \\, D \\, F$.",
    ),
    check=check_expert_size,
    solution=expert_size,
    why="Three matrices of D x F and nothing else. V3: 3 x 7,168 x 2,048 = 44,040,192, and it has 58 x 256 of them.",
    wrong_answers=(
        slip("3 *", "2 *", draws="SwiGLU has a third", why="Counts as in an FFN with ReLU or GELU."),
        slip("3 * dim", "dim", draws="That is one matrix", why="Stops after the first matrix."),
        slip("3 * dim * inter_dim", "3 * dim * inter_dim + 2 * inter_dim + dim", draws="no biases",
             why="nn.Linear has a bias unless told otherwise."),
        slip("3 * dim * inter_dim", "3 * dim * dim", draws="one side is D",
             why="Thinks of square matrices, as in attention."),
        slip("dim * inter_dim", "(dim + inter_dim)", draws="not D plus F", why="Adds the sides of a matrix."),
        slip("3 *", "4 *", draws="already holds both",
             why="Takes w13 for one more matrix of twice the size, besides w1 or w3."),
    ),
)  # fmt: skip


# 0.2 ------------------------------------------------------------------------------------------------------------------


def next_token_probabilities(logits, temperature):
    """Probabilities [B, W] of the next token from logits [B, W]; the temperature is above 0."""
    return (logits / temperature).softmax(-1)


def check_next_token_probabilities(fn):
    logits = 2 * torch.randn(3, 11, dtype=torch.float64)
    T = random.uniform(0.4, 0.8)
    p = logits.softmax(-1)
    got = fn(logits, T)
    expect_close(
        got,
        (logits / T).softmax(-1),
        what=f"p at temperature {T:.2f}",
        causes=[
            ((logits * T).softmax(-1),
             "That multiplies by the temperature: a low one would make the model bolder, not more careful. Divide."),
            ((logits / T).softmax(0),
             "The softmax runs over the texts of the batch. Each text has a distribution of its own: the last axis."),
            (p, "The temperature has no effect yet."),
            (p / T, "The division comes after the softmax: the rows no longer sum to 1. Divide the logits."),
            ((p / T).softmax(-1),
             "Those are probabilities put through a softmax a second time. Divide the logits, then one softmax."),
            (p**T / (p**T).sum(-1, keepdim=True), "The exponent is T where it should be 1 / T."),
            (logits / T, "Those are logits still: exponentiate and divide by the sum, which is what softmax does."),
            ((logits / T).log_softmax(-1), "Those are logarithms: softmax, not log_softmax."),
        ],
    )  # fmt: skip
    large = fn(400 * logits, 0.05)
    ensure(
        large.isfinite().all(),
        "finite values for large logits",
        large,
        "exp overflows on a large logit. Take the row's largest logit away first, or use .softmax, which does.",
    )
    expect_close(large.sum(-1), torch.ones(3, dtype=torch.float64), what="the sum of a row")


TEMPERATURE = define(
    "0.2",
    "A temperature",
    minutes=6,
    difficulty=1,
    statement="""
        Write `next_token_probabilities(logits, temperature)`: $p_i = e^{z_i / T} \\big/ \\sum_j e^{z_j / T}$ for
        logits $z$ of shape `[B, W]`, B texts over a vocabulary of W tokens. The temperature $T$ is above 0. Large
        logits must not overflow.
    """,
    hints=(
        "Which axis holds the candidates for one text's next token?",
        "Divide first, softmax second. A temperature below 1 must make the likeliest token likelier.",
        "`(logits / temperature).softmax(-1)`",
    ),
    check=check_next_token_probabilities,
    solution=next_token_probabilities,
    why="T below 1 stretches the differences between logits, so the best token gains; above 1 it shrinks them. "
    "`softmax` takes the largest logit away before it exponentiates, so nothing overflows.",
    wrong_answers=(
        slip("logits / temperature", "logits * temperature", draws="multiplies by the temperature",
             why="The formula remembered upside down."),
        slip("softmax(-1)", "softmax(0)", draws="texts of the batch", why="dim=0 is right for one text only."),
        slip("(logits / temperature)", "logits", draws="no effect", why="Greedy habit: the argument is forgotten."),
        slip("(logits / temperature).softmax(-1)", "logits.softmax(-1) / temperature", draws="no longer sum to 1",
             why="Divides the probabilities."),
        wrong(
            """
            def next_token_probabilities(logits, temperature):
                e = (logits / temperature).exp()
                return e / e.sum(-1, keepdim=True)
        """,
            draws="overflows",
            why="The formula typed as it stands: right on paper, NaN on a large logit.",
        ),
        slip(".softmax(-1)", ".log_softmax(-1)", draws="Those are logarithms",
             why="log_softmax is the habit from losses."),
    ),
)  # fmt: skip


# 0.3 ------------------------------------------------------------------------------------------------------------------


def bits_per_byte(logits, tokens, n_bytes):
    """Bits needed for one byte of a text of n_bytes, from the logits [S, W] at its tokens [S]."""
    log_p = logits[:-1].log_softmax(-1)  # position i speaks of token i + 1
    right = log_p.gather(1, tokens[1:, None])
    return -right.sum() / math.log(2) / n_bytes


def check_bits_per_byte(fn):
    S, W, n_bytes = 9, 13, random.randrange(20, 40)
    logits, tokens = torch.randn(S, W, dtype=torch.float64), torch.randperm(W)[:S]
    log_p = logits.log_softmax(-1)

    def bits(log_p: Tensor, targets: Tensor) -> Tensor:
        return -log_p[range(len(targets)), targets].sum() / math.log(2) / n_bytes

    want = bits(log_p[:-1], tokens[1:])
    mean = want * n_bytes / (S - 1)
    expect_close(
        fn(logits, tokens, n_bytes),
        want,
        what="bits per byte",
        causes=[
            (bits(log_p, tokens),
             "That asks each position for the token it has just read. Position i predicts token i + 1."),
            (bits(log_p[1:], tokens[:-1]), "The shift goes the wrong way: logits 0 to S-2 belong to tokens 1 to S-1."),
            (want * math.log(2), "Those are nats: torch's logarithms are natural. Divide by ln 2 for bits."),
            (mean,
             "That is bits per token. A tokenizer with longer tokens would look worse: divide the sum by the bytes."),
            (mean / n_bytes, "That takes the mean over tokens and then divides by bytes: take the sum."),
            (-want, "The sign: a logarithm of a probability is negative, bits are positive."),
            (2**mean, "That is the perplexity, 2 to the bits per token."),
            (bits(logits[:-1].log_softmax(0), tokens[1:]),
             "The softmax runs over the positions: it belongs to the vocabulary."),
            (bits(logits[:-1], tokens[1:]),
             "Those are raw logits: log_softmax makes them logarithms of probabilities."),
        ],
    )  # fmt: skip


BITS_PER_BYTE = define(
    "0.3",
    "Bits per byte",
    minutes=8,
    difficulty=2,
    statement="""
        Write `bits_per_byte(logits, tokens, n_bytes)`, $\\frac{1}{n_\\mathrm{bytes}} \\sum_{i=0}^{S-2} -\\log_2
        p_i(t_{i+1})$: how many bits the model needs, on average, for one byte of the text. `tokens [S]` starts with
        a token of no bytes (bos), `logits [S, W]` is what the model gave for them, and $p_i$ is the softmax of row
        $i$.
    """,
    hints=(
        "The logits at position i speak of the token at i + 1. Which row has no answer to compare with?",
        "`log_softmax`, then pick one number a row, for instance with `gather`. torch's logarithm is "
        "natural: 1 bit = ln 2 nats.",
        "`-logits[:-1].log_softmax(-1).gather(1, tokens[1:, None]).sum() / math.log(2) / n_bytes`",
    ),
    check=check_bits_per_byte,
    solution=bits_per_byte,
    why="The sum of -log2 p is the length of the text when an ideal compressor uses the model. Divided by bytes, "
    "models with different tokenizers can be compared; the loss per token cannot do that.",
    wrong_answers=(
        wrong(
            """
            def bits_per_byte(logits, tokens, n_bytes):
                right = logits.log_softmax(-1).gather(1, tokens[:, None])
                return -right.sum() / math.log(2) / n_bytes
        """,
            draws="has just read",
            why="The shift by one is forgotten: the classic.",
        ),
        wrong(
            """
            def bits_per_byte(logits, tokens, n_bytes):
                right = logits[1:].log_softmax(-1).gather(1, tokens[:-1, None])
                return -right.sum() / math.log(2) / n_bytes
        """,
            draws="wrong way",
            why="Shifted, but the logits instead of the targets.",
        ),
        slip(" / math.log(2)", "", draws="nats", why="cross_entropy gives nats, and nobody says so."),
        slip("right.sum() / math.log(2) / n_bytes", "right.mean() / math.log(2)", draws="bits per token",
             why="The mean that every loss takes."),
        slip("right.sum()", "right.mean()", draws="take the sum", why="Mean by habit, and bytes as asked."),
        slip("return -right", "return right", draws="The sign", why="The minus is lost."),
        slip("log_softmax(-1)", "log_softmax(0)", draws="over the positions", why="The wrong axis."),
    ),
)  # fmt: skip


# 0.4 ------------------------------------------------------------------------------------------------------------------


def activated_parameters(cfg):
    """How many parameters one token touches; the embedding is not counted."""
    p = costs.params(cfg)
    resting = cfg.n_routed_experts - cfg.n_activated_experts
    return p.total - p.embedding - cfg.n_moe_layers * resting * costs.expert_params(cfg)


def check_activated_parameters(fn):
    def one(c: Config, name: str) -> None:
        p, expert = costs.params(c), costs.expert_params(c)
        E, K, shared, moe = c.n_routed_experts, c.n_activated_experts, c.n_shared_experts, c.n_moe_layers
        want = p.total - p.embedding - moe * (E - K) * expert
        got = fn(c)
        expect_equal(
            got,
            want,
            what=f"activated parameters of {name}",
            causes=[
                (p.total, "That counts every expert: K of the E routed experts answer, the others rest."),
                (p.total - p.embedding, "That counts every expert: K of the E routed experts answer, the others rest."),
                (want + p.embedding,
                 "The embedding is counted. A token looks up one row of it, so the papers leave the table out."),
                (want - p.head,
                 "The head is left out, but it multiplies for every token: only the embedding is a look-up."),
                (p.total - p.embedding - c.n_layers * (E - K) * expert,
                 "That takes resting experts from every layer. The first n_dense_layers have none: "
                 "use cfg.n_moe_layers."),
                (p.total - p.embedding - moe * (E + shared - K) * expert,
                 "The shared experts are taken away too: they answer for every token."),
                (p.total - p.embedding - moe * (E - K - shared) * expert,
                 "The shared experts are counted a second time: K counts routed experts only."),
                (p.total - p.embedding - moe * E * expert,
                 "All routed experts are taken away: K of them in each layer do answer."),
                (p.total - p.embedding - (E - K) * expert,
                 "That is the saving of one layer: each MoE layer has its own experts."),
                (p.total * K // E,
                 "Only the routed experts shrink by K / E: attention, the dense layers and the head stay whole."),
            ],
        )  # fmt: skip

    layers = random.randrange(5, 9)
    sizes = {"n_layers": layers, "n_dense_layers": random.randrange(2, 4), "n_shared_experts": random.randrange(1, 3)}
    one(replace(tiny(), dim=random.randrange(60, 90), n_routed_experts=24, **sizes), f"a model with {layers} layers")
    one(v2_lite(), "V2-Lite")
    one(v3(), "V3")


ACTIVATED = define(
    "0.4",
    "What one token touches",
    minutes=8,
    difficulty=2,
    statement="""
        Write `activated_parameters(cfg)`: the parameters that one token touches, from any config. Start with
        `p = costs.params(cfg)` and its `p.total` and `p.embedding`; `costs.expert_params(cfg)` is the size of one
        expert. Not touched are the routed experts that do not answer, and (by the papers' convention) the embedding
        table. `cfg` has `n_routed_experts`, `n_activated_experts`, `n_shared_experts`, `n_layers`, `n_dense_layers`
        and `n_moe_layers`. (`p.activated` holds the answer: count it yourself first.)
    """,
    hints=(
        "Start from all parameters and take away what rests. In one layer with experts, how many rest?",
        "n_routed_experts - n_activated_experts experts rest in each of the n_moe_layers; shared experts never do.",
        "`p.total - p.embedding - cfg.n_moe_layers * resting * costs.expert_params(cfg)`",
    ),
    check=check_activated_parameters,
    solution=activated_parameters,
    why="V3: 671.0 billion less 58 x 248 resting experts of 44.0 million, less an embedding of 0.9 billion, "
    "leaves 36.6 billion: the 37B of the paper.",
    wrong_answers=(
        slip("p.total - p.embedding - cfg.n_moe_layers * resting * costs.expert_params(cfg)",
             "p.total",
         draws="counts every expert",
         why="Reads the size on the box."),
        slip("p.total - p.embedding", "p.total", draws="embedding is counted",
             why="The convention is not spelled out in the papers."),
        slip("p.total - p.embedding", "p.total - p.embedding - p.head", draws="head is left out",
             why="Takes away both matrices of the vocabulary."),
        slip("cfg.n_moe_layers", "cfg.n_layers", draws="n_dense_layers have none",
             why="Forgets that the first layers are dense."),
        slip("cfg.n_routed_experts - cfg",
             "cfg.n_routed_experts + cfg.n_shared_experts - cfg",
         draws="shared experts are taken away",
         why="Counts 257 experts in a layer, 8 of them active."),
        slip("cfg.n_moe_layers * resting", "resting", draws="saving of one layer",
             why="Forgets that each layer has its own experts."),
        slip("- cfg.n_activated_experts", "", draws="All routed experts",
             why="Takes the routed experts away altogether."),
        slip("p.total - p.embedding - cfg.n_moe_layers * resting * costs.expert_params(cfg)",
             "p.total * cfg.n_activated_experts // cfg.n_routed_experts",
         draws="Only the routed",
         why="A share of experts taken for a share of the model."),
    ),
)  # fmt: skip
