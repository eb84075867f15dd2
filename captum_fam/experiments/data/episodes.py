"""Few-shot episodes of the items of a labeled data set."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class EpisodeItems(NamedTuple):
    """One episode, as positions of items in a data set.

    Attributes:
        number: number of the episode in the sampler.
        classes: labels of the classes, int64 ``(way,)``.
        support: positions of the support items, int64 ``(way, shot)``; row w belongs to class ``classes[w]``.
        query: positions of the query items, int64 ``(way, query)``; row w belongs to class ``classes[w]``.
    """

    number: int
    classes: Tensor
    support: Tensor
    query: Tensor


class EpisodeSampler:
    """Draws N-way K-shot episodes: classes, then support and query items of each class. No item occurs twice.

    Episode i depends only on the seed, i and the labels. So the episodes do not change with the number of workers or
    processes, or when a run is resumed. Iteration gives the episodes of one process: rank r of n processes gets
    episodes r, r + n, r + 2 n, ...

    Args:
        labels: class of every item of the data set, integers ``(len,)``.
        way: classes per episode. Default: 5.
        shot: support items per class. Default: 1.
        query: query items per class. Default: 15.
        episodes: number of episodes. Default: 2,000.
        seed: seed of the episodes, a whole number of at least 0. Default: 0.
        rank: rank of this process among ``world_size`` processes. Default: 0.
        world_size: number of processes that share the episodes. Default: 1.

    Raises:
        ValueError: if there are too few classes, a class has too few items, or a number is out of range.

    Example:
        >>> sampler = EpisodeSampler(novel.labels, way=5, shot=1, query=15, episodes=2000)
        >>> sampler.episode(7).query.shape
        torch.Size([5, 15])
    """

    def __init__(
        self,
        labels: Sequence[int] | Tensor,
        way: int = 5,
        shot: int = 1,
        query: int = 15,
        episodes: int = 2000,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        for name, value, least in (
            ("way", way, 1),
            ("shot", shot, 1),
            ("query", query, 0),
            ("episodes", episodes, 0),
            ("seed", seed, 0),
        ):
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be in 0..world_size - 1, got rank={rank}, world_size={world_size}")
        array = np.asarray(labels)
        self._items = {int(label): np.flatnonzero(array == label) for label in np.unique(array)}
        if way > len(self._items):
            raise ValueError(f"way={way} needs as many classes, labels has {len(self._items)}")
        small = [f"{label} ({len(items)})" for label, items in self._items.items() if len(items) < shot + query]
        if small:
            raise ValueError(
                f"shot={shot} and query={query} need {shot + query} items per class, but some classes have fewer: "
                f"{', '.join(small[:10])}{' ...' if len(small) > 10 else ''}; leave out these classes, or lower shot "
                "or query"
            )
        self.way = way
        self.shot = shot
        self.query = query
        self.episodes = episodes
        self.seed = seed
        self.rank = rank
        self.world_size = world_size

    def __len__(self) -> int:
        """The number of episodes of this process."""
        return len(range(self.rank, self.episodes, self.world_size))

    def __iter__(self) -> Iterator[EpisodeItems]:
        return map(self.episode, range(self.rank, self.episodes, self.world_size))

    def episode(self, number: int) -> EpisodeItems:
        """Draw an episode; the result does not depend on the rank.

        Args:
            number: number of the episode, counted from zero over the episodes of all processes.

        Returns:
            The classes and items of the episode.

        Raises:
            IndexError: if there is no such episode.
        """
        if not 0 <= number < self.episodes:
            raise IndexError(f"episode {number} is out of range for {self.episodes} episodes")
        # NumPy guarantees that RandomState draws the same numbers in every release; Generator has no such guarantee.
        random = np.random.RandomState(np.random.MT19937(np.random.SeedSequence([self.seed, number])))
        classes = random.permutation(list(self._items))[: self.way]
        count = self.shot + self.query
        items = torch.from_numpy(np.stack([random.permutation(self._items[int(label)])[:count] for label in classes]))
        return EpisodeItems(number, torch.from_numpy(classes), items[:, : self.shot], items[:, self.shot :])
