"""Momentum contrast with a queue of keys (MoCo)."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from captum_fam.embedding.ranks import Ranks
from captum_fam.experiments.training.contrastive.grouped_encoder import GroupedEncoder
from captum_fam.experiments.training.contrastive.instance_learner import InstanceLearner
from captum_fam.experiments.training.contrastive.key_queue import KeyQueue
from captum_fam.experiments.training.contrastive.recipe import MoCoRecipe
from captum_fam.experiments.training.images import generator_for
from captum_fam.experiments.training.training_run import gather_batch
from captum_fam.functional import unit

# Second entry of the seeds, which keeps the streams of random numbers apart.
_QUEUE, _SHUFFLE = 10, 12


class MoCoLearner(InstanceLearner):
    """Momentum contrast: a query, a view of an image, is told from a queue of keys by the key of another view of it.

    Keys come from the momentum encoder, whose weights follow those of the trained network (He et al., CVPR 2020,
    algorithm 1). The keys of a batch are made in shuffled order, over all processes, so that the batch statistics of a
    group do not tell which key belongs to a query.

    Args:
        encoder: the network that is trained, with its head.
        recipe: settings of the training.
        ranks: the processes that share each batch. Every process has the whole queue.
        n_images: number of training images.
        embedding_size: number of features of an embedding.

    Attributes:
        key_encoder: the momentum encoder.
        queue: the keys of the last batches.
    """

    n_views = 2

    def __init__(
        self, encoder: GroupedEncoder, recipe: MoCoRecipe, ranks: Ranks, n_images: int, embedding_size: int
    ) -> None:
        super().__init__(encoder, ranks)
        self.key_encoder = copy.deepcopy(encoder).requires_grad_(False)
        self.queue = KeyQueue(recipe.queue_length(n_images), embedding_size, generator_for(recipe.seed, _QUEUE))
        self.recipe = recipe
        self._keys: Tensor | None = None

    def loss(self, embed: Callable[[Tensor], Tensor], views: Tensor, items: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """See :meth:`InstanceLearner.loss`."""
        queries = unit(embed(views[0]))
        self._keys = self._keys_of(views[1], step)
        positive = (queries * self._share(self._keys)).sum(1, keepdim=True)
        logits = torch.cat([positive, queries @ self.queue.keys.T], 1) / self.recipe.temperature
        target = torch.zeros_like(items)
        return cross_entropy(logits, target), (logits.argmax(1) == target).float().mean()

    @torch.no_grad()
    def _keys_of(self, views: Tensor, step: int) -> Tensor:
        """The keys of the images of all processes."""
        images = gather_batch(views, self.ranks)
        order = torch.randperm(len(images), generator=generator_for(self.recipe.seed, _SHUFFLE, step)).to(views.device)
        shuffled = gather_batch(unit(self.key_encoder(images[self._share(order)])), self.ranks)
        return shuffled[order.argsort()]

    def _share(self, rows: Tensor) -> Tensor:
        """The rows of this process."""
        return rows.chunk(self.ranks.size)[self.ranks.rank]

    @torch.no_grad()
    def finish_step(self) -> None:
        """See :meth:`InstanceLearner.finish_step`; the weights of the momentum encoder follow too."""
        assert self._keys is not None
        self.queue.push(self._keys)
        kept = self.recipe.key_momentum
        for key, query in zip(self.key_encoder.parameters(), self.encoder.parameters(), strict=True):
            key.mul_(kept).add_(query, alpha=1 - kept)
