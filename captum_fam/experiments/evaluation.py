"""Running a protocol to its table: resumable, by one process or several."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from captum_fam._files import staged
from captum_fam.experiments.distributed import Ranks
from captum_fam.experiments.example_figure import picture_grid
from captum_fam.experiments.features import discard
from captum_fam.experiments.measures import results
from captum_fam.experiments.protocols.base import ModelProtocol, by_item
from captum_fam.experiments.records import Record, ResultStore
from captum_fam.explanation import versions, write_json
from captum_fam.metrics.summary import Result, summarize

_FEATURES = "features"


@dataclass(frozen=True)
class Evaluation:
    """The table of a protocol.

    Attributes:
        protocol: its name.
        model: the model's own numbers: ``"accuracy"``, ``"recall@K"``.
        methods: by method and measure.
        counts: units, queries, explained queries, and items that were left out.
        skipped: the latter with the reason, by their position in the dataset.
        bank_skipped: the same of the images of a memory bank.
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
        """One row a number, for ``results.csv``."""
        tables = {"": self.model, **self.methods}
        return [
            {"method": method, "measure": measure, **_entry(result)}
            for method, table in tables.items()
            for measure, result in table.items()
        ]


def evaluate(
    protocol: ModelProtocol,
    out: str | Path,
    *,
    ranks: Ranks | None = None,
    progress: bool = False,
    examples: int = 4,
    wrong: int = 0,
    about: Mapping[str, Any] | None = None,
) -> Evaluation | None:
    """Run a protocol, or what an earlier run of the same settings left to do, and write its table.

    ``out`` gets ``records-*.jsonl`` while the run goes on, and ``skipped.json``, the images that it does without, which
    are in the records of ``contrastive``; then ``results.csv``, ``summary.json``, ``examples.png`` and, if asked for,
    ``wrong.csv`` and ``wrong.png``. A run that is killed goes on when it is started again; one that is finished, and
    has these figures, needs no image any more; a folder of other settings is refused.

    Args:
        protocol: the experiment.
        out: folder of the results.
        ranks: the processes that share the units.
        progress: show progress bars.
        examples: queries in the figure; 0 for none.
        wrong: show as many of the most confident mistakes, with maps of the predicted and of the true class.
        about: what else ``summary.json`` is to say, such as the names of model and data.

    Returns:
        The table; None on all ranks but the first.

    Raises:
        ValueError: if ``out`` holds results of other settings, nothing could be explained, or an image that is still
            needed has become unusable since the run began.
        OSError: if the disk is full; what is done is safe.
    """
    ranks = ranks or Ranks()
    out = Path(out)
    figures = {"examples": examples, "wrong": wrong}
    settings = protocol.settings()
    with closing(ResultStore(out, settings, ranks)) as store:
        missing = [unit for unit in range(len(protocol)) if unit not in store.done]
        earlier = None if missing else _finished(out, store.records(), figures)
        if earlier is None:
            protocol.prepare(out / _FEATURES, ranks, progress)
        mine = ranks.share(missing)
        bar = tqdm(
            total=len(protocol),
            initial=len(protocol) - len(missing),
            desc=protocol.name,
            unit=protocol.unit,
            disable=not (progress and ranks.is_first),
        )
        with bar:
            for record in protocol.run(mine):
                store.append(record)
                bar.update(min(ranks.size, bar.total - bar.n))
    ranks.wait()
    if not ranks.is_first:
        return None
    records = store.records()
    left_out = None if earlier is None else (by_item(earlier["skipped"]), by_item(earlier["bank_skipped"]))
    evaluation = summarize_records(protocol, records, left_out)
    _write(protocol, records, evaluation, out, figures, earlier is None, {"about": dict(about or {}), **settings})
    discard(out / _FEATURES)
    return evaluation


def summarize_records(
    protocol: ModelProtocol,
    records: Sequence[Record],
    left_out: tuple[dict[int, str], dict[int, str]] | None = None,
) -> Evaluation:
    """The table of all records.

    Args:
        protocol: prepared, unless it is told what was left out.
        records: of all units.
        left_out: items of the dataset and of the bank's, with the reason; None: the protocol says.
    """
    queries, query_units = _join(records, "queries")
    explained, explained_units = _join(records, "explained")
    if not queries:
        raise ValueError(f"{protocol.name}: no query could be read")
    groups = (query_units, explained_units) if protocol.by_unit else (None, None)
    own = {
        {"correct": "accuracy"}.get(name, name): summarize(torch.tensor(np.array(column, dtype=float)), groups[0])
        for name, column in queries.items()
        if name not in ("item", "label", "predicted", "confidence")
    }
    skipped, bank_skipped = left_out or ({**protocol.skipped, **_skipped(records)}, protocol.bank_skipped)
    return Evaluation(
        protocol.name,
        own,
        {
            method.name: results(method.name, explained, groups[1], protocol.panel.conventions.signed)
            for method in protocol.panel.methods
        }
        if len(explained_units)
        else {},
        {
            protocol.units: len(records),
            "queries": len(query_units),
            "explained": len(explained_units),
            "skipped": len(skipped),
            **({"skipped in the bank": len(bank_skipped)} if bank_skipped else {}),
        },
        dict(sorted(skipped.items())),
        bank_skipped,
    )


def _finished(out: Path, records: Sequence[Record], figures: Mapping[str, int]) -> dict[str, Any] | None:
    """The summary of a run that has left the figures that are asked for; None where they have yet to be drawn."""
    path = out / "summary.json"
    if not path.is_file():
        return None
    summary: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    has_pictures = {"examples": any(record["explained"].get("row") for record in records), "wrong": _mistakes(records)}
    drawn = all(
        summary.get("figures", {}).get(name) == count and ((out / f"{name}.png").is_file() or not has_pictures[name])
        for name, count in figures.items()
        if count
    )
    return summary if drawn else None


def _join(records: Sequence[Record], part: str) -> tuple[dict[str, list[Any]], Tensor]:
    """The columns of all records, and the unit of each row."""
    columns: dict[str, list[Any]] = {}
    units: list[int] = []
    for record in records:
        length = 0
        for name, column in record[part].items():
            columns.setdefault(name, []).extend(column)
            length = len(column)
        units += [record["unit"]] * length
    uneven = [name for name, column in columns.items() if len(column) != len(units)]
    if uneven:
        raise ValueError(f"the records do not all have the columns {', '.join(uneven)}; start anew in another folder")
    return columns, torch.tensor(units, dtype=torch.int64)


def _skipped(records: Sequence[Record]) -> dict[int, str]:
    return {item: reason for record in records for item, reason in by_item(record.get("skipped", {})).items()}


def _entry(result: Result) -> dict[str, Any]:
    """A result as JSON and CSV have it: an undefined number is empty."""
    entry = result._asdict()
    entry = {"mean": entry.pop("value"), "ci95": entry.pop("half_width"), **entry}
    return {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in entry.items()}


def _write(
    protocol: ModelProtocol,
    records: Sequence[Record],
    evaluation: Evaluation,
    out: Path,
    figures: Mapping[str, int],
    draw: bool,
    made_with: Mapping[str, Any],
) -> None:
    """All the files of a finished run, which appear together; the figures where they are not there yet."""
    with staged(out) as scratch:
        rows = evaluation.rows()
        with (scratch / "results.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        if draw and figures["examples"]:
            _draw_examples(protocol, records, figures["examples"], scratch)
        if draw and figures["wrong"]:
            _draw_wrong(protocol, records, figures["wrong"], scratch)
        summary = {
            **made_with,
            "counts": evaluation.counts,
            "skipped": {str(item): reason for item, reason in evaluation.skipped.items()},
            "bank_skipped": {str(item): reason for item, reason in evaluation.bank_skipped.items()},
            "results": rows,
            "figures": dict(figures),
            "versions": versions(),
        }
        write_json(scratch / "summary.json", summary)


def _draw_examples(protocol: ModelProtocol, records: Sequence[Record], count: int, folder: Path) -> None:
    """The first explained query of the first records, one of each."""
    pictures = []
    for record in [record for record in records if record["explained"].get("row")][:count]:
        query = record["explained"]["row"][0]
        classes = {"support": record["queries"][protocol.explained][query]}
        pictures.append(protocol.picture(record, query, classes, protocol.panel.methods))
    if pictures:
        picture_grid(pictures).save(folder / "examples.png", dpi=100)


def _draw_wrong(protocol: ModelProtocol, records: Sequence[Record], count: int, folder: Path) -> None:
    """The mistakes of the largest confidence, with maps of the first method for the predicted and the true class."""
    mistakes = sorted(_mistakes(records), key=lambda mistake: -mistake[0]["queries"]["confidence"][mistake[1]])
    pictures = []
    with (folder / "wrong.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([protocol.unit, "item", "file", "label", "predicted", "confidence"])
        for record, query in mistakes[:count]:
            item, label, predicted, confidence = (
                record["queries"][name][query] for name in ("item", "label", "predicted", "confidence")
            )
            names = [protocol.class_name(label), protocol.class_name(predicted)]
            writer.writerow([record["unit"], item, protocol.item_name(item), *names, confidence])
            classes = {"predicted": predicted, "true": label}
            title = f"confidence {confidence:.3f}"
            pictures.append(protocol.picture(record, query, classes, protocol.panel.methods[:1], title))
    if pictures:
        picture_grid(pictures).save(folder / "wrong.png", dpi=100)


def _mistakes(records: Sequence[Record]) -> list[tuple[Record, int]]:
    """The records and rows of the queries that were not classified correctly."""
    return [
        (record, query)
        for record in records
        for query, right in enumerate(record["queries"].get("correct", ()))
        if not right
    ]


def format_table(evaluation: Evaluation) -> str:
    """The table for the terminal: a row a method, a column a measure, each with its 95 % interval."""
    counts = ", ".join(f"{count} {name}" for name, count in evaluation.counts.items())
    own = ", ".join(f"{name} {_number(result)}" for name, result in evaluation.model.items())
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
    widths = [max(len(row[column]) for row in [head, *body]) for column in range(len(head))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in [head, *body]
    ]
    return "\n".join([f"{evaluation.protocol}: {counts}", f"model: {own}", *(lines if body else [])])


def _number(result: Result) -> str:
    if math.isnan(result.value):
        return "-"
    return f"{result.value:.3f}" + ("" if math.isnan(result.half_width) else f" ± {result.half_width:.3f}")
