"""The processes that share an evaluation: one, or those that torchrun started."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
from torch import distributed

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process among those that share the work. They need a common file system for the results.

    Attributes:
        rank: of this process.
        size: number of processes.
        device: of this process.
    """

    rank: int = 0
    size: int = 1
    device: str = "cpu"

    @property
    def is_first(self) -> bool:
        """Whether this process writes what belongs to all."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> list[T]:
        """Every ``size``-th of the items, from ``rank`` on."""
        return list(items[self.rank :: self.size])

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            self.gather(None)

    def gather(self, value: T) -> list[T]:
        """The values of all processes, by rank, on each of them."""
        if self.size == 1:
            return [value]
        values: list[T | None] = [None] * self.size
        distributed.all_gather_object(values, value)
        return values  # type: ignore[return-value]


@contextmanager
def joined(device: str | None = None) -> Iterator[Ranks]:
    """This process as one of those that torchrun started, or alone.

    The group is of gloo on CPUs and of nccl on GPUs; one that is there already is used and left.

    Args:
        device: None: a GPU for each process where there are any, else the CPU.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    chosen = torch.device(device)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    given = distributed.is_available() and distributed.is_initialized()
    if not given and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        # One process may build a memory bank for hours while the others wait.
        distributed.init_process_group("nccl" if chosen.type == "cuda" else "gloo", timeout=timedelta(days=7))
    elif not given:
        yield Ranks(device=device)
        return
    try:
        yield Ranks(distributed.get_rank(), distributed.get_world_size(), device)
    finally:
        if not given:
            distributed.destroy_process_group()
