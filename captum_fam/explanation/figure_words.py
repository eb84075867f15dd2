"""The words of a figure: the unit and the account of a map, the contrast, and what all maps have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from captum_fam.attr.account import coverage_in_words
from captum_fam.attr.registry import METHODS

if TYPE_CHECKING:
    from captum_fam.explanation.result import Explanation

NO_ACCOUNT = "no account of the score"
"""The account text for a map whose sum is no part of the score."""

# By the name of the class of a similarity: the quantity that its score is.
_SIMILARITIES = {
    "Cosine": "cosine",
    "Dot": "dot product",
    "Bilinear": "bilinear similarity",
    "Euclidean": "negative Euclidean distance",
    "EuclideanDifference": "negative Euclidean distance",
    "Mahalanobis": "negative Mahalanobis distance",
    "MahalanobisDifference": "negative Mahalanobis distance",
    "UnitEuclidean": "negative Euclidean distance of unit vectors",
}


def similarity_in_words(explanation: Explanation) -> str:
    """The similarity of an explanation in words.

    Example:
        >>> similarity_in_words(explain(model, queries, support, similarity="squared-euclidean", layer="layer4"))
        'negative squared Euclidean distance'
    """
    described = str(explanation.about.get("similarity", ""))
    words = _SIMILARITIES.get(described.partition("(")[0], f"similarity {described}".strip())
    return words.replace("negative", "negative squared") if "squared=True" in described else words


def unit_in_words(explanation: Explanation) -> str:
    """The unit of the values of a map. Maps of one unit can be compared.

    Returns:
        For example ``"share of the cosine"`` for a map that gives an account of the score, ``"activation"`` for FAM,
        ``"grad-cam of the cosine"`` for another map in the unit of the score, and ``"random, without a unit"``.

    Example:
        >>> unit_in_words(explain(model, queries, support, layer="layer4", method="similarity-cam"))
        'share of the cosine'
    """
    method = METHODS.get(explanation.method)
    unit = "score" if method is None else method.unit
    if unit == "score":
        has_account = explanation.coverage is not None or explanation.convergence_delta is not None
        return f"{'share' if has_account else explanation.method} of the {similarity_in_words(explanation)}"
    words = {"activation": "activation", "cosine": "cosine of two positions", "none": "without a unit"}
    return f"{explanation.method}, {words[unit]}" if unit == "none" else words[unit]


def contrast_in_words(explanation: Explanation) -> str:
    """What the score is contrasted with; an empty text for no contrast, and for a map that does not depend on it.

    Example:
        >>> contrast_in_words(explain(model, queries, support, layer="layer4", foil="others"))
        'foil: others'
    """
    contrast = None if explanation.support_blind else explanation.contrast
    if contrast is None:
        return ""
    foil = explanation.about.get("foil")
    return f"against {contrast}" if foil is None else f"foil: {foil}"


def account_in_words(coverage: float | None, shares: Mapping[str, float] | None) -> str:
    """What a map explains of a score.

    Args:
        coverage: the sum of the map divided by the score; None for a method without an account.
        shares: named parts of the score; None for a method without an account.

    Example:
        >>> account_in_words(0.12, {"map": 0.12, "bias": 0.88}), account_in_words(None, None)
        ('explains 12 % of the score; bias 88 %', 'no account of the score')
    """
    return NO_ACCOUNT if coverage is None or shares is None else coverage_in_words(coverage, shares)


def smoothing_in_words(explanation: Explanation) -> str:
    """The window over which maps are smoothed; an empty text for maps that are not smoothed.

    Example:
        >>> smoothing_in_words(explain(model, queries, support, layer="layer4", smooth=5))
        '5 x 5 cells'
    """
    axes = explanation.attributions.dim() - 2
    return f"{' x '.join([str(explanation.smooth)] * axes)} cells" if explanation.smooth > 1 else ""


def caption_of(explanations: Sequence[Explanation]) -> tuple[str, bool]:
    """Model, layer, similarity and smoothing of explanations in one line.

    Args:
        explanations: explanations of the same queries.

    Returns:
        The line, and whether the layers differ, so that each map has to say its own.

    Example:
        >>> caption_of([explain(model, queries, support, layer="layer4")])
        ('Model, layer layer4, similarity: cosine', False)
    """
    models, layers = ({str(one.about.get(key, "")) for one in explanations} for key in ("model", "layer"))
    similarities = {
        similarity_in_words(one).removeprefix("similarity").strip() for one in explanations if not one.support_blind
    }
    smoothed = set(map(smoothing_in_words, explanations))
    parts = []
    for start, values in (
        ("", models),
        ("layer ", layers),
        ("similarity: ", similarities),
        ("smoothed ", smoothed),
    ):
        # What is unknown, or differs between the maps, is not said of all of them.
        parts += [start + value for value in values if value and len(values) == 1]
    return ", ".join(parts), len(layers) > 1
