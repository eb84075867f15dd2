"""What was computed from the items of a data set, row by row, in memory and in files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from captum_fam._files import write_all_or_nothing


@dataclass
class RowBlock:
    """Rows of some items of a data set, which are stored in one file.

    Attributes:
        columns: what was computed, by name, each ``(n, ...)``; without a name where no item could be used.
        items: the position of each row in the data set, ``(n,)``.
        labels: ``(n,)``.
        boxes: per row ``(m, 4)``; empty for a data set without boxes.
        skipped: items that could not be used, by position, with the reason.
        n_items: the length of the data set.
    """

    columns: dict[str, Tensor]
    items: Tensor
    labels: Tensor
    boxes: list[Tensor]
    skipped: dict[int, str] = field(default_factory=dict)
    n_items: int = 0

    @property
    def first_item(self) -> int:
        """The smallest position of its items, used or not."""
        return min([*self.items.tolist(), *self.skipped])

    @property
    def n_bytes(self) -> int:
        """What the columns hold."""
        return sum(column.nbytes for column in self.columns.values())

    def save(self, folder: Path) -> None:
        """Write the block into a folder, under the number of its first item.

        Raises:
            OSError: if it cannot be written.
        """
        try:
            with write_all_or_nothing(folder) as scratch:
                torch.save(vars(self), scratch / f"{self.first_item:010d}.pt")
        except (OSError, RuntimeError) as error:  # torch.save has a RuntimeError for a full disk
            per_item = self.n_bytes / max(len(self.items), 1) / 2**20
            raise OSError(
                f"{folder} cannot be written: {error}. It takes {per_item:.2f} MiB per item. What is done is safe; "
                "make room, or choose a folder elsewhere"
            ) from error

    @classmethod
    def load_all(cls, folder: Path) -> list[RowBlock]:
        """The blocks of a folder. Their columns stay in the files until rows of them are read."""
        return [cls(**torch.load(path, weights_only=True, mmap=True)) for path in sorted(folder.glob("*.pt"))]

    @classmethod
    def join(cls, blocks: Sequence[RowBlock]) -> RowBlock:
        """One block of several."""
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
    """The rows of a data set in the order of its items, whatever blocks they lie in.

    Args:
        blocks: of one data set, at least one of them with a row.

    Attributes:
        items: the position of each row in the data set, ``(n,)`` ascending.
        labels: ``(n,)``.
        boxes: per row ``(m, 4)``; empty for a data set without boxes.
        skipped: the other items, by position, with the reason.
    """

    def __init__(self, blocks: Sequence[RowBlock]) -> None:
        self._blocks = [block for block in blocks if len(block.items)]
        items = torch.cat([block.items for block in self._blocks])
        self._order = items.argsort()
        # Where row r is: in block `_block_of_row[r]`, at `_place_in_block[r]`.
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
        """All rows of a column, ``(n, ...)``, in memory."""
        return torch.cat([block.columns[name] for block in self._blocks])[self._order]

    def rows(self, name: str, rows: Tensor) -> Tensor:
        """Some rows of a column, ``(len(rows), ...)``; no others are read from the files."""
        first = self._blocks[0].columns[name]
        taken = torch.empty(len(rows), *first.shape[1:], dtype=first.dtype)
        blocks, places = self._block_of_row[rows], self._place_in_block[rows]
        for block in blocks.unique().tolist():
            here = blocks == block
            taken[here] = self._blocks[block].columns[name][places[here]]
        return taken
