"""What the reports of all kinds share: choosing queries, reading their images, and naming what a row shows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from captum_fam._warnings import warn_user
from captum_fam.cli.class_files import report_unreadable
from captum_fam.cli.explain_run import ahead
from captum_fam.cli.reports.images import ImageEmbedder
from captum_fam.cli.reports.jobs import FewShotJob, GalleryJob
from captum_fam.cli.reports.queries import choose_rows
from captum_fam.explanation import Explainer, Explanation
from captum_fam.explanation.reading.pictures import PictureBatch, read_batches
from captum_fam.explanation.reading.supports import float_type_of

Predict = Callable[[Sequence[Path], PictureBatch], Mapping[Path, str]]
"""``predict(files, batch)``: the predicted class by the file of the query."""


@dataclass
class JobRows:
    """The rows of a report.

    Attributes:
        explanations: makes the explanations, in the order of the rows.
        n_candidates: how many rows there would be without a limit.
        n_chosen: how many of them are explained.
        truth: the true class of queries, by the name of the query; empty if it is not known.
        about: what the queries are compared with, for the manifest.
        facts: what the page says of it above the rows, by name.
        notes: what the user has to know and was not told yet; more is added while the explanations are made.
        decisions: how the class of a query was found, in words, by the name of the query; added likewise.
        remarks: what a row says of its supports, by the name of the query and the number of the support; likewise.
    """

    explanations: Iterator[Explanation]
    n_candidates: int
    n_chosen: int
    truth: Mapping[str, str]
    about: Mapping[str, Any]
    facts: Mapping[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    decisions: dict[str, str] = field(default_factory=dict)
    remarks: dict[str, Mapping[int, str]] = field(default_factory=dict)


def queries_to_show(job: GalleryJob | FewShotJob, embedder: ImageEmbedder, predict: Predict) -> list[Path]:
    """The queries that get a row, in the order of the rows.

    Args:
        job: the job.
        embedder: the model, and what cannot be read.
        predict: predicts the class of a batch of queries; it is called where wrong predictions come first.
    """
    files, page = list(job.queries.names), job.page
    if not page.wrong_first:
        return choose_rows(files, page.max_rows, page.seed)
    predicted: dict[Path, str] = {}
    for paths, batch in read_queries_ahead(files, job, embedder, "predicting"):
        predicted |= predict(paths, batch)
    wrong = [path for path, name in predicted.items() if name != job.queries.truth[path]]
    warn_user(f"{len(wrong)} of {len(predicted)} predictions are wrong", 1)
    return choose_rows(list(predicted), page.max_rows, page.seed, set(wrong))


def read_queries_ahead(
    files: Sequence[Path], job: GalleryJob | FewShotJob, embedder: ImageEmbedder, words: str
) -> Iterator[tuple[list[Path], PictureBatch]]:
    """Read images batch by batch; the next batch is read while the caller works on the present one.

    Args:
        files: the files.
        job: the job.
        embedder: the model, and what cannot be read.
        words: what is done with the images, for the progress bar.

    Yields:
        Files and images of each batch.
    """
    reasons: dict[int, str] = {}
    preprocessing, dtype = embedder.net.preprocessing, float_type_of(embedder.net.model)
    batches = read_batches(files, preprocessing, job.run.batch_size, embedder.device, reasons, dtype)
    with tqdm(total=len(files), desc=words, unit="image", disable=job.run.quiet or None) as progress:
        for batch in ahead(batches):
            yield [files[position] for position in batch.positions], batch
            progress.update(len(batch.positions))
    report_unreadable({files[position]: reason for position, reason in reasons.items()}, embedder.unreadable)


def make_explainer(
    job: GalleryJob | FewShotJob, embedder: ImageEmbedder, support: Any, gallery: Any = None
) -> Explainer:
    """An explainer of both sides.

    Args:
        job: the job.
        embedder: the model.
        support: the support, as :class:`~captum_fam.Explainer` takes it.
        gallery: the gallery of a foil; used for ``--foil gallery`` only. Default: None, the support.
    """
    return Explainer(
        embedder.net,
        support,
        method=job.methods,
        foil=job.foil,
        gallery=gallery if job.foil == "gallery" else None,
        smooth=job.maps.smooth,
        sides="both",
        top=job.top,
        top_matches=job.page.matches,
        batch_size=job.run.batch_size,
    )


def renamed(
    why: Explanation, files: Sequence[Path], classes: Sequence[str] | None = None, notes: Sequence[str] = ()
) -> Explanation:
    """An explanation of one query with the names of files and classes, where a support has none.

    Args:
        why: the explanation.
        files: the file of each support.
        classes: the class of each support. Default: None, the classes of the explanation.
        notes: what the user has to know besides the notes of the explanation. Default: none.
    """
    assert why.pairs is not None  # reports have both sides
    pairs = tuple(
        tuple(
            replace(pair, name=files[pair.row].stem, label=pair.label if classes is None else classes[pair.row])
            for pair in of_query
        )
        for of_query in why.pairs
    )
    beside = tuple(renamed(other, files, classes, notes) for other in why.beside)
    return replace(why, pairs=pairs, notes=(*notes, *why.notes), beside=beside)


def classified(why: Explanation, class_names: Sequence[str], name: str) -> Explanation:
    """An explanation of one query, whose class follows from the rank or the votes of supports, or from a threshold.

    Args:
        why: the explanation, which knows of no classes or decides by the largest score.
        class_names: the names of all classes.
        name: the class of the query.

    Returns:
        The explanation with this class as the predicted and explained one. Other classes have the score -inf.
    """
    label = torch.tensor([class_names.index(name)], device=why.scores.device)
    scores = why.scores.new_full((1, len(class_names)), -torch.inf)
    scores[0, label] = why.target_scores
    beside = tuple(classified(other, class_names, name) for other in why.beside)
    return replace(why, class_names=tuple(class_names), scores=scores, predicted=label, target=label, beside=beside)
