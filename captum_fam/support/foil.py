"""Foils: what the score of a class is contrasted with, for any support."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

from torch import Tensor

from captum_fam import functional as F
from captum_fam._captum import TargetType
from captum_fam.similarity import Similarity
from captum_fam.support.base import Support
from captum_fam.support.checks import check_embedding_sizes
from captum_fam.support.comparison import Comparison
from captum_fam.support.support_set import SupportSet

FoilName = Literal["others", "runner-up"]
FoilLike = FoilName | SupportSet | Tensor


class ContrastedSupport(Support):
    """A support from whose scores the score of a foil is subtracted: "why A and not B".

    Args:
        support: any support.
        foil: the score to subtract from the score of each class: ``"others"``, the mean score of the other classes;
            ``"runner-up"``, for each query the largest score of another class; or a :class:`~captum_fam.SupportSet`,
            the mean score of its classes.

    Raises:
        ValueError: for an unknown foil, a foil of other classes for a support of one class, or a foil whose embeddings
            have another length than those of the support.

    Example:
        >>> support = SupportSet(torch.eye(3), ["jay", "tit", "wren"])
        >>> contrast = ContrastedSupport(support, "runner-up")
        >>> contrast.compare(torch.tensor([[0.6, 0.0, 0.8]])).scores
        tensor([[-0.2000, -0.8000,  0.2000]])
    """

    def __init__(self, support: Support, foil: FoilName | SupportSet) -> None:
        if isinstance(foil, str):
            if foil not in get_args(FoilName):
                raise ValueError(f'foil must be "others", "runner-up", a SupportSet or None, got {foil!r}')
            if support.n_classes < 2:
                raise ValueError(f"foil={foil!r} needs a support of at least two classes, got one")
            support = support.for_every_class()
        elif not isinstance(foil, SupportSet):
            raise TypeError(
                f'foil must be "others", "runner-up", a SupportSet, a tensor or None, got {type(foil).__name__}'
            )
        elif isinstance(support, SupportSet) and support.holds_embeddings and foil.holds_embeddings:
            check_embedding_sizes(support.embeddings(), foil.embeddings(), "foil")
        self.support = support
        self.foil = foil
        self.class_names = support.class_names
        self.similarity = support.similarity

    def embed(self, forward_func: Callable[..., Any], additional_forward_args: Any = None) -> ContrastedSupport:
        """Embed the images of support and foil with ``forward_func``."""
        foil = self.foil if isinstance(self.foil, str) else self.foil.embed(forward_func, additional_forward_args)
        return ContrastedSupport(self.support.embed(forward_func, additional_forward_args), foil)

    @property
    def class_counts(self) -> list[int]:
        return self.support.class_counts

    @property
    def per_query(self) -> bool:
        return self.support.per_query

    def for_queries(self, start: int, stop: int) -> ContrastedSupport:
        """The support for the queries ``start`` to ``stop - 1``, with the same foil."""
        return ContrastedSupport(self.support.for_queries(start, stop), self.foil)

    def check_queries(self, inputs: tuple[Tensor, ...], args: tuple[Any, ...] | None) -> None:
        self.support.check_queries(inputs, args)
        if isinstance(self.foil, SupportSet):
            self.foil.check_queries(inputs, args)

    def for_every_class(self) -> ContrastedSupport:
        """The support that compares with supports of every class, with the same foil."""
        return ContrastedSupport(self.support.for_every_class(), self.foil)

    def compare(self, query: Tensor, target: TargetType = None, similarity: Similarity | None = None) -> Comparison:
        """Compare queries ``(B, J)`` with the support and with the foil.

        Raises:
            ValueError: for queries that do not fit the support or the foil.
        """
        comparison = self.support.compare(query, target, similarity)
        if self.foil == "runner-up":
            return comparison.against(runner_up=True)
        if isinstance(self.foil, str):
            return comparison.against(comparison.members.others())
        vectors = self.foil.embeddings()
        check_embedding_sizes(query, vectors, "foil")
        return comparison.against_vectors(vectors, self.foil.class_weights(F.widen(vectors).dtype).mean(0))


def as_foil(foil: object) -> FoilName | SupportSet | None:
    """Convert a foil that is a tensor of images or embeddings to a :class:`~captum_fam.SupportSet` of one class.

    Example:
        >>> as_foil(torch.eye(2))
        SupportSet(embeddings (2, 2), n_classes=1)
    """
    if isinstance(foil, Tensor):
        return SupportSet(foil)
    if foil is None or isinstance(foil, str | SupportSet):
        return foil  # type: ignore[return-value]  # ContrastedSupport refuses other texts
    raise TypeError(f'foil must be "others", "runner-up", a SupportSet, a tensor or None, got {type(foil).__name__}')
