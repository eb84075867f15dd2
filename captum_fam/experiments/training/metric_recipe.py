"""The settings of metric learning for retrieval."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from captum_fam._files import need
from captum_fam.cli.options import check_fields, option
from captum_fam.cli.ranges import above, at_least
from captum_fam.experiments.data.episodes import EpisodeSampler

MetricLoss = Literal["multi-similarity", "margin"]


@dataclass(frozen=True)
class MetricRecipe:
    """The settings of metric learning; the defaults are those in the code of Wang et al. (CVPR 2019).

    Attributes:
        loss: ``"multi-similarity"`` (alpha 2, beta 40, lambda 0.5, mining margin 0.1; Wang et al., CVPR 2019) or
            ``"margin"`` (margin 0.2, beta fixed to 1.2, distance-weighted sampling from 0.5 to 1.4; Wu et al., ICCV
            2017). Default: ``"multi-similarity"``.
        steps: steps of the optimizer, which is Adam. Default: 3,000.
        learning_rate: initial learning rate, which is divided by ten at each milestone. Default: 3e-5.
        weight_decay: weight decay of all parameters. Default: 5e-4.
        milestones: steps, of 3,000 steps, at which the learning rate falls. Default: 1,200, 2,400.
        way: classes per batch; None for 16 with Multi-Similarity and 24 with Margin. Default: None.
        images: images per class in a batch. Default: 5.
        period: steps between two measurements of the recall, each with a checkpoint. Default: 200.
        seed: seed of batches, augmentation, mining and new heads. Default: 1.

    Raises:
        ValueError: for an unknown loss, a number out of its range, or if ``steps`` is no multiple of ``period``.

    Example:
        >>> recipe = MetricRecipe("margin")
        >>> recipe.classes, recipe.rate(0)
        (24, 3e-05)
    """

    loss: MetricLoss = option("loss of the pairs or triplets", "multi-similarity")
    steps: int = option("steps of the optimizer, Adam", 3000, within=at_least(1))
    learning_rate: float = option("initial learning rate, divided by ten at each milestone", 3e-5, within=above(0))
    weight_decay: float = option("weight decay of all parameters", 5e-4, within=at_least(0))
    milestones: tuple[int, ...] = option(
        "steps, of 3,000, at which the learning rate falls", (1200, 2400), within=at_least(0)
    )
    way: int | None = option(
        "classes per batch; default: 16 for multi-similarity, 24 for margin", None, within=at_least(2)
    )
    images: int = option("images per class in a batch", 5, within=at_least(2))
    period: int = option(
        "steps between two measurements of the recall, each with a checkpoint", 200, within=at_least(1)
    )
    seed: int = option("seed of batches, augmentation, mining and new heads", 1, within=at_least(0))

    def __post_init__(self) -> None:
        check_fields(self)
        if list(self.milestones) != sorted(self.milestones):
            raise ValueError(f"milestones must be in ascending order, got {self.milestones}")
        if self.steps % self.period:
            raise ValueError(f"steps={self.steps} must be a multiple of period={self.period}")

    @property
    def classes(self) -> int:
        """Classes per batch."""
        return self.way or {"multi-similarity": 16, "margin": 24}[self.loss]

    def check_labels(self, train: Tensor, val: Tensor | None) -> None:
        """Check that there are enough classes with enough images for the batches and for the recall.

        Args:
            train: class of each training image, ``(n,)``.
            val: class of each validation image, ``(m,)``; None for no validation.

        Raises:
            ValueError: if a batch needs more classes, or more images of a class; or if no validation image has another
                image of its class, which the recall could find.
        """
        try:
            EpisodeSampler(train, self.classes, self.images, 0, self.steps, self.seed)
        except ValueError as error:
            raise ValueError(f"train: {error}") from error
        if val is not None and not (val.unique(return_counts=True)[1] > 1).any():
            raise ValueError(
                f"val: the recall needs a class with two images, got {len(val)} images of {len(val.unique())} classes; "
                "hold out more classes, or none"
            )

    def rate(self, step: int) -> float:
        """The learning rate of a step.

        Args:
            step: number of the step, counted from zero.
        """
        return self.learning_rate * 0.1 ** bisect(self.milestones, 3000 * step / self.steps)

    def make_loss(self) -> Callable[[Tensor, Tensor], Tensor]:
        """Make the loss function, which mines the pairs or triplets of a batch.

        Returns:
            A function from unit embeddings ``(B, J)`` and labels ``(B,)`` to the loss, a scalar.

        Raises:
            ImportError: without pytorch-metric-learning.
        """
        need("pytorch_metric_learning", extra="train", purpose="metric learning")
        from pytorch_metric_learning import losses, miners

        if self.loss == "margin":
            loss: Any = losses.MarginLoss(margin=0.2, beta=1.2)
            miner: Any = miners.DistanceWeightedMiner(cutoff=0.5, nonzero_loss_cutoff=1.4)
        else:
            # The code of Wang et al. drops positives with a similarity of 1 - 1e-5 or more, because these may be pairs
            # of an image with itself. This miner makes no such pairs, and keeps all other images of the class.
            loss = losses.MultiSimilarityLoss(alpha=2, beta=40, base=0.5)
            miner = miners.MultiSimilarityMiner(epsilon=0.1)
        return lambda embeddings, labels: loss(embeddings, labels, miner(embeddings, labels))
