"""A classifier that consists of an embedding model and a support."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from captum_fam._captum import TargetType
from captum_fam._training_mode import training_mode_in_words
from captum_fam._warnings import warn_user
from captum_fam.embedding.forward import check_embedding
from captum_fam.similarity import SimilarityLike, get_similarity
from captum_fam.support._version import version_of
from captum_fam.support.base import Support
from captum_fam.support.checks import check_support_tensor
from captum_fam.support.comparison import Comparison
from captum_fam.support.foil import ContrastedSupport, FoilLike, as_foil
from captum_fam.support.gallery import Gallery, GalleryLike
from captum_fam.support.leave_out import LeaveOutSupport
from captum_fam.support.support_per_query import SupportPerQuery
from captum_fam.support.support_set import SupportSet
from captum_fam.support.threshold import Against, ThresholdedSupport, check_against

Aggregate = Literal["mean", "prototype"]

WRAP_THE_MODEL = (
    "a SimilarityToSupport cannot stand inside a DataParallel; "
    "wrap the model instead: SimilarityToSupport(DataParallel(model), support)"
)


class SimilarityToSupport(nn.Module):
    """A classifier that consists of an embedding model and a support: ``forward(x)`` gives one score per class.

    It lets every Captum method explain a model without a classifier: the score of class c is Eq. 11, the mean
    similarity of the query to the supports of class c. With a foil, the score is a contrast, "why A and not B".

    Images of the support are embedded when the object is made, and again in the next call after the model has changed:
    its weights, buffers, submodules, mode or settings, as PyTorch's version counts show. Some changes are not counted.
    Updates through ``parameter.data`` or numpy are seen if they reach one of eight tensors that are spread over the
    model. A new hook, a list or a plain tensor that is no buffer is not seen: call :meth:`embed` after such a change.
    The weights behind a plain function cannot be seen: then every call embeds the images again. Pass
    ``support.embed(model)`` instead of ``support`` if the weights do not change.

    Supports carry no gradient. Further arguments of a call go to the model with the queries only.

    With a :class:`~captum_fam.MemoryBank`, the score of a class is the mean similarity to the rows of the class among
    the nearest rows of the query; if there are none, the similarity to the nearest row of the class. :meth:`predict`
    returns the class with the most votes.

    Args:
        model: maps a batch to embeddings ``(B, J)``; a module or any callable.
        support: a :class:`~captum_fam.SupportSet`, a :class:`~captum_fam.MemoryBank` or any other
            :class:`~captum_fam.Support`; or a tensor of images or embeddings of one class.
        similarity: a name, a :class:`~captum_fam.similarity.Similarity` or a callable metric. Default: None, the
            similarity of the support if it has one, else the cosine.
        foil: the score that is subtracted from the score of each class: ``"others"``, the mean score of the other
            classes; ``"runner-up"``, for each query the largest score of another class; ``"gallery"``, the mean
            similarity to all images of a gallery, "why more similar than the average image"; or a
            :class:`~captum_fam.SupportSet` or tensor, the mean score of its classes. Default: None, no foil.
        aggregate: how the score of a class with several supports is computed: ``"mean"``, the mean of the similarities,
            as in the paper; or ``"prototype"``, the similarity to the mean embedding. Default: ``"mean"``.
        gallery: the gallery of ``foil="gallery"``: a :class:`~captum_fam.SupportSet`, a
            :class:`~captum_fam.MemoryBank`, images, embeddings ``(M, J)``, the mean vector ``(J,)``, or a
            :class:`~captum_fam.support.Gallery`. Default: None, all supports of a set or bank.
        against: what the score is compared with: ``"threshold"`` explains the score minus ``threshold``;
            ``"identity"`` explains the similarity of the query to itself minus the score, what makes the two differ
            (:class:`~captum_fam.support.ThresholdedSupport`). It excludes a foil. Default: None.
        threshold: a number in the unit of the similarity, for ``against="threshold"``. Default: None.

    Attributes:
        model: the embedding model.
        support: the support, as it was given.
        foil: the foil; a tensor has become a :class:`~captum_fam.SupportSet`, and a given gallery a
            :class:`~captum_fam.support.Gallery`.
        similarity: the similarity object.
        aggregate: ``"mean"`` or ``"prototype"``.
        against: ``"threshold"``, ``"identity"`` or None.
        threshold: a float or None.

    Raises:
        TypeError: for a support that is no support and no tensor, or a model that gives no tensor of embeddings.
        ValueError: for an unknown foil, aggregate or ``against``, a foil of other classes for a support of one class, a
            gallery without ``foil="gallery"`` or that foil for a support that is no gallery, a foil beside ``against``,
            a foil or ``against`` for a support that has either already, a gallery of embeddings of another length,
            prototypes of a support that is no :class:`~captum_fam.SupportSet`, or a similarity that differs from that
            of the support.

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
        *,
        gallery: Gallery | GalleryLike | None = None,
        against: Against | None = None,
        threshold: float | None = None,
    ) -> None:
        super().__init__()
        if aggregate not in ("mean", "prototype"):
            raise ValueError(f'aggregate must be "mean" or "prototype", got {aggregate!r}')
        self.model = model
        self.support = support if isinstance(support, Support) else SupportSet(check_support_tensor(support))
        self.foil = as_foil(foil, gallery)
        self.threshold = check_against(against, threshold)
        self.against = against
        if against is not None and self.foil is not None:
            raise ValueError(f"against={against!r} and a foil exclude each other; leave one of them out")
        if aggregate == "prototype" and not isinstance(self.support, SupportSet | LeaveOutSupport):
            raise ValueError(f'aggregate="prototype" needs a SupportSet, got {type(self.support).__name__}')
        self.similarity = self.support.measure(None if similarity is None else get_similarity(similarity))
        self.aggregate = aggregate
        self._kept: tuple[object, Support] | None = None
        self.embed()

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes, in the order of the scores."""
        return self.support.class_names

    def extra_repr(self) -> str:
        options: dict[str, object] = {
            "foil": self.foil if isinstance(self.foil, str) else None,
            "aggregate": None if self.aggregate == "mean" else self.aggregate,
            "against": self.against,
            "threshold": self.threshold,
        }
        return ", ".join(f"{name}={value!r}" for name, value in options.items() if value is not None)

    def forward(self, *args: Any) -> Tensor:
        """Scores of the query batch, ``(B, C)``; further arguments go to the model."""
        self._warn_of_training(4)  # past the functions that call a module
        with self._compared(args) as comparison:
            return comparison.scores

    def predict(self, *args: Any) -> tuple[Tensor, Tensor]:
        """Scores and predicted class of each query.

        The predicted class has the largest score before the foil; among scores that differ by rounding only, the first
        class is predicted. A memory bank predicts the class with the most votes.

        Args:
            *args: the query batch, and further arguments of the model.

        Returns:
            Scores ``(B, C)`` and class indices ``(B,)``.
        """
        self._warn_of_training(2)
        with self._compared(args) as comparison:
            return comparison.scores, comparison.predicted

    def compare(self, *args: Any) -> Comparison:
        """Compare the query batch with the support; the result holds the scores and all their parts.

        Args:
            *args: the query batch, and further arguments of the model.
        """
        self._warn_of_training(2)
        return self.compare_quietly(*args)

    def compare_quietly(self, *args: Any, target: TargetType = None) -> Comparison:
        """Compare as :meth:`compare`, without a warning of training mode.

        Args:
            *args: the query batch, and further arguments of the model.
            target: the class to explain. Default: None, the predicted class.
        """
        with self._compared(args, target) as comparison:
            comparison.compute()
            return comparison

    def embed(self) -> Support:
        """Embed the images of support and foil now, whatever has changed since the last time.

        Returns:
            The support that queries are compared with, with its foil.
        """
        support = self.support.embed(self.model).for_every_class()
        foil = self.foil if self.foil is None or isinstance(self.foil, str) else self.foil.embed(self.model)
        if self.aggregate == "prototype":
            if foil == "gallery":
                foil = ContrastedSupport(support, foil).gallery
            support = _prototypes(support)
            foil = foil.prototypes() if isinstance(foil, SupportSet) else foil
        if foil is not None:
            support = ContrastedSupport(support, foil)
        elif self.against is not None:
            support = ThresholdedSupport(support, self.against, self.threshold)
        # The version is read after embedding, because embedding in training mode changes the statistics of batch norms.
        self._kept = self._state(), support
        return support

    def embedded(self) -> Support:
        """The support that queries are compared with, with its foil, embedded under the present weights.

        Raises:
            TypeError: in a replica of this module, as a ``DataParallel`` makes.
        """
        if getattr(self, "_is_replica", False):
            # A replica cannot tell whether the weights of the original have changed since it embedded the support.
            raise TypeError(WRAP_THE_MODEL)
        kept = self._kept  # read once, because another thread may replace the attribute in between
        version = self._state()
        if kept is None or version is None or kept[0] != version:
            return self.embed()
        return kept[1]

    def _state(self) -> object | None:
        """The version of everything that the embedded support depends on; None if it cannot be seen."""
        return version_of(self.model, self.support, self.foil, self.aggregate, self.against, str(self.threshold))

    @contextmanager
    def _compared(self, args: tuple[Any, ...], target: TargetType = None) -> Iterator[Comparison]:
        """The comparison, whose values are computed without autocast inside the context, and only those asked for."""
        self._refuse_deep_lift()
        support = self.embedded()
        embedding = check_embedding(self.model(*args))
        with torch.autocast(embedding.device.type, enabled=False):
            yield support.compare(embedding, target, self.similarity)

    def _warn_of_training(self, stacklevel: int) -> None:
        """Warn of training mode, at the line so many calls above the calling method."""
        in_training = training_mode_in_words(self.model)
        if in_training is not None:
            warn_user(in_training, stacklevel + 1)

    def _refuse_deep_lift(self) -> None:
        """Refuse DeepLift for a similarity that is not linear.

        DeepLift has rules for modules only. It takes gradients of all other functions, and then its attributions do
        not add up to the difference of the scores.
        """
        hooks = (getattr(hook, "__module__", "") for hook in self._forward_pre_hooks.values())
        if not self.similarity.is_linear and any("captum.attr._core.deep_lift" in str(name) for name in hooks):
            raise TypeError(
                f"DeepLift cannot follow {type(self.similarity).__name__}: lengths and differences of vectors are no "
                'modules, so that the attributions would not add up. Use similarity="dot", IntegratedGradients or '
                "LayerSimilarityCAM"
            )


def _prototypes(support: Support) -> SupportSet | SupportPerQuery:
    assert isinstance(support, SupportSet | LeaveOutSupport)
    return support.prototypes()
