"""The results of one unit of work: columns of numbers, which JSON can hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

Column = list[Any]
"""One JSON value per query: a number, a text, or None where nothing is defined."""


@dataclass
class QueryColumns:
    """The answers of a model to the queries of a unit, one entry per query in each column.

    Attributes:
        item: position of the query in the data set.
        label: the true class.
        predicted: the predicted class.
        confidence: confidence of the prediction, whose definition depends on the protocol.
        correct: 1 if the predicted class is the true class, else 0.
        numbers: further numbers of the model, by their name in the table, such as ``"recall@2"``.

    Example:
        >>> columns = QueryColumns(item=[4], label=[0], predicted=[1], confidence=[0.9], correct=[0])
        >>> columns.extend(QueryColumns(item=[7], label=[1], predicted=[1], confidence=[0.8], correct=[1]))
        >>> columns.item, columns.correct
        ([4, 7], [0, 1])
    """

    item: Column = field(default_factory=list)
    label: Column = field(default_factory=list)
    predicted: Column = field(default_factory=list)
    confidence: Column = field(default_factory=list)
    correct: Column = field(default_factory=list)
    numbers: dict[str, Column] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.item)

    def extend(self, further: QueryColumns) -> None:
        """Append the entries of further queries.

        Args:
            further: columns of the further queries.
        """
        for name in ("item", "label", "predicted", "confidence", "correct"):
            getattr(self, name).extend(getattr(further, name))
        _extend(self.numbers, further.numbers)


@dataclass
class MethodColumns:
    """The values of the measures for the maps of one method, one entry per explained query in each column.

    Attributes:
        nan: 1 if the map holds NaN or inf, else 0.
        empty: 1 if the map is flat, else 0.
        no_positive: 1 if the map has no positive value, else 0.
        kept: the values of each measure, by the name of the measure and the name of the value.
    """

    nan: Column = field(default_factory=list)
    empty: Column = field(default_factory=list)
    no_positive: Column = field(default_factory=list)
    kept: dict[str, dict[str, Column]] = field(default_factory=dict)

    def extend(self, further: MethodColumns) -> None:
        """Append the entries of further queries.

        Args:
            further: columns of the further queries.
        """
        for name in ("nan", "empty", "no_positive"):
            getattr(self, name).extend(getattr(further, name))
        for measure, columns in further.kept.items():
            _extend(self.kept.setdefault(measure, {}), columns)


@dataclass
class UnitRecord:
    """The results of one unit: an episode, a batch or a mosaic.

    Attributes:
        unit: number of the unit.
        queries: answers of the model to the queries.
        rows: positions of the explained queries in the columns of ``queries``.
        explained: values of the measures for the explained queries, by method.
        skipped: reason for each item of the unit that could not be used, by position in the data set, if the protocol
            reads its images unit by unit.

    Example:
        >>> record = UnitRecord(3, QueryColumns(item=[4], label=[0], predicted=[1], confidence=[0.9], correct=[0]))
        >>> UnitRecord.from_json(record.to_json()) == record
        True
    """

    unit: int
    queries: QueryColumns = field(default_factory=QueryColumns)
    rows: list[int] = field(default_factory=list)
    explained: dict[str, MethodColumns] = field(default_factory=dict)
    skipped: dict[int, str] = field(default_factory=dict)

    def add_explained(self, rows: Column, explained: Mapping[str, MethodColumns]) -> None:
        """Append explained queries.

        Args:
            rows: positions of the queries in the columns of ``queries``.
            explained: values of the measures for these queries, by method.
        """
        self.rows.extend(rows)
        for method, columns in explained.items():
            self.explained.setdefault(method, MethodColumns()).extend(columns)

    def to_json(self) -> dict[str, Any]:
        """The record in types that JSON can hold."""
        explained = {method: vars(columns) for method, columns in self.explained.items()}
        return {**vars(self), "queries": vars(self.queries), "explained": explained}

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> UnitRecord:
        """The record of an entry.

        Args:
            entry: result of :meth:`to_json`, which may have been written and read.
        """
        return cls(
            entry["unit"],
            QueryColumns(**entry["queries"]),
            entry["rows"],
            {method: MethodColumns(**columns) for method, columns in entry["explained"].items()},
            by_item(entry["skipped"]),
        )


def by_item(reasons: Mapping[str, str]) -> dict[int, str]:
    """Reasons by item, from JSON, in which the number of an item is a text.

    Args:
        reasons: reasons by the text of the number.

    Raises:
        ValueError: if a key is no number, or a reason is no text.

    Example:
        >>> by_item({"7": "corrupt"})
        {7: 'corrupt'}
    """
    if not all(isinstance(reason, str) for reason in reasons.values()):
        raise ValueError("expected a text for every item")
    return {int(item): reason for item, reason in reasons.items()}


def jsonable(values: Tensor) -> Column:
    """Numbers as JSON values: None in place of NaN, and float32 numbers with as few digits as possible.

    Args:
        values: one number per query, ``(B,)``.

    Returns:
        A list of B values.

    Example:
        >>> jsonable(torch.tensor([0.1, torch.nan]))
        [0.1, None]
    """
    array = values.detach().cpu().numpy()
    if array.dtype.kind != "f":
        return list(array.astype(int).tolist())
    # The shortest text of a float32 number gives the same float32 number, and has half as many digits as a double.
    texts = array.astype(np.float32).astype(str)
    return [None if text == "nan" else float(text) for text in texts]


def as_numbers(column: Column) -> Tensor:
    """A column of numbers as a tensor.

    Args:
        column: B numbers, or None for an undefined number.

    Returns:
        float64 ``(B,)``, NaN in place of None.

    Example:
        >>> as_numbers([0.5, None])
        tensor([0.5000,    nan], dtype=torch.float64)
    """
    return torch.tensor(np.array(column, dtype=float))


def _extend(columns: dict[str, Column], further: Mapping[str, Column]) -> None:
    for name, column in further.items():
        columns.setdefault(name, []).extend(column)
