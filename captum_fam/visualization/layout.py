"""Panels side by side below their titles, in as many rows as are needed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import islice
from typing import Protocol

from matplotlib.axes import Axes
from matplotlib.font_manager import FontProperties
from matplotlib.layout_engine import ConstrainedLayoutEngine

from captum_fam.visualization.figure import PANEL_HEIGHT, MapFigure
from captum_fam.visualization.titles import wrap_title

MOST_IN_A_ROW = 5
"""How many panels stand side by side; further panels stand in further rows."""

# Lengths are in inches.
_NARROWEST = 0.8  # the smallest width of a panel divided by its height, so that titles fit above a tall image
_WIDEST_ROW = 18.5
_TITLE_FONT = FontProperties(size=9)
_TITLE_LINE = 0.16
_CAPTION_LINE = 0.19
_BELOW_BAR = 0.75  # below a panel with a color bar and its unit, and the space between rows
_BELOW = 0.4  # below other panels, which may have numbers of samples
_BETWEEN = 0.3


class FigurePanel(Protocol):
    """A panel of a figure."""

    @property
    def title(self) -> str:
        """The lines above the panel."""

    @property
    def aspect(self) -> float:
        """The width of the panel divided by its height."""

    @property
    def has_bar_below(self) -> bool:
        """Whether a color bar stands below the panel."""

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
    lines = [wrap_title(panel.title, width, _TITLE_FONT) for panel, width in zip(panels, widths, strict=True)]
    rows = _rows(widths)
    row_widths = [sum(widths[one] + _BETWEEN for one in row) for row in rows]
    # The figure grows with the titles. In a figure of fixed height the panels would shrink, and titles would not fit.
    heights = [
        PANEL_HEIGHT
        + _TITLE_LINE * max(len(lines[one]) for one in row)
        + (_BELOW_BAR if any(panels[one].has_bar_below for one in row) else _BELOW)
        for row in rows
    ]
    caption_lines = wrap_title(caption, 0.95 * max(row_widths), _TITLE_FONT)
    size = (max(row_widths), sum(heights) + _CAPTION_LINE * len(caption_lines))
    figure = MapFigure(figsize=size, layout=ConstrainedLayoutEngine(w_pad=0.08))
    if caption_lines:
        figure.suptitle("\n".join(caption_lines), fontproperties=_TITLE_FONT, color="0.3", parse_math=False)
    outer = figure.add_gridspec(len(rows), 1, height_ratios=heights)
    for number, (row, row_width) in enumerate(zip(rows, row_widths, strict=True)):
        # An empty column fills a row that is less wide than the widest one. The layout adds the space between columns.
        spare = max(row_widths) - row_width - _BETWEEN
        columns = [*(widths[one] for one in row), *([spare] if spare > 0 else [])]
        inner = outer[number].subgridspec(1, len(columns), width_ratios=columns)
        for column, one in enumerate(row):
            ax = figure.add_subplot(inner[column], anchor="N")
            ax.set_title("\n".join(lines[one]), fontproperties=_TITLE_FONT, parse_math=False)
            panels[one].draw(ax)
    return figure


def _rows(widths: Sequence[float]) -> list[list[int]]:
    """The positions of the panels in each row: as few rows as possible, of about equally many panels."""
    for count in range(1, len(widths) + 1):
        per_row = math.ceil(len(widths) / count)
        positions = iter(range(len(widths)))
        rows = [row for _ in range(count) if (row := list(islice(positions, per_row)))]
        fits = all(sum(widths[one] + _BETWEEN for one in row) <= _WIDEST_ROW for row in rows)
        if per_row <= MOST_IN_A_ROW and (fits or per_row == 1):
            break
    return rows
