"""Some queries of an explanation as an explanation of their own."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from captum_fam._text import printable
from captum_fam.explanation.reading.thumbnails import SelectedPictures

if TYPE_CHECKING:
    from captum_fam.explanation.result import Explanation


def rows_of(explanation: Explanation, key: Any) -> list[int]:
    """The positions of the queries that an index, a slice or a name stands for.

    Args:
        explanation: the explanation.
        key: a position, which may count from the end; a slice; or the name of a query.

    Raises:
        IndexError: for a position that there is not.
        KeyError: for an unknown name.
        TypeError: for anything else.
    """
    count = len(explanation)
    if isinstance(key, slice):
        return list(range(count))[key]
    if isinstance(key, str):
        if key not in explanation.names:
            first = ", ".join(map(printable, explanation.names[:5])) + (", ..." if count > 5 else "")
            raise KeyError(f"no query has the name '{printable(key)}'; the names are {first}")
        return [explanation.names.index(key)]
    try:
        if isinstance(key, bool):
            raise TypeError
        index = operator.index(key)
    except TypeError:
        raise TypeError(
            f"an explanation is indexed by the position, the name or a slice of queries, got {type(key).__name__}"
        ) from None
    if not -count <= index < count:
        raise IndexError(f"index {index} is out of range for an explanation of {count} queries")
    return [index % count]


def row_of(explanation: Explanation, index: Any) -> int:
    """The position of one query.

    Args:
        explanation: the explanation.
        index: its position, which may count from the end, or its name.

    Raises:
        IndexError: for a position that there is not.
        KeyError: for an unknown name.
        TypeError: for anything else.

    Example:
        >>> why = explain(model, queries, support, layer="layer4")
        >>> row_of(why, -1), row_of(why, "query-2")
        (7, 2)
    """
    if isinstance(index, slice):
        raise TypeError("index must be the position or the name of one query, got a slice")
    return rows_of(explanation, index)[0]


def select_queries(explanation: Explanation, rows: Sequence[int]) -> Explanation:
    """Some queries of an explanation, with all that is known of them.

    Args:
        explanation: the explanation.
        rows: the positions of the queries.

    Returns:
        The explanation of these queries, which shares its notes and what it says of the run with the whole one.
    """
    # Every tensor, and every tensor in a mapping, has a value per query.
    selected: dict[str, Any] = {}
    for one in fields(explanation):
        value = getattr(explanation, one.name)
        if isinstance(value, Tensor):
            selected[one.name] = value[list(rows)]
    if not isinstance(explanation.images, Tensor):
        selected["images"] = [explanation.images[row] for row in rows]
    if explanation.shares is not None:
        selected["shares"] = {part: share[list(rows)] for part, share in explanation.shares.items()}
    if explanation.pairs is not None:
        selected["pairs"] = tuple(explanation.pairs[row] for row in rows)
    if explanation.support_pictures is not None:
        selected["support_pictures"] = SelectedPictures(explanation.support_pictures, rows)
    if explanation.foil_pictures is not None:
        selected["foil_pictures"] = explanation.foil_pictures.of_queries(rows)
    return replace(
        explanation,
        names=tuple(explanation.names[row] for row in rows),
        beside=tuple(select_queries(other, rows) for other in explanation.beside),
        **selected,
    )
