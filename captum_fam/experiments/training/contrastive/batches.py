"""The order of the images, epoch by epoch, and the batches that processes share."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler

from captum_fam.embedding.ranks import Ranks
from captum_fam.experiments.training.images import generator_for

# Second entry of the seeds, which keeps the streams of random numbers apart.
_ORDER = 14


class EpochBatches(Sampler[list[tuple[int, int]]]):
    """The items of this process in every step of an epoch, as pairs ``(step, item)``.

    Every image comes at most once. The images at the end of the order that fill no batch are left out.

    Args:
        n_images: number of images.
        batch_size: images per step, over all processes, a multiple of their number.
        epoch: number of the epoch, counted from zero.
        seed: seed of the order.
        ranks: the processes that share each batch; each gets a contiguous part.

    Example:
        >>> batches = EpochBatches(10, 4, epoch=3, seed=0, ranks=Ranks())
        >>> [[step for step, item in batch] for batch in batches]
        [[6, 6, 6, 6], [7, 7, 7, 7]]
    """

    def __init__(self, n_images: int, batch_size: int, epoch: int, seed: int, ranks: Ranks) -> None:
        self.n_images = n_images
        self.batch_size = batch_size
        self.epoch = epoch
        self.seed = seed
        self.ranks = ranks

    def __len__(self) -> int:
        return self.n_images // self.batch_size

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = torch.randperm(self.n_images, generator=generator_for(self.seed, _ORDER, self.epoch))
        for number in range(len(self)):
            batch = order[number * self.batch_size : (number + 1) * self.batch_size]
            step = self.epoch * len(self) + number
            yield [(step, item) for item in batch.chunk(self.ranks.size)[self.ranks.rank].tolist()]
