"""A memory bank on disk: the file of a finished bank, and the folder of an unfinished bank."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from captum_fam._files import need, write_all_or_nothing
from captum_fam.embedding import Batch, DatasetEmbedder, OnError, RowBlock
from captum_fam.embedding.forward import check_embedding

_HEADER = "captum-fam memory bank"


@dataclass(frozen=True)
class StoredBank:
    """What the file of a memory bank holds.

    Attributes:
        tensors: ``embeddings`` ``(M, J)``, ``labels`` ``(M,)`` and ``items`` ``(M,)``.
        metadata: everything else, as JSON can represent it: ``settings`` and ``skipped``.
    """

    tensors: dict[str, Tensor]
    metadata: dict[str, Any]


def write_bank(path: Path, bank: StoredBank) -> None:
    """Write a safetensors file, completely or not at all.

    Args:
        path: the file.
        bank: the content.

    Raises:
        ModuleNotFoundError: if safetensors is not installed.
        OSError: if the file cannot be written.
    """
    safetensors = _safetensors("safetensors.torch")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in bank.tensors.items()}
    with write_all_or_nothing(path.parent) as scratch:
        safetensors.save_file(tensors, scratch / path.name, {_HEADER: json.dumps(bank.metadata)})


def read_bank(path: Path) -> StoredBank:
    """Read a file that :func:`write_bank` wrote.

    Args:
        path: the file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is broken or no memory bank.
        ModuleNotFoundError: if safetensors is not installed.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such memory bank")
    safetensors = _safetensors("safetensors")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            header = (file.metadata() or {}).get(_HEADER)
            tensors = {name: file.get_tensor(name) for name in list(file.keys())}
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path}: broken, or no safetensors file ({error}); delete it") from error
    if header is None or tensors.keys() != {"embeddings", "labels", "items"}:
        raise ValueError(f"{path}: a safetensors file, but no memory bank")
    return StoredBank(tensors, json.loads(header))


def unfinished_folder(path: Path) -> Path:
    """The folder that holds the rows of a bank until the file of the bank is written."""
    return path.with_name(path.name + ".parts")


def make_bank(
    model: Callable[..., Any],
    dataset: Dataset[Any],
    path: Path | None,
    *,
    batch_size: int,
    num_workers: int,
    device: torch.device | str | None,
    on_error: OnError,
    save_every: int,
    progress: bool,
) -> StoredBank:
    """Embed every item of a data set; an earlier call with the same path is continued.

    Args:
        model: maps a batch of images to embeddings ``(B, J)``; in evaluation mode.
        dataset: items ``(image, label)`` or ``(image, label, boxes)``.
        path: the file of the bank; if it exists, it is read instead. None keeps nothing on disk.
        batch_size: items per batch.
        num_workers: processes that read images.
        device: the device of the model, to which images are moved; None does not move them.
        on_error: ``"raise"``, or ``"skip"`` items whose image cannot be read.
        save_every: how many batches are written to disk at once.
        progress: whether to show a progress bar.

    Raises:
        ValueError: for a model in training mode, NaN or inf in an embedding, a data set without a usable item, or
            stored rows of another model or data set.
        OSError: if the rows cannot be written.
    """
    if isinstance(model, nn.Module) and any(module.training for module in model.modules()):
        raise ValueError("model is in training mode, where an embedding depends on its batch; call model.eval() first")

    def compute(batch: Batch) -> dict[str, Tensor]:
        # In a caller's inference mode the embeddings would be inference tensors, which no gradient can pass through.
        with torch.inference_mode(False), torch.no_grad():
            images = batch.images if device is None else batch.images.to(device)
            return {"embeddings": check_embedding(model(images))}

    embedder = DatasetEmbedder(
        compute,
        dataset,
        None if path is None else unfinished_folder(path),
        batch_size=batch_size,
        num_workers=num_workers,
        on_error=on_error,
        batches_per_block=save_every,
        progress="memory bank" if progress else None,
    )
    if path is not None and path.is_file():
        finished = read_bank(path)
        embedder.check_rows(str(path), _as_block(finished), "embeddings")
        return finished
    embedder.check_stored("embeddings")
    rows = embedder.run()
    tensors = {"embeddings": rows.column("embeddings"), "labels": rows.labels, "items": rows.items}
    return StoredBank(tensors, {"skipped": rows.skipped})


def _as_block(bank: StoredBank) -> RowBlock:
    """The rows of a finished bank in the form in which the embedder checks rows."""
    skipped = {int(item): reason for item, reason in bank.metadata["skipped"].items()}
    tensors = bank.tensors
    n_items = len(tensors["items"]) + len(skipped)
    return RowBlock({"embeddings": tensors["embeddings"]}, tensors["items"], tensors["labels"], [], skipped, n_items)


def _safetensors(module: str) -> Any:
    """A module of safetensors, which is an optional package."""
    return need(module, extra="models", purpose="a memory bank on disk")
