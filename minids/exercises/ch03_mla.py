"""Exercises of chapter 3, Multi-head Latent Attention: what is cached, under which scale, and how decoding never
rebuilds a key.

Source: DeepSeek-V3 (arXiv 2412.19437) section 2.1.1, eq. 1-11; DeepSeek-V2 (arXiv 2405.04434) section 2.1, appendix C.
The wrong answers are mistakes seen in public implementations and explanations.
Notebook: 03_mla.
"""

from __future__ import annotations

import random
from dataclasses import replace

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from minids.config import Config, dense_active, tiny, v3
from minids.exercises import Wrong, define, expect_close, expect_equal, slip, wrong
from minids.mla import MLA
from minids.rope import apply_rotary_emb, precompute_freqs_cis


def small_config() -> Config:
    """Sizes that are pairwise different, so that a swapped axis cannot pass."""
    return replace(
        tiny(), dim=40, n_heads=3, q_lora_rank=24, kv_lora_rank=18,
        qk_nope_head_dim=12, qk_rope_head_dim=8, v_head_dim=10, max_seq_len=64,
    )  # fmt: skip


# 3.1 ------------------------------------------------------------------------------------------------------------------


def cache_values(cfg):
    """How many numbers one token leaves in the cache of one layer."""
    if cfg.attn == "mla":
        return cfg.kv_lora_rank + cfg.qk_rope_head_dim
    return 2 * cfg.n_kv_heads * cfg.v_head_dim


def check_cache_values(fn):
    groups = random.choice([2, 4, 8])
    check_mla_values(fn, v3())
    check_mla_values(fn, replace(small_config(), kv_lora_rank=random.randrange(91, 200), n_layers=5))
    check_gqa_values(fn, replace(dense_active(), n_heads=3 * groups, n_kv_heads=groups))


def check_mla_values(fn, c: Config):
    H, N, R, V, C = c.n_heads, c.qk_nope_head_dim, c.qk_rope_head_dim, c.v_head_dim, c.kv_lora_rank
    expect_equal(fn(c), C + R, what=f"the cache of {H} MLA heads, C={C}, R={R}", causes=[
        (C, "That is the latent alone: the rotated key, R numbers, is kept beside it."),
        (C + H * R, "That counts a rotated key for each head: all heads share one."),
        (2 * C + R, "That counts two latents, one for keys and one for values: both are rebuilt from the same one."),
        (2 * (C + R), "That counts keys and values apart: one latent serves both."),
        (H * (N + R + V), "That is every head's key and value, the naive form: MLA keeps what they are rebuilt from."),
        (2 * H * V, "That is the cache of plain multi-head attention: MLA keeps the latent instead."),
        ((C + R) * c.n_layers, "That is the whole model: the question is about one layer."),
    ])  # fmt: skip


def check_gqa_values(fn, c: Config):
    H, G, d = c.n_heads, c.n_kv_heads, c.v_head_dim
    expect_equal(fn(c), 2 * G * d, what=f"the cache of {H} query heads, {G} key-value heads of {d} features", causes=[
        (2 * H * d, "That keeps a key and a value for each query head: GQA keeps n_kv_heads of them."),
        (G * d, "That counts keys or values: both are kept."),
        (c.kv_lora_rank + c.qk_rope_head_dim, 'That is MLA\'s formula: this config has attn="gqa".'),
        (2 * G * d * c.n_layers, "That is the whole model: the question is about one layer."),
    ])  # fmt: skip


MLA_VALUES = "cfg.kv_lora_rank + cfg.qk_rope_head_dim"
NAIVE_VALUES = "cfg.n_heads * (cfg.qk_nope_head_dim + cfg.qk_rope_head_dim + cfg.v_head_dim)"

CACHE_VALUES = define(
    "3.1", "The cache of one token", minutes=5, difficulty=1,
    statement="""
        Write `cache_values(cfg)`: how many numbers one token leaves in the cache of **one layer**.
        `cfg.attn` is `"mla"` or `"gqa"`. MLA keeps the latent (`kv_lora_rank` numbers) and the rotated key
        (`qk_rope_head_dim`). GQA keeps keys and values of `n_kv_heads` heads, `v_head_dim` features each.
    """,
    hints=(
        "Which tensors does each kind keep, and which of them have a head axis?",
        "MLA: one latent serves keys and values, one rotated key serves all heads. GQA: keys and values of n_kv_heads.",
        "MLA: $C + R$. GQA: $2 \\, n_{kv} \\, d_h$.",
    ),
    check=check_cache_values,
    solution=cache_values,
    why="Nothing in MLA's cache has a head axis: that is the whole saving. V3 keeps 512 + 64 = 576 for its 128 heads.",
    wrong_answers=(
        slip(MLA_VALUES, "cfg.kv_lora_rank", draws="the latent alone", why="Forgets k_pe."),
        slip("+ cfg.qk", "+ cfg.n_heads * cfg.qk", draws="all heads share one", why="A rotated key for each head."),
        slip("cfg.kv_lora", "2 * cfg.kv_lora", draws="two latents", why="Keys and values compressed apart."),
        slip(MLA_VALUES, NAIVE_VALUES, draws="naive form", why="What DeepSeek's own naive code path caches."),
        slip("cfg.n_kv_heads", "cfg.n_heads", draws="keeps n_kv_heads", why="GQA counted as MHA."),
        slip("return 2 * cfg", "return cfg", draws="both are kept", why="Forgets that there are keys and values."),
    ),
)  # fmt: skip


# 3.2 ------------------------------------------------------------------------------------------------------------------


def softmax_scale(cfg):
    """What MLA's scores are multiplied by before the softmax (without YaRN)."""
    return (cfg.qk_nope_head_dim + cfg.qk_rope_head_dim) ** -0.5


def check_softmax_scale(fn):
    N, R = 2 * random.randrange(5, 20), 2 * random.randrange(2, 9)
    mine = replace(small_config(), qk_nope_head_dim=N, qk_rope_head_dim=R, v_head_dim=N + 1, kv_lora_rank=2 * N + 3)
    for c in (mine, replace(v3(), rope_factor=1.0)):
        N, R, V, C = c.qk_nope_head_dim, c.qk_rope_head_dim, c.v_head_dim, c.kv_lora_rank
        expect_close(fn(c), (N + R) ** -0.5, what=f"the scale for N={N}, R={R}, V={V}, C={C}", causes=[
            (N**-0.5, "That is N^-0.5: the R rotated features are part of the same dot product, so they count too."),
            ((C + R) ** -0.5, "That is (C + R)^-0.5. The absorbed form compares C + R features, but computes the same "
             "score in another order: its scale stays."),
            (C**-0.5, "That is C^-0.5: no head compares latents; its key has N + R features."),
            (V**-0.5, "That is V^-0.5: values are mixed after the softmax; the scale belongs to queries and keys."),
            (R**-0.5, "That is R^-0.5: the N features without position are part of the same dot product."),
            ((N + R) ** 0.5, "The sign of the exponent: scores are divided by the root, so that they stay near 1."),
            (1 / (N + R), "The square root is missing: the dot product of n random features spreads by sqrt(n)."),
            (c.dim**-0.5, "That is D^-0.5: one head compares N + R features, not the hidden state."),
        ])  # fmt: skip


KEY_WIDTH = "(cfg.qk_nope_head_dim + cfg.qk_rope_head_dim)"

SOFTMAX_SCALE = define(
    "3.2", "The softmax scale", minutes=3, difficulty=1,
    statement="""
        Write `softmax_scale(cfg)`: the number that multiplies $q^\\top k$ before the softmax (eq. 10), without YaRN.
        `cfg` has `qk_nope_head_dim`, `qk_rope_head_dim`, `v_head_dim`, `kv_lora_rank`.
    """,
    hints=(
        "The dot product of two random vectors of n features spreads by sqrt(n). How many features has a head's key?",
        "A head's key is $[k^C; k^R]$, by eq. 4.",
        "$(N + R)^{-1/2}$.",
    ),
    check=check_softmax_scale,
    solution=softmax_scale,
    why="One head's key has N + R features, 128 + 64 = 192 in V3. The scale stays so in the absorbed form, where the "
    "vectors that meet have 576.",
    wrong_answers=(
        slip(KEY_WIDTH, "cfg.qk_nope_head_dim", draws="N^-0.5", why="128^-0.5: the rotated part forgotten."),
        slip("cfg.qk_nope_head_dim +", "cfg.kv_lora_rank +", draws="(C + R)^-0.5", why="576^-0.5, off the shapes."),
        slip(KEY_WIDTH, "cfg.kv_lora_rank", draws="C^-0.5", why="512^-0.5."),
        slip(KEY_WIDTH, "cfg.v_head_dim", draws="V^-0.5", why="head_dim taken from the values."),
        slip("** -0.5", "** 0.5", draws="sign of the exponent", why="Multiplied where one divides."),
        slip("** -0.5", "** -1", draws="square root is missing", why="Divided by n."),
    ),
)  # fmt: skip


# 3.3 ------------------------------------------------------------------------------------------------------------------


def latents(mla, x, freqs_cis):
    """(c, k_pe) of the tokens x [B S D], ready for the cache: [B S C] and [B S R]."""
    c, k_pe = mla.wkv_a(x).split([mla.C, mla.R], -1)
    c = mla.kv_norm(c)
    k_pe = apply_rotary_emb(k_pe.unsqueeze(2), freqs_cis).squeeze(2)
    return c, k_pe


def check_latents(fn):
    cfg = small_config()
    mla, x = MLA(cfg).double().requires_grad_(False), torch.randn(2, 7, cfg.dim, dtype=torch.float64)
    mla.kv_norm.weight.normal_()  # with ones, a norm without its weight would pass
    start = random.randrange(1, 20)  # position 0 would hide a missing rotation
    freqs_cis = precompute_freqs_cis(cfg)[start : start + 7]

    def turn(k_pe: Tensor) -> Tensor:
        return apply_rotary_emb(k_pe.unsqueeze(2), freqs_cis).squeeze(2)

    raw = mla.wkv_a(x)
    c, k_pe = raw.split([mla.C, mla.R], -1)
    first, last = raw.split([mla.R, mla.C], -1)
    z = torch.complex(*k_pe.chunk(2, -1)) * freqs_cis
    normed = mla.kv_norm(c)
    expect_close(fn(mla, x, freqs_cis), (normed, turn(k_pe)), what="(c, k_pe)", causes=[
        ((c, turn(k_pe)), "The latent is not normalised. kv_norm comes before the cache: cached raw, it would have to "
         "be normalised again at every later step."),
        ((normed, k_pe), "k_pe is not rotated. A key turns by its own token's position, which never changes: rotate "
         "once, then cache."),
        ((c, k_pe), "Neither the norm nor the rotation is there yet: that is W_DKV h as it stands."),
        ((turn(k_pe), normed), "The latent comes first, then the key."),
        (lambda got: (got[1].square().mean(-1) - 1).abs().max() < 1e-3, "k_pe is normalised too: kv_norm is for the "
         "latent alone."),
        ((rms(c), turn(k_pe)), "The norm's weight is missing: call mla.kv_norm."),
        ((mla.kv_norm(last), turn(first)), "The first C features of wkv_a(x) are the latent, the last R the key."),
        ((normed, torch.cat([z.real, z.imag], -1)), "The pairs are (x0, x1), (x2, x3), ..: this turned x0 with the "
         "middle feature, the layout of LLaMA's rotate_half."),
        (lambda got: got[1].numel() == mla.H * k_pe.numel(), "That is a rotated key for each head: all share one."),
    ])  # fmt: skip


def rms(x: Tensor) -> Tensor:
    return x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt()


LATENTS = define(
    "3.3", "What goes into the cache", minutes=10, difficulty=2,
    statement="""
        Write `latents(mla, x, freqs_cis)`: the pair $(c^{KV}, k^R)$ that the cache keeps of each token, of shapes
        `[B, S, C]` and `[B, S, R]` (eq. 1 and 3). `mla.wkv_a` projects `x` to C + R features, `mla.kv_norm` is the
        RMSNorm, `mla.C` and `mla.R` are the sizes; `apply_rotary_emb(t, freqs_cis)` rotates `[B, S, heads, R]`.
    """,
    hints=(
        "To which part does the norm belong, to which the rotation? Both come before caching, so that they come once.",
        "`split([mla.C, mla.R], -1)`; the norm is for the first part, the rotation for the second.",
        "The shared key has one head: `k_pe.unsqueeze(2)` before the rotation, `.squeeze(2)` after it.",
    ),
    check=check_latents,
    solution=latents,
    why="Norm and rotation depend on the token and its position alone, so they are done once, before caching. "
    "The key stays un-normalised: DeepSeek's `kv_a_layernorm` has C weights, not C + R.",
    wrong_answers=(
        slip("    c = mla.kv_norm(c)\n", "", draws="not normalised", why="Caches the latent before its norm."),
        slip("apply_rotary_emb(k_pe.unsqueeze(2), freqs_cis).squeeze(2)", "k_pe", draws="not rotated",
             why="Caches the key before RoPE."),
        slip("return c, k_pe", "return k_pe, c", draws="latent comes first", why="Parts swapped."),
        slip("c, k_pe = mla.wkv_a(x).split([mla.C, mla.R], -1)", "k_pe, c = mla.wkv_a(x).split([mla.R, mla.C], -1)",
             draws="first C features", why="Reads wkv_a's rows in the wrong order."),
        slip("apply_rotary_emb(k_pe.unsqueeze(2), freqs_cis).squeeze(2)",
             "torch.view_as_real(torch.complex(*k_pe.chunk(2, -1)) * freqs_cis).transpose(-1, -2).flatten(-2)",
             draws="rotate_half", why="The half layout of LLaMA on interleaved weights."),
        slip("apply_rotary_emb(k_pe.unsqueeze(2)", "torch.nn.functional.rms_norm(k_pe, (mla.R,))\n"
             "    k_pe = apply_rotary_emb(k_pe.unsqueeze(2)", draws="normalised too", why="Normalises both parts."),
        slip("apply_rotary_emb(k_pe.unsqueeze(2), freqs_cis).squeeze(2)",
             "apply_rotary_emb(k_pe.unsqueeze(2).expand(-1, -1, mla.H, -1), freqs_cis)",
             draws="all share one", why="Gives each head its copy: the saving is lost."),
    ),
)  # fmt: skip


# 3.4 ------------------------------------------------------------------------------------------------------------------


def up_projections(weight, H, N, V):
    """W_UK [H N C] and W_UV [H V C] out of wkv_b's weight [H*(N+V), C]."""
    per_head = weight.view(H, N + V, -1)
    w_uk, w_uv = per_head.split([N, V], 1)
    return w_uk, w_uv


def check_up_projections(fn):
    H, N, V, C = 4, 6, 5, 7
    w = torch.randn(H * (N + V), C, dtype=torch.float64)
    per_head, keys_then_values = w.view(H, N + V, C), (w[: H * N].view(H, N, C), w[H * N :].view(H, V, C))
    expect_close(fn(w, H, N, V), (per_head[:, :N], per_head[:, N:]), what="(W_UK, W_UV)", causes=[
        (keys_then_values, "That takes wkv_b as [all keys; all values]. Its rows go head by head: N rows of keys, V "
         "rows of values, then the next head."),
        ((per_head[:, V:], per_head[:, :V]), "Within a head the key's N rows come first, then the value's V rows."),
        (tuple(t.transpose(0, 1) for t in w.view(N + V, H, C).split([N, V], 0)), "That lets the head change fastest: "
         "the rows of one head lie together, so the head is the first axis of the view."),
        (lambda got: got[0].shape == (H, C, N), "The right rows, transposed: the latent's axis C stays last."),
    ])  # fmt: skip


UP_PROJECTIONS = define(
    "3.4", "Cut wkv_b into heads", minutes=5, difficulty=2,
    statement="""
        `mla.wkv_b.weight` has the shape `[H*(N+V), C]`. Its rows go head by head: N rows of $W^{UK}$, then V rows of
        $W^{UV}$, then the next head. Write `up_projections(weight, H, N, V)` that returns $W^{UK}$ of shape
        `[H, N, C]` and $W^{UV}$ of shape `[H, V, C]`.
    """,
    hints=(
        "Write down which head and which part the rows 0, N and N+V belong to.",
        "A `view` that makes the head an axis of its own, then one `split`.",
        "`weight.view(H, N + V, -1).split([N, V], 1)`",
    ),
    check=check_up_projections,
    solution=up_projections,
    why="DeepSeek's checkpoints keep a head's rows together, so that a GPU with some of the heads holds one piece of "
    "the matrix. Cut as [all keys; all values] it has the right shapes, and the model talks nonsense.",
    wrong_answers=(
        wrong("""
            def up_projections(weight, H, N, V):
                return weight[: H * N].view(H, N, -1), weight[H * N :].view(H, V, -1)
        """, draws="[all keys; all values]", why='The commonest reading of "kv"; the shapes fit.'),
        slip("w_uk, w_uv = per_head.split([N, V], 1)", "w_uv, w_uk = per_head.split([V, N], 1)",
             draws="N rows come first", why="Values first."),
        slip("return w_uk, w_uv", "return w_uk.transpose(1, 2), w_uv.transpose(1, 2)", draws="axis C stays last",
             why="Prepared for a product from the other side."),
        wrong("""
            def up_projections(weight, H, N, V):
                w_uk, w_uv = weight.view(N + V, H, -1).split([N, V], 0)
                return w_uk.transpose(0, 1), w_uv.transpose(0, 1)
        """, draws="head change fastest", why="Axes of the view in the wrong order."),
    ),
)  # fmt: skip


# 3.5 ------------------------------------------------------------------------------------------------------------------


def absorbed_step(q_nope, q_pe, kv, w_uk, w_uv, scale):
    """One new token, all heads, T cached rows: [B H V]."""
    C = w_uk.shape[-1]
    q_c = torch.einsum("bhn,hnc->bhc", q_nope, w_uk)
    scores = torch.einsum("bhk,btk->bht", torch.cat([q_c, q_pe], -1), kv) * scale
    p = scores.softmax(-1)
    z = torch.einsum("bht,btc->bhc", p, kv[..., :C])
    return torch.einsum("bhc,hvc->bhv", z, w_uv)


def check_absorbed_step(fn):
    # chosen so that only a rebuilt key or value has B*T*H*N, B*T*H*V, .. elements: see Watch
    B, T, H, N, R, V, C = 2, 11, 3, 5, 4, 7, 10
    shapes = ((B, H, N), (B, H, R), (B, T, C + R), (H, N, C), (H, V, C))
    q_nope, q_pe, kv, w_uk, w_uv = (torch.randn(*shape, dtype=torch.float64) for shape in shapes)
    scale, other = (N + R) ** -0.5, (C + R) ** -0.5

    def slow(scale_nope=scale, scale_pe=scale, axis=-1):
        """The naive form: every head's key and value of every token is rebuilt."""
        c, k_pe = kv.split([C, R], -1)
        k, v = torch.einsum("btc,hnc->bthn", c, w_uk), torch.einsum("btc,hvc->bthv", c, w_uv)
        nope, pe = torch.einsum("bhn,bthn->bht", q_nope, k), torch.einsum("bhr,btr->bht", q_pe, k_pe)
        return torch.einsum("bht,bthv->bhv", (nope * scale_nope + pe * scale_pe).softmax(axis), v)

    with Watch(B * T) as watch:
        got = fn(q_nope, q_pe, kv, w_uk, w_uv, scale)
    expect_close(got, slow(), what="the heads' outputs", causes=[
        (slow(other, other), "The scale became (C + R)^-0.5. The score is the same number as before, so its scale "
         "stays the one handed in."),
        (slow(scale * other, scale * other), "The scale is applied twice: as handed in, and as (C + R)^-0.5."),
        (slow(1.0, 1.0), "The scale is missing: multiply the scores by it before the softmax."),
        (slow(scale, 1.0), "Only the latent part of the score is scaled: the rotated part belongs to the same score."),
        (slow(scale, 0.0), "The rotated part, q_pe . k_pe, is not in the score: this attention knows no positions."),
        (slow(axis=1), "The softmax runs over the heads: it belongs to the T cached tokens."),
        (lambda a: a.shape == (B, H, C), "That is the mixed latent z: W_UV still has to make each head's value of it."),
        (lambda a: a.shape == (B, H, C + R), "The whole cached row is mixed: values come from its first C features."),
    ])  # fmt: skip
    if shape := watch.rebuilt(H * N, H * V, H * (N + V), H * (N + R)):
        cause = "The numbers are right, but keys or values were rebuilt for all cached tokens: move W_UK to the query."
        raise Wrong("no tensor with a key or value for each head and cached token", f"one of shape {shape}", cause)


class Watch(TorchDispatchMode):
    """Remembers the shapes of all tensors computed inside a `with`, by their numbers per cached token."""

    def __init__(self, rows: int):
        super().__init__()
        self.rows, self.seen = rows, {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.seen.setdefault(result.numel() / self.rows, list(result.shape))
        return result

    def rebuilt(self, *widths: int) -> list[int] | None:
        return next((self.seen[width] for width in widths if width in self.seen), None)


ABSORBED_STEP = define(
    "3.5", "Decode without rebuilding a key", minutes=15, difficulty=3,
    statement="""
        Write `absorbed_step(q_nope, q_pe, kv, w_uk, w_uv, scale)`: attention of **one** new token over T cached ones,
        for all heads. Shapes: `q_nope [B, H, N]`, `q_pe [B, H, R]` (already rotated), the cache `kv [B, T, C+R]`,
        `w_uk [H, N, C]`, `w_uv [H, V, C]`; the result is `[B, H, V]`. No tensor may hold a key or a value for each head
        and cached token: the check looks.
    """,
    hints=(
        "Start from $q_h^\\top W^{UK}_h c_j$. Which product does not depend on j, and so can be formed once?",
        "Three steps: q_c from q_nope and W_UK; scores of [q_c; q_pe] with the whole row; mix the latents, then W_UV.",
        '`einsum("bhn,hnc->bhc", q_nope, w_uk)`, then `"bhk,btk->bht"`, softmax, `"bht,btc->bhc"`, `"bhc,hvc->bhv"`.',
    ),
    check=check_absorbed_step,
    solution=absorbed_step,
    why="Products are associative: $q \\cdot (W^{UK} c) = (W^{UK\\top} q) \\cdot c$, and $\\sum_j p_j (W^{UV} c_j) = "
    "W^{UV} \\sum_j p_j c_j$. All heads read the same row: multi-query attention.",
    wrong_answers=(
        slip("kv) * scale", "kv) * kv.shape[-1] ** -0.5", draws="stays the one handed in", why="576^-0.5."),
        slip(" * scale", "", draws="scale is missing", why="The scale lost when the form changed."),
        slip("torch.cat([q_c, q_pe], -1), kv)", "q_c, kv[..., :C])", draws="knows no positions", why="q_pe forgotten."),
        slip("softmax(-1)", "softmax(1)", draws="over the heads", why="The wrong axis."),
        slip('torch.einsum("bhc,hvc->bhv", z, w_uv)', "z", draws="mixed latent z", why="W_UV forgotten."),
        wrong("""
            def absorbed_step(q_nope, q_pe, kv, w_uk, w_uv, scale):
                c, k_pe = kv[..., : w_uk.shape[-1]], kv[..., w_uk.shape[-1] :]
                k, v = torch.einsum("btc,hnc->bthn", c, w_uk), torch.einsum("btc,hvc->bthv", c, w_uv)
                scores = torch.einsum("bhn,bthn->bht", q_nope, k) + torch.einsum("bhr,btr->bht", q_pe, k_pe)
                return torch.einsum("bht,bthv->bhv", (scores * scale).softmax(-1), v)
        """, draws="were rebuilt", why="The naive form: right numbers, and all the work that absorbing avoids."),
    ),
)  # fmt: skip
