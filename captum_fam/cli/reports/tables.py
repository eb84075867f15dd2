"""Lists that people and search engines write, CSV and JSON lines, read with the number of each line for messages."""

from __future__ import annotations

import codecs
import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from captum_fam._text import first_line, printable, printable_path

_DELIMITERS = ",;\t"


@dataclass(frozen=True)
class ListLine:
    """A line of a list.

    Attributes:
        path: the file of the list.
        number: the number of the line, counted from one; of a CSV row of several lines, the last one.
        values: the values by column or key.
    """

    path: Path
    number: int
    values: Mapping[str, Any]

    def refuse(self, reason: str) -> NoReturn:
        """Raise an error that names the file and the line.

        Args:
            reason: what is wrong, and what was expected.

        Raises:
            ValueError: always.

        Example:
            >>> ListLine(Path("pairs.csv"), 3, {}).refuse("left is empty")
            Traceback (most recent call last):
            ...
            ValueError: pairs.csv line 3: left is empty
        """
        raise ValueError(f"{printable_path(self.path)} line {self.number}: {reason}")


def read_csv_list(path: Path, needed: Sequence[str], more: Mapping[str, Sequence[str]]) -> list[ListLine]:
    r"""Read a CSV file with commas, semicolons or tabs, in UTF-8 or UTF-16.

    A first row that holds the names of columns is a header: then columns come in any order, and further columns are not
    read. Without a header, the columns are ``needed`` and then those of ``more``. Empty lines are skipped.

    Args:
        path: the file.
        needed: the columns that every row has.
        more: columns that may be missing, each with all names that a header may give it.

    Returns:
        The rows; a column that is missing or empty has the value ``""``.

    Raises:
        ValueError: for a file without rows, a header without a needed column, or a row with an empty or a missing
            cell; the message has the number of the line.
        OSError: if the file cannot be read.

    Example:
        >>> _ = Path("pairs.csv").write_text("right,left\nb.jpg,a.jpg\n")
        >>> [line.values["left"] for line in read_csv_list(Path("pairs.csv"), ["left", "right"], {})]
        ['a.jpg']
    """
    rows = list(_csv_rows(path))
    if not rows:
        raise ValueError(f"{printable_path(path)} is empty, expected rows of {','.join(needed)}")
    columns = _header(rows[0], needed, more)
    if columns is not None:
        rows = rows[1:]
        if not rows:
            raise ValueError(f"{printable_path(path)} has a header and no rows")
    known = columns is not None
    columns = columns or [*needed, *more]
    return [_named(row, columns, needed, more, known) for row in rows]


def _csv_rows(path: Path) -> Iterator[ListLine]:
    """The rows that are not blank, with the cells in the value ``"cells"``."""
    text = _read_text(path)
    first = next((line for line in text.splitlines() if line.strip()), "")
    delimiter = max(_DELIMITERS, key=first.count)  # of equal counts the first, the comma
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True, skipinitialspace=True)
    try:
        for cells in reader:
            cells = [cell.strip() for cell in cells]
            if any(cells):
                yield ListLine(path, reader.line_num, {"cells": cells})
    except csv.Error as error:
        ListLine(path, reader.line_num, {}).refuse(f"no CSV ({first_line(error)}); is a quote not closed?")


def _header(row: ListLine, needed: Sequence[str], more: Mapping[str, Sequence[str]]) -> list[str] | None:
    """The columns that a header names, in its order; None if the row is no header."""
    other_names = {name: column for column, names in more.items() for name in names}
    words = [cell.casefold() for cell in row.values["cells"]]
    if not {*words} & {*needed}:
        return None
    missing = [name for name in needed if name not in words]
    if missing:
        row.refuse(f"the header {','.join(map(printable, words))} has no column {missing[0]}")
    columns = [other_names.get(word, word) for word in words]
    twice = next((name for name in [*needed, *more] if columns.count(name) > 1), None)
    if twice is not None:
        row.refuse(f"the header has two columns for {twice}")
    return columns


def _named(
    row: ListLine, columns: Sequence[str], needed: Sequence[str], more: Mapping[str, Sequence[str]], has_header: bool
) -> ListLine:
    cells = row.values["cells"]
    expected = ",".join([*needed, *(f"[{name}]" for name in more)])
    if len(cells) > len(columns):
        whose = "the header" if has_header else expected
        row.refuse(f"{len(cells)} cells for the {len(columns)} of {whose}; a path with a comma needs quotes")
    values = dict(zip(columns, cells, strict=False))
    for name in needed:
        if not values.get(name):
            row.refuse(f"{name} is missing, expected {expected}")
    return ListLine(row.path, row.number, {name: values.get(name, "") for name in [*needed, *more]})


def read_json_list(path: Path, needed: Sequence[str]) -> list[ListLine]:
    r"""Read a file with one JSON object per line, in UTF-8 or UTF-16. Empty lines are skipped.

    Args:
        path: the file.
        needed: the keys that every object has.

    Raises:
        ValueError: for a file without lines, or a line that is no JSON object or has not all keys; the message has the
            number of the line.
        OSError: if the file cannot be read.

    Example:
        >>> _ = Path("hits.jsonl").write_text('{"query": "q.jpg", "ids": [4, 7]}\n')
        >>> [line.values["ids"] for line in read_json_list(Path("hits.jsonl"), ["query", "ids"])]
        [[4, 7]]
    """
    lines = []
    # Only these characters end a line of JSON; a text in it may hold other separators of lines.
    for number, text in enumerate(_read_text(path).replace("\r\n", "\n").split("\n"), start=1):
        if not text.strip():
            continue
        line = ListLine(path, number, {})
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            line.refuse(f"no JSON ({first_line(error)}); expected one object per line")
        if not isinstance(values, dict):
            line.refuse(f"expected a JSON object with {', '.join(needed)}, got {printable(type(values).__name__)}")
        for name in needed:
            if name not in values:
                line.refuse(f"{name} is missing, expected a JSON object with {', '.join(needed)}")
        lines.append(ListLine(path, number, values))
    if not lines:
        raise ValueError(f"{printable_path(path)} is empty, expected one JSON object with {', '.join(needed)} per line")
    return lines


def holds_json(path: Path) -> bool:
    """Whether a list begins as JSON lines do, whatever the file is called.

    Args:
        path: the file; a pipe, which can be read only once, counts as no such list.

    Raises:
        ValueError: if it is no text file.
        OSError: if the file cannot be read.

    Example:
        >>> _ = Path("hits.txt").write_text('{"query": "q.jpg", "ids": [4, 7]}')
        >>> holds_json(Path("hits.txt"))
        True
    """
    return path.is_file() and _read_text(path).lstrip()[:1] == "{"


def _read_text(path: Path) -> str:
    """The text of a file, without its byte order mark; bytes of file names that are no UTF-8 stay as surrogates."""
    if not path.exists():
        raise ValueError(f"{printable_path(path)}: there is no such list")
    if path.is_dir():
        raise ValueError(f"{printable_path(path)} is a folder, expected a file with a list")
    content = path.read_bytes()
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        try:
            return content.decode("utf-16")
        except UnicodeDecodeError as error:
            raise ValueError(f"{printable_path(path)} begins as UTF-16, and is none ({first_line(error)})") from error
    if b"\0" in content:
        raise ValueError(f"{printable_path(path)} is no text file: it holds zero bytes")
    return content.removeprefix(codecs.BOM_UTF8).decode("utf-8", "surrogateescape")
