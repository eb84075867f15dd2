"""The work of ``captum-fam report``: explains the rows, and writes them into one file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from captum_fam._files import lock_folder, versions
from captum_fam._progress import hidden_bars
from captum_fam._text import printable_path
from captum_fam._warnings import warn_user
from captum_fam.cli.advice import in_options
from captum_fam.cli.explain_files import describe_weights
from captum_fam.cli.loading import choose_device
from captum_fam.cli.out_files import report_place
from captum_fam.cli.reports.few_shot import few_shot_rows
from captum_fam.cli.reports.images import ImageEmbedder
from captum_fam.cli.reports.jobs import FewShotJob, GalleryJob, PairsJob, ReportJob
from captum_fam.cli.reports.pairs import pair_rows
from captum_fam.cli.reports.retrieval import gallery_rows
from captum_fam.cli.reports.rows import JobRows
from captum_fam.explanation import Explanation
from captum_fam.explanation.report_page import write_report
from captum_fam.image_folders import skipped_in_words
from captum_fam.models import EmbeddingModel, has_factory_weights

_TITLES = {
    "retrieval": "Why these images were found",
    "knn": "Why the neighbors vote for this class",
    "few-shot": "Why this class: queries and their support",
    "pairs": "Why two images match, or do not",
}
_RANDOM = "the model has random weights (--weights none): its maps and similarities explain nothing"
_MEGABYTE = 1e6


def write_job_report(job: ReportJob) -> int:
    """Explain the rows of a job, write the report, and print where it is.

    Args:
        job: the job.

    Returns:
        The exit code: 1 if an image could not be read, else 0.

    Raises:
        ValueError: for a model that cannot be loaded, a method that cannot explain it, supports that cannot be read, or
            a file that is no report of this package.
        OSError: if the report cannot be written, or another process writes it.
    """
    place = report_place(job.out)
    net = job.model.load()
    device = choose_device(job.run.device)
    net.model.to(device)
    unreadable: dict[Path, str] = {}
    bars = hidden_bars() if job.run.quiet else nullcontext()
    with bars, lock_folder(place.with_name(f"{place.name}.lock")):
        rows = _rows(job, ImageEmbedder(net, device, job.run, unreadable))
        manifest = _manifest(job, rows, net)
        page_notes = [_RANDOM] if _is_random(job) else []
        explanations = _Told(rows.explanations, manifest, unreadable, [*page_notes, *_sample(job, rows)])
        first = next(explanations, None)
        if first is not None:
            write_report(
                chain([first], explanations),
                place,
                title=job.page.title or _TITLES[job.kind],
                manifest=manifest,
                wrong_first=job.page.wrong_first,
                truth=rows.truth or None,
                facts={**_facts(job), **rows.facts},
                decisions=rows.decisions,
                remarks=rows.remarks,
            )
    for note in dict.fromkeys(map(in_options, rows.notes)):
        warn_user(note, 1)
    print(_summary(job, rows, explanations.count, len(unreadable)))
    if first is not None:
        print(printable_path(job.out))
    return 1 if unreadable else 0


def _manifest(job: ReportJob, rows: JobRows, net: EmbeddingModel) -> dict[str, Any]:
    """The settings of the report, as JSON can represent them."""
    return {
        "report": job.kind,
        "model": job.model.model,
        "weights": _weights(job, net),
        "preprocessing": net.preprocessing.describe(),
        **rows.about,
        "rows": {"of": rows.n_candidates, "most": job.page.max_rows, "seed": job.page.seed},
        "left_out": [{"file": str(path), "reason": reason} for path, reason in job.skipped.items()],
        "versions": versions(),
    }


def _weights(job: ReportJob, net: EmbeddingModel) -> dict[str, str]:
    """The weights; of a file its name and its hash, because a page that is mailed needs no path of a machine."""
    entry = describe_weights(job.model.weights or "DEFAULT", net.layout)
    return {**entry, "file": Path(entry["file"]).name} if "file" in entry else entry


def _facts(job: ReportJob) -> dict[str, str]:
    """What the page says of the model above the rows."""
    weights = job.model.weights
    if _is_random(job):
        return {"weights": "none: random"}
    return {"weights": "the default of the model" if weights is None else Path(weights).name}


def _is_random(job: ReportJob) -> bool:
    return job.model.weights == "none" and not has_factory_weights(job.model.model)


def _summary(job: ReportJob, rows: JobRows, n_shown: int, n_unreadable: int) -> str:
    """What the report shows and what not, in one line."""
    others = rows.n_candidates - rows.n_chosen
    sample = f" of {rows.n_candidates} ({others} left out by --max-rows {job.page.max_rows})"
    sample = sample if _sample(job, rows) else ""
    skipped = f"; left out: {skipped_in_words(job.skipped)}" if job.skipped else ""
    size = f"; {job.out.stat().st_size / _MEGABYTE:.2f} MB" if n_shown else "; no report is written"
    return f"{n_shown}{sample} shown, {n_unreadable} unreadable{skipped}{size}"


def _sample(job: ReportJob, rows: JobRows) -> list[str]:
    """The note that there are more rows than the report shows."""
    if rows.n_chosen < min(job.page.max_rows, rows.n_candidates) or rows.n_chosen == rows.n_candidates:
        return []
    order = ", the wrong predictions among them first" if job.page.wrong_first else ""
    return [f"a sample of {rows.n_chosen} of {rows.n_candidates} rows{order} (--max-rows, --seed {job.page.seed})"]


def _rows(job: ReportJob, embedder: ImageEmbedder) -> JobRows:
    if isinstance(job, GalleryJob):
        return gallery_rows(job, embedder)
    if isinstance(job, FewShotJob):
        return few_shot_rows(job, embedder)
    assert isinstance(job, PairsJob)
    return pair_rows(job, embedder)


def _in_options(one: Explanation) -> Explanation:
    """An explanation with notes in the words of the command line."""
    beside = tuple(map(_in_options, one.beside))
    return replace(one, notes=tuple(filter(None, map(in_options, one.notes))), beside=beside)


class _Told(Iterator[Explanation]):
    """Explanations of which the manifest tells: their settings, and at the end the images that cannot be read.

    The first one gets the notes of all.
    """

    def __init__(
        self,
        explanations: Iterator[Explanation],
        manifest: dict[str, Any],
        unreadable: Mapping[Path, str],
        notes: Sequence[str],
    ) -> None:
        self.count = 0
        self._explanations = explanations
        self._manifest = manifest
        self._unreadable = unreadable
        self._notes = notes

    def __next__(self) -> Explanation:
        one = next(self._explanations, None)
        if one is None:
            self._manifest["unreadable"] = [
                {"file": str(path), "error": reason} for path, reason in self._unreadable.items()
            ]
            raise StopIteration
        one = _in_options(one)
        if not self.count:
            settings = dict(self._manifest)
            one = replace(one, notes=(*self._notes, *one.notes))
            self._manifest |= {**one.about, "methods": [each.method for each in (one, *one.beside)], **settings}
        self.count += len(one)
        return one
