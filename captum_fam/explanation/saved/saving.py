"""Writing the files of one query."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from captum_fam.attr.account import ZERO_EMBEDDING

MOST_SCORES = 100
"""How many scores of classes the entry of a query has at most: the largest, and that of the target."""

_LONGEST_STEM = 160  # bytes; names of files are longer, and most file systems hold names of 255 bytes

if TYPE_CHECKING:
    from captum_fam.explanation.result import Explanation


def write_query(
    explanations: Sequence[Explanation],
    index: int,
    folder: Path,
    *,
    overlays: bool = True,
    more: Mapping[str, Any] | None = None,
    stem: str | None = None,
) -> dict[str, Any]:
    """Write the arrays and overlays of one query, explained by one or more methods.

    Args:
        explanations: explanations of the same queries, one per method.
        index: the position of the query.
        folder: an existing folder.
        overlays: whether to draw each map over its query. Default: True.
        more: further arrays for the file, by name. Default: None.
        stem: the beginning of the names of the files. Default: None, :func:`file_stem` of the name of the query.

    Returns:
        The entry of the query in the manifest, as JSON can represent it.

    Raises:
        ValueError: if the query cannot be drawn.
        OSError: if the files cannot be written.

    Example:
        >>> from pathlib import Path
        >>> from captum_fam.explanation import write_query
        >>> why = explain(model, queries, support, layer="layer4", names=[f"bird-{i}" for i in range(8)])
        >>> entry = write_query([why, *why.beside], 0, Path("."))
        >>> entry["arrays"], entry["methods"]["fam"]["overlay"]
        ('bird-0.npz', 'bird-0.fam.png')
    """
    entry = query_entry(explanations, index)
    arrays: dict[str, Any] = {}
    stem = file_stem(entry["name"]) if stem is None else stem
    for explanation in explanations:
        arrays |= _arrays(explanation, index)
        if overlays:
            from captum_fam.visualization.figure import PNG_LEVEL  # imported here, because arrays need no matplotlib

            overlay = f"{stem}.{explanation.method}.png"
            explanation.overlay(index).save(folder / overlay, compress_level=PNG_LEVEL)
            # First in the entry, where a reader of the manifest looks for it.
            entry["methods"][explanation.method] = {"overlay": overlay, **entry["methods"][explanation.method]}
    name = f"{stem}.npz"
    np.savez_compressed(folder / name, **{key: value.cpu().numpy() for key, value in arrays.items()}, **(more or {}))
    methods = entry.pop("methods")
    return {**entry, "arrays": name, "methods": methods}


def file_stem(name: str) -> str:
    """The name of a query as the beginning of the names of its files.

    Args:
        name: the name, without a path separator.

    Returns:
        The name itself where a file can have it; else its first 150 bytes, with escapes for what no file name can hold,
        and a hash of the whole name.

    Example:
        >>> file_stem("wren"), file_stem("wren" * 50)[-14:]
        ('wren', 'renwr-c110a547')
    """
    try:
        is_fitting = len(os.fsencode(name)) <= _LONGEST_STEM and "\0" not in name
    except UnicodeEncodeError:  # a lone surrogate that stands for no byte
        is_fitting = False
    if is_fitting:
        return name
    return _hashed(name)


def file_stems(names: Sequence[str]) -> list[str]:
    """The beginnings of the names of the files of several queries.

    Args:
        names: the names of the queries, all different.

    Returns:
        As :func:`file_stem`, with a hash behind a name that differs from an earlier one in upper and lower case only:
        some file systems take the two for one.

    Example:
        >>> file_stems(["Wren", "jay", "wren"])
        ['Wren', 'jay', 'wren-b1e3c2ec']
    """
    stems: dict[str, str] = {}
    for name in names:
        stem = file_stem(name)
        stem = _hashed(name) if stem.casefold() in stems else stem
        stems[stem.casefold()] = stem
    return list(stems.values())


def hash_of_name(name: str) -> str:
    """SHA-256 of the name of a query, as 64 hexadecimal digits.

    Args:
        name: the name, which may hold lone surrogates.
    """
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()


def _hashed(name: str) -> str:
    """A name as far as a file can have it, and a hash of the whole name."""
    shown = name.replace("\0", "\\0").encode("utf-8", "backslashreplace")[: _LONGEST_STEM - 10]
    return f"{shown.decode('utf-8', 'ignore')}-{hash_of_name(name)[:8]}"


def query_entry(explanations: Sequence[Explanation], index: int) -> dict[str, Any]:
    """What the manifest says of one query, explained by one or more methods, without any file.

    Args:
        explanations: explanations of the same queries, one per method.
        index: the position of the query.

    Returns:
        Name, scores, predicted class, target, its score without any contrast and the account of each method, as JSON
        can represent them. Of more than 100 classes, the largest 100 scores and the score of the target are in it.

    Example:
        >>> from captum_fam.explanation import query_entry
        >>> why = explain(model, queries, support, layer="layer4")
        >>> query_entry([why, *why.beside], 0)["methods"]["fam"]["account"]
        'no account of the score'
    """
    first = explanations[0]
    scores, target = first.scores[index], int(first.target[index])
    shown = (
        {*range(len(scores))} if len(scores) <= MOST_SCORES else {target, *scores.topk(MOST_SCORES).indices.tolist()}
    )
    return {
        "name": first.names[index],
        # A class without supports has the score -inf, which JSON cannot represent.
        "scores": {
            label: score if math.isfinite(score) else None
            for position, (label, score) in enumerate(zip(first.class_names, scores.tolist(), strict=True))
            if position in shown
        },
        "predicted": first.class_names[int(first.predicted[index])],
        "target": first.class_names[target],
        "plain_score": float(first.plain_scores[index]),
        "methods": {explanation.method: _method_entry(explanation, index) for explanation in explanations},
    }


def _method_entry(explanation: Explanation, index: int) -> dict[str, Any]:
    """What the manifest says of the map of one method."""
    entry: dict[str, Any] = {
        "map_size": list(explanation.maps.shape[2:]),
        "layer_size": list(explanation.attributions.shape[2:]),
        "flat": bool(explanation.flat[index]),
        "account": explanation.account_text(index),
    }
    if explanation.convergence_delta is not None:
        entry["convergence_delta"] = float(explanation.convergence_delta[index])
    if explanation.coverage is not None and explanation.shares is not None:
        entry["coverage"] = None if explanation.coverage[index].isnan() else float(explanation.coverage[index])
        entry["shares"] = {part: float(share[index]) for part, share in explanation.shares.items()}
        if ZERO_EMBEDDING in explanation.shares:
            entry["account"] = f"score {explanation.score_text(index)}; {explanation.account_text(index)}"
    return entry


def _arrays(explanation: Explanation, index: int) -> dict[str, Any]:
    """The arrays of one query, by their names in the file."""
    method = explanation.method
    arrays = {method: explanation.maps[index, 0], f"{method}.layer": explanation.attributions[index, 0]}
    if explanation.contributions is not None:
        arrays[f"{method}.contributions"] = explanation.contributions[index]
    if explanation.convergence_delta is not None:
        arrays[f"{method}.delta"] = explanation.convergence_delta[index]
    if explanation.coverage is not None and explanation.shares is not None:
        arrays[f"{method}.coverage"] = explanation.coverage[index]
        arrays |= {f"{method}.shares.{part}": share[index] for part, share in explanation.shares.items()}
    return arrays
