"""Reading the results of a search engine: ids, scores and vectors of hits."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from captum_fam import functional as F
from captum_fam._text import printable
from captum_fam.support.labels import plain_value

HitIds = tuple[tuple[Hashable, ...], ...]
"""The ids of K hits for each of B queries; None where a search has found fewer."""

Rows = Sequence[Sequence[Any]] | Tensor | np.ndarray[Any, Any]
"""Values for K hits of B queries: a tensor, an array or nested lists."""


def read_ids(ids: Rows) -> HitIds:
    """Read the ids of hits, of any kind that engines give.

    Args:
        ids: ``(B, K)``: whole numbers, texts, UUIDs or other values that a dictionary can have as keys. -1 and None say
            that a search has found fewer than K. Lists may differ in length.

    Returns:
        Python values, None for no hit, in B rows of the same length.

    Raises:
        TypeError: for anything but ids.
        ValueError: for another shape, or a query without a hit.

    Example:
        >>> read_ids(torch.tensor([[4, 2], [7, -1]])), read_ids([["a"], ["b", "c"]])
        (((4, 2), (7, None)), (('a', None), ('b', 'c')))
    """
    rows = _as_rows(ids, "ids")
    for row in rows:
        for one in row:
            if isinstance(one, bool | float | complex) or not isinstance(one, Hashable):
                raise TypeError(
                    f"ids must be whole numbers, texts or other keys, got {printable(one)} ({type(one).__name__})"
                )
    found = [[None if one is None or one == -1 else one for one in row] for row in rows]
    for query, row in enumerate(found):
        if all(one is None for one in row):
            raise ValueError(f"ids: query {query} has no hit at all")
    width = max(map(len, found))
    return tuple((*row, *[None] * (width - len(row))) for row in found)


def read_scores(scores: Rows, ids: HitIds) -> Tensor:
    """Read the scores that an engine gave to its hits.

    Args:
        scores: ``(B, K)``; values for hits that are None are not read. Lists may differ in length.
        ids: the ids of the hits.

    Returns:
        float64 ``(B, K)``, NaN for no hit.

    Raises:
        TypeError: for anything but real numbers.
        ValueError: for another shape than that of the ids, or a score that is NaN or inf.

    Example:
        >>> read_scores([[0.9, 0.5], [0.7]], ((4, 2), (7, None)))
        tensor([[0.9000, 0.5000],
                [0.7000,    nan]], dtype=torch.float64)
    """
    rows = _as_rows(scores, "scores")
    fits = len(rows) == len(ids) and all(
        len(row) <= len(hits) and not any(one is not None for one in hits[len(row) :])
        for row, hits in zip(rows, ids, strict=True)
    )
    if not fits:
        shapes = [(len(part), max(map(len, part))) for part in (rows, ids)]
        raise ValueError(f"scores must be one per id, {shapes[1]}, got {shapes[0]}; pass a gallery as embeddings=")
    read = torch.full((len(ids), len(ids[0])), torch.nan, dtype=torch.float64)
    for query, (row, hits) in enumerate(zip(rows, ids, strict=True)):
        for rank, (score, one) in enumerate(zip(row, hits, strict=False)):
            if one is None:
                continue
            if isinstance(score, bool) or not isinstance(score, int | float):
                raise TypeError(f"scores must be real numbers, got {printable(score)} for rank {rank} of query {query}")
            read[query, rank] = score
            if not read[query, rank].isfinite():
                raise ValueError(f"scores: rank {rank} of query {query} has the score {score}")
    return read


def read_vectors(vectors: object, ids: Sequence[Hashable], source: str) -> Tensor:
    """Read the embeddings of ids.

    Args:
        vectors: a tensor or an array ``(n, J)``, a list of n vectors, or a mapping from id to vector.
        ids: n different ids.
        source: the name of the argument that the vectors come from, for messages.

    Returns:
        ``(n, J)``, of a floating-point type.

    Raises:
        TypeError: for anything but vectors of floating-point numbers.
        ValueError: for another shape, an id without a vector, or NaN or inf.

    Example:
        >>> read_vectors({"b": [0.0, 1.0], "a": [1.0, 0.0]}, ["a", "b"], "fetch")
        tensor([[1., 0.],
                [0., 1.]])
    """
    if isinstance(vectors, Mapping):
        missing = [one for one in ids if one not in vectors]
        if missing:
            raise ValueError(
                f"{source} has no embedding for {len(missing)} of {len(ids)} ids, such as {printable(missing[0])}"
            )
        vectors = [vectors[one] for one in ids]
    try:
        if isinstance(vectors, list | tuple):
            vectors = torch.stack([torch.as_tensor(vector) for vector in vectors])
        tensor = vectors if isinstance(vectors, Tensor) else torch.from_numpy(np.array(vectors))
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{source} must give embeddings (n, J), got {type(vectors).__name__} ({error})") from error
    if tensor.dim() != 2 or len(tensor) != len(ids) or not tensor.shape[1]:
        raise ValueError(f"{source} must give (n, J) for {len(ids)} ids, got shape {tuple(tensor.shape)}")
    if not tensor.is_floating_point():
        raise TypeError(f"{source} must give embeddings of a floating-point type, got {tensor.dtype}")
    if not F.is_finite(tensor):
        row = int((~tensor.isfinite().all(1)).nonzero()[0])
        raise ValueError(f"{source}: the embedding of id {printable(ids[row])} contains NaN or inf")
    return tensor


def _as_rows(values: Rows, name: str) -> list[list[Any]]:
    """Values for hits as lists of Python values."""
    if isinstance(values, Tensor | np.ndarray):
        if values.ndim != 2 or 0 in values.shape:
            raise ValueError(f"{name} must be (B, K), got shape {tuple(values.shape)}")
        rows: list[list[Any]] = values.tolist()
        return rows
    if not isinstance(values, list | tuple) or not values:
        raise ValueError(f"{name} must be (B, K): a tensor, an array or nested lists, got {type(values).__name__}")
    wrong = [row for row in values if not isinstance(row, list | tuple | Tensor | np.ndarray)]
    if wrong:
        raise ValueError(f"{name} must be (B, K), a list of hits for each query, got {printable(wrong[0])} for a query")
    return [[plain_value(one) for one in row] for row in values]
