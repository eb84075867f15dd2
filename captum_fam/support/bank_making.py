"""Embedding a data set of any kind, with a model of any kind, for a memory bank."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader

from captum_fam._files import sha256_of_weights
from captum_fam._text import printable
from captum_fam._warnings import warn_user
from captum_fam.embedding import Batch, DatasetEmbedder, EmbeddedDataset, OnError, RowBlock
from captum_fam.embedding.forward import check_embedding, device_of
from captum_fam.embedding.labeled_dataset import LabeledDataset, take_loader_apart
from captum_fam.embedding.ranks import Ranks
from captum_fam.found_preprocessing import found_or_assumed
from captum_fam.similarity import SimilarityLike
from captum_fam.support.bank_file import StoredBank

# The rows that DatasetEmbedder.check_rows gets: at least as many as it compares.
_N_CHECKED = 16


@dataclass(frozen=True)
class BankMaker:
    """A model and a data set of which a memory bank is made.

    Attributes:
        embed: maps a batch of images to embeddings ``(B, J)``.
        dataset: items ``(image, class index)``.
        batch_size: items per batch.
        num_workers: processes that read images.
        device: the device of the model, to which images are moved; None does not move them.
        similarity: the similarity with which the model decides; None if it is not known.
        on_error: ``"raise"``, or ``"skip"`` items whose image cannot be read.
        save_every: how many batches are written to disk at once.
        progress: whether to show a progress bar.
    """

    embed: Callable[..., Any]
    dataset: LabeledDataset
    batch_size: int
    num_workers: int
    device: torch.device | str | None
    similarity: SimilarityLike | None
    on_error: OnError
    save_every: int
    progress: bool

    @property
    def weights(self) -> str | None:
        """SHA-256 of the weights of the model; None for a function, whose weights cannot be seen."""
        return sha256_of_weights(self.embed) if isinstance(self.embed, nn.Module) else None

    def embedder(self, folder: Path | None, ranks: Ranks) -> DatasetEmbedder:
        """The embedder of all items; an earlier run is continued.

        Args:
            folder: the folder of the finished rows; None keeps nothing on disk.
            ranks: the processes that share the work.
        """
        return DatasetEmbedder(
            self._compute,
            self.dataset,
            folder,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            on_error=self.on_error,
            batches_per_block=self.save_every,
            ranks=ranks,
            progress="memory bank" if self.progress and ranks.is_first else None,
        )

    def check_finished(self, where: str, bank: StoredBank, n_items: int) -> None:
        """Embed a few items of a finished bank again, to refuse rows of another model or data set.

        Args:
            where: the file of the bank, for the message.
            bank: rows and class names.
            n_items: the number of items of the data set of which the bank was made.

        Raises:
            ValueError: if the rows differ, or the data set has another length.
        """
        tensors, labels = bank.tensors, bank.tensors["labels"]
        names = bank.settings["class_names"]
        if self.dataset.class_names is None and all(name.lstrip("-").isdecimal() for name in names):
            # The data set gives numbers, which the file holds as names of classes.
            labels = torch.tensor([int(names[label]) for label in labels[:_N_CHECKED].tolist()])
        first = {"embeddings": tensors["embeddings"][:_N_CHECKED]}
        block = RowBlock(first, tensors["items"][:_N_CHECKED], labels[:_N_CHECKED], [], bank.skipped, n_items)
        self.embedder(None, Ranks()).check_rows(where, block, "embeddings")

    def _compute(self, batch: Batch) -> dict[str, Tensor]:
        # In a caller's inference mode the embeddings would be inference tensors, which no gradient can pass through.
        with torch.inference_mode(False), torch.no_grad():
            images = batch.images if self.device is None else batch.images.to(self.device)
            return {"embeddings": check_embedding(self.embed(images))}


def bank_maker(
    model: Any,
    dataset: Any,
    *,
    preprocess: Callable[[Any], Tensor] | None = None,
    image_key: str | None = None,
    label_key: str | None = None,
    class_names: Sequence[str] | None = None,
    batch_size: int | None = None,
    num_workers: int | None = None,
    device: torch.device | str | None = None,
    on_error: OnError = "raise",
    save_every: int = 16,
    progress: bool = True,
) -> BankMaker:
    """Find out how images are read and embedded. The arguments are those of ``MemoryBank.from_dataset``.

    Raises:
        TypeError: for a model or data set of a kind that is not known.
        ValueError: for a model in training mode, or items that are not as expected.
    """
    embed, own_preprocess, similarity = _take_model_apart(model)
    if isinstance(embed, nn.Module):
        if any(module.training for module in embed.modules()):
            raise ValueError(
                "model is in training mode, where an embedding depends on its batch; call model.eval() first"
            )
        if device is None:
            device = device_of(embed)
    collate = None
    if isinstance(dataset, DataLoader):
        loader = take_loader_apart(dataset)
        dataset, collate = loader.dataset, loader.collate
        batch_size = loader.batch_size if batch_size is None else batch_size
        num_workers = loader.num_workers if num_workers is None else num_workers
    labeled = LabeledDataset(
        dataset,
        preprocess=preprocess or own_preprocess,
        on_tensors=preprocess is not None,
        class_names=class_names,
        image_key=image_key,
        label_key=label_key,
        collate=collate,
    )
    return BankMaker(
        embed,
        labeled,
        64 if batch_size is None else batch_size,
        num_workers or 0,
        device,
        similarity,
        on_error,
        save_every,
        progress,
    )


def split_options(model: Any, dataset: Any, options: Mapping[str, Any]) -> tuple[BankMaker, dict[str, Any]]:
    """Split the arguments of ``MemoryBank.from_dataset`` into those of the making, and those of the bank.

    Args:
        model: the argument of that name.
        dataset: the argument of that name.
        options: all other arguments.

    Returns:
        The maker; and the options of the bank, with the class names of the data set and the similarity of the model.

    Raises:
        TypeError: for a model or data set of a kind that is not known.
        ValueError: for a model in training mode, or items that are not as expected.
    """
    making = inspect.signature(bank_maker).parameters
    maker = bank_maker(model, dataset, **{name: value for name, value in options.items() if name in making})
    rest = {name: value for name, value in options.items() if name not in making}
    if maker.dataset.class_names is not None:
        rest["class_names"] = maker.dataset.class_names
    if maker.similarity is not None:
        rest.setdefault("similarity", maker.similarity)
    return maker, rest


def stored_rows(rows: EmbeddedDataset) -> StoredBank:
    """The rows of a data set as the content of a bank without settings.

    Args:
        rows: the rows, with the column ``"embeddings"``.
    """
    tensors = {"embeddings": rows.column("embeddings"), "labels": rows.labels, "items": rows.items}
    return StoredBank(tensors, {}, rows.skipped)


def warn_of_skipped(skipped: dict[int, str], stacklevel: int) -> None:
    """Warn of items that have no row, if there are some.

    Args:
        skipped: the reasons by position.
        stacklevel: how many calls above the caller the line is that the warning names.
    """
    if skipped:
        index, reason = next(iter(skipped.items()))
        warn_user(
            f"left out of the bank, because they could not be used: {len(skipped)}, the first is item {index}: "
            f"{printable(reason)}",
            stacklevel + 1,
        )


def unfinished_folder(path: Path) -> Path:
    """The folder that holds the rows of a bank until the file of the bank is written."""
    return path.with_name(path.name + ".parts")


def _take_model_apart(model: Any) -> tuple[Callable[..., Any], Callable[[Image.Image], Tensor], SimilarityLike | None]:
    """The function from images to embeddings, the preprocessing that belongs to it, and its similarity."""
    # captum_fam.models imports this package, so that an EmbeddingModel is recognized by its attributes.
    is_embedding_model = hasattr(model, "preprocessing") and hasattr(model, "layer")
    if isinstance(model, nn.Module) or (callable(model) and not is_embedding_model and not isinstance(model, type)):
        return model, _AssumedPreprocessing(model), None
    if not is_embedding_model:
        # Imported here, so that models are loaded only where one is named.
        from captum_fam import create_model

        model = create_model(model)
    return model.model, model.preprocessing, model.similarity


class _AssumedPreprocessing:
    """The preprocessing of a network, which is found at the first image of PIL."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._found: Any = None

    def __call__(self, image: Image.Image) -> Tensor:
        if self._found is None:
            self._found, note = found_or_assumed(self._model)
            # Worker processes get a copy of this object, and need no copy of the network.
            self._model = None
            if note is not None:
                warn_user(note, 2)
        tensor: Tensor = self._found(image)
        return tensor
