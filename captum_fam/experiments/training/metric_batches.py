"""The batches of metric learning: a few classes with several images each, shared by the processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from captum_fam.experiments.data.episodes import EpisodeSampler
from captum_fam.experiments.distributed import Ranks
from captum_fam.experiments.training.images import generator_for
from captum_fam.experiments.training.metric_recipe import MetricRecipe

# Second entry of the seeds, so that no two streams of random numbers meet; batches have none.
_AUGMENTATION = 1


def sampler_of_batches(labels: Tensor, recipe: MetricRecipe) -> EpisodeSampler:
    """Batches as the supports of episodes: ``recipe.classes`` classes with ``recipe.images`` images each."""
    return EpisodeSampler(labels, recipe.classes, recipe.images, 0, recipe.steps, recipe.seed)


class StepSampler(Sampler[list[tuple[int, int]]]):
    """The items of this process in every step, as pairs ``(step, item)``.

    Args:
        sampler: of the batches.
        first: the step to begin with.
        ranks: the processes that share each batch.

    Raises:
        ValueError: if the processes cannot have equal shares of a batch.
    """

    def __init__(self, sampler: EpisodeSampler, first: int, ranks: Ranks) -> None:
        if sampler.way * sampler.shot % ranks.size:
            raise ValueError(f"a batch of {sampler.way * sampler.shot} cannot be shared by {ranks.size} processes")
        self.sampler = sampler
        self.first = first
        self.ranks = ranks

    def __len__(self) -> int:
        return self.sampler.episodes - self.first

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in range(self.first, self.sampler.episodes):
            # In one piece, so that the batch that is gathered has its order, on which the mining depends.
            mine = self.sampler.episode(step).support.flatten().chunk(self.ranks.size)[self.ranks.rank]
            yield [(step, item) for item in mine.tolist()]


class AugmentedAtSteps(Dataset[tuple[Tensor, int]]):
    """Items changed at random, in a way that depends on seed, step and item alone.

    Args:
        dataset: items ``(image, label)`` or longer.
        transform: changes an image, with random numbers of torch.
        seed: of the changes.
    """

    def __init__(self, dataset: Dataset[Any], transform: Callable[[Tensor], Tensor], seed: int) -> None:
        self.dataset = dataset
        self.transform = transform
        self.seed = seed

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int]:
        step, item = key
        image, label = self.dataset[item][:2]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(generator_for(self.seed, _AUGMENTATION, step, item).initial_seed())
            return self.transform(image), int(label)
