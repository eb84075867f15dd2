"""A block of small pictures in one panel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from torch import Tensor

from captum_fam.visualization.drawing import InputDrawing, drawing_of
from captum_fam.visualization.image import ImageDrawing
from captum_fam.visualization.pixels import ImageLike, MapLike

MOST_THUMBNAILS = 9
"""How many supports are drawn, and how many foils."""

_GAP = 0.04  # between thumbnails, as a fraction of a cell


@dataclass(frozen=True)
class ThumbnailBlock:
    """A block of small pictures in one panel.

    Attributes:
        drawings: the pictures.
        title: the title of the panel.

    Example:
        >>> ThumbnailBlock.of([photo] * 25, [], "support", "supports").title.splitlines()
        ['support', '9 of 25']
    """

    drawings: Sequence[InputDrawing]
    title: str

    @classmethod
    def of(cls, images: Sequence[ImageLike] | Tensor, maps: Sequence[MapLike], title: str, name: str) -> ThumbnailBlock:
        """The first nine inputs; the title says how many there are, and what is not drawn as it is."""
        drawings = [drawing_of(image, maps, name).thumbnail for image in images[:MOST_THUMBNAILS]]
        count = f"{len(drawings)} of {len(images)}" if len(drawings) < len(images) else ""
        notes = dict.fromkeys(drawing.note for drawing in drawings)
        return cls(drawings, "\n".join(filter(None, (title, count, *notes))))

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns, such that the block is about square."""
        count = len(self.drawings)
        columns = min(range(count, 0, -1), key=lambda columns: abs(math.log(self._aspect_of(columns))))
        return math.ceil(count / columns), columns

    @property
    def aspect(self) -> float:
        """The width of the block divided by its height."""
        return self._aspect_of(self.grid[1])

    def _aspect_of(self, columns: int) -> float:
        """The width of the block divided by its height, if it has this number of columns."""
        mean_aspect = float(np.mean([drawing.aspect for drawing in self.drawings]))
        return mean_aspect * columns / math.ceil(len(self.drawings) / columns)

    def draw(self, ax: Axes) -> None:
        """Draw the block on axes."""
        rows, columns = self.grid
        ax.axis("off")
        ax.set_box_aspect(1 / self.aspect)
        ax.set(xlim=(0, columns), ylim=(rows, 0))  # a cell is one wide and one high
        for number, drawing in enumerate(self.drawings):
            row, column = divmod(number, columns)
            if isinstance(drawing, ImageDrawing):
                self._draw_image(ax, drawing, row, column)
                continue
            place = (column / columns, 1 - (row + 1 - _GAP) / rows, (1 - _GAP) / columns, (1 - _GAP) / rows)
            inset = ax.inset_axes(place)
            drawing.draw(inset)
            inset.set_in_layout(False)  # it lies within its panel, so that the layout need not make room for it

    def _draw_image(self, ax: Axes, drawing: ImageDrawing, row: int, column: int) -> None:
        """Draw an image in the middle of its cell, on the axes of the block: axes for each would take long to make."""
        rows, columns = self.grid
        cell_aspect = self.aspect * rows / columns
        height_of, width_of = drawing.size
        ratio = width_of / height_of / cell_aspect
        width, height = (1 - _GAP) * min(1, ratio), (1 - _GAP) * min(1, 1 / ratio)
        left, top = column + (1 - _GAP - width) / 2, row + (1 - _GAP - height) / 2
        drawing.draw_at(ax, left, top, width, height)
