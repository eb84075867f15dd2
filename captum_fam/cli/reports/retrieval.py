"""The rows of ``captum-fam report retrieval`` and ``report knn``: queries with their nearest images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from captum_fam._warnings import warn_user
from captum_fam.cli.class_files import counts
from captum_fam.cli.reports.bank_hits import search_hits
from captum_fam.cli.reports.hits import FoundHits, HitSource
from captum_fam.cli.reports.images import ImageEmbedder
from captum_fam.cli.reports.jobs import GalleryJob
from captum_fam.cli.reports.list_hits import list_hits
from captum_fam.cli.reports.rows import (
    JobRows,
    classified,
    make_explainer,
    queries_to_show,
    read_queries_ahead,
    renamed,
)
from captum_fam.embedding.forward import embed_images
from captum_fam.explanation import Explainer, Explanation
from captum_fam.explanation.reading.pictures import PictureBatch


def gallery_rows(job: GalleryJob, embedder: ImageEmbedder) -> JobRows:
    """The queries of a job with their neighbors.

    Args:
        job: the job.
        embedder: embeds images with the model of the job.

    Raises:
        ValueError: for a bank that is no bank of the gallery or of the model, or an id that stands for no image.
        OSError: if the embeddings of a gallery cannot be written.
    """
    source: HitSource = search_hits(job, embedder) if job.hits is None else list_hits(job, job.hits, embedder)
    notes: list[str] = []
    decisions: dict[str, str] = {}
    remarks: dict[str, Mapping[int, str]] = {}
    are_classes = len(job.gallery) > 1

    def find(files: Sequence[Path], batch: PictureBatch) -> FoundHits:
        return source.find(files, embed_images(embedder.net.model, batch.inputs))

    def predict(files: Sequence[Path], batch: PictureBatch) -> Mapping[Path, str]:
        found = find(files, batch)
        return {files[position]: name for position, name in zip(found.kept, found.predicted, strict=True)}

    def explanations(chosen: Sequence[Path]) -> Iterator[Explanation]:
        explainer: Explainer | None = None
        foil: Any = None
        gaps: list[str] = []
        for files, batch in read_queries_ahead(chosen, job, embedder, "explaining"):
            found = find(files, batch)
            if found.neighbors is None:
                continue
            if found.note is not None and not gaps:
                gaps.append(found.note)
                warn_user(found.note, 1)
            kept = list(found.kept)
            foil, before = source.foil_of([files[position] for position in kept]), foil
            if explainer is None or foil is not before:
                explainer = make_explainer(job, embedder, found.neighbors, foil)
            why = explainer.noted(
                notes,
                batch.inputs[kept],
                target=None if job.k is None else list(found.predicted),
                images=[batch.photos[position] for position in kept],
                names=[job.queries.names[files[position]] for position in kept],
                support=found.neighbors,
            )
            for index in range(len(why)):
                query = why.names[index]
                if are_classes:
                    decisions[query] = found.decisions[index]
                if found.remarks:
                    remarks[query] = dict(enumerate(found.remarks[index]))
                classes = found.classes[index] if are_classes else [""] * len(found.classes[index])
                one = renamed(why[index], found.files[index], classes, [*source.notes, *gaps])
                name = found.predicted[index]
                # A list may have an image from beside the class folders, whose class is none of the gallery.
                yield classified(one, list(dict.fromkeys([*job.gallery, name])), name) if are_classes else one

    chosen = queries_to_show(job, embedder, predict)
    about = {"gallery_images": counts(job.gallery), **source.describe()}
    facts = {} if job.k is None else {"neighbors that vote (k)": str(job.k)}
    return JobRows(
        explanations(chosen),
        len(job.queries.names),
        len(chosen),
        job.queries.truth_by_name,
        about,
        facts,
        notes,
        decisions,
        remarks,
    )
