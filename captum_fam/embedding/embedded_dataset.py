"""Rows computed from the items of a data set, in memory and in files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from captum_fam._files import write_all_or_nothing


@dataclass
class RowBlock:
    """Rows computed from some items of a data set, which are stored in one file.

    Attributes:
        columns: the computed values by name, each ``(n, ...)``; empty if no item of the block could be used.
        items: the position of each row's item in the data set, int64 ``(n,)``.
        labels: the label of each row, int64 ``(n,)``.
        boxes: the boxes of each row, ``(m, 4)``; empty for a data set without boxes.
        skipped: the positions of items that could not be used, with the reasons. Default: none.
        n_items: the number of items of the whole data set. Default: 0.

    Example:
        >>> block = RowBlock({"means": torch.rand(2, 3)}, torch.tensor([4, 5]), torch.tensor([0, 1]), [], n_items=9)
        >>> block.first_item, block.n_bytes
        (4, 24)
    """

    columns: dict[str, Tensor]
    items: Tensor
    labels: Tensor
    boxes: list[Tensor]
    skipped: dict[int, str] = field(default_factory=dict)
    n_items: int = 0

    @property
    def first_item(self) -> int:
        """The smallest position of the items of this block, used or skipped."""
        return min([*self.items.tolist(), *self.skipped])

    @property
    def n_bytes(self) -> int:
        """The size of the columns in bytes."""
        return sum(column.nbytes for column in self.columns.values())

    def save(self, folder: Path) -> None:
        """Write the block to a file that is named after the first item.

        Args:
            folder: the folder of all blocks; it is created if it does not exist.

        Raises:
            OSError: if the file cannot be written; the message gives the size of a row.
        """
        try:
            with write_all_or_nothing(folder) as scratch:
                torch.save(vars(self), scratch / f"{self.first_item:010d}.pt")
        except (OSError, RuntimeError) as error:  # torch.save raises RuntimeError if the disk is full
            per_item = self.n_bytes / max(len(self.items), 1) / 2**20
            raise OSError(
                f"{folder} cannot be written: {error}. It takes {per_item:.2f} MiB per item. Finished rows are safe: "
                "make room, or choose a folder on another disk"
            ) from error

    @classmethod
    def load_all(cls, folder: Path) -> list[RowBlock]:
        """Open all blocks of a folder. Columns are mapped into memory, so that only rows that are used are read.

        Args:
            folder: the folder of all blocks.
        """
        return [cls(**torch.load(path, weights_only=True, mmap=True)) for path in sorted(folder.glob("*.pt"))]

    @classmethod
    def join(cls, blocks: Sequence[RowBlock]) -> RowBlock:
        """Join several blocks of one data set to one block.

        Args:
            blocks: at least one block.
        """
        filled = [block for block in blocks if len(block.items)] or blocks[:1]
        return cls(
            columns={name: torch.cat([block.columns[name] for block in filled]) for name in filled[0].columns},
            items=torch.cat([block.items for block in filled]),
            labels=torch.cat([block.labels for block in filled]),
            boxes=[box for block in filled for box in block.boxes],
            skipped={item: reason for block in blocks for item, reason in block.skipped.items()},
            n_items=blocks[0].n_items,
        )


class EmbeddedDataset:
    """The rows of a data set in the order of its items, from blocks in any order.

    Args:
        blocks: the blocks of one data set; at least one of them has a row.

    Attributes:
        items: the position of each row's item in the data set, int64 ``(n,)`` ascending.
        labels: the label of each row, int64 ``(n,)``.
        boxes: the boxes of each row, ``(m, 4)``; empty for a data set without boxes.
        skipped: the positions of items without a row, with the reasons.

    Example:
        >>> first, second = torch.tensor([[0.0], [1.0]]), torch.tensor([[2.0]])
        >>> blocks = [
        ...     RowBlock({"means": second}, torch.tensor([2]), torch.tensor([0]), []),
        ...     RowBlock({"means": first}, torch.tensor([0, 1]), torch.tensor([1, 1]), []),
        ... ]
        >>> rows = EmbeddedDataset(blocks)
        >>> rows.column("means").flatten(), rows.labels, rows.rows("means", torch.tensor([2]))
        (tensor([0., 1., 2.]), tensor([1, 1, 0]), tensor([[2.]]))
    """

    def __init__(self, blocks: Sequence[RowBlock]) -> None:
        self._blocks = [block for block in blocks if len(block.items)]
        items = torch.cat([block.items for block in self._blocks])
        self._order = items.argsort()
        # Row r is in block `_block_of_row[r]`, at position `_place_in_block[r]`.
        sizes = torch.tensor([len(block.items) for block in self._blocks])
        self._block_of_row = torch.arange(len(sizes)).repeat_interleave(sizes)[self._order]
        self._place_in_block = torch.cat([torch.arange(int(size)) for size in sizes])[self._order]
        self.items = items[self._order]
        self.labels = torch.cat([block.labels for block in self._blocks])[self._order]
        boxes = [box for block in self._blocks for box in block.boxes]
        self.boxes = [boxes[row] for row in self._order.tolist()] if boxes else []
        skipped = {item: reason for block in blocks for item, reason in block.skipped.items()}
        self.skipped = dict(sorted(skipped.items()))

    def __len__(self) -> int:
        return len(self.items)

    def column(self, name: str) -> Tensor:
        """Read all rows of a column into memory.

        Args:
            name: the name of the column.

        Returns:
            ``(n, ...)``.
        """
        return torch.cat([block.columns[name] for block in self._blocks])[self._order]

    def rows(self, name: str, rows: Tensor) -> Tensor:
        """Read some rows of a column into memory; no other rows are read from the files.

        Args:
            name: the name of the column.
            rows: positions of rows, ``(m,)``, in any order.

        Returns:
            ``(m, ...)``.
        """
        first = self._blocks[0].columns[name]
        values = torch.empty(len(rows), *first.shape[1:], dtype=first.dtype)
        blocks, places = self._block_of_row[rows], self._place_in_block[rows]
        for block in blocks.unique().tolist():
            in_block = blocks == block
            values[in_block] = self._blocks[block].columns[name][places[in_block]]
        return values
