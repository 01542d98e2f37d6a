"""Exercises of chapter 6, multi-token prediction: which token goes where, the order in the projection, the loss, what
is shared, and when a draft would be accepted.

Source: DeepSeek-V3 (arXiv 2412.19437) section 2.2, eq. 21-25, section 5.4.3; README_WEIGHTS.md of its release.
The wrong answers are mistakes seen in public implementations and explanations.
Notebook: 06_mtp.
"""

from __future__ import annotations

import random
from dataclasses import replace

import torch
from torch import Tensor

from minids.config import tiny, v3
from minids.costs import mtp_params
from minids.exercises import define, expect_close, expect_equal, slip, wrong

# 6.1 ------------------------------------------------------------------------------------------------------------------


def reads_and_targets(tokens, k):
    """What depth k reads and what it must predict, [B n] each; tokens [B S+1]."""
    n = tokens.shape[1] - 1 - k
    reads = tokens[:, k : k + n]
    targets = tokens[:, k + 1 : k + 1 + n]
    return reads, targets


def check_reads_and_targets(fn):
    B, S = 2, random.randrange(7, 12)
    tokens = torch.arange(100, 100 + S + 1) + 20 * torch.arange(B)[:, None]  # no token occurs twice in a row
    for k in (2, 1, 3, 0):  # at depth 1 two of the mistakes give the same slice
        want = tuple(torch.stack([tokens[:, i + ahead] for i in range(S - k)], 1) for ahead in (k, k + 1))
        n, what = S - k, f"(reads, targets) of depth {k}, from {S} inputs and a last target,"
        rolled = tokens[:, :-1].roll(-k, 1), tokens[:, 1:].roll(-k, 1)
        expect_equal(fn(tokens, k), want, what=what, causes=[
            ((want[0], want[0]), "The target is the token that it reads: the module only has to copy."),
            ((want[0], tokens[:, 1 : 1 + n]), "That is the main model's target, t_(i+1), once more: depth k predicts "
             "the token k + 1 ahead."),
            ((tokens[:, :n], want[1]), "It reads its own position's token, which h knows already: depth k reads the "
             "token k ahead, the one that the depth before predicts."),
            ((want[1], want[0]), "The two are swapped: what it reads comes first."),
            (rolled, "The ends of the row wrapped around to its start: the last k positions have no target and are "
             "left out."),
            (lambda got, n=n: got[0].shape[1] == n - 1, "One position is missing at the end: `tokens` holds one token "
             "more than there are inputs, and the last target is it."),
            (lambda got, n=n: got[0].shape != got[1].shape, "The two differ in length: a position counts only if it "
             "has both."),
        ])  # fmt: skip


READS_AND_TARGETS = define(
    "6.1", "Which token, which target", minutes=8, difficulty=2,
    statement="""
        `tokens` `[B, S+1]` holds S inputs and the last target. Write `reads_and_targets(tokens, k)`: the pair (the
        tokens whose embeddings depth k reads, the tokens that it must predict), both `[B, n]`, for the positions that
        have both.
        The first column belongs to position 0; `k = 0` is the main model.
    """,
    hints=(
        "Write down position 0 for k = 0, 1, 2. Then the last position: which is the last token there is?",
        "At position i depth k reads $t_{i+k}$ and predicts $t_{i+k+1}$; the last target is $t_S$. How many i is that?",
        "$n = S - k$; the slices start at k and at k + 1.",
    ),
    check=check_reads_and_targets,
    solution=reads_and_targets,
    why="Position i of depth k may know $t_0 .. t_{i+k}$ and must predict $t_{i+k+1}$. The largest target is $t_S$, so "
    "i ends at S - k - 1, and n = S - k positions are left.",
    wrong_answers=(
        slip("tokens[:, k + 1 : k + 1 + n]", "reads", draws="only has to copy", why="Input and target the same slice."),
        slip("tokens[:, k + 1 : k + 1 + n]", "tokens[:, 1 : 1 + n]", draws="main model's target",
             why="The next token for every depth: the main head's job done twice."),
        slip("tokens[:, k : k + n]", "tokens[:, :n]", draws="own position's token", why="No token ahead is read."),
        slip("return reads, targets", "return targets, reads", draws="swapped", why="The order of the pair."),
        wrong("""
            def reads_and_targets(tokens, k):
                return tokens[:, :-1].roll(-k, 1), tokens[:, 1:].roll(-k, 1)
        """, draws="wrapped around", why="roll keeps the length and brings the first tokens to the end."),
        slip("- 1 - k", "- 2 - k", draws="One position is missing", why="S + 1 tokens taken for S."),
    ),
)  # fmt: skip


# 6.2 ------------------------------------------------------------------------------------------------------------------


def to_paper(weight):
    """M_k [D 2D] that does to [h; emb] what eh_proj's weight [D 2D] does to [emb; h]."""
    for_emb, for_h = weight.chunk(2, dim=1)
    return torch.cat([for_h, for_emb], dim=1)


def check_to_paper(fn):
    B, D = 5, 2 * random.randrange(3, 7)
    weight = torch.randn(D, 2 * D, dtype=torch.float64)
    h, emb = torch.randn(2, B, D, dtype=torch.float64)
    got, want = fn(weight), torch.cat([weight[:, D:], weight[:, :D]], 1)
    expect_close(got, want, what="M_k", causes=[
        (weight, "Nothing has moved: the paper's vector begins with h, so the columns for h come first."),
        (weight.flip(1), "The order of the columns within a half changed too: the halves swap as they are."),
        (torch.cat([weight[D // 2 :], weight[: D // 2]]), "Rows are swapped, and with them the output's features. The "
         "input runs along the columns."),
        (want.T, "The right columns, transposed: the weight of a Linear is [outputs, inputs]."),
        (weight[:, :D] + weight[:, D:], "The halves are added: that is a projection of h + emb, which cannot treat the "
         "two differently."),
        (weight.T, "A transposition is no permutation of columns: the weight stays [D, 2D]."),
    ])  # fmt: skip
    expect_close(torch.cat([h, emb], 1) @ got.T, torch.cat([emb, h], 1) @ weight.T, what="the projection")


TO_PAPER = define(
    "6.2", "The same projection in the paper's order", minutes=5, difficulty=1,
    statement="""
        The released weight of `eh_proj`, `[D, 2D]`, multiplies $[\\mathrm{emb};\\,h]$; the paper's $M_k$ multiplies
        $[h;\\,\\mathrm{emb}]$. Write `to_paper(weight)`: the $M_k$ that gives the same result.
    """,
    hints=(
        "Which axis of a Linear's weight meets the input?",
        "The first D columns meet emb, the last D columns meet h.",
        "`chunk(2, dim=1)`, then `cat` the halves the other way round.",
    ),
    check=check_to_paper,
    solution=to_paper,
    why="$W [e; h] = W_e e + W_h h = [W_h \\; W_e] [h; e]$: a sum does not mind its order, the columns must follow it.",
    wrong_answers=(
        slip("torch.cat([for_h, for_emb], dim=1)", "weight", draws="Nothing has moved",
             why="Loads the weights and trusts the paper's formula."),
        slip("torch.cat([for_h, for_emb], dim=1)", "weight.flip(1)", draws="within a half", why="flip for swap."),
        wrong("""
            def to_paper(weight):
                top, bottom = weight.chunk(2, dim=0)
                return torch.cat([bottom, top], dim=0)
        """, draws="Rows are swapped", why="The weight taken for [inputs, outputs]."),
        slip("torch.cat([for_h, for_emb], dim=1)", "for_h + for_emb", draws="halves are added",
             why="Addition in place of concatenation."),
        slip("torch.cat([for_h, for_emb], dim=1)", "torch.cat([for_h, for_emb], dim=1).T", draws="transposed",
             why="Prepared for x @ M."),
    ),
)  # fmt: skip


# 6.3 ------------------------------------------------------------------------------------------------------------------


def mtp_term(nll, S, lam):
    """What MTP adds to the loss; nll[k - 1] [B S-k]: -log P of depth k's targets; lam is lambda."""
    L = [each.sum() / (each.shape[0] * S) for each in nll]
    return lam * sum(L) / len(nll)


def check_mtp_term(fn):
    B, lam = 3, random.choice([0.3, 0.1])
    for depths, S in ((2, 7), (1, 5), (3, 9)):
        nll = [torch.rand(B, S - k, dtype=torch.float64) * 3 for k in range(1, depths + 1)]
        sums = [sum(float(x) for row in each.tolist() for x in row) / B for each in nll]
        right = lam / depths * sum(s / S for s in sums)
        by_own = lam / depths * sum(s / (S - k) for k, s in enumerate(sums, 1))
        together = lam * sum(sums) / sum(S - k for k in range(1, depths + 1))
        right, by_own, together = torch.tensor([right, by_own, together], dtype=torch.float64)
        expect_close(torch.as_tensor(fn(nll, S, lam), dtype=torch.float64), right, causes=[
            (by_own, "Each depth is divided by its own S - k targets. Eq. 24 divides every depth by T, the number of "
             "inputs, S here."),
            (right * depths, "The sum over the depths is not divided by their number: eq. 25 has lambda / D."),
            (right / lam, "Lambda is missing."),
            (right * B, "Each sequence counts in full: average over the B sequences too."),
            (together, "That is one mean over the targets of all depths together: eq. 25 averages the depths."),
            (right * S / (S + 1), "Divided by S + 1, the tokens of a row: T counts the inputs."),
            (right * S, "Summed over the positions: eq. 24 divides by T."),
        ], what=f"lambda L_MTP for {depths} depth{'s' * (depths > 1)}, B={B}, S={S}, lambda={lam}")  # fmt: skip


MTP_TERM = define(
    "6.3", "What MTP adds to the loss", minutes=8, difficulty=2,
    statement="""
        `nll` is a list, one tensor a depth: `nll[k - 1]`, of shape `[B, S-k]`, holds $-\\log P^k$ of the targets of
        depth k. Write `mtp_term(nll, S, lam)`: the term $\\lambda\\,\\mathcal{L}_{MTP}$ that is added to the main loss
        (eq. 24 and 25), averaged over the B sequences. The paper's T is `S`, its D is the length of `nll`.
    """,
    hints=(
        "Three things are divided by: sequences, positions, depths. By which number each?",
        "Eq. 24 divides by T for every depth, though depth k has T - k terms.",
        "`each.sum() / (B * S)` for each depth; then lambda times their mean.",
    ),
    check=check_mtp_term,
    solution=mtp_term,
    why="With one divisor for all depths a target weighs the same at every depth, and the main loss has it too. For "
    "rows of 4,096 tokens T and T - 1 hardly differ; for short rows they do.",
    wrong_answers=(
        slip("each.sum() / (each.shape[0] * S)", "each.mean()", draws="its own S - k", why="mean() of what is there."),
        slip(" / len(nll)", "", draws="lambda / D", why="Forgets the average over the depths."),
        slip("lam * ", "", draws="Lambda is missing", why="Adds both losses with equal weight."),
        slip("each.sum() / (each.shape[0] * S)", "each.sum() / S", draws="Each sequence", why="Forgets the batch."),
        slip("lam * sum(L) / len(nll)", "lam * torch.cat([each.flatten() for each in nll]).mean()",
             draws="one mean", why="Cross-entropy over everything at once."),
        slip("[0] * S)", "[0] * (S + 1))", draws="T counts the inputs", why="Counts the last target as an input."),
    ),
)  # fmt: skip


# 6.4 ------------------------------------------------------------------------------------------------------------------


def own_parameters(cfg, block):
    """Parameters that one MTP module adds to the model; `block` are those of one transformer block."""
    D = cfg.dim
    norms = 3 * D  # enorm, hnorm, shared_head.norm
    eh_proj = 2 * D * D
    return block + norms + eh_proj


def check_own_parameters(fn):
    small = replace(tiny(), dim=8 * random.randrange(11, 16), vocab_size=random.randrange(1500, 1600))
    for cfg in (v3(), small):
        D, W = cfg.dim, cfg.vocab_size
        want = mtp_params(cfg)
        block = want - 2 * D * D - 3 * D
        expect_equal(fn(cfg, block), want, what=f"own parameters of a module with D={D}", causes=[
            (want + 2 * W * D, "Embedding and head are counted: they are the main model's own matrices."),
            (want + W * D, "Embedding or head is counted: both are the main model's own matrices."),
            (want - 2 * D * D, "eh_proj is missing, [D, 2D]. Without it V3's module has 11.51 billion, which is what "
             "its README calls 11.5."),
            (want - D * D, "eh_proj has D inputs in this count. It reads two vectors side by side, so it is [D, 2D]."),
            (want - 3 * D, "The three norms are missing: enorm, hnorm, and shared_head.norm before the head."),
            (want - D, "One norm is missing. Besides enorm and hnorm there is shared_head.norm, which is the module's "
             "own: only the head is shared."),
            (want + D, "One norm too many: the block's two norms are in `block`."),
            (block, "That is the block alone: it has a projection in front, and three norms of its own."),
            ((want - D) + W * D, "Embedding or head is counted: both are the main model's own matrices."),
        ])  # fmt: skip


OWN_PARAMETERS = define(
    "6.4", "What is its own?", minutes=5, difficulty=1,
    statement="""
        Write `own_parameters(cfg, block)`: how many parameters one MTP module **adds** to a model with `cfg.dim` and
        `cfg.vocab_size`. `block` is the number of parameters of its transformer block, the block's two norms included.
    """,
    hints=(
        "Which tensors of eq. 21 to 23 already exist in the main model?",
        "Own: the block, the projection, and a norm for each of embedding, hidden state and output.",
        "`block` $+\\; 2D^2 + 3D$.",
    ),
    check=check_own_parameters,
    solution=own_parameters,
    why="Embedding and head are the main model's. The name `shared_head.norm` misleads: the norm before the shared "
    "head is the module's own.",
    wrong_answers=(
        slip("block + norms", "2 * cfg.vocab_size * D + block + norms", draws="Embedding and head are counted",
             why="The released files hold copies of both."),
        slip("block + norms", "cfg.vocab_size * D + block + norms", draws="Embedding or head", why="Its own head."),
        slip(" + eh_proj", "", draws="eh_proj is missing", why="As README_WEIGHTS.md counts."),
        slip("eh_proj = 2 * D * D", "eh_proj = D * D", draws="side by side", why="Adds the two vectors."),
        slip("3 * D", "2 * D", draws="shared_head.norm", why="Takes the norm for shared, by its name."),
        slip("block + norms +", "block +", draws="three norms are missing", why="21,504 of 11.6 billion."),
    ),
)  # fmt: skip


# 6.5 ------------------------------------------------------------------------------------------------------------------


def agreement(main, draft):
    """Share of drafts that the main model would choose too; logits [B S W] and [B S-1 W]."""
    said, drafted = main[:, 1:].argmax(-1), draft.argmax(-1)
    return (said == drafted).double().mean()


def check_agreement(fn):
    B, S, W = 3, random.randrange(13, 19), 11
    answers: dict[str, float] = {}
    while len(set(answers.values())) < 6:  # drawn again until each mistake gives a number of its own
        main = torch.randn(B, S, W, dtype=torch.float64)
        draft = main[:, 1:] + 0.6 * torch.randn(B, S - 1, W, dtype=torch.float64)  # often the choice at i + 1
        answers = agreements(main, draft)
    got: Tensor = torch.as_tensor(fn(main, draft), dtype=torch.float64)
    want = answers.pop("right")
    expect_close(got, torch.tensor(want, dtype=torch.float64), what="the agreement", causes=[
        *((number, cause) for cause, number in answers.items()),
        (want * (S - 1) / S, "Divided by S rows: the module has one fewer."),
        (want * B * (S - 1), "That is a count: divide by the number of drafts."),
    ])  # fmt: skip


def agreements(main: Tensor, draft: Tensor) -> dict[str, float]:
    """The right answer, counted draft by draft, and what mistakes would give, by their message."""
    B, n, _ = draft.shape
    choice, first = main.argmax(-1).tolist(), draft.argmax(-1).tolist()
    right = sum(choice[b][i + 1] == first[b][i] for b in range(B) for i in range(n)) / (B * n)
    overlap = torch.minimum(main[:, 1:].softmax(-1), draft.softmax(-1)).sum(-1).mean().item()
    return {
        "right": right,
        "Row i of both is compared. At i the main model chooses token i + 1, the module token i + 2: the main model "
        "speaks about the module's token one row later.": share(main[:, :-1], draft),
        "One row too far: the module's row i is about token i + 2, and so is the main model's row i + 1.":
            share(main[:, 2:], draft[:, :-1]),
        "That is the overlap of the two distributions, the rate when sampling. Here both are greedy.": overlap,
        "That is the share that differs.": 1 - right,
        "Logits of two networks are never equal: compare the tokens that they choose.": 0.0,
    }  # fmt: skip


def share(a: Tensor, b: Tensor) -> float:
    return (a.argmax(-1) == b.argmax(-1)).double().mean().item()


AGREEMENT = define(
    "6.5", "Would the draft be accepted?", minutes=8, difficulty=2,
    statement="""
        `main` `[B, S, W]` are the main model's logits on a text, `draft` `[B, S-1, W]` those of the module of depth 1.
        Both decode greedily: they say their likeliest token. Write `agreement(main, draft)`: the share of the module's
        tokens that the main model says too, when its turn comes.
    """,
    hints=(
        "Which token does row 0 of `draft` propose? Which row of `main` is about the same token?",
        "Row i of the main model is about token i + 1, row i of the module about token i + 2.",
        "`main[:, 1:].argmax(-1) == draft.argmax(-1)`, then the mean.",
    ),
    check=check_agreement,
    solution=agreement,
    why="The draft is judged by what the main model would have said, right or wrong: so the output stays the main "
    "model's own. 16_decode does it while it writes.",
    wrong_answers=(
        slip("main[:, 1:]", "main[:, :-1]", draws="one row later", why="Same row, other token."),
        wrong("""
            def agreement(main, draft):
                p, q = main[:, 1:].softmax(-1), draft.softmax(-1)
                return torch.minimum(p, q).sum(-1).mean()
        """, draws="rate when sampling", why="The acceptance of speculative sampling."),
        slip("main[:, 1:].argmax(-1), draft.argmax(-1)", "main[:, 2:].argmax(-1), draft[:, :-1].argmax(-1)",
             draws="One row too far", why="Shifted by the two tokens that the module looks ahead."),
        slip("said == drafted", "said != drafted", draws="that differs", why="The rejections."),
        slip(".double().mean()", ".double().sum()", draws="a count", why="Forgets to divide."),
        slip("main[:, 1:].argmax(-1), draft.argmax(-1)", "main[:, 1:], draft", draws="never equal",
             why="Logits compared."),
    ),
)  # fmt: skip
