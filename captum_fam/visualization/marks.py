"""What stands on or beside a panel: outlines, boxes and color bars."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator
from matplotlib.transforms import ScaledTranslation, Transform, blended_transform_factory

from captum_fam.visualization.pixels import Array
from captum_fam.visualization.titles import text_font, wrap_title

_UNIT_FONT = text_font(8)
# Lengths are in inches.
_UNIT_WIDTH = 1.75  # the width of a narrow panel
_BAR_HEIGHT = 0.13
_BAR_BELOW = 0.24  # from the panel to the lower edge of the bar
_BAR_BELOW_TICKS = 0.6  # the same where the panel has ticks with numbers


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
    if beside:
        bar_ax = heat.axes.inset_axes((1.05, 0.0, 0.06, 1.0))
    else:
        # Below the panel of a signal, the numbers of the samples come first.
        below = _BAR_BELOW_TICKS if len(heat.axes.get_xticks()) else _BAR_BELOW
        bar_ax = heat.axes.inset_axes((0.0, -below, 1.0, _BAR_HEIGHT), transform=_below(heat.axes))
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


def _below(ax: Axes) -> Transform:
    """Widths as fractions of a panel, and heights in inches from its lower edge.

    A layout measures what stands below a panel before the panel has its size. Only inches stay what they were.
    """
    corner = ScaledTranslation(0, 0, ax.transAxes)  # type: ignore[arg-type]  # any transform will do
    inches = ax.figure.dpi_scale_trans + corner
    return blended_transform_factory(ax.transAxes, inches)
