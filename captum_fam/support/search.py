"""Exact search for the most similar rows of a bank, in bounded memory.

A product of matrices has other last digits for other numbers of queries and rows. So the search has two stages.
Products of large matrices find candidates, a few more than needed. Then the similarities of the candidates are computed
in products of one fixed size, and decide. On a CPU, the same query and row have the same similarity in every search: in
any batch, and in a part of the bank as in the whole bank.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from captum_fam import functional as F
from captum_fam._files import need
from captum_fam.similarity import Cosine, Dot, Similarity
from captum_fam.support._version import version_of

Backend = Literal["torch", "faiss"]

# Memory for one step of a search: the similarities, and a copy of the rows for similarities that rescale them.
STEP_BYTES = 32 * 2**20
# Queries that are searched for together.
STEP_QUERIES = 256

# Candidates above k. More are taken while the last of them could still be among the k nearest; among more than the
# largest number of rows that are equal up to rounding, any are taken.
_SPARE = 16
_MOST_SPARE = 1024
# Rows in one product of the second stage.
_TILE = 32


class ExactSearch:
    """Search among the rows of a bank, block by block.

    Args:
        embeddings: the rows, ``(M, J)``.
        labels: class indices of the rows, ``(M,)``.
        similarity: the similarity that decides which rows are nearest.
        backend: ``"torch"``, or ``"faiss"`` for a flat FAISS index on the CPU, which gives the same results, keeps a
            copy of the rows, and knows cosine and dot only. Default: ``"torch"``.

    Raises:
        ValueError: for an unknown backend, or a similarity that FAISS does not know.

    Example:
        >>> from captum_fam.similarity import Dot
        >>> ExactSearch(torch.eye(3), torch.arange(3), Dot()).search(torch.tensor([[0.1, 0.9, 0.5]]), k=2)
        (tensor([[0.9000, 0.5000]]), tensor([[1, 2]]))
    """

    def __init__(self, embeddings: Tensor, labels: Tensor, similarity: Similarity, backend: Backend = "torch") -> None:
        if backend not in get_args(Backend):
            raise ValueError(f"backend must be one of {', '.join(get_args(Backend))}, got {backend!r}")
        # The exact class: a subclass of the user may have another score.
        if backend == "faiss" and type(similarity) not in (Cosine, Dot):
            raise ValueError(f'backend="faiss" knows cosine and dot only, got {similarity}; use backend="torch"')
        self._embeddings = embeddings
        self._labels = labels
        self._similarity = similarity
        self._backend = backend
        self._index: tuple[object, Any] | None = None

    def __len__(self) -> int:
        return len(self._embeddings)

    def check_finite(self) -> None:
        """Check that all rows are finite.

        Raises:
            ValueError: for NaN or inf.
        """
        for block in self._embeddings.split(self._step(0)):
            if not block.isfinite().all():
                raise ValueError("embeddings contain NaN or inf")

    def search(self, query: Tensor, k: int, exclude: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Find the K most similar rows of each query.

        Args:
            query: embeddings ``(B, J)``.
            k: how many rows to find; all rows if there are fewer.
            exclude: rows that are left out for each query, ``(B, E)``; -1 leaves nothing out. Default: None, no row.

        Returns:
            Similarities and rows, the most similar first, each ``(B, K)``. A query with less than K rows left is filled
            up with rows of the similarity -inf.

        Raises:
            ModuleNotFoundError: for the backend ``"faiss"``, if FAISS is not installed.
        """
        starts = range(0, len(query), STEP_QUERIES)
        excludes = [None if exclude is None else exclude[start : start + STEP_QUERIES] for start in starts]
        found = [
            self.nearest(part, min(k, len(self)), None, left_out)
            for part, left_out in zip(query.split(STEP_QUERIES), excludes, strict=True)
        ]
        similarities, rows = (torch.cat(parts) for parts in zip(*found, strict=True))
        return similarities, rows

    def nearest(
        self, query: Tensor, k: int, rows: Tensor | None, exclude: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Find the k most similar rows of each query with PyTorch, among all rows or some.

        Args:
            query: embeddings ``(B, J)``.
            k: how many rows to find.
            rows: the rows to search among, ``(n,)``; None for all rows of the bank.
            exclude: rows that are left out for each query, ``(B, E)``, where ``rows`` is None. Default: None, no row.

        Returns:
            Similarities and rows, the most similar first, and of equally similar rows the first; each ``(B, k)``.
        """
        count, spare = len(self) if rows is None else len(rows), _SPARE
        while True:
            found = min(k + spare, count)
            rough, indices = self._candidates(query, found, rows, exclude)
            last = rough[:, -1:]
            indices, order = indices.sort(1)
            rough = rough.gather(1, order)
            scores = torch.where(rough.isfinite(), self.scores(query, indices), rough)
            scores, order = scores.sort(stable=True, dim=1, descending=True)
            scores, indices = scores[:, :k], indices.gather(1, order[:, :k])
            if found == count or spare >= _MOST_SPARE or self._are_apart(query, scores[:, -1:], indices[:, -1:], last):
                return scores, indices
            spare *= 8

    def scores(self, query: Tensor, indices: Tensor) -> Tensor:
        """The similarities of some rows to each query, whose digits depend on query and row only.

        Args:
            query: embeddings ``(B, J)``.
            indices: rows for each query, ``(B, n)``.

        Returns:
            ``(B, n)``.
        """
        n_rows = indices.shape[1]
        padded = nn.functional.pad(indices, (0, -n_rows % _TILE))
        # A tile per query, a copy in float32 and a rescaled copy.
        at_once = max(1, STEP_BYTES // (12 * _TILE * self._embeddings.shape[1]))
        parts = []
        for part, rows in zip(query.split(at_once), padded.split(at_once), strict=True):
            tiles = [
                self._similarity.score(*F.common_precision(part, self._embeddings[tile]))
                for tile in rows.split(_TILE, 1)
            ]
            parts.append(torch.cat(tiles, 1))
        return torch.cat(parts)[:, :n_rows]

    def _are_apart(self, query: Tensor, kth: Tensor, rows: Tensor, last: Tensor) -> bool:
        """Whether the k-th similarity of each query is larger than that of the last candidate, beyond rounding."""
        noise = self._noise(query, self._embeddings[rows].to(query.dtype), kth)
        return not ((kth - last <= noise) & last.isfinite()).any()

    def _noise(self, query: Tensor, rows: Tensor, scores: Tensor) -> Tensor:
        """How much two computations of a similarity can differ: twice the error of one."""
        error = F.rounding_of_supports(query.shape[1], scores.dtype)
        return 2 * error * self._similarity.magnitude(query, rows, scores)

    def _candidates(self, query: Tensor, k: int, rows: Tensor | None, exclude: Tensor | None) -> tuple[Tensor, Tensor]:
        """The k most similar rows of each query as far as products of any size tell, each ``(B, k)``."""
        if self._backend == "faiss" and rows is None:
            return self._search_faiss(query, k, exclude)
        best = query.new_empty(len(query), 0)
        indices = torch.empty(len(query), 0, dtype=torch.int64, device=query.device)
        step = self._step(len(query))
        for start in range(0, len(self) if rows is None else len(rows), step):
            block = slice(start, start + step) if rows is None else rows[start : start + step]
            scores = self._similarity.score(*F.common_precision(query, self._embeddings[block]))
            if exclude is not None:
                _leave_out(scores, exclude - start)
            top, at = scores.topk(min(k, scores.shape[1]))
            best, indices = torch.cat([best, top], 1), torch.cat([indices, at + start], 1)
            best, order = best.topk(min(k, best.shape[1]))
            indices = indices.gather(1, order)
        return best, indices if rows is None else rows[indices]

    @cached_property
    def rows_of_classes(self) -> tuple[Tensor, ...]:
        """The rows of each class, ascending: one sort serves all later calls."""
        return self._labels.argsort(stable=True).split(self._labels.bincount().tolist())

    def nearest_of_classes(self, query: Tensor, n_classes: int, exclude: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Find the most similar row of every class.

        Args:
            query: embeddings ``(B, J)``.
            n_classes: C.
            exclude: rows that are left out for each query, ``(B, E)``. Default: None, no row.

        Returns:
            Similarities and rows, each ``(B, C)``, of equally similar rows the first; for a class without a row, -inf
            and row 0.
        """
        best = query.new_full((len(query), n_classes), -torch.inf)
        step = self._step(len(query))
        found: list[tuple[Tensor, Tensor]] = []
        for start in range(0, len(self), step):
            rows = self._embeddings[start : start + step]
            scores = self._similarity.score(*F.common_precision(query, rows))
            if exclude is not None:
                _leave_out(scores, exclude - start)
            own = self._labels[start : start + step].expand_as(scores)
            best = best.scatter_reduce(1, own, scores, "amax")
            behind = best.gather(1, own) - scores
            is_near = behind <= self._noise(query, rows.to(query.dtype), scores)
            if is_near.sum() > _MOST_SPARE * len(query):
                is_near = behind == 0
            of_query, at = (is_near & scores.isfinite()).nonzero(as_tuple=True)
            found.append((of_query, at + start))
        of_query, indices = (torch.cat(parts) for parts in zip(*found, strict=True))
        # The rows of each query, ascending, padded at the end.
        order = of_query.argsort(stable=True)
        counts = of_query.bincount(minlength=len(query)).tolist()
        padded = pad_sequence(list(indices[order].split(counts)), batch_first=True, padding_value=-1)
        indices = padded.clamp_min(0)
        scores = self.scores(query, indices).masked_fill(padded < 0, -torch.inf)
        own = self._labels[indices]
        best = torch.full_like(best, -torch.inf).scatter_reduce(1, own, scores, "amax")
        is_best = (scores == best.gather(1, own)) & (padded >= 0)
        nearest = torch.full_like(best, len(self), dtype=torch.int64)
        nearest = nearest.scatter_reduce(1, own, torch.where(is_best, indices, len(self)), "amin")
        return best, nearest.masked_fill(nearest == len(self), 0)

    def _search_faiss(self, query: Tensor, k: int, exclude: Tensor | None) -> tuple[Tensor, Tensor]:
        n_excluded = 0 if exclude is None else exclude.shape[1]
        cosine = isinstance(self._similarity, Cosine)
        vectors = F.unit(query) if cosine else query
        # FAISS cannot exclude rows per query: so many more rows are searched for, and the excluded rows dropped below.
        scores, rows = self._faiss_index().search(vectors.float().cpu().numpy(), min(k + n_excluded, len(self)))
        similarities, indices = torch.from_numpy(scores).to(query), torch.from_numpy(rows).to(query.device)
        similarities = F.within_one(similarities) if cosine else similarities
        if exclude is not None:
            similarities[(indices.unsqueeze(2) == exclude.unsqueeze(1)).any(2)] = -torch.inf
        similarities, order = similarities.topk(min(k, similarities.shape[1]))
        return similarities, indices.gather(1, order)

    def _faiss_index(self) -> Any:
        """The index of all rows, built by the first search, and again after the rows have changed in place."""
        version = version_of(self._similarity, self._embeddings)
        if self._index is None or self._index[0] != version:
            faiss = need("faiss", extra="faiss", purpose='backend="faiss"')
            index = faiss.IndexFlatIP(self._embeddings.shape[1])
            for block in self._embeddings.split(self._step(0)):
                rows = F.unit(F.widen(block)) if isinstance(self._similarity, Cosine) else block
                index.add(rows.float().cpu().numpy())
            self._index = version, index
        return self._index[1]

    def _step(self, n_queries: int) -> int:
        """Rows per block: each takes a similarity per query, a copy in float32 and a rescaled copy."""
        return max(1, STEP_BYTES // (4 * (n_queries + 2 * self._embeddings.shape[1])))


def _leave_out(scores: Tensor, columns: Tensor) -> None:
    """Set columns ``(B, E)`` of ``scores`` to -inf in place; columns outside ``scores`` are ignored."""
    query, position = ((columns >= 0) & (columns < scores.shape[1])).nonzero(as_tuple=True)
    scores[query, columns[query, position]] = -torch.inf
