"""The processes that share work on a data set: a single process, or the processes that torchrun started."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, TypeVar

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
        group: the process group of PyTorch in which values are exchanged; None for the group of all processes.
            Default: None.

    Example:
        >>> Ranks(rank=1, size=3).share(["a", "b", "c", "d", "e"])
        ['b', 'e']
    """

    rank: int = 0
    size: int = 1
    device: str = "cpu"
    group: Any = field(default=None, repr=False, compare=False)

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
        distributed.all_gather_object(values, value, group=self.group)
        return values  # type: ignore[return-value]

    def exchange(self, values: Sequence[T]) -> list[T]:
        """Send one value to each process.

        Args:
            values: the values for the processes, in the order of the ranks; they can be pickled.

        Returns:
            The values that the processes have sent to this process, in the order of the ranks.
        """
        if self.size == 1:
            return list(values)
        received: list[T] = []
        for source in range(self.size):
            inbox: list[Any] = [None]
            outbox = list(values) if source == self.rank else None
            distributed.scatter_object_list(inbox, outbox, source, self.group)
            received.append(inbox[0])
        return received

    def only_first(self, work: Callable[[], object]) -> None:
        """Call a function in the first process, while the others wait.

        Args:
            work: the function.

        Raises:
            RuntimeError: in the other processes, if the function raises an exception in the first.
        """
        error: Exception | None = None
        if self.is_first:
            try:
                work()
            except Exception as caught:  # the other processes must not wait for a process that has failed
                error = caught
        failure = self.gather(None if error is None else f"{type(error).__name__}: {error}")[0]
        if error is not None:
            raise error
        if failure is not None:
            raise RuntimeError(f"process 0 has failed: {failure}")

    def apart(self) -> Ranks:
        """The same processes with a group of their own, whose values do not mix with those of other groups.

        All processes must call this method. Values travel through the memory of the CPU.
        """
        if self.size == 1:
            return self
        return replace(self, group=distributed.new_group(backend="gloo"))


def torchrun_size() -> int:
    """The number of processes that torchrun has started, this one among them; 1 without torchrun.

    Example:
        >>> torchrun_size()
        1
    """
    return int(os.environ.get("WORLD_SIZE", 1))


def current_ranks() -> Ranks:
    """The processes of PyTorch's process group, if there is one; else this process alone.

    Example:
        >>> current_ranks()
        Ranks(rank=0, size=1, device='cpu')
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return Ranks()
    return Ranks(distributed.get_rank(), distributed.get_world_size())


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
    if not group_exists and torchrun_size() > 1:
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


@contextmanager
def every_rank(device: torch.device | str | None = None) -> Iterator[Ranks]:
    """A context with the processes of the process group, or else those that torchrun started, or else this one alone.

    Unlike :func:`joined`, it selects no GPU, for code that gets a model on a device.

    Args:
        device: device of the work; the processes of torchrun exchange values by nccl for a GPU, by gloo for the CPU.
            Default: None, the CPU.

    Yields:
        The place of this process.

    Example:
        >>> with every_rank() as ranks:
        ...     ranks
        Ranks(rank=0, size=1, device='cpu')
    """
    ranks = current_ranks()
    if ranks.size == 1 and torchrun_size() > 1:
        with joined("cpu" if device is None else str(device)) as ranks:
            yield ranks
    else:
        yield ranks
