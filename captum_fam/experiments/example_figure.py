"""Grids of queries and maps."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from torch import Tensor

from captum_fam.visualization import MapFigure, overlay

# All lengths are in inches.
_CELL = 1.75
_TALLEST = 1.3  # of a row, over the width of a cell
_LOWEST = 0.85  # of a row that holds images taller than its query
_GAP = 0.08
_BLOCK_GAP = 0.3
_ROW_GAP = 0.1
_TITLE = 8.5  # points
_HEADER = 10.0
_LINE = 0.15
_HEADER_LINE = 0.18
_CHARACTERS = 26  # of a title, in the width of a cell


@dataclass(frozen=True)
class Cell:
    """One image of a grid.

    Attributes:
        image: ``(3, H, W)`` in [0, 1].
        title: above it.
        map: laid over it, ``(1, h, w)``, of the same field of view; its largest magnitude has the full color.
        boxes: drawn thinly, ``(n, 4)`` in pixels of the image.
    """

    image: Tensor
    title: str = ""
    map: Tensor | None = None
    boxes: Tensor | None = None


@dataclass(frozen=True)
class Block:
    """Columns of a grid that belong together.

    Attributes:
        header: above them all; its first line is set in bold.
        columns: a title of each, or nothing.
    """

    header: str
    columns: tuple[str, ...]


@dataclass(frozen=True)
class Picture:
    """One row of a grid.

    Attributes:
        title: of the query.
        image: the query, ``(3, H, W)`` in [0, 1].
        supports: by title, an image of what it was compared with.
        maps: by title, ``(1, h, w)``.
    """

    title: str
    image: Tensor
    supports: Mapping[str, Tensor]
    maps: Mapping[str, Tensor]


def picture_grid(pictures: Sequence[Picture]) -> MapFigure:
    """Queries, supports and maps over the query, a row a query; every map is scaled by its own largest magnitude.

    Red speaks for the match and blue against it, as everywhere.
    """
    rows = [
        [
            Cell(picture.image, picture.title),
            *(Cell(image, title) for title, image in picture.supports.items()),
            *(Cell(picture.image, title, one) for title, one in picture.maps.items()),
        ]
        for picture in pictures
    ]
    return cell_grid(rows, [Block("", ("",) * max(map(len, rows)))])


def cell_grid(rows: Sequence[Sequence[Cell]], blocks: Sequence[Block]) -> MapFigure:
    """Rows of images and maps below the headers of their columns.

    Args:
        rows: the query and further images, at most as many as the blocks have columns. Images keep their shape; one
            that is much taller than the query is made smaller.
        blocks: the columns, from left to right.
    """
    lefts = _lefts(blocks)
    column_titles = [title for block in blocks for title in block.columns]
    width = lefts[-1] + _CELL
    header = max(len(_header_lines(block)) for block in blocks) * _HEADER_LINE
    columns = max(len(_lines(title)) for title in column_titles) * _LINE
    titles = [max(len(_lines(cell.title)) for cell in row) * _LINE for row in rows]
    heights = [_row_height(row) for row in rows]
    top = header + columns + (0.08 if header or columns else 0)
    total = top + sum(titles) + sum(heights) + _ROW_GAP * len(rows)
    figure = MapFigure(figsize=(width, total))
    for block, left in zip(blocks, _block_lefts(blocks, lefts), strict=True):
        _draw_header(figure, block, left, header)
    for title, left in zip(column_titles, lefts, strict=True):
        place = (left + _CELL / 2) / width, 1 - (header + columns + 0.03) / total
        figure.text(*place, "\n".join(_lines(title)), ha="center", va="bottom", fontsize=_TITLE)
    for row, title_height, height in zip(rows, titles, heights, strict=True):
        top += title_height
        for cell, left in zip(row, lefts, strict=False):
            wide, high = _shape(cell, height)
            left += (_CELL - wide) / 2
            _draw(figure.add_axes((left / width, 1 - (top + high) / total, wide / width, high / total)), cell)
        top += height + _ROW_GAP
    return figure


def _draw(ax: Axes, cell: Cell) -> None:
    ax.axis("off")
    ax.imshow(_pixels(cell.image) if cell.map is None else np.asarray(overlay(cell.image, cell.map)))
    for x0, y0, x1, y1 in [] if cell.boxes is None else cell.boxes.tolist():
        # Pixel column i covers [i, i + 1) in a box, and is drawn around i.
        box = Rectangle((x0 - 0.5, y0 - 0.5), x1 - x0, y1 - y0, fill=False, edgecolor="white", linewidth=0.8)
        box.set_path_effects([patheffects.withStroke(linewidth=1.8, foreground="black")])
        ax.add_patch(box)
    ax.set_title("\n".join(_lines(cell.title)), fontsize=_TITLE, pad=3, linespacing=1.1)


def _draw_header(figure: MapFigure, block: Block, left: float, height: float) -> None:
    """The block's lines, centered over it, and a rule below them."""
    lines = _header_lines(block)
    if not lines:
        return
    width, total = figure.get_size_inches()
    wide = len(block.columns) * (_CELL + _GAP) - _GAP
    n_bold = len(_header_lines(Block(block.header.split("\n")[0], block.columns)))
    for number, line in enumerate(lines):
        place = (left + wide / 2) / width, 1 - (number + 0.85) * _HEADER_LINE / total
        weight = "bold" if number < n_bold else "normal"
        figure.text(*place, line, ha="center", va="baseline", fontsize=_HEADER, weight=weight)
    level = 1 - (height + 0.02) / total
    figure.add_artist(Line2D([left / width, (left + wide) / width], [level, level], color="0.6", linewidth=0.8))


def _lefts(blocks: Sequence[Block]) -> list[float]:
    """Where each column begins."""
    steps = [
        _CELL + (_GAP if number + 1 < len(block.columns) else _BLOCK_GAP)
        for block in blocks
        for number in range(len(block.columns))
    ]
    return [0.0, *accumulate(steps[:-1])]


def _block_lefts(blocks: Sequence[Block], lefts: Sequence[float]) -> list[float]:
    return [lefts[first] for first in accumulate([0, *(len(block.columns) for block in blocks[:-1])])]


def _header_lines(block: Block) -> list[str]:
    # Bold letters of a larger size.
    return _wrapped(block.header, round(0.8 * _CHARACTERS * len(block.columns)))


def _lines(title: str) -> list[str]:
    # Underscores stand for spaces in the names of folders.
    return _wrapped(title.replace("_", " "), _CHARACTERS)


def _wrapped(text: str, characters: int) -> list[str]:
    return [piece for line in text.split("\n") for piece in textwrap.wrap(line, characters, break_on_hyphens=False)]


def _row_height(row: Sequence[Cell]) -> float:
    query, *others = (_CELL * cell.image.shape[1] / cell.image.shape[2] for cell in row)
    # Else a tall support would leave much of the row empty.
    return min(max(query, *others), max(query, _LOWEST * _CELL), _TALLEST * _CELL) if others else query


def _shape(cell: Cell, height: float) -> tuple[float, float]:
    """Width and height of an image in a row."""
    ratio = cell.image.shape[1] / cell.image.shape[2]
    return (_CELL, _CELL * ratio) if _CELL * ratio <= height else (height / ratio, height)


def _pixels(image: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    pixels: np.ndarray[tuple[int, ...], np.dtype[np.float32]] = image.movedim(0, -1).clamp(0, 1).float().cpu().numpy()
    return pixels
