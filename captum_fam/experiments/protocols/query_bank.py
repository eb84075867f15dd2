"""The memory bank that queries of a dataset are compared with: whether it fits, and which queries are in it."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from captum_fam._files import sha256_of
from captum_fam.experiments.data.labels import labels_of
from captum_fam.experiments.distributed import Ranks
from captum_fam.experiments.features import extract
from captum_fam.experiments.protocols.dataset_info import class_names_of, fingerprint
from captum_fam.experiments.split_model import TwoPartModel
from captum_fam.similarity import similarity_name
from captum_fam.support import MemoryBank, Vote
from captum_fam.support.search import Backend

_SAME = 1e-6  # two embeddings of one image differ by less in their cosine


def bank_settings(bank: MemoryBank | Dataset[Any]) -> dict[str, Any]:
    """What tells one memory bank, or the dataset that it is made of, from another."""
    if not isinstance(bank, MemoryBank):
        return fingerprint(bank)
    return {
        "rows": len(bank),
        "similarity": similarity_name(bank.similarity),
        "sha256": sha256_of(bank.labels, bank.embeddings),
    }


def check_bank(bank: MemoryBank, model: TwoPartModel, dataset: Dataset[Any]) -> None:
    """Refuse a memory bank that does not fit model and queries.

    Raises:
        ValueError: for a bank of another similarity than the model's, or of other classes than the dataset's.
    """
    if similarity_name(bank.similarity) != similarity_name(model.similarity):
        raise ValueError(
            f"bank: it finds its neighbors by {similarity_name(bank.similarity)}, the model decides by "
            f"{similarity_name(model.similarity)}; make it anew with the model's similarity, or set that of the model "
            "(--similarity)"
        )
    names = class_names_of(dataset)
    n_classes = len(names) if names else max(bank.n_classes, int(labels_of(dataset).max()) + 1)
    if bank.n_classes != n_classes:
        raise ValueError(
            f"bank: it has {bank.n_classes} classes, the dataset {n_classes}; use a bank of images of the same classes"
        )


def items_in_bank(dataset: Dataset[Any], bank: MemoryBank | Dataset[Any]) -> list[int]:
    """The position of every query in the dataset of the bank, -1 where it is not there.

    The rows of a memory bank have no files: no query is known to be in it.
    """
    n_items = len(dataset)  # type: ignore[arg-type]
    if bank is dataset:
        return list(range(n_items))
    item_of = {path: item for item, path in enumerate(_paths(bank))}
    return [item_of.get(path, -1) for path in _paths(dataset)] or [-1] * n_items


def _paths(images: Dataset[Any] | MemoryBank) -> list[Path]:
    """The files of a dataset that knows them."""
    return [record.path.resolve() for record in getattr(images, "records", ())]


def make_bank(
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
    """The bank of a dataset, by all processes, or what an earlier run made of it.

    Args:
        model: a fast copy.
        dataset: items ``(image, label)`` or ``(image, label, boxes)``.
        folder: for the work; the bank is kept beside it, in ``bank.safetensors``.
        backend: of the search.
        batch_size: images that go through the model at once.
        num_workers: processes that read images.
        ranks: the processes that share the work.
        progress: show a progress bar.

    Warns:
        UserWarning: if images could not be used, which have no row.
    """
    path = folder.parent / "bank.safetensors"
    is_made = path.is_file()
    # No process writes before every process has looked.
    ranks.wait()
    if not is_made:
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
        )
        if ranks.is_first:
            names = class_names_of(dataset) or None
            # A similarity of the user's own is an object, which no file holds: the bank is read with it again.
            bank = MemoryBank(
                features.embeddings, features.labels, names, similarity=model.similarity, items=features.items
            )
            bank.skipped = features.skipped
            bank.save(path)
        ranks.wait()
    bank = MemoryBank.load(path, backend=backend, similarity=model.similarity)
    if bank.skipped and ranks.is_first:
        item, reason = next(iter(bank.skipped.items()))
        warnings.warn(
            f"left out of the bank, because they could not be used: {len(bank.skipped)}, the first is item {item}: "
            f"{reason}",
            stacklevel=2,
        )
    return bank


def seems_to_hold(bank: MemoryBank, query: Tensor, vote: Vote) -> bool:
    """Whether a query has the very embedding of a row of the bank.

    Args:
        bank: that has voted.
        query: embeddings ``(B, J)``.
        vote: of the bank for these queries.
    """
    nearest = bank.embeddings[vote.neighbor_indices[:, 0]]
    return bool((torch.cosine_similarity(query.double(), nearest.double()) >= 1 - _SAME).any())
