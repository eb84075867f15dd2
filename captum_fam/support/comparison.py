"""A batch of queries compared with its support: similarities, scores of classes, and a weight for each support."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import torch
from torch import Tensor

from captum_fam import functional as F
from captum_fam._captum import TargetType, select_targets
from captum_fam.similarity import Similarity
from captum_fam.support.members import Members, SharedMembers
from captum_fam.support.rows import BankRows, Vectors, followed_by, over_supports


class Comparison:
    """The result of :meth:`Support.compare <captum_fam.Support.compare>`: similarities, scores and support weights.

    The score of class c is Eq. 11, a weighted sum of similarities, ``members.average(similarities)``. With a foil, the
    score of the foil is subtracted. Scores that differ by rounding only are ties: the first of the tied classes is the
    predicted class, or the runner-up, and the difference of a score and an equal score of the foil is exactly zero.

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

    Attributes:
        query: the embeddings Z', ``(B, J)``, in float32 or float64.
        support: the embeddings of the supports in the same precision; rows of a bank are gathered query by query.
        members: which supports belong to which class, and with what weight.
        similarity: the similarity that the model decides with.
        similarities: the similarity of each query to each support, ``(B, K)``.
        class_names: C names.

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
        self._foil = foil
        self._runner_up = runner_up
        self._target_argument = target
        self._predicted_argument = predicted

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
        self._check_no_foil()
        return Comparison(
            self.query,
            self.support,
            self.members,
            self.similarity,
            self.class_names,
            self._target_argument,
            self._predicted_argument,
            foil,
            runner_up,
            self.similarities,
        )

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
        self._check_no_foil()
        members = self.members.followed_by(len(vectors))
        zeros = weights.new_zeros(self.similarities.shape[1])
        foil = SharedMembers(torch.cat([zeros, weights]).expand(members.n_classes, -1))
        return Comparison(
            self.query,
            followed_by(self.support, vectors),
            members,
            self.similarity,
            self.class_names,
            self._target_argument,
            self._predicted_argument,
            foil,
        )

    def _check_no_foil(self) -> None:
        if self._runner_up or self._foil is not None:
            raise ValueError("foil: the support has a foil already; pass the support without it")

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
        return F.first_largest(self.class_scores, self._noise)

    @cached_property
    def scores(self) -> Tensor:
        """The score of every class minus the score of its foil, ``(B, C)``; -inf for a class without supports.

        Raises:
            ValueError: for a foil among the other classes, if all supports of a query belong to one class.
        """
        scores = self.class_scores
        self._require_others()
        if self._runner_up:
            other = self._best_others
            foil, noise = scores.gather(1, other), self._noise.gather(1, other)
        elif self._foil is not None:
            foil, noise = self._foil.average(self.similarities), self._rounding(self._foil)
        else:
            return scores
        return F.zero_within(scores - foil, self._noise + noise)

    @cached_property
    def target(self) -> Tensor:
        """The explained class, ``(B,)``.

        Raises:
            AssertionError: for a target that Captum refuses, as Captum raises it.
        """
        return select_class(self._target_argument, self.predicted, self.members.n_classes)

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
            other = self._best_others.gather(1, self.target.unsqueeze(1)).squeeze(1)
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
        return (self.support_weights < 0).any(1)

    @property
    def score(self) -> Tensor:
        """The score of the target class minus the score of its foil, ``(B,)``: a weighted sum of the similarities."""
        return (self.support_weights * self.similarities).sum(1)

    @property
    def explained_score(self) -> Tensor:
        """The part of :attr:`score` that the contributions of the features sum to, ``(B,)``.

        For most similarities this is the whole score; for a distance it is the score minus the score of the zero
        embedding.
        """
        return (self.support_weights * self.explained).sum(1)

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
        return self.members.average(sizes).amax(1)

    def compute(self) -> None:
        """Compute the cached properties now, while the present PyTorch modes (autocast, gradients) are in force."""
        _ = self.scores, self.predicted, self.support_weights, self.explained

    def over_supports(self, measure: Callable[..., Tensor], weights: Tensor) -> Tensor:
        """Apply a function to queries, supports and support weights.

        Args:
            measure: ``measure(query, support, weights)``, such as :meth:`Similarity.contributions
                <captum_fam.similarity.Similarity.contributions>`; it must not depend on supports of weight zero.
            weights: of the supports, ``(B, K)``.

        Returns:
            ``(B, J)``.
        """
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

    @cached_property
    def _noise(self) -> Tensor:
        """The largest rounding error that the score of each class can have, ``(B, C)``."""
        return self._rounding(self.members)

    @cached_property
    def _sizes(self) -> Tensor:
        """The scale for the rounding error of each similarity, ``(B, K)``."""
        return over_supports(self.similarity.magnitude, self.query.detach(), self.support, self.similarities.detach())

    def _rounding(self, members: Members) -> Tensor:
        """The largest rounding error that each weighted sum of similarities can have, ``(B, C)``."""
        # Each score is a sum over the supports, of sums over the features.
        count = self.query.shape[-1] + members.counts
        return F.rounding_of_supports(count, self._sizes.dtype) * members.average(self._sizes)

    @cached_property
    def _best_others(self) -> Tensor:
        """For each class the best other class, ``(B, C)``: the second best for the best class, else the best class."""
        scores = self.class_scores.detach()
        best = F.first_largest(scores, self._noise).unsqueeze(1)
        second = F.first_largest(scores.scatter(1, best, -torch.inf), self._noise).unsqueeze(1)
        columns = torch.arange(scores.shape[1], device=scores.device)
        return torch.where(columns == best, second, best)


def select_class(target: TargetType, predicted: Tensor, n_classes: int) -> Tensor:
    """The class of each sample that ``target`` selects by Captum's rules.

    Args:
        target: as Captum's methods take it: a class for all samples, or a list or tensor with a class per sample; None:
            the predicted class.
        predicted: the predicted class, ``(B,)``.
        n_classes: C.

    Returns:
        Class indices, ``(B,)``.

    Raises:
        AssertionError: for a target that does not fit the batch or the classes, as Captum raises it.

    Example:
        >>> select_class([2, 0], predicted=torch.tensor([1, 1]), n_classes=3)
        tensor([2, 0])
    """
    if target is None:
        return predicted
    count = len(predicted)
    columns = torch.arange(n_classes, device=predicted.device).expand(count, n_classes)
    # Captum checks this with an assert statement, which `python -O` removes.
    if isinstance(target, list) and len(target) != count:
        raise AssertionError(f"target is a list of {len(target)} for a batch of {count}")
    try:
        selected = select_targets(columns, target)
    except (IndexError, RuntimeError) as error:
        raise AssertionError(f"target {target!r} is out of range for {n_classes} classes") from error
    if selected.shape != predicted.shape:
        raise AssertionError(f"target {target!r} does not select one class for each of {count} samples")
    return selected
