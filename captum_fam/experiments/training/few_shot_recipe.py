"""The settings of few-shot training."""

from __future__ import annotations

from bisect import bisect
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from captum_fam.cli.options import check_fields, option
from captum_fam.cli.ranges import Range, above, at_least
from captum_fam.experiments.data.episodes import EpisodeSampler
from captum_fam.experiments.training.images import Augmentation

Weighting = Literal["learned", "fixed"]


TEST_QUERIES = 15
"""Queries per class in the episodes that measure an accuracy, as in the papers on few-shot learning."""


def check_episodes(
    split: str, labels: Tensor, way: int, shot: int, query: int = TEST_QUERIES, episodes: int = 1
) -> None:
    """Check that the images of a split are enough for its episodes.

    Args:
        split: name of the split, for the message.
        labels: class of each image, ``(n,)``.
        way: classes per episode.
        shot: supports per class.
        query: queries per class. Default: 15.
        episodes: number of episodes. Default: 1.

    Raises:
        ValueError: if there are too few classes, or a class has too few images.

    Example:
        >>> check_episodes("val", torch.arange(40) % 2, way=5, shot=1)
        Traceback (most recent call last):
        ...
        ValueError: val: way=5 needs as many classes, labels has 2
    """
    try:
        EpisodeSampler(labels, way, shot, query, episodes)
    except ValueError as error:
        raise ValueError(f"{split}: {error}") from error


@dataclass(frozen=True)
class FewShotRecipe:
    """The settings of few-shot training; the defaults are those of Cross Attention Network (Hou et al., NeurIPS 2019).

    Attributes:
        way: classes per episode. Default: 5.
        shot: supports per class. Default: 1.
        query: queries per class. Default: 6.
        epochs: number of epochs; the learning rate falls at the same shares of the training for any number of epochs.
            Default: 90.
        episodes: episodes per epoch. Default: 1,200.
        episodes_per_step: episodes per step of the optimizer, over all processes; their gradients are averaged.
            Default: 4.
        learning_rates: learning rates, one more than there are milestones. Default: 0.1, 0.006, 0.0012, 0.00024.
        milestones: epochs, of 90 epochs, at which the next learning rate begins. Default: 60, 70, 80.
        momentum: Nesterov momentum of SGD. Default: 0.9.
        weight_decay: weight decay of all parameters but the weights of the losses. Default: 5e-4.
        scale: factor of the cosines in the nearest-neighbor loss. Default: 7.
        weighting: weights of the losses, ``"learned"``; or ``"fixed"``, with 0.5 for the nearest-neighbor loss and 1
            for the global loss. Default: ``"learned"``.
        augmentation: random changes of the training images. Default: those of Cross Attention Network.
        val_episodes: validation episodes, with 15 queries per class; the epoch with the best accuracy over these
            episodes is kept. Default: 2,000.
        seed: seed of episodes, augmentation, dropout and classifier. Default: 1.

    Raises:
        ValueError: for a number out of its range or an unknown weighting, if the numbers of learning rates and
            milestones do not fit, or if ``episodes`` is no multiple of ``episodes_per_step``.

    Example:
        >>> recipe = FewShotRecipe(epochs=45)
        >>> recipe.learning_rate(0), recipe.learning_rate(30)
        (0.1, 0.006)
    """

    way: int = option("classes per episode", 5, within=at_least(2))
    shot: int = option("supports per class", 1, within=at_least(1))
    query: int = option("queries per class", 6, within=at_least(1))
    epochs: int = option(
        "number of epochs; the learning rate falls at the same shares of every training", 90, within=at_least(1)
    )
    episodes: int = option("episodes per epoch", 1200, within=at_least(1))
    episodes_per_step: int = option("episodes per step of the optimizer, over all processes", 4, within=at_least(1))
    learning_rates: tuple[float, ...] = option(
        "learning rates, one more than milestones", (0.1, 0.006, 0.0012, 0.00024), within=above(0)
    )
    milestones: tuple[int, ...] = option(
        "epochs, of 90, at which the next rate begins", (60, 70, 80), within=at_least(0)
    )
    momentum: float = option("Nesterov momentum of SGD", 0.9, within=Range(0, 1, without_least=True, without_most=True))
    weight_decay: float = option(
        "weight decay of all parameters but the weights of the losses", 5e-4, within=at_least(0)
    )
    scale: float = option("factor of the cosines in the nearest-neighbor loss", 7.0, within=above(0))
    weighting: Weighting = option("weights of the losses; fixed: 0.5 nearest-neighbor, 1 global", "learned")
    augmentation: Augmentation = field(default_factory=Augmentation)
    val_episodes: int = option("validation episodes, whose accuracy chooses the best epoch", 2000, within=at_least(1))
    seed: int = option("seed of episodes, augmentation, dropout and classifier", 1, within=at_least(0))

    def __post_init__(self) -> None:
        check_fields(self)
        if list(self.milestones) != sorted(self.milestones):
            raise ValueError(f"milestones must be in ascending order, got {self.milestones}")
        if len(self.learning_rates) != len(self.milestones) + 1:
            raise ValueError(
                f"learning_rates must be one more than the {len(self.milestones)} milestones, "
                f"got {len(self.learning_rates)}"
            )
        if self.episodes % self.episodes_per_step:
            raise ValueError(
                f"episodes={self.episodes} must be a multiple of episodes_per_step={self.episodes_per_step}"
            )

    def check_labels(self, base: Tensor, val: Tensor) -> None:
        """Check that there are enough classes with enough images for the episodes of training and validation.

        Args:
            base: class of each training image, ``(n,)``.
            val: class of each validation image, ``(m,)``.

        Raises:
            ValueError: if there are too few classes, or a class has too few images; the message names the split.
        """
        check_episodes("base", base, self.way, self.shot, self.query, self.epochs * self.episodes)
        check_episodes("val", val, self.way, self.shot, episodes=self.val_episodes)

    def learning_rate(self, epoch: int) -> float:
        """The learning rate of an epoch.

        Args:
            epoch: number of the epoch, counted from zero.
        """
        # The milestones are for 90 epochs. A training of another length passes them at the same shares of its epochs.
        return self.learning_rates[bisect(self.milestones, 90 * epoch / self.epochs)]
