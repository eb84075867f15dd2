"""What a similarity is: the interface that every method, support and protocol uses, and the guide to an own one."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn


class Similarity(nn.Module, ABC):
    r"""How similar two embeddings are, and what each feature adds to that.

    A similarity is an ``nn.Module`` on a batch of queries ``(B, J)`` and their supports: ``(K, J)`` where the whole
    batch shares them, ``(B, K, J)`` where each query has its own. Query and support are on one device and of one
    floating-point type; the results have both too.

    **An own similarity** defines two methods:

    ===================  =============================================================================
    ``score``            s(Z, t), ``(B, K)``, differentiable in the query; larger is more similar
    ``contributions``    c, ``(B, J)``: what each feature adds to the weighted sum over the supports
    ===================  =============================================================================

    It *declares* by three class attributes what it can do. Nothing is guessed from the methods that it overrides:

    ========================  =======  ================================================================
    ``explains_whole_score``  True     the contributions to a support sum to its score
    ``vanishes_at_zero``      True     the score of the zero embedding is zero, whatever the support
    ``has_weights``           False    there is a linear classifier u with ``c = query * u``
    ========================  =======  ================================================================

    The other methods have defaults:

    =============  ==============================================================  ===================================
    ``explained``  what the contributions to each support sum to, ``(B, K)``       the score; without
                                                                                   ``explains_whole_score`` the score
                                                                                   minus that of the zero embedding
    ``weights``    u, ``(B, J)``                                                   refused
    ``bound``      the most that ``explained`` can be at these lengths,            1
                   ``(B, K)``
    ``magnitude``  what the rounding of each score is relative to, ``(B, K)``      the magnitude of the score
    ``terms``      magnitudes of the terms that each u is the sum of, ``(B, J)``   0: nothing is taken for rounding
    =============  ==============================================================  ===================================

    The last three say what rounding can do. With them, values that cancel in a sum over the supports (a vector and its
    negative, a foil equal to the class) can be told from small values that are real.

    A similarity with linear weights defines ``score`` and ``weights`` and inherits from :class:`LinearSimilarity`:
    :class:`~captum_fam.LayerSimilarityCAM` needs the weights. :func:`register_similarity` gives it a name.

    Attributes:
        explains_whole_score: the contributions to a support sum to its score, and ``explained`` *is* ``score``, which
            then is computed once. Default: True.
        vanishes_at_zero: the score of the zero embedding is zero. Otherwise, as for all distances, a score near zero
            is the difference of two large numbers, and noise in a map is judged against the score of the zero
            embedding too. Default: True.
        has_weights: :meth:`weights` is defined, and ``contributions == query * weights``. Default: False.

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
        """What each feature adds to the weighted sum over the supports.

        Args:
            query: Z, ``(B, J)``.
            support: Z_k, ``(K, J)`` or ``(B, K, J)``.
            support_weights: of each support in the sum, ``(B, K)``; negative for the supports of a foil.

        Returns:
            c, ``(B, J)``, with ``c.sum(1) == (support_weights * explained(query, support)).sum(1)``. A row that
            cancels in the sum over the supports up to rounding is exactly zero.
        """

    def explained(self, query: Tensor, support: Tensor) -> Tensor:
        """What the contributions to each support sum to.

        Args:
            query: Z, ``(B, J)``.
            support: Z_k, ``(K, J)`` or ``(B, K, J)``.

        Returns:
            ``(B, K)``: the score where the similarity ``explains_whole_score``, else the score minus that of the zero
            embedding.
        """
        scores = self.score(query, support)
        return scores if self.explains_whole_score else scores - self.score(torch.zeros_like(query), support)

    def weights(self, query: Tensor, support: Tensor, support_weights: Tensor) -> Tensor:
        """The weighted sum over the supports as a linear classifier of the query.

        Args:
            query: Z, ``(B, J)``.
            support: Z_k, ``(K, J)`` or ``(B, K, J)``.
            support_weights: of each support in the sum, ``(B, K)``.

        Returns:
            u, ``(B, J)``, with ``contributions == query * u``; exactly zero where a row cancels up to rounding.

        Raises:
            ValueError: for a similarity without linear weights.
        """
        self.require_weights()
        raise NotImplementedError(f"{type(self).__name__} declares has_weights and does not define weights")

    def require_weights(self) -> None:
        """Refuse a similarity that has contributions but no linear weights.

        Raises:
            ValueError: unless the similarity declares ``has_weights``.
        """
        if not self.has_weights:
            raise ValueError(
                f"similarity {type(self).__name__} has contributions but no linear weights (has_weights is False); "
                'use another similarity, or weighting="paper" with LayerFAM'
            )

    def bound(self, query: Tensor, support: Tensor) -> Tensor:
        r"""The most that the magnitudes of the contributions to each support can sum to.

        The lower bound of \|s_k\| in Eq. 15 is relative to it.

        Args:
            query: Z, ``(B, J)``.
            support: Z_k, ``(K, J)`` or ``(B, K, J)``.

        Returns:
            ``(B, K)``; 1 where nothing is known.
        """
        return query.new_ones(1, 1).expand(len(query), support.shape[-2])

    def magnitude(self, query: Tensor, support: Tensor, scores: Tensor) -> Tensor:
        """What the rounding of each score is relative to.

        Args:
            query: Z, ``(B, J)``.
            support: Z_k, ``(K, J)`` or ``(B, K, J)``.
            scores: of the supports, ``(B, K)``.

        Returns:
            ``(B, K)``; the magnitude of the score itself, which holds where all its terms have one sign.
        """
        return scores.abs()

    def terms(self, query: Tensor, support: Tensor, support_weights: Tensor) -> Tensor:
        """Magnitudes of the terms that each of :meth:`weights` is the sum of.

        Args:
            query: Z, ``(B, J)``.
            support: Z_k, ``(K, J)`` or ``(B, K, J)``.
            support_weights: ``(B, K)``, not negative: magnitudes of the weights, or their errors.

        Returns:
            ``(B, J)``; 0 where nothing is known.
        """
        return torch.zeros_like(query)


class LinearSimilarity(Similarity):
    """A similarity with linear weights: :meth:`weights` takes the place of :meth:`contributions`.

    An own similarity defines ``score`` and ``weights``.

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
