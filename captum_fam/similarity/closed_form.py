"""Similarities whose weights are a formula of the weighted sum of the supports, and what rounding leaves of them."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor

from captum_fam import functional as F
from captum_fam.rounding import drop_rounding
from captum_fam.similarity.base import LinearSimilarity


class ClosedFormSimilarity(LinearSimilarity):
    """A similarity that never looks at its supports one by one: the formula of the weights takes their weighted sum.

    A subclass defines ``score``, the formula ``_weights``, and for rounding ``bound`` and ``terms``. The base calls the
    formula and sets rows to zero that are only rounding. :class:`LinearSimilarity` is the base for an own similarity;
    this class serves those of the package.
    """

    def weights(self, query: Tensor, support: Tensor, support_weights: Tensor) -> Tensor:
        weights = self._weights(query, support, support_weights)
        return self._drop_rounding(weights, query, support, support_weights, are_weights=True)

    def contributions(self, query: Tensor, support: Tensor, support_weights: Tensor) -> Tensor:
        contributions = self._contributions(query, support, support_weights)
        return self._drop_rounding(contributions, query, support, support_weights, are_weights=False)

    @abstractmethod
    def _weights(self, query: Tensor, support: Tensor, support_weights: Tensor) -> Tensor:
        """:meth:`weights` with what rounding leaves of terms that cancel, ``(B, J)``."""

    def _contributions(self, query: Tensor, support: Tensor, support_weights: Tensor) -> Tensor:
        """:meth:`contributions` with what rounding leaves of terms that cancel, ``(B, J)``."""
        return query * self._weights(query, support, support_weights)

    def _terms_per_weight(self, support: Tensor) -> int:
        """How many terms each weight is the sum of."""
        return support.shape[-2]

    def _drop_rounding(
        self, values: Tensor, query: Tensor, support: Tensor, support_weights: Tensor, *, are_weights: bool
    ) -> Tensor:
        # The errors of all sums behind one weight, as an error of the support weights: `bound` and `terms` are linear
        # in the support weights, so that they turn it into the error of the contributions and of each weight.
        errors = F.rounding_of_supports(self._terms_per_weight(support), query.dtype) * support_weights.abs()
        return drop_rounding(
            values,
            query,
            are_weights=are_weights,
            bound=(errors * self.bound(query, support)).sum(1, keepdim=True),
            noise=lambda: self.terms(query, support, errors),
        )
