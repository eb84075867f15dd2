"""Choosing the queries that a figure of several models shows."""

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
"""The position of a query in the dataset, or ``(episode, position)``."""
Place = tuple[UnitRecord, int]
"""A record, and the row of a query in it."""


@dataclass(frozen=True)
class FigureQuery:
    """A query of a figure, and where the records have it.

    Attributes:
        unit: the episode or batch.
        item: its position in the dataset.
        places: for each run, the record and the row of the query in it.
        by_unit: whether the unit is an episode.
    """

    unit: int
    item: int
    places: tuple[Place, ...]
    by_unit: bool = False

    @property
    def name(self) -> str:
        """``"ITEM"``, or of an episode, where an item may be a query of several, ``"EPISODE:ITEM"``."""
        return f"{self.unit}:{self.item}" if self.by_unit else str(self.item)

    def column(self, name: Literal["label", "predicted", "correct"]) -> list[Any]:
        """What the records have of the query in a column, one entry per run."""
        return [getattr(record.queries, name)[row] for record, row in self.places]

    def fits(self, which: Which, runs: Sequence[ModelRun]) -> bool:
        """Whether the models, of which ``runs`` has the answers, answered as asked for; see :func:`choose_queries`."""
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
    """Queries that all models get right, or wrong, drawn at random; at most one per episode, and no image twice.

    Args:
        runs: of the same queries.
        which: ``"correct"``, the default: by all models; ``"wrong"``: by all, where there is something of the true
            class to compare with; or ``"any"``.
        count: how many; fewer where there are no more. Default: 6.
        seed: of the choice. Default: 0.
        items: take these instead, by their position in the dataset; of episodes as ``(episode, position)``, where
            the position alone will do for a query of one episode only.

    Raises:
        ValueError: if the models were not asked the same episodes, there is no such query, or ``items`` has one that
            is a query of several episodes or has one twice.

    Warns:
        UserWarning: if the models could use different images, so that their accuracies are of different queries.
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
    """The queries that all models were asked."""
    first = runs[0]
    by_unit = first.prepared.protocol.by_unit
    answers = [_answers(run) for run in runs]
    for run, answered in zip(runs, answers, strict=True):
        if by_unit and answered.keys() != answers[0].keys():
            raise ValueError(
                f"models {first.label} and {run.label} have other episodes, as one of them could not use images that "
                f"the other could: {len(run.prepared.skipped)} were left out, {len(first.prepared.skipped)} there"
            )
    shared = [key for key in answers[0] if all(key in answered for answered in answers)]
    if any(len(answered) > len(shared) for answered in answers):
        counts = ", ".join(f"{run.label} {len(answered)}" for run, answered in zip(runs, answers, strict=True))
        warnings.warn(
            f"the accuracies are of different queries, as models could not use images that others could: {counts}; "
            f"the figure is drawn from the {len(shared)} that all have",
            stacklevel=3,  # the caller of choose_queries
        )
    return [FigureQuery(*key, tuple(answered[key] for answered in answers), by_unit) for key in shared]


def _answers(run: ModelRun) -> dict[tuple[int, int], Place]:
    """Where the records have each query, by unit and item."""
    return {
        (record.unit, item): (record, row) for record in run.records for row, item in enumerate(record.queries.item)
    }


def _named_queries(
    asked: Sequence[FigureQuery], fitting: Sequence[FigureQuery], which: Which, items: Sequence[QueryName]
) -> list[FigureQuery]:
    """The queries that are named, in the order of their names."""
    fitting_names = {query.name for query in fitting}
    named = [(_written(item), _find(asked, item)) for item in items]
    unfit = [name for name, query in named if query is None or query.name not in fitting_names]
    if unfit:
        raise ValueError(f"items: {', '.join(unfit)} is no query that --which {which} asks for")
    queries = [query for _, query in named if query is not None]
    names = [query.name for query in queries]
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if twice:
        raise ValueError(f"items: {', '.join(twice)} is given twice; a query has one row")
    return queries


def _written(item: QueryName) -> str:
    return f"{item[0]}:{item[1]}" if isinstance(item, tuple) else str(item)


def _find(asked: Sequence[FigureQuery], item: QueryName) -> FigureQuery | None:
    """The query of this name; None where no such query was asked."""
    if isinstance(item, tuple):
        return next((query for query in asked if (query.unit, query.item) == item), None)
    matching = [query for query in asked if query.item == item]
    if len(matching) > 1:
        raise ValueError(
            f"items: {item} is a query of {len(matching)} episodes; say of which, as {matching[0].name} or "
            f"{matching[1].name} (episode:item)"
        )
    return matching[0] if matching else None


def _distinct(queries: Sequence[FigureQuery]) -> Iterator[FigureQuery]:
    """The queries without those of an episode or of an image that an earlier query has."""
    units: set[int] = set()
    items: set[int] = set()
    for query in queries:
        if query.item not in items and not (query.by_unit and query.unit in units):
            items.add(query.item)
            units.add(query.unit)
            yield query
