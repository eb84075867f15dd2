"""Runs a protocol and writes its table; a run can be resumed, and can have several processes."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from captum_fam._files import versions, write_all_or_nothing, write_json
from captum_fam.experiments.distributed import Ranks
from captum_fam.experiments.features import discard
from captum_fam.experiments.protocols.base import PreparedProtocol, Protocol
from captum_fam.experiments.records import ResultStore, UnitRecord, by_item
from captum_fam.experiments.run_figures import draw_examples, draw_mistakes, find_mistakes
from captum_fam.experiments.table import Evaluation, summarize_records

_FEATURES = "features"


def evaluate(
    protocol: Protocol,
    out: str | Path,
    *,
    ranks: Ranks | None = None,
    progress: bool = False,
    examples: int = 4,
    wrong: int = 0,
    about: Mapping[str, Any] | None = None,
) -> Evaluation | None:
    """Run a protocol, or the remaining units of an earlier run with the same settings, and write the table.

    During the run the folder ``out`` gets ``records-*.jsonl``, the results of the units, and ``skipped.json``, the
    images that are left out (for ``contrastive`` these are in the records). At the end it gets ``results.csv``,
    ``summary.json``, ``examples.png`` and, if requested, ``wrong.csv`` and ``wrong.png``. A run that was killed
    continues when it is started again. A finished run with all requested figures is read without its images.

    Args:
        protocol: the experiment.
        out: folder of the results.
        ranks: the processes that share the units. Default: this process alone.
        progress: show progress bars. Default: False.
        examples: number of queries in ``examples.png``; 0 for no figure. Default: 4.
        wrong: number of the most confident mistakes in ``wrong.png``, with maps for the predicted and the true class;
            0 for no figure. Default: 0.
        about: further entries of ``summary.json``, such as the names of model and data. Default: none.

    Returns:
        The table in the first process, None in all others.

    Raises:
        ValueError: if ``out`` holds results of other settings, if no query could be read, or if an image that is still
            needed has become unusable since the run began.
        OSError: if the disk is full; the results so far are safe.

    Example:
        >>> from captum_fam.experiments import FewShot, Panel, get_methods, load_dataset, load_model
        >>> model = load_model("demo")
        >>> scenes = load_dataset("scenes:120", "novel", model)
        >>> protocol = FewShot(model, scenes, Panel(get_methods("fam,uniform")), episodes=3, query=2)
        >>> evaluation = evaluate(protocol, "results")
        >>> evaluation.methods["fam"]["energy"].value > evaluation.methods["uniform"]["energy"].value
        True
    """
    ranks = ranks or Ranks()
    out = Path(out)
    figures = {"examples": examples, "wrong": wrong}
    settings = protocol.settings()
    prepared: PreparedProtocol[Any] | None = None
    with closing(ResultStore(out, settings, ranks)) as store:
        missing = [unit for unit in range(len(protocol)) if unit not in store.done]
        earlier = None if missing else _finished_summary(out, store.records(), figures)
        if earlier is None:
            prepared = protocol.prepare(out / _FEATURES, ranks, progress)
            _run_units(prepared, store, missing, progress)
    ranks.wait()
    if not ranks.is_first:
        return None
    records = store.records()
    if prepared is not None:
        evaluation = summarize_records(protocol, records, prepared.skipped, prepared.bank_skipped)
    else:
        assert earlier is not None
        skipped, bank_skipped = (by_item(earlier[name]) for name in ("skipped", "bank_skipped"))
        evaluation = summarize_records(protocol, records, skipped, bank_skipped)
    with write_all_or_nothing(out) as scratch:
        _write_table(evaluation, {"about": dict(about or {}), **settings}, figures, scratch)
        if prepared is not None and examples:
            draw_examples(prepared, records, examples, scratch)
        if prepared is not None and wrong:
            draw_mistakes(prepared, records, wrong, scratch)
    discard(out / _FEATURES)
    return evaluation


def _run_units(prepared: PreparedProtocol[Any], store: ResultStore, missing: Sequence[int], progress: bool) -> None:
    """Run the share of this process in the missing units."""
    protocol, ranks = prepared.protocol, store.ranks
    bar = tqdm(
        total=len(protocol),
        initial=len(protocol) - len(missing),
        desc=protocol.name,
        unit=protocol.unit,
        disable=not (progress and ranks.is_first),
    )
    with bar:
        for record in prepared.run(ranks.share(missing)):
            store.append(record)
            # The other processes have finished about as many units.
            bar.update(min(ranks.size, bar.total - bar.n))


def _finished_summary(out: Path, records: Sequence[UnitRecord], figures: Mapping[str, int]) -> dict[str, Any] | None:
    """The summary of a finished run; None if there is no summary, or a requested figure is missing."""
    path = out / "summary.json"
    if not path.is_file():
        return None
    summary: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    has_rows = {"examples": any(record.rows for record in records), "wrong": bool(find_mistakes(records))}
    has_figures = all(
        summary.get("figures", {}).get(name) == count and ((out / f"{name}.png").is_file() or not has_rows[name])
        for name, count in figures.items()
        if count
    )
    return summary if has_figures else None


def _write_table(evaluation: Evaluation, settings: Mapping[str, Any], figures: Mapping[str, int], folder: Path) -> None:
    """Write ``results.csv`` and ``summary.json``."""
    rows = evaluation.rows()
    with (folder / "results.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    summary = {
        **settings,
        "counts": evaluation.counts,
        "skipped": {str(item): reason for item, reason in evaluation.skipped.items()},
        "bank_skipped": {str(item): reason for item, reason in evaluation.bank_skipped.items()},
        "results": rows,
        "figures": dict(figures),
        "versions": versions(),
    }
    write_json(folder / "summary.json", summary)
