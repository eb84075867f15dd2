"""Running a protocol to its table: resumable, by one process or several."""

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
    """Run a protocol, or what an earlier run of the same settings left to do, and write its table.

    ``out`` gets ``records-*.jsonl`` while the run goes on, and ``skipped.json``, the images that it does without, which
    are in the records of ``contrastive``; then ``results.csv``, ``summary.json``, ``examples.png`` and, if asked for,
    ``wrong.csv`` and ``wrong.png``. A run that is killed goes on when it is started again; one that is finished, and
    has these figures, needs no image any more; a folder of other settings is refused.

    Args:
        protocol: the experiment.
        out: folder of the results.
        ranks: the processes that share the units. Default: this process alone.
        progress: show progress bars. Default: False.
        examples: queries in the figure; 0 for no figure. Default: 4.
        wrong: show as many of the most confident mistakes, with maps of the predicted and of the true class. Default:
            0, no figure.
        about: what else ``summary.json`` is to say, such as the names of model and data. Default: nothing.

    Returns:
        The table; None on all ranks but the first.

    Raises:
        ValueError: if ``out`` holds results of other settings, no query could be read, or an image that is still
            needed has become unusable since the run began.
        OSError: if the disk is full; what is done is safe.

    Example:
        >>> evaluation = evaluate(FewShot(model, dataset, episodes=600), "results")
        >>> evaluation.methods["fam"]["energy"].value
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
    """Run this process's share of the units that are missing."""
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
            # The other processes are about as far.
            bar.update(min(ranks.size, bar.total - bar.n))


def _finished_summary(out: Path, records: Sequence[UnitRecord], figures: Mapping[str, int]) -> dict[str, Any] | None:
    """The summary of a run that has left the figures that are asked for; None where they have yet to be drawn."""
    path = out / "summary.json"
    if not path.is_file():
        return None
    summary: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    has_rows = {"examples": any(record.rows for record in records), "wrong": bool(find_mistakes(records))}
    drawn = all(
        summary.get("figures", {}).get(name) == count and ((out / f"{name}.png").is_file() or not has_rows[name])
        for name, count in figures.items()
        if count
    )
    return summary if drawn else None


def _write_table(
    evaluation: Evaluation, made_with: Mapping[str, Any], figures: Mapping[str, int], folder: Path
) -> None:
    """Write ``results.csv`` and ``summary.json``."""
    rows = evaluation.rows()
    with (folder / "results.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    summary = {
        **made_with,
        "counts": evaluation.counts,
        "skipped": {str(item): reason for item, reason in evaluation.skipped.items()},
        "bank_skipped": {str(item): reason for item, reason in evaluation.bank_skipped.items()},
        "results": rows,
        "figures": dict(figures),
        "versions": versions(),
    }
    write_json(folder / "summary.json", summary)
