"""The pairs of a saved explanation: numbers in the manifest, maps among the arrays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from captum_fam.attr.pair_decomposition import PointMatch
from captum_fam.explanation.pairs.pair import Pair

_TEXTS, _NUMBERS = ("name", "label"), ("similarity", "weight", "score", "support_score")
_MAPS = ("query_map", "support_map", "plain_query_map", "plain_support_map")
_MATCHES = ("matches", "mutual_matches")
_COVERAGES, _SHARES = ("query_coverage", "support_coverage"), ("query_shares", "support_shares")


def pair_entry(pair: Pair, name: str, arrays: dict[str, Any]) -> dict[str, Any]:
    """What the manifest says of a pair; its maps are added to the arrays.

    Args:
        pair: the pair. Its decomposition is not kept.
        name: the beginning of the names of its arrays.
        arrays: the arrays to add to, by name.
    """
    for map_ in _MAPS:
        arrays[f"{name}.{map_}"] = getattr(pair, map_).detach().cpu().numpy()
    entry: dict[str, Any] = {"row": pair.row}
    entry |= {key: getattr(pair, key) for key in _TEXTS}
    entry |= {key: _as_json(getattr(pair, key)) for key in (*_NUMBERS, *_COVERAGES)}
    for key in _SHARES:
        shares = getattr(pair, key)
        entry[key] = None if shares is None else {part: _as_json(share) for part, share in shares.items()}
    for key in _MATCHES:
        entry[key] = [
            [list(match.query), list(match.support), _as_json(match.share), _as_json(match.cosine), match.mutual]
            for match in getattr(pair, key)
        ]
    return entry


def read_pair(entry: Mapping[str, Any], name: str, arrays: Mapping[str, Any], image: Any) -> Pair:
    """A pair as it was saved, without its decomposition.

    Args:
        entry: what the manifest says of it.
        name: the beginning of the names of its arrays.
        arrays: the arrays of the query.
        image: the support for display.
    """
    fields: dict[str, Any] = {map_: torch.from_numpy(arrays[f"{name}.{map_}"]) for map_ in _MAPS}
    fields |= {key: float(entry[key]) for key in _NUMBERS}
    fields |= {key: None if entry[key] is None else float(entry[key]) for key in _COVERAGES}
    for key in _SHARES:
        shares = entry[key]
        fields[key] = None if shares is None else {part: float(share) for part, share in shares.items()}
    for key in _MATCHES:
        fields[key] = tuple(
            PointMatch(tuple(query), tuple(support), float(share), float(cosine), bool(mutual))
            for query, support, share, cosine, mutual in entry[key]
        )
    return Pair(row=int(entry["row"]), name=entry["name"], label=entry["label"], image=image, **fields)


def _as_json(number: float | None) -> float | str | None:
    """A number as JSON can represent it; NaN and infinity as texts, which ``float`` reads."""
    return str(number) if number is not None and number - number != 0 else number
