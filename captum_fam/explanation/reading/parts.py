"""The queries of an explanation batch by batch, each with its support and its foil."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from captum_fam.explanation.reading.queries import OwnSupports
from captum_fam.support import FoilName, Gallery, LeaveOutSupport, Members, Support, SupportPerQuery, SupportSet
from captum_fam.support.members import LackingSupportError


@dataclass(frozen=True)
class Part:
    """Some queries, their support and their foil.

    Attributes:
        queries: the positions of the queries.
        support: their support.
        foil: their foil.
        n_supports: the number of supports of the whole support, K; None if it is not known. Default: None.
        rows: the position of each support in the whole support; None if it is the whole support. Default: None.
        foil_rows: the position of each support of the foil in the whole foil; None for the whole foil. Default: None.
    """

    queries: slice
    support: Support
    foil: FoilName | SupportSet | Gallery | None
    n_supports: int | None = None
    rows: Tensor | None = None
    foil_rows: Tensor | None = None

    @property
    def is_whole(self) -> bool:
        """Whether support and foil are those of all queries."""
        return self.rows is None and self.foil_rows is None

    def whole_rows(self, rows: Tensor) -> Tensor:
        """Positions in support and foil of this part as positions in the whole support and the whole foil behind it.

        Args:
            rows: ``(B, K' + F')``, with F' supports of a foil behind the K' supports.

        Returns:
            The same shape. Rows of a memory bank, and of prototypes, which are classes, stay as they are.
        """
        if self.is_whole or self.n_supports is None or (rows < 0).any():
            return rows
        kept = torch.arange(self.n_supports) if self.rows is None else self.rows
        n_foil = rows.shape[1] - len(kept)
        foil = torch.arange(n_foil) if self.foil_rows is None else self.foil_rows
        if len(foil) != n_foil:
            return rows
        return torch.cat([kept, self.n_supports + foil]).to(rows.device)[rows]


def split_queries(
    support: Support,
    own: OwnSupports,
    foil: FoilName | SupportSet | Gallery | None,
    own_foil: OwnSupports,
    n_queries: int,
    batch_size: int,
    embedder: Callable[..., Any] | None,
) -> Iterator[Part]:
    """Split queries into batches, and leave out of the support and the foil of each query what is the query itself.

    A query of whose foil something is left out is alone in its batch, unless the foil is a gallery: its mean is
    computed for each query.

    Args:
        support: the support of all queries.
        own: the supports that are a query themselves.
        foil: the foil of all queries.
        own_foil: the supports of the foil that are a query themselves.
        n_queries: the number of queries.
        batch_size: queries per batch.
        embedder: maps images to embeddings; None for a method that needs the images of the support. Such a method takes
            no support of each query, so that a query of which something is left out is alone in its batch.

    Yields:
        The parts in the order of the queries.

    Raises:
        ValueError: if a query is the only support of a class, for a method that needs images; or if a query has no
            support of a second class, for a foil of the other classes.
    """
    left_out, foil_left_out = own.left_out, own_foil.left_out
    n_supports = len(support) if isinstance(support, SupportSet) else None
    if left_out is not None and isinstance(support, SupportPerQuery):
        n_supports, support, left_out = left_out.shape[1], support.leave_out(left_out), None
    elif left_out is not None and embedder is not None:
        assert isinstance(support, SupportSet)
        support, left_out = LeaveOutSupport(support.embed(embedder), left_out), None
    if isinstance(foil, Gallery) and embedder is not None:
        # Supports of each query get scores of their own for every batch, which must not embed the gallery again.
        foil = foil.embed(embedder) if support.per_query or foil_left_out is not None else foil
        if foil_left_out is not None:
            foil = foil.without([one.nonzero().flatten().tolist() for one in foil_left_out])
            foil_left_out = None
    elif foil_left_out is not None and embedder is not None:
        assert isinstance(foil, SupportSet)
        foil = foil.embed(embedder)
    alone = torch.zeros(n_queries, dtype=torch.bool)
    for mask in (left_out, foil_left_out):
        if mask is not None:
            alone |= mask.any(1).cpu()
    for start, stop in _runs(alone.tolist(), batch_size):
        queries = slice(start, stop)
        part_foil = foil.for_queries(start, stop) if isinstance(foil, Gallery) else foil
        if not alone[start]:
            yield Part(queries, support.for_queries(start, stop), part_foil)
            continue
        own_support, kept, foil_rows = support.for_queries(start, stop), None, None
        if left_out is not None and left_out[start].any():
            kept = (~left_out[start]).nonzero().flatten().cpu()
            own_support = _rows_of(support, kept)
        if foil_left_out is not None and foil_left_out[start].any():
            foil_rows = (~foil_left_out[start]).nonzero().flatten().cpu()
            part_foil = _foil_of(foil, foil_rows)
        yield Part(queries, own_support, part_foil, n_supports, kept, foil_rows)


@contextmanager
def numbered_from(first: int) -> Iterator[None]:
    """Name queries in errors by their position among all queries, not in their batch.

    Args:
        first: the position of the first query of the batch.
    """
    try:
        yield
    except LackingSupportError as error:
        raise error.in_batch(first) from None


def check_classes(support: Support, own: OwnSupports, foil: object, target: Tensor | None) -> None:
    """Check before any map is made that each query has supports of the classes that are asked for.

    Args:
        support: the support of all queries.
        own: the supports that are a query themselves.
        foil: the foil.
        target: the class of each query, ``(B,)``; None for the predicted classes.

    Raises:
        ValueError: for queries without a support of their class, or without a support of a second class for a foil of
            the other classes. The message lists the queries.
    """
    if isinstance(support, SupportSet) and own.left_out is not None:
        members: Members = LeaveOutSupport(support, own.left_out).members()
    elif isinstance(support, LeaveOutSupport):
        members = support.members()
    elif isinstance(support, SupportPerQuery) and support.labels is not None:
        part = support if own.left_out is None else support.leave_out(own.left_out)
        members = part.members()
    else:
        return
    if isinstance(foil, str) and foil != "gallery":
        members.require_others()
    if target is not None:
        members.weights(target)


def _runs(alone: list[bool], batch_size: int) -> Iterator[tuple[int, int]]:
    """Starts and ends of batches; a query that is to be alone is a batch."""
    start = 0
    while start < len(alone):
        stop = start + 1
        while stop < min(len(alone), start + batch_size) and not alone[start] and not alone[stop]:
            stop += 1
        yield start, stop
        start = stop


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


def _foil_of(foil: object, rows: Tensor) -> SupportSet | Gallery:
    """Some supports of a foil, with the classes that are left; or some images of a gallery."""
    support = foil.source if isinstance(foil, Gallery) else foil
    assert isinstance(support, SupportSet)
    classes, labels = support.labels.cpu()[rows].unique(return_inverse=True)
    names = [support.class_names[label] for label in classes.tolist()]
    kept = SupportSet(support.inputs[rows.to(support.inputs.device)], labels, names, support.batch_size)
    return Gallery(kept) if isinstance(foil, Gallery) else kept
