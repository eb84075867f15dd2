"""Shards: the parts of a command's work that separate processes do."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Shard:
    """One of N parts of the work.

    Attributes:
        number: the number of the part, counted from one. Default: 1.
        count: N. Default: 1.

    Example:
        >>> Shard(2, 3).share(["a", "b", "c", "d", "e"])
        ['b', 'e']
    """

    number: int = 1
    count: int = 1

    def share(self, items: Sequence[T]) -> list[T]:
        """The items of this shard: every N-th item.

        Args:
            items: the items of all shards.
        """
        return list(items[self.number - 1 :: self.count])

    def file_name(self, stem: str, suffix: str) -> str:
        """The name of a file of this shard.

        Args:
            stem: the name without suffix.
            suffix: the suffix, with its dot.

        Example:
            >>> Shard().file_name("maps", ".npz"), Shard(2, 3).file_name("maps", ".npz")
            ('maps.npz', 'maps-2-of-3.npz')
        """
        return f"{stem}{suffix}" if self.count == 1 else f"{stem}-{self.number}-of-{self.count}{suffix}"


def shard(text: str) -> Shard:
    """A type for an option that takes ``I/N``.

    Args:
        text: the word on the command line.

    Returns:
        The shard.

    Raises:
        argparse.ArgumentTypeError: if the word is no shard.

    Example:
        >>> shard("2/3")
        Shard(number=2, count=3)
    """
    found = re.fullmatch(r"([1-9]\d*)/([1-9]\d*)", text)
    if not found or int(found[1]) > int(found[2]):
        raise argparse.ArgumentTypeError(f"expected I/N with I from 1 to N, such as 2/3, got {text}")
    return Shard(int(found[1]), int(found[2]))


def shard_of_process() -> Shard:
    """The shard of this process among those that torchrun has started; the whole work for a process on its own."""
    return Shard(int(os.environ.get("RANK", 0)) + 1, int(os.environ.get("WORLD_SIZE", 1)))
