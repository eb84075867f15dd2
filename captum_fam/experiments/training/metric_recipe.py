"""How an embedding is trained for retrieval."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from captum_fam._files import need
from captum_fam.cli.options import option

MetricLoss = Literal["multi-similarity", "margin"]


@dataclass(frozen=True)
class MetricRecipe:
    """How an embedding is trained for retrieval; the defaults are those of Wang et al.'s code.

    Attributes:
        loss: ``"multi-similarity"`` (alpha 2, beta 40, lambda 0.5, mining margin 0.1) or ``"margin"`` (margin 0.2,
            beta fixed to 1.2, distance-weighted sampling from 0.5 to 1.4; Wu et al., ICCV 2017).
        steps: of the optimizer, Adam.
        learning_rate: divided by ten at each milestone.
        weight_decay: of all parameters.
        milestones: steps out of 3,000 at which the learning rate falls.
        way: classes per batch; None: 16 for Multi-Similarity, 24 for Margin.
        images: images per class in a batch.
        period: steps between two measurements of the recall, and checkpoints.
        seed: of batches, augmentation, mining and new heads.
    """

    loss: MetricLoss = option("of the pairs or triplets", "multi-similarity")
    steps: int = option("of the optimizer, Adam", 3000)
    learning_rate: float = option("divided by ten at each milestone", 3e-5)
    weight_decay: float = option("of all parameters", 5e-4)
    milestones: tuple[int, ...] = option("steps out of 3,000 at which the learning rate falls", (1200, 2400))
    way: int | None = option("classes per batch; default: 16 for multi-similarity, 24 for margin", None)
    images: int = option("of each class in a batch", 5)
    period: int = option("steps between two measurements of the recall, and checkpoints", 200)
    seed: int = option("of batches, augmentation, mining and new heads", 1)

    def __post_init__(self) -> None:
        if self.loss not in ("multi-similarity", "margin"):
            raise ValueError(f'loss must be "multi-similarity" or "margin", got {self.loss!r}')
        if self.steps % self.period:
            raise ValueError(f"steps={self.steps} must be a multiple of period={self.period}")

    @property
    def classes(self) -> int:
        """Classes per batch."""
        return self.way or {"multi-similarity": 16, "margin": 24}[self.loss]

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from zero."""
        return self.learning_rate * 0.1 ** bisect(self.milestones, 3000 * step / self.steps)

    def make_loss(self) -> Callable[[Tensor, Tensor], Tensor]:
        """From unit embeddings and labels to the loss of the pairs or triplets that the miner picks.

        Raises:
            ImportError: without pytorch-metric-learning.
        """
        need("pytorch_metric_learning", extra="train", purpose="metric learning")
        from pytorch_metric_learning import losses, miners

        if self.loss == "margin":
            loss: Any = losses.MarginLoss(margin=0.2, beta=1.2)
            miner: Any = miners.DistanceWeightedMiner(cutoff=0.5, nonzero_loss_cutoff=1.4)
        else:
            # The paper's code drops positives with s >= 1 - 1e-5, because they may be pairs of an image with itself.
            # Here there is no such pair, and all other images of the class count, however near they are.
            loss = losses.MultiSimilarityLoss(alpha=2, beta=40, base=0.5)
            miner = miners.MultiSimilarityMiner(epsilon=0.1)
        return lambda embeddings, labels: loss(embeddings, labels, miner(embeddings, labels))
