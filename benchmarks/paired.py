"""Differences between methods on the same queries, from the records of a run.

The intervals of two means can overlap although one method is better on nearly every query, because queries differ more
than methods do. Differences by query do not have that spread.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.pages import interval, markdown_table
from captum_fam.experiments.records import UnitRecord, as_numbers
from captum_fam.metrics import Result, summarize


def values(records: Sequence[UnitRecord], method: str, measure: str) -> Tensor:
    """The values of a measure for the explained queries of all records, ``(n,)``, NaN where undefined.

    Args:
        records: the records of a run.
        method: name of the method.
        measure: name of a value that is kept, such as ``"drop"``.

    Raises:
        KeyError: for a measure that was not kept.
    """
    column = []
    for record in records:
        if record.rows:
            kept = {name: part for values in record.explained[method].kept.values() for name, part in values.items()}
            column += kept[measure]
    return as_numbers(column)


def difference(records: Sequence[UnitRecord], method: str, reference: str, measure: str) -> Result:
    """The mean over units of the mean difference by query, where both methods have a value.

    Args:
        records: the records of a run.
        method: name of the method.
        reference: name of the method that is subtracted.
        measure: name of a value that is kept.
    """
    units = [record.unit for record in records for _ in record.rows]
    differences = values(records, method, measure) - values(records, reference, measure)
    return summarize(differences, torch.tensor(units, dtype=torch.int64))


def read_records(folder: Path) -> list[UnitRecord]:
    """The records of a finished run.

    Args:
        folder: folder of the run.
    """
    lines = (line for path in sorted(folder.glob("records-*.jsonl")) for line in path.read_text().splitlines())
    return [UnitRecord.from_json(json.loads(line)) for line in lines]


def paired_table(folder: Path, measures: Sequence[str], reference: str = "mean-activation") -> list[str]:
    """All methods of a run minus one of them, paired by query; a star where the interval does not hold zero.

    Args:
        folder: folder of the run.
        measures: names of values that are kept.
        reference: name of the method that is subtracted. Default: ``"mean-activation"``.
    """
    records = read_records(folder)
    methods = next(record.explained for record in records if record.rows)
    rows: dict[str, dict[str, str]] = {}
    for method in methods:
        if method == reference:
            continue
        results = {measure: difference(records, method, reference, measure) for measure in measures}
        rows[method] = {
            measure: interval(result, sign=True) + (" *" if abs(result.value) > result.half_width else "")
            for measure, result in results.items()
        }
        rows[method]["pairs"] = str(min(result.n for result in results.values()))
    return [
        f"Differences from `{reference}`, by query, the mean of each episode first; a star where the 95 % interval "
        "does not hold zero:",
        "",
        *markdown_table(rows, f"method − {reference}"),
    ]
