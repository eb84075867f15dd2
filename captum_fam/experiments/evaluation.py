"""Runs a protocol and writes its table; a run can be resumed, and can have several processes."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from captum_fam._files import lock_folder, read_json, versions, write_all_or_nothing, write_json
from captum_fam._progress import progress_bar
from captum_fam.embedding.ranks import Ranks
from captum_fam.experiments.features import discard
from captum_fam.experiments.protocols.base import PreparedProtocol, Protocol
from captum_fam.experiments.protocols.features_protocol import SKIPPED
from captum_fam.experiments.protocols.query_bank import BANK
from captum_fam.experiments.record_checks import RecordRules
from captum_fam.experiments.records import UnitRecord, by_item
from captum_fam.experiments.result_store import ResultStore
from captum_fam.experiments.run_figures import draw_examples, draw_mistakes, find_mistakes
from captum_fam.experiments.table import Evaluation, summarize_records

_FEATURES = "features"
_SUMMARY = "summary.json"


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
        ValueError: if ``out`` holds results of other settings, or files that are broken or belong to another run; if no
            query could be read, if too few images of a class could be read, or if an image that is still needed has
            become unusable since the run began.
        OSError: if ``out`` cannot be written, another process works in it, or the disk is full; the results so far are
            safe.

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
    with lock_folder(out, ranks.is_first):
        return _evaluate(protocol, Path(out), ranks, progress, {"examples": examples, "wrong": wrong}, about or {})


def _evaluate(
    protocol: Protocol, out: Path, ranks: Ranks, progress: bool, figures: Mapping[str, int], about: Mapping[str, Any]
) -> Evaluation | None:
    """The work of :func:`evaluate` in a folder that no other run uses."""
    settings = protocol.settings()
    rules = RecordRules(
        len(protocol),
        len(protocol.dataset),  # type: ignore[arg-type]
        [method.name for method in protocol.panel.methods],
        protocol.panel.allowed_values(),
    )
    prepared: PreparedProtocol[Any] | None = None
    with closing(ResultStore(out, settings, ranks, rules)) as store:
        missing = [unit for unit in range(len(protocol)) if unit not in store.done]
        earlier = None if missing else _finished_summary(out, store.records(), figures)
        if earlier is None:
            prepared = _prepare(protocol, store, progress)
            _run_units(prepared, store, missing, progress)
    ranks.wait()
    if not ranks.is_first:
        return None
    records = store.records()
    if prepared is not None:
        evaluation = summarize_records(protocol, records, prepared.skipped, prepared.bank_skipped)
    else:
        assert earlier is not None
        evaluation = summarize_records(protocol, records, earlier.skipped, earlier.bank_skipped)
    with write_all_or_nothing(out) as scratch:
        _write_table(evaluation, {"about": dict(about), **settings}, figures, scratch)
        if prepared is not None and figures["examples"]:
            draw_examples(prepared, records, figures["examples"], scratch)
        if prepared is not None and figures["wrong"]:
            draw_mistakes(prepared, records, figures["wrong"], scratch)
    discard(out / _FEATURES)
    return evaluation


def _prepare(protocol: Protocol, store: ResultStore, progress: bool) -> PreparedProtocol[Any]:
    """Prepare the protocol; a run that cannot begin, because its images do not suffice, leaves no files."""
    try:
        return protocol.prepare(store.folder / _FEATURES, store.ranks, progress)
    except ValueError:
        if store.is_new and store.ranks.is_first:
            discard(store.folder / _FEATURES)
            for name in (SKIPPED, BANK):
                (store.folder / name).unlink(missing_ok=True)
            store.withdraw()
        raise


def _run_units(prepared: PreparedProtocol[Any], store: ResultStore, missing: Sequence[int], progress: bool) -> None:
    """Run the share of this process in the missing units."""
    protocol, ranks = prepared.protocol, store.ranks
    bar = progress_bar(
        total=len(protocol),
        initial=len(protocol) - len(missing),
        desc=protocol.name,
        unit=protocol.unit,
        shown=progress and ranks.is_first,
    )
    with bar:
        for record in prepared.run(ranks.share(missing)):
            store.append(record)
            # The other processes have finished about as many units.
            bar.update(min(ranks.size, bar.total - bar.n))


class _Earlier(NamedTuple):
    """The items that a finished run left out, from its summary, with the reasons."""

    skipped: dict[int, str]
    bank_skipped: dict[int, str]


def _finished_summary(out: Path, records: Sequence[UnitRecord], figures: Mapping[str, int]) -> _Earlier | None:
    """The items that a finished run left out; None if there is no summary, or a requested figure is missing."""
    path = out / _SUMMARY
    if not path.is_file():
        return None
    remedy = "delete it: it is then made again"
    summary = read_json(path, remedy)
    try:
        drawn = dict(summary["figures"])
        earlier = _Earlier(by_item(summary["skipped"]), by_item(summary["bank_skipped"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} is no summary of a run of this version; {remedy}") from error
    has_rows = {"examples": any(record.rows for record in records), "wrong": bool(find_mistakes(records))}
    has_figures = all(
        drawn.get(name) == count and ((out / f"{name}.png").is_file() or not has_rows[name])
        for name, count in figures.items()
        if count
    )
    return earlier if has_figures else None


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
    write_json(folder / _SUMMARY, summary)
