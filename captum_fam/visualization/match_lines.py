"""Lines between the positions of two images that match."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke

from captum_fam.visualization.drawing import InputDrawing, drawing_of
from captum_fam.visualization.image import ImageDrawing
from captum_fam.visualization.pixels import ImageLike
from captum_fam.visualization.volume import VolumeDrawing

# Colors that people who see no red, no green or no blue can tell apart; neighbors in the list differ most.
_LINE_COLORS = ("#E69F00", "#56B4E9", "#F0E442", "#CC79A7", "#009E73", "#D55E00", "#0072B2", "#FFFFFF")
_THINNEST, _WIDEST = 0.6, 2.4  # of a line, in points
_RIM = 1.0
_BETWEEN = 0.25  # the width between the two images, divided by their height


class MatchedCells(Protocol):
    """Two positions that match, such as a :class:`~captum_fam.attr.PointMatch`."""

    @property
    def query(self) -> tuple[int, ...]:
        """The cell in the map of the query, one index per axis."""

    @property
    def support(self) -> tuple[int, ...]:
        """The cell in the map of the support, one index per axis."""

    @property
    def share(self) -> float:
        """What the two positions give to the similarity together."""


@dataclass(frozen=True)
class PairLines:
    """Two images side by side, with lines between the positions that match.

    A line ends in the middle of its cells. Its width grows with the magnitude of its share, the widest line having the
    largest one; lines of negative shares are dashed. Of volumes the middle slices are drawn, with the lines whose two
    ends lie in these slices.

    Attributes:
        query: the query, at the left.
        support: the support, at the right.
        matches: the pairs of positions.
        query_grid: the size of the map of the query, one number per axis.
        support_grid: the size of the map of the support.
        title: the lines above the panel.

    Example:
        >>> from typing import NamedTuple
        >>> class Match(NamedTuple):
        ...     query: tuple[int, ...]
        ...     support: tuple[int, ...]
        ...     share: float
        >>> lines = PairLines.of(photo, photo, [Match((0, 0), (6, 6), 0.2)], (7, 7), (7, 7), "query and support")
        >>> lines.aspect
        3.25
    """

    query: InputDrawing
    support: InputDrawing
    matches: Sequence[MatchedCells]
    query_grid: tuple[int, ...]
    support_grid: tuple[int, ...]
    title: str

    @classmethod
    def of(
        cls,
        query: ImageLike,
        support: ImageLike,
        matches: Sequence[MatchedCells],
        query_grid: tuple[int, ...],
        support_grid: tuple[int, ...],
        title: str = "",
    ) -> PairLines:
        """The panel of two images or volumes in any form that :func:`~captum_fam.visualization.visualize_match` takes.

        Raises:
            ValueError: for a cell outside its grid, or inputs that cannot be drawn.
        """
        lines = cls(drawing_of(query), drawing_of(support), matches, query_grid, support_grid, title)
        for side, grid in (("query", query_grid), ("support", support_grid)):
            for match in matches:
                cell = match.query if side == "query" else match.support
                if len(cell) != len(grid) or not all(0 <= one < length for one, length in zip(cell, grid, strict=True)):
                    raise ValueError(f"matches has the cell {cell} of the {side}, which its map of size {grid} has not")
        return lines

    @property
    def aspect(self) -> float:
        """The width of the panel divided by its height."""
        return self._left.aspect + _BETWEEN + self._right.aspect

    @property
    def _left(self) -> ImageDrawing:
        return _picture(self.query)

    @property
    def _right(self) -> ImageDrawing:
        return _picture(self.support)

    def draw(self, ax: Axes) -> None:
        """Draw images and lines on axes, whose unit is the height of the panel."""
        ax.axis("off")
        ax.set_box_aspect(1 / self.aspect)
        ax.set(xlim=(0, self.aspect), ylim=(1, 0))
        places = []
        for picture, start in ((self._left, 0.0), (self._right, self._left.aspect + _BETWEEN)):
            # Very wide and very tall images are smaller than their half of the panel.
            height, width = picture.size
            scale = min(1 / height, picture.aspect / width)
            place = (start + (picture.aspect - scale * width) / 2, 0.0, scale * width, scale * height)
            picture.draw_at(ax, *place)
            places.append(place)
        shown = [
            (
                match.share,
                _middle(match.query, self.query_grid, places[0]),
                _middle(match.support, self.support_grid, places[1]),
            )
            for match in self.matches
            if _is_seen(self.query, match.query, self.query_grid)
            and _is_seen(self.support, match.support, self.support_grid)
        ]
        largest = max((abs(share) for share, _, _ in shown), default=0.0) or 1.0
        # The widest line is drawn last, so that it lies on top.
        for number, (share, (x0, y0), (x1, y1)) in reversed(list(enumerate(shown))):
            width_of_line = _THINNEST + (_WIDEST - _THINNEST) * abs(share) / largest
            color = _LINE_COLORS[number % len(_LINE_COLORS)]
            (line,) = ax.plot(
                [x0, x1],
                [y0, y1],
                color=color,
                linewidth=width_of_line,
                linestyle="solid" if share >= 0 else (0, (3, 1.5)),
                marker="o",
                markersize=2.5 + width_of_line / 2,
                markeredgecolor="black",
                markeredgewidth=0.5,
            )
            line.set_path_effects([withStroke(linewidth=width_of_line + _RIM, foreground="black")])


def has_lines(*inputs: InputDrawing) -> bool:
    """Whether lines can be drawn between inputs: images and volumes have pictures, signals have none.

    Example:
        >>> has_lines(drawing_of(photo), drawing_of(torch.rand(50)))
        False
    """
    return all(isinstance(one.thumbnail, ImageDrawing) for one in inputs)


def _picture(drawing: InputDrawing) -> ImageDrawing:
    """The image, or the middle slice of a volume."""
    picture = drawing.thumbnail
    assert isinstance(picture, ImageDrawing)
    return picture


def _is_seen(drawing: InputDrawing, cell: tuple[int, ...], grid: tuple[int, ...]) -> bool:
    """Whether a cell lies in what is drawn of an input."""
    if not isinstance(drawing, VolumeDrawing):
        return True
    return cell[0] == (drawing.middle + 0.5) * grid[0] // drawing.depth


def _middle(
    cell: tuple[int, ...], grid: tuple[int, ...], place: tuple[float, float, float, float]
) -> tuple[float, float]:
    """The middle of a cell on the axes, for an image at a place (left, top, width, height)."""
    (row, column), (rows, columns) = cell[-2:], grid[-2:]
    left, top, width, height = place
    return left + (column + 0.5) / columns * width, top + (row + 0.5) / rows * height
