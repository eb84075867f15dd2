"""What a class is contrasted with, on top of any support."""

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
    """A support whose scores are minus those of a foil: "why A and not B".

    Args:
        support: any support.
        foil: ``"others"``, the mean score of the other classes; ``"runner-up"``, the best of the other classes for each
            query; or a :class:`~captum_fam.SupportSet`, the mean of the scores of its classes.

    Raises:
        ValueError: for an unknown foil, a foil among classes of which there is only one, or one of another length.
    """

    def __init__(self, support: Support, foil: FoilName | SupportSet) -> None:
        if isinstance(foil, str):
            if foil not in get_args(FoilName):
                raise ValueError(f'foil must be "others", "runner-up", a SupportSet or None, got {foil!r}')
            if support.n_classes < 2:
                raise ValueError(f"foil={foil!r} needs a support of at least two classes, got one")
            support = support.for_every_class()
        elif isinstance(support, SupportSet) and support.holds_embeddings and foil.holds_embeddings:
            check_embedding_sizes(support.embeddings(), foil.embeddings(), "foil")
        self.support = support
        self.foil = foil
        self.class_names = support.class_names
        self.similarity = support.similarity

    @property
    def images(self) -> Tensor | None:
        return self.support.images

    def embed(self, forward_func: Callable[..., Any], additional_forward_args: Any = None) -> ContrastedSupport:
        """Support and foil as embeddings under the present weights of ``forward_func``."""
        foil = self.foil if isinstance(self.foil, str) else self.foil.embed(forward_func, additional_forward_args)
        return ContrastedSupport(self.support.embed(forward_func, additional_forward_args), foil)

    @property
    def class_counts(self) -> list[int]:
        return self.support.class_counts

    @property
    def per_query(self) -> bool:
        return self.support.per_query

    def for_queries(self, start: int, stop: int) -> ContrastedSupport:
        """The contrast of the queries ``start`` to ``stop - 1``."""
        return ContrastedSupport(self.support.for_queries(start, stop), self.foil)

    def check_queries(self, inputs: tuple[Tensor, ...], args: tuple[Any, ...] | None) -> None:
        self.support.check_queries(inputs, args)

    def for_every_class(self) -> ContrastedSupport:
        """The same contrast of supports of every class."""
        return ContrastedSupport(self.support.for_every_class(), self.foil)

    def compare(self, query: Tensor, target: TargetType = None, similarity: Similarity | None = None) -> Comparison:
        """Compare queries ``(B, J)`` with the support and with the foil."""
        comparison = self.support.compare(query, target, similarity)
        if self.foil == "runner-up":
            return comparison.against(runner_up=True)
        if isinstance(self.foil, str):
            return comparison.against(comparison.members.others())
        vectors = self.foil.embeddings()
        check_embedding_sizes(query, vectors, "foil")
        return comparison.against_vectors(vectors, self.foil.class_weights(F.widen(vectors).dtype).mean(0))


def as_foil(foil: FoilLike | None) -> FoilName | SupportSet | None:
    """A tensor of images or embeddings becomes a :class:`~captum_fam.SupportSet` of one class."""
    return SupportSet(foil) if isinstance(foil, Tensor) else foil
