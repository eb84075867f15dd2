"""What the scores of all classes are contrasted with: the mean similarity to a gallery, or a number."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from captum_fam import functional as F
from captum_fam.rounding import drop_rounding

if TYPE_CHECKING:
    from captum_fam.support.comparison import Comparison


@dataclass(frozen=True, eq=False)
class Contrast:
    r"""What is subtracted from the score of every class: the score of a baseline, and a number.

    The explained score of class c is :math:`S_c - S_\mathrm{baseline} - \tau`, or the negative of this difference.

    A number has no features. With ``is_on_query``, the number is laid on the embedding Z' of the query itself. With the
    score :math:`s_0` of the zero embedding, the linear weights u of the score become
    :math:`u - (\tau - s_0)\, Z' / \|Z'\|^2`, so that contributions sum to the whole difference :math:`S_c - \tau`. A
    feature that is large in the query and not shared with the support then has a negative contribution.

    Attributes:
        baseline: the same queries, compared with a gallery as their only class; None for no gallery.
        constant: the number, a scalar or ``(B,)``.
        is_on_query: whether the number is laid on the embedding of the query. Otherwise it belongs to the score of the
            zero embedding, which no map explains. Default: False.
        is_reversed: whether the negative of the difference is explained. Default: False.
    """

    baseline: Comparison | None
    constant: Tensor
    is_on_query: bool = False
    is_reversed: bool = False

    def of_scores(self, scores: Tensor, noise: Tensor) -> Tensor:
        """The contrasted scores of all classes.

        Args:
            scores: S, ``(B, C)``; -inf for a class without supports.
            noise: the largest rounding error of each score, ``(B, C)``.

        Returns:
            ``(B, C)``: exactly zero where the difference is only rounding; -inf for a class without supports.
        """
        subtracted = self.constant.reshape(-1, 1)
        noise = noise + F.rounding_of_supports(1, scores.dtype) * subtracted.detach().abs()
        if self.baseline is not None:
            subtracted = subtracted + self.baseline.class_scores
            noise = noise + self.baseline.noise
        difference = F.zero_within(scores - subtracted, noise)
        return torch.where(scores == -torch.inf, scores, self._signed(difference))

    def of_features(
        self,
        values: Tensor,
        baseline_values: Tensor | None,
        comparison: Comparison,
        weights: Tensor,
        *,
        are_weights: bool,
    ) -> Tensor:
        """Contributions of the features to the contrasted score, or its linear weights.

        Args:
            values: contributions to the score of the class, or its linear weights, ``(B, J)``.
            baseline_values: the same for the baseline; None without a baseline.
            comparison: the comparison with the supports of the class.
            weights: the weights of the supports in ``values``, ``(B, K)``: those of the score, or shares of
                similarities.
            are_weights: whether the values are linear weights u, and not contributions.

        Returns:
            ``(B, J)``; a row whose terms cancel, up to rounding, is exactly zero.
        """
        terms = [] if baseline_values is None else [baseline_values]
        if self.is_on_query:
            unit = F.unit(comparison.query)
            length = F.lengths(comparison.query).unsqueeze(1)
            own = unit / torch.where(length == 0, 1.0, length) if are_weights else unit.square()
            terms.append(self._on_query(comparison, weights).unsqueeze(1) * own)
        difference, magnitude = values, values.abs()
        for term in terms:
            difference, magnitude = difference - term, magnitude + term.abs()
        query = comparison.query if are_weights else torch.ones_like(values)
        noise = F.rounding_of_supports(sum(weights.shape[1:], values.shape[1]), values.dtype) * magnitude
        bound = (query.abs() * noise).amax(1, keepdim=True)
        kept = drop_rounding(difference, query, are_weights=are_weights, bound=bound, noise=lambda: noise)
        return self._signed(kept)

    def scorer(self, score: Callable[[Tensor], Tensor], query: int) -> Callable[[Tensor], Tensor]:
        """The contrasted score of embeddings in the place of one query.

        Args:
            score: the score of embeddings before the contrast, ``(M, J) -> (M,)``.
            query: the position of the query in the batch.
        """
        baseline = None if self.baseline is None else self.baseline.scorer(query)
        constant = self.constant.detach().reshape(-1)
        number = constant[query] if len(constant) > 1 else constant[0]

        def contrasted(embeddings: Tensor) -> Tensor:
            value = score(embeddings) - number
            return self._signed(value if baseline is None else value - baseline(embeddings))

        return contrasted

    @property
    def magnitude(self) -> Tensor:
        """The magnitude of what is subtracted, a scalar or ``(B,)``."""
        size = self.constant.detach().abs()
        return size if self.baseline is None else size + self.baseline.term_magnitude

    def _on_query(self, comparison: Comparison, weights: Tensor) -> Tensor:
        """How much is subtracted at the embedding of the query, ``(B,)``: the number minus the score of zero.

        With shares of similarities as weights, every support has the same part of the number.
        """
        of_zero = (weights * (comparison.similarities - comparison.explained)).sum(1)
        whole = comparison.support_weights.sum(1)
        ratio = torch.where(whole == 0, 1.0, weights.sum(1) / torch.where(whole == 0, 1.0, whole))
        return self.constant.detach() * ratio - of_zero

    def _signed(self, values: Tensor) -> Tensor:
        return 0 - values if self.is_reversed else values  # and never -0.0
