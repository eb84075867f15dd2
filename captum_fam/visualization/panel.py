"""Drawing one input, or one map over its input, on matplotlib axes or as an image of its own.

A map is drawn over the image; :mod:`captum_fam.visualization.colors` explains the colors. Signals and volumes are
drawn by the same functions: :func:`~captum_fam.visualization.drawing.drawing_of` recognizes them by their shapes.
"""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.image import AxesImage
from PIL import Image

from captum_fam.visualization.colors import color_limit
from captum_fam.visualization.drawing import drawing_of
from captum_fam.visualization.pixels import ImageLike, MapLike, to_map
from captum_fam.visualization.style import DEFAULT_STYLE, MapStyle, StyleLike


def draw_image(ax: Axes, image: ImageLike) -> None:
    """Draw an image on axes, without ticks; or the slices of a volume, or the lines of a signal.

    Args:
        ax: matplotlib axes.
        image: an image, signal or volume in any form that :func:`~captum_fam.visualization.visualize_match` takes.

    Raises:
        ValueError: for another shape, or values outside [0, 1].

    Example:
        >>> from captum_fam.visualization import MapFigure
        >>> draw_image(MapFigure().add_subplot(), photo)
    """
    drawing_of(image).draw(ax)


def draw_map(
    ax: Axes, image: ImageLike, attribution: MapLike, limit: float | None = None, style: StyleLike = DEFAULT_STYLE
) -> AxesImage:
    """Draw a map over the image on axes, without ticks; or over slices of a volume, or behind a signal.

    Args:
        ax: matplotlib axes.
        image: an image, signal or volume in any form that :func:`~captum_fam.visualization.visualize_match` takes.
        attribution: the map, ``(h, w)``, ``(1, h, w)`` or ``(h, w, 1)``; ``(l,)`` or ``(1, l)`` of a signal;
            ``(d, h, w)`` or ``(1, d, h, w)`` of a volume. It is resized linearly to the size of the input.
        limit: the magnitude that has the full color. Default: None, the largest magnitude of the map.
        style: ``"overlay"``, ``"outline"``, or a :class:`~captum_fam.visualization.MapStyle`, which can also make the
            image below the map gray. Default: colors over the image in color.

    Returns:
        The artist that matplotlib draws, with the map ``(H, W)`` of an image, ``(1, L)`` of a signal, or the slices of
        a volume in one array; :func:`~captum_fam.visualization.draw_color_bar` takes it.

    Raises:
        ValueError: for other shapes, images outside [0, 1], maps with NaN or inf, or an unknown style.

    Example:
        >>> from captum_fam.visualization import MapFigure
        >>> heat = draw_map(MapFigure().add_subplot(), photo, attributions[0])
    """
    drawing = drawing_of(image, [attribution])
    values = to_map(attribution, drawing.size)
    return drawing.draw_map(ax, values, limit or color_limit(values), MapStyle.of(style))


def overlay(
    image: ImageLike, attribution: MapLike, limit: float | None = None, style: StyleLike = DEFAULT_STYLE
) -> Image.Image:
    """Draw a map over the image, at the size of the image, without frame or text.

    A signal is drawn as lines over the colors of its map, with the numbers of the samples. Of a volume or a video, at
    most eight slices are drawn side by side, each below its number.

    Args:
        image: an image, signal or volume in any form that :func:`~captum_fam.visualization.visualize_match` takes.
        attribution: the map, ``(h, w)``, ``(1, h, w)`` or ``(h, w, 1)``; ``(l,)`` or ``(1, l)`` of a signal;
            ``(d, h, w)`` or ``(1, d, h, w)`` of a volume. It is resized linearly to the size of the input.
        limit: the magnitude that has the full color. Default: None, the largest magnitude of the map.
        style: ``"overlay"``, ``"outline"``, or a :class:`~captum_fam.visualization.MapStyle`, which can also make the
            image below the map gray. Default: colors over the image in color.

    Returns:
        An RGB image.

    Raises:
        ValueError: for other shapes, images outside [0, 1], maps with NaN or inf, or an unknown style.

    Example:
        >>> overlay(photo, attributions[0]).save("overlay.png")
        >>> overlay(torch.rand(2, 500), torch.randn(1, 40)).size  # a signal of two channels
        (1200, 382)
    """
    drawing = drawing_of(image, [attribution])
    values = to_map(attribution, drawing.size)
    return drawing.overlay(values, limit or color_limit(values), MapStyle.of(style))
