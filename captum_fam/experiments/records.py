"""Results that survive the end of a process: one line per unit of work, and the settings of the run.

A folder holds the settings, ``run.json``, and the lines of each process, ``records-R.jsonl`` for rank R. A line is
complete, or it does not count. A unit with a line is done, whichever process wrote the line. So a run can be resumed
with another number of processes.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from captum_fam._files import check_same_settings
from captum_fam.experiments.distributed import Ranks

_SETTINGS = "run.json"
_SYNC_SECONDS = 1.0

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

    Example:
        >>> by_item({"7": "corrupt"})
        {7: 'corrupt'}
    """
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


class ResultStore:
    """The records of one run, one line of JSON per unit.

    Args:
        folder: folder of the results, which is created if it does not exist.
        settings: everything on which the results depend, in types that JSON can hold.
        ranks: the processes that write to the folder. Default: this process alone.

    Attributes:
        done: numbers of the units that have a record.

    Raises:
        ValueError: if the folder holds results of other settings.
        OSError: if the folder cannot be written.

    Example:
        >>> store = ResultStore("my-results", {"seed": 0})
        >>> store.append(UnitRecord(unit=3))
        >>> store.close()
        >>> ResultStore("my-results", {"seed": 0}).done
        frozenset({3})
    """

    def __init__(self, folder: str | Path, settings: Mapping[str, Any], ranks: Ranks | None = None) -> None:
        self.folder = Path(folder)
        self.ranks = ranks or Ranks()
        if self.ranks.is_first:
            # By way of JSON, which turns tuples into lists, so that the settings equal those in the file.
            check_same_settings(self.folder / _SETTINGS, json.loads(json.dumps(settings)), "results of another run")
        self.ranks.wait()
        self.done = frozenset(entry["unit"] for entry in self._read())
        self._path = self.folder / f"records-{self.ranks.rank}.jsonl"
        self._file: FileIO | None = None
        self._synced = 0.0
        # Wait until every process has read the records, so that all processes have the same remaining units.
        self.ranks.wait()

    def append(self, record: UnitRecord) -> None:
        """Append the record of a unit.

        When this method returns, the record is in the file. It is on the disk after the next call that comes a second
        or more later, or after :meth:`close`.

        Args:
            record: record of the unit.

        Raises:
            OSError: if the record cannot be written; the records before are still in the file.
        """
        if self._file is None:
            self._file = FileIO(self._path, "a+b")
            _cut_torn_line(self._file)
        end = self._file.seek(0, os.SEEK_END)
        line = memoryview(json.dumps(record.to_json(), separators=(",", ":"), allow_nan=False).encode() + b"\n")
        try:
            while line:
                line = line[self._file.write(line) :]
            if time.monotonic() - self._synced > _SYNC_SECONDS:
                self.sync()
        except OSError as error:
            self._file.truncate(end)
            raise OSError(
                error.errno,
                f"{self._path} cannot be written: {error.strerror}. The results so far are safe; free some space and "
                "repeat the command",
            ) from error

    def sync(self) -> None:
        """Wait until the system has written all records to the disk."""
        if self._file is not None:
            os.fsync(self._file.fileno())
            self._synced = time.monotonic()

    def close(self) -> None:
        """Write all records to the disk, and close the file."""
        if self._file is not None:
            self.sync()
            self._file.close()
            self._file = None

    def records(self) -> list[UnitRecord]:
        """The records of all processes, sorted by unit."""
        by_unit = {entry["unit"]: entry for entry in self._read()}
        return [UnitRecord.from_json(by_unit[unit]) for unit in sorted(by_unit)]

    def _read(self) -> Iterator[dict[str, Any]]:
        for path in sorted(self.folder.glob("records-*.jsonl")):
            with path.open("rb") as file:
                for line in file:
                    # A line without an end is incomplete: its process died while it wrote the line.
                    if line.endswith(b"\n"):
                        yield json.loads(line)


def _cut_torn_line(file: FileIO) -> None:
    """Remove an incomplete last line."""
    end = file.seek(0, os.SEEK_END)
    # The end of the last complete line is searched backward, block by block.
    position, block_size = end, 1 << 16
    while position > 0:
        start = max(0, position - block_size)
        file.seek(start)
        line_end = file.read(position - start).rfind(b"\n")
        if line_end >= 0:
            position = start + line_end + 1
            break
        position = start
    if position < end:
        file.truncate(position)
