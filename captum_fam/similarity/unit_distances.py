"""The Euclidean distance of unit vectors, as metric learning uses it on normalized embeddings."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from captum_fam import functional as F
from captum_fam.similarity.base import LinearSimilarity
from captum_fam.similarity.distances import Euclidean
from captum_fam.similarity.inner_products import Cosine

_COSINE, _DISTANCE = Cosine(), Euclidean()


class UnitEuclidean(LinearSimilarity):
    r"""Negative Euclidean distance of the unit vectors, or its square.

    With the cosine c of two embeddings, the square is :math:`\|\hat Z - \hat t\|^2 = 2 - 2c`, so that the score is
    linear in the cosine. Contributions are those of the cosine, times 2 for the square and times
    :math:`2 / (\sqrt 2 + \|\hat Z - \hat t\|)` for the distance. They sum to the score minus the score of embeddings
    at a right angle, c = 0: -2 for the square, and the negative root of 2 for the distance. The cosine of an embedding
    of zeros with any other counts as 0.

    Args:
        squared: whether the distance is squared. Default: False.

    Example:
        >>> squared = UnitEuclidean(squared=True)
        >>> query, support = torch.tensor([[3.0, 4.0]]), torch.tensor([[2.0, 0.0]])  # their cosine is 0.6
        >>> squared(query, support), squared.contributions(query, support, torch.ones(1, 1))
        (tensor([[-0.8000]]), tensor([[1.2000, 0.0000]]))
    """

    explains_whole_score = False
    vanishes_at_zero = False
    ignores_length = True

    def __init__(self, squared: bool = False) -> None:
        super().__init__()
        self.squared = squared

    def score(self, query: Tensor, support: Tensor) -> Tensor:
        scores = _DISTANCE.score(F.unit(query), F.unit(support))
        # The distance of a zero vector to a unit vector is 1. Its cosine is 0, for which the distance is the root of 2.
        is_zero = (F.lengths(query).unsqueeze(1) == 0) | (F.lengths(support) == 0)
        scores = torch.where(is_zero, -math.sqrt(2), scores)
        return -scores.square() if self.squared else scores

    def explained(self, query: Tensor, support: Tensor) -> Tensor:
        return self._factor(query, support) * _COSINE.score(query, support)

    def weights(self, query: Tensor, support: Tensor, support_weights: Tensor) -> Tensor:
        return _COSINE.weights(query, support, support_weights * self._factor(query, support))

    def contributions(self, query: Tensor, support: Tensor, support_weights: Tensor) -> Tensor:
        return _COSINE.contributions(query, support, support_weights * self._factor(query, support))

    def weights_of_parts(self, query: Tensor, support: Tensor, parts: Tensor) -> Tensor:
        return self._factor(query, support.unsqueeze(1)).unsqueeze(2) * _COSINE.weights_of_parts(query, support, parts)

    def bound(self, query: Tensor, support: Tensor) -> Tensor:
        return self._factor(query, support) * _COSINE.bound(query, support)

    def magnitude(self, query: Tensor, support: Tensor, scores: Tensor) -> Tensor:
        # Unit vectors have rounding errors relative to 1, however small their distance is.
        return scores.abs().clamp_min(1)

    def terms(self, query: Tensor, support: Tensor, support_weights: Tensor) -> Tensor:
        return _COSINE.terms(query, support, support_weights * self._factor(query, support))

    def extra_repr(self) -> str:
        return f"squared={self.squared}"

    def _factor(self, query: Tensor, support: Tensor) -> Tensor:
        """What the cosine is multiplied with, ``(B, K)``: 2 for the square, 2 / (√2 + d) for the distance d."""
        if self.squared:
            return query.new_full((1, 1), 2.0).expand(len(query), support.shape[-2])
        # √2 - d is (2 - d²) / (√2 + d), and 2 - d² is two times the cosine.
        return 2 / (math.sqrt(2) - self.score(query, support))
