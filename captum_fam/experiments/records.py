"""Results that survive their process: a line a unit of work, and the settings they were made with.

A folder holds ``run.json``, the settings, and ``records-R.jsonl``, the lines that rank R wrote, each whole or not
there. Units that have a line are done, whichever process did them, so that a run may be resumed with another number
of processes.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from io import FileIO
from pathlib import Path
from typing import Any

from captum_fam._files import claim
from captum_fam.experiments.distributed import Ranks

_SETTINGS = "run.json"
_SYNC_SECONDS = 1.0

Record = dict[str, Any]


class ResultStore:
    """The records of one run, one JSON object a unit.

    Args:
        folder: made where it is not there.
        settings: what the results depend on, as JSON can hold it; a folder of other settings is refused.
        ranks: the processes that write here.

    Raises:
        ValueError: if the folder has results of other settings.
        OSError: if the folder cannot be written.
    """

    def __init__(self, folder: str | Path, settings: Mapping[str, Any], ranks: Ranks | None = None) -> None:
        self.folder = Path(folder)
        self.ranks = ranks or Ranks()
        if self.ranks.is_first:
            claim(self.folder / _SETTINGS, json.loads(json.dumps(settings)), "results of another run")
        self.ranks.wait()
        self.done = frozenset(record["unit"] for record in self._read())
        self._path = self.folder / f"records-{self.ranks.rank}.jsonl"
        self._file: FileIO | None = None
        self._synced = 0.0
        # All have read before any writes, so that they agree on what is left to do.
        self.ranks.wait()

    def append(self, record: Record) -> None:
        """Add the record of a unit; it is in the file when this returns, and on the disk within a second.

        Raises:
            OSError: if it cannot be written; what was there before is still there.
        """
        if self._file is None:
            self._file = FileIO(self._path, "a+b")
            _cut_torn_line(self._file)
        end = self._file.seek(0, os.SEEK_END)
        line = memoryview(json.dumps(record, separators=(",", ":"), allow_nan=False).encode() + b"\n")
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

    def records(self) -> list[Record]:
        """The records of all processes by unit."""
        by_unit = {record["unit"]: record for record in self._read()}
        return [by_unit[unit] for unit in sorted(by_unit)]

    def _read(self) -> Iterator[Record]:
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
        found = file.read(position - start).rfind(b"\n")
        if found >= 0:
            position = start + found + 1
            break
        position = start
    if position < end:
        file.truncate(position)
