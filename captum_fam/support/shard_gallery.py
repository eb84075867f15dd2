"""The rows of a memory bank in shards as the rows of a gallery."""

from __future__ import annotations

import torch
from torch import Tensor

from captum_fam import functional as F
from captum_fam.support.gallery_rows import GalleryRows
from captum_fam.support.mean_form import MeanForm
from captum_fam.support.shard_search import BankShard, ShardQuery


class ShardedRows(GalleryRows):
    """Rows that lie on several ranks: the ranks add up their sums.

    Args:
        shard: the rows of this rank, which asks the others.
        count: the number of rows of all ranks.
        left_out: rows that are left out for each query, ``(B, E)``; rows of the bank as one piece. None for no rows.
    """

    def __init__(self, shard: BankShard, count: int, left_out: Tensor | None) -> None:
        self._shard = shard
        self._count = count
        self.left_out = left_out

    def __len__(self) -> int:
        return self._count

    @property
    def features(self) -> int:
        return self._shard.embeddings.shape[1]

    def total(self, form: MeanForm) -> Tensor:
        return self._shard.total(form)

    def some(self, rows: Tensor) -> Tensor:
        # The answer to a search holds the rows that are left out.
        query = F.widen(self._shard.embeddings[:1]).cpu()
        found = self._shard.find(ShardQuery(query, 1, rows.cpu()[None]))
        return found.embeddings[torch.searchsorted(found.rows, rows.cpu())]

    def whole(self) -> Tensor:
        raise ValueError(
            "gallery: this similarity needs all embeddings on every rank, which a bank in shards is made to avoid; "
            "pass gallery=, a sample of the embeddings"
        )
