"""The table of a protocol: numbers with their intervals, computed from the records of all units."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from captum_fam._tables import align_columns
from captum_fam.experiments.protocols.base import Protocol
from captum_fam.experiments.records import Column, MethodColumns, QueryColumns, UnitRecord, as_numbers
from captum_fam.metrics import Result, SampleMean


@dataclass(frozen=True)
class Evaluation:
    """The table of a protocol.

    Attributes:
        protocol: name of the protocol.
        model: numbers of the model, ``"accuracy"`` and ``"recall@K"``.
        methods: numbers of the maps, by method and column.
        counts: numbers of units, queries, explained queries, and items that were left out.
        skipped: reason for each item that was left out, by its position in the data set.
        bank_skipped: reason for each item that was left out of the memory bank, by its position in the data set of the
            bank. Default: empty.
    """

    protocol: str
    model: dict[str, Result]
    methods: dict[str, dict[str, Result]]
    counts: dict[str, int]
    skipped: dict[int, str]
    bank_skipped: dict[int, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return format_table(self)

    def rows(self) -> list[dict[str, Any]]:
        """One row per number, for ``results.csv``."""
        tables = {"": self.model, **self.methods}
        return [
            {"method": method, "measure": measure, **_entry(result)}
            for method, table in tables.items()
            for measure, result in table.items()
        ]


def summarize_records(
    protocol: Protocol,
    records: Sequence[UnitRecord],
    skipped: dict[int, str] | None = None,
    bank_skipped: dict[int, str] | None = None,
) -> Evaluation:
    """Compute the table of a protocol.

    Args:
        protocol: protocol of the records.
        records: records of all units.
        skipped: reason for each item that could not be used, by position, beside the items in the records. Default:
            none.
        bank_skipped: reason for each item of the data set of a memory bank that could not be used, by position.
            Default: none.

    Returns:
        The table.

    Raises:
        ValueError: if no query could be read, or if some records lack columns that others have.
    """
    queries, query_units = _join_queries(records)
    if not len(queries):
        raise ValueError(f"{protocol.name}: no query could be read")
    explained_units = _units([len(record.rows) for record in records], records)
    methods: dict[str, dict[str, Result]] = {}
    # Without an explained query there are no numbers of the maps.
    for method in protocol.panel.methods if len(explained_units) else ():
        columns = _join_explained(records, method.name)
        _check_even(_named_columns(columns), len(explained_units), method.name)
        methods[method.name] = protocol.panel.results(columns, explained_units if protocol.by_unit else None)
    all_skipped = {**(skipped or {}), **{item: reason for record in records for item, reason in record.skipped.items()}}
    return Evaluation(
        protocol.name,
        {
            name: _mean(column, query_units if protocol.by_unit else None)
            for name, column in {"accuracy": queries.correct, **queries.numbers}.items()
        },
        methods,
        {
            protocol.units: len(records),
            "queries": len(query_units),
            "explained": len(explained_units),
            "skipped": len(all_skipped),
            **({"skipped in the bank": len(bank_skipped)} if bank_skipped else {}),
        },
        dict(sorted(all_skipped.items())),
        bank_skipped or {},
    )


def _mean(column: Column, groups: Tensor | None) -> Result:
    # This process has the records of all processes, and must not wait for them.
    mean = SampleMean(sync_on_compute=False)
    mean.update(as_numbers(column), groups=groups)
    return mean.result()


def _units(lengths: Sequence[int], records: Sequence[UnitRecord]) -> Tensor:
    """The unit of each row of the joined columns, from the number of rows per record."""
    units = torch.tensor([record.unit for record in records], dtype=torch.int64)
    return units.repeat_interleave(torch.tensor(lengths, dtype=torch.int64))


def _join_queries(records: Sequence[UnitRecord]) -> tuple[QueryColumns, Tensor]:
    """The columns of all queries, and the unit of each."""
    joined = QueryColumns()
    for record in records:
        joined.extend(record.queries)
    _check_even(joined.numbers, len(joined), "queries")
    return joined, _units([len(record.queries) for record in records], records)


def _join_explained(records: Sequence[UnitRecord], method: str) -> MethodColumns:
    """The columns of all explained queries for one method."""
    joined = MethodColumns()
    for record in records:
        if method in record.explained:
            joined.extend(record.explained[method])
    return joined


def _named_columns(columns: MethodColumns) -> dict[str, Column]:
    return {
        "nan": columns.nan,
        **{f"{measure}: {name}": column for measure, kept in columns.kept.items() for name, column in kept.items()},
    }


def _check_even(columns: dict[str, Column], length: int, owner: str) -> None:
    uneven = [name for name, column in columns.items() if len(column) != length]
    if uneven:
        raise ValueError(
            f"the records of {owner} do not all have the columns {', '.join(uneven)}; start again in another folder"
        )


def _entry(result: Result) -> dict[str, Any]:
    """A result for JSON and CSV, with None for an undefined number."""
    entry = result._asdict()
    entry = {"mean": entry.pop("value"), "ci95": entry.pop("half_width"), **entry}
    return {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in entry.items()}


def format_table(evaluation: Evaluation) -> str:
    """The table as text for a terminal: one row per method, one column per measure, with 95 % intervals.

    Args:
        evaluation: the table.
    """
    counts = ", ".join(f"{count} {name}" for name, count in evaluation.counts.items())
    model_numbers = ", ".join(f"{name} {_number(result)}" for name, result in evaluation.model.items())
    measures = list(dict.fromkeys(measure for table in evaluation.methods.values() for measure in table))
    head = ["method", *measures, "n", "nan", "empty"]
    body = [
        [
            method,
            *(_number(table[measure]) if measure in table else "" for measure in measures),
            *(str(max(getattr(result, name) for result in table.values())) for name in ("n", "n_nan", "n_empty")),
        ]
        for method, table in evaluation.methods.items()
        if table
    ]
    lines = align_columns([head, *body]) if body else []
    return "\n".join([f"{evaluation.protocol}: {counts}", f"model: {model_numbers}", *lines])


def _number(result: Result) -> str:
    if math.isnan(result.value):
        return "-"
    return f"{result.value:.3f}" + ("" if math.isnan(result.half_width) else f" ± {result.half_width:.3f}")
