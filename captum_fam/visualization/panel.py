"""One image, or one map over its image: the drawing that every figure is made of.

Below the colors lies the image in gray; see :mod:`captum_fam.visualization.colors` for what they mean.
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
        image: as for :func:`~captum_fam.visualization.visualize_match`.

    Returns:
        What matplotlib shows, floats ``(H, W, 3)`` in [0, 1].

    Raises:
        ValueError: for another shape, or values outside [0, 1].

    Example:
        >>> from captum_fam.visualization import MapFigure
        >>> shown = draw_image(MapFigure().add_subplot(), photo)
    """
    ax.set(xticks=[], yticks=[])
    return ax.imshow(to_rgb(image))


def draw_map(ax: Axes, image: ImageLike, attribution: MapLike, limit: float | None = None) -> AxesImage:
    """Draw a map over the gray image on axes, without ticks.

    Args:
        ax: matplotlib axes.
        image: as for :func:`~captum_fam.visualization.visualize_match`.
        attribution: ``(h, w)``, ``(1, h, w)`` or ``(h, w, 1)``; brought to the image's size bilinearly.
        limit: the magnitude of full color. Default: the largest of the map.

    Returns:
        The map as matplotlib shows it, ``(H, W)``, which a color bar can be drawn of.

    Raises:
        ValueError: for shapes other than those, images outside [0, 1], or maps with NaN or inf.

    Example:
        >>> from captum_fam.visualization import MapFigure
        >>> heat = draw_map(MapFigure().add_subplot(), photo, attributions[0])
    """
    pixels = to_rgb(image)
    values = to_map(attribution, pixels.shape[:2])
    limit = limit or color_limit(values)
    ax.set(xticks=[], yticks=[])
    # Limits for the gray image too, or its contrast would be stretched to black and white.
    ax.imshow(_gray(pixels), cmap="gray", vmin=0, vmax=1)
    return ax.imshow(values, cmap=MATCH_COLORS, vmin=-limit, vmax=limit)


def overlay(image: ImageLike, attribution: MapLike, limit: float | None = None) -> Image.Image:
    """The map over the gray image, at the image's size, without frame or text.

    Args:
        image: as for :func:`~captum_fam.visualization.visualize_match`.
        attribution: ``(h, w)``, ``(1, h, w)`` or ``(h, w, 1)``; brought to the image's size bilinearly.
        limit: the magnitude of full color. Default: the largest of the map.

    Returns:
        An RGB image.

    Raises:
        ValueError: for shapes other than those, images outside [0, 1], or maps with NaN or inf.

    Example:
        >>> overlay(photo, attributions[0]).save("overlay.png")
    """
    pixels = to_rgb(image)
    values = to_map(attribution, pixels.shape[:2])
    # Colors are chosen by a position in [0, 1], where zero is in the middle.
    colors = MATCH_COLORS(0.5 + 0.5 * values / (limit or color_limit(values)))
    opacity = colors[..., 3:]
    blended = (1 - opacity) * _gray(pixels)[..., None] + opacity * colors[..., :3]
    return Image.fromarray((blended * 255).round().astype(np.uint8))


def draw_outline(ax: Axes, mask: Array) -> None:
    """Draw the outline of the pixels where a mask ``(H, W)`` is above one half, white with a dark rim."""
    inside = mask > 0.5
    if inside.any():
        ax.contour(inside, levels=[0.5], colors="black", linewidths=2.2)
        ax.contour(inside, levels=[0.5], colors="white", linewidths=1.0)


def draw_boxes(ax: Axes, boxes: Sequence[Sequence[float]]) -> None:
    """Draw boxes ``(x0, y0, x1, y1)`` in pixels of the image, white with a dark rim."""
    for x0, y0, x1, y1 in boxes:
        # Pixel column i covers [i, i + 1) in a box, and matplotlib draws the column around i.
        box = Rectangle((x0 - 0.5, y0 - 0.5), x1 - x0, y1 - y0, fill=False, edgecolor="white", linewidth=0.8)
        box.set_path_effects([patheffects.withStroke(linewidth=1.8, foreground="black")])
        ax.add_patch(box)


def draw_color_bar(heat: AxesImage, *, signed: bool, beside: bool) -> None:
    """Draw the color bar of a map.

    Args:
        heat: what :func:`draw_map` returned.
        signed: whether the bar has a negative half.
        beside: draw the bar at the right of the panel, else below the panel.
    """
    place = (1.05, 0.0, 0.06, 1.0) if beside else (0.0, -0.11, 1.0, 0.06)  # in shares of the panel
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
    gray: Array = pixels.mean(2)
    return gray
