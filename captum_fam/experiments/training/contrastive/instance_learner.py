"""What NPID and MoCo have in common: the two halves of a step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from torch import Tensor, nn

from captum_fam.embedding.ranks import Ranks
from captum_fam.experiments.training.contrastive.grouped_encoder import GroupedEncoder


class InstanceLearner(nn.Module, ABC):
    """A network that learns to tell every image from all others.

    A step is :meth:`loss`, the step of the optimizer, and :meth:`finish_step`.

    Args:
        encoder: the network that is trained, with its head.
        ranks: the processes that share each batch.
    """

    n_views: int
    """Random views of an image that a step needs."""

    def __init__(self, encoder: GroupedEncoder, ranks: Ranks) -> None:
        super().__init__()
        self.encoder = encoder
        self.ranks = ranks

    @abstractmethod
    def loss(self, embed: Callable[[Tensor], Tensor], views: Tensor, items: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """The loss of the part of a batch that this process has.

        Args:
            embed: function from images to the output of the encoder, which collects the gradients of all processes.
            views: normalized images, ``(n_views, B, 3, H, W)``.
            items: the number of each image, ``(B,)``.
            step: number of the step.

        Returns:
            The mean cross entropy, a scalar; and the share of the images for which the true one is most probable.
        """

    @abstractmethod
    def finish_step(self) -> None:
        """Take the embeddings of the step into the bank or the queue, after the step of the optimizer.

        Not before: the backward pass needs bank and queue as they were.
        """
