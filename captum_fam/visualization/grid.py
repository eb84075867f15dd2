"""A grid of images and maps: one row per query, and blocks of columns, such as one block per model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D

from captum_fam.visualization.colors import color_limits, same_scale
from captum_fam.visualization.figure import MapFigure
from captum_fam.visualization.image import ImageDrawing
from captum_fam.visualization.layout import MOST_IN_A_ROW
from captum_fam.visualization.marks import draw_boxes, draw_color_bar
from captum_fam.visualization.pixels import Array, ImageLike, MapLike, to_map
from captum_fam.visualization.style import DEFAULT_STYLE, MapStyle, StyleLike
from captum_fam.visualization.titles import text_font, wrap_title

# All lengths are in inches, apart from the two ratios.
_CELL = 1.75  # the width of a cell
_TALLEST = 1.3  # the largest height of a row, divided by the width of a cell
_LOWEST = 0.85  # the smallest height of a row with images taller than the query, divided by the width of a cell
_COLUMN_GAP = 0.08
_BLOCK_GAP = 0.3
_ROW_GAP = 0.1
_QUERY_GAP = 0.35  # below the last row of a query, if queries have several rows
_BAR = 0.65  # the height of a color bar with its numbers and its unit
_BELOW_TITLES = 0.08
_TITLE_FONT = text_font(8.5)
_TITLE_LINE = 0.15
_HEADER_FONT = text_font(10)
_BOLD_FONT = text_font(10, "bold")
_HEADER_LINE = 0.18


@dataclass(frozen=True)
class GridCell:
    """One image of a grid.

    Attributes:
        image: the image, in any form that :func:`~captum_fam.visualization.to_rgb` takes.
        title: the text above the image. Default: an empty text.
        attribution: the map over the image, ``(h, w)``, ``(1, h, w)`` or ``(h, w, 1)``, with the same field of view.
            Default: None, the image alone.
        boxes: boxes to draw, ``(x0, y0, x1, y1)`` in pixels of the image. Default: none.
        unit: the unit of the map, which stands at its color bar. Maps of one unit in a row share one color scale.
            Default: an empty text: the map has a scale of its own, and no color bar.

    Example:
        >>> GridCell(photo, "query").aspect  # a photo of 60 x 90 pixels
        0.6666666666666666
    """

    image: ImageLike
    title: str = ""
    attribution: MapLike | None = None
    boxes: Sequence[Sequence[float]] = ()
    unit: str = ""

    @property
    def aspect(self) -> float:
        """The height of the image divided by its width."""
        height, width = self.drawing.size
        return height / width

    @cached_property
    def drawing(self) -> ImageDrawing:
        """The image as it is drawn."""
        return ImageDrawing.of(self.image)

    @cached_property
    def values(self) -> Array | None:
        """The map at the size of the image; None for the image alone."""
        return None if self.attribution is None else to_map(self.attribution, self.drawing.size)

    @property
    def title_lines(self) -> list[str]:
        """The title, and what is not drawn as it is, broken into lines that are no wider than a column."""
        return _title_lines("\n".join(filter(None, (self.title, self.drawing.note))))


@dataclass(frozen=True)
class ColumnBlock:
    """Columns of a grid that belong together.

    Attributes:
        header: the text above the block; its first line is bold.
        columns: the title of each column; an empty text for a column without a title.

    Example:
        >>> blocks = [ColumnBlock("", ("query",)), ColumnBlock("ResNet-50", ("FAM", "Grad-CAM"))]
    """

    header: str
    columns: tuple[str, ...]

    @property
    def width(self) -> float:
        """The width of the columns with the gaps between them, in inches."""
        return len(self.columns) * (_CELL + _COLUMN_GAP) - _COLUMN_GAP

    @property
    def header_lines(self) -> list[tuple[str, FontProperties]]:
        """The header broken into lines that are no wider than the block, each with its font."""
        first, *others = self.header.split("\n")
        return [
            (line, font)
            for text, font in [(first, _BOLD_FONT), *((other, _HEADER_FONT) for other in others)]
            for line in wrap_title(text, self.width, font)
        ]


def visualize_grid(
    rows: Sequence[Sequence[GridCell]], blocks: Sequence[ColumnBlock] = (), *, style: StyleLike = DEFAULT_STYLE
) -> MapFigure:
    """Draw rows of images and maps below the headers of their columns.

    Maps of one unit in a row share one color scale, and have a color bar; a map without a unit is scaled by its own
    largest magnitude. Orange is evidence for the match, and blue is evidence against it.

    Args:
        rows: the cells of each row, the query first. Images keep their aspect ratio; an image that is much taller than
            the query is drawn smaller. Without blocks, a row of more than five cells goes on in the next row.
        blocks: the blocks of columns from left to right, with at least as many columns as the longest row has cells.
            Default: columns without titles.
        style: ``"overlay"``, ``"outline"``, or a :class:`~captum_fam.visualization.MapStyle`, which can also make the
            image below the map gray. Default: colors over the image in color.

    Returns:
        The figure; a notebook shows it.

    Raises:
        ValueError: for images outside [0, 1], maps with NaN or inf, a row with more cells than there are columns, or an
            unknown style.

    Example:
        >>> row = [GridCell(photo, "query"), GridCell(photo, "FAM", attributions[0], unit="activation")]
        >>> visualize_grid([row]).save("grid.png")
    """
    style = MapStyle.of(style)
    drawn = [_draw_rows(row, style, len(row) if blocks else MOST_IN_A_ROW) for row in rows]
    longest = max(len(row.cells) for parts in drawn for row in parts)
    blocks = blocks or [ColumnBlock("", ("",) * longest)]
    lefts = _column_lefts(blocks)
    if longest > len(lefts):
        raise ValueError(f"rows has a row of {longest} cells, but blocks has {len(lefts)} columns")
    titles = [_title_lines(title) for block in blocks for title in block.columns]
    header_height = max(len(block.header_lines) for block in blocks) * _HEADER_LINE
    titles_bottom = header_height + max(map(len, titles)) * _TITLE_LINE
    top = titles_bottom + (_BELOW_TITLES if titles_bottom else 0)
    gap = _QUERY_GAP if any(len(parts) > 1 for parts in drawn) else _ROW_GAP
    height = sum(row.above + row.height + row.below + _ROW_GAP for parts in drawn for row in parts)
    page = _Page(lefts[-1] + _CELL, top + height + (gap - _ROW_GAP) * len(drawn))

    firsts = accumulate([0, *(len(block.columns) for block in blocks[:-1])])
    for block, first in zip(blocks, firsts, strict=True):
        _draw_header(page, block, lefts[first], header_height)
    for lines, left in zip(titles, lefts, strict=True):
        page.write("\n".join(lines), left + _CELL / 2, titles_bottom + 0.03, _TITLE_FONT, va="bottom")
    for parts in drawn:
        for row in parts:
            top += row.above
            for cell, left in zip(row.cells, lefts, strict=False):
                cell.draw(page, left, top, row.height)
            top += row.height + row.below + _ROW_GAP
        top += gap - _ROW_GAP
    return page.figure


@dataclass(frozen=True)
class _DrawnCell:
    """A cell with all that its row says of its map.

    Attributes:
        cell: the cell.
        style: how the map is drawn.
        limit: the magnitude that has the full color.
        signed: whether a map on the same scale has negative values.
    """

    cell: GridCell
    style: MapStyle
    limit: float
    signed: bool

    def draw(self, page: _Page, left: float, top: float, height: float) -> None:
        """Draw the cell whose upper left corner and largest height are given, with its title above the image."""
        cell, drawing, values = self.cell, self.cell.drawing, self.cell.values
        # The image is as wide as the column, or narrower if it would be taller than the row.
        width = min(_CELL, height / cell.aspect)
        ax = page.figure.add_axes(page.place(left + (_CELL - width) / 2, top, width, width * cell.aspect))
        ax.axis("off")
        if values is None:
            drawing.draw(ax)
        else:
            heat = drawing.draw_map(ax, values, self.limit, self.style)
            if cell.unit and values.any():
                draw_color_bar(heat, signed=self.signed, beside=False, unit=cell.unit)
        draw_boxes(ax, cell.boxes)
        ax.set_title("\n".join(cell.title_lines), fontproperties=_TITLE_FONT, pad=3, linespacing=1.1, parse_math=False)


@dataclass(frozen=True)
class _DrawnRow:
    """The cells of a row, with the heights of the titles, the images and the color bars."""

    cells: Sequence[_DrawnCell]
    above: float
    height: float
    below: float


def _draw_rows(cells: Sequence[GridCell], style: MapStyle, most: int) -> list[_DrawnRow]:
    """The rows of one query, of about as many cells each, with equal scales for all of them."""
    maps = {number: cell.values for number, cell in enumerate(cells) if cell.values is not None}
    units = {number: cells[number].unit for number in maps}
    limits = color_limits(maps, "shared", units)
    negative = {number for number, values in maps.items() if (values < 0).any()}
    signed = {one for group in same_scale(maps, "shared", units) if negative.intersection(group) for one in group}
    drawn = [_DrawnCell(cell, style, limits.get(number, 1.0), number in signed) for number, cell in enumerate(cells)]
    count = math.ceil(len(cells) / most)
    per_row = math.ceil(len(cells) / count)
    rows = []
    for start in range(0, len(cells), per_row):
        part = cells[start : start + per_row]
        above = max(len(cell.title_lines) for cell in part) * _TITLE_LINE
        below = _BAR if any(cell.unit for cell in part) else 0
        rows.append(_DrawnRow(drawn[start : start + per_row], above, _row_height([one.aspect for one in part]), below))
    return rows


class _Page:
    """A figure with positions in inches from the upper left corner."""

    def __init__(self, width: float, height: float) -> None:
        self.width = width
        self.height = height
        self.figure = MapFigure(figsize=(width, height))

    def write(self, text: str, x: float, y: float, font: FontProperties, va: str) -> None:
        """Write a text that is centered at ``x``, with the vertical alignment ``va`` at ``y``."""
        self.figure.text(
            x / self.width, 1 - y / self.height, text, fontproperties=font, ha="center", va=va, parse_math=False
        )

    def rule(self, left: float, right: float, y: float) -> None:
        """Draw a thin horizontal line."""
        level = 1 - y / self.height
        ends = [left / self.width, right / self.width]
        self.figure.add_artist(Line2D(ends, [level, level], color="0.6", linewidth=0.8))

    def place(self, left: float, top: float, width: float, height: float) -> tuple[float, float, float, float]:
        """A rectangle as matplotlib takes it for axes: left, bottom, width and height as fractions of the figure."""
        bottom = self.height - top - height
        return left / self.width, bottom / self.height, width / self.width, height / self.height


def _draw_header(page: _Page, block: ColumnBlock, left: float, height: float) -> None:
    """The lines of a block's header, centered over the columns, and a rule below them."""
    lines = block.header_lines
    for number, (line, font) in enumerate(lines):
        page.write(line, left + block.width / 2, (number + 0.85) * _HEADER_LINE, font, va="baseline")
    if lines:
        page.rule(left, left + block.width, height + 0.02)


def _column_lefts(blocks: Sequence[ColumnBlock]) -> list[float]:
    """The left edge of each column."""
    steps = [
        _CELL + (_COLUMN_GAP if number + 1 < len(block.columns) else _BLOCK_GAP)
        for block in blocks
        for number in range(len(block.columns))
    ]
    return [0.0, *accumulate(steps[:-1])]


def _title_lines(title: str) -> list[str]:
    return wrap_title(title, _CELL, _TITLE_FONT)


def _row_height(aspects: Sequence[float]) -> float:
    """The height of a row, from the height of each image divided by its width; the first image is the query."""
    query, *others = (_CELL * aspect for aspect in aspects)
    # The height follows the query, not the tallest image, because a tall support would leave much of the row empty.
    return min(max(query, *others), max(query, _LOWEST * _CELL), _TALLEST * _CELL) if others else query
