"""Metrics of PyTorch and pytorch-metric-learning, recognized as the similarities that they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from captum_fam.similarity.base import Similarity
from captum_fam.similarity.distances import Euclidean
from captum_fam.similarity.inner_products import Cosine, Dot
from captum_fam.similarity.learned import Learned
from captum_fam.similarity.unit_distances import UnitEuclidean

_PML = "pytorch_metric_learning.distances"

# With a larger eps, torch's functions give other numbers than the formula.
_LARGEST_EPS = 1e-4

_COSINES = (nn.functional.cosine_similarity, torch.cosine_similarity)
_PAIR_DISTANCES = (nn.functional.pairwise_distance, torch.pairwise_distance)


class NegatedDistance(nn.Module):
    """A distance as a metric of :class:`~captum_fam.similarity.Learned`, for which larger is more similar.

    Args:
        distance: maps two batches of embeddings ``(B, J)`` to distances ``(B,)``.
        name: what the distance is called in settings.

    Example:
        >>> manhattan = NegatedDistance(partial(nn.functional.pairwise_distance, p=1, eps=0), "p=1")
        >>> manhattan(torch.tensor([[3.0, 1.0]]), torch.tensor([[1.0, 2.0]]))
        tensor([-3.])
    """

    def __init__(self, distance: Callable[[Tensor, Tensor], Tensor], name: str) -> None:
        super().__init__()
        self.distance = distance
        self.name = name

    def forward(self, query: Tensor, support: Tensor) -> Tensor:
        return -self.distance(query, support)

    def extra_repr(self) -> str:
        return self.name


class PairwiseMetric(nn.Module):
    """A distance or similarity of pytorch-metric-learning as a metric, for which larger is more similar.

    Args:
        distance: an object of pytorch-metric-learning.

    Example:
        >>> class Manhattan:  # with the attributes and methods of a distance of pytorch-metric-learning
        ...     power, is_inverted = 1, False
        ...
        ...     def maybe_normalize(self, embeddings):
        ...         return embeddings
        ...
        ...     def pairwise_distance(self, query, support):
        ...         return (query - support).abs().sum(1)
        >>> PairwiseMetric(Manhattan())(torch.tensor([[3.0, 1.0]]), torch.tensor([[1.0, 2.0]]))
        tensor([-3.])
    """

    def __init__(self, distance: Any) -> None:
        super().__init__()
        self.distance = distance

    def forward(self, query: Tensor, support: Tensor) -> Tensor:
        normalized = self.distance.maybe_normalize(query), self.distance.maybe_normalize(support)
        values: Tensor = self.distance.pairwise_distance(*normalized) ** self.distance.power
        return values if self.distance.is_inverted else -values

    def extra_repr(self) -> str:
        options = {name: getattr(self.distance, name) for name in ("p", "power", "normalize_embeddings")}
        return ", ".join(f"{name}={value}" for name, value in options.items())


def known_metric(metric: Any) -> Similarity | None:
    """The similarity that a metric of PyTorch or pytorch-metric-learning is.

    A distance becomes minus the distance, because larger is more similar here.

    ===============================================================  ==============================================
    metric                                                           similarity
    ===============================================================  ==============================================
    ``torch.nn.CosineSimilarity``, ``F.cosine_similarity``           :class:`Cosine`
    ``torch.nn.PairwiseDistance``, ``F.pairwise_distance``,          :class:`Euclidean` for p = 2, else
    ``torch.cdist``                                                  :class:`Learned`
    ``CosineSimilarity()``                                           :class:`Cosine`
    ``DotProductSimilarity()``                                       :class:`Cosine`, because it normalizes
    ``DotProductSimilarity(normalize_embeddings=False)``             :class:`Dot`
    ``LpDistance(power=1 or 2)``                                     :class:`UnitEuclidean`, because it normalizes
    ``LpDistance(power=1 or 2, normalize_embeddings=False)``         :class:`Euclidean`
    other distances of pytorch-metric-learning                       :class:`Learned`
    ===============================================================  ==============================================

    Functions may stand in a ``functools.partial`` with keyword arguments.

    Args:
        metric: any callable.

    Returns:
        The similarity; None for a metric that is not known.

    Raises:
        ValueError: for a known metric that compares no embeddings ``(B, J)``, or is not defined at the zero embedding.

    Example:
        >>> known_metric(nn.CosineSimilarity()), known_metric(torch.cdist), known_metric(max)
        (Cosine(), Euclidean(squared=False), None)
    """
    options: Mapping[str, Any] = {}
    if isinstance(metric, partial) and not metric.args:
        metric, options = metric.func, metric.keywords
    if type(metric) is nn.CosineSimilarity:
        return _cosine(metric.dim, metric.eps)
    if any(metric is function for function in _COSINES):
        return _cosine(options.get("dim", 1), options.get("eps", 1e-8))
    if type(metric) is nn.PairwiseDistance:
        return _distance(metric.norm, metric.eps)
    if any(metric is function for function in _PAIR_DISTANCES):
        return _distance(options.get("p", 2), options.get("eps", 1e-6))
    if metric is torch.cdist:
        return _distance(options.get("p", 2), 0.0)
    if any(base.__module__.startswith(_PML) for base in type(metric).__mro__):
        return _of_metric_learning(metric)
    return None


def _cosine(dim: int, eps: float) -> Similarity | None:
    if dim not in (1, -1):
        raise ValueError(f"similarity: a cosine over dim={dim} compares no embeddings (B, J); use dim=1")
    return Cosine() if eps <= _LARGEST_EPS else None


def _distance(p: float, eps: float) -> Similarity:
    if p == 2 and eps <= _LARGEST_EPS:
        return Euclidean()
    distance = partial(nn.functional.pairwise_distance, p=p, eps=eps)
    return Learned(NegatedDistance(distance, f"p={p}, eps={eps}"))


def _of_metric_learning(distance: Any) -> Similarity:
    """The similarity of a distance of pytorch-metric-learning."""
    name = type(distance).__name__ if type(distance).__module__.startswith(_PML) else ""
    if name == "BatchedDistance":
        return _of_metric_learning(distance.distance)
    if name == "SNRDistance":
        raise ValueError(
            "similarity: SNRDistance divides by the variance of the query, so that it has no value for the zero "
            "embedding, from which contributions are counted; use another distance"
        )
    normalizes, power = distance.normalize_embeddings, distance.power
    if distance.p == 2 and name in ("CosineSimilarity", "DotProductSimilarity") and power == 1:
        return Cosine() if normalizes else Dot()
    if distance.p == 2 and name == "LpDistance" and power in (1, 2):
        kind = UnitEuclidean if normalizes else Euclidean
        return kind(squared=power == 2)
    return Learned(PairwiseMetric(distance))
