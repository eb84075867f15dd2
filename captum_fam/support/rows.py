"""Supports that are rows of a large bank, chosen for each query."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class BankRows:
    """Rows of a bank, for each query of a batch.

    Iterating gathers the supports of one query after another, ``(K, J)``: for the whole batch at once they need
    not fit in memory.

    Attributes:
        embeddings: the bank, ``(M, J)``.
        indices: rows of the bank, ``(B, K)``.
        weights: of each row in the score of the class that it stands for, ``(B, K)``; rows sum to one, and padding
            weighs nothing.
        shared: further supports ``(F, J)`` of all queries, such as a foil, behind the rows; none by default.
    """

    embeddings: Tensor
    indices: Tensor
    weights: Tensor
    shared: Tensor | None = None

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[Tensor]:
        return map(self.of_query, range(len(self)))

    def of_query(self, query: int) -> Tensor:
        """The supports of one query, ``(K, J)``, with those that all queries share ``(K + F, J)``."""
        rows = self.embeddings[self.indices[query]]
        return rows if self.shared is None else torch.cat([rows, self.shared.to(rows.dtype)])


Vectors = Tensor | BankRows
"""Embeddings of supports: ``(K, J)`` shared by the batch, ``(B, K, J)`` one set per query, or rows of a bank."""


def followed_by(support: Vectors, vectors: Tensor) -> Vectors:
    """Supports, with ``(F, J)`` further ones of all queries behind them."""
    if not isinstance(support, Tensor):
        return replace(support, shared=vectors)
    if support.dim() == 3:
        vectors = vectors.expand(len(support), *vectors.shape)
    return torch.cat([support, vectors.to(support.dtype)], -2)


def over_supports(measure: Callable[..., Tensor], query: Tensor, support: Vectors, *weights: Tensor) -> Tensor:
    """``measure(query, support, *weights)``; of a bank the rows of one query at a time are in memory.

    Args:
        measure: a function of queries ``(B, J)``, supports ``(K, J)`` or ``(B, K, J)`` and weights ``(B, K)``.
        query: ``(B, J)``.
        support: the supports.
        weights: ``(B, K)``.
    """
    if isinstance(support, Tensor):
        return measure(query, support, *weights)
    each = zip(query.split(1), support, *(tensor.split(1) for tensor in weights), strict=True)
    return torch.cat([measure(one, rows.to(one.dtype), *own) for one, rows, *own in each])
