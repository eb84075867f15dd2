"""How a few-shot network is trained."""

from __future__ import annotations

from bisect import bisect
from dataclasses import dataclass, field
from typing import Literal

from captum_fam.cli.options import option
from captum_fam.experiments.training.images import Augmentation

Weighting = Literal["learned", "fixed"]


@dataclass(frozen=True)
class FewShotRecipe:
    """How a few-shot network is trained; the defaults are those of Cross Attention Network.

    Attributes:
        way: classes per episode.
        shot: supports per class.
        query: queries per class.
        epochs: passes of ``episodes`` each. The learning rate falls at the same shares of them, whatever their number.
        episodes: per epoch.
        episodes_per_step: episodes whose gradients are averaged, over all processes.
        learning_rates: one more than there are milestones.
        milestones: epochs out of 90 at which the next learning rate begins.
        momentum: of SGD, Nesterov's.
        weight_decay: of all but the weights of the losses.
        scale: of the cosines in the nearest-neighbor loss.
        weighting: of the losses: ``"learned"``, or ``"fixed"`` to 0.5 for the nearest-neighbor loss and 1.
        augmentation: of the training images.
        val_episodes: of 15 queries per class, whose accuracy chooses the best epoch.
        seed: of episodes, augmentation, dropout and classifier.
    """

    way: int = option("classes per episode", 5)
    shot: int = option("supports per class", 1)
    query: int = option("queries per class", 6)
    epochs: int = option("passes; the learning rate falls at the same shares of them, whatever their number", 90)
    episodes: int = option("per epoch", 1200)
    episodes_per_step: int = option("episodes whose gradients are averaged, over all processes", 4)
    learning_rates: tuple[float, ...] = option("one more than milestones", (0.1, 0.006, 0.0012, 0.00024))
    milestones: tuple[int, ...] = option("epochs out of 90 at which the next learning rate begins", (60, 70, 80))
    momentum: float = option("of SGD, Nesterov's", 0.9)
    weight_decay: float = option("of all but the weights of the losses", 5e-4)
    scale: float = option("of the cosines in the nearest-neighbor loss", 7.0)
    weighting: Weighting = option("of the losses; fixed: 0.5 for the nearest-neighbor loss and 1", "learned")
    augmentation: Augmentation = field(default_factory=Augmentation)
    val_episodes: int = option("of 15 queries per class, whose accuracy chooses the best epoch", 2000)
    seed: int = option("of episodes, augmentation, dropout and classifier", 1)

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
        """The learning rate of an epoch, counted from zero."""
        # The milestones are those of 90 epochs; a shorter training passes them at the same shares of its own.
        return self.learning_rates[bisect(self.milestones, 90 * epoch / self.epochs)]
