"""A memory bank on disk: its file, and the folder of a bank that is being made."""

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
        metadata: the rest, as JSON can hold it: ``settings`` and ``skipped``.
    """

    tensors: dict[str, Tensor]
    metadata: dict[str, Any]


def write_bank(path: Path, bank: StoredBank) -> None:
    """Write a safetensors file, all of it or nothing.

    Raises:
        ModuleNotFoundError: without safetensors.
    """
    safetensors = _safetensors("safetensors.torch")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in bank.tensors.items()}
    with write_all_or_nothing(path.parent) as scratch:
        safetensors.save_file(tensors, scratch / path.name, {_HEADER: json.dumps(bank.metadata)})


def read_bank(path: Path) -> StoredBank:
    """Read what :func:`write_bank` wrote.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is broken or of another kind.
        ModuleNotFoundError: without safetensors.
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
    """Where the rows of a bank are until its file is written."""
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
    """Embed every item of a data set, or what an earlier call with the same path left to do.

    Args:
        model: maps a batch of images to embeddings ``(B, J)``; in evaluation mode.
        dataset: items ``(image, label)`` or ``(image, label, boxes)``.
        path: the file of the bank, read where it is there; None keeps nothing on disk.
        batch_size: items per batch.
        num_workers: processes that read.
        device: where the model is; None leaves the images where they are.
        on_error: ``"raise"``, or ``"skip"`` items whose image cannot be read.
        save_every: batches between two writes.
        progress: show a progress bar.

    Raises:
        ValueError: for a model in training mode, NaN or inf in an embedding, or a file of another model or data set.
    """
    if isinstance(model, nn.Module) and any(module.training for module in model.modules()):
        raise ValueError("model is in training mode, where an embedding depends on its batch; call model.eval() first")

    def compute(batch: Batch) -> dict[str, Tensor]:
        # A caller's inference mode would make tensors that no later computation can be differentiated through.
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
        whole = read_bank(path)
        embedder.check_rows(str(path), _as_block(whole), "embeddings")
        return whole
    embedder.check_stored("embeddings")
    rows = embedder.run()
    tensors = {"embeddings": rows.column("embeddings"), "labels": rows.labels, "items": rows.items}
    return StoredBank(tensors, {"skipped": rows.skipped})


def _as_block(bank: StoredBank) -> RowBlock:
    """The rows of a finished bank, to compare some of them."""
    skipped = {int(item): reason for item, reason in bank.metadata["skipped"].items()}
    tensors = bank.tensors
    n_items = len(tensors["items"]) + len(skipped)
    return RowBlock({"embeddings": tensors["embeddings"]}, tensors["items"], tensors["labels"], [], skipped, n_items)


def _safetensors(module: str) -> Any:
    return need(module, extra="models", purpose="a memory bank on disk")
