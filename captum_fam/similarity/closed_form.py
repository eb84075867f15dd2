"""Similarities whose weights are a formula of the weighted sum of the supports, without rounding errors of zeros."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor

from captum_fam import functional as F
from captum_fam.rounding import drop_rounding
from captum_fam.similarity.base import LinearSimilarity


class ClosedFormSimilarity(LinearSimilarity):
    """A similarity whose weights are a formula of the weighted sum of the supports, without a loop over supports.

    A subclass defines ``score``, the formula ``_weights``, and ``bound`` and ``terms`` for rounding errors. This class
    calls the formula and sets rows to zero that are only rounding errors. It is the base of similarities of this
    package; for a similarity of your own, :class:`LinearSimilarity` is simpler.
    """

    def weights(self, query: Tensor, support: Tensor, support_weights: Tensor) -> Tensor:
        weights = self._weights(query, support, support_weights)
        return self._drop_rounding(weights, query, support, support_weights, are_weights=True)

    def contributions(self, query: Tensor, support: Tensor, support_weights: Tensor) -> Tensor:
        contributions = self._contributions(query, support, support_weights)
        return self._drop_rounding(contributions, query, support, support_weights, are_weights=False)

    @abstractmethod
    def _weights(self, query: Tensor, support: Tensor, support_weights: Tensor) -> Tensor:
        """:meth:`weights` before rounding errors are set to zero, ``(B, J)``."""

    def _contributions(self, query: Tensor, support: Tensor, support_weights: Tensor) -> Tensor:
        """:meth:`contributions` before rounding errors are set to zero, ``(B, J)``."""
        return query * self._weights(query, support, support_weights)

    def _terms_per_weight(self, support: Tensor) -> int:
        """The number of terms in the sum for each weight."""
        return support.shape[-2]

    def _drop_rounding(
        self, values: Tensor, query: Tensor, support: Tensor, support_weights: Tensor, *, are_weights: bool
    ) -> Tensor:
        # The rounding error of each weight, as an error of the support weights. `bound` and `terms` are linear in the
        # support weights, so that they turn this error into the errors of the contributions and of each weight.
        errors = F.rounding_of_supports(self._terms_per_weight(support), query.dtype) * support_weights.abs()
        return drop_rounding(
            values,
            query,
            are_weights=are_weights,
            bound=(errors * self.bound(query, support)).sum(1, keepdim=True),
            noise=lambda: self.terms(query, support, errors),
        )
