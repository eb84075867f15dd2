"""Supports that are rows of a large bank, chosen per query."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class BankRows:
    """Rows of a bank for each query of a batch.

    Iterating gives the supports ``(K, J)`` of one query after another, because the supports of all queries together,
    ``(B, K, J)``, may not fit in memory.

    Attributes:
        embeddings: the bank, ``(M, J)``.
        indices: rows of the bank, ``(B, K)``.
        weights: the weight of each row in the score of its class, ``(B, K)``; the weights of a query sum to one, and
            padding has the weight zero.
        shared: further supports ``(F, J)`` that all queries share, such as a foil. They follow the rows of the bank.
            Default: None, no further supports.

    Example:
        >>> rows = BankRows(torch.eye(3), torch.tensor([[0, 2], [1, 1]]), torch.full((2, 2), 0.5))
        >>> rows.of_query(0)
        tensor([[1., 0., 0.],
                [0., 0., 1.]])
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
        """The supports of one query, ``(K, J)``; with shared supports ``(K + F, J)``."""
        rows = self.embeddings[self.indices[query]]
        return rows if self.shared is None else torch.cat([rows, self.shared.to(rows.dtype)])


Vectors = Tensor | BankRows
"""Embeddings of supports: ``(K, J)`` shared by the batch, ``(B, K, J)`` one set per query, or rows of a bank."""


def followed_by(support: Vectors, vectors: Tensor) -> Vectors:
    """Add further supports, which all queries share, at the end of the supports.

    Args:
        support: the supports.
        vectors: the further supports, ``(F, J)``.

    Example:
        >>> followed_by(torch.eye(2), torch.ones(1, 2)).shape
        torch.Size([3, 2])
    """
    if not isinstance(support, Tensor):
        return replace(support, shared=vectors)
    shared = vectors if support.dim() == 2 else vectors.expand(len(support), *vectors.shape)
    return torch.cat([support, shared.to(support.dtype)], -2)


def over_supports(measure: Callable[..., Tensor], query: Tensor, support: Vectors, *weights: Tensor) -> Tensor:
    """Apply ``measure(query, support, *weights)``; for rows of a bank query by query, to bound the memory.

    Args:
        measure: a function of queries ``(B, J)``, supports ``(K, J)`` or ``(B, K, J)``, and weights ``(B, K)``.
        query: ``(B, J)``.
        support: the supports.
        *weights: tensors ``(B, K)``.

    Returns:
        The result of ``measure`` for all queries, ``(B, ...)``.

    Example:
        >>> rows = BankRows(torch.eye(3), torch.tensor([[0, 2], [1, 1]]), torch.full((2, 2), 0.5))
        >>> over_supports(lambda query, support: query @ support.T, torch.tensor([[1.0, 2.0, 3.0]] * 2), rows)
        tensor([[1., 3.],
                [2., 2.]])
    """
    if isinstance(support, Tensor):
        return measure(query, support, *weights)
    parts = zip(query.split(1), support, *(tensor.split(1) for tensor in weights), strict=True)
    return torch.cat([measure(part, rows.to(part.dtype), *row_weights) for part, rows, *row_weights in parts])
