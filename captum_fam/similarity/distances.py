"""Distances as similarities: the negative distance, split in one of two ways.

A distance has no split by features that adds up to the distance *and* gives nothing to a feature that is zero in the
query. So there are two splits, and two classes for each distance:

- :class:`Euclidean` and :class:`Mahalanobis` count from the zero embedding: contributions sum to ``score(Z) -
  score(0)``, and a feature that is zero in the query contributes nothing.
- :class:`EuclideanDifference` and :class:`MahalanobisDifference` split the score itself. A feature that is dead in both
  images is a perfect match for them: after min-max it gets the top weight, and maps made with them point at the right
  object no more often than chance.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from captum_fam import functional as F
from captum_fam.rounding import drop_rounding_of_sum
from captum_fam.similarity.base import Similarity
from captum_fam.similarity.closed_form import ClosedFormSimilarity
from captum_fam.similarity.matrix import check_features, check_square
from captum_fam.similarity.registry import register_similarity


class _EuclideanDistance(Similarity):
    """The score that both splits of the Euclidean distance share."""

    vanishes_at_zero = False

    def __init__(self, squared: bool = False) -> None:
        super().__init__()
        self.squared = squared

    def score(self, query: Tensor, support: Tensor) -> Tensor:
        distance = _distance(query, support)
        return -distance.square() if self.squared else -distance

    def bound(self, query: Tensor, support: Tensor) -> Tensor:
        # Magnitudes of 2 z·t - ‖z‖², over ‖t‖ + d, which is at least ‖z‖ and at least ‖t‖, for the root.
        # The other split takes it too, as the scale of the embeddings: what is relative to it needs no more.
        length = F.lengths(query).unsqueeze(1)
        if self.squared:
            return 2 * F.products_of_lengths(query, support) + length.square()
        return 3 * length.expand(-1, support.shape[-2])

    def extra_repr(self) -> str:
        return f"squared={self.squared}"


@register_similarity("euclidean")
class Euclidean(_EuclideanDistance, ClosedFormSimilarity):
    r"""Negative Euclidean distance, :math:`s = -\|Z - t\|`, or its square, :math:`-\|Z - t\|^2`.

    The square is the similarity of prototypical networks (Snell, Swersky and Zemel, NeurIPS 2017).
    Contributions :math:`2 z_j t_j - z_j^2` sum to score(Z) - score(0) of the square, and are zero for a dead channel.
    Those of the distance are the same, divided so that they sum to its score(Z) - score(0).

    Args:
        squared: the squared distance. Default: False.

    Example:
        >>> squared = Euclidean(squared=True)
        >>> query, support = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 2.0]])
        >>> squared(query, support), squared.explained(query, support)  # -4, and -4 minus the score of zeros, -13
        (tensor([[-4.]]), tensor([[9.]]))
        >>> squared.contributions(query, support, torch.ones(1, 1))
        tensor([[5., 4.]])
    """

    explains_whole_score = False

    def explained(self, query: Tensor, support: Tensor) -> Tensor:
        gain = _gain(query, support)
        return gain if self.squared else _divide(gain, self._reach(query, support))

    def terms(self, query: Tensor, support: Tensor, support_weights: Tensor) -> Tensor:
        per_square = self._per_square(query, support, support_weights)
        return 2 * F.combine_supports(per_square, support.abs()) + query.abs() * per_square.sum(1, keepdim=True)

    def _weights(self, query: Tensor, support: Tensor, support_weights: Tensor) -> Tensor:
        per_square = self._per_square(query, support, support_weights)
        return 2 * F.combine_supports(per_square, support) - query * per_square.sum(1, keepdim=True)

    def _per_square(self, query: Tensor, support: Tensor, support_weights: Tensor) -> Tensor:
        """Weights of the squared distances, ``(B, K)``."""
        return support_weights if self.squared else _divide(support_weights, self._reach(query, support))

    def _reach(self, query: Tensor, support: Tensor) -> Tensor:
        """‖t‖ + d, ``(B, K)``: the gain of the squared distance, ‖t‖² - d², is so many times that of the distance."""
        return _distance(query, support) + support.norm(dim=-1)


register_similarity("squared-euclidean", partial(Euclidean, squared=True))


class EuclideanDifference(_EuclideanDistance):
    r"""The score of :class:`Euclidean`, split into the differences of the features, :math:`-(z_j - t_j)^2`.

    Contributions sum to the score itself; without ``squared`` they are divided by the distance, so that they sum to
    the distance. Channels that are dead in both images count as perfect matches, so that maps made with this split
    point at the right object no more often than chance. It is here to be compared with, and has no linear weights.

    Args:
        squared: the squared distance. Default: False.

    Example:
        >>> squared = EuclideanDifference(squared=True)
        >>> query, support = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 2.0]])
        >>> squared(query, support), squared.contributions(query, support, torch.ones(1, 1))
        (tensor([[-4.]]), tensor([[-4., -0.]]))
    """

    def contributions(self, query: Tensor, support: Tensor, support_weights: Tensor) -> Tensor:
        if not self.squared:
            support_weights = _divide(support_weights, _distance(query, support))
        return -_sum_over_supports(torch.square, query, support, support_weights)


class _MahalanobisDistance(Similarity):
    """The score that both splits of the Mahalanobis distance share."""

    vanishes_at_zero = False
    factor: Tensor

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        check_square(matrix)
        matrix = F.widen(matrix.detach())
        if (matrix - matrix.T).abs().max() > 1e-4 * matrix.abs().max():
            raise ValueError("matrix must be symmetric; pass (matrix + matrix.T) / 2")
        values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
        if values.min() < -1e-5 * values.abs().max():
            raise ValueError(f"matrix must be positive semi-definite, got the eigenvalue {values.min():.3g}")
        # M = F Fᵀ: in whitened embeddings Z F the distance is the Euclidean one, without d M d, which can come out
        # with the wrong sign.
        self.register_buffer("factor", vectors * values.clamp_min(0).sqrt())

    def score(self, query: Tensor, support: Tensor) -> Tensor:
        return -_distance(self._whiten(query), self._whiten(support)).square()

    def bound(self, query: Tensor, support: Tensor) -> Tensor:
        # The columns of the factor are orthogonal: the longest one's square is the largest eigenvalue of M.
        stretch = self.factor.to(query).square().sum(0).amax()
        return stretch * (2 * F.products_of_lengths(query, support) + F.lengths(query).square().unsqueeze(1))

    def _whiten(self, vectors: Tensor) -> Tensor:
        check_features(self.factor, vectors)
        return vectors @ self.factor.to(vectors)

    def _apply_matrix(self, vectors: Tensor) -> Tensor:
        return self._whiten(vectors) @ self.factor.to(vectors).T


class Mahalanobis(_MahalanobisDistance, ClosedFormSimilarity):
    r"""Negative squared distance in a metric, :math:`s = -(Z - t)^\top M (Z - t)`.

    Contributions :math:`z_j (2 M t - M Z)_j` sum to score(Z) - score(0), and are zero for a dead channel. M is learned
    in Xing et al., "Distance Metric Learning with Application to Clustering", NeurIPS 2002, and is an inverse
    covariance in Bateni et al., "Improved Few-Shot Visual Classification" (Simple CNAPS), CVPR 2020.

    Args:
        matrix: M, symmetric and positive semi-definite, ``(J, J)``, of any floating-point type; it is factored in
            float32 at least, and used in the type and on the device of the embeddings.

    Raises:
        ValueError: if the matrix is not finite, square, symmetric and positive semi-definite; in use, if the
            embeddings have not J features.

    Example:
        >>> metric = Mahalanobis(torch.diag(torch.tensor([1.0, 4.0])))
        >>> metric(torch.tensor([[1.0, 1.0]]), torch.tensor([[0.0, 0.0]]))
        tensor([[-5.]])
    """

    explains_whole_score = False

    def explained(self, query: Tensor, support: Tensor) -> Tensor:
        return _gain(self._whiten(query), self._whiten(support))

    def terms(self, query: Tensor, support: Tensor, support_weights: Tensor) -> Tensor:
        pull = 2 * F.combine_supports(support_weights, support.abs())
        factor = self.factor.to(query).abs()
        return (pull + query.abs() * support_weights.sum(1, keepdim=True)) @ factor @ factor.T

    def _weights(self, query: Tensor, support: Tensor, support_weights: Tensor) -> Tensor:
        pull = F.combine_supports(support_weights, support)
        return self._apply_matrix(2 * pull - query * support_weights.sum(1, keepdim=True))

    def _terms_per_weight(self, support: Tensor) -> int:
        # A sum over the supports, and one over the features in the product with the matrix.
        return sum(support.shape[-2:])


class MahalanobisDifference(_MahalanobisDistance):
    r"""The score of :class:`Mahalanobis`, split into :math:`-d_j (M d)_j` with :math:`d = Z - t`.

    Contributions sum to the score itself. Channels that are dead in both images count as perfect matches, as for
    :class:`EuclideanDifference`. It is here to be compared with, and has no linear weights.

    Args:
        matrix: M, as for :class:`Mahalanobis`.

    Raises:
        ValueError: as for :class:`Mahalanobis`.

    Example:
        >>> metric = MahalanobisDifference(torch.diag(torch.tensor([1.0, 4.0])))
        >>> query, support = torch.tensor([[1.0, 1.0]]), torch.tensor([[0.0, 0.0]])
        >>> metric.contributions(query, support, torch.ones(1, 1))
        tensor([[-1., -4.]])
    """

    def contributions(self, query: Tensor, support: Tensor, support_weights: Tensor) -> Tensor:
        return -_sum_over_supports(lambda d: d * self._apply_matrix(d), query, support, support_weights)


def _distance(query: Tensor, support: Tensor) -> Tensor:
    """‖Z - t‖, ``(B, K)``."""
    # The expanded form ‖z‖² - 2 z·t + ‖t‖² loses all digits between near duplicates.
    exact = "donot_use_mm_for_euclid_dist"
    if support.dim() == 2:
        return torch.cdist(query, support, compute_mode=exact)
    return torch.cdist(query.unsqueeze(1), support, compute_mode=exact).squeeze(1)


def _gain(query: Tensor, support: Tensor) -> Tensor:
    """‖t‖² - ‖Z - t‖² = 2 Z·t - ‖Z‖², ``(B, K)``, whose error does not grow with the longest of the supports."""
    return 2 * F.pairwise_dot(query, support) - query.square().sum(1, keepdim=True)


def _divide(values: Tensor, lengths: Tensor) -> Tensor:
    # A length is zero only where all that its quotient multiplies is zero too: any finite quotient will do.
    return values / lengths.clamp_min(torch.finfo(lengths.dtype).tiny)


def _sum_over_supports(
    term: Callable[[Tensor], Tensor], query: Tensor, support: Tensor, support_weights: Tensor
) -> Tensor:
    """The weighted sum of ``term(Z - t)`` over the supports, ``(B, J)``; rows that cancel are exactly zero."""
    total, magnitude = torch.zeros_like(query), torch.zeros_like(query)
    # One support after the other, as the term is no formula of the weighted sum: all at once would be (B, K, J).
    for vectors, weight in zip(F.each_support(support), support_weights.unbind(1), strict=True):
        summand = weight.unsqueeze(1) * term(query - vectors)
        total += summand
        magnitude += summand.abs()
    # The magnitudes are those of contributions already: a query of ones takes them as they are.
    ones = torch.ones_like(query)
    return drop_rounding_of_sum(total, magnitude, ones, are_weights=False, count=support.shape[-2])
