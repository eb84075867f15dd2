"""Drawing an image, and a map over the gray image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.image import AxesImage
from PIL import Image

from captum_fam.visualization.colors import MATCH_COLORS
from captum_fam.visualization.figure import WIDEST_PANEL
from captum_fam.visualization.marks import draw_outline
from captum_fam.visualization.pixels import Array, ImageLike, channels_in_words, to_rgb


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

    def draw_map(self, ax: Axes, values: Array, limit: float) -> AxesImage:
        """Draw a map ``(H, W)`` over the gray image on axes, without ticks."""
        ax.set(xticks=[], yticks=[])
        # Without limits, matplotlib would stretch the contrast of the gray image to black and white.
        ax.imshow(self._gray, cmap="gray", vmin=0, vmax=1)
        return ax.imshow(values, cmap=MATCH_COLORS, vmin=-limit, vmax=limit)

    def draw_mask(self, ax: Axes, mask: Array) -> None:
        """Draw the outline of a mask ``(H, W)``."""
        draw_outline(ax, mask)

    def overlay(self, values: Array, limit: float) -> Image.Image:
        """A map ``(H, W)`` over the gray image, at the size of the image, without frame or text."""
        # A matplotlib color map takes positions in [0, 1]; the value zero is at 0.5.
        colors = MATCH_COLORS(0.5 + 0.5 * values / limit)
        opacity = colors[..., 3:]
        blended = (1 - opacity) * self._gray[..., None] + opacity * colors[..., :3]
        return Image.fromarray((blended * 255).round().astype(np.uint8))

    @property
    def _gray(self) -> Array:
        """The gray values, ``(H, W)``."""
        gray: Array = self.pixels.mean(2)
        return gray
