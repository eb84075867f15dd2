"""The files of one query."""

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
    """Write arrays and overlays of one query, by one or more methods; gives its entry of the manifest."""
    first = explanations[0]
    name = first.names[index]
    arrays: dict[str, Any] = {}
    methods = {}
    for one in explanations:
        arrays[one.method] = one.maps[index, 0]
        arrays[f"{one.method}.layer"] = one.attributions[index, 0]
        entry: dict[str, Any] = {
            "overlay": f"{name}.{one.method}.png",
            "map_size": list(one.maps.shape[2:]),
            "layer_size": list(one.attributions.shape[2:]),
            "flat": bool(one.flat[index]),
            "account": one.account_text(index),
        }
        if one.contributions is not None:
            arrays[f"{one.method}.contributions"] = one.contributions[index]
        if one.convergence_delta is not None:
            arrays[f"{one.method}.delta"] = one.convergence_delta[index]
            entry["convergence_delta"] = float(one.convergence_delta[index])
        if one.coverage is not None and one.shares is not None:
            arrays[f"{one.method}.coverage"] = one.coverage[index]
            arrays |= {f"{one.method}.shares.{name}": share[index] for name, share in one.shares.items()}
            entry["coverage"] = None if one.coverage[index].isnan() else float(one.coverage[index])
            entry["shares"] = {name: float(share[index]) for name, share in one.shares.items()}
            if ZERO_EMBEDDING in one.shares:
                entry["account"] = f"score {one.score_text(index)}; {one.account_text(index)}"
        one.overlay(index).save(folder / entry["overlay"])
        methods[one.method] = entry
    np.savez_compressed(folder / f"{name}.npz", **{key: value.cpu().numpy() for key, value in arrays.items()})
    return {
        "name": name,
        # A class that no neighbor of the query is of has the score -inf, which JSON does not know.
        "scores": {
            name: score if math.isfinite(score) else None
            for name, score in zip(first.class_names, first.scores[index].tolist(), strict=True)
        },
        "predicted": first.class_names[int(first.predicted[index])],
        "target": first.class_names[int(first.target[index])],
        "arrays": f"{name}.npz",
        "methods": methods,
    }
