"""A figure of one query, explained by one or more methods."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from captum_fam.attr.account import ZERO_EMBEDDING, number_in_words

if TYPE_CHECKING:
    from captum_fam.explanation.result import Explanation
    from captum_fam.visualization import ImageLike, MapFigure


def compare_figure(
    explanations: Sequence[Explanation],
    index: int = 0,
    supports: Sequence[ImageLike] | Tensor = (),
    foils: Sequence[ImageLike] | Tensor = (),
    foil_title: str | None = None,
) -> MapFigure:
    """Draw one query with the maps of several methods; each map has its own color scale, because units differ.

    Args:
        explanations: explanations of the same queries, one per method.
        index: the position of the query. Default: 0.
        supports: images of the support, for display. Default: none.
        foils: images of the foil, for display. Default: none.
        foil_title: the title above the images of the foil. Default: None, what the foil is.

    Returns:
        The figure; a notebook shows it.

    Raises:
        ValueError: for images outside [0, 1].

    Example:
        >>> from captum_fam.explanation import compare_figure
        >>> methods = ("fam", "similarity-cam")
        >>> explanations = [explain(model, queries, support, layer="layer4", method=method) for method in methods]
        >>> compare_figure(explanations, index=2).save("query-2.png")
    """
    from captum_fam.visualization import visualize_match
    from captum_fam.visualization.match import MOST_THUMBNAILS

    first = explanations[0]
    target, predicted = (first.class_names[int(labels[index])] for labels in (first.target, first.predicted))
    by_title = {_title(explanation): explanation for explanation in explanations}
    support_title = "support" if target == "support" else f"support\n{target}"
    count = max(first.about.get("supports", {}).get(target, 0), len(supports))
    supports = supports[:MOST_THUMBNAILS]
    return visualize_match(
        first.images[index],
        {title: explanation.attributions[index] for title, explanation in by_title.items()},
        supports=supports,
        foils=foils,
        notes={title: _notes(explanation, index) for title, explanation in by_title.items()},
        scale="own",
        titles={
            "query": f"query\npredicted: {predicted}" if len(first.class_names) > 1 else "query",
            "supports": f"{support_title}\n{len(supports)} of {count}" if len(supports) < count else support_title,
            "foils": _foil_title(first, index) if foil_title is None else foil_title,
        },
    )


def _title(explanation: Explanation) -> str:
    """The name of the method, and the foil that the map shows a contrast with."""
    foil = explanation.about.get("foil")
    return explanation.method if foil is None or explanation.support_blind else f"{explanation.method}\nfoil: {foil}"


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
    return "\n".join([*score, *_difference(explanation, index), explanation.account_text(index)])


def _difference(explanation: Explanation, index: int) -> list[str]:
    """The score of the class and the score of the foil, of which the score is the difference."""
    weights, similarities = explanation.support_weights, explanation.support_similarities
    has_foil = explanation.about.get("foil") is not None and not explanation.support_blind
    if not has_foil or weights is None or similarities is None or ZERO_EMBEDDING in (explanation.shares or {}):
        return []  # the line of a distance has its own parts
    parts = weights[index] * similarities[index].nan_to_num()
    own, foil = (float(parts[weights[index] * sign > 0].sum()) * sign for sign in (1, -1))
    return [f"= {number_in_words(own)} - {number_in_words(foil)} of the foil"]
