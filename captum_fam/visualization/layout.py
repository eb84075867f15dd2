"""Panels side by side below their titles, in as many rows as are needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from matplotlib.axes import Axes
from matplotlib.backend_bases import RendererBase
from matplotlib.backends.backend_agg import FigureCanvasAgg

from captum_fam.visualization.figure import PANEL_HEIGHT, MapFigure
from captum_fam.visualization.titles import text_font, wrap_title

MOST_IN_A_ROW = 5
"""How many panels stand side by side; further panels stand in further rows."""

# Lengths are in inches.
_NARROWEST = 0.8  # the smallest width of a panel divided by its height, so that titles fit above a tall image
_WIDEST_ROW = 18.5
_TITLE_FONT = text_font(9)
_CAPTION_LINE = 0.19
_BETWEEN = 0.3
_GAP = 0.12  # between panels, with what stands around them, and at the edges


class FigurePanel(Protocol):
    """A panel of a figure."""

    @property
    def title(self) -> str:
        """The lines above the panel."""

    @property
    def aspect(self) -> float:
        """The width of the panel divided by its height."""

    def draw(self, ax: Axes) -> None:
        """Draw the panel on axes."""


def draw_panels(panels: Sequence[FigurePanel], caption: str = "") -> MapFigure:
    """Draw panels side by side, all of one height, each below its title.

    More than five panels, or panels that are wide together, are drawn in several rows of about as many panels.

    Args:
        panels: the panels from left to right.
        caption: text above all panels; long lines are broken. Default: an empty text.

    Returns:
        The figure.
    """
    widths = [max(panel.aspect, _NARROWEST) * PANEL_HEIGHT for panel in panels]
    width, height = sum(widths), PANEL_HEIGHT
    figure = MapFigure(figsize=(width, height))
    renderer = FigureCanvasAgg(figure).get_renderer()
    placed: list[_Placed] = []
    for panel, panel_width in zip(panels, widths, strict=True):
        ax = figure.add_axes((0, 0, panel_width / width, 1), label=str(len(placed)), anchor="N")
        title = "\n".join(wrap_title(panel.title, panel_width, _TITLE_FONT))
        ax.set_title(title, fontproperties=_TITLE_FONT, parse_math=False)
        panel.draw(ax)
        placed.append(_Placed.of(ax, panel_width, renderer))

    # The figure grows with what stands around the panels. In a figure of fixed size the panels would shrink.
    rows = [[placed[one] for one in row] for row in _rows(widths)]
    width = max(sum(one.left + one.width + one.right for one in row) + _GAP * (len(row) + 1) for row in rows)
    caption_lines = wrap_title(caption, 0.95 * width, _TITLE_FONT)
    top = _CAPTION_LINE * len(caption_lines) + _GAP
    height = top + sum(_height(row) + _GAP for row in rows)
    figure.set_size_inches(width, height)
    if caption_lines:
        words = "\n".join(caption_lines)
        figure.suptitle(words, y=1 - 0.04 / height, fontproperties=_TITLE_FONT, color="0.3", parse_math=False)
    for row in rows:
        left, bottom = _GAP, height - top - max(one.above for one in row) - PANEL_HEIGHT
        for one in row:
            place = (left + one.left) / width, bottom / height, one.width / width, PANEL_HEIGHT / height
            one.ax.set_position(place)
            left += one.left + one.width + one.right + _GAP
        top += _height(row) + _GAP
    return figure


@dataclass(frozen=True)
class _Placed:
    """The axes of a panel, its width, and what stands around it, such as its title and its color bar, in inches."""

    ax: Axes
    width: float
    left: float
    right: float
    above: float
    below: float

    @classmethod
    def of(cls, ax: Axes, width: float, renderer: RendererBase) -> _Placed:
        """Measure what stands around a panel that has its final size."""
        box = ax.get_tightbbox(renderer)
        assert box is not None  # only invisible axes have none
        x0, y0, x1, y1 = (float(value) / ax.figure.dpi for value in box.extents)
        return cls(ax, width, max(0, -x0), max(0, x1 - width), max(0, y1 - PANEL_HEIGHT), max(0, -y0))


def _height(row: Sequence[_Placed]) -> float:
    """The height of a row with what stands above and below its panels."""
    return max(one.above for one in row) + PANEL_HEIGHT + max(one.below for one in row)


def _rows(widths: Sequence[float]) -> list[list[int]]:
    """The positions of the panels in each row: as few rows as possible, the widest of them as narrow as possible."""
    spaces = [width + _BETWEEN for width in widths]
    fewest = len(_filled(spaces, _WIDEST_ROW))
    sums = {sum(spaces[start:stop]) for stop in range(len(spaces) + 1) for start in range(stop)}
    return next(rows for limit in sorted(sums) if len(rows := _filled(spaces, limit)) <= fewest)


def _filled(spaces: Sequence[float], limit: float) -> list[list[int]]:
    """Rows that are filled one after the other up to a width; a wider panel has a row of its own."""
    rows: list[list[int]] = [[]]
    for position in range(len(spaces)):
        row = [*rows[-1], position]
        if rows[-1] and (len(row) > MOST_IN_A_ROW or sum(spaces[one] for one in row) > limit):
            rows.append([position])
        else:
            rows[-1] = row
    return rows
