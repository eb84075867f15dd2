"""Which rows of a memory bank are the supports of a class in Eq. 11: one small function per rule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from captum_fam._text import printable
from captum_fam.support.members import Members, RowMembers, SameForAll
from captum_fam.support.search import ExactSearch

NeighborRule = Literal["predicted", "all", "vote", "within-class", "whole-class", "nearest"]
Chosen = tuple[Tensor, Members]
"""Rows of the bank for each query, ``(B, K)``, and their weights in the score of each class."""


@dataclass(frozen=True)
class Candidates:
    """Everything that a rule may use to choose rows.

    Attributes:
        query: embeddings ``(B, J)``.
        nearest: the K nearest rows of each query, the most similar first, ``(B, K)``.
        similarities: the similarity of each query to these rows, ``(B, K)``; -inf for rows that only fill up the K of
            a query.
        classes: the class of each query for which rows are chosen, ``(B,)``.
        every_class: whether rows are chosen for all other classes too, as foils need them.
        labels: the classes of all rows of the bank, ``(M,)``.
        class_names: C names.
        k: how many rows vote.
        temperature: the temperature of the votes.
        exclude: rows that are left out for each query, ``(B, E)``, and -1 for none; None if no row is left out.
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

    @property
    def is_left(self) -> Tensor:
        """1 for the nearest rows, and 0 for rows that only fill up the K of a query, ``(B, K)``."""
        return (self.similarities > -torch.inf).to(self.similarities.dtype)

    def among_nearest(self, weights: Tensor) -> Chosen:
        """Choose the rows of each class among the K nearest rows.

        With ``every_class``, a class without a row among the K nearest gets the nearest of its rows. So every class has
        a score, and the score does not jump when the last row of a class leaves the K nearest.

        Args:
            weights: the weight of each of the K nearest rows, ``(B, K)``.
        """
        nearest, labels = self.nearest, self.labels[self.nearest]
        remedy = f' among the {nearest.shape[1]} nearest rows; use neighbors="within-class", or a larger k'
        if self.every_class:
            n_classes = len(self.class_names)
            counts = torch.zeros(len(labels), n_classes, dtype=labels.dtype, device=labels.device)
            is_missing = counts.scatter_add_(1, labels, torch.ones_like(labels)) == 0
            # The second search is for batches in which a class is missing.
            if is_missing.any():
                similarities, rows = self.rows.nearest_of_classes(self.query, n_classes, self.exclude)
                is_missing &= similarities.isfinite()
                classes = torch.arange(n_classes, device=rows.device).expand_as(rows)
                nearest, labels = torch.cat([nearest, rows], 1), torch.cat([labels, classes], 1)
                weights = torch.cat([weights, is_missing.to(weights.dtype)], 1)
        return nearest, RowMembers(labels, weights, self.class_names, remedy)

    def by_class(self, choose: Callable[[Tensor, Tensor], Tensor]) -> Chosen:
        """Choose rows of the class of each query, or of every class with ``every_class``, with equal weights.

        Args:
            choose: gets queries ``(B, J)`` and all rows of a class ``(n,)``, and returns the chosen rows ``(B, m)``.
        """
        rows = self.rows.rows_of_classes
        if self.every_class and self.exclude is None:
            self._require_rows(rows)
            indices = torch.cat([choose(self.query, of_class) for of_class in rows if len(of_class)], 1)
            weights = torch.ones_like(indices, dtype=self.query.dtype)
            return indices, RowMembers(self.labels[indices], weights, self.class_names)
        per_query = [self._rows_of(index, query, rows, choose) for index, query in enumerate(self.query.split(1))]
        # Queries with fewer rows than others are padded with row 0, which gets the weight zero.
        indices = pad_sequence(per_query, batch_first=True)
        ones = [self.similarities.new_ones(len(chosen)) for chosen in per_query]
        return indices, RowMembers(self.labels[indices], pad_sequence(ones, batch_first=True), self.class_names)

    def _rows_of(
        self, index: int, query: Tensor, rows: Sequence[Tensor], choose: Callable[[Tensor, Tensor], Tensor]
    ) -> Tensor:
        """The rows that ``choose`` chooses for one query, class after class."""
        explained = int(self.classes[index])
        chosen = []
        for label in range(len(rows)) if self.every_class else [explained]:
            of_class = rows[label] if 0 <= label < len(rows) else self.labels[:0]
            if self.exclude is not None:
                of_class = of_class[~torch.isin(of_class, self.exclude[index])]
            if label == explained and not len(of_class):
                raise ValueError(self._no_row(label))
            chosen.append(choose(query, of_class)[0] if len(of_class) else of_class)
        return torch.cat(chosen)

    def _require_rows(self, rows: Sequence[Tensor]) -> None:
        for label in self.classes.unique().tolist():
            if not 0 <= label < len(rows) or not len(rows[label]):
                raise ValueError(self._no_row(label))

    def _no_row(self, label: int) -> str:
        name = self.class_names[label] if 0 <= label < len(self.class_names) else str(label)
        return f"support: the bank has no row of class {printable(name)} left to compare with"


def _predicted(candidates: Candidates) -> Chosen:
    """Rows of the class among the K nearest rows, with equal weights."""
    return candidates.among_nearest(candidates.is_left)


def _vote(candidates: Candidates) -> Chosen:
    """Rows of the class among the K nearest rows, with the weights of their votes, exp(s / temperature)."""
    similarities, labels = candidates.similarities, candidates.labels[candidates.nearest]
    # The largest similarity of each class is subtracted before exp, which changes no ratio within the class. With the
    # largest similarity of all rows instead, all weights of a less similar class could underflow.
    best = similarities.new_full((len(labels), len(candidates.class_names)), -torch.inf)
    best = best.scatter_reduce(1, labels, similarities, "amax").gather(1, labels)
    votes = ((similarities - best) / candidates.temperature).exp()
    return candidates.among_nearest(torch.where(candidates.is_left > 0, votes, 0.0))


def _all(candidates: Candidates) -> Chosen:
    """The K nearest rows of any class, with equal weights."""
    weights = candidates.is_left / candidates.is_left.sum(1, keepdim=True)
    return candidates.nearest, SameForAll(weights, len(candidates.class_names))


def _nearest(candidates: Candidates) -> Chosen:
    """The nearest row of any class."""
    weights = torch.ones_like(candidates.similarities[:, :1])
    return candidates.nearest[:, :1], SameForAll(weights, len(candidates.class_names))


def _within_class(candidates: Candidates) -> Chosen:
    """The K nearest rows of the class, from the whole bank, with equal weights."""

    def nearest(query: Tensor, rows: Tensor) -> Tensor:
        _, indices = candidates.rows.nearest(query, min(candidates.k, len(rows)), rows)
        return indices

    return candidates.by_class(nearest)


def _whole_class(candidates: Candidates) -> Chosen:
    """All rows of the class, with equal weights."""
    return candidates.by_class(lambda query, rows: rows.expand(len(query), -1))


RULES: dict[str, Callable[[Candidates], Chosen]] = {
    "predicted": _predicted,
    "all": _all,
    "vote": _vote,
    "within-class": _within_class,
    "whole-class": _whole_class,
    "nearest": _nearest,
}
"""The functions of the rules, by the name of the rule."""
