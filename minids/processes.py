"""Several processes that work as one: start them, let each know its rank, join them into groups, collect what they say.

Not in the paper: the ground that 10_dualpipe and 11_expert_parallel stand on. Everything is `torch.distributed`;
tensors on a processor travel by gloo, those on GPUs by NCCL.

    launch(work, 4, x)            starts 4 processes, each calls work(x); returns their 4 results in order of rank
    grid(node=2, local=2)         the ranks as a table with a group for each row and each column

Every group has a timeout of its own. torch gives a new group 30 minutes (gloo) whatever the first one has, so a rank
that dies would hold the others for half an hour in any group but the first; `grid` passes it on.

Left out: starting processes on other machines, which `torchrun` does; `join` reads what it sets.
Notebook: 11_expert_parallel.
"""

from __future__ import annotations

import math
import os
import sys
import tempfile
from collections.abc import Callable
from datetime import timedelta
from multiprocessing import set_forkserver_preload
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.device_mesh import DeviceMesh

TIMEOUT = 60.0  # seconds that a rank waits for another one
COPIED = ["torch.distributed", "minids.model"]  # what a process has imported when it begins, on Linux


def launch(work: Callable[..., Any], world: int, *args: Any, timeout: float = TIMEOUT) -> list[Any]:
    """Call `work(*args)` in each of `world` new processes that can talk to one another; their results by rank.

    Args:
        work: a function of a module (it is found by name in the new process). Inside it `torch.distributed` is ready.
            It returns tensors, numbers, texts, and lists or dictionaries of them.
        timeout: seconds that a process waits for another one before it gives up.
    ValueError for less than one process. When one process fails the others are ended, and its error is raised.
    """
    if world < 1:
        raise ValueError(f"a world has at least one process; got {world}. Give 2 or 4.")
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(_one, (world, folder, timeout, work, args), nprocs=world, start_method=start_method())
        return [torch.load(Path(folder, f"{rank}.pt")) for rank in range(world)]


def start_method() -> str:
    """How a new process begins: anew, or on Linux as a copy of one that has imported torch, which spares two seconds.

    That one has computed nothing and joined no group, so nothing is copied half done. Elsewhere such copies are not
    safe (macOS) or not there (Windows), and a long name of the temporary folder forbids them.
    """
    longest = 107 - len("/pymp-01234567/listener-01234567")  # of a socket's path, which lies in the temporary folder
    if sys.platform != "linux" or len(os.fsencode(tempfile.gettempdir())) > longest:
        return "spawn"
    set_forkserver_preload(COPIED)
    return "forkserver"


def _one(rank: int, world: int, folder: str, timeout: float, work: Callable[..., Any], args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    join(rank, world, Path(folder, "meeting"), timeout)
    torch.save(work(*args), Path(folder, f"{rank}.pt"))
    dist.barrier()  # nobody leaves while another one still listens
    dist.destroy_process_group()


def join(
    rank: int | None = None, world: int | None = None, meeting: Path | None = None, timeout: float = TIMEOUT
) -> None:
    """Make this process one of `world` that meet at a file; without arguments, one of those that torchrun started."""
    wait = timedelta(seconds=timeout)
    if rank is None or world is None or meeting is None:
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=wait)
        return
    store = dist.FileStore(str(meeting), world)
    store.set_timeout(wait)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=wait)


def grid(timeout: float = TIMEOUT, device: str = "cpu", **sizes: int) -> DeviceMesh:
    """The ranks as a table, `grid(node=2, local=4)`: rank 5 is the second GPU of node 1. Or as one of more dimensions.

    A mesh of named dimensions; its groups give up after `timeout` seconds. ValueError unless the sizes multiply to the
    number of processes.
    """
    world, product = dist.get_world_size(), math.prod(sizes.values())
    if min(sizes.values()) < 1 or product != world:
        raise ValueError(
            f"{' x '.join(sizes)} is the number of processes; got {' x '.join(map(str, sizes.values()))} for {world}. "
            f"Start {product} processes, or change one of the {'two' if len(sizes) == 2 else 'sizes'}."
        )
    ranks, groups = torch.arange(world).view(*sizes.values()), []
    for axis, size in enumerate(sizes.values()):
        lines = ranks.movedim(axis, -1).reshape(-1, size).tolist()
        group, _ = dist.new_subgroups_by_enumeration(lines, timeout=timedelta(seconds=timeout))
        groups.append(group)  # every rank is in one of each
    return DeviceMesh.from_group(groups, device, mesh=ranks, mesh_dim_names=tuple(sizes))


def gathered(result: Any) -> list[Any]:
    """What each process says, by rank, in every process."""
    results = [None] * dist.get_world_size()
    dist.all_gather_object(results, result)
    return results
