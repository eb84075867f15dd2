"""Similarity measures that can say what each feature of the embedding contributes to them.

A measure is an ``nn.Module`` with four methods on a query ``(B, J)`` and a support ``(K, J)`` or ``(B, K, J)``:

===================  ===========================================================================
``score``            s(Z, Z_k), ``(B, K)``, differentiable in the query; larger is more similar
``contributions``    c, ``(B, J)``: what each feature adds to the weighted sum over the supports
``weights``          u, ``(B, J)`` with ``c = query * u``: the measure as a linear classifier
``explained``        what the contributions to each support sum to, ``(B, K)``
===================  ===========================================================================

For cosine, dot and bilinear ``explained`` is the score itself. A distance has no additive split by features
that vanishes with the feature, so its contributions count from the zero vector: ``score(Z) - score(0)``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from captum.attr import IntegratedGradients
from torch import Tensor, nn

from captum_fam import functional as F

DistanceRule = Literal["zero-baseline", "difference"]
_DISTANCE_RULES = ("zero-baseline", "difference")


class Similarity(nn.Module):
    """Base of all measures. A new one defines :meth:`score` and :meth:`weights`."""

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

    def contributions(self, query: Tensor, support: Tensor, support_weights: Tensor) -> Tensor:
        """Contribution of each feature; sums to ``(support_weights * explained).sum(1)``: ``(B, J)``."""
        return query * self.weights(query, support, support_weights)


class Cosine(Similarity):
    """Cosine of the angle, Eq. 14; contributions are Eq. 15 and sum to the score.

    The query's norm is treated as a constant: each weight is t_j / (‖Z‖ ‖t‖).

    Example:
        >>> Cosine()(torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0, 0.0]]))
        tensor([[0.6000]])
    """

    def score(self, query: Tensor, support: Tensor) -> Tensor:
        return F.cosine_similarity(query, support)

    def weights(self, query: Tensor, support: Tensor, support_weights: Tensor) -> Tensor:
        length = query.norm(dim=1, keepdim=True).clamp_min(F.EPSILON**2)
        return F.combine_supports(support_weights, F.unit(support)) / length

    def contributions(self, query: Tensor, support: Tensor, support_weights: Tensor) -> Tensor:
        return F.cosine_contributions(query, support, support_weights)


class Dot(Similarity):
    """Dot product; contributions z_j t_j sum to the score."""

    def score(self, query: Tensor, support: Tensor) -> Tensor:
        return F.pairwise_dot(query, support)

    def weights(self, query: Tensor, support: Tensor, support_weights: Tensor) -> Tensor:
        return F.combine_supports(support_weights, support)


class Bilinear(Similarity):
    """Z^T M t with a matrix M, ``(J, J)``; contributions z_j (M t)_j sum to the score."""

    matrix: Tensor

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        _check_square(matrix)
        self.register_buffer("matrix", matrix.detach())

    def _project(self, support: Tensor) -> Tensor:
        return support @ self.matrix.to(support.dtype).T

    def score(self, query: Tensor, support: Tensor) -> Tensor:
        return F.pairwise_dot(query, self._project(support))

    def weights(self, query: Tensor, support: Tensor, support_weights: Tensor) -> Tensor:
        return self._project(F.combine_supports(support_weights, support))


class Euclidean(Similarity):
    """Negative Euclidean distance, or its square: -‖Z - t‖ or -‖Z - t‖².

    Args:
        squared: the square, as in prototypical networks.
        rule: ``"zero-baseline"`` (default) splits score(Z) - score(0) into 2 z_j t_j - z_j², which is zero for
            a dead channel; ``"difference"`` splits the score itself into -(z_j - t_j)². The second counts
            channels that are dead in both images as perfect matches: after min-max they get the top weight,
            and maps made with it point at the right object no more often than chance.
            Without ``squared`` both are divided so that they sum to the distance instead of its square.
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
        length = support.norm(dim=-1)
        return self.score(query, support) + (length.square() if self.squared else length)

    def weights(self, query: Tensor, support: Tensor, support_weights: Tensor) -> Tensor:
        _check_has_weights(self.rule)
        if not self.squared:
            # ‖t‖² - d² = (‖t‖ - d)(‖t‖ + d)
            reach = _distance(query, support) + support.norm(dim=-1)
            support_weights = support_weights / reach.clamp_min(F.EPSILON)
        pull = F.combine_supports(support_weights, support)
        return 2 * pull - query * support_weights.sum(1, keepdim=True)

    def contributions(self, query: Tensor, support: Tensor, support_weights: Tensor) -> Tensor:
        if self.rule == "zero-baseline":
            return super().contributions(query, support, support_weights)
        if not self.squared:
            support_weights = support_weights / _distance(query, support).clamp_min(F.EPSILON)
        return -_sum_over_supports(torch.square, query, support, support_weights)

    def extra_repr(self) -> str:
        return f"squared={self.squared}, rule={self.rule!r}"


class Mahalanobis(Similarity):
    """-(Z - t)^T M (Z - t) with a symmetric positive semi-definite matrix M, ``(J, J)``.

    Args:
        matrix: M, for example an inverse covariance.
        rule: as for :class:`Euclidean`: ``"zero-baseline"`` splits score(Z) - score(0) into
            z_j (2 M t - M Z)_j; ``"difference"`` splits the score into -d_j (M d)_j with d = Z - t.

    Raises:
        ValueError: if the matrix is not square, symmetric and positive semi-definite.
    """

    factor: Tensor

    def __init__(self, matrix: Tensor, rule: DistanceRule = "zero-baseline") -> None:
        super().__init__()
        _check_rule(rule)
        _check_square(matrix)
        if not torch.allclose(matrix, matrix.T, rtol=1e-4, atol=1e-6):
            raise ValueError("matrix must be symmetric; pass (matrix + matrix.T) / 2")
        values, vectors = torch.linalg.eigh(matrix.detach())
        if values.min() < -1e-5 * values.abs().max():
            raise ValueError(f"matrix must be positive semi-definite, got the eigenvalue {values.min():.3g}")
        self.rule = rule
        self.register_buffer("factor", vectors * values.clamp_min(0).sqrt())

    def _whiten(self, vectors: Tensor) -> Tensor:
        return vectors @ self.factor.to(vectors.dtype)

    def _apply_matrix(self, vectors: Tensor) -> Tensor:
        return self._whiten(vectors) @ self.factor.to(vectors.dtype).T

    def score(self, query: Tensor, support: Tensor) -> Tensor:
        return -_distance(self._whiten(query), self._whiten(support)).square()

    def explained(self, query: Tensor, support: Tensor) -> Tensor:
        if self.rule == "difference":
            return self.score(query, support)
        return self.score(query, support) + self._whiten(support).square().sum(-1)

    def weights(self, query: Tensor, support: Tensor, support_weights: Tensor) -> Tensor:
        _check_has_weights(self.rule)
        pull = F.combine_supports(support_weights, support)
        return self._apply_matrix(2 * pull - query * support_weights.sum(1, keepdim=True))

    def contributions(self, query: Tensor, support: Tensor, support_weights: Tensor) -> Tensor:
        if self.rule == "zero-baseline":
            return super().contributions(query, support, support_weights)
        return -_sum_over_supports(lambda d: d * self._apply_matrix(d), query, support, support_weights)

    def extra_repr(self) -> str:
        return f"rule={self.rule!r}"


class Learned(Similarity):
    """Any differentiable metric, explained by Captum's integrated gradients on the embedding.

    The path runs from the zero vector, so contributions sum to score(Z) - score(0) up to the quadrature.
    Only the metric is run along the path, never the backbone.

    Args:
        metric: maps two batches of embeddings ``(B, J)``, query and support, to similarities ``(B,)``.
        n_steps: points of the quadrature, as in ``captum.attr.IntegratedGradients``.
    """

    def __init__(self, metric: Callable[[Tensor, Tensor], Tensor], n_steps: int = 50) -> None:
        super().__init__()
        self.metric = metric
        self.n_steps = n_steps

    def score(self, query: Tensor, support: Tensor) -> Tensor:
        scores = [self.metric(query, one.expand_as(query)) for one in _each_support(support)]
        if scores[0].shape != query.shape[:1]:
            raise ValueError(
                f"similarity: the learned metric must return one value a pair, shape {tuple(query.shape[:1])}, "
                f"got {tuple(scores[0].shape)}"
            )
        return torch.stack(scores, 1)

    def explained(self, query: Tensor, support: Tensor) -> Tensor:
        return self.score(query, support) - self.score(torch.zeros_like(query), support)

    def weights(self, query: Tensor, support: Tensor, support_weights: Tensor) -> Tensor:
        def weighted_score(z: Tensor, weights: Tensor, own: Tensor | None = None) -> Tensor:
            return (weights * self.score(z, support if own is None else own)).sum(1)

        # Captum repeats additional arguments along the path: right for what belongs to a query, wrong for
        # a support that all queries share.
        own = () if support.dim() == 2 else (support,)
        with torch.inference_mode(False):
            slope: Tensor = IntegratedGradients(weighted_score, multiply_by_inputs=False).attribute(
                query.clone(), additional_forward_args=(support_weights, *own), n_steps=self.n_steps
            )
        return slope.detach().to(query.dtype)


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
    """
    if isinstance(similarity, Similarity):
        return similarity
    if isinstance(similarity, str):
        if similarity not in _BY_NAME:
            raise ValueError(f"similarity must be one of {', '.join(_BY_NAME)}, got {similarity!r}")
        return _BY_NAME[similarity]()
    if callable(similarity):
        return Learned(similarity)
    raise TypeError(f"similarity must be a name, a Similarity or a callable, got {type(similarity).__name__}")


def _distance(query: Tensor, support: Tensor) -> Tensor:
    # The expanded form ‖z‖² - 2 z·t + ‖t‖² loses all digits between near duplicates.
    exact = "donot_use_mm_for_euclid_dist"
    if support.dim() == 2:
        return torch.cdist(query, support, compute_mode=exact)
    return torch.cdist(query.unsqueeze(1), support, compute_mode=exact).squeeze(1)


def _each_support(support: Tensor) -> tuple[Tensor, ...]:
    return support.unbind(0) if support.dim() == 2 else support.unbind(1)


def _sum_over_supports(
    term: Callable[[Tensor], Tensor], query: Tensor, support: Tensor, support_weights: Tensor
) -> Tensor:
    total = torch.zeros_like(query)
    for one, weight in zip(_each_support(support), support_weights.unbind(1), strict=True):
        total += weight.unsqueeze(1) * term(query - one)
    return total


def _check_rule(rule: str) -> None:
    if rule not in _DISTANCE_RULES:
        raise ValueError(f"rule must be one of {', '.join(_DISTANCE_RULES)}, got {rule!r}")


def _check_has_weights(rule: str) -> None:
    if rule == "difference":
        raise ValueError(
            'rule="difference" has contributions but no linear weights; use rule="zero-baseline", '
            'or weighting="paper" with LayerFAM'
        )


def _check_square(matrix: Tensor) -> None:
    if matrix.dim() != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"matrix must be square, (J, J), got {tuple(matrix.shape)}")
