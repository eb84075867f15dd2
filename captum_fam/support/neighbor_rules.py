"""Which rows of a memory bank stand for a class in Eq. 11: one small function per rule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from captum_fam.support.members import Members, RowMembers, SameForAll
from captum_fam.support.search import ExactSearch

NeighborRule = Literal["predicted", "all", "vote", "within-class", "whole-class", "nearest"]
Chosen = tuple[Tensor, Members]
"""Rows of the bank for each query, ``(B, K)``, and which of them stand for which class."""


@dataclass(frozen=True)
class Candidates:
    """What a rule chooses from.

    Attributes:
        query: embeddings ``(B, J)``.
        nearest: the rows that have voted, the most similar first, ``(B, K)``.
        similarities: of the query to these rows, ``(B, K)``.
        classes: the class of each query that rows are to stand for, ``(B,)``.
        every_class: whether rows of every class are chosen, as a foil needs them.
        labels: of all rows of the bank, ``(M,)``.
        class_names: C names.
        k: how many rows vote.
        temperature: of the vote.
        exclude: rows that are left out for each query, ``(B, E)``; None: none.
        rows: the search among the rows of the bank.
    """

    query: Tensor
    nearest: Tensor
    similarities: Tensor
    classes: Tensor
    every_class: bool
    labels: Tensor
    class_names: tuple[str, ...]
    k: int
    temperature: float
    exclude: Tensor | None
    rows: ExactSearch

    def among_nearest(self, weights: Tensor) -> Chosen:
        """The rows of each class among the nearest, weighted by ``(B, K)``."""
        remedy = f' among the {self.nearest.shape[1]} nearest rows; use neighbors="within-class", or a larger k'
        return self.nearest, RowMembers(self.labels[self.nearest], weights, self.class_names, remedy)

    def by_class(self, choose: Callable[[Tensor, Tensor], Tensor]) -> Chosen:
        """Rows of the class of each query, or of every class, weighted equally.

        Args:
            choose: from a query ``(1, J)`` and all rows of a class to those that are chosen.
        """
        per_query = [self._rows_of(index, one, choose) for index, one in enumerate(self.query.split(1))]
        # A query with fewer rows than another is filled up with row 0, which weighs nothing.
        indices = pad_sequence(per_query, batch_first=True)
        ones = [self.similarities.new_ones(len(rows)) for rows in per_query]
        return indices, RowMembers(self.labels[indices], pad_sequence(ones, batch_first=True), self.class_names)

    def _rows_of(self, index: int, query: Tensor, choose: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        explained = int(self.classes[index])
        wanted = self.labels.unique().tolist() if self.every_class else [explained]
        chosen = []
        for label in wanted:
            rows = (self.labels == label).nonzero().squeeze(1)
            if self.exclude is not None:
                rows = rows[~torch.isin(rows, self.exclude[index])]
            if label == explained and not len(rows):
                known = 0 <= label < len(self.class_names)
                name = self.class_names[label] if known else str(label)
                raise ValueError(f"support: the bank has no row of class {name} left to compare with")
            chosen.append(choose(query, rows) if len(rows) else rows)
        return torch.cat(chosen)


def _predicted(found: Candidates) -> Chosen:
    """Those of the class among the K nearest, equally."""
    return found.among_nearest(torch.ones_like(found.similarities))


def _vote(found: Candidates) -> Chosen:
    """Those of the class among the K nearest, as they vote: exp(s / temperature)."""
    labels = found.labels[found.nearest]
    # Relative to the nearest row of the same class: relative to the nearest of all, a far class would underflow.
    best = found.similarities.new_full((len(labels), len(found.class_names)), -torch.inf)
    best = best.scatter_reduce(1, labels, found.similarities, "amax").gather(1, labels)
    return found.among_nearest(((found.similarities - best) / found.temperature).exp())


def _all(found: Candidates) -> Chosen:
    """All of the K nearest, whatever their class, equally."""
    weights = torch.full_like(found.similarities, 1 / found.nearest.shape[1])
    return found.nearest, SameForAll(weights, len(found.class_names))


def _nearest(found: Candidates) -> Chosen:
    """The nearest row, whatever its class."""
    return found.nearest[:, :1], SameForAll(torch.ones_like(found.similarities[:, :1]), len(found.class_names))


def _within_class(found: Candidates) -> Chosen:
    """The K nearest rows of the class, from the whole bank, equally."""
    return found.by_class(lambda query, rows: found.rows.nearest(query, min(found.k, len(rows)), rows)[1][0])


def _whole_class(found: Candidates) -> Chosen:
    """All rows of the class, equally."""
    return found.by_class(lambda query, rows: rows)


RULES: dict[str, Callable[[Candidates], Chosen]] = {
    "predicted": _predicted,
    "all": _all,
    "vote": _vote,
    "within-class": _within_class,
    "whole-class": _whole_class,
    "nearest": _nearest,
}
"""The rules by name."""
