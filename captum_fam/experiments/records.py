"""Results that survive their process: one line per unit of work, and the settings that it was made with.

A folder holds ``run.json``, the settings, and ``records-R.jsonl``, the lines that rank R wrote, each whole or not
there. Units that have a line are done, whichever process did them, so that a run may be resumed with another number
of processes.
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
    """What a model made of the queries of a unit, one entry per query in each column.

    Attributes:
        item: position in the dataset.
        label: the true class.
        predicted: the class that the model decided for.
        confidence: in that decision; what it is depends on the protocol.
        correct: 1 where the model decided for the true class, else 0.
        numbers: further numbers of the model's own by their name in the table, such as ``"recall@2"``.
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
        """Add the entries of further queries at the end."""
        for name in ("item", "label", "predicted", "confidence", "correct"):
            getattr(self, name).extend(getattr(further, name))
        _extend(self.numbers, further.numbers)


@dataclass
class MethodColumns:
    """What the measures made of the maps of one method, one entry per explained query in each column.

    Attributes:
        nan: 1 where the map holds NaN or inf, else 0.
        empty: 1 where the map is flat, else 0.
        no_positive: 1 where the map has no positive value, else 0.
        kept: by measure, what it keeps, by names of its own.
    """

    nan: Column = field(default_factory=list)
    empty: Column = field(default_factory=list)
    no_positive: Column = field(default_factory=list)
    kept: dict[str, dict[str, Column]] = field(default_factory=dict)

    def extend(self, further: MethodColumns) -> None:
        """Add the entries of further queries at the end."""
        for name in ("nan", "empty", "no_positive"):
            getattr(self, name).extend(getattr(further, name))
        for measure, columns in further.kept.items():
            _extend(self.kept.setdefault(measure, {}), columns)


@dataclass
class UnitRecord:
    """The results of one unit: an episode, a batch, a mosaic.

    Attributes:
        unit: its number.
        queries: what the model made of the queries.
        rows: which of the queries are explained, as positions in the columns of ``queries``.
        explained: by method, what the measures made of the maps of these.
        skipped: items of the dataset that could not be used, with the reason, where the unit is the first to find out.
    """

    unit: int
    queries: QueryColumns = field(default_factory=QueryColumns)
    rows: list[int] = field(default_factory=list)
    explained: dict[str, MethodColumns] = field(default_factory=dict)
    skipped: dict[int, str] = field(default_factory=dict)

    def add_explained(self, rows: Column, explained: Mapping[str, MethodColumns]) -> None:
        """Add explained queries.

        Args:
            rows: their positions in the columns of ``queries``.
            explained: by method, what the measures made of their maps.
        """
        self.rows.extend(rows)
        for method, columns in explained.items():
            self.explained.setdefault(method, MethodColumns()).extend(columns)

    def to_json(self) -> dict[str, Any]:
        """The record as JSON has it."""
        explained = {method: vars(columns) for method, columns in self.explained.items()}
        return {**vars(self), "queries": vars(self.queries), "explained": explained}

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> UnitRecord:
        """The record that :meth:`to_json` gave, read back."""
        return cls(
            entry["unit"],
            QueryColumns(**entry["queries"]),
            entry["rows"],
            {method: MethodColumns(**columns) for method, columns in entry["explained"].items()},
            by_item(entry["skipped"]),
        )


def by_item(reasons: Mapping[str, str]) -> dict[int, str]:
    """Reasons by item, whose number JSON has made text."""
    return {int(item): reason for item, reason in reasons.items()}


def jsonable(values: Tensor) -> Column:
    """Numbers as JSON has them: None in place of NaN, and float32 in its shortest form.

    Args:
        values: one number per query, ``(B,)``.
    """
    array = values.detach().cpu().numpy()
    if array.dtype.kind != "f":
        return list(array.astype(int).tolist())
    # float32 to text and back is exact, with half the digits of a double.
    texts = array.astype(np.float32).astype(str)
    return [None if text == "nan" else float(text) for text in texts]


def as_numbers(column: Column) -> Tensor:
    """A column of numbers in float64, ``(B,)``, NaN in place of None."""
    return torch.tensor(np.array(column, dtype=float))


def _extend(columns: dict[str, Column], further: Mapping[str, Column]) -> None:
    for name, column in further.items():
        columns.setdefault(name, []).extend(column)


class ResultStore:
    """The records of one run, one line of JSON per unit.

    Args:
        folder: made where it is missing.
        settings: what the results depend on, as JSON can hold it; a folder of other settings is refused.
        ranks: the processes that write here. Default: this process alone.

    Raises:
        ValueError: if the folder has results of other settings.
        OSError: if the folder cannot be written.
    """

    def __init__(self, folder: str | Path, settings: Mapping[str, Any], ranks: Ranks | None = None) -> None:
        self.folder = Path(folder)
        self.ranks = ranks or Ranks()
        if self.ranks.is_first:
            # As JSON has the settings: a tuple is a list there.
            check_same_settings(self.folder / _SETTINGS, json.loads(json.dumps(settings)), "results of another run")
        self.ranks.wait()
        self.done = frozenset(entry["unit"] for entry in self._read())
        self._path = self.folder / f"records-{self.ranks.rank}.jsonl"
        self._file: FileIO | None = None
        self._synced = 0.0
        # No process writes before every process has read, so that all agree on what is left to do.
        self.ranks.wait()

    def append(self, record: UnitRecord) -> None:
        """Add the record of a unit; it is in the file when this returns, and on the disk within a second.

        Raises:
            OSError: if it cannot be written; what was there before is still there.
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
                f"{self._path} cannot be written: {error.strerror}. What is done is safe; make room and give the "
                "same command again",
            ) from error

    def sync(self) -> None:
        """Have the system put on the disk what it holds."""
        if self._file is not None:
            os.fsync(self._file.fileno())
            self._synced = time.monotonic()

    def close(self) -> None:
        """Put everything on the disk and close the file."""
        if self._file is not None:
            self.sync()
            self._file.close()
            self._file = None

    def records(self) -> list[UnitRecord]:
        """The records of all processes by unit."""
        by_unit = {entry["unit"]: entry for entry in self._read()}
        return [UnitRecord.from_json(by_unit[unit]) for unit in sorted(by_unit)]

    def _read(self) -> Iterator[dict[str, Any]]:
        for path in sorted(self.folder.glob("records-*.jsonl")):
            with path.open("rb") as file:
                for line in file:
                    # A line without its end was being written when the process died.
                    if line.endswith(b"\n"):
                        yield json.loads(line)


def _cut_torn_line(file: FileIO) -> None:
    """Remove what follows the last end of a line."""
    end = file.seek(0, os.SEEK_END)
    position, block = end, 1 << 16
    while position > 0:
        start = max(0, position - block)
        file.seek(start)
        line_end = file.read(position - start).rfind(b"\n")
        if line_end >= 0:
            position = start + line_end + 1
            break
        position = start
    if position < end:
        file.truncate(position)
