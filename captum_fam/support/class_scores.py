"""The scores of all classes for a batch of queries, before any foil, and the class that they predict."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from captum_fam import functional as F
from captum_fam._captum import TargetType
from captum_fam.similarity import Similarity
from captum_fam.support.members import Members
from captum_fam.support.rows import Vectors, over_supports
from captum_fam.support.target import select_class


class ClassScores:
    """The similarities of queries to supports, and the scores of classes that follow.

    The arguments and attributes are those of :class:`Comparison` with the same names.
    """

    def __init__(
        self,
        query: Tensor,
        support: Vectors,
        members: Members,
        similarity: Similarity,
        class_names: Sequence[str] = (),
        target: TargetType = None,
        predicted: Tensor | None = None,
        similarities: Tensor | None = None,
    ) -> None:
        if isinstance(support, Tensor):
            query, support = F.common_precision(query, support)
        else:
            query, _ = F.common_precision(query, support.embeddings[:1])
        self.query = query
        self.support: Vectors = support
        self.members = members
        self.similarity = similarity
        self.class_names = tuple(class_names) or tuple(map(str, range(members.n_classes)))
        if similarities is None:
            similarities = over_supports(similarity.score, query, support)
        self.similarities = similarities
        self._target_argument = target
        self._predicted_argument = predicted

    @cached_property
    def class_scores(self) -> Tensor:
        """S of Eq. 11 for every class, before the foil, ``(B, C)``; -inf for a class without supports."""
        scores = self.members.average(self.similarities)
        present = self.members.present
        return scores if present is None else scores.masked_fill(~present, -torch.inf)

    @cached_property
    def predicted(self) -> Tensor:
        """The class that the model decides for, without regard to the foil, ``(B,)``."""
        if self._predicted_argument is not None:
            return self._predicted_argument
        return F.first_largest(self.class_scores, self.noise)

    @cached_property
    def target(self) -> Tensor:
        """The explained class, ``(B,)``.

        Raises:
            AssertionError: for a target that Captum refuses, as Captum raises it.
        """
        return select_class(self._target_argument, self.predicted, self.members.n_classes)

    @cached_property
    def noise(self) -> Tensor:
        """The largest rounding error that the score of each class can have, ``(B, C)``."""
        return self.rounding_of(self.members)

    @cached_property
    def _sizes(self) -> Tensor:
        """The scale for the rounding error of each similarity, ``(B, K)``."""
        return over_supports(self.similarity.magnitude, self.query.detach(), self.support, self.similarities.detach())

    def rounding_of(self, members: Members) -> Tensor:
        """The largest rounding error that each weighted sum of similarities can have, ``(B, C)``.

        Args:
            members: the weights of the sums.
        """
        # Each score is a sum over the supports, of sums over the features.
        count = self.query.shape[-1] + members.counts
        return F.rounding_of_supports(count, self._sizes.dtype) * members.average(self._sizes)

    @cached_property
    def best_others(self) -> Tensor:
        """For each class the best other class, ``(B, C)``: the second best for the best class, else the best class."""
        scores = self.class_scores.detach()
        best = F.first_largest(scores, self.noise).unsqueeze(1)
        second = F.first_largest(scores.scatter(1, best, -torch.inf), self.noise).unsqueeze(1)
        columns = torch.arange(scores.shape[1], device=scores.device)
        return torch.where(columns == best, second, best)
