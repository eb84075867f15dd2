"""A query, its supports and foils, and maps over the query and over supports, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from captum_fam.attr.account import number_in_words
from captum_fam.visualization.colors import ColorScale
from captum_fam.visualization.drawing import drawing_of
from captum_fam.visualization.figure import MapFigure
from captum_fam.visualization.layout import FigurePanel, draw_panels
from captum_fam.visualization.map_panels import InputPanel, MapPanel, on_scales
from captum_fam.visualization.match_lines import PairLines
from captum_fam.visualization.pixels import ImageLike, MapLike, to_map
from captum_fam.visualization.style import DEFAULT_STYLE, MapStyle, StyleLike
from captum_fam.visualization.thumbnails import ThumbnailBlock


@dataclass(frozen=True)
class SupportMap:
    """A map over a support.

    Attributes:
        image: the support, in any form that :func:`visualize_match` takes.
        attribution: the map over the support.
        title: the lines above the panel.
        unit: the unit of the map; maps of supports in one unit share one scale. Default: an empty text, not known.

    Example:
        >>> from captum_fam.visualization import MapStyle, SupportMap
        >>> SupportMap(photo, attributions[0], "a wren", "share of the cosine").panel(MapStyle()).title
        'a wren'
    """

    image: ImageLike
    attribution: MapLike
    title: str
    unit: str = ""

    def panel(self, style: MapStyle) -> MapPanel:
        """The panel of the map."""
        drawing = drawing_of(self.image, [self.attribution], self.title)
        lines = "\n".join(filter(None, (self.title, drawing.note)))
        return MapPanel.of(drawing, self.attribution, lines, name=self.title, unit=self.unit, style=style)


def visualize_match(
    query: ImageLike,
    maps: Mapping[str, MapLike],
    *,
    supports: Sequence[ImageLike] | Tensor = (),
    foils: Sequence[ImageLike] | Tensor = (),
    scores: Mapping[str, float] | None = None,
    notes: Mapping[str, str] | None = None,
    units: Mapping[str, str] | None = None,
    scale: ColorScale = "shared",
    mask: MapLike | None = None,
    titles: Mapping[str, str] | None = None,
    style: StyleLike = DEFAULT_STYLE,
    caption: str = "",
    support_maps: Sequence[SupportMap] = (),
    lines: PairLines | None = None,
) -> MapFigure:
    """Draw a query, its supports and foils, any number of maps over the query, and maps over supports.

    Orange is evidence for the match, and blue is evidence against the match. More than five panels stand in several
    rows.

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
        units: the unit of each map, by title, such as ``"share of the cosine"``; it stands at the color bar. Default:
            None, all maps have the same unit, which is not known.
        scale: ``"shared"`` for one color scale of all maps of the query in one unit, so that their colors can be
            compared, and another one of all maps of supports in one unit; a map without a unit among maps with units
            has its own. ``"own"`` for a color scale of each map. Default: ``"shared"``.
        mask: the pixels of an object, of the shape of a map, nonzero inside; drawn as an outline on query and maps, and
            on a signal as a bar above the samples. Default: None.
        titles: titles of the panels ``"query"``, ``"supports"`` and ``"foils"``, by these words. Default: None,
            ``"query"``, ``"support"`` and ``"foil"``.
        style: ``"overlay"``, ``"outline"``, or a :class:`~captum_fam.visualization.MapStyle`, which can also make the
            image below the map gray. Default: colors over the image in color.
        caption: text above all panels, such as model and layer. Default: an empty text.
        support_maps: maps over supports, which stand behind the maps of the query. Default: none.
        lines: a query and a support with lines between their positions, as the last panel. Default: None.

    Returns:
        The figure; a notebook shows it.

    Raises:
        ValueError: for images outside [0, 1], maps with NaN or inf, other shapes, scores, notes or units for a title
            that ``maps`` does not have, or an unknown scale or style.

    Example:
        >>> figure = visualize_match(photo, {"FAM": attributions[0]}, supports=photos, scores={"FAM": 0.83})
        >>> figure.save("match.png")
    """
    scores, notes, style = scores or {}, notes or {}, MapStyle.of(style)
    _check_titles(maps, scores=scores, notes=notes, units=units or {})
    drawing = drawing_of(query, maps.values(), "query")
    inside = None if mask is None else to_map(mask, drawing.size, "mask")
    words = {"query": "query", "supports": "support", "foils": "foil", **(titles or {})}
    panels: list[FigurePanel] = [InputPanel(drawing, "\n".join(filter(None, (words["query"], drawing.note))), inside)]
    panels += [
        ThumbnailBlock.of(images, list(maps.values()), words[name], name)
        for name, images in (("supports", supports), ("foils", foils))
        if len(images)
    ]
    map_panels = [
        MapPanel.of(
            drawing,
            attribution,
            _lines_above(title, scores.get(title), notes.get(title)),
            name=title,
            unit=(units or {}).get(title, ""),
            style=style,
            mask=inside,
        )
        for title, attribution in maps.items()
    ]
    # A map of the query may share out a mean over many supports, and a map of a support one similarity.
    for on_side in (map_panels, [one.panel(style) for one in support_maps]):
        panels += on_scales(on_side, scale, units_are_known=units is not None, bars_below=len(support_maps) > 0)
    return draw_panels([*panels, *([] if lines is None else [lines])], caption)


def _check_titles(maps: Mapping[str, MapLike], **by_title: Mapping[str, object]) -> None:
    """Refuse scores, notes or units for a title that no map has."""
    for name, entries in by_title.items():
        unknown = sorted(set(entries) - set(maps))
        if unknown:
            raise ValueError(f"{name} has the title(s) {', '.join(unknown)}, which maps does not have")


def _lines_above(title: str, score: float | None, note: str | None) -> str:
    """The lines above a map: title, score and note."""
    score_line = None if score is None else f"score {number_in_words(score)}"
    return "\n".join(filter(None, (title, score_line, note)))
