"""Similarity measures that can say what each feature of the embedding contributes to them.

A measure is an ``nn.Module`` with four methods on a query ``(B, J)`` and a support ``(K, J)`` or ``(B, K, J)``, both
on one device and of one floating-point type, which the results have too:

===================  ===========================================================================
``score``            s(Z, Z_k), ``(B, K)``, differentiable in the query; larger is more similar
``contributions``    c, ``(B, J)``: what each feature adds to the weighted sum over the supports
``weights``          u, ``(B, J)`` with ``c = query * u``: the measure as a linear classifier
``explained``        what the contributions to each support sum to, ``(B, K)``
===================  ===========================================================================

For cosine, dot and bilinear ``explained`` is the score itself. A distance has no additive split by features
that vanishes with the feature, so its contributions count from the zero vector: ``score(Z) - score(0)``.

Three more say what rounding can do; the base answers them for a measure that does not:

===================  ===========================================================================
``bound``            the most that ``explained`` can be for vectors of these lengths, ``(B, K)``
``magnitude``        of the terms that the score is the sum of, ``(B, K)``
``terms``            magnitudes of the terms that each weight u is the sum of, ``(B, J)``
===================  ===========================================================================

Contributions and weights that a sum over the supports cancels to rounding (a vector and its negative, a foil equal to
the class) are exactly zero.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Literal

import torch
from captum.attr import IntegratedGradients
from torch import Tensor, nn

from captum_fam import functional as F
from captum_fam.rounding import drop_rounding

DistanceRule = Literal["zero-baseline", "difference"]
_DISTANCE_RULES = ("zero-baseline", "difference")


class Similarity(nn.Module):
    """Base of all measures. A new one defines :meth:`score` and :meth:`weights`.

    Example:
        >>> class Overlap(Similarity):  # Bhattacharyya coefficient, for a support shared by the batch
        ...     def score(self, query, support):
        ...         return query.relu().sqrt() @ support.relu().sqrt().T
        ...
        ...     def weights(self, query, support, support_weights):
        ...         roots = support_weights @ support.relu().sqrt()
        ...         return torch.where(query > 0, roots / query.relu().sqrt(), 0.0)
        >>> query, support = torch.tensor([[4.0, 1.0]]), torch.tensor([[1.0, 9.0]])
        >>> Overlap().score(query, support), Overlap().contributions(query, support, torch.ones(1, 1))
        (tensor([[5.]]), tensor([[2., 3.]]))
    """

    def forward(self, query: Tensor, support: Tensor) -> Tensor:
        return self.score(query, support)

    def score(self, query: Tensor, support: Tensor) -> Tensor:
        """Similarity of each query to each of its supports, ``(B, K)``."""
        raise NotImplementedError

    def explained(self, query: Tensor, support: Tensor) -> Tensor:
        """The part of each score that the contributions sum to, ``(B, K)``."""
        return self.score(query, support)

    def weights(self, query: Tensor, support: Tensor, support_weights: Tensor) -> Tensor:
        """u with ``contributions == query * u``, for supports weighted by ``(B, K)``: ``(B, J)``."""
        raise NotImplementedError

    def require_weights(self) -> None:
        """Refuse a measure that has contributions but no :meth:`weights`.

        Raises:
            ValueError: for such a measure, as a distance with ``rule="difference"`` is one.
        """
        if type(self).weights is Similarity.weights:
            raise ValueError(f"similarity {type(self).__name__} has contributions but no linear weights")

    def contributions(self, query: Tensor, support: Tensor, support_weights: Tensor) -> Tensor:
        """Contribution of each feature; sums to ``(support_weights * explained).sum(1)``: ``(B, J)``."""
        return query * self.weights(query, support, support_weights)

    def bound(self, query: Tensor, support: Tensor) -> Tensor:
        """The most that magnitudes of contributions to each support can sum to, ``(B, K)``; 1 where nothing is known.

        The lower bound of \\|s_k\\| in Eq. 15 is relative to it.
        """
        return query.new_ones(1, 1).expand(len(query), support.shape[-2])

    def magnitude(self, query: Tensor, support: Tensor, scores: Tensor) -> Tensor:
        """What rounding of each score is relative to, ``(B, K)``: the score itself where its terms have one sign."""
        return scores.abs()

    def terms(self, query: Tensor, support: Tensor, support_weights: Tensor) -> Tensor:
        """Magnitudes of the terms that each of :meth:`weights` is the sum of, ``(B, J)``; 0 where nothing is known.

        Args:
            query, support: as in all methods.
            support_weights: ``(B, K)``, not negative: magnitudes, or errors, of the weights.
        """
        return torch.zeros_like(query)


class _ClosedForm(Similarity):
    """Weights in closed form on the weighted sum of the supports, and on magnitudes the magnitudes of their terms."""

    def weights(self, query: Tensor, support: Tensor, support_weights: Tensor) -> Tensor:
        weights = self._weights(query, support, support_weights)
        return self._settle(weights, query, support, support_weights, are_weights=True)

    def contributions(self, query: Tensor, support: Tensor, support_weights: Tensor) -> Tensor:
        contributions = query * self._weights(query, support, support_weights)
        return self._settle(contributions, query, support, support_weights, are_weights=False)

    def _weights(self, query: Tensor, support: Tensor, support_weights: Tensor) -> Tensor:
        """:meth:`weights` with what rounding leaves of terms that cancel."""
        raise NotImplementedError

    def _settle(
        self, values: Tensor, query: Tensor, support: Tensor, support_weights: Tensor, are_weights: bool
    ) -> Tensor:
        errors = F.rounding_of_supports(self._summed(support), query.dtype) * support_weights.abs()
        return drop_rounding(
            values,
            query,
            are_weights=are_weights,
            bound=(errors * self.bound(query, support)).sum(1, keepdim=True),
            noise=lambda: self.terms(query, support, errors),
        )

    def _summed(self, support: Tensor) -> int:
        """How many terms each weight is the sum of."""
        return support.shape[-2]


class Cosine(_ClosedForm):
    r"""Cosine of the angle, Eq. 14 of the paper: :math:`s = \langle Z, t \rangle / \|Z\| \|t\|`, in [-1, 1].

    Contributions :math:`z_j t_j / \|Z\| \|t\|` are Eq. 15 and sum to the score. The query's norm is treated as a
    constant: each weight is :math:`t_j / \|Z\| \|t\|`, and 0 for a query of zeros.

    Example:
        >>> query, support = torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0, 0.0]])
        >>> Cosine()(query, support), Cosine().contributions(query, support, torch.ones(1, 1))
        (tensor([[0.6000]]), tensor([[0.6000, 0.0000]]))
    """

    def score(self, query: Tensor, support: Tensor) -> Tensor:
        return F.cosine_similarity(query, support)

    def contributions(self, query: Tensor, support: Tensor, support_weights: Tensor) -> Tensor:
        contributions = F.cosine_contributions(query, support, support_weights)
        return self._settle(contributions, query, support, support_weights, are_weights=False)

    def magnitude(self, query: Tensor, support: Tensor, scores: Tensor) -> Tensor:
        return self.bound(query, support)

    def terms(self, query: Tensor, support: Tensor, support_weights: Tensor) -> Tensor:
        return self._weights(query, support.abs(), support_weights)

    def _weights(self, query: Tensor, support: Tensor, support_weights: Tensor) -> Tensor:
        length = F.lengths(query).unsqueeze(1)
        return torch.where(length == 0, 0.0, F.combine_unit_supports(support_weights, support) / length)


class Dot(_ClosedForm):
    r"""Dot product, :math:`s = \langle Z, t \rangle`; contributions :math:`z_j t_j` sum to the score.

    Eq. 14 and 15 without the norms: the measure of maximum inner product search.

    Example:
        >>> query, support = torch.tensor([[3.0, 4.0]]), torch.tensor([[2.0, 0.5]])
        >>> Dot()(query, support), Dot().contributions(query, support, torch.ones(1, 1))
        (tensor([[8.]]), tensor([[6., 2.]]))
    """

    def score(self, query: Tensor, support: Tensor) -> Tensor:
        return F.pairwise_dot(query, support)

    def bound(self, query: Tensor, support: Tensor) -> Tensor:
        return _products_of_lengths(query, support)

    def magnitude(self, query: Tensor, support: Tensor, scores: Tensor) -> Tensor:
        return self.bound(query, support)

    def terms(self, query: Tensor, support: Tensor, support_weights: Tensor) -> Tensor:
        return F.combine_supports(support_weights, support.abs())

    def _weights(self, query: Tensor, support: Tensor, support_weights: Tensor) -> Tensor:
        return F.combine_supports(support_weights, support)


class Bilinear(_ClosedForm):
    r"""A dot product through a matrix, :math:`s = Z^\top M t`; contributions :math:`z_j (M t)_j` sum to the score.

    Chechik et al., "Large Scale Online Learning of Image Similarity Through Ranking" (OASIS), JMLR 2010.

    Args:
        matrix: M, ``(J, J)``, of any floating-point type; the embeddings' type and device are used.

    Raises:
        ValueError: if the matrix is not square or holds NaN or inf; in use, if the embeddings have not J features.

    Example:
        >>> swap = Bilinear(torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
        >>> swap(torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0, 0.0]]))
        tensor([[4.]])
    """

    matrix: Tensor

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        _check_square(matrix)
        self.register_buffer("matrix", matrix.detach())

    def _project(self, support: Tensor) -> Tensor:
        _check_features(self.matrix, support)
        return support @ self.matrix.to(support).T

    def score(self, query: Tensor, support: Tensor) -> Tensor:
        return F.pairwise_dot(query, self._project(support))

    def bound(self, query: Tensor, support: Tensor) -> Tensor:
        matrix = self.matrix.to(support).abs()
        # The largest singular value is at most this, and 1 for the identity.
        stretch = (matrix.sum(0).amax() * matrix.sum(1).amax()).sqrt()
        return stretch * _products_of_lengths(query, support)

    def magnitude(self, query: Tensor, support: Tensor, scores: Tensor) -> Tensor:
        return self.bound(query, support)

    def terms(self, query: Tensor, support: Tensor, support_weights: Tensor) -> Tensor:
        return F.combine_supports(support_weights, support.abs()) @ self.matrix.to(support).abs().T

    def _weights(self, query: Tensor, support: Tensor, support_weights: Tensor) -> Tensor:
        return self._project(F.combine_supports(support_weights, support))

    def _summed(self, support: Tensor) -> int:
        return sum(support.shape[-2:])


class Euclidean(_ClosedForm):
    r"""Negative Euclidean distance, :math:`s = -\|Z - t\|`, or its square, :math:`-\|Z - t\|^2`.

    The square is the measure of prototypical networks (Snell, Swersky and Zemel, NeurIPS 2017).

    Args:
        squared: the square.
        rule: ``"zero-baseline"`` (default) splits score(Z) - score(0) into 2 z_j t_j - z_j², which is zero for
            a dead channel; ``"difference"`` splits the score itself into -(z_j - t_j)². The second counts
            channels that are dead in both images as perfect matches: after min-max they get the top weight,
            and maps made with it point at the right object no more often than chance.
            Without ``squared`` both are divided so that they sum to the distance instead of its square.

    Raises:
        ValueError: for an unknown rule; in use, where linear weights are asked of ``"difference"``, which has none.

    Example:
        >>> measure = Euclidean(squared=True)
        >>> query, support = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 2.0]])
        >>> measure(query, support), measure.explained(query, support)  # -4, and that less -‖t‖² = -13
        (tensor([[-4.]]), tensor([[9.]]))
        >>> measure.contributions(query, support, torch.ones(1, 1))
        tensor([[5., 4.]])
    """

    def __init__(self, squared: bool = False, rule: DistanceRule = "zero-baseline") -> None:
        super().__init__()
        _check_rule(rule)
        self.squared = squared
        self.rule = rule

    def score(self, query: Tensor, support: Tensor) -> Tensor:
        distance = _distance(query, support)
        return -distance.square() if self.squared else -distance

    def explained(self, query: Tensor, support: Tensor) -> Tensor:
        if self.rule == "difference":
            return self.score(query, support)
        gain = _gain(query, support)
        return gain if self.squared else _divide(gain, self._reach(query, support))

    def weights(self, query: Tensor, support: Tensor, support_weights: Tensor) -> Tensor:
        self.require_weights()
        return super().weights(query, support, support_weights)

    def contributions(self, query: Tensor, support: Tensor, support_weights: Tensor) -> Tensor:
        if self.rule == "zero-baseline":
            return super().contributions(query, support, support_weights)
        if not self.squared:
            support_weights = _divide(support_weights, _distance(query, support))
        return -_sum_over_supports(torch.square, query, support, support_weights)

    def bound(self, query: Tensor, support: Tensor) -> Tensor:
        # Magnitudes of 2 z·t - ‖z‖², over ‖t‖ + d, which is at least ‖z‖ and at least ‖t‖, for the root.
        length = F.lengths(query).unsqueeze(1)
        if self.squared:
            return 2 * _products_of_lengths(query, support) + length.square()
        return 3 * length.expand(-1, support.shape[-2])

    def terms(self, query: Tensor, support: Tensor, support_weights: Tensor) -> Tensor:
        if self.rule == "difference":
            return super().terms(query, support, support_weights)
        per_square = self._per_square(query, support, support_weights)
        return 2 * F.combine_supports(per_square, support.abs()) + query.abs() * per_square.sum(1, keepdim=True)

    def _weights(self, query: Tensor, support: Tensor, support_weights: Tensor) -> Tensor:
        per_square = self._per_square(query, support, support_weights)
        return 2 * F.combine_supports(per_square, support) - query * per_square.sum(1, keepdim=True)

    def _per_square(self, query: Tensor, support: Tensor, support_weights: Tensor) -> Tensor:
        """Weights of the squared distances."""
        return support_weights if self.squared else _divide(support_weights, self._reach(query, support))

    def _reach(self, query: Tensor, support: Tensor) -> Tensor:
        """‖t‖ + d, by which ‖t‖² - d² is more than ‖t‖ - d, ``(B, K)``."""
        return _distance(query, support) + support.norm(dim=-1)

    def require_weights(self) -> None:
        _check_has_weights(self.rule)

    def extra_repr(self) -> str:
        return f"squared={self.squared}, rule={self.rule!r}"


class Mahalanobis(_ClosedForm):
    r"""Negative squared distance in a metric, :math:`s = -(Z - t)^\top M (Z - t)`.

    M is learned in Xing et al., "Distance Metric Learning with Application to Clustering", NeurIPS 2002, and is an
    inverse covariance in Bateni et al., "Improved Few-Shot Visual Classification" (Simple CNAPS), CVPR 2020.

    Args:
        matrix: M, symmetric and positive semi-definite, ``(J, J)``, of any floating-point type; factored in float32
            at least, and used in the embeddings' type and device.
        rule: as for :class:`Euclidean`: ``"zero-baseline"`` splits score(Z) - score(0) into
            z_j (2 M t - M Z)_j; ``"difference"`` splits the score into -d_j (M d)_j with d = Z - t.

    Raises:
        ValueError: if the matrix is not finite, square, symmetric and positive semi-definite, or for an unknown rule;
            in use, if the embeddings have not J features, or linear weights are asked of ``"difference"``.

    Example:
        >>> measure = Mahalanobis(torch.diag(torch.tensor([1.0, 4.0])))
        >>> measure(torch.tensor([[1.0, 1.0]]), torch.tensor([[0.0, 0.0]]))
        tensor([[-5.]])
    """

    factor: Tensor

    def __init__(self, matrix: Tensor, rule: DistanceRule = "zero-baseline") -> None:
        super().__init__()
        _check_rule(rule)
        _check_square(matrix)
        matrix = F.widen(matrix.detach())
        if (matrix - matrix.T).abs().max() > 1e-4 * matrix.abs().max():
            raise ValueError("matrix must be symmetric; pass (matrix + matrix.T) / 2")
        values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
        if values.min() < -1e-5 * values.abs().max():
            raise ValueError(f"matrix must be positive semi-definite, got the eigenvalue {values.min():.3g}")
        self.rule = rule
        self.register_buffer("factor", vectors * values.clamp_min(0).sqrt())

    def _whiten(self, vectors: Tensor) -> Tensor:
        _check_features(self.factor, vectors)
        return vectors @ self.factor.to(vectors)

    def _apply_matrix(self, vectors: Tensor) -> Tensor:
        return self._whiten(vectors) @ self.factor.to(vectors).T

    def score(self, query: Tensor, support: Tensor) -> Tensor:
        return -_distance(self._whiten(query), self._whiten(support)).square()

    def explained(self, query: Tensor, support: Tensor) -> Tensor:
        if self.rule == "difference":
            return self.score(query, support)
        return _gain(self._whiten(query), self._whiten(support))

    def weights(self, query: Tensor, support: Tensor, support_weights: Tensor) -> Tensor:
        self.require_weights()
        return super().weights(query, support, support_weights)

    def contributions(self, query: Tensor, support: Tensor, support_weights: Tensor) -> Tensor:
        if self.rule == "zero-baseline":
            return super().contributions(query, support, support_weights)
        return -_sum_over_supports(lambda d: d * self._apply_matrix(d), query, support, support_weights)

    def bound(self, query: Tensor, support: Tensor) -> Tensor:
        # The columns of the factor are orthogonal: the longest one's square is the largest eigenvalue of M.
        stretch = self.factor.to(query).square().sum(0).amax()
        return stretch * (2 * _products_of_lengths(query, support) + F.lengths(query).square().unsqueeze(1))

    def terms(self, query: Tensor, support: Tensor, support_weights: Tensor) -> Tensor:
        if self.rule == "difference":
            return super().terms(query, support, support_weights)
        pull = 2 * F.combine_supports(support_weights, support.abs())
        factor = self.factor.to(query).abs()
        return (pull + query.abs() * support_weights.sum(1, keepdim=True)) @ factor @ factor.T

    def _weights(self, query: Tensor, support: Tensor, support_weights: Tensor) -> Tensor:
        pull = F.combine_supports(support_weights, support)
        return self._apply_matrix(2 * pull - query * support_weights.sum(1, keepdim=True))

    def _summed(self, support: Tensor) -> int:
        return sum(support.shape[-2:])

    def require_weights(self) -> None:
        _check_has_weights(self.rule)

    def extra_repr(self) -> str:
        return f"rule={self.rule!r}"


class Learned(Similarity):
    r"""Any differentiable metric, explained by Captum's integrated gradients on the embedding.

    The weights are the mean gradient on the way from the zero vector, :math:`u = \int_0^1 \nabla_Z s(a Z, t)\, da`
    (Sundararajan, Taly and Yan, "Axiomatic Attribution for Deep Networks", ICML 2017), for metrics such as that of
    relation networks (Sung et al., CVPR 2018). Contributions sum to score(Z) - score(0) up to the quadrature, whose
    weights Captum keeps in float32: about 1e-7 at best. Only the metric is run along the path, never the
    backbone. A metric that jumps at the zero vector, such as one that normalizes its inputs, has no such sum;
    a warning says when more than a twentieth is missing.

    Args:
        metric: maps two batches of embeddings ``(B, J)``, query and support, to similarities ``(B,)``; larger is
            more similar.
        n_steps: points of the quadrature, as in ``captum.attr.IntegratedGradients``.

    Raises:
        ValueError: in use, if the metric does not return ``(B,)``.

    Example:
        >>> measure = Learned(lambda query, support: (query * support).sum(1) ** 2)
        >>> query, support = torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0, 0.5]])
        >>> measure(query, support), measure.contributions(query, support, torch.ones(1, 1)).round(decimals=3)
        (tensor([[25.]]), tensor([[15., 10.]]))
    """

    def __init__(self, metric: Callable[[Tensor, Tensor], Tensor], n_steps: int = 50) -> None:
        super().__init__()
        self.metric = metric
        self.n_steps = n_steps

    def score(self, query: Tensor, support: Tensor) -> Tensor:
        return torch.stack([self._compare(query, one.expand_as(query)) for one in _each_support(support)], 1)

    def explained(self, query: Tensor, support: Tensor) -> Tensor:
        return self.score(query, support) - self.score(torch.zeros_like(query), support)

    def weights(self, query: Tensor, support: Tensor, support_weights: Tensor) -> Tensor:
        return self._follow(query, support, support_weights, are_weights=True)

    def contributions(self, query: Tensor, support: Tensor, support_weights: Tensor) -> Tensor:
        return self._follow(query, support, support_weights, are_weights=False)

    def _follow(self, query: Tensor, support: Tensor, support_weights: Tensor, are_weights: bool) -> Tensor:
        slope = IntegratedGradients(self._compare, multiply_by_inputs=False)
        with torch.inference_mode(False):
            # Autograd cannot save what was made in inference mode; a copy it can.
            query = query.clone()
            total, magnitude = torch.zeros_like(query), torch.zeros_like(query)
            # One support after the other: the graph of all would hold their number times the path.
            for one, weight in zip(_each_support(support), support_weights.unbind(1), strict=True):
                if weight.any():
                    own = one.expand_as(query).clone()
                    path = slope.attribute(query, additional_forward_args=own, n_steps=self.n_steps)
                    term = weight.unsqueeze(1) * path.detach()
                    total += term
                    magnitude += term.abs()
        self._warn_of_gap(query * total, support_weights * self.explained(query, support))
        values = total if are_weights else query * total
        return _settle_sum(values, magnitude, query, are_weights, support.shape[-2])

    def _compare(self, query: Tensor, support: Tensor) -> Tensor:
        similarity = self.metric(query, support)
        if similarity.shape != query.shape[:1]:
            raise ValueError(
                f"similarity: the learned metric must return one value a pair, shape {tuple(query.shape[:1])}, "
                f"got {tuple(similarity.shape)}"
            )
        return similarity

    @staticmethod
    def _warn_of_gap(contributions: Tensor, explained: Tensor) -> None:
        gap = (contributions.sum(1) - explained.sum(1)).abs()
        if (gap > 0.05 * explained.abs().sum(1) + 1e-5 * contributions.abs().sum(1)).any():
            warnings.warn(
                "contributions of the learned metric do not sum to score(Z) - score(0): raise n_steps, or name the "
                'measure (similarity="cosine") if the metric depends on the direction of the embedding alone',
                stacklevel=3,
            )


_BY_NAME: dict[str, Callable[[], Similarity]] = {
    "cosine": Cosine,
    "dot": Dot,
    "euclidean": Euclidean,
    "squared-euclidean": lambda: Euclidean(squared=True),
}

SimilarityLike = str | Similarity | Callable[[Tensor, Tensor], Tensor]


def get_similarity(similarity: SimilarityLike) -> Similarity:
    """A measure by name (``"cosine"``, ``"dot"``, ``"euclidean"``, ``"squared-euclidean"``), or as an object.

    A callable on two batches of embeddings becomes a :class:`Learned` metric.

    Raises:
        ValueError: for an unknown name.
        TypeError: for anything that is neither a name, a :class:`Similarity` nor callable.

    Example:
        >>> get_similarity("squared-euclidean")
        Euclidean(squared=True, rule='zero-baseline')
    """
    if isinstance(similarity, Similarity):
        return similarity
    if isinstance(similarity, str):
        if similarity not in _BY_NAME:
            raise ValueError(f"similarity must be one of {', '.join(_BY_NAME)}, got {similarity!r}")
        return _BY_NAME[similarity]()
    if isinstance(similarity, type):
        raise TypeError(f"similarity is the class {similarity.__name__}; pass an instance, {similarity.__name__}()")
    if callable(similarity):
        return Learned(similarity)
    raise TypeError(f"similarity must be a name, a Similarity or a callable, got {type(similarity).__name__}")


def _distance(query: Tensor, support: Tensor) -> Tensor:
    # The expanded form ‖z‖² - 2 z·t + ‖t‖² loses all digits between near duplicates.
    exact = "donot_use_mm_for_euclid_dist"
    if support.dim() == 2:
        return torch.cdist(query, support, compute_mode=exact)
    return torch.cdist(query.unsqueeze(1), support, compute_mode=exact).squeeze(1)


def _gain(query: Tensor, support: Tensor) -> Tensor:
    """‖t‖² - ‖Z - t‖² = 2 Z·t - ‖Z‖², ``(B, K)``, whose error does not grow with the longest of the supports."""
    return 2 * F.pairwise_dot(query, support) - query.square().sum(1, keepdim=True)


def _products_of_lengths(query: Tensor, support: Tensor) -> Tensor:
    """‖Z‖‖t‖ for every query and each of its supports, ``(B, K)``: an upper bound of the sum of all |z_j t_j|."""
    return F.lengths(query).unsqueeze(1) * F.lengths(support)


def _each_support(support: Tensor) -> tuple[Tensor, ...]:
    return support.unbind(0) if support.dim() == 2 else support.unbind(1)


def _sum_over_supports(
    term: Callable[[Tensor], Tensor], query: Tensor, support: Tensor, support_weights: Tensor
) -> Tensor:
    total, magnitude = torch.zeros_like(query), torch.zeros_like(query)
    for one, weight in zip(_each_support(support), support_weights.unbind(1), strict=True):
        each = weight.unsqueeze(1) * term(query - one)
        total += each
        magnitude += each.abs()
    return _settle_sum(total, magnitude, torch.ones_like(query), False, support.shape[-2])


def _settle_sum(values: Tensor, magnitude: Tensor, query: Tensor, are_weights: bool, count: int) -> Tensor:
    """:func:`drop_rounding` of a sum whose terms were gone through one by one."""
    noise = F.rounding_of_supports(count, query.dtype) * magnitude
    bound = (query.abs() * noise).amax(1, keepdim=True)
    return drop_rounding(values, query, are_weights=are_weights, bound=bound, noise=lambda: noise)


def _check_rule(rule: str) -> None:
    if rule not in _DISTANCE_RULES:
        raise ValueError(f"rule must be one of {', '.join(_DISTANCE_RULES)}, got {rule!r}")


def _check_has_weights(rule: str) -> None:
    if rule == "difference":
        raise ValueError(
            'rule="difference" has contributions but no linear weights; use rule="zero-baseline", '
            'or weighting="paper" with LayerFAM'
        )


def _divide(support_weights: Tensor, lengths: Tensor) -> Tensor:
    # A length is zero only where all that its quotient multiplies is zero too: any finite quotient will do.
    return support_weights / lengths.clamp_min(torch.finfo(lengths.dtype).tiny)


def _check_square(matrix: Tensor) -> None:
    if matrix.dim() != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"matrix must be square, (J, J), got {tuple(matrix.shape)}")
    if not matrix.isfinite().all():
        raise ValueError("matrix contains NaN or inf")


def _check_features(matrix: Tensor, vectors: Tensor) -> None:
    if vectors.shape[-1] != len(matrix):
        raise ValueError(f"similarity: its matrix is for embeddings of {len(matrix)} features, got {vectors.shape[-1]}")
