"""Embedding a data set for a memory bank in shards."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from captum_fam.embedding import EmbeddedDataset
from captum_fam.embedding.ranks import Ranks
from captum_fam.support.bank_file import StoredBank
from captum_fam.support.bank_making import BankMaker, unfinished_folder
from captum_fam.support.memory_bank import MemoryBank


def embed_shard(maker: BankMaker, path: Path | None, ranks: Ranks, options: dict[str, Any]) -> MemoryBank:
    """Embed the data set together with the other ranks, and keep the rows of this rank.

    With files, each rank gets an equal part, whatever rank has computed it. Without, each keeps what it has computed.

    Args:
        maker: model and data set.
        path: the name that the files of the bank share; None keeps nothing on disk.
        ranks: the ranks.
        options: arguments of :class:`MemoryBank`.

    Raises:
        ValueError: if a rank has no row; and as for :meth:`MemoryBank.from_dataset`.
        OSError: if rows cannot be written.
    """
    embedder = maker.embedder(None if path is None else unfinished_folder(path), ranks)
    embedder.check_stored("embeddings")
    if path is None:
        blocks = embedder.run_share()
        _check_no_rank_is_empty(ranks.gather(sum(len(block.items) for block in blocks)))
        rows = EmbeddedDataset(blocks)
        mine = torch.arange(len(rows))
    else:
        rows = embedder.run()
        parts = torch.arange(len(rows)).tensor_split(ranks.size)
        _check_no_rank_is_empty([len(part) for part in parts])
        mine = parts[ranks.rank]
    shard = MemoryBank(rows.rows("embeddings", mine), rows.labels[mine], items=rows.items[mine], **options)
    shard.skipped = dict(rows.skipped)
    return shard


def check_shard(maker: BankMaker, where: str, shard: MemoryBank, n_items: int) -> None:
    """Embed a few items of a finished shard again, to refuse rows of another model or data set.

    Args:
        maker: model and data set.
        where: the name that the files of the bank share, for the message.
        shard: the rows of this rank, with classes and items as the whole bank has them.
        n_items: the number of items of the data set of which the bank was made.

    Raises:
        ValueError: if the rows differ, or the data set has another length.
    """
    tensors = {"embeddings": shard.embeddings.cpu(), "labels": shard.labels.cpu(), "items": shard.items}
    maker.check_finished(where, StoredBank(tensors, {"class_names": shard.class_names}, {}), n_items)


def _check_no_rank_is_empty(counts: Sequence[int]) -> None:
    if min(counts) == 0:
        raise ValueError(
            f"dataset: {sum(counts)} usable items leave rank {counts.index(0)} of {len(counts)} without a row; take a "
            "smaller batch_size or fewer ranks"
        )
