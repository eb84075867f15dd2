"""One vector in the place of many: the similarities whose mean over a gallery is the similarity to one vector."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from captum_fam import functional as F
from captum_fam.similarity import Bilinear, Cosine, Dot, Euclidean, Mahalanobis, Similarity, UnitEuclidean


class MeanVectors(NamedTuple):
    """Vectors that stand for a gallery: the mean similarity of a query is ``weight * s(Z, vector) + offset``.

    Attributes:
        vectors: ``(..., J)``.
        weights: ``(...,)``.
        offsets: ``(...,)``.
    """

    vectors: Tensor
    weights: Tensor
    offsets: Tensor


class MeanForm(ABC):
    """How the mean similarity to a gallery follows from the mean of a few numbers per row.

    Attributes:
        similarity: the similarity.
        needs_squares: whether the mean embedding of the gallery is not enough, because the squares of the rows count
            too.
        takes_units: whether the mean is taken over embeddings of length one.
    """

    needs_squares = False
    takes_units = False

    def __init__(self, similarity: Similarity) -> None:
        self.similarity = similarity

    @abstractmethod
    def lift(self, rows: Tensor) -> Tensor:
        """The numbers of each row whose mean counts, ``(n, J) -> (n, L)``."""

    @abstractmethod
    def vectors(self, mean: Tensor) -> MeanVectors:
        """The vectors for means of lifted rows, ``(..., L)``."""


class _OfVectors(MeanForm):
    """For inner products: the mean embedding."""

    def lift(self, rows: Tensor) -> Tensor:
        return rows

    def vectors(self, mean: Tensor) -> MeanVectors:
        one = mean.new_ones(mean.shape[:-1])
        return MeanVectors(mean, one, torch.zeros_like(one))


class _OfUnits(MeanForm):
    """For what is linear in the cosine: the mean m of the embeddings of length one.

    The mean cosine is the length of m times the cosine with m.
    """

    takes_units = True

    def lift(self, rows: Tensor) -> Tensor:
        return F.unit(rows)

    def vectors(self, mean: Tensor) -> MeanVectors:
        length = mean.norm(dim=-1)
        if isinstance(self.similarity, Cosine):
            return MeanVectors(mean, length, torch.zeros_like(length))
        # The squared distance of unit vectors is 2 minus 2 times the cosine.
        return MeanVectors(mean, length, 2 * length - 2)


class _OfSquares(MeanForm):
    """For squared distances: the mean embedding, and how far the rows are from it on average."""

    needs_squares = True

    def lift(self, rows: Tensor) -> Tensor:
        return torch.cat([rows, self._squares(rows)], -1)

    def vectors(self, mean: Tensor) -> MeanVectors:
        centers, squares = mean[..., :-1], mean[..., -1]
        offsets = self._squares(centers.reshape(-1, centers.shape[-1])).view_as(squares) - squares
        return MeanVectors(centers, torch.ones_like(offsets), offsets)

    def _squares(self, rows: Tensor) -> Tensor:
        """The squared distance of each row to zero, ``(n, 1)``."""
        return -self.similarity.score(rows, torch.zeros_like(rows[:1]))


_FORMS: dict[type[Similarity], type[MeanForm]] = {
    Cosine: _OfUnits,
    Dot: _OfVectors,
    Bilinear: _OfVectors,
    Mahalanobis: _OfSquares,
}
_SQUARED_FORMS: dict[type[Similarity], type[MeanForm]] = {Euclidean: _OfSquares, UnitEuclidean: _OfUnits}


def mean_form(similarity: Similarity) -> MeanForm | None:
    """How the mean similarity to a gallery follows from a mean over its rows.

    Args:
        similarity: any similarity.

    Returns:
        The form for a cosine, a dot product, one through a matrix, and the squared distances; None for every other
        similarity, whose mean needs all rows.

    Example:
        >>> from captum_fam.similarity import Cosine
        >>> form = mean_form(Cosine())
        >>> form.vectors(form.lift(torch.tensor([[2.0, 0.0], [0.0, 3.0]])).mean(0)).weights
        tensor(0.7071)
    """
    # The exact class: a subclass of the user may have another score.
    form = (_SQUARED_FORMS if getattr(similarity, "squared", False) else _FORMS).get(type(similarity))
    return None if form is None else form(similarity)
