"""What the nearest rows of a memory bank say of a query."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

LEAST_TEMPERATURE = 1e-37
"""A smaller temperature is zero in float32."""


class Vote(NamedTuple):
    """What a :class:`MemoryBank` says of a batch of queries.

    Attributes:
        predicted: the class with the most votes, the first of those that only rounding sets apart, ``(B,)``.
        class_scores: share of the votes of every class, ``(B, C)``; rows sum to one.
        neighbor_indices: rows of the bank, the most similar first, ``(B, K)``; equally similar ones in any order.
        similarities: of the query to these rows, ``(B, K)``.
    """

    predicted: Tensor
    class_scores: Tensor
    neighbor_indices: Tensor
    similarities: Tensor


def vote_weights(similarities: Tensor, temperature: float) -> Tensor:
    """The weights exp(s / temperature) of votes, which sum to one per query: ``(B, K)`` -> ``(B, K)``.

    Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", CVPR 2018.
    """
    # Subtracting the largest first keeps what a small temperature divides from overflowing.
    return ((similarities - similarities.amax(1, keepdim=True)) / temperature).softmax(1)
