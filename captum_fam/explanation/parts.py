"""The queries of an explanation batch by batch, each with its support."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from captum_fam.explanation.queries import OwnSupports
from captum_fam.support import Support, SupportSet
from captum_fam.support.leave_out import LeaveOutSupport


@dataclass(frozen=True)
class Part:
    """Some queries and their support.

    Attributes:
        queries: the positions of the queries.
        support: their support.
        rows: the position of each support in the whole support, ``(K,)``; None if it is the whole support. Default:
            None.
    """

    queries: slice
    support: Support
    rows: Tensor | None = None

    def whole_rows(self, rows: Tensor) -> Tensor:
        """Positions in the support of this part as positions in the whole support.

        Args:
            rows: ``(B, K + F)``, with F supports of a foil behind the K supports.

        Returns:
            The same shape.
        """
        if self.rows is None:
            return rows
        behind = torch.arange(rows.shape[1] - len(self.rows)) + int(self.rows[-1]) + 1
        return torch.cat([self.rows, behind]).to(rows.device)[rows]


def split_queries(
    support: Support, own: OwnSupports, n_queries: int, batch_size: int, embedder: Callable[..., Any] | None
) -> Iterator[Part]:
    """Split queries into batches, and leave out of the support of each query what is the query itself.

    Args:
        support: the support of all queries.
        own: the supports that are a query themselves.
        n_queries: the number of queries.
        batch_size: queries per batch.
        embedder: maps images to embeddings; None for a method that needs the images of the support. Such a method takes
            no support of each query, so that a query of which something is left out is alone in its batch.

    Yields:
        The parts in the order of the queries.

    Raises:
        ValueError: if a query is the only support of a class, for a method that needs images.
    """
    left_out = own.left_out
    if left_out is not None and embedder is not None:
        assert isinstance(support, SupportSet)
        support, left_out = LeaveOutSupport(support.embed(embedder), left_out), None
    for start in range(0, n_queries, batch_size):
        stop = min(start + batch_size, n_queries)
        if left_out is None or not left_out[start:stop].any():
            yield Part(slice(start, stop), support.for_queries(start, stop))
            continue
        for query in range(start, stop):
            kept = (~left_out[query]).nonzero().flatten().cpu()
            yield Part(slice(query, query + 1), _rows_of(support, kept), kept)


def _rows_of(support: Support, rows: Tensor) -> SupportSet:
    """Some supports of a set, with all of its classes."""
    assert isinstance(support, SupportSet)
    labels = support.labels.cpu()[rows]
    counts = labels.bincount(minlength=support.n_classes)
    if not counts.all():
        raise ValueError(
            f"support: a query is the only image of the class {support.class_names[int(counts.argmin())]!r}, and a "
            "method that compares positions of images needs another image of each class; leave out the query or the "
            "class"
        )
    return SupportSet(support.inputs[rows.to(support.inputs.device)], labels, support.class_names, support.batch_size)
