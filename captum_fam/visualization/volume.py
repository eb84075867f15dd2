"""Drawing a volume or a video as slices side by side, and a map over the slices."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.image import AxesImage
from PIL import Image

from captum_fam.visualization.figure import PANEL_HEIGHT, WIDEST_PANEL, MapFigure
from captum_fam.visualization.image import ImageDrawing
from captum_fam.visualization.pixels import Array, ImageLike, channels_in_words, to_slices
from captum_fam.visualization.style import DEFAULT_STYLE, MapStyle

_NUMBER_SIZE = 6.5  # in points
_NUMBER_HEIGHT = 0.13
"""The height for the number above each slice, in inches."""
_NUMBER_WIDTH = 0.72
"""The width for the number above each slice, in inches; narrower slices stand further apart."""
_GAP = 0.06
"""The width between slices, in inches."""
_FEWEST_DOTS, _MOST_DOTS = 200, 500
"""The pixels of an overlay per inch: about one per pixel of the slices, within these limits."""


@dataclass(frozen=True)
class VolumeDrawing:
    """A volume or a video that can be drawn, as :class:`~captum_fam.visualization.drawing.InputDrawing` describes.

    At most eight slices are drawn, evenly chosen.

    Attributes:
        slices: the slices that are drawn, ``(n, H, W, 3)`` in [0, 1].
        positions: the positions of these slices, counted from zero.
        depth: the number of all slices, D.
        note: what was done to the channels, in words.

    Example:
        >>> drawing = VolumeDrawing.of(torch.rand(1, 12, 30, 40))
        >>> drawing.size, drawing.positions
        ((12, 30, 40), (0, 2, 3, 5, 6, 8, 9, 11))
    """

    slices: Array
    positions: tuple[int, ...]
    depth: int
    note: str = ""

    @classmethod
    def of(cls, volume: ImageLike, name: str = "image") -> VolumeDrawing:
        """The drawing of a volume in any form that :func:`~captum_fam.visualization.pixels.to_slices` takes."""
        slices, positions, depth = to_slices(volume, name)
        return cls(slices, positions, depth, channels_in_words(volume))

    @property
    def size(self) -> tuple[int, ...]:
        """Depth, height and width of the volume."""
        return (self.depth, *self.slices.shape[1:3])

    @property
    def aspect(self) -> float:
        """The width of the panel divided by its height, limited to what a figure can show."""
        return self._montage.aspect

    @property
    def thumbnail(self) -> ImageDrawing:
        """The middle one of the slices."""
        return ImageDrawing(self.slices[len(self.slices) // 2], f"middle slice\n{self.note}".strip())

    @property
    def middle(self) -> int:
        """The position of the slice that is the thumbnail."""
        return self.positions[len(self.positions) // 2]

    def draw(self, ax: Axes) -> AxesImage:
        """Draw the slices on axes, each below its number."""
        self._draw_numbers(ax)
        return self._montage.draw(ax)

    def draw_map(self, ax: Axes, values: Array, limit: float, style: MapStyle = DEFAULT_STYLE) -> AxesImage:
        """Draw the slices of a map ``(D, H, W)`` over the slices, all on one scale of colors."""
        self._draw_numbers(ax)
        return self._montage.draw_map(ax, self._laid_out(values[list(self.positions)], 0), limit, style)

    def draw_mask(self, ax: Axes, mask: Array) -> None:
        """Draw the outline of a mask ``(D, H, W)`` on each slice."""
        self._montage.draw_mask(ax, self._laid_out(mask[list(self.positions)], 0))

    def overlay(self, values: Array, limit: float, style: MapStyle = DEFAULT_STYLE) -> Image.Image:
        """A map ``(D, H, W)`` over the slices, each below its number."""
        height, width, _ = self._montage.pixels.shape
        size = (PANEL_HEIGHT * self.aspect, PANEL_HEIGHT * self.aspect * height / width)
        figure = MapFigure(figsize=size, dpi=min(max(height / size[1], _FEWEST_DOTS), _MOST_DOTS))
        self.draw_map(figure.add_axes((0, 0, 1, 1)), values, limit, style)
        return figure.as_image()

    @property
    def _grid(self) -> tuple[int, int]:
        """Rows and columns with which the slices are largest in a panel of a figure."""
        count = len(self.slices)
        widest = PANEL_HEIGHT * WIDEST_PANEL
        most = min(count, int(widest / (_NUMBER_WIDTH + _GAP)))
        columns = max(range(1, most + 1), key=self._slice_height)
        return math.ceil(count / columns), columns

    def _slice_height(self, columns: int) -> float:
        """The height of a slice in a panel of a figure, in inches, if there are so many columns."""
        height, width = self.slices.shape[1:3]
        rows = math.ceil(len(self.slices) / columns)
        width_limit = PANEL_HEIGHT * WIDEST_PANEL / columns - _GAP
        return min(PANEL_HEIGHT / rows - _NUMBER_HEIGHT, width_limit * height / width)

    @property
    def _cell(self) -> tuple[int, int]:
        """Height and width of a slice with the number above it and the space beside it, in pixels."""
        height, width = self.slices.shape[1:3]
        per_inch = height / self._slice_height(self._grid[1])
        above, narrowest, gap = (math.ceil(per_inch * size) for size in (_NUMBER_HEIGHT, _NUMBER_WIDTH, _GAP))
        return height + above, max(width, narrowest) + gap

    @property
    def _corners(self) -> list[tuple[int, int]]:
        """The upper left corner of each slice in the montage, as row and column of pixels."""
        height, width = self._cell
        _, columns = self._grid
        above, before = height - self.slices.shape[1], (width - self.slices.shape[2]) // 2
        places = (divmod(number, columns) for number in range(len(self.slices)))
        return [(row * height + above, column * width + before) for row, column in places]

    @property
    def _montage(self) -> ImageDrawing:
        """All slices in one white image."""
        return ImageDrawing(self._laid_out(self.slices, 1))

    def _laid_out(self, slices: Array, background: float) -> Array:
        """Slices ``(n, H, W, ...)`` in one array, each at its place."""
        (rows, columns), (cell_height, cell_width) = self._grid, self._cell
        montage = np.full((rows * cell_height, columns * cell_width, *slices.shape[3:]), float(background))
        for (top, left), one in zip(self._corners, slices, strict=True):
            montage[top : top + one.shape[0], left : left + one.shape[1]] = one
        return montage

    def _draw_numbers(self, ax: Axes) -> None:
        """Write above each slice which one it is, and leave out the frame around all slices."""
        ax.set_frame_on(False)
        middle = self.slices.shape[2] / 2 - 0.5
        for position, (top, left) in zip(self.positions, self._corners, strict=True):
            text = f"slice {position + 1} of {self.depth}"
            # Pixel row i is drawn from i - 0.5 to i + 0.5.
            ax.text(left + middle, top - 0.5, text, fontsize=_NUMBER_SIZE, ha="center", va="bottom")
