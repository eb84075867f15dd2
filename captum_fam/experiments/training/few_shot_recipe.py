"""The settings of few-shot training."""

from __future__ import annotations

from bisect import bisect
from dataclasses import dataclass, field
from typing import Literal

from captum_fam.cli.options import option
from captum_fam.experiments.training.images import Augmentation

Weighting = Literal["learned", "fixed"]


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
        ValueError: if the numbers of learning rates and milestones do not fit, if ``episodes`` is no multiple of
            ``episodes_per_step``, or for an unknown weighting.

    Example:
        >>> recipe = FewShotRecipe(epochs=45)
        >>> recipe.learning_rate(0), recipe.learning_rate(30)
        (0.1, 0.006)
    """

    way: int = option("classes per episode", 5)
    shot: int = option("supports per class", 1)
    query: int = option("queries per class", 6)
    epochs: int = option("number of epochs; the learning rate falls at the same shares of every training", 90)
    episodes: int = option("episodes per epoch", 1200)
    episodes_per_step: int = option("episodes per step of the optimizer, over all processes", 4)
    learning_rates: tuple[float, ...] = option(
        "learning rates, one more than milestones", (0.1, 0.006, 0.0012, 0.00024)
    )
    milestones: tuple[int, ...] = option("epochs, of 90, at which the next rate begins", (60, 70, 80))
    momentum: float = option("Nesterov momentum of SGD", 0.9)
    weight_decay: float = option("weight decay of all parameters but the weights of the losses", 5e-4)
    scale: float = option("factor of the cosines in the nearest-neighbor loss", 7.0)
    weighting: Weighting = option("weights of the losses; fixed: 0.5 nearest-neighbor, 1 global", "learned")
    augmentation: Augmentation = field(default_factory=Augmentation)
    val_episodes: int = option("validation episodes, whose accuracy chooses the best epoch", 2000)
    seed: int = option("seed of episodes, augmentation, dropout and classifier", 1)

    def __post_init__(self) -> None:
        if len(self.learning_rates) != len(self.milestones) + 1:
            raise ValueError(
                f"learning_rates must be one more than the {len(self.milestones)} milestones, "
                f"got {len(self.learning_rates)}"
            )
        if self.episodes % self.episodes_per_step:
            raise ValueError(
                f"episodes={self.episodes} must be a multiple of episodes_per_step={self.episodes_per_step}"
            )
        if self.weighting not in ("learned", "fixed"):
            raise ValueError(f'weighting must be "learned" or "fixed", got {self.weighting!r}')

    def learning_rate(self, epoch: int) -> float:
        """The learning rate of an epoch.

        Args:
            epoch: number of the epoch, counted from zero.
        """
        # The milestones are for 90 epochs. A training of another length passes them at the same shares of its epochs.
        return self.learning_rates[bisect(self.milestones, 90 * epoch / self.epochs)]
