"""A data set whose items can be made unreadable, and that counts what is read of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

import torch
from torch import Tensor
from torch.utils.data import Dataset

from captum_fam.embedding import Batch
from captum_fam.images import UnreadableImageError


class Pictures(Dataset[tuple[Tensor, int]]):
    """23 pictures of three classes.

    Args:
        broken: items that cannot be read.
        dies_at: the item at which the process is interrupted.
    """

    def __init__(self, broken: Collection[int] = (), dies_at: int | None = None) -> None:
        self.images = torch.rand(23, 3, 4, 6, generator=torch.Generator().manual_seed(5))
        self.broken = broken
        self.dies_at = dies_at
        self.read: Counter[int] = Counter()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if index == self.dies_at:
            raise KeyboardInterrupt
        if index in self.broken:
            raise UnreadableImageError(f"{index}.jpg: corrupt")
        self.read[index] += 1
        return self.images[index], index % 3


def mean_and_sum(batch: Batch) -> dict[str, Tensor]:
    """Two columns, one of vectors and one of numbers."""
    return {"mean": batch.images.mean((2, 3)), "sum": batch.images.sum((1, 2, 3))}
