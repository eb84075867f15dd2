"""Blocks of rows in files: damaged ones are made again, foreign ones are refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from captum_fam.embedding import RowBlock


def block(first: int, n_rows: int = 3, source: str = "a run", n_items: int = 9) -> RowBlock:
    """Rows from an item on; the item after the last row is skipped."""
    items = torch.arange(first, first + n_rows)
    columns = {"means": torch.rand(n_rows, 5)}
    return RowBlock(columns, items, items % 2, [], {first + n_rows: "corrupt"}, n_items, source)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for first in (0, 4):
        block(first).save(tmp_path)
    return tmp_path


def firsts(folder: Path) -> list[int]:
    return [block.first_item for block in RowBlock.load_all(folder, 9, "a run")]


def test_blocks_come_back_in_the_order_of_their_items(folder: Path) -> None:
    loaded = RowBlock.load_all(folder, 9, "a run")
    assert [part.items.tolist() for part in loaded] == [[0, 1, 2], [4, 5, 6]]
    assert [part.skipped for part in loaded] == [{3: "corrupt"}, {7: "corrupt"}]
    assert firsts(folder) == [0, 4]


@pytest.mark.parametrize("length", [0, 1, 500, -1])
def test_a_truncated_block_is_removed_so_that_it_is_made_again(length: int, folder: Path) -> None:
    path = folder / "0000000004.pt"
    path.write_bytes(path.read_bytes()[:length])
    assert firsts(folder) == [0]
    assert not path.exists()


def test_a_block_of_which_a_part_never_reached_the_disk_is_removed(folder: Path) -> None:
    path = folder / "0000000000.pt"
    content = path.read_bytes()
    start = content.index(torch.load(path)["columns"]["means"].numpy().tobytes())
    path.write_bytes(content[:start] + bytes(60) + content[start + 60 :])
    assert firsts(folder) == [4]


@pytest.mark.parametrize(
    ("content", "name", "problem"),
    [
        ({"a": 1}, "0000000004.pt", "holds no rows of this version"),
        ([1, 2], "0000000004.pt", "holds no rows of this version"),
        (vars(block(4)), "index.pt", "is no block of rows"),
        (vars(block(5)), "0000000004.pt", "begins with item 5"),
        (vars(block(4, source="another")), "0000000004.pt", "belongs to another run"),
        (vars(block(4, n_items=20)), "0000000004.pt", "was made of 20 items, dataset has 9"),
        (vars(block(8)), "0000000008.pt", "holds rows that do not fit its items"),
        (vars(block(3)), "0000000003.pt", "has item 3, which 0000000000.pt has too"),
        (
            {**vars(block(4)), "labels": torch.zeros(2, dtype=torch.int64)},
            "0000000004.pt",
            "holds rows that do not fit",
        ),
        ({**vars(block(4)), "items": torch.rand(3)}, "0000000004.pt", "holds no rows of this version"),
        ({**vars(block(4)), "columns": {"means": torch.rand(3, 6)}}, "0000000004.pt", "has other columns"),
        ({**vars(block(4)), "columns": None}, "0000000004.pt", "holds no rows of this version"),
    ],
)
def test_a_foreign_block_is_named(content: Any, name: str, problem: str, folder: Path) -> None:
    (folder / "0000000004.pt").unlink()
    torch.save(content, folder / name)
    with pytest.raises(ValueError, match=rf"{name} {problem}.*; delete it"):
        RowBlock.load_all(folder, 9, "a run")
    assert (folder / name).exists()
