"""The anatomy of a DeepSeek model, drawn from its config: the stack, one block opened, and the parameters to scale.

    left    every block as one row, bottom to top (attention, then FFN); embedding below, head and MTP module above
    right   one block opened: its experts (those that answer for a token are lit), its heads, what a token caches
    below   all parameters to scale, and the share that one token touches, enlarged

What is true to scale says so in the picture: the bars of parameters, and the two bars of the cache. Which experts are
lit is drawn at random within the gate's rules (K experts from at most M groups); a trained gate looks at the token.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from matplotlib.collections import PatchCollection
from matplotlib.patches import Polygon, Rectangle

from minids.config import Config
from minids.costs import Params, cache_values_per_token, kv_bytes_per_token, params
from minids.plot.style import BLUE, GREEN, GREY, ORANGE, PALE, PINK, SKY, Picture, axes, styled, text_on

WIDTH, HEIGHT = 70.0, 67.0  # in tenths of an inch
STACK = (5.2, 20.0, 12.5, 33.5)  # left, bottom, width, height of the blocks
OPEN = (21.5, 18.5, 48.5, 43.0)  # the opened block
LEFT, RIGHT, TOP = OPEN[0] + 1.5, OPEN[0] + OPEN[2] - 1.5, OPEN[1] + OPEN[3] - 1.6
BLACK, DARK, EXPERTS = "#000000", "#BDBDBD", "#F3C9A5"


@styled
def machine(cfg: Config, name: str = "model", token: int = 0) -> Picture:
    """A whole model in one picture.

    Args:
        cfg: the sizes; ValueError unless attention is MLA and there are experts.
        name: what the title calls it.
        token: another number lights other experts.
    """
    if cfg.attn != "mla" or not cfg.has_experts:
        found = f"attn={cfg.attn!r}, n_routed_experts={cfg.n_routed_experts}"
        raise ValueError(f"the picture shows MLA and experts; got {found}. Take tiny() or one of DeepSeek's models.")
    p = params(cfg)
    touched = f"{short(p.activated)} ({100 * p.activated / p.total:.1f}%) touched by one token"
    alt = f"Anatomy of {name}: {short(p.total)} parameters, {touched}; {cfg.n_activated_experts} of "
    alt += f"{cfg.n_routed_experts} experts lit; {kv_bytes_per_token(cfg):,} bytes cached per token"
    picture, ax = axes(alt, height=HEIGHT / 10)
    picture.set_layout_engine("none")  # the drawing has a fixed grid of its own
    ax.set_position((0.005, 0.005, 0.99, 0.99))
    ax.set(xlim=(-0.3, WIDTH + 0.3), ylim=(-0.3, HEIGHT), aspect="equal")
    ax.axis("off")
    _text(ax, 0, HEIGHT - 1.4, name, 13, weight="bold")
    _text(ax, WIDTH, HEIGHT - 1.4, f"{short(p.total)} parameters, {touched}", 10, ha="right")
    _stack(ax, cfg, p)
    _experts(ax, cfg, token)
    _attention(ax, cfg)
    _parameters(ax, p)
    return picture


def short(count: float) -> str:
    """A count in a word's length: 671.0 B, 3.1 M, 512."""
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if count >= size:
            return f"{count / size:.1f} {letter}"
    return f"{count:.0f}"


def _text(ax: Any, x: float, y: float, text: str, size: float = 8.5, **style: Any) -> None:
    ax.text(x, y, text, **{"fontsize": size, "va": "center", **style})


def _box(ax: Any, x: float, y: float, w: float, h: float, colour: str, text: str = "", edge: float = 0.8) -> None:
    ax.add_patch(Rectangle((x, y), w, h, facecolor=colour, edgecolor="white", linewidth=edge, snap=False))
    if text:
        _text(ax, x + w / 2, y + h / 2, text, 8, ha="center", color=text_on(colour))


def _stack(ax: Any, cfg: Config, p: Params) -> None:
    """The blocks, one row each, with what stands below and above them, and the frame of the opened one."""
    x, y, w, h = STACK
    step = h / cfg.n_layers
    for i in range(cfg.n_layers):
        _box(ax, x, y + i * step, 0.35 * w, 0.84 * step, BLUE, edge=0)
        ffn = SKY if i < cfg.n_dense_layers else EXPERTS
        _box(ax, x + 0.35 * w, y + i * step, 0.65 * w, 0.84 * step, ffn, edge=0)
    _box(ax, x, y - 4.2, w, 3.2, GREY, f"embedding {cfg.vocab_size:,}")
    _box(ax, x, y + h + 0.6, w, 3.2, GREY, f"head {cfg.vocab_size:,}")
    if cfg.n_mtp_modules:
        _box(ax, x, y + h + 4.6, w, 3.2, PINK, f"MTP +{short(p.mtp)}")
    for low, count, what in ((0, cfg.n_dense_layers, "dense"), (cfg.n_dense_layers, cfg.n_moe_layers, "with experts")):
        middle = y + (low + count / 2) * step
        if count * step > 7:
            words = f"{count} blocks {what}" if count * step > 12 else f"{count} {what}"
            _text(ax, x - 1.8, middle, words, rotation=90, ha="center")
        elif count:
            _text(ax, x - 0.6, middle, f"{count} dense" if low == 0 else f"{count}", 8, ha="right")
    _open(ax, x + w, y + (cfg.n_dense_layers + (cfg.n_moe_layers - 1) // 2) * step, 0.84 * step)


def _open(ax: Any, x: float, row: float, height: float) -> None:
    """From one row of the stack to the frame on the right in which it is drawn large."""
    left, bottom, w, h = OPEN
    corners = [(x, row), (left, bottom), (left, bottom + h), (x, row + height)]
    ax.add_patch(Polygon(corners, facecolor=PALE, edgecolor="none", alpha=0.6))
    frame = Rectangle((STACK[0], row), STACK[2], height, fill=False, edgecolor=BLACK, linewidth=1.2, snap=False)
    ax.add_patch(frame)
    ax.add_patch(Rectangle((left, bottom), w, h, facecolor="white", edgecolor=GREY, linewidth=0.8))


def _experts(ax: Any, cfg: Config, token: int) -> None:
    """The routed experts of one block in their groups, K of them lit, beside the shared ones."""
    E, K, G, M = cfg.n_routed_experts, cfg.n_activated_experts, cfg.n_expert_groups, cfg.n_limited_groups
    limited = M < G
    groups = f" in {G} groups, {K} answer, from at most {M} groups" if limited else f", {K} answer"
    _text(ax, LEFT, TOP, "DeepSeekMoE", 9.5, weight="bold")
    _text(ax, LEFT, TOP - 2.4, f"{E} routed experts{groups}")
    open_groups, lit = lit_experts(E, K, G, M, token)
    squares, colours = [], []
    for e, x, y, size in grid_of_squares(E, G, LEFT, TOP - 4.0, 37.5, 13.5):
        squares.append(Rectangle((x, y), size, size))
        colours.append(ORANGE if e in lit else DARK if limited and e // (E // G) in open_groups else PALE)
    ax.add_collection(PatchCollection(squares, facecolor=colours, edgecolor="none"))
    _text(ax, RIGHT, TOP - 2.4, f"{cfg.n_shared_experts} shared", ha="right")
    for i in range(cfg.n_shared_experts):
        _box(ax, RIGHT - 3.4, TOP - 7.6 - 4.2 * i, 3.4, 3.4, GREEN)
    key = {"answers for this token": ORANGE, "open group": DARK, "resting": PALE, "always answers": GREEN}
    _key(ax, LEFT, TOP - 20.0, [(c, text) for text, c in key.items() if limited or c != DARK])


def _key(ax: Any, x: float, y: float, entries: list[tuple[str, str]]) -> None:
    """Small squares with their meaning, in a row."""
    for colour, text in entries:
        _box(ax, x, y, 1.2, 1.2, colour)
        _text(ax, x + 1.7, y + 0.6, text, 8)
        x += 0.61 * len(text) + 3.1


def lit_experts(E: int, K: int, G: int, M: int, token: int) -> tuple[set[int], set[int]]:
    """(open groups, experts that answer): a random choice within the gate's rules, the same for the same token."""
    rng = np.random.default_rng([E, K, G, token])
    groups = {int(g) for g in rng.choice(G, M, replace=False)}
    allowed = [e for e in range(E) if e // (E // G) in groups]
    return groups, {int(e) for e in rng.choice(allowed, K, replace=False)}


def grid_of_squares(
    n: int, groups: int, left: float, top: float, width: float, height: float
) -> Iterator[tuple[int, float, float, float]]:
    """(number, x, y, side) of n squares: the groups side by side in two rows, the squares as large as fits."""
    bands = 2 if groups > 4 else 1
    across, each, gap = -(-groups // bands), n // groups, 0.9
    w, h = width / across - gap, height / bands - gap
    side = {rows: min(w / -(-each // rows), h / rows, 5.4) for rows in range(1, each + 1)}
    # full rows, if they cost little: a ragged last one is harder to count
    full = {rows: s for rows, s in side.items() if each % rows == 0 and s > 0.75 * max(side.values())} or side
    down = max(full, key=lambda rows: full[rows])
    wide, step = -(-each // down), side[down]
    for i in range(n):
        g, k = divmod(i, each)
        x = left + (g % across) * (wide * step + gap) + (k % wide) * step
        y = top - (g // across) * (down * step + gap) - (k // wide + 1) * step
        yield i, x, y, step * 0.86


def _attention(ax: Any, cfg: Config) -> None:
    """The heads, and what one token caches in this block: all heads' keys and values against MLA's, to scale."""
    top, y = OPEN[1] + 19.5, OPEN[1] + 5.6
    ax.plot([OPEN[0], OPEN[0] + OPEN[2]], [top + 1.5] * 2, color=GREY, linewidth=0.8)
    _text(ax, LEFT, top - 0.4, "Multi-head Latent Attention", 9.5, weight="bold")
    _text(ax, LEFT, top - 2.8, f"{cfg.n_heads} heads, hidden width {cfg.dim:,}")
    grid = grid_of_squares(cfg.n_heads, 1, LEFT, top - 4.2, RIGHT - LEFT, 5.2)
    squares = [Rectangle((x, y), side, side) for _, x, y, side in grid]
    ax.add_collection(PatchCollection(squares, facecolor=BLUE, edgecolor="none"))
    heads, latent = cfg.n_heads * (cfg.qk_head_dim + cfg.v_head_dim), cache_values_per_token(cfg)
    short_bar = (RIGHT - LEFT) * latent / heads
    _text(ax, LEFT, y + 2.7, "Cached for one token in this block, to scale:")
    _box(ax, LEFT, y - 0.2, RIGHT - LEFT, 1.6, PALE)
    _text(ax, RIGHT - 0.4, y + 0.6, f"keys and values of all heads: {heads:,} numbers", 8, ha="right")
    _box(ax, LEFT, y - 2.4, short_bar, 1.6, ORANGE, edge=0)
    _text(ax, LEFT + short_bar + 0.7, y - 1.6, f"what MLA keeps instead: {latent:,} numbers", 8)
    _text(ax, LEFT, y - 4.2, f"whole model: {kv_bytes_per_token(cfg):,} bytes per token in BF16", weight="bold")


def _parameters(ax: Any, p: Params) -> None:
    """All parameters to scale; below them, enlarged, those that one token touches."""
    lit = {
        "attention": (BLUE, p.attention),
        "dense FFN": (SKY, p.dense_ffn),
        "answering experts": (ORANGE, p.experts - p.idle_experts),
        "shared": (GREEN, p.shared_experts),
        "gates, norms": (BLACK, p.gates + p.norms),
        "head": (GREY, p.head),
    }
    _text(ax, 0, 13.6, "All parameters, to scale", 9.5, weight="bold")
    start = p.embedding * WIDTH / p.total
    _box(ax, 0, 8.9, start, 3.4, GREY, edge=0)
    end, _ = _bar(ax, start, 8.9, WIDTH / p.total, lit, words=False)
    _box(ax, end, 8.9, WIDTH - end, 3.4, PALE, f"experts that rest: {short(p.idle_experts)}", edge=0)
    corners = [(start, 8.8), (0, 4.9), (WIDTH, 4.9), (end, 8.8)]
    ax.add_patch(Polygon(corners, facecolor=PALE, edgecolor="none", alpha=0.6))
    percent = f"{100 * p.activated / p.total:.1f}%"
    _text(ax, WIDTH / 2, 6.4, f"what one token touches, enlarged: {short(p.activated)}, {percent}", 9, ha="center")
    _, narrow = _bar(ax, 0, 1.6, WIDTH / p.activated, lit, words=True)
    _key(ax, 0, -0.1, [*narrow, (GREY, f"far left, embedding {short(p.embedding)}: looked up")])


def _bar(
    ax: Any, x: float, y: float, scale: float, parts: dict[str, tuple[str, int]], words: bool
) -> tuple[float, list[tuple[str, str]]]:
    """(where the bar ends, the parts too narrow for their own words, for the key)."""
    narrow = []
    for what, (colour, n) in parts.items():
        fits = n * scale > 0.75 * max(len(what), 6)
        _box(ax, x, y, n * scale, 3.4, colour, f"{what}\n{short(n)}" if words and fits else "", 0.6 if words else 0)
        narrow += [] if fits or not n else [(colour, f"{what} {short(n)}")]
        x += n * scale
    return x, narrow
