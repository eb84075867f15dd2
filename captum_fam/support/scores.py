"""A classifier made of an embedding model and a support."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from captum_fam._training_mode import training_mode_in_words
from captum_fam._warnings import warn_user
from captum_fam.embedding.forward import check_embedding
from captum_fam.similarity import Dot, SimilarityLike, get_similarity
from captum_fam.support._version import version_of
from captum_fam.support.base import Support
from captum_fam.support.checks import check_support_tensor
from captum_fam.support.comparison import Comparison
from captum_fam.support.foil import ContrastedSupport, FoilLike, as_foil
from captum_fam.support.support_set import SupportSet

Aggregate = Literal["mean", "prototype"]

WRAP_THE_MODEL = (
    "a SimilarityToSupport cannot stand inside a DataParallel; "
    "wrap the model instead: SimilarityToSupport(DataParallel(model), support)"
)


class SimilarityToSupport(nn.Module):
    """A classifier made of an embedding model and a support: ``forward(x)`` gives one score per class.

    With it every Captum method explains a model that has no classifier: the score of class c is Eq. 11, the
    mean similarity of the query to the supports of class c. A foil makes it a contrast, "why A and not B".

    Images of the support are embedded when the object is made, and again in the next call after the weights of the
    model, or its mode, have changed: PyTorch's version counts tell. Where ``model`` is a plain function, what it
    computes with cannot be seen, and images are embedded in every call; pass ``support.embed(model)`` if its weights
    stay as they are.

    With a :class:`~captum_fam.MemoryBank` the score of a class is the mean similarity to its rows among the neighbors
    of the query, and -inf for a class that has none there; :meth:`predict` gives the class that the vote decides for.

    Args:
        model: maps a batch to embeddings ``(B, J)``; a module or any callable.
        support: a :class:`~captum_fam.SupportSet`, a :class:`~captum_fam.MemoryBank` or any other
            :class:`~captum_fam.Support`; or a tensor of images or embeddings of one class.
        similarity: a name, a :class:`~captum_fam.similarity.Similarity` or a callable metric; default: that of a
            support that has one, else the cosine.
        foil: None; ``"others"``, the mean score of the other classes; ``"runner-up"``, the best of the other
            classes for each query; or a :class:`~captum_fam.SupportSet` (or tensor), the mean of its classes' scores.
        aggregate: ``"mean"`` of the similarities (the paper), or the similarity to the mean embedding of the
            class, its ``"prototype"``.

    Raises:
        ValueError: for an unknown foil or aggregate, a foil among classes of which there is only one, or prototypes of
            a support that is no :class:`~captum_fam.SupportSet`.

    Example:
        >>> scores = SimilarityToSupport(model, SupportSet(images, labels), foil="others")
        >>> attributions = LayerGradCam(scores, model.layer4).attribute(queries, target=3)  # any method of Captum
    """

    def __init__(
        self,
        model: Callable[..., Any],
        support: Support | Tensor,
        similarity: SimilarityLike | None = None,
        foil: FoilLike | None = None,
        aggregate: Aggregate = "mean",
    ) -> None:
        super().__init__()
        if aggregate not in ("mean", "prototype"):
            raise ValueError(f'aggregate must be "mean" or "prototype", got {aggregate!r}')
        self.model = model
        self.support = support if isinstance(support, Support) else SupportSet(check_support_tensor(support))
        self.foil = as_foil(foil)
        if aggregate == "prototype" and not isinstance(self.support, SupportSet):
            raise ValueError(f'aggregate="prototype" needs a SupportSet, got {type(self.support).__name__}')
        self.similarity = self.support.measure(None if similarity is None else get_similarity(similarity))
        self.aggregate = aggregate
        self._kept: tuple[object, Support] | None = None
        self.embed()

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes, in the order of the scores."""
        return self.support.class_names

    def forward(self, *args: Any) -> Tensor:
        """Scores of the query batch, ``(B, C)``; further arguments go to the model."""
        return self._compare(args).scores

    def predict(self, *args: Any) -> tuple[Tensor, Tensor]:
        """As :meth:`forward`, with the predicted class of each query beside the scores, ``(B, C)`` and ``(B,)``.

        It is the class of the largest score before the foil, and the first of those that only rounding sets apart; with
        a memory bank the class that the vote decides for.
        """
        comparison = self._compare(args)
        return comparison.scores, comparison.predicted

    def compare(self, *args: Any) -> Comparison:
        """As :meth:`forward`, with everything that the scores are made of."""
        return self._compare(args)

    def embed(self) -> Support:
        """Embed the support, and the foil, under the present weights; gives what queries are compared with."""
        support = self.support.embed(self.model).for_every_class()
        foil = self.foil.embed(self.model) if isinstance(self.foil, SupportSet) else self.foil
        if self.aggregate == "prototype":
            support = _prototypes(support)
            foil = _prototypes(foil) if isinstance(foil, SupportSet) else foil
        if foil is not None:
            support = ContrastedSupport(support, foil)
        # The version is that after embedding, which moves the statistics of batch norms in training mode.
        self._kept = self._state(), support
        return support

    def embedded(self) -> Support:
        """The support as embeddings, with its foil: what queries are compared with."""
        if getattr(self, "_is_replica", False):
            # A replica cannot tell whether the weights of the original have changed since it embedded the support.
            raise TypeError(WRAP_THE_MODEL)
        kept = self._kept  # one read: another thread may put its own in the place
        version = self._state()
        if kept is None or version is None or kept[0] != version:
            return self.embed()
        return kept[1]

    def _state(self) -> object | None:
        return version_of(self.model, self.support, self.foil, self.aggregate)

    def _compare(self, args: tuple[Any, ...]) -> Comparison:
        self._refuse_deep_lift()
        in_training = training_mode_in_words(self.model)
        if in_training is not None:
            # Between here and the user stand forward and the two calls of a module.
            warn_user(in_training, 5)
        support = self.embedded()
        embedding = check_embedding(self.model(*args))
        with torch.autocast(embedding.device.type, enabled=False):
            comparison = support.compare(embedding, None, self.similarity)
            comparison.compute()
        return comparison

    def _refuse_deep_lift(self) -> None:
        """DeepLift follows modules; through other functions it takes gradients, and no longer adds up."""
        hooks = (getattr(hook, "__module__", "") for hook in self._forward_pre_hooks.values())
        if not isinstance(self.similarity, Dot) and any("captum.attr._core.deep_lift" in str(name) for name in hooks):
            raise TypeError(
                f"DeepLift cannot follow {type(self.similarity).__name__}: lengths and differences of vectors are no "
                'modules, and its attributions would not add up. Use similarity="dot", IntegratedGradients or '
                "LayerSimilarityCAM"
            )


def _prototypes(support: Support) -> SupportSet:
    assert isinstance(support, SupportSet)
    return support.prototypes()
