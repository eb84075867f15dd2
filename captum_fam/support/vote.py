"""Votes of the nearest rows of a memory bank."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

LEAST_TEMPERATURE = 1e-37
"""The smallest temperature; much smaller numbers are zero in float32."""


class Vote(NamedTuple):
    """The votes of the nearest rows of a :class:`MemoryBank` for a batch of queries.

    Attributes:
        predicted: the class with the most votes, ``(B,)``; among classes that differ by rounding only, the first.
        class_scores: the share of the votes for each class, ``(B, C)``; the shares of a query sum to one.
        neighbor_indices: the K nearest rows of the bank, the most similar first, ``(B, K)``; equally similar rows are
            in any order.
        similarities: the similarity of the query to these rows, ``(B, K)``; -inf for rows that only fill up the K of a
            query for which more rows are left out than for others.
    """

    predicted: Tensor
    class_scores: Tensor
    neighbor_indices: Tensor
    similarities: Tensor


def vote_weights(similarities: Tensor, temperature: float) -> Tensor:
    """The weights of votes, exp(s / temperature), scaled to sum to one per query.

    Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", CVPR 2018.

    Args:
        similarities: ``(B, K)``.
        temperature: a positive number.

    Returns:
        ``(B, K)``.

    Example:
        >>> vote_weights(torch.tensor([[0.7, 0.7, -90.0]]), temperature=0.07)
        tensor([[0.5000, 0.5000, 0.0000]])
    """
    # The largest similarity is subtracted first, because the quotient with a small temperature could overflow.
    return ((similarities - similarities.amax(1, keepdim=True)) / temperature).softmax(1)
