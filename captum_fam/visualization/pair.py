"""A query and a support, the lines between the positions that match, and the maps of both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from captum_fam.visualization.drawing import drawing_of
from captum_fam.visualization.figure import MapFigure
from captum_fam.visualization.layout import FigurePanel, draw_panels
from captum_fam.visualization.map_panels import InputPanel, MapPanel, on_scales
from captum_fam.visualization.match_lines import MatchedCells, PairLines, has_lines
from captum_fam.visualization.pixels import ImageLike, MapLike
from captum_fam.visualization.style import DEFAULT_STYLE, MapStyle, StyleLike

Grid = tuple[int, ...]


def visualize_pair(
    query_image: ImageLike,
    support_image: ImageLike,
    query_map: MapLike | None = None,
    support_map: MapLike | None = None,
    matches: Sequence[MatchedCells] = (),
    *,
    grids: tuple[Grid, Grid] | None = None,
    titles: Mapping[str, str] | None = None,
    unit: str = "",
    style: StyleLike = DEFAULT_STYLE,
    caption: str = "",
) -> MapFigure:
    """Draw a query and a support without maps, joined by lines between the positions that match, and their maps.

    A line joins the middles of two cells. Its width grows with the magnitude of the share; lines of negative shares are
    dashed. Both maps have one scale of colors. Of volumes the middle slices are joined; signals are drawn without
    lines.

    Args:
        query_image: an image, volume or signal in any form that :func:`~captum_fam.visualization.visualize_match`
            takes.
        support_image: the support, in the same forms.
        query_map: the map over the query. Default: None, no map.
        support_map: the map over the support. Default: None, no map.
        matches: pairs of positions with their shares, such as the
            :meth:`top_matches <captum_fam.attr.PairDecomposition.top_matches>` of a pair: each has ``query`` and
            ``support``, cells as tuples of one index per axis, and ``share``. Default: none.
        grids: the sizes of the maps in whose cells ``matches`` counts, of the query and of the support. Default: None,
            the sizes of ``query_map`` and ``support_map``.
        titles: titles of the panels ``"lines"``, ``"query"``, ``"support"``, ``"query map"`` and ``"support map"``, by
            these words. Default: None, plain words.
        unit: the unit of the maps, which stands at the color bar. Default: an empty text.
        style: ``"overlay"``, ``"outline"``, or a :class:`~captum_fam.visualization.MapStyle`. Default: colors over the
            image in color.
        caption: text above all panels. Default: an empty text.

    Returns:
        The figure; a notebook shows it.

    Raises:
        ValueError: for matches without ``grids`` and maps, a cell outside its grid, an unknown title, or inputs that
            cannot be drawn.

    Example:
        >>> from captum_fam.visualization import visualize_pair
        >>> figure = visualize_pair(photos[0], photos[1], attributions[0], attributions[1], unit="share of the cosine")
        >>> figure.save("pair.png")
    """
    style = MapStyle.of(style)
    words = {
        "lines": "query and support",
        "query": "query",
        "support": "support",
        "query map": "map of the query",
        "support map": "map of the support",
    }
    unknown = sorted(set(titles or {}) - set(words))
    if unknown:
        raise ValueError(f"titles has {', '.join(unknown)}, expected {', '.join(words)}")
    words |= titles or {}
    sides = [("query", query_image, query_map), ("support", support_image, support_map)]
    drawings = {
        side: drawing_of(image, [] if attribution is None else [attribution], side)
        for side, image, attribution in sides
    }
    panels: list[FigurePanel] = []
    if has_lines(*drawings.values()):
        sizes = grids or (_grid_of(query_map, drawings["query"].size), _grid_of(support_map, drawings["support"].size))
        if matches and None in sizes:
            raise ValueError("matches needs grids=, the sizes of the maps in whose cells the matches are counted")
        notes = dict.fromkeys(drawing.thumbnail.note for drawing in drawings.values())
        title = "\n".join(filter(None, (words["lines"], *notes)))
        panels.append(PairLines.of(query_image, support_image, matches, sizes[0] or (), sizes[1] or (), title))
    else:
        panels += [
            InputPanel(drawing, "\n".join(filter(None, (words[side], drawing.note))))
            for side, drawing in drawings.items()
        ]
    map_panels = [
        MapPanel.of(drawings[side], attribution, words[f"{side} map"], name=f"{side}_map", unit=unit, style=style)
        for side, _, attribution in sides
        if attribution is not None
    ]
    return draw_panels([*panels, *on_scales(map_panels, "shared", units_are_known=False)], caption)


def _grid_of(attribution: MapLike | None, size: Grid) -> Grid | None:
    """The size of a map without its axis of channels."""
    if attribution is None:
        return None
    shape = tuple(attribution.shape)
    if len(shape) == len(size):
        return shape
    return shape[1:] if shape[0] == 1 else shape[:-1]
