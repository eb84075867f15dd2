"""Writing the files of one query."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from captum_fam.attr.account import ZERO_EMBEDDING

if TYPE_CHECKING:
    from captum_fam.explanation.result import Explanation


def write_query(explanations: Sequence[Explanation], index: int, folder: Path) -> dict[str, Any]:
    """Write the arrays and overlays of one query, explained by one or more methods.

    Args:
        explanations: explanations of the same queries, one per method.
        index: the position of the query.
        folder: an existing folder.

    Returns:
        The entry of the query in the manifest, as JSON can represent it.

    Raises:
        OSError: if the files cannot be written.

    Example:
        >>> from pathlib import Path
        >>> from captum_fam.explanation import write_query
        >>> why = explain(model, queries, support, layer="layer4", names=[f"bird-{i}" for i in range(8)])
        >>> entry = write_query([why], 0, Path("."))
        >>> entry["arrays"], entry["methods"]["fam"]["overlay"]
        ('bird-0.npz', 'bird-0.fam.png')
    """
    first = explanations[0]
    name = first.names[index]
    arrays: dict[str, Any] = {}
    methods = {}
    for explanation in explanations:
        arrays[explanation.method] = explanation.maps[index, 0]
        arrays[f"{explanation.method}.layer"] = explanation.attributions[index, 0]
        entry: dict[str, Any] = {
            "overlay": f"{name}.{explanation.method}.png",
            "map_size": list(explanation.maps.shape[2:]),
            "layer_size": list(explanation.attributions.shape[2:]),
            "flat": bool(explanation.flat[index]),
            "account": explanation.account_text(index),
        }
        if explanation.contributions is not None:
            arrays[f"{explanation.method}.contributions"] = explanation.contributions[index]
        if explanation.convergence_delta is not None:
            arrays[f"{explanation.method}.delta"] = explanation.convergence_delta[index]
            entry["convergence_delta"] = float(explanation.convergence_delta[index])
        if explanation.coverage is not None and explanation.shares is not None:
            arrays[f"{explanation.method}.coverage"] = explanation.coverage[index]
            shares = {part: share[index] for part, share in explanation.shares.items()}
            arrays |= {f"{explanation.method}.shares.{part}": share for part, share in shares.items()}
            entry["coverage"] = None if explanation.coverage[index].isnan() else float(explanation.coverage[index])
            entry["shares"] = {part: float(share) for part, share in shares.items()}
            if ZERO_EMBEDDING in explanation.shares:
                entry["account"] = f"score {explanation.score_text(index)}; {explanation.account_text(index)}"
        explanation.overlay(index).save(folder / entry["overlay"])
        methods[explanation.method] = entry
    np.savez_compressed(folder / f"{name}.npz", **{key: value.cpu().numpy() for key, value in arrays.items()})
    return {
        "name": name,
        # A class without supports has the score -inf, which JSON cannot represent.
        "scores": {
            label: score if math.isfinite(score) else None
            for label, score in zip(first.class_names, first.scores[index].tolist(), strict=True)
        },
        "predicted": first.class_names[int(first.predicted[index])],
        "target": first.class_names[int(first.target[index])],
        "arrays": f"{name}.npz",
        "methods": methods,
    }
