"""Neighbors that are searched in a gallery or in a memory bank of it."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from captum_fam._text import printable, printable_path
from captum_fam._warnings import warn_user
from captum_fam.cli.class_files import report_unreadable
from captum_fam.cli.explain import Classes, ExplainJob, OutputOptions
from captum_fam.cli.explain_supports import BankSupport, make_support, rows_of_queries
from captum_fam.cli.reports.hits import BY_NEAREST, FoundHits
from captum_fam.cli.reports.images import ImageEmbedder
from captum_fam.cli.reports.jobs import GalleryJob
from captum_fam.image_files import FoundFiles
from captum_fam.images import UnreadableImageError, read_image
from captum_fam.similarity import get_similarity
from captum_fam.similarity.registry import are_equal
from captum_fam.support import Gallery, MemoryBank, Neighbors

_MOST_COMPARED = 16  # rows of a bank
_TOLERANCE = 0.02  # of the length of an embedding: rounding in half precision, and on another device


@dataclass(frozen=True)
class BankHits:
    """The nearest rows of a memory bank.

    Attributes:
        rows: the bank, and the files of its items.
        k: how many rows vote; None for neighbors that do not vote.
        unreadable: gets the reason for each image of a row that cannot be read.
    """

    rows: BankSupport
    k: int | None
    unreadable: dict[Path, str]

    def foil_of(self, files: Sequence[Path]) -> MemoryBank | Gallery:
        """The bank, without the rows that are a query."""
        rows = [list(self.rows.own_rows.get(file, ())) for file in files]
        return Gallery(self.rows.support, left_out=rows) if any(rows) else self.rows.support

    @property
    def notes(self) -> Sequence[str]:
        """The notes of the bank."""
        return self.rows.notes

    def find(self, files: Sequence[Path], embedded: Tensor) -> FoundHits:
        """Search the nearest rows."""
        kept = [number for number, file in enumerate(files) if self._has_others(file)]
        if not kept:
            return FoundHits()
        bank = self.rows.without([files[number] for number in kept]) or self.rows.support
        vote = bank.classify(embedded[kept])
        hits = [
            [row for row, similarity in zip(*found, strict=True) if similarity > -torch.inf]
            for found in zip(vote.neighbor_indices.tolist(), vote.similarities.tolist(), strict=True)
        ]
        names = bank.class_names
        labels = [bank.labels[found].tolist() for found in hits]
        classes = tuple(tuple(names[label] for label in row) for row in labels)
        hit_files = tuple(tuple(map(self._file, found)) for found in hits)
        options: dict[str, Any] = {"embeddings": bank.embeddings, "images": self._image}
        remarks: list[tuple[str, ...]] = []
        if self.k is None:
            predicted = [row[0] for row in classes]
            decisions = [BY_NEAREST] * len(predicted)
        else:
            options |= {"labels": labels, "class_names": names}
            predicted = [names[label] for label in vote.predicted.tolist()]
            shares = vote.class_scores.gather(1, vote.predicted[:, None]).flatten().tolist()
            decisions = [
                f"{row.count(name)} of {len(row)} votes, {100 * share:.0f} % by weight"
                for row, name, share in zip(classes, predicted, shares, strict=True)
            ]
            remarks = [
                tuple("voted for this class" if label == name else "" for label in row)
                for row, name in zip(classes, predicted, strict=True)
            ]
        return FoundHits(
            Neighbors(hits, **options),
            tuple(kept),
            tuple(predicted),
            hit_files,
            classes,
            tuple(decisions),
            tuple(remarks),
        )

    def _has_others(self, file: Path) -> bool:
        """Whether there is a row that is not the query itself."""
        has_others = len(self.rows.own_rows.get(file, ())) < len(self.rows.support)
        if not has_others:
            reason = f"{printable_path(file)}: it has no neighbor besides itself"
            report_unreadable({file: reason}, self.unreadable)
        return has_others

    def _file(self, row: int) -> Path:
        return self.rows.gallery[int(self.rows.support.items[row])]

    def _image(self, row: int) -> Image | None:
        """The image of a row; None if it cannot be read, as where it was removed since the bank was made."""
        try:
            return read_image(self._file(row))
        except UnreadableImageError as error:
            report_unreadable({self._file(row): str(error)}, self.unreadable)
            return None

    def describe(self) -> Mapping[str, Any]:
        """The options of the bank, and its file."""
        entries = self.rows.describe()
        bank = {"bank": Path(entries["bank"]).name} if "bank" in entries else {}
        return {**bank, "neighbors": entries["neighbors"]}


def search_hits(job: GalleryJob, embedder: ImageEmbedder) -> BankHits:
    """Embed the gallery of a job, or read its memory bank.

    Args:
        job: the job.
        embedder: the model, and what cannot be read.

    Raises:
        ValueError: for a bank that is no bank of the images of the gallery, or of the model.
        OSError: if the embeddings of a gallery cannot be written.
    """
    search = _search_of(job, gallery=job.gallery) if job.bank is None else _search_of(job, bank=job.bank)
    bank = make_support(search, embedder.net, embedder.device, embedder.unreadable)
    assert isinstance(bank, BankSupport)
    if job.bank is not None:
        bank = _with_files(bank, job)
        _check_images(bank, job, embedder)
    if job.k is not None:
        if job.k > len(bank.support):
            warn_user(f"--k {job.k}: there are only {len(bank.support)} to vote", 1)
        bank = replace(bank, support=bank.support.using(k=job.k))
    return BankHits(bank, job.k, embedder.unreadable)


def _check_images(support: BankSupport, job: GalleryJob, embedder: ImageEmbedder) -> None:
    """Refuse a bank whose rows are not the embeddings of the images of the gallery in their order, by a sample."""
    bank, name = support.support, f"--bank {printable_path(job.bank or '')}"
    rows = sorted(random.Random(job.page.seed).sample(range(len(bank)), min(len(bank), _MOST_COMPARED)))
    files = [support.gallery[int(bank.items[row])] for row in rows]
    made = embedder.embed(list(dict.fromkeys(files)))
    for row, file in zip(rows, files, strict=True):
        if file not in made:
            continue
        stored, now = (one.flatten().double().cpu() for one in (bank.embeddings[row], made[file]))
        if stored.shape != now.shape:
            raise ValueError(f"{name} has rows of {len(stored)} numbers, but the model gives {len(now)}")
        if are_equal(bank.similarity, get_similarity("cosine")):
            # A bank of unit vectors has the same cosines.
            stored, now = (torch.nn.functional.normalize(one, dim=0) for one in (stored, now))
        if float((stored - now).norm()) > _TOLERANCE * float(torch.maximum(stored.norm(), now.norm())):
            raise ValueError(
                f"{name}: its row {row} is not the embedding of image {int(bank.items[row])} of --gallery, "
                f"{printable_path(file)}; give the folder that the bank was made of, with the same files, or leave out "
                "--bank to embed the gallery"
            )


def _search_of(job: GalleryJob, *, gallery: Classes | None = None, bank: Path | None = None) -> ExplainJob:
    """The search of a report as ``captum-fam explain`` makes it, so that both keep and read the same embeddings."""
    queries: FoundFiles[Path, str] = FoundFiles()
    queries.update(job.queries.names)
    return ExplainJob(
        queries=queries,
        supports=None,
        gallery=gallery,
        bank=bank,
        top=job.top if job.k is None else None,
        foil=None,
        target=None,
        methods=(),
        model=job.model,
        run=job.run,
        output=OutputOptions(),
        out=job.out,
    )


def _with_files(support: BankSupport, job: GalleryJob) -> BankSupport:
    """A bank from a file, with the images of its rows."""
    bank = support.support
    files = [file for members in job.gallery.values() for file in members]
    labels = [name for name, members in job.gallery.items() for _ in members]
    name = f"--bank {printable_path(job.bank or '')}"
    last = int(bank.items[-1])
    if last >= len(files):
        raise ValueError(
            f"{name} has a row of image {last}, counted from 0, but --gallery has {len(files)} images; give the folder "
            "that the bank was made of"
        )
    if len(job.gallery) > 1:
        for row, item in enumerate(bank.items.tolist()):
            given = bank.class_names[int(bank.labels[row])]
            if given != labels[item]:
                raise ValueError(
                    f"{name}: its row {row} is of the class {printable(given)}, but image {item} of --gallery, "
                    f"{printable_path(files[item])}, is of {printable(labels[item])}; give the folder that the bank "
                    "was made of"
                )
    own_rows = rows_of_queries(bank, files, list(job.queries.names))
    placed = replace(support, gallery=files, own_rows=own_rows)
    for note in placed.notes:
        if note not in support.notes:
            warn_user(note, 1)
    return placed
