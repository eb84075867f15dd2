"""A batch of queries compared with its support: similarities, scores of classes, and a weight for each support."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from captum_fam import functional as F
from captum_fam._captum import TargetType
from captum_fam.similarity import Similarity
from captum_fam.support.class_scores import ClassScores
from captum_fam.support.contrast import Contrast
from captum_fam.support.members import Members, SharedMembers
from captum_fam.support.rows import BankRows, Vectors, followed_by, over_supports


class Comparison(ClassScores):
    """The result of :meth:`Support.compare <captum_fam.Support.compare>`: similarities, scores and support weights.

    The score of class c is Eq. 11, a weighted sum of similarities, ``members.average(similarities)``. With a foil, the
    score of the foil is subtracted; with a contrast, the mean similarity to a gallery, or a number. Scores that differ
    by rounding only are ties: the first of the tied classes is the predicted class, or the runner-up, and the
    difference of a score and an equal score of the foil is exactly zero.

    Args:
        query: the embeddings Z', ``(B, J)``; the scores are differentiable in them.
        support: the embeddings of the supports, ``(K, J)``, ``(B, K, J)`` or rows of a bank.
        members: which supports belong to which class, and with what weight.
        similarity: the similarity that the model decides with.
        class_names: C names. Default: the class indices.
        target: the explained class, in any form that Captum takes. Default: None, the predicted class of each query.
        predicted: the predicted class, ``(B,)``. Default: None, the class with the largest score before the foil.
        foil: the weights of the score that is subtracted from the score of each class. Default: None, no foil.
        runner_up: whether the score of the best other class of each query is subtracted. Default: False.
        similarities: the similarity of each query to each support, ``(B, K)``, if it is known already. Default: None,
            computed here.
        contrast: what else is subtracted from the score of each class. Default: None, nothing.

    Attributes:
        query: the embeddings Z', ``(B, J)``, in float32 or float64.
        support: the embeddings of the supports in the same precision; rows of a bank are gathered query by query.
        members: which supports belong to which class, and with what weight.
        similarity: the similarity that the model decides with.
        similarities: the similarity of each query to each support, ``(B, K)``.
        class_names: C names.
        contrast: what is subtracted from the score of each class beside a foil among the supports; None for nothing.

    Example:
        >>> support = SupportSet(torch.eye(3), ["jay", "jay", "wren"])
        >>> comparison = support.compare(torch.tensor([[0.6, 0.0, 0.8]]))
        >>> comparison.scores, comparison.predicted
        (tensor([[0.3000, 0.8000]]), tensor([1]))
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
        foil: Members | None = None,
        runner_up: bool = False,
        similarities: Tensor | None = None,
        contrast: Contrast | None = None,
    ) -> None:
        super().__init__(query, support, members, similarity, class_names, target, predicted, similarities)
        self.contrast = contrast
        self._foil = foil
        self._runner_up = runner_up

    def against(self, foil: Members | None = None, *, runner_up: bool = False) -> Comparison:
        """The same comparison with a foil, over the same supports.

        Args:
            foil: the weights of the score that is subtracted from the score of each class. Default: None.
            runner_up: whether the score of the best other class of each query is subtracted instead. Default: False.

        Returns:
            A new comparison.

        Raises:
            ValueError: for a comparison that has a foil already.
        """
        return self._again(foil=foil, runner_up=runner_up)

    def against_vectors(self, vectors: Tensor, weights: Tensor) -> Comparison:
        """The same comparison with a foil of other vectors: their weighted similarity is subtracted from every class.

        Args:
            vectors: the embeddings of the foil, ``(F, J)``.
            weights: the weight of each vector, ``(F,)``.

        Returns:
            A new comparison, with the vectors of the foil behind the supports.

        Raises:
            ValueError: for a comparison that has a foil already.
        """
        members = self.members.followed_by(len(vectors))
        zeros = weights.new_zeros(self.similarities.shape[1])
        foil = SharedMembers(torch.cat([zeros, weights]).expand(members.n_classes, -1))
        return self._again(support=followed_by(self.support, vectors), members=members, foil=foil, similarities=None)

    def contrasted(self, contrast: Contrast) -> Comparison:
        """The same comparison with something else subtracted from the score of every class.

        Args:
            contrast: what is subtracted.

        Returns:
            A new comparison.

        Raises:
            ValueError: for a comparison that has a foil or a contrast already.
        """
        return self._again(contrast=contrast)

    def _again(self, **changes: Any) -> Comparison:
        """The same comparison with other arguments of the constructor."""
        if self._runner_up or self._foil is not None or self.contrast is not None:
            raise ValueError("foil: the comparison has a foil, a gallery or a threshold already")
        arguments = {
            "support": self.support,
            "members": self.members,
            "similarity": self.similarity,
            "class_names": self.class_names,
            "target": self._target_argument,
            "predicted": self._predicted_argument,
            "similarities": self.similarities,
        }
        return Comparison(self.query, **{**arguments, **changes})

    @cached_property
    def scores(self) -> Tensor:
        """The explained score of every class: the score minus the foil, or the contrasted score, ``(B, C)``.

        A class without supports has -inf.

        Raises:
            ValueError: for a foil among the other classes, if all supports of a query belong to one class.
        """
        scores = self.class_scores
        self._require_others()
        if self._runner_up:
            other = self.best_others
            foil, noise = scores.gather(1, other), self.noise.gather(1, other)
        elif self._foil is not None:
            foil, noise = self._foil.average(self.similarities), self.rounding_of(self._foil)
        else:
            return scores if self.contrast is None else self.contrast.of_scores(scores, self.noise)
        return F.zero_within(scores - foil, self.noise + noise)

    @cached_property
    def support_weights(self) -> Tensor:
        """The weight of each support in the score of the target class, ``(B, K)``; negative for supports of the foil.

        Raises:
            ValueError: if a query has no support of the target class, or the foil needs a support of another class and
                there is none.
            AssertionError: for a target that Captum refuses, as Captum raises it.
        """
        self._require_others()
        weights = self.members.weights(self.target)
        if self._runner_up:
            other = self.best_others.gather(1, self.target.unsqueeze(1)).squeeze(1)
            weights = weights - self.members.weights(other)
        elif self._foil is not None:
            weights = weights - self._foil.weights(self.target)
        return weights.to(self.similarities.dtype)

    @cached_property
    def explained(self) -> Tensor:
        """The part of each similarity that the contributions of the features sum to, ``(B, K)``.

        For most similarities this is the similarity itself; for a distance it is the similarity minus the similarity of
        the zero embedding.
        """
        # A similarity that explains its whole score has been computed already.
        if self.similarity.explains_whole_score:
            return self.similarities
        return over_supports(self.similarity.explained, self.query, self.support)

    @property
    def with_foil(self) -> Tensor:
        """For which queries the explained score is a difference of two scores, boolean ``(B,)``."""
        has_foil = (self.support_weights < 0).any(1)
        return has_foil if self.contrast is None else torch.ones_like(has_foil)

    @property
    def plain_score(self) -> Tensor:
        """The score of the target class without any foil or contrast, ``(B,)``."""
        self.members.weights(self.target)  # refuses a class without supports
        return self.class_scores.gather(1, self.target.unsqueeze(1)).squeeze(1)

    @property
    def score(self) -> Tensor:
        """The explained score of the target class: minus the score of its foil, or contrasted; ``(B,)``."""
        weights = self.support_weights  # refuses a class without supports
        score = self.scores.gather(1, self.target.unsqueeze(1)).squeeze(1)
        # A sum over all supports rounds as the sum of a map does, and a difference of two means does not.
        whole = (weights * self.similarities).sum(1) if self.contrast is None else score
        return torch.where(score == 0, score, whole)

    @property
    def explained_score(self) -> Tensor:
        """The part of :attr:`score` that the contributions of the features sum to, ``(B,)``.

        For most similarities this is the whole score; for a distance it is the score minus the score of the zero
        embedding. A score against a number is explained as a whole.
        """
        contrast = self.contrast
        # Only similarities with a score of the zero embedding have a number that is not on the query.
        if self.similarity.explains_whole_score or (contrast is not None and contrast.is_on_query):
            return self.score
        explained = (self.support_weights * self.explained).sum(1)
        baseline = None if contrast is None else contrast.baseline
        return explained if baseline is None else explained - baseline.explained_score

    def linear_weights(self) -> Tensor:
        """The linear weights u of the explained score, ``(B, J)``: ``query * u`` sums to :attr:`explained_score`.

        Raises:
            ValueError: for a similarity without linear weights.
        """
        return self.of_features(_weights_of_score, are_weights=True)

    def contributions(self) -> Tensor:
        """What each feature adds to :attr:`explained_score`, ``(B, J)``."""
        return self.of_features(_contributions_to_score, are_weights=False)

    def of_features(self, make: Callable[[Comparison, bool], tuple[Tensor, Tensor]], *, are_weights: bool) -> Tensor:
        """Contributions of the features, or linear weights, with the contrast subtracted.

        Args:
            make: gives the weights of the supports ``(B, K)`` and the values ``(B, J)`` that they make, for this
                comparison and for the baseline of the contrast. The second argument is whether all supports count as
                one: those of the baseline do, because one vector can stand for all of its images.
            are_weights: whether the values are linear weights.

        Returns:
            ``(B, J)``.
        """
        weights, values = make(self, False)
        contrast = self.contrast
        if contrast is None:
            return values
        baseline = None if contrast.baseline is None else make(contrast.baseline, True)[1]
        return contrast.of_features(values, baseline, self, weights, are_weights=are_weights)

    def scorer(self, query: int) -> Callable[[Tensor], Tensor]:
        """The explained score as a function of an embedding in the place of one query.

        Args:
            query: the position of the query in the batch.

        Returns:
            A function of embeddings ``(M, J)`` that gives scores ``(M,)``.
        """
        support, weights = self.supports_of(query)

        def score(embeddings: Tensor) -> Tensor:
            return self.similarity.score(embeddings.to(support), support) @ weights

        return score if self.contrast is None else self.contrast.scorer(score, query)

    @property
    def magnitude(self) -> Tensor:
        """The scale for rounding errors of a map: the largest magnitude of a class score before the foil, ``(B,)``.

        A score minus its foil is no such scale: the difference of two equal scores is zero, but its rounding error is
        not. A small distance is no such scale either: it is the difference of two long embeddings. So the score of the
        zero embedding counts too, where the similarity has such a score.
        """
        sizes = self.similarities.detach().abs()
        if not self.similarity.vanishes_at_zero:
            zeros = torch.zeros_like(self.query)
            sizes = torch.maximum(sizes, over_supports(self.similarity.score, zeros, self.support).detach().abs())
        magnitude = self.members.average(sizes).amax(1)
        return magnitude if self.contrast is None else torch.maximum(magnitude, self.contrast.magnitude)

    @property
    def term_magnitude(self) -> Tensor:
        """The sum of the magnitudes of the terms of the explained score, ``(B,)``, before anything is subtracted."""
        sizes = torch.maximum(self.similarities.detach().abs(), self.explained.detach().abs())
        magnitude = (self.support_weights.abs() * sizes).sum(1)
        return magnitude if self.contrast is None else magnitude + self.contrast.magnitude

    def compute(self) -> None:
        """Compute the cached properties now, while the present PyTorch modes (autocast, gradients) are in force."""
        _ = self.scores, self.predicted, self.support_weights, self.explained
        if self.contrast is not None and self.contrast.baseline is not None:
            self.contrast.baseline.compute()

    def over_supports(self, measure: Callable[..., Tensor], weights: Tensor | None = None) -> Tensor:
        """Apply a function to queries, supports and support weights.

        Args:
            measure: ``measure(query, support, weights)``, such as :meth:`Similarity.contributions
                <captum_fam.similarity.Similarity.contributions>`; it must not depend on supports of weight zero.
            weights: of the supports, ``(B, K)``. Default: None, those of the explained score.

        Returns:
            ``(B, J)``.
        """
        weights = self.support_weights if weights is None else weights
        if isinstance(self.support, Tensor) and self.support.dim() == 2:
            used = weights.any(0)
            # Supports of weight zero change nothing. A copy without them pays off if they are half of all or more.
            if 0 < 2 * used.count_nonzero() <= len(used):
                return measure(self.query, self.support[used], weights[:, used])
        return over_supports(measure, self.query, self.support, weights)

    def supports_of(self, query: int) -> tuple[Tensor, Tensor]:
        """The supports with a weight in the explained score of one query.

        Args:
            query: the position of the query in the batch.

        Returns:
            Embeddings ``(K', J)`` and weights ``(K',)`` of the K' supports whose weight is not zero.
        """
        weights = self.support_weights[query]
        used = weights != 0
        if isinstance(self.support, BankRows):
            vectors = self.support.of_query(query)
        else:
            vectors = self.support if self.support.dim() == 2 else self.support[query]
        return vectors[used].to(weights), weights[used]

    def _require_others(self) -> None:
        """Refuse queries without supports of a second class, if the foil consists of the other classes."""
        # SharedMembers hold either a foil of other vectors, or supports of every class: then nothing can be missing.
        if self._runner_up or (self._foil is not None and not isinstance(self._foil, SharedMembers)):
            self.members.require_others()


def _weights_of_score(comparison: Comparison, _: bool) -> tuple[Tensor, Tensor]:
    return comparison.support_weights, comparison.over_supports(comparison.similarity.weights)


def _contributions_to_score(comparison: Comparison, _: bool) -> tuple[Tensor, Tensor]:
    return comparison.support_weights, comparison.over_supports(comparison.similarity.contributions)
