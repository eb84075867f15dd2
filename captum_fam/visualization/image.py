"""Drawing an image, and a map over the image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from PIL import Image

from captum_fam.visualization.figure import WIDEST_PANEL, MapFigure
from captum_fam.visualization.marks import draw_outline
from captum_fam.visualization.pixels import Array, ImageLike, channels_in_words, to_rgb
from captum_fam.visualization.style import DEFAULT_STYLE, MapStyle

_OVERLAY_INCHES = 3.0
"""The longer side of a picture with outlines, in inches, with which the lines are as wide as those of a figure."""


@dataclass(frozen=True)
class ImageDrawing:
    """An image that can be drawn, as :class:`~captum_fam.visualization.drawing.InputDrawing` describes.

    Attributes:
        pixels: ``(H, W, 3)`` in [0, 1].
        note: what was done to the channels, in words.

    Example:
        >>> ImageDrawing.of(photo).size
        (60, 90)
    """

    pixels: Array
    note: str = ""

    @classmethod
    def of(cls, image: ImageLike, name: str = "image") -> ImageDrawing:
        """The drawing of an image in any form that :func:`~captum_fam.visualization.to_rgb` takes."""
        return cls(to_rgb(image, name), channels_in_words(image))

    @property
    def size(self) -> tuple[int, ...]:
        """Height and width of the image."""
        return self.pixels.shape[:2]

    @property
    def aspect(self) -> float:
        """The width of the image divided by its height, limited to what a figure can show."""
        height, width = self.size
        return float(np.clip(width / height, 0.5, WIDEST_PANEL))

    @property
    def thumbnail(self) -> ImageDrawing:
        """The image itself."""
        return self

    def draw(self, ax: Axes) -> AxesImage:
        """Draw the image on axes, without ticks."""
        ax.set(xticks=[], yticks=[])
        return ax.imshow(self.pixels)

    def draw_at(self, ax: Axes, left: float, top: float, width: float, height: float) -> None:
        """Draw the image with a frame in a rectangle of axes whose vertical axis points down."""
        ax.imshow(self.pixels, extent=(left, left + width, top + height, top), aspect="auto")
        ax.add_patch(Rectangle((left, top), width, height, fill=False, linewidth=0.8, clip_on=False))

    def draw_map(self, ax: Axes, values: Array, limit: float, style: MapStyle = DEFAULT_STYLE) -> AxesImage:
        """Draw a map ``(H, W)`` over the image on axes, without ticks."""
        ax.set(xticks=[], yticks=[])
        ax.imshow(style.below(self.pixels))
        return style.draw_values(ax, values, limit)

    def draw_mask(self, ax: Axes, mask: Array) -> None:
        """Draw the outline of a mask ``(H, W)``."""
        draw_outline(ax, mask)

    def overlay(self, values: Array, limit: float, style: MapStyle = DEFAULT_STYLE) -> Image.Image:
        """A map ``(H, W)`` over the image, at the size of the image, without frame or text."""
        if style.kind == "overlay":
            return Image.fromarray((style.blend(self.pixels, values, limit) * 255).round().astype(np.uint8))
        height, width = self.size
        dpi = max(72.0, max(height, width) / _OVERLAY_INCHES)
        # Matplotlib cuts off fractions of pixels of the figure, which are rounding errors of the division. Before 3.11
        # Matplotlib rounds up fractions of the axes, and would stretch the image by a pixel.
        figure = MapFigure(figsize=((width + 0.01) / dpi, (height + 0.01) / dpi), dpi=dpi)
        ax = figure.add_axes((0, 0, (width - 0.01) / (width + 0.01), (height - 0.01) / (height + 0.01)))
        ax.axis("off")
        self.draw_map(ax, values, limit, style).axes.set_aspect("auto")
        return figure.as_image()
