"""Foils: what the score of a class is contrasted with, for any support."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

from torch import Tensor

from captum_fam import functional as F
from captum_fam._captum import TargetType
from captum_fam.similarity import Similarity
from captum_fam.support.base import Support, require_plain
from captum_fam.support.checks import check_embedding_sizes
from captum_fam.support.comparison import Comparison
from captum_fam.support.gallery import Gallery, features_of, no_gallery
from captum_fam.support.leave_out import LeaveOutSupport
from captum_fam.support.support_set import SupportSet

FoilName = Literal["others", "runner-up", "gallery"]
FoilLike = FoilName | SupportSet | Gallery | Tensor

_NAMES = '"others", "runner-up", "gallery"'


class ContrastedSupport(Support):
    """A support from whose scores the score of a foil is subtracted: "why A and not B".

    Args:
        support: any support.
        foil: the score to subtract from the score of each class: ``"others"``, the mean score of the other classes;
            ``"runner-up"``, for each query the largest score of another class; a :class:`~captum_fam.SupportSet`, the
            mean score of its classes; a :class:`~captum_fam.support.Gallery`, the mean similarity to its images; or
            ``"gallery"``, the gallery of all supports.

    Raises:
        TypeError: for a support or foil of another kind.
        ValueError: for an unknown foil, a foil of other classes for a support of one class, a support that is no
            gallery for ``"gallery"``, a foil whose embeddings have another length than those of the support, or a
            support that has a foil, a gallery or a threshold already.

    Example:
        >>> support = SupportSet(torch.eye(3), ["jay", "tit", "wren"])
        >>> contrast = ContrastedSupport(support, "runner-up")
        >>> contrast.compare(torch.tensor([[0.6, 0.0, 0.8]])).scores
        tensor([[-0.2000, -0.8000,  0.2000]])
    """

    is_contrasted = True

    def __init__(self, support: Support, foil: FoilName | SupportSet | Gallery) -> None:
        require_plain(support, "foil")
        if isinstance(foil, str):
            if foil not in get_args(FoilName):
                raise ValueError(f"foil must be {_NAMES}, a SupportSet or a Gallery, got {foil!r}")
            _check_classes(support, foil)
            support = support if foil == "gallery" else support.for_every_class()
        elif not isinstance(foil, SupportSet | Gallery):
            raise TypeError(f"foil must be {_NAMES}, a SupportSet or a Gallery, got {type(foil).__name__}")
        elif isinstance(foil, Gallery):
            foil.check_features(features_of(support), "support")
        elif isinstance(support, SupportSet) and support.holds_embeddings and foil.holds_embeddings:
            check_embedding_sizes(support.embeddings(), foil.embeddings(), "foil")
        self.support = support
        self.foil = foil
        self.class_names = support.class_names
        self.similarity = support.similarity

    def __repr__(self) -> str:
        return f"ContrastedSupport({self.support!r}, {self.foil!r})"

    @property
    def gallery(self) -> Gallery | None:
        """The gallery whose mean similarity is subtracted; None for another foil."""
        if self.foil == "gallery":
            return Gallery(self.support)
        return self.foil if isinstance(self.foil, Gallery) else None

    def embed(self, forward_func: Callable[..., Any], additional_forward_args: Any = None) -> ContrastedSupport:
        """Embed the images of support and foil with ``forward_func``."""
        foil = self.foil if isinstance(self.foil, str) else self.foil.embed(forward_func, additional_forward_args)
        return ContrastedSupport(self.support.embed(forward_func, additional_forward_args), foil)

    @property
    def class_counts(self) -> list[int]:
        return self.support.class_counts

    @property
    def per_query(self) -> bool:
        return self.support.per_query or (isinstance(self.foil, Gallery) and self.foil.per_query)

    def for_queries(self, start: int, stop: int) -> ContrastedSupport:
        """The support for the queries ``start`` to ``stop - 1``, with their foil."""
        foil = self.foil.for_queries(start, stop) if isinstance(self.foil, Gallery) else self.foil
        return ContrastedSupport(self.support.for_queries(start, stop), foil)

    def check_queries(self, inputs: tuple[Tensor, ...], args: tuple[Any, ...] | None) -> None:
        self.support.check_queries(inputs, args)
        if not isinstance(self.foil, str):
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
        if self.foil == "others":
            return comparison.against(comparison.members.others())
        if not isinstance(self.foil, SupportSet):
            assert self.gallery is not None
            return comparison.contrasted(self.gallery.contrast(comparison.query, comparison.similarity))
        vectors = self.foil.embeddings()
        check_embedding_sizes(query, vectors, "foil")
        return comparison.against_vectors(vectors, self.foil.class_weights(F.widen(vectors).dtype).mean(0))


def as_foil(foil: object, gallery: object = None) -> FoilName | SupportSet | Gallery | None:
    """Convert a foil, and the gallery of ``foil="gallery"``, to what :class:`ContrastedSupport` takes.

    Args:
        foil: a name, a :class:`~captum_fam.SupportSet`, a :class:`~captum_fam.support.Gallery`, a tensor of images or
            embeddings, or None.
        gallery: what :class:`~captum_fam.support.Gallery` takes, for ``"gallery"``. Default: None, all supports.

    Returns:
        A tensor becomes a set of one class; ``"gallery"`` with a gallery becomes the gallery.

    Raises:
        TypeError: for anything else.
        ValueError: for a gallery beside another foil.

    Example:
        >>> as_foil(torch.eye(2)), as_foil("gallery", torch.eye(2))
        (SupportSet(embeddings (2, 2), n_classes=1), Gallery(
          SupportSet
          (source): SupportSet(embeddings (2, 2), n_classes=1)
        ))
    """
    if gallery is not None:
        if not isinstance(foil, str) or foil != "gallery":
            given = repr(foil) if foil is None or isinstance(foil, str) else type(foil).__name__
            raise ValueError(f'gallery= needs foil="gallery", got foil={given}')
        return gallery if isinstance(gallery, Gallery) else Gallery(gallery)  # type: ignore[arg-type]  # checked there
    if isinstance(foil, Tensor):
        return SupportSet(foil)
    if foil is None or isinstance(foil, str | SupportSet | Gallery):
        return foil  # type: ignore[return-value]  # ContrastedSupport refuses other texts
    raise TypeError(f"foil must be {_NAMES}, a SupportSet, a Gallery, a tensor or None, got {type(foil).__name__}")


def _check_classes(support: Support, foil: str) -> None:
    """Refuse a named foil for a support that has no other classes, or no gallery."""
    if foil == "gallery":
        if not support.forms_gallery:
            raise ValueError(no_gallery(support))
        if support.n_classes < 2 and isinstance(support, SupportSet | LeaveOutSupport):
            raise ValueError(
                'foil="gallery": the supports of one class are their own mean, so that nothing is left of the score; '
                "pass gallery=, other images"
            )
    elif support.n_classes < 2:
        raise ValueError(f"foil={foil!r} needs a support of at least two classes, got one")
