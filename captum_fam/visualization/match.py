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
from torch import Tensor

from captum_fam.attr.account import number_in_words
from captum_fam.metrics.maps import find_empty
from captum_fam.visualization.colors import ColorScale, color_limits
from captum_fam.visualization.figure import MapFigure
from captum_fam.visualization.panel import draw_color_bar, draw_image, draw_map, draw_outline
from captum_fam.visualization.pixels import Array, ImageLike, MapLike, to_map, to_rgb
from captum_fam.visualization.titles import wrap_title

# Lengths are in inches.
_PANEL_HEIGHT = 2.2
_NARROWEST = 0.8  # the smallest width of a panel divided by its height, so that titles fit above a tall image
_TITLE_FONT = FontProperties(size=9)
_TITLE_LINE = 0.155
_BELOW = 0.45  # for a color bar
_BETWEEN = 0.3
_MOST_THUMBNAILS = 9


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

    The words "the same everywhere" stand above a map without differences. Rounding noise is drawn like any other
    values, because its size depends on the score, which is unknown here; :func:`~captum_fam.explain` removes it.

    Args:
        query: a tensor ``(C, H, W)``, an array ``(H, W)`` or ``(H, W, C)``, or a PIL image; one or three channels,
            floats in [0, 1] or 8-bit integers. :func:`unnormalize` converts inputs of a model to such images.
        maps: maps by title, ``(h, w)``, ``(1, h, w)`` or ``(h, w, 1)``; resized bilinearly to the size of the query.
        supports: images of any sizes, of which the first nine are drawn. Default: none.
        foils: images that the match is contrasted with; the first nine are drawn. Default: none.
        scores: the score that each map explains, by title, written above the map. Default: None, no scores.
        notes: further lines above each map, by title; long lines are broken. Default: None, no notes.
        scale: ``"shared"`` for maps of the same unit, which get one color scale, so that their colors can be compared;
            ``"own"`` for maps of different units, which each get a color scale and a color bar. Default: ``"shared"``.
        mask: the pixels of an object, ``(H, W)``, nonzero inside; drawn as an outline on query and maps. Default: None.
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
    pixels = to_rgb(query, "query")
    size = pixels.shape[:2]
    values = {title: to_map(attribution, size, title) for title, attribution in maps.items()}
    limits = color_limits(values, scale)
    outline = np.zeros(size) if mask is None else to_map(mask, size, "mask")
    words = {"query": "query", "supports": "support", "foils": "foil", **(titles or {})}
    blocks = [_Thumbnails.of(images, words[name], name) for name, images in (("supports", supports), ("foils", foils))]
    blocks = [block for block in blocks if block.images]

    above_maps = [_lines_above(title, maps[title], scores.get(title), notes.get(title)) for title in maps]
    widths = [_aspect(pixels), *(block.aspect for block in blocks), *(_aspect(pixels) for _ in maps)]
    figure, axes = _row_of_panels([words["query"], *(block.title for block in blocks), *above_maps], widths)
    query_ax, *other_axes = axes
    draw_image(query_ax, pixels)
    draw_outline(query_ax, outline)
    for ax, block in zip(other_axes, blocks, strict=False):
        block.draw(ax)
    heats = {}
    for ax, title in zip(other_axes[len(blocks) :], values, strict=True):
        heats[title] = draw_map(ax, pixels, values[title], limits[title])
        draw_outline(ax, outline)

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
    """A block of small images in one panel.

    Attributes:
        images: arrays ``(H, W, 3)``.
        title: the title of the panel.
    """

    images: Sequence[Array]
    title: str

    @classmethod
    def of(cls, images: Sequence[ImageLike] | Tensor, title: str, name: str) -> _Thumbnails:
        """The first nine images; if there are more, the title says how many."""
        full_title = title if len(images) <= _MOST_THUMBNAILS else f"{title}\n{_MOST_THUMBNAILS} of {len(images)}"
        return cls([to_rgb(image, name) for image in images[:_MOST_THUMBNAILS]], full_title)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns, such that the block is about square."""
        columns = math.ceil(math.sqrt(len(self.images) / self._mean_aspect))
        return math.ceil(len(self.images) / columns), columns

    @property
    def aspect(self) -> float:
        """The width of the block divided by its height."""
        rows, columns = self.grid
        return self._mean_aspect * columns / rows

    @property
    def _mean_aspect(self) -> float:
        return float(np.mean([_aspect(image) for image in self.images]))

    def draw(self, ax: Axes) -> None:
        """Draw the block on axes."""
        rows, columns = self.grid
        ax.axis("off")
        ax.set_box_aspect(1 / self.aspect)
        gap = 0.04  # as a fraction of a cell
        for number, image in enumerate(self.images):
            row, column = divmod(number, columns)
            place = (column / columns, 1 - (row + 1 - gap) / rows, (1 - gap) / columns, (1 - gap) / rows)
            inset = ax.inset_axes(place)
            draw_image(inset, image)
            inset.set_in_layout(False)  # it lies within its panel, so that the layout need not make room for it


def _check_titles(maps: Mapping[str, MapLike], **by_title: Mapping[str, object]) -> None:
    """Refuse scores or notes for a title that no map has."""
    for name, entries in by_title.items():
        unknown = sorted(set(entries) - set(maps))
        if unknown:
            raise ValueError(f"{name} has the title(s) {', '.join(unknown)}, which maps does not have")


def _row_of_panels(titles: Sequence[str], aspects: Sequence[float]) -> tuple[MapFigure, list[Axes]]:
    """Axes side by side below their titles; ``aspects`` are their widths divided by their common height."""
    widths = [max(aspect, _NARROWEST) for aspect in aspects]
    lines = [wrap_title(title, _PANEL_HEIGHT * width, _TITLE_FONT) for title, width in zip(titles, widths, strict=True)]
    # The figure grows with the titles. In a figure of fixed height the panels would shrink, and titles would not fit.
    figure_height = _PANEL_HEIGHT + _TITLE_LINE * max(map(len, lines)) + _BELOW
    figure_width = _PANEL_HEIGHT * sum(widths) + _BETWEEN * len(widths)
    figure = MapFigure(figsize=(figure_width, figure_height), layout=ConstrainedLayoutEngine(w_pad=0.08))
    axes = figure.subplots(1, len(widths), squeeze=False, width_ratios=widths, subplot_kw={"anchor": "N"})[0]
    for ax, title_lines in zip(axes, lines, strict=True):
        ax.set_title("\n".join(title_lines), fontproperties=_TITLE_FONT)
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


def _aspect(pixels: Array) -> float:
    """The width of an image divided by its height, limited to what a figure can show."""
    return float(np.clip(pixels.shape[1] / pixels.shape[0], 0.5, 2.5))
