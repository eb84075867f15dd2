"""The two ways to learn that an image is like itself and unlike all others: with a memory bank, and with a queue."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.functional import cross_entropy

from captum_fam.embedding.forward import check_embedding
from captum_fam.embedding.ranks import Ranks
from captum_fam.experiments.training.contrastive.instance_bank import InstanceBank
from captum_fam.experiments.training.contrastive.key_queue import KeyQueue
from captum_fam.experiments.training.contrastive.recipe import ContrastiveRecipe, MoCoRecipe, NPIDRecipe
from captum_fam.experiments.training.images import generator_for
from captum_fam.experiments.training.training_run import Precision, autocast
from captum_fam.functional import unit

# Second entry of the seeds, which keeps the streams of random numbers apart.
_START, _NEGATIVES, _SHUFFLE = 10, 11, 12


class GroupedEncoder(nn.Module):
    """A network and a head that see a batch in equal parts, one after the other.

    Batch normalization in training mode then has the statistics of a part only, as on several GPUs.

    Args:
        model: module from images ``(B, 3, H, W)`` to embeddings, in any form that
            :func:`~captum_fam.embedding.forward.check_embedding` takes.
        head: module from embeddings ``(B, N)`` to ``(B, J)``.
        groups: number of parts.
        precision: precision of the network. Default: ``"float32"``.

    Example:
        >>> encoder = GroupedEncoder(nn.Flatten(), nn.Linear(12, 4), groups=2)
        >>> encoder(torch.rand(6, 3, 2, 2)).shape
        torch.Size([6, 4])
    """

    def __init__(self, model: nn.Module, head: nn.Module, groups: int, precision: Precision = "float32") -> None:
        super().__init__()
        self.model = model
        self.head = head
        self.groups = groups
        self.precision = precision

    def forward(self, images: Tensor) -> Tensor:
        with autocast(images.device, self.precision):
            outputs = [self.head(check_embedding(self.model(part))) for part in images.chunk(self.groups)]
        # The similarities are computed in float32.
        return torch.cat(outputs).float()


class InstanceLearner(nn.Module, ABC):
    """What both ways have in common; a step is :meth:`loss`, the step of the optimizer, and :meth:`finish_step`.

    Args:
        encoder: the network that is trained, with its head.
        recipe: settings of the training.
        ranks: the processes that share each batch.
    """

    n_views: int
    """Random views of an image that a step needs."""

    def __init__(self, encoder: GroupedEncoder, recipe: ContrastiveRecipe, ranks: Ranks) -> None:
        super().__init__()
        self.encoder = encoder
        self.recipe = recipe
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
        """Take the embeddings of the step into the memory, after the step of the optimizer.

        Not before: the backward pass needs the memory as it was.
        """

    def _gather(self, part: Tensor) -> Tensor:
        """The rows of all processes, in their order."""
        if self.ranks.size == 1:
            return part
        parts = [torch.empty_like(part) for _ in range(self.ranks.size)]
        distributed.all_gather(parts, part.contiguous())
        return torch.cat(parts)

    def _share(self, whole: Tensor) -> Tensor:
        """The rows of this process."""
        return whole.chunk(self.ranks.size)[self.ranks.rank]


class NPIDLearner(InstanceLearner):
    """Instance discrimination: each image is told from all others by a memory bank of their embeddings.

    Args:
        encoder: the network that is trained, with its head.
        recipe: settings of the training.
        ranks: the processes that share each batch. Every process has the whole bank.
        n_images: number of training images.
        embedding_size: number of features of an embedding.
    """

    n_views = 1

    def __init__(
        self, encoder: GroupedEncoder, recipe: NPIDRecipe, ranks: Ranks, n_images: int, embedding_size: int
    ) -> None:
        super().__init__(encoder, recipe, ranks)
        start = generator_for(recipe.seed, _START)
        self.bank = InstanceBank(n_images, embedding_size, recipe.temperature, recipe.bank_momentum, start)
        self.n_negatives = recipe.n_negatives(n_images)
        self._seen: tuple[Tensor, Tensor] | None = None

    def loss(self, embed: Callable[[Tensor], Tensor], views: Tensor, items: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """See :meth:`InstanceLearner.loss`."""
        embeddings = unit(embed(views[0]))
        negatives, target = None, items
        if self.n_negatives:
            generator = generator_for(self.recipe.seed, _NEGATIVES, step)
            drawn = torch.randint(len(self.bank.rows), (self.n_negatives,), generator=generator)
            negatives, target = drawn.to(items.device), torch.zeros_like(items)
        logits = self.bank.logits(embeddings, items, negatives)
        self._seen = embeddings.detach(), items
        return cross_entropy(logits, target), (logits.argmax(1) == target).float().mean()

    def finish_step(self) -> None:
        """See :meth:`InstanceLearner.finish_step`."""
        assert self._seen is not None
        self.bank.update(*(self._gather(part) for part in self._seen))


class MoCoLearner(InstanceLearner):
    """Momentum contrast: a view of an image is told from a queue of keys by the key of another view of it.

    Keys come from a second network, whose weights follow those of the first. The keys of a batch are made in shuffled
    order, over all processes, so that the batch statistics of a group do not tell which key belongs to a query.

    Args:
        encoder: the network that is trained, with its head.
        recipe: settings of the training.
        ranks: the processes that share each batch. Every process has the whole queue.
        n_images: number of training images.
        embedding_size: number of features of an embedding.
    """

    n_views = 2

    def __init__(
        self, encoder: GroupedEncoder, recipe: MoCoRecipe, ranks: Ranks, n_images: int, embedding_size: int
    ) -> None:
        super().__init__(encoder, recipe, ranks)
        self.key_encoder = copy.deepcopy(encoder).requires_grad_(False)
        self.queue = KeyQueue(recipe.queue_length(n_images), embedding_size, generator_for(recipe.seed, _START))
        self.key_momentum = recipe.key_momentum
        self._keys: Tensor | None = None

    def loss(self, embed: Callable[[Tensor], Tensor], views: Tensor, items: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """See :meth:`InstanceLearner.loss`."""
        queries = unit(embed(views[0]))
        self._keys = self._keys_of(views[1], step)
        own = (queries * self._share(self._keys)).sum(1, keepdim=True)
        logits = torch.cat([own, queries @ self.queue.keys.T], 1) / self.recipe.temperature
        target = torch.zeros_like(items)
        return cross_entropy(logits, target), (logits.argmax(1) == target).float().mean()

    @torch.no_grad()
    def _keys_of(self, views: Tensor, step: int) -> Tensor:
        """The keys of the images of all processes."""
        images = self._gather(views)
        order = torch.randperm(len(images), generator=generator_for(self.recipe.seed, _SHUFFLE, step)).to(views.device)
        shuffled = self._gather(unit(self.key_encoder(images[self._share(order)])))
        return shuffled[order.argsort()]

    @torch.no_grad()
    def finish_step(self) -> None:
        """See :meth:`InstanceLearner.finish_step`; the weights of the key encoder follow too."""
        assert self._keys is not None
        self.queue.push(self._keys)
        for key, query in zip(self.key_encoder.parameters(), self.encoder.parameters(), strict=True):
            key.mul_(self.key_momentum).add_(query, alpha=1 - self.key_momentum)


def make_learner(
    encoder: GroupedEncoder, recipe: ContrastiveRecipe, ranks: Ranks, n_images: int, embedding_size: int
) -> InstanceLearner:
    """The learner of a recipe.

    Args:
        encoder: the network that is trained, with its head.
        recipe: settings of the training.
        ranks: the processes that share each batch.
        n_images: number of training images.
        embedding_size: number of features of an embedding.

    Returns:
        :class:`NPIDLearner` or :class:`MoCoLearner`.

    Raises:
        TypeError: for another recipe.
    """
    known: dict[type, Any] = {NPIDRecipe: NPIDLearner, MoCoRecipe: MoCoLearner}
    if type(recipe) not in known:
        raise TypeError(f"recipe must be NPIDRecipe or MoCoRecipe, got {type(recipe).__name__}")
    learner: InstanceLearner = known[type(recipe)](encoder, recipe, ranks, n_images, embedding_size)
    return learner
