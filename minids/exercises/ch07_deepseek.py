"""Exercises of chapter 7, the whole model: where norms, sums and the factor stand in a block, counting, converting.

Source: DeepSeek-V3 (arXiv 2412.19437) sections 2 and 4.2; README_WEIGHTS.md and inference/ of its release.
The wrong answers are mistakes seen in public counts, conversions and implementations.
Notebook: 07_deepseek.
"""

from __future__ import annotations

import random
from dataclasses import replace

import torch
from torch import nn

from minids.config import Config, tiny, v3
from minids.costs import attention_params, expert_params, gate_params, params
from minids.exercises import define, expect_close, expect_equal, slip, wrong

# 7.1 ------------------------------------------------------------------------------------------------------------------


def moe_block(x, attn_norm, attn, ffn_norm, shared, routed, scale):
    """The stream after one block with experts, [B S D]; all arguments but x and scale are functions."""
    x = x + attn(attn_norm(x))
    n = ffn_norm(x)
    return x + shared(n) + scale * routed(n)


def check_moe_block(fn):
    D, scale = random.randrange(5, 9), random.choice([2.5, 1.5])
    mix = [torch.randn(D, D, dtype=torch.float64) for _ in range(3)]
    attn, shared, routed = (lambda t, M=M: (t @ M).tanh().cumsum(1) for M in mix)
    norms = [nn.RMSNorm(D, eps=1e-6, dtype=torch.float64) for _ in range(2)]
    for norm in norms:
        norm.weight.data.uniform_(0.5, 2.0)
    (a, f), x = norms, torch.randn(2, 7, D, dtype=torch.float64)
    with torch.no_grad():
        h = x + attn(a(x))
        n = f(h)
        late, post = f(x), a(x + attn(x))
        got = fn(x, a, attn, f, shared, routed, scale)
        expect_close(got, h + shared(n) + scale * routed(n), what="the stream", causes=[
            (f(post + shared(post) + scale * routed(post)), "The norms stand after the sums: that is post-norm. Here "
             "attention and FFN read a normalised copy, and the stream itself is only added to."),
            (h + scale * (shared(n) + routed(n)), "The shared experts are scaled too. The factor belongs to the gate's "
             "weights: only the routed experts have one."),
            (h + shared(n) + routed(n), "The factor is missing: 2.5 in V3, on the routed experts."),
            (h + shared(late) + scale * routed(late), "The FFN reads the stream from before attention: that is a "
             "parallel block. Here it reads what attention has added too."),
            (shared(n) + scale * routed(n), "The second sum is missing: what the FFN says is added to the stream."),
            (n + shared(n) + scale * routed(n), "The normalised copy is added instead of the stream: the stream "
             "itself is never normalised inside a block."),
            (h + scale * routed(n), "The shared experts are missing: they answer for every token."),
        ])  # fmt: skip


MOE_BLOCK = define(
    "7.1", "Where the norms stand, and the factor", minutes=6, difficulty=1,
    statement="""
        Write one block with experts: `moe_block(x, attn_norm, attn, ffn_norm, shared, routed, scale)`. All but `x`
        `[B, S, D]` and the number `scale` (2.5 in V3) are functions that keep the shape. `routed` gives the sum of the
        chosen experts, with weights that sum to one for each token; `shared` what the shared experts say.
    """,
    hints=(
        "Two parts, and each does the same three things with the stream: normalise a copy, compute, add.",
        "The FFN is a sum too, of shared and routed experts, and both read the same normalised copy.",
        "$x \\leftarrow x + \\mathrm{attn}(\\mathrm{norm}(x))$, then with $n = \\mathrm{norm}(x)$: "
        "$x + \\mathrm{shared}(n) + s \\cdot \\mathrm{routed}(n)$.",
    ),
    check=check_moe_block,
    solution=moe_block,
    why="The stream runs from embedding to head without a norm in its way: its gradient does too. The factor belongs "
    "to the gate's weights (`route_scale`), so the shared experts never see it.",
    wrong_answers=(
        wrong("""
            def moe_block(x, attn_norm, attn, ffn_norm, shared, routed, scale):
                x = attn_norm(x + attn(x))
                return ffn_norm(x + shared(x) + scale * routed(x))
        """, draws="post-norm", why="The first transformer's order."),
        slip("shared(n) + scale * routed(n)", "scale * (shared(n) + routed(n))", draws="shared experts are scaled",
             why="Takes the factor for one of the whole FFN."),
        wrong("""
            def moe_block(x, attn_norm, attn, ffn_norm, shared, routed, scale):
                n = ffn_norm(x)
                return x + attn(attn_norm(x)) + shared(n) + scale * routed(n)
        """, draws="parallel block", why="As in GPT-J and PaLM."),
        slip("return x + shared(n)", "return shared(n)", draws="second sum is missing", why="Forgets the residual."),
        slip("return x + shared(n)", "return n + shared(n)", draws="normalised copy is added",
             why="Overwrites the stream by its norm."),
        slip("shared(n) + ", "", draws="shared experts are missing", why="Forgets them."),
    ),
)  # fmt: skip


# 7.2 ------------------------------------------------------------------------------------------------------------------


def attention_parameters(cfg):
    """Parameters of one layer's attention, for a model that compresses its queries."""
    D, H, Q, C = cfg.dim, cfg.n_heads, cfg.q_lora_rank, cfg.kv_lora_rank
    N, R, V = cfg.qk_nope_head_dim, cfg.qk_rope_head_dim, cfg.v_head_dim
    query = D * Q + Q + Q * H * (N + R)
    key_value = D * (C + R) + C + C * H * (N + V)
    return query + key_value + H * V * D


def check_attention_parameters(fn):
    sizes = {"n_heads": 3, "q_lora_rank": random.randrange(30, 40), "kv_lora_rank": random.randrange(41, 50)}
    odd = replace(
        tiny(), dim=random.randrange(90, 110), qk_nope_head_dim=22, qk_rope_head_dim=10, v_head_dim=18, **sizes
    )
    for cfg, name in ((odd, "a model of odd sizes"), (v3(), "V3")):
        D, H, Q, C = cfg.dim, cfg.n_heads, cfg.q_lora_rank, cfg.kv_lora_rank
        R, V = cfg.qk_rope_head_dim, cfg.v_head_dim
        want = attention_params(cfg)
        expect_equal(fn(cfg), want, what=f"attention parameters in one layer of {name}", causes=[
            (want - Q - C, "The two norms inside are missing: q_norm has Q weights, kv_norm has C."),
            (lambda got, one=(want - Q, want - C): got in one, "One of the norms is missing: q_norm has Q weights, "
             "kv_norm has C."),
            (want - D * R, "The rotated key is missing: wkv_a makes C + R numbers, the last R are k_pe."),
            (want + D * R * (H - 1), "A rotated key for each head: all heads share one."),
            (want - Q * H * R, "The queries' rotated part is missing: each head has N + R query features."),
            (want - H * V * D, "wo is missing: from all heads' values back to D."),
            (want - H * V * D + D * D, "wo is not D x D: it reads H V features, in V3 more than twice as many as D."),
            (want - C * H * V, "The values are missing: wkv_b makes N + V numbers for each head."),
        ])  # fmt: skip


ATTENTION_PARAMETERS = define(
    "7.2", "The parameters of attention", minutes=8, difficulty=2,
    statement="""
        Write `attention_parameters(cfg)`: how many parameters MLA has in one layer. Sizes: `cfg.dim` D,
        `cfg.n_heads` H, `cfg.q_lora_rank` Q, `cfg.kv_lora_rank` C; `cfg.qk_nope_head_dim` N, `cfg.qk_rope_head_dim` R,
        `cfg.v_head_dim` V. The checked models compress their queries (V2 and V3 do, V2-Lite does not).
    """,
    hints=(
        "Five matrices and two norms. The table above lists them; which letters give each shape?",
        "wq_a makes Q numbers, wkv_a C + R; a norm follows Q and C, not R. wq_b and wkv_b make each head's parts.",
        "$DQ + Q + QH(N+R)$, then $D(C+R) + C + CH(N+V)$, then $HVD$.",
    ),
    check=check_attention_parameters,
    solution=attention_parameters,
    why="187,107,328 for V3. Of these 63% are wo: a head's values come back to D uncompressed.",
    wrong_answers=(
        wrong("""
            def attention_parameters(cfg):
                D, H, Q, C = cfg.dim, cfg.n_heads, cfg.q_lora_rank, cfg.kv_lora_rank
                N, R, V = cfg.qk_nope_head_dim, cfg.qk_rope_head_dim, cfg.v_head_dim
                return D * Q + Q * H * (N + R) + D * (C + R) + C * H * (N + V) + H * V * D
        """, draws="two norms inside are missing", why="Counts the matrices."),
        slip("D * (C + R)", "D * C", draws="rotated key is missing", why="Takes the latent for all that is made."),
        slip("D * (C + R)", "D * (C + H * R)", draws="all heads share one", why="A rotated key a head, as in MHA."),
        slip("+ H * V * D", "", draws="wo is missing", why="Forgets the way back."),
        slip("H * V * D", "D * D", draws="wo is not D x D", why="As where H V = D."),
        slip("C * H * (N + V)", "C * H * N", draws="values are missing", why="Rebuilds keys only."),
    ),
)  # fmt: skip


# 7.3 ------------------------------------------------------------------------------------------------------------------


def three_counts(cfg, attention, expert, gate):
    """(in the model, touched by one token, in the released files); given are the sizes in one layer."""
    D, table = cfg.dim, cfg.vocab_size * cfg.dim
    E, K, shared = cfg.n_routed_experts, cfg.n_activated_experts, cfg.n_shared_experts
    dense, moe = cfg.n_dense_layers, cfg.n_layers - cfg.n_dense_layers
    block = attention + 2 * D
    rest = cfg.n_layers * block + D + dense * 3 * D * cfg.inter_dim + moe * gate
    held = 2 * table + rest + moe * (E + shared) * expert
    touched = table + rest + moe * (K + shared) * expert
    module = block + gate + (E + shared) * expert + 2 * D * D + 3 * D
    return held, touched, held + module + 2 * table


def check_three_counts(fn):
    small = replace(tiny(), dim=random.randrange(90, 110), vocab_size=random.randrange(1500, 1600), n_layers=7,
                    n_dense_layers=2, n_routed_experts=24, n_shared_experts=random.randrange(1, 3))  # fmt: skip
    for cfg, name in ((small, "a small model"), (v3(), "V3")):
        p, sizes = params(cfg), (attention_params(cfg), expert_params(cfg), gate_params(cfg))
        files = p.total + p.mtp + 2 * p.embedding
        expect_equal(fn(cfg, *sizes), (p.total, p.activated, files), what=f"(held, touched, in files) of {name}",
                     causes=[*held_causes(cfg), *touched_causes(cfg), *file_causes(cfg)])  # fmt: skip


def place(index: int, number: int):
    return lambda got: got[index] == number


def held_causes(cfg: Config):
    p, D, moe = params(cfg), cfg.dim, cfg.n_moe_layers
    return [
        (place(0, p.total - p.shared_experts), "Held: the shared experts are missing. They come on top of the E."),
        (place(0, p.total - 2 * D * cfg.n_layers), "Held: the blocks' norms are missing, two in each."),
        (place(0, p.total - p.head), "Held: head and embedding are two tables in this family."),
        (place(0, p.total - p.gates), "Held: the gates are missing, one in each layer with experts."),
        (place(0, p.total + (cfg.n_layers - moe) * gate_params(cfg)), "Held: the first, dense layers have no gate."),
    ]


def touched_causes(cfg: Config):
    p, moe, K = params(cfg), cfg.n_moe_layers, cfg.n_activated_experts
    gate_rows = moe * (cfg.n_routed_experts - K) * (gate_params(cfg) // cfg.n_routed_experts)
    return [
        (place(1, p.activated - p.shared_experts), "Touched: only the K routed experts are counted. The shared ones "
         "answer for every token: 8 + 1 in V3."),
        (place(1, p.activated_with_embedding), "Touched: the embedding is counted. A token looks up one row; the "
         "papers' 37, 21 and 2.4 billion leave the table out."),
        (place(1, p.activated - p.head), "Touched: the head is missing. It multiplies for every token."),
        (place(1, p.activated - gate_rows), "Touched: the gate scores all E experts before it chooses K."),
    ]  # fmt: skip


def file_causes(cfg: Config):
    p, D, table = params(cfg), cfg.dim, cfg.vocab_size * cfg.dim
    files = p.total + p.mtp + 2 * table
    return [
        (place(2, p.total), "In the files: that is the main model. They hold the MTP module too, as one more layer."),
        (place(2, p.total + p.mtp), "In the files: every tensor of the module is stored under its layer's number, the "
         "tables too: two copies more."),
        (place(2, p.total + p.mtp + table), "In the files: both tables are copied, embedding and head."),
        (place(2, files - 2 * D * D - 3 * D), "In the files: the module is more than a block: eh_proj, three norms."),
    ]  # fmt: skip


THREE_COUNTS = define(
    "7.3", "671, 37 and 685", minutes=12, difficulty=3,
    statement="""
        Write `three_counts(cfg, attention, expert, gate)`: the parameters (in the model without its MTP module, touched
        by one token, in the released files). `attention`, `expert` and `gate` are the sizes of one layer's attention,
        of one expert, and of one gate with its bias. The embedding counts as held and not as touched. The files hold
        one MTP module, with copies of embedding and head; leave out the FP8 scales.
    """,
    hints=(
        "What do *held* and *touched* share? Everything but the routed experts and the embedding.",
        "Every block has attention and two norms; the first `n_dense_layers` then $3 D F_{dense}$, the others a gate, "
        "E routed and the shared experts; one more norm before the head. Touched: K for E, and one table less.",
        "Files: held, plus a block with experts, $2D^2$ for eh_proj, $3D$ for three norms, and two tables.",
    ),
    check=check_three_counts,
    solution=three_counts,
    why="671,026,419,200, 36,625,618,432 and 684,489,845,504 for V3: three true answers to *how big is it?*",
    wrong_answers=(
        slip("moe * (K + shared)", "moe * K", draws="only the K routed experts", why="Eight of 256, and no more."),
        slip("return held, touched, held + module + 2 * table", "return held, touched, held",
             draws="that is the main model", why="671 taken for the size of the files."),
        slip("held + module + 2 * table", "held + module", draws="two copies more", why="Counts what is unique."),
        slip("touched = table + rest", "touched = 2 * table + rest", draws="embedding is counted",
             why="As README_WEIGHTS.md words it."),
        slip(" + 2 * D * D + 3 * D", "", draws="more than a block", why="The module as a 62nd layer."),
        slip("held = 2 * table + rest + moe * (E + shared)", "held = 2 * table + rest + moe * E",
             draws="on top of the E", why="Takes the shared expert for one of the 256."),
        slip("attention + 2 * D\n", "attention\n", draws="blocks' norms", why="Forgets them."),
        slip("touched = table + rest", "touched = rest", draws="head is missing", why="Leaves both tables out."),
    ),
)  # fmt: skip


# 7.4 ------------------------------------------------------------------------------------------------------------------


def to_halves(w, H, N, R):
    """wq_b [H(N+R) Q], RoPE rows in pairs, for a program that turns row j together with row j + R/2."""
    w = w.view(H, N + R, -1)
    rope = w[:, N:]
    return torch.cat([w[:, :N], rope[:, 0::2], rope[:, 1::2]], dim=1).flatten(0, 1)


def check_to_halves(fn):
    H, N, R, Q = 3, random.randrange(3, 6), 2 * random.randrange(4, 7), 7
    w = torch.randn(H * (N + R), Q, dtype=torch.float64)
    pairs = [2 * j for j in range(R // 2)] + [2 * j + 1 for j in range(R // 2)]  # x0 x2 .. x1 x3 ..
    back = sorted(range(R), key=lambda j: pairs[j])

    def moved(order: list[int], heads: range, first: int = N) -> torch.Tensor:
        rows = list(range(H * (N + R)))
        for h in heads:
            start = h * (N + R) + first
            rows[start : start + len(order)] = [start + j for j in order]
        return w[rows]

    whole = [j for j in range(N + R) if j % 2 == 0] + [j for j in range(N + R) if j % 2 == 1]
    everything = [j for j in range(H * (N + R)) if j % 2 == 0] + [j for j in range(H * (N + R)) if j % 2 == 1]
    got = fn(w, H, N, R)
    expect_close(got, moved(pairs, range(H)), what="the permuted rows", causes=[
        (w, "Nothing has moved: the half-rotating program would turn x0 with x_(R/2), which are no pair."),
        (moved(back, range(H)), "That is the way back, from halves to pairs: new row j is old row 2j, and after the "
         "middle 2(j - R/2) + 1."),
        (moved(pairs, range(H - 1, H)), "Only the last head's rows moved: every head has R of them."),
        (moved(whole, range(H), 0), "Rows without position moved too: only the last R of each head are rotated."),
        (w[everything], "The even and odd rows of the whole matrix: the heads are mixed. Cut it into heads first."),
        (moved(pairs, range(H), 0), "The first R rows of each head moved: RoPE's stand last, after the N others."),
        (moved([*range(1, R, 2), *range(0, R, 2)], range(H)), "The second members come first: the rotation would turn "
         "backwards."),
    ])  # fmt: skip


TO_HALVES = define(
    "7.4", "Rows for the other rotation", minutes=10, difficulty=2,
    statement="""
        In the released `wq_b`, of shape `[H(N+R), Q]`, each head has N rows without position and then R rows for RoPE,
        a pair's two rows next to each other: $x_0 x_1, x_2 x_3, \\dots$ Many programs turn row $j$ together with row
        $j + R/2$ instead. Write `to_halves(w, H, N, R)`: the matrix with which such a program computes the same.
    """,
    hints=(
        "Which old rows must meet in row 0 and row R/2 of a head's rotated part?",
        "Cut the rows into heads, leave the first N of each alone, put the even ones of the rest before the odd ones.",
        "`w.view(H, N + R, -1)`; of `rope = w[:, N:]` take `rope[:, 0::2]` and then `rope[:, 1::2]`.",
    ),
    check=check_to_halves,
    solution=to_halves,
    why="Queries and keys get the same order (wkv_a's last R rows too), so every dot product is the same sum in "
    "another order. `transformers` has a switch for it, `rope_interleave`.",
    wrong_answers=(
        wrong("""
            def to_halves(w, H, N, R):
                return w.clone()
        """, draws="Nothing has moved", why="Shapes fit, so the weights are loaded as they are."),
        slip("rope[:, 0::2], rope[:, 1::2]], dim=1)",
             "torch.stack(rope.chunk(2, 1), 2).flatten(1, 2)], dim=1)", draws="way back", why="The inverse order."),
        wrong("""
            def to_halves(w, H, N, R):
                w = w.view(H, N + R, -1)
                return torch.cat([w[:, 0::2], w[:, 1::2]], 1).flatten(0, 1)
        """, draws="without position moved too", why="Takes the whole head as rotated."),
        wrong("""
            def to_halves(w, H, N, R):
                rope = w[-R:]
                return torch.cat([w[:-R], rope[0::2], rope[1::2]])
        """, draws="Only the last head", why="Right for wkv_a, which has one rotated key."),
        wrong("""
            def to_halves(w, H, N, R):
                return torch.cat([w[0::2], w[1::2]])
        """, draws="heads are mixed", why="Forgets that the rows are grouped by head."),
        slip("rope[:, 0::2], rope[:, 1::2]", "rope[:, 1::2], rope[:, 0::2]", draws="second members come first",
             why="The two halves swapped."),
    ),
)  # fmt: skip


# 7.5 ------------------------------------------------------------------------------------------------------------------


def split_kv_b(w, H, N, V):
    """(W_UK [H N C], W_UV [H V C]) from the released kv_b [H(N+V) C]."""
    w = w.view(H, N + V, -1)
    return w[:, :N], w[:, N:]


def check_split_kv_b(fn):
    H, N, V, C = 3, random.randrange(8, 11), random.randrange(4, 7), 6
    w = torch.randn(H * (N + V), C, dtype=torch.float64)
    rows = [[h * (N + V) + i for i in range(N + V)] for h in range(H)]
    want = torch.stack([w[r[:N]] for r in rows]), torch.stack([w[r[N:]] for r in rows])
    blocks = w[: H * N].view(H, N, C), w[H * N :].view(H, V, C)
    first = torch.stack([w[r[V:]] for r in rows]), torch.stack([w[r[:V]] for r in rows])
    across = w.view(N + V, H, C).transpose(0, 1)
    halves = w.view(H, N + V, C).chunk(2, 1)
    expect_close(fn(w, H, N, V), want, what="(W_UK, W_UV)", causes=[
        (blocks, "All keys' rows first and then all values': in the file each head has its N key rows and then its V "
         "value rows."),
        (first, "A head's value rows are taken for the first: its N key rows come first."),
        ((across[:, :N], across[:, N:]), "The heads are the fast axis in this reading: row r belongs to head "
         "r // (N + V)."),
        (halves, "Cut into two equal halves: that is right only where N = V, as in V3."),
        ((want[0].flatten(0, 1), want[1].flatten(0, 1)), "The right rows: keep the heads' axis, [H, N, C], [H, V, C]."),
    ])  # fmt: skip


SPLIT_KV_B = define(
    "7.5", "One matrix, two meanings", minutes=6, difficulty=1,
    statement="""
        `kv_b_proj` of the released files, `[H(N+V), C]`, rebuilds each head's key (N features) and value (V) from the
        latent. Absorbed decoding needs the two apart: write `split_kv_b(w, H, N, V)` that returns
        $W_{UK}$ `[H, N, C]` and $W_{UV}$ `[H, V, C]`.
    """,
    hints=(
        "To which head does row 0 belong, and to which the last row?",
        "The rows are grouped by head: N for its key, then V for its value.",
        "`w.view(H, N + V, -1)`, then cut the second axis at N.",
    ),
    check=check_split_kv_b,
    solution=split_kv_b,
    why="In V3 N and V are both 128, so every wrong cut has the right shape. Grouped by head, the matrix can be dealt "
    "out to GPUs, a few heads each, by cutting its rows.",
    wrong_answers=(
        wrong("""
            def split_kv_b(w, H, N, V):
                return w[: H * N].view(H, N, -1), w[H * N :].view(H, V, -1)
        """, draws="All keys' rows first", why="As the equations list them: W_UK, then W_UV."),
        slip("w[:, :N], w[:, N:]", "w[:, V:], w[:, :V]", draws="value rows are taken", why="kv read as value, key."),
        wrong("""
            def split_kv_b(w, H, N, V):
                w = w.view(N + V, H, -1).transpose(0, 1)
                return w[:, :N], w[:, N:]
        """, draws="fast axis", why="The head as the inner axis."),
        slip("w[:, :N], w[:, N:]", "tuple(w.chunk(2, 1))", draws="equal halves", why="V3's sizes hide it."),
    ),
)  # fmt: skip
