"""Exact search for the most similar rows of a bank, in bounded memory."""

from __future__ import annotations

from functools import cached_property
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from captum_fam import functional as F
from captum_fam._files import need
from captum_fam.similarity import Cosine, Dot, Similarity

Backend = Literal["torch", "faiss"]

# Memory for one step of a search: the similarities, and a copy of the rows for similarities that rescale them.
STEP_BYTES = 32 * 2**20


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
        if backend == "faiss" and not isinstance(similarity, Cosine | Dot):
            raise ValueError(f'backend="faiss" knows cosine and dot only, got {similarity}; use backend="torch"')
        self._embeddings = embeddings
        self._labels = labels
        self._similarity = similarity
        self._backend = backend
        self._index: Any = None

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
            exclude: rows that are left out for each query, ``(B, E)``. Default: None, no row.

        Returns:
            Similarities and rows, the most similar first, each ``(B, K)``.

        Raises:
            ModuleNotFoundError: for the backend ``"faiss"``, if FAISS is not installed.
        """
        if self._backend == "faiss":
            return self._search_faiss(query, k, exclude)
        count = len(self) if exclude is None else len(self) - exclude.shape[1]
        return self.nearest(query, min(k, count), None, exclude)

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
            Similarities and rows, the most similar first, each ``(B, k)``.
        """
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
            Similarities and rows, each ``(B, C)``; for a class without a row, -inf and row 0.
        """
        best = query.new_full((len(query), n_classes), -torch.inf)
        indices = torch.zeros(len(query), n_classes, dtype=torch.int64, device=query.device)
        step = self._step(len(query))
        for start in range(0, len(self), step):
            scores = self._similarity.score(*F.common_precision(query, self._embeddings[start : start + step]))
            if exclude is not None:
                _leave_out(scores, exclude - start)
            own = self._labels[start : start + step].expand_as(scores)
            top = torch.full_like(best, -torch.inf).scatter_reduce(1, own, scores, "amax")
            # Which row of the block has the largest similarity of its class: of equal ones the last.
            is_top = scores == top.gather(1, own)
            rows = torch.arange(start, start + scores.shape[1], device=query.device).expand_as(scores)
            at = torch.zeros_like(indices).scatter_reduce(1, own, torch.where(is_top, rows, 0), "amax")
            better = top > best
            best, indices = torch.where(better, top, best), torch.where(better, at, indices)
        return best, indices

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
        similarities, order = similarities.topk(min(k, len(self) - n_excluded))
        return similarities, indices.gather(1, order)

    def _faiss_index(self) -> Any:
        """The index of all rows, built by the first search."""
        if self._index is None:
            faiss = need("faiss", extra="faiss", purpose='backend="faiss"')
            index = faiss.IndexFlatIP(self._embeddings.shape[1])
            for block in self._embeddings.split(self._step(0)):
                rows = F.unit(F.widen(block)) if isinstance(self._similarity, Cosine) else block
                index.add(rows.float().cpu().numpy())
            self._index = index
        return self._index

    def _step(self, n_queries: int) -> int:
        """Rows per block: each takes a similarity per query, a copy in float32 and a rescaled copy."""
        return max(1, STEP_BYTES // (4 * (n_queries + 2 * self._embeddings.shape[1])))


def _leave_out(scores: Tensor, columns: Tensor) -> None:
    """Set columns ``(B, E)`` of ``scores`` to -inf in place; columns outside ``scores`` are ignored."""
    query, position = ((columns >= 0) & (columns < scores.shape[1])).nonzero(as_tuple=True)
    scores[query, columns[query, position]] = -torch.inf
