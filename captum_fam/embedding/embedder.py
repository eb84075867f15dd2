"""Every item of a data set through a function once: it survives its process, and processes may share it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from captum_fam.embedding.batch_loader import Batch, BatchLoader, OnError
from captum_fam.embedding.embedded_dataset import EmbeddedDataset, RowBlock

T = TypeVar("T")
Compute = Callable[[Batch], Mapping[str, Tensor]]

# A block of so many bytes is stored before it has all its batches: it is in memory until then.
_BLOCK_BYTES = 64 * 2**20
_N_COMPARED = 4


class Processes(Protocol):
    """Processes that share the work and see the same files."""

    @property
    def is_first(self) -> bool:
        """Whether this process removes what belongs to all."""

    def share(self, items: Sequence[T]) -> list[T]:
        """The items of this process."""

    def wait(self) -> None:
        """Until all processes are here."""


class OneProcess:
    """This process alone."""

    is_first = True

    def share(self, items: Sequence[T]) -> list[T]:
        """All items."""
        return list(items)

    def wait(self) -> None:
        """There is nobody to wait for."""


class DatasetEmbedder:
    """Runs the items of a data set through a function, batch by batch, and keeps the rows that it gives.

    With a folder the work survives its process: rows are stored in blocks of some batches, also when the work is
    interrupted, and the same call goes on with the items of which there is no block. It must be of the same data set,
    function and batch size. Batches are the same however many processes share them, and so are the rows.

    Args:
        compute: of a batch of B items rows by name, each ``(B, ...)``.
        dataset: items ``(image, label)`` or ``(image, label, boxes)``, the same at every reading.
        folder: of the blocks; None keeps them in memory. Default: None.
        batch_size: items per batch. Default: 64.
        num_workers: processes that read. Default: 0.
        on_error: ``"raise"``, or ``"skip"`` items whose image cannot be read. Default: ``"raise"``.
        on_not_finite: ``"raise"``, or ``"skip"`` items in whose rows there is NaN or inf. Default: ``"raise"``.
        left_out: the items, with the reason, that an earlier run went on without. They are not read, and any other must
            be usable. None: any may be left out. Default: None.
        batches_per_block: of which a crash loses the last at most. Default: 16.
        processes: that share the work. Default: this one alone.
        progress: the text of a progress bar; None shows none. Default: None.

    Example:
        >>> dataset = [(torch.rand(3, 8, 8), label) for label in (0, 1, 1)]
        >>> rows = DatasetEmbedder(lambda batch: {"means": batch.images.mean((2, 3))}, dataset, "rows").run()
        >>> rows.column("means").shape, rows.labels
        (torch.Size([3, 3]), tensor([0, 1, 1]))
    """

    def __init__(
        self,
        compute: Compute,
        dataset: Dataset[Any],
        folder: str | Path | None = None,
        *,
        batch_size: int = 64,
        num_workers: int = 0,
        on_error: OnError = "raise",
        on_not_finite: OnError = "raise",
        left_out: Mapping[int, str] | None = None,
        batches_per_block: int = 16,
        processes: Processes | None = None,
        progress: str | None = None,
    ) -> None:
        self.compute = compute
        self.dataset = dataset
        self.n_items = len(dataset)  # type: ignore[arg-type]
        self.folder = None if folder is None else Path(folder)
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.on_error = on_error
        self.on_not_finite = on_not_finite
        self.left_out = left_out
        self.batches_per_block = batches_per_block
        self.processes = processes or OneProcess()
        self.progress = progress
        self._in_memory: list[RowBlock] = []
        # One small block per batch that is computed and not stored yet.
        self._pending: list[RowBlock] = []

    def run(self) -> EmbeddedDataset:
        """Compute what no block has yet, and give all rows.

        Raises:
            ValueError: if no item can be used; at an item with NaN or inf that may not be skipped; or at the first item
                that is unusable and not one of ``left_out``. Rows from before that item are kept.
            OSError: if the folder cannot be written.
        """
        self._compute_batches(self._share_of_work())
        self.processes.wait()
        blocks = self.stored()
        self.processes.wait()
        if not any(len(block.items) for block in blocks):
            if self.folder is not None and self.processes.is_first:
                shutil.rmtree(self.folder, ignore_errors=True)
            reasons = [reason for block in blocks for reason in block.skipped.values()]
            raise ValueError(
                f"dataset: none of its {self.n_items} items could be read: {(reasons or ['it is empty'])[0]}"
            )
        return EmbeddedDataset(blocks)

    def stored(self) -> list[RowBlock]:
        """The blocks that are there already."""
        return self._in_memory if self.folder is None else RowBlock.load_all(self.folder)

    def check_stored(self, column: str) -> None:
        """Compute a few stored rows again, so that rows of another function or data set are noticed.

        Args:
            column: to compare.

        Raises:
            ValueError: if the rows differ by more than another batch size explains, or the data set has another length.
        """
        blocks = self.stored()
        if blocks:
            block = next((block for block in blocks if len(block.items)), blocks[0])
            self.check_rows(f"{self.folder}", block, column)

    def check_rows(self, where: str, rows: RowBlock, column: str) -> None:
        """As :meth:`check_stored`, for rows that were read from elsewhere.

        Args:
            where: the rows are from, for messages.
            rows: of which the first four are compared.
            column: to compare.
        """
        remedy = "delete it, or choose another path"
        if rows.n_items != self.n_items:
            raise ValueError(f"{where} was made of {rows.n_items} items, dataset has {self.n_items}; {remedy}")
        items = rows.items[:_N_COMPARED]
        if not len(items):
            return
        (batch,) = BatchLoader(self.dataset, items.tolist())
        before, now = rows.columns[column][:_N_COMPARED], self.compute(batch)[column].cpu()
        same = before.shape == now.shape and torch.equal(rows.labels[:_N_COMPARED], batch.labels)
        if same:
            # Another batch size changes the last bits of an embedding, another model more.
            tolerance = 0.03 if now.dtype in (torch.float16, torch.bfloat16) else 1e-3
            before, now = before.double().flatten(1), now.double().flatten(1)
            same = bool(((before - now).norm(dim=1) <= tolerance * now.norm(dim=1)).all())
        if not same:
            raise ValueError(f"{where} was made with another model or dataset: its first items differ; {remedy}")

    def _share_of_work(self) -> list[int]:
        """The items of this process that are in no block, batch by batch."""
        todo = torch.ones(self.n_items, dtype=torch.bool)
        for block in self.stored():
            todo[block.items] = False
            todo[list(block.skipped)] = False
        # All have read before any process writes, so that they agree on what is left to do.
        self.processes.wait()
        starts = range(0, self.n_items, self.batch_size)
        batches = [
            (start + chunk.nonzero()[:, 0]).tolist()
            for start, chunk in zip(starts, todo.split(self.batch_size), strict=False)
        ]
        return [item for batch in self.processes.share([batch for batch in batches if batch]) for item in batch]

    def _compute_batches(self, items: Sequence[int]) -> None:
        if not items:
            return
        # Where the items to leave out are known, an unreadable file is an error that names the item: see _check_usable.
        on_error = self.on_error if self.left_out is None else "skip"
        loader = BatchLoader(self.dataset, items, self.batch_size, self.num_workers, on_error, self.left_out)
        bar = tqdm(total=len(items), desc=self.progress, unit="img", disable=self.progress is None)
        try:
            for batch, skipped in loader.with_skipped():
                rows = self._rows(batch, skipped)
                self._pending.append(rows)
                bar.update(len(rows.items) + len(rows.skipped))
                full = sum(block.n_bytes for block in self._pending) >= _BLOCK_BYTES
                if full or len(self._pending) == self.batches_per_block:
                    self._store_pending()
        finally:
            # Also when the loop was interrupted: nothing that was computed is lost.
            self._store_pending()
            bar.close()

    def _rows(self, batch: Batch | None, skipped: dict[int, str]) -> RowBlock:
        """The rows of a batch, without the items that cannot be used."""
        if batch is None:
            self._check_usable(skipped)
            nothing = torch.empty(0, dtype=torch.int64)
            return RowBlock({}, nothing, nothing, [], skipped, self.n_items)
        columns = {name: column.detach().cpu().contiguous() for name, column in self.compute(batch).items()}
        finite = torch.stack([column.reshape(len(column), -1).isfinite().all(1) for column in columns.values()]).all(0)
        not_finite = batch.indices[~finite].tolist()
        if not_finite and self.on_not_finite == "raise":
            raise ValueError(f"model: the embedding of item {not_finite[0]} contains NaN or inf")
        skipped = {**skipped, **{item: reason_not_finite(self.dataset, item) for item in not_finite}}
        self._check_usable(skipped)
        if not_finite:
            columns = {name: column[finite] for name, column in columns.items()}
        # No zip(strict=True): a data set without boxes has none at all.
        boxes = [box for box, usable in zip(batch.boxes, finite.tolist(), strict=False) if usable]
        return RowBlock(columns, batch.indices[finite], batch.labels[finite], boxes, skipped, self.n_items)

    def _check_usable(self, skipped: Mapping[int, str]) -> None:
        """Stop at an item that an earlier run could use."""
        further = sorted(skipped.keys() - self.left_out.keys()) if self.left_out is not None else []
        if further:
            raise ValueError(
                f"dataset: {skipped[further[0]]}; usable when this run began, so that its units would change without "
                "it: restore it, or begin another run in another folder"
            )

    def _store_pending(self) -> None:
        if not self._pending:
            return
        block = RowBlock.join(self._pending)
        if self.folder is None:
            self._in_memory.append(block)
        else:
            try:
                block.save(self.folder)
            except OSError:
                self._pending = []  # the caller's `finally` would try the full disk again
                raise
        self._pending = []


def reason_not_finite(dataset: Dataset[Any], item: int) -> str:
    """Why an item with NaN or inf is left out, with its file where the data set knows it."""
    reason = "its features hold NaN or inf"
    records = getattr(dataset, "records", ())
    return f"{records[item].path}: {reason}" if item < len(records) else reason
