"""The interface of similarities, which every method, support and protocol uses, and how to write a similarity."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn


class Similarity(nn.Module, ABC):
    r"""How similar two embeddings are, and what each feature adds to the similarity.

    A similarity is an ``nn.Module`` that takes a batch of queries ``(B, J)`` and their supports: ``(K, J)`` if all
    queries share their supports, ``(B, K, J)`` if each query has supports of its own. Query and support have the same
    device and floating-point type, and so do the results.

    **A similarity of your own** defines two methods:

    ===================  ===================================================================================
    ``score``            s(Z, t), ``(B, K)``, differentiable in the query; larger is more similar
    ``contributions``    c, ``(B, J)``: what each feature adds to the weighted sum of scores of the supports
    ===================  ===================================================================================

    Class attributes *declare* what the similarity can do. Nothing is guessed from the methods that it overrides:

    ========================  =======  ================================================================
    attribute                 default  meaning
    ========================  =======  ================================================================
    ``explains_whole_score``  True     the contributions to a support sum to its score
    ``vanishes_at_zero``      True     the score of the zero embedding is zero, whatever the support
    ``has_weights``           False    there is a linear classifier u with ``c = query * u``
    ``ignores_length``        False    the score is the same for a positive multiple of the query
    ``is_linear``             False    the score is linear in the query
    ========================  =======  ================================================================

    The other methods have defaults:

    =============  ==============================================================  ===================================
    method         result                                                          default
    =============  ==============================================================  ===================================
    ``explained``  the part of each score that the contributions sum to,           the score; without
                   ``(B, K)``                                                      ``explains_whole_score`` the score
                                                                                   minus the score of the zero
                                                                                   embedding
    ``weights``    u, ``(B, J)``                                                   an error
    ``bound``      the largest possible magnitude of ``explained`` for             1
                   embeddings of these lengths, ``(B, K)``
    ``magnitude``  the scale for the rounding error of each score, ``(B, K)``      the magnitude of the score
    ``terms``      the sum of the magnitudes of the terms of each u, ``(B, J)``    0: no value counts as rounding error
    =============  ==============================================================  ===================================

    :meth:`weights_of_parts` divides the weights among parts of a support, for pairs of positions
    (:class:`~captum_fam.attr.LayerPairs`). ``bound``, ``magnitude`` and ``terms`` describe rounding errors. They
    separate values that cancel in a sum over the supports (a vector and its negative, a foil equal to the class) from
    values that are small but not zero.

    A similarity with linear weights defines ``score`` and ``weights`` and inherits from :class:`LinearSimilarity`:
    :class:`~captum_fam.LayerSimilarityCAM` needs the weights. :func:`register_similarity` gives it a name.

    Attributes:
        explains_whole_score: the contributions to a support sum to its score, and ``explained`` *is* ``score``, which
            then is computed once. Default: True.
        vanishes_at_zero: the score of the zero embedding is zero. Otherwise, as for all distances, a score near zero is
            the difference of two large numbers, so that rounding errors of a map are compared with the score of the
            zero embedding too. Default: True.
        has_weights: :meth:`weights` is defined, and ``contributions == query * weights``. Default: False.
        ignores_length: a positive multiple of the query has the same score, so that embeddings that differ by a factor
            are equal to the similarity. Default: False.
        is_linear: the score of the sum of two queries is the sum of their scores, so that methods which follow
            differences, as DeepLift does, add up. Default: False.

    Example:
        >>> class Overlap(Similarity):  # the Bhattacharyya coefficient, for supports that the batch shares
        ...     def score(self, query, support):
        ...         return query.sqrt() @ support.sqrt().T
        ...
        ...     def contributions(self, query, support, support_weights):
        ...         return query.sqrt() * (support_weights @ support.sqrt())
        >>> query, support = torch.tensor([[4.0, 1.0]]), torch.tensor([[1.0, 9.0]])
        >>> Overlap().score(query, support), Overlap().contributions(query, support, torch.ones(1, 1))
        (tensor([[5.]]), tensor([[2., 3.]]))
    """

    explains_whole_score: bool = True
    vanishes_at_zero: bool = True
    has_weights: bool = False
    ignores_length: bool = False
    is_linear: bool = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # The formula of a base class belongs to the weights of the base class, not to others that a subclass defines.
        if min(map(cls._depth, ("score", "weights"))) < cls._depth("weights_of_parts"):
            cls.weights_of_parts = Similarity.weights_of_parts  # type: ignore[method-assign]

    @classmethod
    def _depth(cls, method: str) -> int:
        """How many classes are between this class and the base class that defines a method."""
        return next(depth for depth, base in enumerate(cls.__mro__) if method in vars(base))

    def forward(self, query: Tensor, support: Tensor) -> Tensor:
        """The same as :meth:`score`."""
        return self.score(query, support)

    @abstractmethod
    def score(self, query: Tensor, support: Tensor) -> Tensor:
        """Similarity of each query to each of its supports.

        Args:
            query: Z, ``(B, J)``.
            support: Z_k, ``(K, J)`` or ``(B, K, J)``.

        Returns:
            s_k, ``(B, K)``, differentiable in the query.
        """

    @abstractmethod
    def contributions(self, query: Tensor, support: Tensor, support_weights: Tensor) -> Tensor:
        """What each feature adds to the weighted sum of the scores of the supports.

        Args:
            query: Z, ``(B, J)``.
            support: Z_k, ``(K, J)`` or ``(B, K, J)``.
            support_weights: the weight of each support in the sum, ``(B, K)``; negative for the supports of a foil.

        Returns:
            c, ``(B, J)``, with ``c.sum(1) == (support_weights * explained(query, support)).sum(1)``. A row whose terms
            cancel in the sum over the supports, up to rounding, is exactly zero.
        """

    def explained(self, query: Tensor, support: Tensor) -> Tensor:
        """The part of each score that the contributions of the features sum to.

        Args:
            query: Z, ``(B, J)``.
            support: Z_k, ``(K, J)`` or ``(B, K, J)``.

        Returns:
            ``(B, K)``: the score if the similarity ``explains_whole_score``, else the score minus the score of the zero
            embedding.
        """
        scores = self.score(query, support)
        return scores if self.explains_whole_score else scores - self.score(torch.zeros_like(query), support)

    def weights(self, query: Tensor, support: Tensor, support_weights: Tensor) -> Tensor:
        """The weighted sum of the scores of the supports as a linear classifier of the query.

        Args:
            query: Z, ``(B, J)``.
            support: Z_k, ``(K, J)`` or ``(B, K, J)``.
            support_weights: the weight of each support in the sum, ``(B, K)``.

        Returns:
            u, ``(B, J)``, with ``contributions == query * u``. A row whose terms cancel, up to rounding, is exactly
            zero.

        Raises:
            ValueError: for a similarity without linear weights.
        """
        self.require_weights()
        raise NotImplementedError(f"{type(self).__name__} declares has_weights and does not define weights")

    def weights_of_parts(self, query: Tensor, support: Tensor, parts: Tensor) -> Tensor:
        """What each part of a support gives to the linear weights, for one support per query.

        The scales of the weights, such as the norms of both embeddings, are held. Parts that sum to the support then
        give weights that sum to :meth:`weights`, less what the weights have without the support: a distance has such a
        term, the query itself.

        By default a part gets ``parts / support`` of the weight of each feature, and nothing where the support is zero
        beside the part, up to rounding. A similarity whose weights are linear in the support overrides this method by
        its own formula. A subclass with another ``score`` or ``weights`` does not inherit this formula, but the
        default.

        Args:
            query: Z, ``(B, J)``.
            support: t, one for each query, ``(B, J)``.
            parts: M vectors for each support, ``(B, M, J)``, such as the contributions of the positions of its image.

        Returns:
            ``(B, M, J)``.

        Raises:
            ValueError: for a similarity without linear weights.
        """
        self.require_weights()
        # Query by query: a similarity of the user may be written for supports that the batch shares only.
        pairs = zip(query.split(1), support.split(1), strict=True)
        weights = torch.cat([self.weights(z, t, query.new_ones(1, 1)) for z, t in pairs]).unsqueeze(1)
        whole = support.unsqueeze(1)
        is_zero = whole.abs() <= torch.finfo(whole.dtype).eps * parts.abs()
        return torch.where(is_zero, 0.0, weights * (parts / torch.where(is_zero, 1.0, whole)))

    def require_weights(self) -> None:
        """Check that the similarity has linear weights.

        Raises:
            ValueError: unless the similarity declares ``has_weights``.
        """
        if not self.has_weights:
            raise ValueError(
                f"similarity {type(self).__name__} has contributions but no linear weights (has_weights is False); "
                'use another similarity, or weighting="paper" with LayerFAM'
            )

    def bound(self, query: Tensor, support: Tensor) -> Tensor:
        r"""An upper bound of the sum of the magnitudes of the contributions, per support.

        The lower bound of \|s_k\| in Eq. 15 is relative to this bound.

        Args:
            query: Z, ``(B, J)``.
            support: Z_k, ``(K, J)`` or ``(B, K, J)``.

        Returns:
            ``(B, K)``; by default 1.
        """
        return query.new_ones(1, 1).expand(len(query), support.shape[-2])

    def magnitude(self, query: Tensor, support: Tensor, scores: Tensor) -> Tensor:
        """The scale for the rounding error of each score.

        Args:
            query: Z, ``(B, J)``.
            support: Z_k, ``(K, J)`` or ``(B, K, J)``.
            scores: the result of :meth:`score`, ``(B, K)``.

        Returns:
            ``(B, K)``; by default the magnitude of the score, which is right for a sum of terms that have one sign.
        """
        return scores.abs()

    def terms(self, query: Tensor, support: Tensor, support_weights: Tensor) -> Tensor:
        """The sum of the magnitudes of the terms of each of :meth:`weights`.

        Args:
            query: Z, ``(B, J)``.
            support: Z_k, ``(K, J)`` or ``(B, K, J)``.
            support_weights: magnitudes of the support weights, or of their errors, ``(B, K)``, not negative.

        Returns:
            ``(B, J)``; by default 0.
        """
        return torch.zeros_like(query)


class LinearSimilarity(Similarity):
    """A similarity with linear weights, from which :meth:`contributions` follow.

    A similarity of your own defines ``score`` and ``weights``.

    Example:
        >>> class Overlap(LinearSimilarity):  # the Bhattacharyya coefficient, for supports that the batch shares
        ...     def score(self, query, support):
        ...         return query.sqrt() @ support.sqrt().T
        ...
        ...     def weights(self, query, support, support_weights):
        ...         roots = support_weights @ support.sqrt()
        ...         return torch.where(query > 0, roots / query.sqrt(), 0.0)
        >>> query, support = torch.tensor([[4.0, 1.0]]), torch.tensor([[1.0, 9.0]])
        >>> Overlap().weights(query, support, torch.ones(1, 1))
        tensor([[0.5000, 3.0000]])
        >>> Overlap().contributions(query, support, torch.ones(1, 1))
        tensor([[2., 3.]])
    """

    has_weights = True

    @abstractmethod
    def weights(self, query: Tensor, support: Tensor, support_weights: Tensor) -> Tensor:
        """As :meth:`Similarity.weights`; here it must be defined."""

    def contributions(self, query: Tensor, support: Tensor, support_weights: Tensor) -> Tensor:
        """The query times the weights, as :meth:`Similarity.contributions`."""
        return query * self.weights(query, support, support_weights)


def check_linear_weights(
    similarity: Similarity, weights: Tensor, query: Tensor, explained: Tensor, magnitude: Tensor
) -> None:
    """Refuse linear weights that do not give the score, as those of a similarity of a user may not.

    Args:
        similarity: the similarity, for the message.
        weights: linear weights u of the score, ``(B, J)``.
        query: embeddings, ``(B, J)``.
        explained: the score that ``query * u`` has to sum to, ``(B,)``.
        magnitude: magnitude of the terms of the score, to which rounding is relative, ``(B,)``.

    Raises:
        ValueError: for weights of another shape, or a sum that is off by more than a twentieth of the score and a
            hundredth of its terms.

    Example:
        >>> from captum_fam.similarity import Dot
        >>> query, score = torch.tensor([[4.0, 1.0]]), torch.tensor([5.0])
        >>> check_linear_weights(Dot(), torch.ones(1, 2), query, score, magnitude=score)
    """
    name = type(similarity).__name__
    if weights.shape != query.shape:
        raise ValueError(
            f"similarity: weights() of {name} must give (B, J) = {tuple(query.shape)}, got {tuple(weights.shape)}"
        )
    terms = query * weights
    gap = (terms.sum(1) - explained).abs()
    wrong = gap > 0.05 * explained.abs() + 0.01 * torch.maximum(terms.abs().sum(1), magnitude)
    if wrong.any():
        first = int(wrong.nonzero()[0])
        raise ValueError(
            f"similarity: weights() of {name} must give u with sum(query * u) equal to the score; for query {first} "
            f"the sum is {float(terms[first].sum()):.4g} and the score {float(explained[first]):.4g}"
        )
