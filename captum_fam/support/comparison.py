"""A batch of queries compared with its support: similarities, scores of classes, and the weight of every support."""

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
    """What :meth:`Support.compare <captum_fam.Support.compare>` gives: queries, supports, and how they compare.

    The score of class c is Eq. 11, a weighted sum of similarities, ``members.average(similarities)``; with a foil minus
    that of the foil. Scores that only rounding sets apart are ties: the first of the tied classes is the predicted one,
    or the runner-up, and a score minus a foil that equals it is exactly zero.

    Args:
        query: the embeddings Z', ``(B, J)``; gradients pass through them to the scores.
        support: the supports' embeddings, ``(K, J)``, ``(B, K, J)`` or rows of a bank.
        members: which supports stand for which class.
        similarity: the measure that the model decides with.
        class_names: C names; default: the indices.
        target: the explained class, in any form that Captum takes; default: the predicted class of each query.
        predicted: the predicted class, ``(B,)``; default: that of the largest score before the foil.
        foil: what is subtracted from each class; default: nothing.
        runner_up: subtract the best other class of each query.

    Attributes:
        query: the embeddings Z', ``(B, J)``, float32 at least.
        support: the supports' embeddings in the same precision; rows of a bank are gathered query by query.
        similarities: to each support, ``(B, K)``.
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
        self.similarities = over_supports(similarity.score, query, support)
        self._foil = foil
        self._runner_up = runner_up
        self._given_target = target
        self._given_predicted = predicted

    def against(self, foil: Members | None = None, *, runner_up: bool = False) -> Comparison:
        """The same comparison minus a foil: fixed forms over the same supports, or the best other class."""
        return Comparison(
            self.query,
            self.support,
            self.members,
            self.similarity,
            self.class_names,
            self._given_target,
            self._given_predicted,
            foil,
            runner_up,
        )

    def against_vectors(self, vectors: Tensor, weights: Tensor) -> Comparison:
        """The same comparison minus the weighted similarity to other vectors, the same for every class.

        Args:
            vectors: embeddings ``(F, J)`` of the foil.
            weights: of each, ``(F,)``.
        """
        members = self.members.followed_by(len(vectors))
        zeros = weights.new_zeros(self.similarities.shape[1])
        foil = SharedMembers(torch.cat([zeros, weights]).expand(members.n_classes, -1))
        return Comparison(
            self.query,
            followed_by(self.support, vectors),
            members,
            self.similarity,
            self.class_names,
            self._given_target,
            self._given_predicted,
            foil,
        )

    @cached_property
    def class_scores(self) -> Tensor:
        """S of Eq. 11 for every class, before the foil, ``(B, C)``; -inf for a class without supports."""
        scores = self.members.average(self.similarities)
        present = self.members.present
        return scores if present is None else scores.masked_fill(~present, -torch.inf)

    @cached_property
    def predicted(self) -> Tensor:
        """The class that the model decides for, before the foil, ``(B,)``."""
        if self._given_predicted is not None:
            return self._given_predicted
        return F.first_largest(self.class_scores, self._noise)

    @cached_property
    def scores(self) -> Tensor:
        """S of every class minus that of its foil, ``(B, C)``; -inf for a class without supports."""
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
            AssertionError: for a target that Captum refuses.
        """
        return select_class(self._given_target, self.predicted, self.members.n_classes)

    @cached_property
    def support_weights(self) -> Tensor:
        """The weight of each support in the score of the target class, ``(B, K)``, negative on the foil.

        Raises:
            ValueError: for a query without a support of that class, or of another one for the foil.
            AssertionError: for a target that Captum refuses.
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
        """What the measure's contributions sum to for each support, ``(B, K)``.

        For a distance that is the similarity minus that of the zero embedding.
        """
        # Most measures explain their whole score; no need to compute it twice.
        if self.similarity.explains_whole_score:
            return self.similarities
        return over_supports(self.similarity.explained, self.query, self.support)

    @property
    def with_foil(self) -> Tensor:
        """For which queries the explained score is a difference of two, boolean ``(B,)``."""
        return (self.support_weights < 0).any(1)

    @property
    def score(self) -> Tensor:
        """The score of the target class minus its foil, ``(B,)``: the weighted sum of the similarities."""
        return (self.support_weights * self.similarities).sum(1)

    @property
    def explained_score(self) -> Tensor:
        """The part of :attr:`score` that the features of the embedding add, ``(B,)``.

        That is all of it, but for a distance, which starts from the score of the zero embedding.
        """
        return (self.support_weights * self.explained).sum(1)

    @property
    def magnitude(self) -> Tensor:
        """What rounding noise of a map is relative to: the largest score of any class before the foil, ``(B,)``.

        A score minus its foil will not do: of two equal scores nothing is left, and noise is large beside nothing. Nor
        will a small distance: it is the difference of two embeddings, so that the score of the zero embedding counts.
        """
        sizes = self.similarities.detach().abs()
        if not self.similarity.vanishes_at_zero:
            zeros = torch.zeros_like(self.query)
            sizes = torch.maximum(sizes, over_supports(self.similarity.score, zeros, self.support).detach().abs())
        return self.members.average(sizes).amax(1)

    def compute(self) -> None:
        """Compute now, in the present arithmetic, what is otherwise computed when it is first asked for."""
        _ = self.scores, self.predicted, self.support_weights, self.explained

    def over_supports(self, measure: Callable[..., Tensor], weights: Tensor) -> Tensor:
        """``measure(query, support, weights)``, ``(B, J)``, for weights ``(B, K)`` of the supports."""
        if isinstance(self.support, Tensor) and self.support.dim() == 2:
            used = weights.any(0)
            # Supports of classes that nobody asks about have no part in it.
            if 0 < 2 * used.count_nonzero() <= len(used):
                return measure(self.query, self.support[used], weights[:, used])
        return over_supports(measure, self.query, self.support, weights)

    def supports_of(self, query: int) -> tuple[Tensor, Tensor]:
        """The supports that count in the explained score of one query, ``(K', J)``, and their weights, ``(K',)``."""
        weights = self.support_weights[query]
        used = weights != 0
        if isinstance(self.support, BankRows):
            vectors = self.support.of_query(query)
        else:
            vectors = self.support if self.support.dim() == 2 else self.support[query]
        return vectors[used].to(weights), weights[used]

    def _require_others(self) -> None:
        # A set of its own, a foil stands against any class; the other classes must be there.
        if self._runner_up or (self._foil is not None and not isinstance(self._foil, SharedMembers)):
            self.members.require_others()

    @cached_property
    def _noise(self) -> Tensor:
        """How far rounding can have moved the score of each class, ``(B, C)``."""
        return self._rounding(self.members)

    @cached_property
    def _sizes(self) -> Tensor:
        """What rounding of each similarity is relative to, ``(B, K)``."""
        return over_supports(self.similarity.magnitude, self.query.detach(), self.support, self.similarities.detach())

    def _rounding(self, members: Members) -> Tensor:
        # A sum over the features of each support, then one over the supports.
        count = self.query.shape[-1] + members.counts
        return F.rounding_of_supports(count, self._sizes.dtype) * members.average(self._sizes)

    @cached_property
    def _best_others(self) -> Tensor:
        """For each class the best of the others, ``(B, C)``: for the winner the second, else the winner."""
        scores = self.class_scores.detach()
        best = F.first_largest(scores, self._noise).unsqueeze(1)
        second = F.first_largest(scores.scatter(1, best, -torch.inf), self._noise).unsqueeze(1)
        columns = torch.arange(scores.shape[1], device=scores.device)
        return torch.where(columns == best, second, best)


def select_class(target: TargetType, predicted: Tensor, n_classes: int) -> Tensor:
    """The class that Captum's rules for ``target`` select for each sample, ``(B,)``; the predicted one for None."""
    if target is None:
        return predicted
    count = len(predicted)
    columns = torch.arange(n_classes, device=predicted.device).expand(count, n_classes)
    # Captum only asserts this, which `python -O` leaves out.
    if isinstance(target, list) and len(target) != count:
        raise AssertionError(f"target is a list of {len(target)} for a batch of {count}")
    try:
        selected = select_targets(columns, target)
    except (IndexError, RuntimeError) as error:
        raise AssertionError(f"target {target!r} is out of range for {n_classes} classes") from error
    if selected.shape != predicted.shape:
        raise AssertionError(f"target {target!r} does not select one class for each of {count} samples")
    return selected
