"""The most similar rows of a bank: exact, in bounded memory."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor

from captum_fam import functional as F
from captum_fam._files import need
from captum_fam.similarity import Cosine, Dot, Similarity

Backend = Literal["torch", "faiss"]

# What one step of a search may hold: similarities, and a copy of the rows for measures that rescale them.
STEP_BYTES = 32 * 2**20


class ExactSearch:
    """Search among the rows of a bank, block by block.

    Args:
        embeddings: ``(M, J)``.
        similarity: the measure.
        backend: ``"torch"``, or ``"faiss"``: a flat index on the CPU with the same results, for cosine and dot. It
            keeps a copy of the rows.

    Raises:
        ValueError: for an unknown backend, or a measure that FAISS does not have.
    """

    def __init__(self, embeddings: Tensor, similarity: Similarity, backend: Backend = "torch") -> None:
        if backend not in get_args(Backend):
            raise ValueError(f"backend must be one of {', '.join(get_args(Backend))}, got {backend!r}")
        if backend == "faiss" and not isinstance(similarity, Cosine | Dot):
            raise ValueError(f'backend="faiss" finds by cosine or dot, not by {similarity}; use backend="torch"')
        self._embeddings = embeddings
        self._similarity = similarity
        self._backend = backend
        self._index: Any = None

    def __len__(self) -> int:
        return len(self._embeddings)

    def check_finite(self) -> None:
        """Refuse rows with NaN or inf."""
        for block in self._embeddings.split(self._step(0)):
            if not block.isfinite().all():
                raise ValueError("embeddings contain NaN or inf")

    def search(self, query: Tensor, k: int, exclude: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The K most similar rows but those excluded: similarities and indices, ``(B, K)``."""
        if self._backend == "faiss":
            return self._search_faiss(query, k, exclude)
        count = len(self) if exclude is None else len(self) - exclude.shape[1]
        return self.nearest(query, min(k, count), None, exclude)

    def nearest(
        self, query: Tensor, k: int, rows: Tensor | None, exclude: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The k most similar of ``rows``, or of the whole bank, by blocks."""
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

    def _search_faiss(self, query: Tensor, k: int, exclude: Tensor | None) -> tuple[Tensor, Tensor]:
        n_excluded = 0 if exclude is None else exclude.shape[1]
        cosine = isinstance(self._similarity, Cosine)
        wanted = F.unit(query) if cosine else query
        found, at = self._faiss_index().search(wanted.float().cpu().numpy(), min(k + n_excluded, len(self)))
        similarities, indices = torch.from_numpy(found).to(query), torch.from_numpy(at).to(query.device)
        similarities = F.within_one(similarities) if cosine else similarities
        if exclude is not None:
            similarities[(indices.unsqueeze(2) == exclude.unsqueeze(1)).any(2)] = -torch.inf
        similarities, order = similarities.topk(min(k, len(self) - n_excluded))
        return similarities, indices.gather(1, order)

    def _faiss_index(self) -> Any:
        if self._index is None:
            faiss = need("faiss", extra="faiss", purpose='backend="faiss"')
            index = faiss.IndexFlatIP(self._embeddings.shape[1])
            for block in self._embeddings.split(self._step(0)):
                rows = F.unit(F.widen(block)) if isinstance(self._similarity, Cosine) else block
                index.add(rows.float().cpu().numpy())
            self._index = index
        return self._index

    def _step(self, n_queries: int) -> int:
        """Rows a block: their similarities, and a copy of them in float32 and one rescaled."""
        return max(1, STEP_BYTES // (4 * (n_queries + 2 * self._embeddings.shape[1])))


def _leave_out(scores: Tensor, columns: Tensor) -> None:
    """Set those of the columns ``(B, E)`` that exist in ``scores`` to -inf."""
    query, which = ((columns >= 0) & (columns < scores.shape[1])).nonzero(as_tuple=True)
    scores[query, columns[query, which]] = -torch.inf
