"""The figures of a finished run: examples, and the most confident mistakes of the model."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from captum_fam.experiments.example_figure import example_row
from captum_fam.experiments.protocols.base import PreparedProtocol
from captum_fam.experiments.records import UnitRecord
from captum_fam.visualization import visualize_grid


def draw_examples(prepared: PreparedProtocol[Any], records: Sequence[UnitRecord], count: int, folder: Path) -> None:
    """Draw ``examples.png``: the first explained query of each of the first records.

    Args:
        prepared: the prepared protocol.
        records: records of all units.
        count: number of queries.
        folder: folder of the figure.
    """
    protocol = prepared.protocol
    rows = []
    for record in [record for record in records if record.rows][:count]:
        query = record.rows[0]
        label = (record.queries.label if protocol.explains_label else record.queries.predicted)[query]
        rows.append(example_row(prepared, record, query, {"support": label}, protocol.panel.methods))
    if rows:
        visualize_grid(rows).save(folder / "examples.png", dpi=100)


def draw_mistakes(prepared: PreparedProtocol[Any], records: Sequence[UnitRecord], count: int, folder: Path) -> None:
    """Draw ``wrong.png``, the most confident mistakes, and list them in ``wrong.csv``.

    Each mistake has maps of the first method for the predicted and the true class.

    Args:
        prepared: the prepared protocol.
        records: records of all units.
        count: number of mistakes.
        folder: folder of the two files.
    """
    protocol = prepared.protocol
    mistakes = sorted(find_mistakes(records), key=lambda mistake: -mistake[0].queries.confidence[mistake[1]])
    rows = []
    # Names of files and class folders may hold bytes that are no UTF-8; they become escapes such as \udcff.
    with (folder / "wrong.csv").open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.writer(file)
        writer.writerow([protocol.unit, "item", "file", "label", "predicted", "confidence"])
        for record, query in mistakes[:count]:
            queries = record.queries
            item, label, predicted = (column[query] for column in (queries.item, queries.label, queries.predicted))
            confidence = queries.confidence[query]
            names = [protocol.class_name(label), protocol.class_name(predicted)]
            writer.writerow([record.unit, item, protocol.item_name(item), *names, confidence])
            classes = {"predicted": predicted, "true": label}
            title = f"confidence {confidence:.3f}"
            rows.append(example_row(prepared, record, query, classes, protocol.panel.methods[:1], title))
    if rows:
        visualize_grid(rows).save(folder / "wrong.png", dpi=100)


def find_mistakes(records: Sequence[UnitRecord]) -> list[tuple[UnitRecord, int]]:
    """The queries that were not classified correctly.

    Args:
        records: records of all units.

    Returns:
        The record of each query, and the row of the query in this record.
    """
    return [
        (record, query)
        for record in records
        for query, is_correct in enumerate(record.queries.correct)
        if not is_correct
    ]
