"""Every image through the backbone once: activations and embeddings of a data set."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from captum_fam.embedding import Batch, DatasetEmbedder, EmbeddedDataset
from captum_fam.experiments.distributed import Ranks
from captum_fam.experiments.split_model import TwoPartModel

Kept = Literal["activations", "images"]


class Features:
    """The features of the items of a data set that could be used, row by row.

    Embeddings are in memory; activations and images are in files, from which the rows that are asked for are read.

    Args:
        rows: with the column ``"embeddings"``, and those of what was kept.

    Attributes:
        embeddings: ``(n, J)``.
        labels: ``(n,)``.
        items: the position of each row in the data set, ``(n,)`` ascending.
        boxes: per row ``(m, 4)``; empty where the data set has none.
        skipped: the other items, by position, with the reason.
    """

    def __init__(self, rows: EmbeddedDataset) -> None:
        self._rows = rows
        self.embeddings = rows.column("embeddings")
        self.labels = rows.labels
        self.items = rows.items
        self.boxes = rows.boxes
        self.skipped = rows.skipped

    def __len__(self) -> int:
        return len(self._rows)

    def activations(self, rows: Tensor) -> Tensor:
        """Activations of some rows, ``(len(rows), N, h, w)`` on the CPU."""
        return self._rows.rows("activations", rows)

    def images(self, rows: Tensor) -> Tensor:
        """Images of some rows as the backbone takes them, ``(len(rows), 3, H, W)`` on the CPU."""
        return self._rows.rows("images", rows)


def extract(
    model: TwoPartModel,
    dataset: Dataset[Any],
    folder: str | Path,
    keep: Sequence[Kept] = ("activations",),
    *,
    batch_size: int = 32,
    num_workers: int = 0,
    ranks: Ranks | None = None,
    progress: bool = False,
    name: str = "features",
    left_out: Mapping[int, str] | None = None,
) -> Features:
    """Run all images through the model, the processes sharing them.

    Batches are the same however many processes there are, and so are the features. Images that cannot be read, and
    images whose features hold NaN or inf, are left out and named in ``skipped``. What a killed process has extracted is
    kept in ``folder``, and the same call goes on from there; a folder that holds all of it is read instead. The call
    must be of the same model, data set and batch size.

    Args:
        model: from :meth:`TwoPartModel.fast_copy`.
        dataset: items ``(image, label)`` or ``(image, label, boxes)``.
        folder: for the files; :func:`discard` removes it.
        keep: ``"activations"`` and ``"images"`` as asked for. Default: activations.
        batch_size: images per batch. Default: 32.
        num_workers: processes that read. Default: 0.
        ranks: the processes that share the work. Default: this one alone.
        progress: show a progress bar. Default: False.
        name: on the bar. Default: ``"features"``.
        left_out: the items, with the reason, that a run does without whatever has become of them since it began; any
            other must be usable. None: any may be left out. Default: None.

    Raises:
        ValueError: if nothing could be read; or at the first item that is unusable and not one of ``left_out``. What
            was extracted before it is kept.
        OSError: if the disk is full.
    """
    ranks = ranks or Ranks()

    @torch.no_grad()
    def compute(batch: Batch) -> dict[str, Tensor]:
        activation = model.activation(batch.images)
        columns = {"embeddings": model.tail(activation), "activations": activation, "images": batch.images}
        return {column: columns[column] for column in ("embeddings", *keep)}

    embedder = DatasetEmbedder(
        compute,
        dataset,
        folder,
        batch_size=batch_size,
        num_workers=num_workers,
        on_error="skip",
        on_not_finite="skip",
        left_out=left_out,
        processes=ranks,
        progress=name if progress and ranks.is_first else None,
    )
    return Features(embedder.run())


def discard(folder: str | Path) -> None:
    """Remove the files of :func:`extract`."""
    shutil.rmtree(folder, ignore_errors=True)
