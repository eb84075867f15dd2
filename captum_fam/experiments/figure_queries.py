"""Chooses the queries for a figure of several models."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from captum_fam.experiments.model_run import ModelRun
from captum_fam.experiments.records import UnitRecord

Which = Literal["correct", "wrong", "any"]
QueryName = int | tuple[int, int]
"""The position of a query in the data set, or ``(episode, position)``."""
Place = tuple[UnitRecord, int]
"""A record, and the row of a query in this record."""


@dataclass(frozen=True)
class FigureQuery:
    """A query of a figure, with its place in the records.

    Attributes:
        unit: number of the episode or batch.
        item: position of the query in the data set.
        places: for each run, the record of the query, and the row of the query in this record.
        by_unit: whether the unit is an episode. Default: False.
    """

    unit: int
    item: int
    places: tuple[Place, ...]
    by_unit: bool = False

    @property
    def name(self) -> str:
        """``"ITEM"``; or ``"EPISODE:ITEM"`` for episodes, because an item may be a query of several episodes."""
        return f"{self.unit}:{self.item}" if self.by_unit else str(self.item)

    def column(self, name: Literal["label", "predicted", "correct"]) -> list[Any]:
        """The entries of the query in a column of the records.

        Args:
            name: name of the column.

        Returns:
            One entry per run.
        """
        return [getattr(record.queries, name)[row] for record, row in self.places]

    def fits(self, which: Which, runs: Sequence[ModelRun]) -> bool:
        """Whether the models answered as ``which`` requires.

        Args:
            which: as in :func:`choose_queries`.
            runs: the runs of the models.
        """
        if which == "any":
            return True
        correct = self.column("correct")
        if which == "correct":
            return all(correct)
        labels = self.column("label")
        return not any(correct) and all(
            run.prepared.has_support(record, row, label)
            for run, (record, row), label in zip(runs, self.places, labels, strict=True)
        )


def choose_queries(
    runs: Sequence[ModelRun],
    which: Which = "correct",
    count: int = 6,
    seed: int = 0,
    items: Sequence[QueryName] = (),
) -> list[FigureQuery]:
    """Draw queries at random, at most one per episode, and each image at most once.

    Args:
        runs: runs of the models for the same queries.
        which: ``"correct"`` for queries for which all models are correct; ``"wrong"`` for queries for which all models
            are wrong, and for which there is an image of the true class to compare with; ``"any"`` for all queries.
            Default: ``"correct"``.
        count: number of queries; the result has fewer queries if there are no more. Default: 6.
        seed: seed of the choice. Default: 0.
        items: choose these queries instead, by their position in the data set. For episodes an entry is ``(episode,
            position)``; the position alone is enough for a query of a single episode. Default: none.

    Returns:
        The queries in the order of the figure.

    Raises:
        ValueError: if the models had different episodes, if there is no suitable query, or if ``items`` has a query
            twice or a position that is a query of several episodes.

    Warns:
        UserWarning: if some models could not use all images, so that the accuracies are of different queries.
    """
    asked = _shared_queries(runs)
    fitting = [query for query in asked if query.fits(which, runs)]
    if not fitting:
        answer = {"correct": "right", "wrong": "wrong"}.get(which, "")
        raise ValueError(f"no query that all models get {answer}, among {len(asked)}: choose another --which")
    if items:
        return _named_queries(asked, fitting, which, items)
    random.Random(seed).shuffle(fitting)
    return list(_distinct(fitting))[:count]


def _shared_queries(runs: Sequence[ModelRun]) -> list[FigureQuery]:
    """The queries that all runs have."""
    first = runs[0]
    by_unit = first.prepared.protocol.by_unit
    answers = [_answers(run) for run in runs]
    for run, answered in zip(runs, answers, strict=True):
        if by_unit and answered.keys() != answers[0].keys():
            raise ValueError(
                f"models {first.label} and {run.label} have different episodes, because one of them could not use some "
                f"images: {first.label} left out {len(first.prepared.skipped)}, {run.label} "
                f"{len(run.prepared.skipped)}"
            )
    shared = [key for key in answers[0] if all(key in answered for answered in answers)]
    if any(len(answered) > len(shared) for answered in answers):
        counts = ", ".join(f"{run.label} {len(answered)}" for run, answered in zip(runs, answers, strict=True))
        warnings.warn(
            f"the accuracies are of different queries, because some models could not use all images: {counts}; "
            f"the figure shows queries among the {len(shared)} that all models have",
            stacklevel=3,  # the caller of choose_queries
        )
    return [FigureQuery(*key, tuple(answered[key] for answered in answers), by_unit) for key in shared]


def _answers(run: ModelRun) -> dict[tuple[int, int], Place]:
    """The place of each query in the records, by unit and item."""
    return {
        (record.unit, item): (record, row) for record in run.records for row, item in enumerate(record.queries.item)
    }


def _named_queries(
    asked: Sequence[FigureQuery], fitting: Sequence[FigureQuery], which: Which, items: Sequence[QueryName]
) -> list[FigureQuery]:
    """The queries that are named, in the order of their names."""
    fitting_names = {query.name for query in fitting}
    named = [(_as_text(item), _find(asked, item)) for item in items]
    unfit = [name for name, query in named if query is None or query.name not in fitting_names]
    if unfit:
        raise ValueError(f"items: {', '.join(unfit)} is no query for --which {which}")
    queries = [query for _, query in named if query is not None]
    names = [query.name for query in queries]
    duplicates = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if duplicates:
        raise ValueError(f"items: {', '.join(duplicates)} is given twice; a query has one row")
    return queries


def _as_text(item: QueryName) -> str:
    return f"{item[0]}:{item[1]}" if isinstance(item, tuple) else str(item)


def _find(asked: Sequence[FigureQuery], item: QueryName) -> FigureQuery | None:
    """The query of a name; None if there is no such query."""
    if isinstance(item, tuple):
        return next((query for query in asked if (query.unit, query.item) == item), None)
    matching = [query for query in asked if query.item == item]
    if len(matching) > 1:
        raise ValueError(
            f"items: {item} is a query of {len(matching)} episodes; name the episode, as in {matching[0].name} or "
            f"{matching[1].name} (episode:item)"
        )
    return matching[0] if matching else None


def _distinct(queries: Sequence[FigureQuery]) -> Iterator[FigureQuery]:
    """The queries, without a query whose episode or image an earlier query has."""
    units: set[int] = set()
    items: set[int] = set()
    for query in queries:
        if query.item not in items and not (query.by_unit and query.unit in units):
            items.add(query.item)
            units.add(query.unit)
            yield query
