"""Scores against a threshold, and against the similarity of a query to itself, for any support."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from captum_fam._captum import TargetType
from captum_fam.similarity import Similarity
from captum_fam.support.base import Support
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
        TypeError: for a threshold that is no number.
        ValueError: for another ``against``, a threshold that is missing, not finite or does not belong there.

    Example:
        >>> support = ThresholdedSupport(SupportSet(torch.tensor([[1.0, 0.0]])), "threshold", 0.7)
        >>> comparison = support.compare(torch.tensor([[0.6, 0.8]]))
        >>> comparison.score, comparison.contributions()  # 0.6 - 0.7 * 0.36, and -0.7 * 0.64
        (tensor([-0.1000]), tensor([[ 0.3480, -0.4480]]))
    """

    def __init__(self, support: Support, against: Against, threshold: float | None = None) -> None:
        self.support = support
        self.against = against
        self.threshold = check_against(against, threshold)
        self.class_names = support.class_names
        self.similarity = support.similarity

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
            ValueError: for queries that do not fit the support, or a support with a foil.
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
    if not math.isfinite(number):
        raise ValueError(f"threshold must be finite, got {number}")
    return float(number)
