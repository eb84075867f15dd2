"""Running a function over all items of a data set; a run continues after a crash, and several processes share it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from captum_fam._progress import progress_bar
from captum_fam.embedding.batch_loader import Batch, BatchLoader, OnError
from captum_fam.embedding.embedded_dataset import EmbeddedDataset, RowBlock
from captum_fam.embedding.ranks import Ranks

Compute = Callable[[Batch], Mapping[str, Tensor]]

# Batches wait in memory until their block is full. A block of this many bytes is stored before, to bound the memory.
_BLOCK_BYTES = 64 * 2**20
# How many stored rows are computed again to check that model and data set are the same.
_N_COMPARED = 4


class DatasetEmbedder:
    """Run a function over a data set, batch by batch, and keep the rows that the function returns.

    With a folder, an interrupted run can be repeated: rows are stored in blocks of several batches, also at an
    exception, and the next run computes the items that are in no block yet. It needs the same data set, function and
    batch size. The batches, and so the rows, do not depend on how many processes share the work.

    Args:
        compute: maps a batch of B items to rows by name, each ``(B, ...)``.
        dataset: items ``(image, label)`` or ``(image, label, boxes)``, the same at every reading.
        folder: the folder of the blocks. Default: None, the rows stay in memory.
        batch_size: items per batch. Default: 64.
        num_workers: processes that read images. Default: 0, this process.
        on_error: ``"raise"``, or ``"skip"`` items whose image cannot be read. Default: ``"raise"``.
        on_not_finite: ``"raise"``, or ``"skip"`` items whose rows have NaN or inf. Default: ``"raise"``.
        left_out: the positions of the items that an earlier run skipped, with the reasons. They are skipped without
            reading them, and any other unusable item is an error. Default: None, no earlier run.
        batches_per_block: batches per stored block; a crash loses one block at most. Default: 16.
        ranks: the processes that share the work. Default: None, this process alone.
        progress: the text of a progress bar, which is shown in a terminal and in a notebook. Default: None, no progress
            bar.
        source: names what the rows depend on, such as a hash of the settings; stored rows of another source are
            refused. Default: empty.

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
        ranks: Ranks | None = None,
        progress: str | None = None,
        source: str = "",
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
        self.ranks = ranks or Ranks()
        self.progress = progress
        self.source = source
        self._in_memory: list[RowBlock] = []
        # One small block per batch that is computed and not stored yet.
        self._pending: list[RowBlock] = []

    def run(self) -> EmbeddedDataset:
        """Compute the rows that are in no block yet.

        Returns:
            All rows, including the rows of earlier runs and of other processes.

        Raises:
            ValueError: if no item can be used, an item gives NaN or inf and ``on_not_finite`` is ``"raise"``, or an
                item is unusable that is not in ``left_out``. Rows from before the error are stored.
            OSError: if the folder cannot be written.
        """
        blocks = [block for part in self.ranks.gather(self.run_share()) for block in part]
        if self.folder is not None:
            blocks = self.stored()
            self.ranks.wait()
        if not any(len(block.items) for block in blocks):
            if self.folder is not None and self.ranks.is_first:
                shutil.rmtree(self.folder, ignore_errors=True)
            reasons = [reason for block in blocks for reason in block.skipped.values()]
            raise ValueError(
                f"dataset: none of its {self.n_items} items could be read: {(reasons or ['it is empty'])[0]}"
            )
        return EmbeddedDataset(blocks)

    def run_share(self) -> list[RowBlock]:
        """Compute the rows of this process, and leave those of other processes to them.

        Returns:
            The rows of this process that are in memory; none if rows are stored in a folder.

        Raises:
            ValueError: as for :meth:`run`, but not for a data set without a usable item.
            OSError: if the folder cannot be written.
        """
        self._compute_batches(self._share_of_work())
        return self._in_memory

    def stored(self) -> list[RowBlock]:
        """The blocks that have been stored already."""
        return self._in_memory if self.folder is None else RowBlock.load_all(self.folder, self.n_items, self.source)

    def check_stored(self, column: str) -> None:
        """Compute a few stored rows again, to refuse rows of another function or data set.

        Args:
            column: the name of the column to compare.

        Raises:
            ValueError: if the rows differ by more than a change of the batch size can explain, or the data set has
                another length.
        """
        blocks = self.stored()
        if blocks:
            block = next((block for block in blocks if len(block.items)), blocks[0])
            self.check_rows(f"{self.folder}", block, column)

    def check_rows(self, where: str, rows: RowBlock, column: str) -> None:
        """Compute the first four rows of a block again, to refuse rows of another function or data set.

        Args:
            where: the file or folder of the rows, for the message.
            rows: the block.
            column: the name of the column to compare.

        Raises:
            ValueError: as for :meth:`check_stored`.
        """
        remedy = "delete it, or choose another path"
        if rows.n_items != self.n_items:
            raise ValueError(f"{where} was made of {rows.n_items} items, dataset has {self.n_items}; {remedy}")
        items = rows.items[:_N_COMPARED]
        if not len(items):
            return
        same = column in rows.columns and int(items.max()) < self.n_items
        if same:
            (batch,) = BatchLoader(self.dataset, items.tolist())
            before, now = rows.columns[column][:_N_COMPARED], self.compute(batch)[column].cpu()
            same = before.shape == now.shape and torch.equal(rows.labels[:_N_COMPARED], batch.labels)
        if same:
            # A change of the batch size changes the last bits of an embedding; another model changes much more.
            tolerance = 0.03 if now.dtype in (torch.float16, torch.bfloat16) else 1e-3
            before, now = before.double().flatten(1), now.double().flatten(1)
            same = bool(((before - now).norm(dim=1) <= tolerance * now.norm(dim=1)).all())
        if not same:
            raise ValueError(f"{where} was made with another model or dataset: its first items differ; {remedy}")

    def _share_of_work(self) -> list[int]:
        """The items that are in no block and belong to this process, batch after batch."""
        is_missing = torch.ones(self.n_items, dtype=torch.bool)
        for block in self.stored():
            is_missing[block.items] = False
            is_missing[list(block.skipped)] = False
        # No process writes before all have read the blocks, so that all agree on the missing items.
        self.ranks.wait()
        starts = range(0, self.n_items, self.batch_size)
        batches = [
            (start + chunk.nonzero()[:, 0]).tolist()
            for start, chunk in zip(starts, is_missing.split(self.batch_size), strict=False)
        ]
        return [item for batch in self.ranks.share([batch for batch in batches if batch]) for item in batch]

    def _compute_batches(self, items: Sequence[int]) -> None:
        """Compute and store the rows of these items."""
        if not items:
            return
        # If the items to leave out are known, _check_usable raises the error for an unreadable file.
        on_error = self.on_error if self.left_out is None else "skip"
        loader = BatchLoader(self.dataset, items, self.batch_size, self.num_workers, on_error, self.left_out)
        bar = progress_bar(total=len(items), desc=self.progress, unit="img", shown=self.progress is not None)
        try:
            for batch, skipped in loader.with_skipped():
                rows = self._rows(batch, skipped)
                self._pending.append(rows)
                bar.update(len(rows.items) + len(rows.skipped))
                full = sum(block.n_bytes for block in self._pending) >= _BLOCK_BYTES
                if full or len(self._pending) == self.batches_per_block:
                    self._store_pending()
        finally:
            # After an exception too, so that no computed row is lost.
            self._store_pending()
            bar.close()

    def _rows(self, batch: Batch | None, skipped: dict[int, str]) -> RowBlock:
        """A block with the rows of a batch, without the items that cannot be used."""
        if batch is None:
            self._check_usable(skipped)
            nothing = torch.empty(0, dtype=torch.int64)
            return RowBlock({}, nothing, nothing, [], skipped, self.n_items, self.source)
        columns = {name: column.detach().cpu().contiguous() for name, column in self.compute(batch).items()}
        finite = torch.stack([column.reshape(len(column), -1).isfinite().all(1) for column in columns.values()]).all(0)
        not_finite = batch.indices[~finite].tolist()
        if not_finite and self.on_not_finite == "raise":
            raise ValueError(f"model: the embedding of item {not_finite[0]} contains NaN or inf")
        skipped = {**skipped, **{item: reason_not_finite(self.dataset, item) for item in not_finite}}
        self._check_usable(skipped)
        if not_finite:
            columns = {name: column[finite] for name, column in columns.items()}
        # Not strict, because a data set without boxes gives an empty tuple.
        boxes = [box for box, usable in zip(batch.boxes, finite.tolist(), strict=False) if usable]
        return RowBlock(columns, batch.indices[finite], batch.labels[finite], boxes, skipped, self.n_items, self.source)

    def _check_usable(self, skipped: Mapping[int, str]) -> None:
        """Raise an error for an item that is unusable now and was usable in an earlier run."""
        newly_skipped = sorted(skipped.keys() - self.left_out.keys()) if self.left_out is not None else []
        if newly_skipped:
            raise ValueError(
                f"dataset: {skipped[newly_skipped[0]]}; usable when this run began, so that the results would change "
                "without this item: restore it, or begin another run in another folder"
            )

    def _store_pending(self) -> None:
        """Store the pending batches as one block."""
        if not self._pending:
            return
        block = RowBlock.join(self._pending)
        if self.folder is None:
            self._in_memory.append(block)
        else:
            try:
                block.save(self.folder)
            except OSError:
                self._pending = []  # otherwise the `finally` of the caller would try to write again
                raise
        self._pending = []


def reason_not_finite(dataset: Dataset[Any], item: int) -> str:
    """The reason for skipping an item with NaN or inf, as a text.

    Args:
        dataset: the data set; if it has ``records`` with a ``path``, the text names the file of the item.
        item: the position of the item.

    Example:
        >>> reason_not_finite([("image", 0)], 0)
        'its features hold NaN or inf'
    """
    reason = "its features hold NaN or inf"
    records = getattr(dataset, "records", ())
    return f"{records[item].path}: {reason}" if item < len(records) else reason
