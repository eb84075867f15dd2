"""Few-shot episodes over the items of a labeled data set."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class EpisodeItems(NamedTuple):
    """One episode as positions in a data set, class by class; row w is of class ``classes[w]``.

    Attributes:
        number: which episode of the sampler it is.
        classes: the labels drawn, ``(way,)``.
        support: ``(way, shot)``.
        query: ``(way, query)``.
    """

    number: int
    classes: Tensor
    support: Tensor
    query: Tensor


class EpisodeSampler:
    """Draws N-way K-shot episodes: classes, then support and query items of each, none of them twice.

    Episode i depends on the seed, i and the labels alone, so neither workers nor ranks nor where a run was resumed
    change it. Iterating gives the episodes of one rank: rank r of n takes r, r + n, ...

    Args:
        labels: the class of every item of the data set, ``(len,)``.
        way: classes per episode. Default: 5.
        shot: support items per class. Default: 1.
        query: query items per class. Default: 15.
        episodes: how many episodes there are. Default: 2,000.
        seed: a whole number, not negative. Default: 0.
        rank: of this process among ``world_size``. Default: 0.
        world_size: processes that share the episodes. Default: 1.

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
                f"shot={shot} and query={query} need {shot + query} items per class, but of these classes there are "
                f"fewer: {', '.join(small[:10])}{' ...' if len(small) > 10 else ''}; leave them out or ask for less"
            )
        self.way = way
        self.shot = shot
        self.query = query
        self.episodes = episodes
        self.seed = seed
        self.rank = rank
        self.world_size = world_size

    def __len__(self) -> int:
        """The number of episodes of this rank."""
        return len(range(self.rank, self.episodes, self.world_size))

    def __iter__(self) -> Iterator[EpisodeItems]:
        return map(self.episode, range(self.rank, self.episodes, self.world_size))

    def episode(self, number: int) -> EpisodeItems:
        """Episode ``number`` of all, whatever the rank.

        Raises:
            IndexError: if there is no such episode.
        """
        if not 0 <= number < self.episodes:
            raise IndexError(f"episode {number} is out of range for {self.episodes} episodes")
        # NumPy promises that the numbers of RandomState never change; those of Generator may change with a release.
        random = np.random.RandomState(np.random.MT19937(np.random.SeedSequence([self.seed, number])))
        classes = random.permutation(list(self._items))[: self.way]
        count = self.shot + self.query
        items = torch.from_numpy(np.stack([random.permutation(self._items[int(label)])[:count] for label in classes]))
        return EpisodeItems(number, torch.from_numpy(classes), items[:, : self.shot], items[:, self.shot :])
