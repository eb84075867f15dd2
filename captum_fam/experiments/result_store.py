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
from io import FileIO
from pathlib import Path
from typing import Any

from captum_fam._files import SETTINGS, check_same_settings, sha256_of
from captum_fam._text import printable
from captum_fam.embedding.ranks import Ranks
from captum_fam.experiments.record_checks import RecordReader, RecordRules
from captum_fam.experiments.records import UnitRecord

_SYNC_SECONDS = 1.0


class ResultStore:
    """The records of one run, one line of JSON per unit.

    Args:
        folder: folder of the results, which is created if it does not exist.
        settings: everything on which the results depend, in types that JSON can hold.
        ranks: the processes that write to the folder. Default: this process alone.
        rules: what the records can hold. Default: ``RecordRules()``, anything that has the form of a record.

    Attributes:
        done: numbers of the units that have a record.
        is_new: whether the folder held no run before.

    Raises:
        ValueError: if the folder holds results of other settings, or a line that is damaged or belongs to another run;
            the message names the file and the line.
        OSError: if the folder cannot be written.

    Example:
        >>> store = ResultStore("my-results", {"seed": 0})
        >>> store.append(UnitRecord(unit=3))
        >>> store.close()
        >>> ResultStore("my-results", {"seed": 0}).done
        frozenset({3})
    """

    def __init__(
        self,
        folder: str | Path,
        settings: Mapping[str, Any],
        ranks: Ranks | None = None,
        rules: RecordRules | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.ranks = ranks or Ranks()
        self.rules = rules or RecordRules()
        # Every line states the run, so that a file of another run is noticed.
        self._run = sha256_of(json.dumps(settings, sort_keys=True))[:16]
        self.is_new = not (self.folder / SETTINGS).exists()
        # The first process writes the file below. Wait until every process has checked whether it exists.
        self.ranks.wait()
        if self.ranks.is_first:
            # By way of JSON, which turns tuples into lists, so that the settings equal those in the file.
            check_same_settings(self.folder / SETTINGS, json.loads(json.dumps(settings)), "results of another run")
        self.ranks.wait()
        self.done = frozenset(record.unit for record in self._read())
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
        entry = {"run": self._run, **record.to_json()}
        line = memoryview(json.dumps(entry, separators=(",", ":"), allow_nan=False).encode() + b"\n")
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

    def withdraw(self) -> None:
        """Remove the settings from the folder, so that it takes a run of other settings."""
        if self.ranks.is_first:
            (self.folder / SETTINGS).unlink(missing_ok=True)

    def records(self) -> list[UnitRecord]:
        """The records of all processes, sorted by unit.

        Raises:
            ValueError: for a line that is damaged or belongs to another run.
        """
        return sorted(self._read(), key=lambda record: record.unit)

    def _read(self) -> Iterator[UnitRecord]:
        reader = RecordReader(self.rules, self._run)
        for path in sorted(self.folder.glob("records-*.jsonl")):
            with path.open("rb") as file:
                for number, line in enumerate(file, 1):
                    # A line without an end is incomplete: its process died while it wrote the line.
                    if not line.endswith(b"\n"):
                        continue
                    try:
                        yield reader.read(line)
                    except ValueError as error:
                        raise ValueError(
                            f"{path}, line {number}: {printable(error)}. Delete the file: its units are then computed "
                            "again"
                        ) from error


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
