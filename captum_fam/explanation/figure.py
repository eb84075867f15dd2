"""A figure of one query, explained by one or more methods."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from captum_fam.explanation.result import Explanation
    from captum_fam.visualization import ImageLike, MapFigure


def compare_figure(
    explanations: Sequence[Explanation],
    index: int = 0,
    supports: Sequence[ImageLike] | Tensor = (),
    foils: Sequence[ImageLike] | Tensor = (),
    foil_title: str = "foil",
) -> MapFigure:
    """One query, explained by several methods: each map has a scale of its own, as their units differ."""
    from captum_fam.visualization import visualize_match

    first = explanations[0]
    target, predicted = (first.class_names[int(which[index])] for which in (first.target, first.predicted))
    titled = {_title(one): one for one in explanations}
    support_title = "support" if target == "support" else f"support\n{target}"
    count = first.about.get("supports", {}).get(target, 0)
    return visualize_match(
        first.images[index],
        {title: one.attributions[index] for title, one in titled.items()},
        supports=supports,
        foils=foils,
        notes={title: _notes(one, index) for title, one in titled.items()},
        scale="own",
        titles={
            "query": f"query\npredicted: {predicted}" if len(first.class_names) > 1 else "query",
            "supports": f"{support_title}\n{len(supports)} of {count}" if len(supports) < count else support_title,
            "foils": foil_title,
        },
    )


def _title(one: Explanation) -> str:
    """The method, and a foil where it knows of one."""
    has_foil = one.about.get("foil") is not None and not one.support_blind
    return f"{one.method}\nwith foil" if has_foil else one.method


def _notes(one: Explanation, index: int) -> str:
    """What stands above a map: a score only where the method knows the support."""
    score = [] if one.support_blind else [f"score {one.score_text(index)}"]
    return "\n".join([*score, one.account_text(index)])
