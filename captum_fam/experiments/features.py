"""Every image through the backbone once: activations and embeddings of a dataset."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from captum_fam._files import staged
from captum_fam.embedding.batches import BatchLoader
from captum_fam.experiments.distributed import Ranks
from captum_fam.experiments.split_model import TwoPartModel
from captum_fam.images import UnreadableImageError

Kept = Literal["activations", "images"]
_INDEX = "index.pt"
_BLOCKS = "blocks"
_BATCHES_A_BLOCK = 16
_NOT_FINITE = "its features hold NaN or inf"


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
    name: str = "features",
    left_out: Mapping[int, str] | None = None,
) -> Features:
    """Run all images through the model, the processes sharing them.

    Batches are the same however many processes there are, and so are the features. Images that cannot be read, and
    those whose features hold NaN or inf, are left out and named in ``skipped``. What a killed process has extracted is
    kept in blocks, and the same call goes on from there; a folder that holds all of it already is read instead. It must
    be of the same model, dataset and batch size.

    Args:
        model: from :meth:`TwoPartModel.fast_copy`.
        dataset: items ``(image, label)`` or ``(image, label, boxes)``.
        folder: for the files of what is kept; :func:`discard` removes it.
        keep: ``"activations"`` and ``"images"`` as asked for.
        batch_size: images a batch.
        num_workers: processes that read.
        ranks: the processes that share the work.
        progress: show a progress bar.
        name: on the bar.
        left_out: the items, with the reason, that a run does without whatever has become of them since it began; any
            other must be usable. None: any may be left out.

    Raises:
        ValueError: if nothing could be read; or at the first item that is unusable and not one of ``left_out``. What
            was extracted before it is kept.
        OSError: if the disk is full.
    """
    ranks = ranks or Ranks()
    folder = Path(folder)
    if not (folder / _INDEX).is_file():
        shown = name if progress and ranks.is_first else None
        read = dataset if left_out is None else _Without(dataset, left_out)
        _fill_blocks(model, read, folder, keep, batch_size, num_workers, ranks, shown)
        ranks.wait()
        if ranks.is_first:
            _close_blocks(folder, len(dataset))  # type: ignore[arg-type]
        ranks.wait()
    return _open(folder)


class _Without(Dataset[Any]):
    """A dataset some of whose items count as unreadable, and no others may be.

    Args:
        dataset: with these items.
        left_out: of them the unreadable ones, with the reason.
    """

    def __init__(self, dataset: Dataset[Any], left_out: Mapping[int, str]) -> None:
        self.dataset = dataset
        self.records = getattr(dataset, "records", ())
        self.left_out = left_out

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Any:
        if index in self.left_out:
            raise UnreadableImageError(self.left_out[index])
        return self.dataset[index]


class _Part(NamedTuple):
    embeddings: Tensor
    labels: Tensor
    items: Tensor
    boxes: tuple[Tensor, ...]


@dataclass
class _Block:
    """Some batches: where they start in the dataset, parts that are plain tuples, and the shapes of rows in files."""

    starts: list[int] = field(default_factory=list)
    parts: list[tuple[Tensor, Tensor, Tensor, tuple[Tensor, ...]]] = field(default_factory=list)
    skipped: dict[int, str] = field(default_factory=dict)
    shapes: dict[Kept, tuple[int, ...]] = field(default_factory=dict)


def _fill_blocks(
    model: TwoPartModel,
    dataset: Dataset[Any],
    folder: Path,
    keep: Sequence[Kept],
    batch_size: int,
    num_workers: int,
    ranks: Ranks,
    bar_name: str | None,
) -> None:
    """Extract what no block has yet."""
    n_items = len(dataset)  # type: ignore[arg-type]
    done = {start for block in _read_blocks(folder) for start in block.starts}
    # All have read before any writes, so that they agree on what is left to do.
    ranks.wait()
    waiting = ranks.share([start for start in range(0, n_items, batch_size) if start not in done])
    items = [item for start in waiting for item in range(start, min(start + batch_size, n_items))]
    loader = BatchLoader(dataset, items, batch_size, num_workers, on_error="skip")
    with ExitStack() as files:
        writers = {kind: files.enter_context(closing(_RowWriter(folder / kind))) for kind in keep}
        bar = files.enter_context(tqdm(total=len(items), desc=bar_name, unit="img", disable=bar_name is None))
        block = _Block()

        def save(starts: list[int]) -> None:
            """The block with these batches, and whatever of them could not be read."""
            nonlocal block
            block.starts += starts
            ours = {*block.starts}
            unread = {item: why for item, why in loader.skipped.items() if item - item % batch_size in ours}
            block.skipped = {**unread, **block.skipped}
            block.shapes = {kind: writer.shape for kind, writer in writers.items()}
            for writer in writers.values():
                writer.sync()
            with staged(folder / _BLOCKS) as scratch:
                _save(vars(block), scratch / f"{block.starts[0]:010d}.pt", folder)
            block = _Block()

        def stop_at_unusable(found: Mapping[int, str]) -> None:
            """Keep what comes before the first item that may not be left out, and stop."""
            further = sorted(found.keys() - dataset.left_out.keys()) if isinstance(dataset, _Without) else []
            if not further:
                return
            before = waiting[: waiting.index(further[0] // batch_size * batch_size)]
            if before:
                save(before)
            raise ValueError(
                f"dataset: {found[further[0]]}; usable when this run began, so that its units would change without "
                "it: restore it, or begin another run in another folder"
            )

        for batch in loader:
            activation = model.activation(batch.images)
            embedding = model.tail(activation).cpu()
            activation = activation.cpu().contiguous()
            for kind, writer in writers.items():
                writer.write(batch.indices, activation if kind == "activations" else batch.images)
            finite = activation.flatten(1).isfinite().all(1) & embedding.isfinite().all(1)
            unusable = {item: not_finite(dataset, item) for item in batch.indices[~finite].tolist()}
            stop_at_unusable({**loader.skipped, **unusable})
            block.skipped |= unusable
            boxes = tuple(box for box, good in zip(batch.boxes, finite.tolist(), strict=False) if good)
            block.parts.append((embedding[finite], batch.labels[finite], batch.indices[finite], boxes))
            bar.update(len(batch.indices))
            # Batches of which nothing could be read do not come by.
            at = waiting.index(int(batch.indices[0]) // batch_size * batch_size) + 1
            if at >= _BATCHES_A_BLOCK:
                save(waiting[:at])
                del waiting[:at]
        stop_at_unusable(loader.skipped)
        if waiting:
            save(waiting)


def not_finite(dataset: Dataset[Any], item: int) -> str:
    """Why an item is left out whose features are no numbers, with its file where the dataset knows it."""
    records = getattr(dataset, "records", ())
    return f"{records[item].path}: {_NOT_FINITE}" if item < len(records) else _NOT_FINITE


def _read_blocks(folder: Path) -> list[_Block]:
    return [_Block(**torch.load(path, weights_only=True)) for path in sorted((folder / _BLOCKS).glob("*.pt"))]


def _close_blocks(folder: Path, n_items: int) -> None:
    """Make the index of all blocks and remove them."""
    try:
        index = _index(_read_blocks(folder), n_items)
    except ValueError:
        discard(folder)
        raise
    with staged(folder) as scratch:
        _save(index, scratch / _INDEX, folder)
    shutil.rmtree(folder / _BLOCKS)


def _index(blocks: Sequence[_Block], n_items: int) -> dict[str, Any]:
    """What all blocks hold, in the order of the dataset."""
    parts = [_Part(*part) for block in blocks for part in block.parts]
    skipped = {item: reason for block in blocks for item, reason in block.skipped.items()}
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
        "shapes": {kind: shape for block in blocks for kind, shape in block.shapes.items() if shape},
    }


def _save(value: object, path: Path, folder: Path) -> None:
    """``torch.save``, which has a RuntimeError for a full disk."""
    try:
        torch.save(value, path)
    except (OSError, RuntimeError) as error:
        raise OSError(
            f"{folder} cannot be written: {error}. What is done is safe; make room, or choose a folder elsewhere"
        ) from error


def _open(folder: Path) -> Features:
    index = torch.load(folder / _INDEX, weights_only=True)
    shapes: dict[Kept, tuple[int, ...]] = index.pop("shapes")
    n_rows = int(index["items"][-1]) + 1
    files = {kind: np.memmap(folder / kind, np.float32, "r", shape=(n_rows, *shape)) for kind, shape in shapes.items()}
    return Features(**index, files=files)


class _RowWriter:
    """Writes rows of one shape at their places in a file that several processes fill.

    Attributes:
        shape: of the rows; empty before there are any.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        self._path = path
        self._file = FileIO(path, "r+b")
        self.shape: tuple[int, ...] = ()

    def write(self, rows: Tensor, values: Tensor) -> None:
        self.shape = tuple(values.shape[1:])
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

    def sync(self) -> None:
        """Have the system put on the disk what it holds."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def discard(folder: str | Path) -> None:
    """Remove the files of :func:`extract`."""
    shutil.rmtree(folder, ignore_errors=True)
