"""Instance discrimination with a memory bank (NPID)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from captum_fam.embedding.ranks import Ranks
from captum_fam.experiments.training.contrastive.grouped_encoder import GroupedEncoder
from captum_fam.experiments.training.contrastive.instance_bank import InstanceBank
from captum_fam.experiments.training.contrastive.instance_learner import InstanceLearner
from captum_fam.experiments.training.contrastive.recipe import NPIDRecipe
from captum_fam.experiments.training.images import generator_for
from captum_fam.experiments.training.training_run import gather_batch
from captum_fam.functional import unit

# Second entry of the seeds, which keeps the streams of random numbers apart.
_BANK, _NEGATIVES = 10, 11


class NPIDLearner(InstanceLearner):
    """Instance discrimination: each image is told from all others by a memory bank of their embeddings.

    Args:
        encoder: the network that is trained, with its head.
        recipe: settings of the training.
        ranks: the processes that share each batch. Every process has the whole bank.
        n_images: number of training images.
        embedding_size: number of features of an embedding.

    Attributes:
        bank: the embeddings of all training images.
    """

    n_views = 1

    def __init__(
        self, encoder: GroupedEncoder, recipe: NPIDRecipe, ranks: Ranks, n_images: int, embedding_size: int
    ) -> None:
        super().__init__(encoder, ranks)
        generator = generator_for(recipe.seed, _BANK)
        self.bank = InstanceBank(n_images, embedding_size, recipe.temperature, recipe.bank_momentum, generator)
        self.n_negatives = recipe.n_negatives(n_images)
        self.seed = recipe.seed
        self._embedded: tuple[Tensor, Tensor] | None = None

    def loss(self, embed: Callable[[Tensor], Tensor], views: Tensor, items: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """See :meth:`InstanceLearner.loss`."""
        embeddings = unit(embed(views[0]))
        negatives, target = None, items
        if self.n_negatives:
            generator = generator_for(self.seed, _NEGATIVES, step)
            drawn = torch.randint(len(self.bank.rows), (self.n_negatives,), generator=generator)
            negatives, target = drawn.to(items.device), torch.zeros_like(items)
        logits = self.bank.logits(embeddings, items, negatives)
        self._embedded = embeddings.detach(), items
        return cross_entropy(logits, target), (logits.argmax(1) == target).float().mean()

    def finish_step(self) -> None:
        """See :meth:`InstanceLearner.finish_step`."""
        assert self._embedded is not None
        self.bank.update(*(gather_batch(part, self.ranks) for part in self._embedded))
