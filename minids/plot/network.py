"""Pictures of experts on other nodes: a token's copies, who sends how much to whom, two links, overlap, memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.patches import Rectangle

from minids.network import Links, overlapped, transfer
from minids.plot.style import BLUE, COLOURS, GREEN, GREY, ORANGE, PALE, SKY, Picture, axes, styled, text_on


@styled
def token_copies(experts: Sequence[int], nodes: int, gpus: int, each: int, once_a_node: bool = True) -> Picture:
    """Where the copies of one token go, from the first GPU of the first node.

    Args:
        experts: the token's experts; a GPU holds `each` of them, a node has `gpus` GPUs.
        once_a_node: one copy a node, forwarded there; otherwise one for each expert straight to its GPU.
    """
    place = [(e // each // gpus, e // each % gpus) for e in experts]
    visited = sorted({node for node, _ in place})
    crossing = [n for n in visited if n] if once_a_node else [n for n, _ in place if n]
    way = "once for each node" if once_a_node else "once for each expert"
    told = f"{len(experts)} experts on {len(visited)} nodes, sent {way}: {len(crossing)} copies leave the node"
    picture, ax = axes(f"A token's copies: {told}", height=3.6)
    for node in range(nodes):
        ax.add_patch(Rectangle((node - 0.42, -0.55), 0.84, gpus, fill=False, edgecolor=GREY))
        for gpu in range(gpus):
            holds = place.count((node, gpu))
            ax.add_patch(Rectangle((node - 0.16, gpu - 0.3), 0.32, 0.6, facecolor=GREEN if holds else PALE))
            ax.text(node, gpu, f"{holds} x" if holds > 1 else "", ha="center", va="center", color="white", fontsize=9)
    arrow: dict[str, Any] = {"arrowstyle": "-|>", "linewidth": 1.6, "shrinkA": 0, "shrinkB": 0}
    for i, (node, gpu) in enumerate(place):
        if once_a_node and (node, gpu) != (node, 0):
            ends = (node - 0.17, gpu), (node - 0.3, 0.05 * (i % 3))
            ax.annotate("", *ends, arrowprops={**arrow, "color": BLUE, "linestyle": "--"})
        elif node and not once_a_node:
            bend = {"connectionstyle": f"arc3,rad={-0.08 - 0.05 * (i % 3)}"}
            ax.annotate("", (node - 0.17, gpu), (0.17, 0), arrowprops={**arrow, **bend, "color": ORANGE})
    for node in visited if once_a_node else ():
        if node:
            bend = {"connectionstyle": "arc3,rad=0.12"}
            ax.annotate("", (node - 0.17, 0), (0.17, 0), arrowprops={**arrow, **bend, "color": ORANGE})
    ax.text(0, 0, "token", ha="center", va="center", fontsize=9)
    ax.text(0.99, 1.0, "InfiniBand: orange   NVLink: blue, dashed", ha="right", transform=ax.transAxes, fontsize=9)
    ax.set(xlim=(-0.55, nodes - 0.45), ylim=(-0.9, gpus - 0.3), xlabel="node", ylabel="GPU")
    ax.set_title(told[0].upper() + told[1:], pad=14)
    ax.set_xticks(range(nodes))
    ax.set_yticks(range(gpus))
    ax.grid(visible=False)
    return picture


@styled
def sent_rows(counts: Sequence[Sequence[int]], title: str = "Rows that each process sends") -> Picture:
    """A table in colours: row r, column i is how much process r sends to process i."""
    N, most = len(counts), max(max(row) for row in counts) or 1
    picture, ax = axes(f"{title}: {'; '.join(' '.join(map(str, row)) for row in counts)}", width=4.6, height=3.2)
    image = ax.imshow(counts, cmap="Blues", vmin=0, vmax=most, aspect="auto")
    for r, row in enumerate(counts):
        for i, n in enumerate(row):
            rgba = image.cmap(image.norm(n))
            hexed = "#" + "".join(f"{round(255 * c):02x}" for c in rgba[:3])
            ax.text(i, r, f"{n:,}", ha="center", va="center", color=text_on(hexed))
    ax.set(title=title, xlabel="to process", ylabel="from process")
    ax.set_xticks(range(N))
    ax.set_yticks(range(N))
    ax.grid(visible=False)
    return picture


@styled
def network_lab(
    ib: float = 50.0, nvlink: float = 160.0, nodes: int = 4, experts: int = 8, row_bytes: int = 7168, most: int = 24
) -> Picture:
    """Microseconds a token for an all-to-all against the number of experts, and which of the two links decides.

    Args:
        ib, nvlink: GB/s; row_bytes: of one copy; most: where the axis of experts ends.
    """
    links, experts = Links(ib, nvlink), max(experts, nodes)
    here, ks = transfer(row_bytes, nodes, experts, links), range(nodes, most + 1)
    free = links.experts_per_node * nodes
    slow = "InfiniBand" if here.ib >= here.nvlink else "NVLink"
    told = f"{experts} experts on {nodes} nodes: {here.time:.2f} us, {slow} decides"
    alt = f"Network: {told}; up to {free:.1f} experts cost nothing"
    picture, (ax, bar) = axes(alt, 1, 2, height=3.2, width_ratios=(2.4, 1))
    ax.axvspan(nodes, max(nodes, min(free, most)), color=PALE, zorder=0)
    ax.plot(ks, [transfer(row_bytes, nodes, k, links).ib for k in ks], "-", color=ORANGE, label="InfiniBand")
    ax.plot(ks, [transfer(row_bytes, nodes, k, links).nvlink for k in ks], "--", color=BLUE, label="NVLink")
    ax.plot(ks, [transfer(row_bytes, nodes, k, links).time for k in ks], ":", color="black", linewidth=3.2, alpha=0.6,
            label="both at once")  # fmt: skip
    ax.plot([experts], [here.time], "o", color="black", markersize=8)
    ax.set(title=told, xlabel=f"experts of a token (grey: free, up to {free:.1f})", ylabel="time (us a token)")
    ax.set(xlim=(0, most + 0.5), ylim=(0, None))
    ax.legend(loc="upper left")
    bar.bar(["InfiniBand", "NVLink"], here, color=[ORANGE, BLUE], hatch=["", "//"], edgecolor="white")
    bar.set(ylabel="time (us a token)", title="Busy time", ylim=(0, 1.15 * here.time))
    for i, value in enumerate(here):
        bar.text(i, value, f"{value:.2f}", ha="center", va="bottom", fontsize=9)
    bar.grid(visible=False, axis="x")
    return picture


@styled
def overlap_bars(compute: float = 1.0, communicate: float = 1.0, chunks: int = 4) -> Picture:
    """Communication and computing in chunks, one behind the other, on a common axis of time."""
    found = overlapped(compute, communicate, chunks)
    told = f"{chunks} chunk{'s' * (chunks > 1)}: {found.hidden:.0%} of the communication is hidden"
    picture, ax = axes(f"Overlap: {told}, {found.together:.2f} instead of {found.alone:.2f}", height=2.3)
    c, m, done = compute / chunks, communicate / chunks, 0.0
    for i in range(chunks):
        start = max(done, (i + 1) * m)
        done = start + c
        for y, x, width, colour in ((1, i * m, m, ORANGE), (0, start, c, SKY)):
            ax.barh(y, width, left=x, height=0.6, color=colour, edgecolor="white")
            if width > 0.09:
                ax.text(x + width / 2, y, str(i + 1), ha="center", va="center", fontsize=9)
    ax.axvline(found.alone, color=GREY, linestyle="--", linewidth=1.2)
    ax.annotate("one after the other", (found.alone, 1.55), ha="right", fontsize=9, color=GREY)
    ax.set(title=told, xlabel="time", ylim=(-0.5, 1.8), xlim=(0, 1.02 * found.alone))
    ax.set_yticks([0, 1], ["compute", "send"])
    ax.grid(visible=False, axis="y")
    return picture


@styled
def memory_by_kind(plans: Mapping[str, Mapping[str, float]], limit: float = 80.0) -> Picture:
    """Gigabytes of one GPU by kind, a bar for each plan, beside what the GPU has.

    Args:
        plans: name -> kind -> bytes; limit: GB of the GPU.
    """
    totals = {name: sum(kinds.values()) / 1e9 for name, kinds in plans.items()}
    told = ", ".join(f"{name} {total:.0f} GB" for name, total in totals.items())
    picture, ax = axes(f"Memory of one GPU: {told}", height=1.4 + 0.55 * len(plans))
    hatches = ("", "//", "..", "xx", "\\\\")
    for y, kinds in enumerate(plans.values()):
        left = 0.0
        for i, (kind, size) in enumerate(kinds.items()):
            style: dict[str, Any] = {"color": COLOURS[i % 7], "hatch": hatches[i % 5], "edgecolor": "white"}
            ax.barh(y, size / 1e9, left=left, height=0.6, label=kind if y == 0 else None, **style)
            left += size / 1e9
        ax.text(left, y, f" {left:.0f} GB", va="center", fontsize=9)
    ax.axvline(limit, color="black", linestyle="--", linewidth=1.4)
    ax.set_yticks(range(len(plans)), list(plans))
    ax.set(xlabel=f"GB on one GPU, activations left out (dashed: the {limit:g} GB of the GPU)")
    ax.set(ylim=(len(plans) - 0.4, -0.6), xlim=(0, 1.15 * max(limit, *totals.values())))
    ax.legend(ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    ax.grid(visible=False, axis="y")
    return picture
