"""A query, what it was compared with, and maps over the query, side by side."""

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
_NARROWEST = 0.8  # room of a panel over its height: a title needs it, also above a tall image
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
    """Draw a query, what it was compared with, and any number of maps over it.

    A map that is the same everywhere says so in words. How large rounding noise is depends on the score, which is not
    known here: :func:`~captum_fam.explain` gives maps without it.

    Args:
        query: ``(C, H, W)`` as a tensor, ``(H, W)`` or ``(H, W, C)`` as an array, or a PIL image; one or three
            channels, floats in [0, 1] or 8-bit integers. :func:`unnormalize` makes them from a model's input.
        maps: by title, ``(H, W)``, ``(1, H, W)`` or ``(H, W, 1)``; brought to the image's size bilinearly.
        supports: images of any sizes; the first nine are shown.
        foils: images that the match is contrasted with.
        scores: by title, the score that a map explains, written above it.
        notes: by title, further lines above a map. Lines that are too long are broken.
        scale: ``"shared"``, the default: the maps are in one unit and share one scale, so that their colors compare.
            ``"own"``: methods of different units, each with its own color bar.
        mask: ``(H, W)``, nonzero where an object is, drawn as an outline on query and maps.
        titles: for the panels ``"query"``, ``"supports"`` and ``"foils"``, in place of these words.

    Returns:
        The figure; a notebook shows it.

    Raises:
        ValueError: for images outside [0, 1], maps with NaN or inf, or shapes other than those above.

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

    # One bar for a scale that all maps share, beside the last of them.
    with_bar = list(heats) if scale == "own" else list(heats)[-1:]
    for title in with_bar:
        on_scale = [values[title]] if scale == "own" else list(values.values())
        if any(one.any() for one in on_scale):  # zeros have no scale
            draw_color_bar(heats[title], signed=any((one < 0).any() for one in on_scale), beside=scale == "shared")
    return figure


@dataclass(frozen=True)
class _Thumbnails:
    """A block of small images in one panel.

    Attributes:
        images: ``(H, W, 3)`` each.
        title: above the block.
    """

    images: Sequence[Array]
    title: str

    @classmethod
    def of(cls, images: Sequence[ImageLike] | Tensor, title: str, name: str) -> _Thumbnails:
        """The first images of a group, whose title counts them where not all are shown."""
        counted = title if len(images) <= _MOST_THUMBNAILS else f"{title}\n{_MOST_THUMBNAILS} of {len(images)}"
        return cls([to_rgb(image, name) for image in images[:_MOST_THUMBNAILS]], counted)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns, such that the block is about square."""
        columns = math.ceil(math.sqrt(len(self.images) / self._mean_aspect))
        return math.ceil(len(self.images) / columns), columns

    @property
    def aspect(self) -> float:
        """Width over height of the block."""
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
        gap = 0.04  # of a cell
        for number, image in enumerate(self.images):
            row, column = divmod(number, columns)
            place = (column / columns, 1 - (row + 1 - gap) / rows, (1 - gap) / columns, (1 - gap) / rows)
            inset = ax.inset_axes(place)
            draw_image(inset, image)
            inset.set_in_layout(False)  # it lies within its parent


def _check_titles(maps: Mapping[str, MapLike], **by_title: Mapping[str, object]) -> None:
    for name, entries in by_title.items():
        unknown = sorted(set(entries) - set(maps))
        if unknown:
            raise ValueError(f"{name} has the title(s) {', '.join(unknown)}, which maps has not")


def _row_of_panels(titles: Sequence[str], aspects: Sequence[float]) -> tuple[MapFigure, list[Axes]]:
    """Axes side by side below their titles, of these widths over their height."""
    rooms = [max(aspect, _NARROWEST) for aspect in aspects]
    lines = [wrap_title(title, _PANEL_HEIGHT * room, _TITLE_FONT) for title, room in zip(titles, rooms, strict=True)]
    # As high as the titles need, or the panels would shrink and no longer be as wide as their titles.
    height = _PANEL_HEIGHT + _TITLE_LINE * max(map(len, lines)) + _BELOW
    width = _PANEL_HEIGHT * sum(rooms) + _BETWEEN * len(rooms)
    figure = MapFigure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.08))
    axes = figure.subplots(1, len(rooms), squeeze=False, width_ratios=rooms, subplot_kw={"anchor": "N"})[0]
    for ax, above in zip(axes, lines, strict=True):
        ax.set_title("\n".join(above), fontproperties=_TITLE_FONT)
    return figure, list(axes)


def _lines_above(title: str, attribution: MapLike, score: float | None, note: str | None) -> str:
    """All that stands above a map."""
    score_line = None if score is None else f"score {number_in_words(score)}"
    return "\n".join(filter(None, (title, score_line, note, _flatness(attribution))))


def _flatness(attribution: MapLike) -> str:
    """What is said of a map without differences."""
    values = torch.as_tensor(attribution)
    if not values.any():
        return "zero everywhere"
    # In the precision that the map has, whose rounding is no difference.
    precise = values if values.is_floating_point() else values.double()
    return "the same everywhere" if find_empty(precise.reshape(1, -1)).item() else ""


def _aspect(pixels: Array) -> float:
    """Width over height, within what a figure can lay out."""
    return float(np.clip(pixels.shape[1] / pixels.shape[0], 0.5, 2.5))
