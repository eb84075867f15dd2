"""The memory bank with which the queries are compared: making it, checking it, and finding the queries in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from captum_fam._files import sha256_of
from captum_fam.embedding.labeled_dataset import find_class_names
from captum_fam.embedding.ranks import Ranks
from captum_fam.experiments.data.labels import labels_of
from captum_fam.experiments.features import extract, source_of
from captum_fam.experiments.protocols.dataset_info import fingerprint
from captum_fam.experiments.two_part_model import TwoPartModel
from captum_fam.similarity import similarity_name
from captum_fam.support import MemoryBank, Vote
from captum_fam.support.bank_making import warn_of_skipped
from captum_fam.support.search import Backend

BANK = "bank.safetensors"
"""The file of the memory bank of a run, in the folder of its results."""

# Up to this difference from a cosine of 1, two embeddings count as embeddings of the same image.
_SAME_COSINE = 1e-6


def bank_settings(bank: MemoryBank | Dataset[Any]) -> dict[str, Any]:
    """A fingerprint of a memory bank, or of the data set of which the bank is made.

    Args:
        bank: the memory bank or the data set.

    Returns:
        Sizes and hashes, in types that JSON can hold.
    """
    if not isinstance(bank, MemoryBank):
        return fingerprint(bank)
    return {
        "rows": len(bank),
        "similarity": similarity_name(bank.similarity),
        "sha256": sha256_of(bank.labels, bank.embeddings),
    }


def check_bank(bank: MemoryBank, model: TwoPartModel, dataset: Dataset[Any]) -> None:
    """Refuse a memory bank that does not fit the model or the queries.

    Args:
        bank: the memory bank.
        model: the model of the queries.
        dataset: the queries.

    Raises:
        ValueError: for a bank of another similarity than that of the model, or of another number of classes than that
            of the data set.
    """
    if similarity_name(bank.similarity) != similarity_name(model.similarity):
        raise ValueError(
            f"bank: it finds its neighbors by {similarity_name(bank.similarity)}, the model decides by "
            f"{similarity_name(model.similarity)}; make a new bank with the model's similarity, or set the similarity "
            "of the model (--similarity)"
        )
    names = find_class_names(dataset)
    n_classes = len(names) if names else max(bank.n_classes, int(labels_of(dataset).max()) + 1)
    if bank.n_classes != n_classes:
        raise ValueError(
            f"bank: it has {bank.n_classes} classes, the dataset has {n_classes}; use a bank of images of the same "
            "classes"
        )


def items_in_bank(dataset: Dataset[Any], bank: MemoryBank | Dataset[Any]) -> list[int]:
    """Find the queries in the data set of a bank, by their files.

    Args:
        dataset: the queries.
        bank: the data set of which the bank is made; or a memory bank, whose rows have no files, so that no query is
            found.

    Returns:
        The position of every query in the data set of the bank, -1 for a query that is not in it.
    """
    n_items = len(dataset)  # type: ignore[arg-type]
    if bank is dataset:
        return list(range(n_items))
    item_of = {path: item for item, path in enumerate(_paths(bank))}
    return [item_of.get(path, -1) for path in _paths(dataset)] or [-1] * n_items


def _paths(images: Dataset[Any] | MemoryBank) -> list[Path]:
    """The files of the items; empty for a data set without files, and for a memory bank."""
    return [record.path.resolve() for record in getattr(images, "records", ())]


def prepare_bank(
    model: TwoPartModel,
    dataset: Dataset[Any],
    folder: Path,
    backend: Backend,
    *,
    batch_size: int,
    num_workers: int,
    ranks: Ranks,
    progress: bool,
) -> MemoryBank:
    """Make the memory bank of a data set, or load the bank of an earlier run; several processes share the work.

    Args:
        model: fast copy of the model.
        dataset: items ``(image, label)`` or ``(image, label, boxes)``.
        folder: folder for the files of the work; the bank is saved as ``bank.safetensors`` in the parent folder.
        backend: backend of the search.
        batch_size: images per pass through the model.
        num_workers: number of processes that read images.
        ranks: the processes that share the work.
        progress: show a progress bar.

    Returns:
        The bank, with one row per usable image.

    Raises:
        ValueError: if no image could be read.
        OSError: if the disk is full.

    Warns:
        UserWarning: if images could not be used; they have no row in the bank.
    """
    path = folder.parent / BANK
    exists = path.is_file()
    # The first process writes the file below. Wait until every process has checked whether it exists.
    ranks.wait()
    if not exists:
        features = extract(
            model,
            dataset,
            folder / "bank",
            (),
            batch_size=batch_size,
            num_workers=num_workers,
            ranks=ranks,
            progress=progress,
            name="memory bank",
            source=source_of(folder.parent),
        )
        if ranks.is_first:
            names = find_class_names(dataset) or None
            # The file holds the name of the similarity only; a similarity of the user is passed again to load.
            bank = MemoryBank(
                features.embeddings, features.labels, names, similarity=model.similarity, items=features.items
            )
            bank.skipped = features.skipped
            bank.save(path)
        ranks.wait()
    bank = MemoryBank.load(path, backend=backend, similarity=model.similarity)
    if ranks.is_first:
        warn_of_skipped(bank.skipped, 1)
    return bank


def seems_to_hold(bank: MemoryBank, query: Tensor, vote: Vote) -> bool:
    """Whether a query has the same embedding as a row of the bank, up to rounding.

    Args:
        bank: the memory bank.
        query: embeddings of the queries, ``(B, J)``.
        vote: vote of the bank for these queries.
    """
    nearest = bank.embeddings[vote.neighbor_indices[:, 0]]
    return bool((torch.cosine_similarity(query.double(), nearest.double()) >= 1 - _SAME_COSINE).any())
