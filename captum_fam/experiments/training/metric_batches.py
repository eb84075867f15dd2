"""The batches of metric learning, which have a few classes with several images each, and which processes share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from captum_fam.embedding.ranks import Ranks
from captum_fam.experiments.data.episodes import EpisodeSampler
from captum_fam.experiments.training.images import generator_for
from captum_fam.experiments.training.metric_recipe import MetricRecipe

# Second entry of the seeds, which keeps the streams of random numbers apart; the seeds of batches have none.
_AUGMENTATION = 1


def sampler_of_batches(labels: Tensor, recipe: MetricRecipe) -> EpisodeSampler:
    """The batches of a training, as the supports of episodes.

    Args:
        labels: class of each item of the data set, ``(n,)``.
        recipe: number of classes per batch, images per class, steps and seed.

    Returns:
        A sampler with one episode per step: ``recipe.classes`` classes with ``recipe.images`` supports each, and no
        queries.

    Raises:
        ValueError: if there are too few classes, or a class has too few items.

    Example:
        >>> sampler = sampler_of_batches(torch.arange(100) % 20, MetricRecipe())
        >>> sampler.episode(0).support.shape
        torch.Size([16, 5])
    """
    return EpisodeSampler(labels, recipe.classes, recipe.images, 0, recipe.steps, recipe.seed)


class StepSampler(Sampler[list[tuple[int, int]]]):
    """The items of this process in every step, as pairs ``(step, item)``.

    Args:
        sampler: result of :func:`sampler_of_batches`.
        first: the first step.
        ranks: the processes that share each batch.

    Raises:
        ValueError: if a batch cannot be divided equally between the processes.

    Example:
        >>> sampler = sampler_of_batches(torch.arange(100) % 20, MetricRecipe())
        >>> steps = StepSampler(sampler, first=0, ranks=Ranks())
        >>> len(steps), len(next(iter(steps)))
        (3000, 80)
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
            # Each process gets a contiguous chunk. So the gathered batch has the original order, on which the mining of
            # pairs depends.
            chunk = self.sampler.episode(step).support.flatten().chunk(self.ranks.size)[self.ranks.rank]
            yield [(step, item) for item in chunk.tolist()]


class AugmentedAtSteps(Dataset[tuple[Tensor, int]]):
    """A data set with random changes that depend only on the seed, the step and the item.

    Args:
        dataset: items ``(image, label)`` or ``(image, label, boxes)``.
        transform: function that changes an image with random numbers of torch.
        seed: seed of the changes.

    Example:
        >>> images = [(torch.rand(3, 8, 8), 0), (torch.rand(3, 8, 8), 1)]
        >>> dataset = AugmentedAtSteps(images, lambda image: image + torch.rand(1), seed=0)
        >>> bool((dataset[7, 1][0] == dataset[7, 1][0]).all())  # step 7, item 1
        True
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
