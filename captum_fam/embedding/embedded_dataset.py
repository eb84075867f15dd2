"""Rows computed from the items of a data set, in memory and in files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from captum_fam._files import write_all_or_nothing
from captum_fam._tensor_files import is_intact

# Files whose checksums this process has compared, by path, size and time of the last change.
_intact_files: set[tuple[Path, int, int]] = set()


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
        source: names what the rows depend on, such as the hash of the settings of a run. Default: empty.

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
    source: str = ""

    @property
    def first_item(self) -> int:
        """The smallest position of the items of this block, used or skipped."""
        return min([*self.items.tolist(), *self.skipped])

    @property
    def _name(self) -> str:
        return f"{self.first_item:010d}.pt"

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
                torch.save(vars(self), scratch / self._name)
            _intact_files.add(_state_of(folder / self._name))
        except (OSError, RuntimeError) as error:  # torch.save raises RuntimeError if the disk is full
            per_item = self.n_bytes / max(len(self.items), 1) / 2**20
            raise OSError(
                f"{folder} cannot be written: {error}. It takes {per_item:.2f} MiB per item. Finished rows are safe: "
                "make room, or choose a folder on another disk"
            ) from error

    @classmethod
    def load_all(cls, folder: Path, n_items: int | None = None, source: str | None = None) -> list[RowBlock]:
        """Open all blocks of a folder. Columns are mapped into memory, so that only rows that are used are read.

        A block that is truncated or damaged, as after a power cut, is removed: its items are in no block then, and are
        computed again. The checksums of a block are compared once in a process.

        Args:
            folder: the folder of all blocks.
            n_items: the number of items of the data set. Default: None, any number.
            source: what the rows depend on, see :attr:`source`. Default: None, anything.

        Returns:
            The blocks, in the order of their first items.

        Raises:
            ValueError: for a file that is no block, or a block of another data set or source; the message names the
                file.
        """
        blocks: list[RowBlock] = []
        owners: dict[int, Path] = {}
        for path in sorted(folder.glob("*.pt")):
            content = _read_block(path)
            if content is None:
                continue
            problem = _problem_of(content, n_items, source)
            if problem is None:
                block = cls(**content)
                used = [*block.items.tolist(), *block.skipped]
                taken = next((item for item in used if item in owners), None)
                if block._name != path.name:
                    problem = f"begins with item {block.first_item}, but should be named {block._name}"
                elif taken is not None:
                    problem = f"has item {taken}, which {owners[taken].name} has too"
                elif not _same_columns([*blocks, block]):
                    problem = "has other columns than the blocks before"
                owners.update(dict.fromkeys(used, path))
                blocks.append(block)
            if problem is not None:
                raise ValueError(f"{path} {problem}; delete it, or choose another path than {folder}")
        return blocks

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
            source=blocks[0].source,
        )


def _state_of(path: Path) -> tuple[Path, int, int]:
    """What changes when the content of a file changes."""
    status = path.stat()
    return path.resolve(), status.st_size, status.st_mtime_ns


def _read_block(path: Path) -> Any:
    """The content of the file of a block; None for a truncated or damaged file, which is removed."""
    if not re.fullmatch(r"\d{10}\.pt", path.name):
        raise ValueError(f"{path} is no block of rows; delete it, or choose another path than {path.parent}")
    try:
        state = _state_of(path)
        if state in _intact_files or is_intact(path):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            _intact_files.add(state)
            return content
    except FileNotFoundError:  # another process has just removed it
        return None
    except RuntimeError:  # the index of the file is damaged, which no checksum covers
        pass
    except Exception as error:
        # The message of torch is left out: it advises to switch off what keeps a file from running code.
        raise ValueError(f"{path} holds no rows ({type(error).__name__}); delete it") from error
    path.unlink(missing_ok=True)
    return None


def _problem_of(content: Any, n_items: int | None, source: str | None) -> str | None:
    """Why the content of a file is no block, or no block of this data set and source; None for a right block."""
    expected = {field.name for field in fields(RowBlock)}
    if not isinstance(content, dict) or content.keys() != expected:
        return "holds no rows of this version of captum-fam"
    columns, items, labels, boxes, skipped = (
        content[name] for name in ("columns", "items", "labels", "boxes", "skipped")
    )
    has_types = (
        isinstance(columns, dict)
        and all(isinstance(column, Tensor) and column.dim() > 0 for column in columns.values())
        and all(isinstance(part, Tensor) and part.dtype == torch.int64 and part.dim() == 1 for part in (items, labels))
        and isinstance(boxes, list)
        and all(isinstance(box, Tensor) for box in boxes)
        and isinstance(skipped, dict)
        and all(isinstance(item, int) and isinstance(reason, str) for item, reason in skipped.items())
        and isinstance(content["n_items"], int)
    )
    if not has_types:
        return "holds no rows of this version of captum-fam"
    if source is not None and content["source"] != source:
        return "belongs to another run"
    if n_items is not None and content["n_items"] != n_items:
        return f"was made of {content['n_items']} items, dataset has {n_items}"
    used = [*items.tolist(), *skipped]
    lengths = {len(items), len(labels), *map(len, columns.values())} | ({len(boxes)} if boxes else set())
    if not used or len({*used}) < len(used) or not 0 <= min(used) <= max(used) < content["n_items"] or len(lengths) > 1:
        return "holds rows that do not fit its items"
    return None


def _same_columns(blocks: Sequence[RowBlock]) -> bool:
    """Whether the blocks that have rows have the same columns."""
    kinds = {
        tuple((name, column.dtype, column.shape[1:]) for name, column in block.columns.items())
        for block in blocks
        if len(block.items)
    }
    return len(kinds) <= 1


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
