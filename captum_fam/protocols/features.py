"""Every image through the backbone once: activations and embeddings of a dataset."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from io import FileIO
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from captum_fam._staging import staged
from captum_fam.batches import BatchLoader
from captum_fam.protocols.model import TwoPartModel
from captum_fam.protocols.ranks import Ranks

Kept = Literal["activations", "images"]
_INDEX = "index.pt"


class Features:
    """The features of the items of a dataset that could be read, row by row.

    Embeddings are in memory; activations and images are in files, from which the rows that are asked for are read.

    Args:
        embeddings: ``(n, J)``.
        labels: ``(n,)``.
        items: the position of each row in the dataset, ``(n,)`` ascending.
        boxes: of each row, ``(m, 4)``; empty where the dataset has none.
        skipped: of the other items the reason, by position.
        files: per kind an array with one row an item of the dataset.
    """

    def __init__(
        self,
        embeddings: Tensor,
        labels: Tensor,
        items: Tensor,
        boxes: Sequence[Tensor],
        skipped: dict[int, str],
        files: Mapping[Kept, np.ndarray[Any, Any]],
    ) -> None:
        self.embeddings = embeddings
        self.labels = labels
        self.items = items
        self.boxes = boxes
        self.skipped = skipped
        self._files = files

    def __len__(self) -> int:
        return len(self.labels)

    def activations(self, rows: Tensor) -> Tensor:
        """``(len(rows), N, h, w)`` on the CPU."""
        return self._rows("activations", rows)

    def images(self, rows: Tensor) -> Tensor:
        """As the backbone takes them, ``(len(rows), 3, H, W)`` on the CPU."""
        return self._rows("images", rows)

    def _rows(self, kind: Kept, rows: Tensor) -> Tensor:
        return torch.from_numpy(self._files[kind][self.items[rows].numpy()])


@torch.no_grad()
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
) -> Features:
    """Run all images through the model, the processes sharing them.

    Batches are the same however many processes there are, and so are the features. Images that cannot be read, and
    those whose features hold NaN or inf, are left out and named in ``skipped``. A folder that holds all of it already
    is read instead: it must be of the same model and dataset.

    Args:
        model: from :meth:`TwoPartModel.fast_copy`.
        dataset: items ``(image, label)`` or ``(image, label, boxes)``.
        folder: for the files of what is kept; :func:`discard` removes it.
        keep: ``"activations"`` and ``"images"`` as asked for.
        batch_size: images a batch.
        num_workers: processes that read.
        ranks: the processes that share the work.
        progress: show a progress bar.

    Raises:
        ValueError: if nothing could be read.
        OSError: if the disk is full.
    """
    ranks = ranks or Ranks()
    folder = Path(folder)
    if (folder / _INDEX).is_file():
        return _open(folder)
    n_items = len(dataset)  # type: ignore[arg-type]
    starts = ranks.share(range(0, n_items, batch_size))
    mine = [item for start in starts for item in range(start, min(start + batch_size, n_items))]
    loader = BatchLoader(dataset, mine, batch_size, num_workers, on_error="skip")
    writers = {kind: _RowWriter(folder / kind) for kind in keep}
    skipped: dict[int, str] = {}
    parts: list[_Part] = []
    bar = tqdm(total=len(mine), desc="features", unit="img", disable=not (progress and ranks.is_first))
    try:
        for batch in loader:
            activation = model.activation(batch.images)
            embedding = model.tail(activation).cpu()
            activation = activation.cpu().contiguous()
            for kind, writer in writers.items():
                writer.write(batch.indices, activation if kind == "activations" else batch.images)
            finite = activation.flatten(1).isfinite().all(1) & embedding.isfinite().all(1)
            skipped.update(dict.fromkeys(batch.indices[~finite].tolist(), "its features hold NaN or inf"))
            boxes = tuple(box for box, good in zip(batch.boxes, finite.tolist(), strict=False) if good)
            parts.append(_Part(embedding[finite], batch.labels[finite], batch.indices[finite], boxes))
            bar.update(len(batch.indices))
    finally:
        bar.close()
        shapes = {kind: writer.close() for kind, writer in writers.items()}
    gathered = ranks.gather((parts, {**loader.skipped, **skipped}, shapes))
    if ranks.is_first:
        with staged(folder) as scratch:
            torch.save(_index(gathered, n_items), scratch / _INDEX)
    ranks.wait()
    return _open(folder)


class _Part(NamedTuple):
    embeddings: Tensor
    labels: Tensor
    items: Tensor
    boxes: tuple[Tensor, ...]


def _index(
    gathered: list[tuple[list[_Part], dict[int, str], dict[Kept, tuple[int, ...]]]], n_items: int
) -> dict[str, Any]:
    """What all processes have read, in the order of the dataset."""
    parts = [part for ours, _, _ in gathered for part in ours]
    skipped = {item: reason for _, theirs, _ in gathered for item, reason in theirs.items()}
    if not any(len(part.items) for part in parts):
        raise ValueError(f"dataset: no usable image among {n_items}; the first: {next(iter(skipped.values()), 'none')}")
    order = torch.cat([part.items for part in parts]).argsort()
    boxes = [box for part in parts for box in part.boxes]
    return {
        "embeddings": torch.cat([part.embeddings for part in parts])[order],
        "labels": torch.cat([part.labels for part in parts])[order],
        "items": torch.cat([part.items for part in parts])[order],
        "boxes": [boxes[index] for index in order.tolist()] if boxes else [],
        "skipped": dict(sorted(skipped.items())),
        "shapes": {kind: shape for _, _, theirs in gathered for kind, shape in theirs.items() if shape},
    }


def _open(folder: Path) -> Features:
    index = torch.load(folder / _INDEX, weights_only=True)
    shapes: dict[Kept, tuple[int, ...]] = index.pop("shapes")
    n_rows = int(index["items"][-1]) + 1
    files = {kind: np.memmap(folder / kind, np.float32, "r", shape=(n_rows, *shape)) for kind, shape in shapes.items()}
    return Features(**index, files=files)


class _RowWriter:
    """Writes rows of one shape at their places in a file that several processes fill."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        self._path = path
        self._file = FileIO(path, "r+b")
        self._shape: tuple[int, ...] = ()

    def write(self, rows: Tensor, values: Tensor) -> None:
        self._shape = tuple(values.shape[1:])
        try:
            for row, value in zip(rows.tolist(), values.numpy(), strict=True):
                self._file.seek(row * value.nbytes)
                data = memoryview(value).cast("B")
                while data:
                    data = data[self._file.write(data) :]
        except OSError as error:
            raise OSError(
                error.errno,
                f"{self._path} cannot be written: {error.strerror}. It holds {value.nbytes / 2**20:.2f} MiB an image; "
                "make room, or choose a folder elsewhere",
            ) from error

    def close(self) -> tuple[int, ...]:
        """The shape of the rows; empty where there were none."""
        self._file.close()
        return self._shape


def discard(folder: str | Path) -> None:
    """Remove the files of :func:`extract`."""
    shutil.rmtree(folder, ignore_errors=True)
