"""What it costs to send tokens to experts on other nodes: a model with two links, and how much of it computing hides.

Paper: DeepSeek-V3 section 3.2.2 (50 GB/s InfiniBand, 160 GB/s NVLink, at most 4 nodes a token); chunked overlap as in
Comet (arXiv 2502.19811); byte counts from section 3.3 (FP8 dispatch, BF16 combine).

A token goes over InfiniBand once for each target NODE, to the GPU of the same place there, and from it over NVLink to
the GPUs of its experts. Both links work at the same time on different tokens:

    t_IB = M b / IB        M nodes, b bytes a copy
    t_NV = K b / NV        K experts
    t    = max(t_IB, t_NV) a token and GPU

So as long as K b / NV <= M b / IB, more experts cost nothing: NV / IB = 3.2 experts a node, 12.8 on 4 nodes (the paper
says a maximum of 13; it uses 8).

Differs from the paper: nothing in the formula, which is the paper's reasoning. Real links reach less: DeepEP's README
measures 43 to 58 GB/s over InfiniBand and 153 to 158 over NVLink on H800.
Left out: latency, and that a token's own node needs no InfiniBand.
Notebook: 11_expert_parallel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True)
class Links:
    """Bandwidths in GB/s for one GPU."""

    ib: float = 50.0
    nvlink: float = 160.0

    def __post_init__(self):
        if min(self.ib, self.nvlink) <= 0:
            raise ValueError(f"a link has a bandwidth above 0 GB/s; got {self.ib} and {self.nvlink}. H800: 50 and 160.")

    @property
    def experts_per_node(self) -> float:
        """How many experts on each node are reached in the time that InfiniBand needs anyway. H800: 3.2."""
        return self.nvlink / self.ib


class Transfer(NamedTuple):
    """Microseconds a token for one all-to-all, of each link."""

    ib: float
    nvlink: float

    @property
    def time(self) -> float:
        """Both links at once: the slower one."""
        return max(self.ib, self.nvlink)


def transfer(bytes_per_token: float, nodes: float, experts: float, links: Links | None = None) -> Transfer:
    """One token's copies: one a node over InfiniBand, one an expert over NVLink. Microseconds.

    ValueError for more nodes than experts: a node that holds none of them is not visited.
    """
    links = links or Links()
    if not 0 <= nodes <= experts:
        raise ValueError(f"a token visits at most a node an expert; got {nodes} nodes, {experts} experts. V3: 4 and 8.")
    # GB/s are thousands of bytes a microsecond
    return Transfer(nodes * bytes_per_token / links.ib / 1000, experts * bytes_per_token / links.nvlink / 1000)


def dispatch_bytes(dim: int, tile: int = 128, scales: bool = True) -> int:
    """A token in FP8: one byte a value, and an FP32 scale for each tile of 128. V3: 7,168 and 224 of scales."""
    return dim + (4 * -(-dim // tile) if scales else 0)


def combine_bytes(dim: int) -> int:
    """A token's output in BF16. V3: 14,336."""
    return 2 * dim


class Overlap(NamedTuple):
    """Time of `chunks` pieces of communication and computing, one behind the other."""

    alone: float  # one after the other
    together: float
    hidden: float  # share of the communication that is hidden


def overlapped(compute: float, communicate: float, chunks: int) -> Overlap:
    """Cut both into equal chunks; a chunk is computed when it has arrived, while the next one travels.

    Assumes that computing and communicating do not slow each other down (the paper spends 20 of 132 SMs on the latter)
    and that a chunk costs its share. Any unit of time.
    """
    if chunks < 1 or compute < 0 or communicate < 0:
        raise ValueError(f"times are 0 or more, chunks 1 or more; got {compute}, {communicate}, {chunks}.")
    c, m = compute / chunks, communicate / chunks
    arrived = done = 0.0
    for _ in range(chunks):
        arrived += m
        done = max(done, arrived) + c
    alone = compute + communicate
    return Overlap(alone, done, (alone - done) / communicate if communicate else 1.0)


def nodes_visited(experts: list[list[int]], experts_per_node: int) -> list[int]:
    """On how many nodes each token's experts lie."""
    return [len({e // experts_per_node for e in row}) for row in experts]
