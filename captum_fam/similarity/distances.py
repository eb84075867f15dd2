"""Distances as similarities: the negative distance, with contributions of one of two kinds.

A distance has no contributions of features that both sum to the distance *and* are zero for a feature that is zero in
the query. So there are two kinds of contributions, and two classes per distance:

- :class:`Euclidean` and :class:`Mahalanobis`: contributions sum to ``score(Z) - score(0)``, and a feature that is zero
  in the query contributes nothing.
- :class:`EuclideanDifference` and :class:`MahalanobisDifference`: contributions sum to the score itself. A feature that
  is zero in both images has the difference zero, which is the largest possible contribution. After min-max it has the
  largest weight, and maps with these contributions point at the right object no more often than chance.
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
    """The score of both classes for the Euclidean distance."""

    vanishes_at_zero = False

    def __init__(self, squared: bool = False) -> None:
        super().__init__()
        self.squared = squared

    def score(self, query: Tensor, support: Tensor) -> Tensor:
        distance = _distance(query, support)
        return -distance.square() if self.squared else -distance

    def bound(self, query: Tensor, support: Tensor) -> Tensor:
        # Contributions to the squared distance sum to 2 z·t - ‖z‖². For the distance they are divided by ‖t‖ + d, which
        # is at least ‖z‖ and at least ‖t‖, so that 3 ‖z‖ is a bound. EuclideanDifference uses this bound as well: there
        # it only has to be of the scale of the embeddings.
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
    Contributions to the square are :math:`2 z_j t_j - z_j^2`. They sum to score(Z) - score(0), and are zero for a
    feature that is zero in the query. Contributions to the distance are these values, divided by
    :math:`\|t\| + \|Z - t\|` so that they sum to score(Z) - score(0) of the distance.

    Args:
        squared: whether the distance is squared. Default: False.

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

    def weights_of_parts(self, query: Tensor, support: Tensor, parts: Tensor) -> Tensor:
        if self.squared:
            return 2 * parts
        reach = self._reach(query, support.unsqueeze(1)).unsqueeze(2)
        return torch.where(reach == 0, 0.0, 2 * parts / torch.where(reach == 0, 1.0, reach))

    def _weights(self, query: Tensor, support: Tensor, support_weights: Tensor) -> Tensor:
        per_square = self._per_square(query, support, support_weights)
        return 2 * F.combine_supports(per_square, support) - query * per_square.sum(1, keepdim=True)

    def _per_square(self, query: Tensor, support: Tensor, support_weights: Tensor) -> Tensor:
        """Weights of the squared distances, ``(B, K)``."""
        return support_weights if self.squared else _divide(support_weights, self._reach(query, support))

    def _reach(self, query: Tensor, support: Tensor) -> Tensor:
        """‖t‖ + d, ``(B, K)``: the factor between ‖t‖² - d², for the squared distance, and ‖t‖ - d."""
        return _distance(query, support) + support.norm(dim=-1)


register_similarity("squared-euclidean", partial(Euclidean, squared=True))


class EuclideanDifference(_EuclideanDistance):
    r"""The score of :class:`Euclidean` with the contributions :math:`-(z_j - t_j)^2`, for comparisons.

    Contributions sum to the score itself; without ``squared`` they are divided by the distance, so that they sum to
    the distance. A feature that is zero in both images has the largest possible contribution, zero, so that maps with
    these contributions point at the right object no more often than chance. There are no linear weights.

    Args:
        squared: whether the distance is squared. Default: False.

    Example:
        >>> squared = EuclideanDifference(squared=True)
        >>> query, support = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 2.0]])
        >>> squared(query, support), squared.contributions(query, support, torch.ones(1, 1))
        (tensor([[-4.]]), tensor([[-4., -0.]]))
    """

    def contributions(self, query: Tensor, support: Tensor, support_weights: Tensor) -> Tensor:
        weights = support_weights if self.squared else _divide(support_weights, _distance(query, support))
        return -_sum_over_supports(torch.square, query, support, weights)


class _MahalanobisDistance(Similarity):
    """The score of both classes for the Mahalanobis distance."""

    vanishes_at_zero = False
    factor: Tensor

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        check_square(matrix)
        metric = F.widen(matrix.detach())
        if (metric - metric.T).abs().max() > 1e-4 * metric.abs().max():
            raise ValueError("matrix must be symmetric; pass (matrix + matrix.T) / 2")
        values, vectors = torch.linalg.eigh((metric + metric.T) / 2)
        if values.min() < -1e-5 * values.abs().max():
            raise ValueError(f"matrix must be positive semi-definite, got the eigenvalue {values.min():.3g}")
        # M = F Fᵀ, so that the distance is the Euclidean distance of the whitened embeddings Z F. Computed from M,
        # rounding could make dᵀ M d negative.
        self.register_buffer("factor", vectors * values.clamp_min(0).sqrt())

    def score(self, query: Tensor, support: Tensor) -> Tensor:
        return -_distance(self._whiten(query), self._whiten(support)).square()

    def bound(self, query: Tensor, support: Tensor) -> Tensor:
        # The columns of the factor are orthogonal: the square of the longest column is the largest eigenvalue of M.
        stretch = self.factor.to(query).square().sum(0).amax()
        return stretch * (2 * F.products_of_lengths(query, support) + F.lengths(query).square().unsqueeze(1))

    def _whiten(self, vectors: Tensor) -> Tensor:
        """Z F, ``(..., J)``."""
        check_features(self.factor, vectors)
        return vectors @ self.factor.to(vectors)

    def _apply_matrix(self, vectors: Tensor) -> Tensor:
        """M Z, ``(..., J)``."""
        return self._whiten(vectors) @ self.factor.to(vectors).T


class Mahalanobis(_MahalanobisDistance, ClosedFormSimilarity):
    r"""Negative squared distance in a metric, :math:`s = -(Z - t)^\top M (Z - t)`.

    Contributions :math:`z_j (2 M t - M Z)_j` sum to score(Z) - score(0), and are zero for a feature that is zero in the
    query. M is learned in Xing et al., "Distance Metric Learning with Application to Clustering", NeurIPS 2002, and is
    an inverse covariance in Bateni et al., "Improved Few-Shot Visual Classification" (Simple CNAPS), CVPR 2020:
    :func:`~captum_fam.similarity.inverse_covariance` makes it from embeddings.

    Args:
        matrix: M, symmetric and positive semi-definite, ``(J, J)``, of any floating-point type. It is factored in
            float32 or float64, and used in the dtype and on the device of the embeddings.

    Raises:
        ValueError: if the matrix is not finite, square, symmetric and positive semi-definite; in use, for embeddings
            with another number of features than J.

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

    def weights_of_parts(self, query: Tensor, support: Tensor, parts: Tensor) -> Tensor:
        return self._apply_matrix(2 * parts)

    def _weights(self, query: Tensor, support: Tensor, support_weights: Tensor) -> Tensor:
        pull = F.combine_supports(support_weights, support)
        return self._apply_matrix(2 * pull - query * support_weights.sum(1, keepdim=True))

    def _terms_per_weight(self, support: Tensor) -> int:
        # A sum over the K supports, and a sum over the J features in the product with the matrix.
        return sum(support.shape[-2:])


class MahalanobisDifference(_MahalanobisDistance):
    r"""The score of :class:`Mahalanobis` with the contributions :math:`-d_j (M d)_j`, for comparisons.

    Here :math:`d = Z - t`. Contributions sum to the score itself. For a diagonal M, a feature that is zero in both
    images has the largest possible contribution, as for :class:`EuclideanDifference`. There are no linear weights.

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
    # The expanded form ‖z‖² - 2 z·t + ‖t‖² loses all digits if the query is nearly equal to the support.
    exact = "donot_use_mm_for_euclid_dist"
    if support.dim() == 2:
        return torch.cdist(query, support, compute_mode=exact)
    return torch.cdist(query.unsqueeze(1), support, compute_mode=exact).squeeze(1)


def _gain(query: Tensor, support: Tensor) -> Tensor:
    """‖t‖² - ‖Z - t‖², ``(B, K)``, as 2 Z·t - ‖Z‖², whose rounding error does not grow with ‖t‖²."""
    return 2 * F.pairwise_dot(query, support) - query.square().sum(1, keepdim=True)


def _divide(values: Tensor, lengths: Tensor) -> Tensor:
    # If a length is zero, the factor of the quotient is zero as well, so that any finite quotient is right.
    return values / lengths.clamp_min(torch.finfo(lengths.dtype).tiny)


def _sum_over_supports(
    term: Callable[[Tensor], Tensor], query: Tensor, support: Tensor, support_weights: Tensor
) -> Tensor:
    """The weighted sum of ``term(Z - t)`` over the supports, ``(B, J)``; rows whose terms cancel are exactly zero."""
    total, magnitude = torch.zeros_like(query), torch.zeros_like(query)
    # The terms of all supports at once would be a tensor (B, K, J), so that the loop adds one support at a time.
    for vectors, weight in zip(F.each_support(support), support_weights.unbind(1), strict=True):
        summand = weight.unsqueeze(1) * term(query - vectors)
        total += summand
        magnitude += summand.abs()
    # drop_rounding_of_sum multiplies magnitudes by the query, but these are magnitudes of contributions already.
    ones = torch.ones_like(query)
    return drop_rounding_of_sum(total, magnitude, ones, are_weights=False, count=support.shape[-2])
