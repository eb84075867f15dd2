"""Neighbors that any search engine found, with the embeddings of the model of the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from captum_fam._text import printable, printable_path
from captum_fam.attr.account import number_in_words
from captum_fam.cli.class_files import report_unreadable
from captum_fam.cli.reports.hit_list import ImageIds, ListedHits
from captum_fam.cli.reports.hits import BY_NEAREST, FoundHits
from captum_fam.cli.reports.images import ImageEmbedder, read_foil_images
from captum_fam.cli.reports.jobs import GalleryJob
from captum_fam.explanation.reading.supports import PictureSupport
from captum_fam.image_files import same_files
from captum_fam.similarity import get_similarity
from captum_fam.support import Neighbors
from captum_fam.support.hits import read_scores
from captum_fam.support.score_gap import gap_in_words


@dataclass(frozen=True)
class ListHits:
    """The neighbors that a search engine found.

    Attributes:
        hits: the neighbors of each query, by the file of the query.
        files: for each query the files of its neighbors.
        labels: the class of each image of the gallery, by file; another image has the name of its folder.
        top: how many neighbors a row of the report shows.
        embedder: embeds the images of neighbors.
        foil: images of the gallery, among which the explainer itself finds a query; None if they are not needed.
    """

    hits: Mapping[Path, ListedHits]
    files: Mapping[Path, Sequence[Path]]
    labels: Mapping[Path, str]
    top: int
    embedder: ImageEmbedder
    foil: PictureSupport | None

    def foil_of(self, files: Sequence[Path]) -> PictureSupport | None:
        """The images of the gallery."""
        return self.foil

    @property
    def notes(self) -> Sequence[str]:
        """Nothing."""
        return ()

    def find(self, files: Sequence[Path], embedded: Tensor) -> FoundHits:
        """Look up the neighbors, and embed their images."""
        vectors = self.embedder.embed(list(dict.fromkeys(file for query in files for file in self.files[query])))
        has_scores = all(self.hits[query].scores for query in files)
        remarks: list[tuple[str, ...]] = []
        found: list[tuple[Path, ...]] = []
        scores, kept = [], []
        for position, query in enumerate(files):
            own = {second for _, second in same_files([query], self.files[query])}
            others = [rank for rank, file in enumerate(self.files[query]) if rank not in own and file in vectors]
            ranks = others[: self.top]
            if not ranks:
                reason = f"{printable_path(query)}: it has no neighbor besides itself that can be read"
                report_unreadable({query: reason}, self.embedder.unreadable)
                continue
            kept.append(position)
            found.append(tuple(self.files[query][rank] for rank in ranks))
            scores.append([self.hits[query].scores[rank] for rank in ranks] if has_scores else [])
            remarks.append(tuple(f"score of the engine {number_in_words(score)}" for score in scores[-1]))
        if not kept:
            return FoundHits()
        neighbors = Neighbors(
            [[str(file) for file in row] for row in found],
            fetch=lambda ids: torch.stack([vectors[Path(one)] for one in ids]),
            images=Path,
        )
        # The neighbors themselves would warn in every batch.
        note = self._gap(neighbors, scores, embedded[kept]) if has_scores else None
        classes = tuple(tuple(self.labels.get(file, file.parent.name) for file in row) for row in found)
        predicted = tuple(row[0] for row in classes)
        return FoundHits(
            neighbors,
            tuple(kept),
            predicted,
            tuple(found),
            classes,
            (BY_NEAREST,) * len(kept),
            tuple(remarks) if has_scores else (),
            note,
        )

    def _gap(self, neighbors: Neighbors, scores: Sequence[Sequence[float]], embedded: Tensor) -> str | None:
        similarity = get_similarity(self.embedder.net.similarity or "cosine")
        recomputed = neighbors.compare(embedded, None, similarity).similarities
        of_engine = read_scores(scores, neighbors.ids)
        return gap_in_words(embedded, neighbors.inputs, of_engine, recomputed, similarity, neighbors.ids)

    def describe(self) -> Mapping[str, Any]:
        """The file of the list."""
        first = next(iter(self.hits.values()))
        return {"neighbors": {"file": first.line.path.name, "queries": len(self.hits)}}


def list_hits(job: GalleryJob, hits: Mapping[Path, ListedHits], embedder: ImageEmbedder) -> ListHits:
    """Find the files of the neighbors in a list and, for the foil, embed a sample of the gallery.

    Args:
        job: the job.
        hits: the neighbors of each query, by the file of the query.
        embedder: the model, and what cannot be read.

    Raises:
        ValueError: for an id that stands for no image, or for the same image as another; the message has the line.
    """
    files = [file for members in job.gallery.values() for file in members]
    ids = ImageIds(files, job.gallery.folders)
    places: dict[Path, list[Path]] = {}
    for query, listed in hits.items():
        try:
            places[query] = [ids.path(one) for one in listed.ids]
        except ValueError as error:
            listed.line.refuse(f"an id of the query {printable(listed.query)}: {error}")
        if len({*places[query]}) < len(places[query]):
            listed.line.refuse(f"two ids of the query {printable(listed.query)} stand for the same image")
    foil = read_foil_images(files, "--gallery", job.page.seed, embedder) if job.foil == "gallery" else None
    labels = {file: name for name, members in job.gallery.items() for file in members}
    return ListHits(hits, places, labels, job.top, embedder, foil)
