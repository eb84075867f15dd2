"""Scores against a threshold, and against the similarity of a query to itself, for any support."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from captum_fam._captum import TargetType
from captum_fam._text import printable
from captum_fam.similarity import (
    Cosine,
    Euclidean,
    EuclideanDifference,
    Mahalanobis,
    MahalanobisDifference,
    Similarity,
    UnitEuclidean,
)
from captum_fam.support.base import Support, require_plain
from captum_fam.support.comparison import Comparison
from captum_fam.support.contrast import Contrast
from captum_fam.support.labels import plain_value

Against = Literal["threshold", "identity"]


class ThresholdedSupport(Support):
    r"""A support whose scores are compared with a number: "why the same, why not".

    ``"threshold"`` explains :math:`s - \tau`, by how much the query passes the threshold of a decision, or fails it.
    The threshold is laid on the embedding of the query itself, so that the map is signed and adds up to
    :math:`s - \tau`: negative values are what the query has and the support lacks, positive values are what both
    share. ``"identity"`` explains :math:`s(Z', Z') - s`, for the cosine :math:`1 - s`: positive values are where the
    difference comes from.

    The predicted class does not depend on either.

    Args:
        support: any support without a foil.
        against: ``"threshold"`` or ``"identity"``.
        threshold: :math:`\tau` in the unit of the similarity, for ``"threshold"`` only. Default: None.

    Raises:
        TypeError: for a threshold that is no number, or anything but a support.
        ValueError: for another ``against``, a threshold that is missing, not finite or does not belong there, or a
            support that has a foil, a gallery or a threshold already.

    Example:
        >>> support = ThresholdedSupport(SupportSet(torch.tensor([[1.0, 0.0]])), "threshold", 0.7)
        >>> comparison = support.compare(torch.tensor([[0.6, 0.8]]))
        >>> comparison.score, comparison.contributions()  # 0.6 - 0.7 * 0.36, and -0.7 * 0.64
        (tensor([-0.1000]), tensor([[ 0.3480, -0.4480]]))
    """

    is_contrasted = True

    def __init__(self, support: Support, against: Against, threshold: float | None = None) -> None:
        if against is None:
            raise ValueError('against must be "threshold" or "identity", got None')
        require_plain(support, f"against={against!r}")
        self.support = support
        self.against = against
        self.threshold = check_against(against, threshold)
        self.class_names = support.class_names
        self.similarity = support.similarity

    def __repr__(self) -> str:
        number = "" if self.threshold is None else f", threshold={self.threshold}"
        return f"ThresholdedSupport({self.support!r}, against={self.against!r}{number})"

    def embed(self, forward_func: Callable[..., Any], additional_forward_args: Any = None) -> ThresholdedSupport:
        """Embed the images of the support with ``forward_func``."""
        return self._around(self.support.embed(forward_func, additional_forward_args))

    @property
    def class_counts(self) -> list[int]:
        return self.support.class_counts

    @property
    def per_query(self) -> bool:
        return self.support.per_query

    def for_queries(self, start: int, stop: int) -> ThresholdedSupport:
        """The support for the queries ``start`` to ``stop - 1``."""
        return self._around(self.support.for_queries(start, stop))

    def check_queries(self, inputs: tuple[Tensor, ...], args: tuple[Any, ...] | None) -> None:
        self.support.check_queries(inputs, args)

    def for_every_class(self) -> ThresholdedSupport:
        """The support that compares with supports of every class."""
        return self._around(self.support.for_every_class())

    def compare(self, query: Tensor, target: TargetType = None, similarity: Similarity | None = None) -> Comparison:
        """Compare queries ``(B, J)`` with the support, and the scores with the number.

        Raises:
            ValueError: for queries that do not fit the support.
        """
        comparison = self.support.compare(query, target, similarity)
        return comparison.contrasted(
            Contrast(None, self._number(comparison), is_on_query=True, is_reversed=self.against == "identity")
        )

    def _number(self, comparison: Comparison) -> Tensor:
        """What the scores are compared with, a scalar or ``(B,)``."""
        query = comparison.query
        if self.threshold is not None:
            return query.new_tensor(self.threshold)
        # Query by query: a similarity of the user may take supports that the batch shares only.
        return torch.cat([comparison.similarity.score(one, one)[0] for one in query.split(1)])

    def _around(self, support: Support) -> ThresholdedSupport:
        return ThresholdedSupport(support, self.against, self.threshold)


_RANGES: dict[type[Similarity], tuple[float, float]] = {
    Cosine: (-1, 1),
    UnitEuclidean: (-4, 0),
    **dict.fromkeys((Euclidean, EuclideanDifference, Mahalanobis, MahalanobisDifference), (-math.inf, 0)),
}
"""The smallest and the largest score, by the class of the similarity; a subclass may have other scores."""


def check_in_range(threshold: float | None, similarity: Similarity) -> None:
    """Refuse a threshold that no score can reach, where the range of the scores is known.

    Args:
        threshold: the threshold; None for no threshold.
        similarity: the similarity whose mean over some supports is the score.

    Raises:
        ValueError: for such a threshold.

    Example:
        >>> check_in_range(-1.1, Euclidean())
        >>> check_in_range(1.1, Euclidean())
        Traceback (most recent call last):
        ...
        ValueError: threshold is 1.1, but scores of Euclidean are negated distances, at most 0: pass -1.1
    """
    low, high = _RANGES.get(type(similarity), (-math.inf, math.inf))
    low = -2 if isinstance(similarity, UnitEuclidean) and not similarity.squared else low
    if threshold is None or low <= threshold <= high:
        return
    words = f"scores of {type(similarity).__name__} are "
    if threshold < low or high > 0:
        raise ValueError(f"threshold is {threshold:g}, but {words}from {low:g} to {high:g}")
    raise ValueError(f"threshold is {threshold:g}, but {words}negated distances, at most 0: pass {-threshold:g}")


def check_against(against: object, threshold: object) -> float | None:
    """Check the arguments ``against`` and ``threshold``.

    Args:
        against: ``"threshold"``, ``"identity"`` or None.
        threshold: a number, or None.

    Returns:
        The threshold as a float; None without one.

    Raises:
        TypeError, ValueError: as :class:`ThresholdedSupport`.

    Example:
        >>> check_against("threshold", 0.5), check_against(None, None)
        (0.5, None)
    """
    if against is not None and against not in get_args(Against):
        raise ValueError(f'against must be "threshold", "identity" or None, got {against!r}')
    if against != "threshold":
        if threshold is not None:
            raise ValueError(f'threshold= needs against="threshold", got against={against!r}')
        return None
    if threshold is None:
        raise ValueError('against="threshold" needs threshold=, a number in the unit of the similarity')
    number = plain_value(threshold)
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise TypeError(f"threshold must be a number, got {type(threshold).__name__}")
    if not abs(number) <= sys.float_info.max:
        raise ValueError(f"threshold must be finite as a float, got {printable(number, limit=40)}")
    return float(number)
