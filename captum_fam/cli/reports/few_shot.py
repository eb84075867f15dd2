"""The rows of ``captum-fam report few-shot``: queries with the support images of their class."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

import torch

from captum_fam.cli.class_files import counts
from captum_fam.cli.reports.images import ImageEmbedder
from captum_fam.cli.reports.jobs import FewShotJob
from captum_fam.cli.reports.rows import JobRows, make_explainer, queries_to_show, read_queries_ahead, renamed
from captum_fam.explanation import Explanation
from captum_fam.explanation.reading.pictures import PictureBatch
from captum_fam.explanation.reading.queries import find_queries_among
from captum_fam.support import LeaveOutSupport, SimilarityToSupport


def few_shot_rows(job: FewShotJob, embedder: ImageEmbedder) -> JobRows:
    """The queries of a job with the supports of their class.

    Args:
        job: the job.
        embedder: embeds images with the model of the job.

    Raises:
        ValueError: for a class without an image that can be read.
    """
    support = embedder.read(job.support, "--support", keep_images=True)
    files = [path for members in job.support.values() for path in members if path not in embedder.unreadable]
    explainer = make_explainer(job, embedder, support)
    notes: list[str] = []
    embedded = cache(lambda: support.support.embed(embedder.net.model))

    def predict(paths: Sequence[Path], batch: PictureBatch) -> Mapping[Path, str]:
        own = find_queries_among(support.support, support.ids, batch.inputs, [])
        members = embedded()
        others = members if own.left_out is None else LeaveOutSupport(members, own.left_out)
        scores = SimilarityToSupport(embedder.net.model, others, similarity=embedder.net.similarity)
        with torch.no_grad():
            labels = scores.predict(batch.inputs)[1].tolist()
        return {path: members.class_names[label] for path, label in zip(paths, labels, strict=True)}

    def explanations(chosen: Sequence[Path]) -> Iterator[Explanation]:
        for paths, batch in read_queries_ahead(chosen, job, embedder, "explaining"):
            names = [job.queries.names[path] for path in paths]
            why = explainer.noted(notes, batch.inputs, target=job.target, images=batch.photos, names=names)
            for index in range(len(why)):
                yield renamed(why[index], files)

    chosen = queries_to_show(job, embedder, predict)
    about = {"support_images": counts(job.support)}
    truth = job.queries.truth_by_name
    return JobRows(explanations(chosen), len(job.queries.names), len(chosen), truth, about, notes=notes)
