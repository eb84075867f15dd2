"""A query, its supports and foils, and maps over the query, side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.font_manager import FontProperties
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Rectangle
from torch import Tensor

from captum_fam.attr.account import number_in_words
from captum_fam.metrics.maps import find_empty
from captum_fam.visualization.colors import ColorScale, color_limits
from captum_fam.visualization.drawing import InputDrawing, drawing_of
from captum_fam.visualization.figure import PANEL_HEIGHT, MapFigure
from captum_fam.visualization.image import ImageDrawing
from captum_fam.visualization.marks import draw_color_bar
from captum_fam.visualization.pixels import ImageLike, MapLike, to_map
from captum_fam.visualization.titles import wrap_title

MOST_THUMBNAILS = 9
"""How many supports are drawn, and how many foils."""

# Lengths are in inches.
_NARROWEST = 0.8  # the smallest width of a panel divided by its height, so that titles fit above a tall image
_TITLE_FONT = FontProperties(size=9)
_TITLE_LINE = 0.155
_BELOW = 0.45  # for a color bar
_BETWEEN = 0.3
_GAP = 0.04  # between thumbnails, as a fraction of a cell


def visualize_match(
    query: ImageLike,
    maps: Mapping[str, MapLike],
    *,
    supports: Sequence[ImageLike] | Tensor = (),
    foils: Sequence[ImageLike] | Tensor = (),
    scores: Mapping[str, float] | None = None,
    notes: Mapping[str, str] | None = None,
    scale: ColorScale = "shared",
    mask: MapLike | None = None,
    titles: Mapping[str, str] | None = None,
) -> MapFigure:
    """Draw a query, its supports and foils, and any number of maps over the query.

    Of a volume or a video, at most eight slices are drawn side by side, each below its number, counted from one; of a
    volume among the supports, the middle slice. A signal is drawn as lines over the colors of its map, of at most six
    channels.

    The words "the same everywhere" stand above a map without differences. Rounding noise is drawn like any other
    values, because its size depends on the score, which is unknown here; :func:`~captum_fam.explain` removes it.

    Args:
        query: an image, a tensor ``(C, H, W)``, an array ``(H, W)`` or ``(H, W, C)``, or a PIL image; a volume or
            video, a tensor ``(C, D, H, W)`` or an array ``(D, H, W, C)``; or a signal ``(C, L)`` or ``(L,)``. One or
            three channels of images and volumes are floats in [0, 1] or 8-bit integers, and :func:`unnormalize`
            converts inputs of a model to such images. Another number of channels is drawn as the mean of the channels,
            each scaled to [0, 1]; the title says so.
        maps: maps by title, resized linearly to the size of the query: ``(h, w)``, ``(1, h, w)`` or ``(h, w, 1)``;
            ``(l,)`` or ``(1, l)`` of a signal; ``(d, h, w)`` or ``(1, d, h, w)`` of a volume. With maps of a signal, a
            query of two dimensions is a signal ``(C, L)``; otherwise it is a gray image ``(H, W)``.
        supports: inputs of any sizes, of which the first nine are drawn. Default: none.
        foils: images that the match is contrasted with; the first nine are drawn. Default: none.
        scores: the score that each map explains, by title, written above the map. Default: None, no scores.
        notes: further lines above each map, by title; long lines are broken. Default: None, no notes.
        scale: ``"shared"`` for maps of the same unit, which get one color scale, so that their colors can be compared;
            ``"own"`` for maps of different units, which each get a color scale and a color bar. Default: ``"shared"``.
        mask: the pixels of an object, of the shape of a map, nonzero inside; drawn as an outline on query and maps, and
            on a signal as a bar above the samples. Default: None.
        titles: titles of the panels ``"query"``, ``"supports"`` and ``"foils"``, by these words. Default: None,
            ``"query"``, ``"support"`` and ``"foil"``.

    Returns:
        The figure; a notebook shows it.

    Raises:
        ValueError: for images outside [0, 1], maps with NaN or inf, other shapes, scores or notes for a title that
            ``maps`` does not have, or an unknown scale.

    Example:
        >>> figure = visualize_match(photo, {"FAM": attributions[0]}, supports=photos, scores={"FAM": 0.83})
        >>> figure.save("match.png")
    """
    scores, notes = scores or {}, notes or {}
    _check_titles(maps, scores=scores, notes=notes)
    drawing = drawing_of(query, maps.values(), "query")
    values = {title: to_map(attribution, drawing.size, title) for title, attribution in maps.items()}
    limits = color_limits(values, scale)
    words = {"query": "query", "supports": "support", "foils": "foil", **(titles or {})}
    blocks = [
        _Thumbnails.of(images, list(maps.values()), words[name], name)
        for name, images in (("supports", supports), ("foils", foils))
        if len(images)
    ]

    above_maps = [_lines_above(title, maps[title], scores.get(title), notes.get(title)) for title in maps]
    widths = [drawing.aspect, *(block.aspect for block in blocks), *(drawing.aspect for _ in maps)]
    above_query = "\n".join(filter(None, (words["query"], drawing.note)))
    figure, axes = _row_of_panels([above_query, *(block.title for block in blocks), *above_maps], widths)
    query_ax, *other_axes = axes
    drawing.draw(query_ax)
    for ax, block in zip(other_axes, blocks, strict=False):
        block.draw(ax)
    heats = {}
    map_axes = other_axes[len(blocks) :]
    for ax, title in zip(map_axes, values, strict=True):
        heats[title] = drawing.draw_map(ax, values[title], limits[title])
    if mask is not None:
        inside = to_map(mask, drawing.size, "mask")
        for ax in (query_ax, *map_axes):
            drawing.draw_mask(ax, inside)

    # A shared scale needs one color bar only, which stands beside the last map.
    with_bar = list(heats) if scale == "own" else list(heats)[-1:]
    for title in with_bar:
        on_scale = [values[title]] if scale == "own" else list(values.values())
        if any(map_values.any() for map_values in on_scale):  # maps of zeros need no color bar
            is_signed = any((map_values < 0).any() for map_values in on_scale)
            draw_color_bar(heats[title], signed=is_signed, beside=scale == "shared")
    return figure


@dataclass(frozen=True)
class _Thumbnails:
    """A block of small pictures in one panel.

    Attributes:
        drawings: the pictures.
        title: the title of the panel.
    """

    drawings: Sequence[InputDrawing]
    title: str

    @classmethod
    def of(cls, images: Sequence[ImageLike] | Tensor, maps: Sequence[MapLike], title: str, name: str) -> _Thumbnails:
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
        ax.imshow(drawing.pixels, extent=(left, left + width, top + height, top), aspect="auto")
        ax.add_patch(Rectangle((left, top), width, height, fill=False, linewidth=0.8))


def _check_titles(maps: Mapping[str, MapLike], **by_title: Mapping[str, object]) -> None:
    """Refuse scores or notes for a title that no map has."""
    for name, entries in by_title.items():
        unknown = sorted(set(entries) - set(maps))
        if unknown:
            raise ValueError(f"{name} has the title(s) {', '.join(unknown)}, which maps does not have")


def _row_of_panels(titles: Sequence[str], aspects: Sequence[float]) -> tuple[MapFigure, list[Axes]]:
    """Axes side by side below their titles; ``aspects`` are their widths divided by their common height."""
    widths = [max(aspect, _NARROWEST) for aspect in aspects]
    lines = [wrap_title(title, PANEL_HEIGHT * width, _TITLE_FONT) for title, width in zip(titles, widths, strict=True)]
    # The figure grows with the titles. In a figure of fixed height the panels would shrink, and titles would not fit.
    figure_height = PANEL_HEIGHT + _TITLE_LINE * max(map(len, lines)) + _BELOW
    figure_width = PANEL_HEIGHT * sum(widths) + _BETWEEN * len(widths)
    figure = MapFigure(figsize=(figure_width, figure_height), layout=ConstrainedLayoutEngine(w_pad=0.08))
    axes = figure.subplots(1, len(widths), squeeze=False, width_ratios=widths, subplot_kw={"anchor": "N"})[0]
    for ax, title_lines in zip(axes, lines, strict=True):
        ax.set_title("\n".join(title_lines), fontproperties=_TITLE_FONT, parse_math=False)
    return figure, list(axes)


def _lines_above(title: str, attribution: MapLike, score: float | None, note: str | None) -> str:
    """The lines above a map: title, score, note, and the words for a map without differences."""
    score_line = None if score is None else f"score {number_in_words(score)}"
    return "\n".join(filter(None, (title, score_line, note, _flatness(attribution))))


def _flatness(attribution: MapLike) -> str:
    """The words for a map without differences; an empty text for other maps."""
    values = torch.as_tensor(attribution)
    if not values.any():
        return "zero everywhere"
    # Floating-point maps keep their dtype, because differences within its rounding do not count.
    precise = values if values.is_floating_point() else values.double()
    return "the same everywhere" if find_empty(precise.reshape(1, -1)).item() else ""
