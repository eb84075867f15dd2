"""Figures of one query: explained by one or more methods, or beside one of its supports."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from captum_fam.attr.account import ZERO_EMBEDDING, number_in_words
from captum_fam.explanation.figure_words import (
    account_in_words,
    caption_of,
    contrast_in_words,
    smoothing_in_words,
    unit_in_words,
)
from captum_fam.explanation.selection import row_of

if TYPE_CHECKING:
    from captum_fam.attr.pair_decomposition import PointMatch
    from captum_fam.explanation.pairs.pair import Pair
    from captum_fam.explanation.result import Explanation
    from captum_fam.visualization import ImageLike, MapFigure, PairLines, SupportMap
    from captum_fam.visualization.style import StyleLike

MOST_SUPPORT_MAPS = 3
"""How many supports have a map in the figure of a query."""


def compare_figure(
    explanations: Sequence[Explanation],
    index: int = 0,
    supports: Sequence[ImageLike] | Tensor = (),
    foils: Sequence[ImageLike] | Tensor = (),
    foil_title: str | None = None,
    *,
    style: StyleLike = "overlay",
) -> MapFigure:
    """Draw one query with the maps of several methods; maps of the query in one unit share a color scale.

    Where the first explanation has pairs, the maps of the first three supports follow, and the lines between the
    positions of the query and of the first support that match. The maps of the supports share a color scale of their
    own: each explains the similarity to one support, and the maps of the query explain the whole score.

    Args:
        explanations: explanations of the same queries, one per method.
        index: the position of the query. Default: 0.
        supports: images of the support, for display. Default: none.
        foils: images of the foil, for display; they are left out if no map depends on the foil. Default: none.
        foil_title: the title above the images of the foil. Default: None, what the foil is.
        style: ``"overlay"``, ``"outline"``, or a :class:`~captum_fam.visualization.MapStyle`. Default: colors over the
            image in color.

    Returns:
        The figure; a notebook shows it.

    Raises:
        ValueError: for images outside [0, 1], or an unknown style.

    Example:
        >>> from captum_fam.explanation import compare_figure
        >>> methods = ("fam", "similarity-cam")
        >>> explanations = [explain(model, queries, support, layer="layer4", method=method) for method in methods]
        >>> compare_figure(explanations, index=2).save("query-2.png")
    """
    from captum_fam.visualization import visualize_match
    from captum_fam.visualization.thumbnails import MOST_THUMBNAILS

    first = explanations[0]
    target, predicted = (first.class_names[int(labels[index])] for labels in (first.target, first.predicted))
    caption, with_layer = caption_of(explanations)
    by_title = _by_title(explanations, with_layer)
    query = _query_name(first, index)
    support_title = "support" if target == "support" else f"support\n{target}"
    count = max(first.about.get("supports", {}).get(target, 0), len(supports))
    supports = supports[:MOST_THUMBNAILS]
    pairs = first.pairs[index] if first.pairs is not None else ()
    return visualize_match(
        first.images[index],
        {title: explanation.attributions[index] for title, explanation in by_title.items()},
        supports=supports,
        foils=() if all(explanation.support_blind for explanation in explanations) else foils,
        notes={title: _notes(explanation, index) for title, explanation in by_title.items()},
        units={title: unit_in_words(explanation) for title, explanation in by_title.items()},
        titles={
            "query": f"{query}\npredicted: {predicted}" if len(first.class_names) > 1 else query,
            "supports": f"{support_title}\n{len(supports)} of {count}" if len(supports) < count else support_title,
            "foils": _foil_title(first, index) if foil_title is None else foil_title,
        },
        style=style,
        caption=caption,
        support_maps=[_support_map(first, pair) for pair in pairs[:MOST_SUPPORT_MAPS]],
        lines=_lines(first, index, pairs[0]) if pairs and pairs[0].matches else None,
    )


def pair_figure(
    explanation: Explanation, index: int | str = 0, support: int = 0, *, style: StyleLike = "overlay"
) -> MapFigure:
    """Draw one query beside one of its supports: the lines between the positions that match, and the maps of both.

    Args:
        explanation: an explanation with pairs, as ``sides="both"`` and :func:`~captum_fam.explain_pairs` give it.
        index: the position or the name of the query. Default: 0.
        support: the position of the support among the pairs of the query. Default: 0, the first one.
        style: ``"overlay"``, ``"outline"``, or a :class:`~captum_fam.visualization.MapStyle`. Default: colors over the
            image in color.

    Returns:
        The figure; a notebook shows it.

    Raises:
        ValueError: for an explanation without pairs, images outside [0, 1], or an unknown style.
        IndexError, KeyError: for a query or a support that there is not.

    Example:
        >>> from captum_fam.explanation.figure import pair_figure
        >>> why = explain(model, queries, support, layer="layer4", sides="both", top=1)
        >>> pair_figure(why, index=2).save("pair-2.png")
    """
    from captum_fam.visualization import visualize_pair

    if explanation.pairs is None:
        raise ValueError('explanation has no pairs; use explain(..., sides="both") or explain_pairs')
    index = row_of(explanation, index)
    pairs = explanation.pairs[index]
    if not -len(pairs) <= support < len(pairs):
        raise IndexError(f"support {support} is out of range for a query with {len(pairs)} pairs")
    pair = pairs[support]
    query_map, support_map, lines = pair.query_map, pair.support_map, _strongest(pair)
    query_name, support_name = _query_name(explanation, index), _support_name(pair)
    return visualize_pair(
        explanation.images[index],
        pair.image,
        query_map,
        support_map,
        lines,
        grids=(tuple(query_map.shape), tuple(support_map.shape)),
        titles={
            "lines": _lines_title(query_name, pair, lines),
            "query": query_name,
            "support": support_name,
            "query map": _pair_title(explanation, pair, "query", query_name),
            "support map": _pair_title(explanation, pair, "support", support_name),
        },
        unit=unit_in_words(explanation),
        style=style,
        caption=caption_of([explanation])[0],
    )


def _by_title(explanations: Sequence[Explanation], with_layer: bool) -> dict[str, Explanation]:
    """The explanations by method, contrast and, where they differ, layer and smoothing; titles are made different."""
    titles: Counter[str] = Counter()
    by_title = {}
    with_smoothing = len({explanation.smooth for explanation in explanations}) > 1
    for explanation in explanations:
        layer = f"layer {explanation.about.get('layer')}" if with_layer else ""
        window = smoothing_in_words(explanation) if with_smoothing else ""
        smoothed = f"smoothed {window}" if window else ""
        title = "\n".join(filter(None, (explanation.method, layer, contrast_in_words(explanation), smoothed)))
        titles[title] += 1
        by_title[f"{title} ({titles[title]})" if titles[title] > 1 else title] = explanation
    return by_title


def _foil_title(explanation: Explanation, index: int) -> str:
    """The foil of a query; for the runner-up with the name of the class."""
    foil = explanation.about.get("foil")
    if foil != "runner-up":
        return "foil" if foil is None else f"foil: {foil}"
    others = explanation.scores[index].clone()
    others[explanation.target[index]] = -math.inf
    return f"foil: runner-up\n{explanation.class_names[int(others.argmax())]}"


def _notes(explanation: Explanation, index: int) -> str:
    """The lines above a map: the score, unless the method does not depend on it, and the account of the map."""
    score = [] if explanation.support_blind else [f"score {explanation.score_text(index)}"]
    return "\n".join([*score, explanation.account_text(index)])


def _query_name(explanation: Explanation, index: int) -> str:
    """The word "query" and its name; of the names of two images only the first."""
    pairs = explanation.pairs[index] if explanation.pairs is not None else ()
    name = explanation.names[index]
    name = name.removesuffix(f" - {pairs[0].name}") if pairs else name
    return name if name.startswith("query") else f"query {name}"


def _support_name(pair: Pair) -> str:
    """The word "support" and its name, and its class where the name does not say it."""
    name = pair.name if pair.name.startswith("support") else f"support {pair.name}"
    return name if pair.label in name else f"{name}\n{pair.label}"


def _support_map(explanation: Explanation, pair: Pair) -> SupportMap:
    """The map of a support for the figure of its query."""
    from captum_fam.visualization import SupportMap

    title = f"map of {_support_name(pair)}\n{_pair_notes(explanation, pair, 'support')}"
    return SupportMap(pair.image, pair.support_map, title, f"{unit_in_words(explanation)}, scale of the supports")


def _pair_title(explanation: Explanation, pair: Pair, side: str, name: str) -> str:
    """The lines above a map of a pair."""
    lines = (
        explanation.method,
        contrast_in_words(explanation),
        f"map of {name}",
        _pair_notes(explanation, pair, side),
    )
    return "\n".join(filter(None, lines))


def _pair_notes(explanation: Explanation, pair: Pair, side: str) -> str:
    """The score of one side of a pair, the similarity without contrast where the two differ, and the account."""
    if explanation.support_blind:
        return explanation.account_text(0)
    score, coverage, shares = (
        (pair.score, pair.query_coverage, pair.query_shares)
        if side == "query"
        else (pair.support_score, pair.support_coverage, pair.support_shares)
    )
    lines = [f"score {number_in_words(score)}"]
    if contrast_in_words(explanation):
        lines.append(f"similarity {number_in_words(pair.similarity)}")
    return "\n".join([*lines, account_in_words(coverage, shares)])


def _lines(explanation: Explanation, index: int, pair: Pair) -> PairLines | None:
    """The lines between a query and a support; None for signals, which have no lines."""
    from captum_fam.visualization.drawing import drawing_of
    from captum_fam.visualization.match_lines import PairLines, has_lines

    image, grids = explanation.images[index], (tuple(pair.query_map.shape), tuple(pair.support_map.shape))
    drawings = (drawing_of(image, [pair.query_map]), drawing_of(pair.image, [pair.support_map]))
    if not has_lines(*drawings):
        return None
    notes = dict.fromkeys(drawing.thumbnail.note for drawing in drawings)
    lines = _strongest(pair)
    title = "\n".join(filter(None, (_lines_title(_query_name(explanation, index), pair, lines), *notes)))
    return PairLines.of(image, pair.image, lines, *grids, title)


def _strongest(pair: Pair) -> Sequence[PointMatch]:
    """The matches that have a line: positions that are each other's best, so that the lines can be told apart."""
    # Two positions can be each other's best and still bring nothing.
    return [match for match in pair.mutual_matches if match.share > 0]


def _lines_title(query_name: str, pair: Pair, lines: Sequence[PointMatch]) -> str:
    """The lines above a query and a support that are joined by lines."""
    title = f"{query_name}, {_support_name(pair)}"
    if not pair.matches:
        return title
    if not lines:
        return f"{title}\nno mutual match to draw"
    carried = number_in_words(sum(match.share for match in lines))
    matches = f"{len(lines)} mutual match{'es' * (len(lines) > 1)}"
    return f"{title}\n{matches}, each the best of the other: {carried} of {_whole(pair)}"


def _whole(pair: Pair) -> str:
    """What matches are shares of: the similarity, or for a distance the difference from an embedding of zeros."""
    shares = pair.query_shares if pair.decomposition is None else pair.decomposition.query_shares
    zero_embedding = (shares or {}).get(ZERO_EMBEDDING)
    if zero_embedding is None:
        return f"the similarity {number_in_words(pair.similarity)}"
    words = "from an embedding of zeros"
    if pair.decomposition is None:  # the part is then that of the contrasted score
        return f"the difference {words}"
    return f"the difference of {number_in_words(pair.similarity - zero_embedding)} {words}"
