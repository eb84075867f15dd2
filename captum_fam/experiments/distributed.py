"""The processes that share an evaluation or a training: a single process, or the processes that torchrun started."""

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
    """The place of this process among the processes that share the work.

    The processes need a common file system for the results.

    Attributes:
        rank: number of this process, counted from zero. Default: 0.
        size: number of processes. Default: 1.
        device: device of this process. Default: ``"cpu"``.

    Example:
        >>> Ranks(rank=1, size=3).share(["a", "b", "c", "d", "e"])
        ['b', 'e']
    """

    rank: int = 0
    size: int = 1
    device: str = "cpu"

    @property
    def is_first(self) -> bool:
        """Whether this process writes the files that all processes share."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> list[T]:
        """The items of this process: every ``size``-th item, beginning with item ``rank``.

        Args:
            items: the items of all processes.
        """
        return list(items[self.rank :: self.size])

    def wait(self) -> None:
        """Wait until all processes have called this method."""
        if self.size > 1:
            self.gather(None)

    def gather(self, value: T) -> list[T]:
        """Exchange values between the processes.

        Args:
            value: value of this process, which can be pickled.

        Returns:
            The values of all processes in the order of the ranks, the same list in every process.
        """
        if self.size == 1:
            return [value]
        values: list[T | None] = [None] * self.size
        distributed.all_gather_object(values, value)
        return values  # type: ignore[return-value]


@contextmanager
def joined(device: str | None = None) -> Iterator[Ranks]:
    """A context in which this process belongs to the processes that torchrun started, if torchrun started it.

    The process group uses gloo on CPUs and nccl on GPUs. A process group that exists already is used, and stays.

    Args:
        device: device of this process; ``"cuda"`` or None for the GPU with the local rank of the process, but None for
            the CPU if there is no GPU. Default: None.

    Yields:
        The place of this process.

    Example:
        >>> with joined("cpu") as ranks:
        ...     ranks
        Ranks(rank=0, size=1, device='cpu')
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    torch_device = torch.device(device)
    if torch_device.type == "cuda":
        torch.cuda.set_device(torch_device)
    group_exists = distributed.is_available() and distributed.is_initialized()
    if not group_exists and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        # One process may build a memory bank for hours while the others wait.
        distributed.init_process_group("nccl" if torch_device.type == "cuda" else "gloo", timeout=timedelta(days=7))
    elif not group_exists:
        yield Ranks(device=device)
        return
    try:
        yield Ranks(distributed.get_rank(), distributed.get_world_size(), device)
    finally:
        if not group_exists:
            distributed.destroy_process_group()
