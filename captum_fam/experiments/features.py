"""Activations and embeddings of a data set, for which every image passes through the backbone once."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from captum_fam._files import SETTINGS, sha256_of_file
from captum_fam.embedding import Batch, DatasetEmbedder, EmbeddedDataset
from captum_fam.embedding.ranks import Ranks
from captum_fam.experiments.two_part_model import TwoPartModel

Kept = Literal["activations", "images"]


class Features:
    """The features of the usable items of a data set, one row per item.

    Embeddings are in memory. Activations and images are in files; only the requested rows are read.

    Args:
        rows: columns ``"embeddings"`` and, if kept, ``"activations"`` and ``"images"``.

    Attributes:
        embeddings: ``(n, J)``.
        labels: class of each row, ``(n,)``.
        items: position of each row in the data set, ``(n,)``, ascending.
        boxes: boxes of each row, ``(m, 4)``; empty if the data set has no boxes.
        skipped: reason for each item without a row, by position in the data set.
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
        """Read the activations of rows.

        Args:
            rows: indices of the rows, int64 ``(k,)``.

        Returns:
            ``(k, N, h, w)``, or tokens, on the CPU.
        """
        return self._rows.rows("activations", rows)

    def images(self, rows: Tensor) -> Tensor:
        """Read the images of rows, as inputs of the backbone.

        Args:
            rows: indices of the rows, int64 ``(k,)``.

        Returns:
            ``(k, C, H, W)`` on the CPU.
        """
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
    source: str = "",
) -> Features:
    """Compute the features of all images of a data set; several processes share the images.

    Neither the batches nor the features depend on the number of processes. Images that cannot be read, and images whose
    features hold NaN or inf, are left out and listed in ``skipped``. If the process is killed, the features so far stay
    in ``folder``, and the same call continues from them. If ``folder`` holds all features, they are read instead of
    computed. The call must have the same model, data set and batch size.

    Args:
        model: result of :meth:`TwoPartModel.fast_copy`.
        dataset: items ``(image, label)`` or ``(image, label, boxes)``.
        folder: folder of the files; :func:`discard` removes the folder.
        keep: what is kept beside the embeddings, ``"activations"``, ``"images"`` or both. Default: activations.
        batch_size: images per batch. Default: 32.
        num_workers: number of processes that read images. Default: 0.
        ranks: the processes that share the work. Default: this process alone.
        progress: show a progress bar. Default: False.
        name: label of the progress bar. Default: ``"features"``.
        left_out: reason for each item to leave out, by position, whether or not the item is usable now; all other items
            must be usable. None leaves out the items that are not usable. Default: None.
        source: names what the features depend on; stored features of another source are refused. Default: empty.

    Returns:
        The features.

    Raises:
        ValueError: if no image could be read, or ``folder`` holds features of another data set or source; or, with
            ``left_out``, at the first other item that is not usable. The features of the items before stay in
            ``folder``.
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
        ranks=ranks,
        progress=name if progress and ranks.is_first else None,
        source=source,
    )
    return Features(embedder.run())


def source_of(results: Path) -> str:
    """The name of a run in its stored features.

    Args:
        results: the folder of the results.

    Returns:
        The hash of its settings; empty for a folder without settings.

    Example:
        >>> source_of(Path("no-such-folder"))
        ''
    """
    settings = results / SETTINGS
    return sha256_of_file(settings) if settings.is_file() else ""


def discard(folder: str | Path) -> None:
    """Remove the files of :func:`extract`.

    Args:
        folder: the folder, which need not exist.

    Example:
        >>> discard("no-such-folder")
    """
    shutil.rmtree(folder, ignore_errors=True)
