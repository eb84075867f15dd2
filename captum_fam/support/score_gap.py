"""The gap between the scores of a search engine and the similarities that are computed from the embeddings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from captum_fam import functional as F
from captum_fam._text import printable
from captum_fam.similarity import Similarity, get_similarity
from captum_fam.similarity.registry import are_equal
from captum_fam.support.hits import HitIds

_TOLERANCE = 1e-3
_TOLERANCE_OF_HALF_PRECISION = 1e-2


class _Conversion(NamedTuple):
    """How an engine makes its score from a similarity of this package, and how that is undone."""

    similarity: str
    undo: Callable[[Tensor], Tensor]
    words: str


def _conversions() -> Iterator[_Conversion]:
    """What engines are known to give, the most usual first."""
    for name in ("cosine", "dot", "euclidean", "squared-euclidean"):
        yield _Conversion(name, lambda scores: scores, f'the scores are those of similarity="{name}"')
    yield _Conversion("cosine", lambda scores: 1 - scores, "the scores are cosine distances: pass scores=1 - distances")
    for name in ("euclidean", "squared-euclidean", "dot"):
        yield _Conversion(name, lambda scores: -scores, f"the scores are distances ({name}): pass scores=-distances")
    yield _Conversion("dot", lambda scores: 1 - scores, "the scores are 1 - dot: pass scores=1 - distances")
    yield _Conversion(
        "cosine", lambda scores: 2 * scores - 1, "the scores are (1 + cosine) / 2: pass scores=2 * scores - 1"
    )


def gap_in_words(
    query: Tensor,
    vectors: Tensor,
    scores: Tensor,
    recomputed: Tensor,
    similarity: Similarity,
    ids: HitIds,
    first_query: int = 0,
) -> str | None:
    """A warning, if the scores of an engine differ from the similarities by more than rounding explains.

    Args:
        query: embeddings ``(B, J)``.
        vectors: the embeddings of the hits, ``(B, K, J)``.
        scores: the scores of the engine, ``(B, K)``; NaN for no hit.
        recomputed: the similarities of the vectors, ``(B, K)``.
        similarity: the similarity of the comparison.
        ids: the ids of the hits.
        first_query: the number of the first query, for the text. Default: 0.

    Returns:
        The text of a warning; None if the scores agree.

    Example:
        >>> query, vectors = torch.tensor([[3.0, 4.0]]), torch.tensor([[[1.0, 0.0]]])
        >>> gap_in_words(
        ...     query, vectors, torch.tensor([[0.6]]), torch.tensor([[0.6]]), get_similarity("cosine"), ((7,),)
        ... )
        >>> text = gap_in_words(
        ...     query, vectors, torch.tensor([[3.0]]), torch.tensor([[0.6]]), get_similarity("cosine"), ((7,),)
        ... )
        >>> text.partition("; ")[2].partition(". ")[0]
        'the scores are those of similarity="dot", but the comparison uses Cosine()'
    """
    tolerance = _TOLERANCE if vectors.dtype in (torch.float32, torch.float64) else _TOLERANCE_OF_HALF_PRECISION
    query, vectors = F.common_precision(query.detach(), vectors)
    scores, recomputed = scores.to(query), recomputed.detach()
    size = _scale(query, vectors, recomputed, similarity)
    gaps = ((scores - recomputed).abs() / size).nan_to_num(0.0)
    if gaps.max() <= tolerance:
        return None
    row, rank = divmod(int(gaps.argmax()), gaps.shape[1])
    n_hits, n_wrong = int((~scores.isnan()).sum()), int((gaps > tolerance).sum())
    n_reordered = _count_reordered(recomputed, size * tolerance, scores.isnan())
    order = ""
    if n_reordered:
        order = f" The similarities put the hits of {n_reordered} of {len(scores)} queries in another order."
    return (
        f"scores: {n_wrong} of {n_hits} differ from the similarity of the query to the embedding of the hit, most at "
        f"query {first_query + row}, rank {rank}, id {printable(ids[row][rank])}: "
        f"{float(scores[row, rank]):.6g} by the engine, {float(recomputed[row, rank]):.6g} by {similarity}; "
        f"{_cause(query, vectors, scores, similarity, tolerance)}.{order} Maps explain the similarity; score_gap() "
        "gives all differences"
    )


def _cause(query: Tensor, vectors: Tensor, scores: Tensor, similarity: Similarity, tolerance: float) -> str:
    """What explains that scores differ, in words."""
    for name, undo, words in _conversions():
        candidate = get_similarity(name)
        expected = candidate.score(query, vectors)
        gaps = (undo(scores) - expected).abs() / _scale(query, vectors, expected, candidate)
        if gaps.nan_to_num(0.0).max() <= tolerance:
            return words if are_equal(candidate, similarity) else f"{words}, but the comparison uses {similarity}"
    steps = scores.diff(dim=1)
    steps = steps[~steps.isnan()]
    if bool((steps > 0).any()) and not (steps < 0).any():
        return "the scores ascend, as distances do: pass scores=-distances, and the similarity of the index"
    return (
        "the index may be quantized, embeddings may have changed since they were indexed, the index may use another "
        "similarity or model, or the engine got another query"
    )


def _scale(query: Tensor, vectors: Tensor, similarities: Tensor, similarity: Similarity) -> Tensor:
    """The size of the terms of each similarity, to which rounding errors are relative, ``(B, K)``."""
    size = torch.maximum(similarity.magnitude(query, vectors, similarities), similarities.abs())
    if not similarity.vanishes_at_zero:
        # A small distance is the difference of two long vectors.
        size = torch.maximum(size, similarity.score(torch.zeros_like(query), vectors).abs())
    return size.clamp_min(torch.finfo(size.dtype).tiny)


def _count_reordered(recomputed: Tensor, tolerance: Tensor, is_missing: Tensor) -> int:
    """The number of queries with a hit that is more similar than a hit with a better rank."""
    worst_before = recomputed.masked_fill(is_missing, torch.inf).cummin(1).values
    return int(((recomputed - worst_before > tolerance) & ~is_missing).any(1).sum())
