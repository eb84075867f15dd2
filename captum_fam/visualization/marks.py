"""What stands on or beside a panel: outlines, boxes and color bars."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.font_manager import FontProperties
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator

from captum_fam.visualization.pixels import Array
from captum_fam.visualization.titles import wrap_title

_UNIT_FONT = FontProperties(size=8)
_UNIT_WIDTH = 1.75  # inches, the width of a narrow panel


def draw_outline(ax: Axes, mask: Array) -> None:
    """Draw the outline of a mask, white with a dark rim.

    Args:
        ax: matplotlib axes with an image of the same size.
        mask: ``(H, W)``; pixels above one half are inside. Nothing is drawn for a mask without such pixels.

    Example:
        >>> import numpy as np
        >>> from captum_fam.visualization import MapFigure, draw_image, draw_outline
        >>> ax = MapFigure().add_subplot()
        >>> draw_image(ax, photo)
        >>> draw_outline(ax, np.eye(60, 90))
    """
    inside = mask > 0.5
    if inside.any():
        ax.contour(inside, levels=[0.5], colors="black", linewidths=2.2)
        ax.contour(inside, levels=[0.5], colors="white", linewidths=1.0)


def draw_boxes(ax: Axes, boxes: Sequence[Sequence[float]]) -> None:
    """Draw boxes, white with a dark rim.

    Args:
        ax: matplotlib axes with an image.
        boxes: ``(x0, y0, x1, y1)`` each, half-open, in pixels of the image.

    Example:
        >>> from captum_fam.visualization import MapFigure, draw_boxes, draw_image
        >>> ax = MapFigure().add_subplot()
        >>> draw_image(ax, photo)
        >>> draw_boxes(ax, [(10, 5, 40, 30)])
    """
    for x0, y0, x1, y1 in boxes:
        # In a box, pixel column i covers [i, i + 1); matplotlib draws the column from i - 0.5 to i + 0.5.
        box = Rectangle((x0 - 0.5, y0 - 0.5), x1 - x0, y1 - y0, fill=False, edgecolor="white", linewidth=0.8)
        box.set_path_effects([patheffects.withStroke(linewidth=1.8, foreground="black")])
        ax.add_patch(box)


def draw_color_bar(heat: AxesImage, *, signed: bool, beside: bool, unit: str = "") -> None:
    """Draw the color bar of a map.

    Args:
        heat: the artist that :func:`~captum_fam.visualization.draw_map` returned.
        signed: whether the bar has a negative half.
        beside: whether the bar stands at the right of the panel; otherwise it stands below the panel.
        unit: the unit of the values, which stands at the bar. Default: an empty text.

    Example:
        >>> from captum_fam.visualization import MapFigure, draw_color_bar, draw_map
        >>> heat = draw_map(MapFigure().add_subplot(), photo, attributions[0])
        >>> draw_color_bar(heat, signed=False, beside=True)
    """
    # Places are fractions of the panel. Below the panel of a signal, the numbers of the samples come first.
    bottom = -0.11 if not len(heat.axes.get_xticks()) else -0.27
    place = (1.05, 0.0, 0.06, 1.0) if beside else (0.0, bottom, 1.0, 0.06)
    bar_ax = heat.axes.inset_axes(place)
    bar = heat.axes.figure.colorbar(heat, cax=bar_ax, orientation="vertical" if beside else "horizontal")
    low, high = heat.get_clim()
    (bar_ax.set_ylim if beside else bar_ax.set_xlim)(low if signed else 0, high)
    bar_ax.tick_params(labelsize=8)
    height, width = heat.get_size()
    is_narrow = 2 * width < height  # a bar below such a panel has room for one number only
    bar.locator = MaxNLocator(nbins=5 if beside else 1 if is_narrow else 3)
    bar.formatter = FuncFormatter(lambda value, _: f"{value:,.0f}" if high >= 1000 else f"{value:.3g}")
    bar.update_ticks()
    bar.set_label("\n".join(wrap_title(unit, _UNIT_WIDTH, _UNIT_FONT)), fontproperties=_UNIT_FONT, labelpad=2)
