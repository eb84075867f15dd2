"""A memory bank on disk: its file, and the pieces of one that is being made."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from captum_fam.embedding.batches import BatchLoader, OnError
from captum_fam.support import check_embedding

_HEADER = "captum-fam memory bank"
_N_PROBES = 4


@dataclass(frozen=True)
class Stored:
    """``embeddings``, ``labels`` and ``items``, and what JSON can say of them."""

    tensors: dict[str, Tensor]
    metadata: dict[str, Any]


def write(path: Path, stored: Stored) -> None:
    """Write a safetensors file that is whole from the moment it is there."""
    save_file = _safetensors().torch.save_file
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in stored.tensors.items()}
    try:
        save_file(tensors, scratch, {_HEADER: json.dumps(stored.metadata)})
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


def read(path: Path) -> Stored:
    """Read what :func:`write` wrote.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is broken or of another kind.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such memory bank")
    safetensors = _safetensors()
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            header = (file.metadata() or {}).get(_HEADER)
            tensors = {name: file.get_tensor(name) for name in list(file.keys())}
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path}: broken, or no safetensors file ({error}); delete it") from error
    if header is None or tensors.keys() != {"embeddings", "labels", "items"}:
        raise ValueError(f"{path}: a safetensors file, but no memory bank")
    return Stored(tensors, json.loads(header))


def embed_dataset(
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
) -> Stored:
    """Embed every item, or what an earlier run with the same ``path`` left to do."""
    if isinstance(model, nn.Module) and any(module.training for module in model.modules()):
        raise ValueError("model is in training mode, where an embedding depends on its batch; call model.eval() first")
    n_items = len(dataset)  # type: ignore[arg-type]

    def embed(images: Tensor) -> Tensor:
        with torch.inference_mode(False), torch.no_grad():
            return check_embedding(model(images if device is None else images.to(device))).cpu()

    if path is not None and path.is_file():
        whole = read(path)
        _check_same(path, whole, len(whole.tensors["items"]) + len(whole.metadata["skipped"]), embed, dataset)
        return whole
    pieces = _Pieces(None if path is None else piece_folder(path))
    if len(pieces):
        assert pieces.folder is not None
        first = pieces.first()
        _check_same(pieces.folder, first, first.metadata["n_items"], embed, dataset)
    start = pieces.end
    loader = BatchLoader(dataset, range(start, n_items), batch_size, num_workers, on_error)
    # The position up to which a batch goes beside its rows: an interrupt must not come between the two.
    pending: list[tuple[int, dict[str, Tensor]]] = []

    def store(end: int | None = None) -> None:
        if end is None:
            end = pending[-1][0] if pending else pieces.end
        if end > pieces.end and (pending or len(pieces)):
            skipped = {item: reason for item, reason in loader.skipped.items() if pieces.end <= item < end}
            rows = _join([tensors for _, tensors in pending])
            pieces.append(rows, {"end": end, "n_items": n_items, "skipped": skipped})
        pending.clear()

    bar = tqdm(total=n_items, initial=start, desc="memory bank", unit="img", disable=not progress)
    try:
        for number, batch in enumerate(loader if start < n_items else (), 1):
            embeddings = embed(batch.images)
            finite = embeddings.isfinite().all(1)
            if not finite.all():
                raise ValueError(f"model: the embedding of item {int(batch.indices[~finite][0])} contains NaN or inf")
            end = max([int(batch.indices[-1]), *loader.skipped]) + 1
            pending.append((end, {"embeddings": embeddings, "labels": batch.labels, "items": batch.indices}))
            bar.update(end - bar.n)
            if number % save_every == 0:
                store()
        store(n_items)
    finally:
        # Also when it was interrupted: nothing that was embedded is lost.
        store()
        bar.close()
    if not len(pieces):
        reason = next(iter(loader.skipped.values()), "it is empty")
        raise ValueError(f"dataset: none of its {n_items} items could be read: {reason}")
    return pieces.join()


def piece_folder(path: Path) -> Path:
    """Where the pieces of an unfinished bank are."""
    return path.with_name(path.name + ".parts")


class _Pieces:
    """Consecutive parts of a bank, on disk or, without a folder, in memory."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.end = 0
        self._pieces: list[Path | Stored] = []
        starts = {} if folder is None else {int(path.stem): path for path in folder.glob("*.safetensors")}
        while self.end in starts:
            path = starts[self.end]
            self._pieces.append(path)
            self.end = read(path).metadata["end"]

    def __len__(self) -> int:
        return len(self._pieces)

    def __iter__(self) -> Iterator[Stored]:
        return (piece if isinstance(piece, Stored) else read(piece) for piece in self._pieces)

    def first(self) -> Stored:
        """The first piece with rows."""
        return next((piece for piece in self if len(piece.tensors["items"])), next(iter(self)))

    def append(self, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
        piece = Stored(tensors, metadata)
        if self.folder is None:
            self._pieces.append(piece)
        else:
            path = self.folder / f"{self.end:010d}.safetensors"
            write(path, piece)
            self._pieces.append(path)
        self.end = metadata["end"]

    def join(self) -> Stored:
        skipped = {item: reason for piece in self for item, reason in piece.metadata["skipped"].items()}
        return Stored(_join([piece.tensors for piece in self]), {"skipped": skipped})


def _join(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    whole = [row for row in rows if len(row["items"])] or rows
    empty = torch.empty(0, dtype=torch.int64)
    return {
        name: torch.cat([row[name] for row in whole]) if whole else empty for name in ("embeddings", "labels", "items")
    }


def _check_same(
    path: Path, stored: Stored, n_items: int, embed: Callable[[Tensor], Tensor], dataset: Dataset[Any]
) -> None:
    """Refuse what another model or dataset made."""
    remedy = "delete it, or choose another path"
    if n_items != len(dataset):  # type: ignore[arg-type]
        raise ValueError(f"{path} was made of {n_items} items, dataset has {len(dataset)}; {remedy}")  # type: ignore[arg-type]
    kept = {name: tensor[:_N_PROBES] for name, tensor in stored.tensors.items()}
    if not len(kept["items"]):
        return
    (batch,) = BatchLoader(dataset, kept["items"].tolist())
    again = embed(batch.images)
    same = kept["embeddings"].shape == again.shape and torch.equal(kept["labels"], batch.labels)
    if same:
        # Another batch size changes the last bits of an embedding, another model more.
        tolerance = 0.03 if again.dtype in (torch.float16, torch.bfloat16) else 1e-3
        difference = (kept["embeddings"].double() - again.double()).norm(dim=1)
        same = bool((difference <= tolerance * again.double().norm(dim=1)).all())
    if not same:
        raise ValueError(f"{path} was made with another model or dataset: its first items differ; {remedy}")


def _safetensors() -> Any:
    try:
        import safetensors
        import safetensors.torch
    except ImportError as error:
        raise ImportError('a memory bank on disk needs safetensors: pip install "captum-fam[models]"') from error
    return safetensors
