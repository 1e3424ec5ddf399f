"""The processes of one run: who they are, and how they add numbers up.

torchrun starts the processes and tells each its place through the environment;
`join` reads it. On its own, without torchrun, a process is a group of one.
"""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

__all__ = ["Group", "join"]

PATIENCE = 600.0
"""Seconds that a process waits for the others in one operation before it gives up."""


@dataclass(frozen=True)
class Group:
    """rank: 0 … size − 1.  device: where this process computes."""

    rank: int
    size: int
    device: torch.device
    mesh: DeviceMesh

    @property
    def chief(self) -> bool:
        """The one that prints and writes what is needed once."""
        return self.rank == 0

    def sums(self, values: Sequence[float]) -> list[float]:
        """Each value summed over the processes; equal, to the bit, in all of them."""
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return total.tolist()

    def tell(self, value: object) -> object:
        """What the chief says; what the others say is not heard."""
        said = [value if self.chief else None]
        dist.broadcast_object_list(said, src=0, device=self.device)
        return said[0]

    def wait(self) -> None:
        """Until all have come this far."""
        dist.barrier()


@contextlib.contextmanager
def join(patience: float = PATIENCE) -> Iterator[Group]:
    """Join the group that torchrun has started; leave it at the end.

    With GPUs NCCL carries the numbers, one GPU a process; without, gloo does.
    """
    rank = int(os.environ.get("RANK", 0))
    size = int(os.environ.get("WORLD_SIZE", 1))
    gpus = torch.cuda.is_available()
    device = torch.device("cpu")
    if gpus:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(device)
    alone = {} if "RANK" in os.environ else {"store": dist.HashStore()}
    dist.init_process_group(
        "nccl" if gpus else "gloo",
        rank=rank,
        world_size=size,
        timeout=datetime.timedelta(seconds=patience),
        **alone,
    )
    try:
        yield Group(rank, size, device, init_device_mesh(device.type, (size,)))
    finally:
        dist.destroy_process_group()
