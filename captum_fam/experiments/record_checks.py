"""Checks of the records of a run when they are read, so that no damaged or foreign line reaches a table."""

from __future__ import annotations

import json
from collections.abc import Collection, Container, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from captum_fam.experiments.records import MethodColumns, QueryColumns, UnitRecord

_LARGEST = 3.5e38  # numbers of a record are float32
_NO_RECORD = "no record of this version of captum-fam"


@dataclass(frozen=True)
class RecordRules:
    """What the records of a run can hold.

    Attributes:
        n_units: the number of units. Default: None, any number.
        n_items: the number of items of the data set of the queries. Default: None, any number.
        methods: names of the methods, all of which a record with explained queries has. Default: None, any.
        allowed: the allowed values of the measures, by the name of the measure and the name of the value; a value
            without an entry may be any number or text. Default: None, any measures.

    Example:
        >>> rules = RecordRules(n_units=12, methods={"fam"}, allowed={"swap": {}})
    """

    n_units: int | None = None
    n_items: int | None = None
    methods: Collection[str] | None = None
    allowed: Mapping[str, Mapping[str, Container[Any]]] | None = None


@dataclass
class RecordReader:
    """Reads the lines of a run one after another.

    Args:
        rules: what the records can hold.
        run: the identity of the run, which every line states.

    Example:
        >>> reader = RecordReader(RecordRules(n_units=12), run="5f3c")
        >>> reader.read(b'{"run": "5f3c", "unit": 12}')
        Traceback (most recent call last):
        ...
        ValueError: no record of this version of captum-fam
    """

    rules: RecordRules
    run: str
    _units: set[int] = field(default_factory=set)
    # The columns of the first record with queries, and of the first with explained queries.
    _layouts: dict[str, Any] = field(default_factory=dict)

    def read(self, line: bytes) -> UnitRecord:
        """Read and check a line.

        Args:
            line: a line of JSON.

        Returns:
            The record.

        Raises:
            ValueError: for a line that is damaged, belongs to another run, repeats a unit, or holds values that cannot
                be; the message says why.
        """
        try:
            entry = json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError) as error:  # no UTF-8, no JSON, or JSON that is nested too deeply
            raise ValueError(f"no JSON: {error}") from error
        _expect(_has_form(entry), _NO_RECORD)
        _expect(entry["run"] == self.run, "a record of another run")
        record = UnitRecord.from_json(entry)
        self._check_unit(record.unit)
        self._check_queries(record)
        self._check_explained(record)
        return record

    def _check_unit(self, unit: int) -> None:
        _expect(_is_index(unit, self.rules.n_units), f"unit {unit}, where the run has {self.rules.n_units} units")
        _expect(unit not in self._units, f"unit {unit}, which another line has too")
        self._units.add(unit)

    def _check_queries(self, record: UnitRecord) -> None:
        queries, n_items = record.queries, self.rules.n_items
        columns = {name: column for name, column in vars(queries).items() if name != "numbers"} | queries.numbers
        _check_lengths(columns, len(queries))
        for item in [*queries.item, *record.skipped]:
            _expect(_is_index(item, n_items), f"item {item}, where the data set has {n_items} items")
        for name in ("label", "predicted"):
            _check_values(name, columns[name], _Indices())
        _check_values("correct", queries.correct, (0, 1))
        for name, column in {"confidence": queries.confidence, **queries.numbers}.items():
            _check_values(name, column, _Numbers())
        if len(queries):
            self._check_layout("queries", [*queries.numbers])

    def _check_explained(self, record: UnitRecord) -> None:
        rows, rules = record.rows, self.rules
        _expect(
            all(_is_index(row, len(record.queries)) for row in rows) and len({*rows}) == len(rows),
            "explained queries that it does not have",
        )
        known = record.explained.keys() if rules.methods is None else dict.fromkeys(rules.methods).keys()
        is_complete = record.explained.keys() == known if rows else record.explained.keys() <= known
        _expect(is_complete, f"other methods than {', '.join(known)}")
        for method, columns in record.explained.items():
            for name in ("nan", "empty", "no_positive"):
                _check_lengths({name: getattr(columns, name)}, len(rows))
                _check_values(f"{method} {name}", getattr(columns, name), (0, 1))
            for measure, kept in columns.kept.items():
                _expect(rules.allowed is None or measure in rules.allowed, f"the measure {measure}, which is not asked")
                _check_lengths(kept, len(rows))
                allowed = {} if rules.allowed is None else rules.allowed[measure]
                for name, column in kept.items():
                    _check_values(f"{method} {name}", column, allowed.get(name, _NumbersAndTexts()))
        if rows:
            layout = {
                method: {measure: [*kept] for measure, kept in columns.kept.items()}
                for method, columns in record.explained.items()
            }
            self._check_layout("explained", layout)

    def _check_layout(self, part: str, layout: Any) -> None:
        _expect(self._layouts.setdefault(part, layout) == layout, "other columns than the records before")


class _Numbers:
    """The numbers that a record can hold."""

    def __contains__(self, value: object) -> bool:
        return isinstance(value, int | float) and -_LARGEST <= value <= _LARGEST

    def __str__(self) -> str:
        return "a number"


class _NumbersAndTexts(_Numbers):
    """The values of a measure that states no range."""

    def __contains__(self, value: object) -> bool:
        return isinstance(value, str) or super().__contains__(value)


class _Indices:
    """Indices of classes."""

    def __contains__(self, value: object) -> bool:
        return _is_index(value, None)

    def __str__(self) -> str:
        return "the index of a class"


def _expect(holds: bool, problem: str) -> None:
    if not holds:
        raise ValueError(problem)


def _is_index(value: object, length: int | None) -> bool:
    return isinstance(value, int) and value >= 0 and (length is None or value < length)


def _check_lengths(columns: Mapping[str, Any], length: int) -> None:
    for name, column in columns.items():
        _expect(isinstance(column, list) and len(column) == length, f"a column {name} without {length} entries")


def _check_values(name: str, column: list[Any], allowed: Container[Any]) -> None:
    """Check the values of a column; None stands for an undefined number."""
    for value in column:
        is_allowed = value is None or (isinstance(value, str | int | float) and value in allowed)
        _expect(is_allowed, f"{name} {value!r}, which is not {_words(allowed)}")


def _words(allowed: Container[Any]) -> str:
    return " or ".join(map(str, allowed)) if isinstance(allowed, tuple) else str(allowed)


def _has_form(entry: Any) -> bool:
    """Whether an entry has the parts of a record, so that :meth:`UnitRecord.from_json` can read it."""
    names = {"run", *(part.name for part in fields(UnitRecord))}
    if not isinstance(entry, dict) or entry.keys() != names:
        return False
    queries, explained, skipped = entry["queries"], entry["explained"], entry["skipped"]
    if not (isinstance(queries, dict) and isinstance(explained, dict) and isinstance(skipped, dict)):
        return False
    return (
        queries.keys() == {part.name for part in fields(QueryColumns)}
        and isinstance(queries["item"], list)
        and isinstance(queries["numbers"], dict)
        and isinstance(entry["rows"], list)
        and all(isinstance(row, int) for row in entry["rows"])
        and all(
            isinstance(columns, dict)
            and columns.keys() == {part.name for part in fields(MethodColumns)}
            and isinstance(columns["kept"], dict)
            and all(isinstance(kept, dict) for kept in columns["kept"].values())
            for columns in explained.values()
        )
        and all(item.isascii() and item.isdecimal() and isinstance(reason, str) for item, reason in skipped.items())
    )
