"""The panel of a stereo pair: lines between matching cells, colored by whether they are right."""

from __future__ import annotations

from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke
from torch import Tensor

from captum_fam.demo.stereo_pair import StereoPair, is_near
from captum_fam.visualization.image import ImageDrawing

# Orange and blue: people who see no red, no green or no blue can tell them apart.
_RIGHT, _WRONG = "#E69F00", "#56B4E9"
_BETWEEN = 0.12  # the width between the two images, divided by their height
_MOST_LINES = 30  # a line for each cell would hide the images
_GOLDEN_RATIO = 0.618  # its multiples spread the cells of successive lines over the columns


@dataclass(frozen=True)
class StereoPanel:
    """The two images of a stereo pair side by side, with lines from some cells of the left to their partners.

    Orange lines end within one cell of the truth, blue lines do not. Cells without a known truth have no line.

    Attributes:
        pair: the pair.
        found: the partner of each cell, row and column in cells, ``(h, w, 2)``.
        truth: the true partners, as :meth:`StereoPair.true_partners` gives them, ``(h, w, 2)``.
        title: the lines above the panel.
    """

    pair: StereoPair
    found: Tensor
    truth: Tensor
    title: str

    @property
    def aspect(self) -> float:
        """The width of the panel divided by its height."""
        return 2 * self._image_aspect + _BETWEEN

    @property
    def _image_aspect(self) -> float:
        height, width = self.pair.disparity.shape
        return width / height

    def draw(self, ax: Axes) -> None:
        """Draw images and lines on axes, whose unit is the height of the panel."""
        ax.axis("off")
        ax.set_box_aspect(1 / self.aspect)
        second = self._image_aspect + _BETWEEN
        for image, left in ((self.pair.left, 0.0), (self.pair.right, second)):
            ImageDrawing.of(image).draw_at(ax, left, 0.0, self._image_aspect, 1.0)
        ax.set(xlim=(0, self.aspect), ylim=(1, 0))
        rows, columns, _ = self.found.shape
        side = 1 / rows, self._image_aspect / columns  # of a cell
        is_right, is_known = is_near(self.found, self.truth), ~self.truth.isnan().any(-1)
        # A row of its own for each line: in a rectified pair, lines of one row lie on each other.
        step = -(-rows // _MOST_LINES)
        for number, row in enumerate(range(step // 2, rows, step)):
            column = int((number + 1) * _GOLDEN_RATIO % 1 * columns)
            if not is_known[row, column]:
                continue
            partner_row, partner_column = self.found[row, column].tolist()
            ax.plot(
                [(column + 0.5) * side[1], second + (partner_column + 0.5) * side[1]],
                [(row + 0.5) * side[0], (partner_row + 0.5) * side[0]],
                color=_RIGHT if is_right[row, column] else _WRONG,
                linewidth=1.2,
                marker="o",
                markersize=3.5,
                markeredgecolor="black",
                markeredgewidth=0.5,
            )[0].set_path_effects([withStroke(linewidth=2, foreground="black")])
