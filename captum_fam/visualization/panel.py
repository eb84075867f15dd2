"""Drawing one image, or one map over its image, on matplotlib axes: the parts of all figures.

A map is drawn over the gray image; :mod:`captum_fam.visualization.colors` explains the colors.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator
from PIL import Image

from captum_fam.visualization.colors import MATCH_COLORS, color_limit
from captum_fam.visualization.pixels import Array, ImageLike, MapLike, to_map, to_rgb


def draw_image(ax: Axes, image: ImageLike) -> AxesImage:
    """Draw an image on axes, without ticks.

    Args:
        ax: matplotlib axes.
        image: an image in any form that :func:`~captum_fam.visualization.visualize_match` takes.

    Returns:
        The artist that matplotlib draws, with floats ``(H, W, 3)`` in [0, 1].

    Raises:
        ValueError: for another shape, or values outside [0, 1].

    Example:
        >>> from captum_fam.visualization import MapFigure
        >>> artist = draw_image(MapFigure().add_subplot(), photo)
    """
    ax.set(xticks=[], yticks=[])
    return ax.imshow(to_rgb(image))


def draw_map(ax: Axes, image: ImageLike, attribution: MapLike, limit: float | None = None) -> AxesImage:
    """Draw a map over the gray image on axes, without ticks.

    Args:
        ax: matplotlib axes.
        image: an image in any form that :func:`~captum_fam.visualization.visualize_match` takes.
        attribution: the map, ``(h, w)``, ``(1, h, w)`` or ``(h, w, 1)``; resized bilinearly to the size of the image.
        limit: the magnitude that has the full color. Default: None, the largest magnitude of the map.

    Returns:
        The artist that matplotlib draws, with the map ``(H, W)``; :func:`draw_color_bar` takes it.

    Raises:
        ValueError: for other shapes, images outside [0, 1], or maps with NaN or inf.

    Example:
        >>> from captum_fam.visualization import MapFigure
        >>> heat = draw_map(MapFigure().add_subplot(), photo, attributions[0])
    """
    pixels = to_rgb(image)
    values = to_map(attribution, pixels.shape[:2])
    limit = limit or color_limit(values)
    ax.set(xticks=[], yticks=[])
    # Without limits, matplotlib would stretch the contrast of the gray image to black and white.
    ax.imshow(_gray(pixels), cmap="gray", vmin=0, vmax=1)
    return ax.imshow(values, cmap=MATCH_COLORS, vmin=-limit, vmax=limit)


def overlay(image: ImageLike, attribution: MapLike, limit: float | None = None) -> Image.Image:
    """Draw a map over the gray image, at the size of the image, without frame or text.

    Args:
        image: an image in any form that :func:`~captum_fam.visualization.visualize_match` takes.
        attribution: the map, ``(h, w)``, ``(1, h, w)`` or ``(h, w, 1)``; resized bilinearly to the size of the image.
        limit: the magnitude that has the full color. Default: None, the largest magnitude of the map.

    Returns:
        An RGB image.

    Raises:
        ValueError: for other shapes, images outside [0, 1], or maps with NaN or inf.

    Example:
        >>> overlay(photo, attributions[0]).save("overlay.png")
    """
    pixels = to_rgb(image)
    values = to_map(attribution, pixels.shape[:2])
    # A matplotlib color map takes positions in [0, 1]; the value zero is at 0.5.
    colors = MATCH_COLORS(0.5 + 0.5 * values / (limit or color_limit(values)))
    opacity = colors[..., 3:]
    blended = (1 - opacity) * _gray(pixels)[..., None] + opacity * colors[..., :3]
    return Image.fromarray((blended * 255).round().astype(np.uint8))


def draw_outline(ax: Axes, mask: Array) -> None:
    """Draw the outline of a mask, white with a dark rim.

    Args:
        ax: matplotlib axes with an image of the same size.
        mask: ``(H, W)``; pixels above one half are inside. Nothing is drawn for a mask without such pixels.

    Example:
        >>> from captum_fam.visualization import MapFigure, draw_image, draw_outline
        >>> ax = MapFigure().add_subplot()
        >>> artist = draw_image(ax, photo)
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
        >>> artist = draw_image(ax, photo)
        >>> draw_boxes(ax, [(10, 5, 40, 30)])
    """
    for x0, y0, x1, y1 in boxes:
        # In a box, pixel column i covers [i, i + 1); matplotlib draws the column from i - 0.5 to i + 0.5.
        box = Rectangle((x0 - 0.5, y0 - 0.5), x1 - x0, y1 - y0, fill=False, edgecolor="white", linewidth=0.8)
        box.set_path_effects([patheffects.withStroke(linewidth=1.8, foreground="black")])
        ax.add_patch(box)


def draw_color_bar(heat: AxesImage, *, signed: bool, beside: bool) -> None:
    """Draw the color bar of a map.

    Args:
        heat: the artist that :func:`draw_map` returned.
        signed: whether the bar has a negative half.
        beside: whether the bar stands at the right of the panel; otherwise it stands below the panel.

    Example:
        >>> from captum_fam.visualization import MapFigure, draw_color_bar, draw_map
        >>> heat = draw_map(MapFigure().add_subplot(), photo, attributions[0])
        >>> draw_color_bar(heat, signed=False, beside=True)
    """
    place = (1.05, 0.0, 0.06, 1.0) if beside else (0.0, -0.11, 1.0, 0.06)  # as fractions of the panel
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


def _gray(pixels: Array) -> Array:
    """An image ``(H, W, 3)`` as gray values ``(H, W)``."""
    gray: Array = pixels.mean(2)
    return gray
