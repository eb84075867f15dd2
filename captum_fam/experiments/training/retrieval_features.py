"""Embeddings of whole data sets for retrieval, and their recall."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from captum_fam._files import write_all_or_nothing
from captum_fam.embedding import Batch, DatasetEmbedder
from captum_fam.experiments.cut import trunk_of
from captum_fam.experiments.training.images import read_stored
from captum_fam.experiments.two_part_model import TwoPartModel
from captum_fam.metrics import recall_at_k
from captum_fam.models import EmbeddingModel

_NEIGHBORS = (1, 2, 4, 8)


def recalls_at(embeddings: Tensor, labels: Tensor, ks: Sequence[int] = _NEIGHBORS) -> dict[str, float]:
    """Mean Recall@K, where every embedding is a query and all other embeddings are its gallery.

    Args:
        embeddings: ``(n, J)``.
        labels: class of each embedding, ``(n,)``.
        ks: numbers of neighbors K. Default: 1, 2, 4, 8.

    Returns:
        Recalls by name, such as ``"recall@1"``.

    Raises:
        ValueError: if the shapes do not fit, or a K is below 1.

    Example:
        >>> recalls_at(torch.eye(2)[[0, 0, 1, 1]], torch.tensor([0, 0, 1, 1]), ks=(1,))
        {'recall@1': 1.0}
    """
    means = recall_at_k(embeddings, labels, ks).nanmean(0).tolist()
    return {f"recall@{k}": mean for k, mean in zip(ks, means, strict=True)}


def embed_dataset(
    model: nn.Module,
    net: EmbeddingModel,
    dataset: Dataset[Any],
    device: torch.device | str = "cpu",
    num_workers: int = 0,
    progress: bool = False,
) -> tuple[Tensor, Tensor]:
    """Compute the output of a module for every item of a data set.

    Args:
        model: module in eval mode, from normalized images ``(B, 3, H, W)`` to embeddings ``(B, J)``.
        net: model whose normalization the images get.
        dataset: items ``(image, label)`` or ``(image, label, boxes)``; images are float in [0, 1], of one size.
        device: device of the module. Default: the CPU.
        num_workers: number of processes that read images. Default: 0.
        progress: show a progress bar. Default: False.

    Returns:
        Embeddings ``(n, J)``, float32, and labels ``(n,)``, both on the CPU.

    Raises:
        UnreadableImageError: for an image that is missing or broken.
        ValueError: for images of different sizes.

    Example:
        >>> from captum_fam.demo import PlantedScenes
        >>> from captum_fam.models import create_model
        >>> net, scenes = create_model("conv4net"), PlantedScenes("novel", length=10, size=84)
        >>> embeddings, labels = embed_dataset(net.model, net, scenes)
        >>> embeddings.shape
        torch.Size([10, 64])
    """

    @torch.no_grad()
    def compute(batch: Batch) -> dict[str, Tensor]:
        images = net.normalize(batch.images.to(device)).contiguous(memory_format=torch.channels_last)
        return {"embeddings": model(images).float()}

    embedder = DatasetEmbedder(compute, dataset, num_workers=num_workers, progress="embed" if progress else None)
    rows = embedder.run()
    return rows.column("embeddings"), rows.labels


def pooled_features(
    net: EmbeddingModel,
    dataset: Dataset[Any],
    pooling: nn.Module | None = None,
    file: str | Path | None = None,
    *,
    device: torch.device | str = "cpu",
    num_workers: int = 0,
    progress: bool = False,
) -> tuple[Tensor, Tensor]:
    """Compute pooled activations of a data set, on which a head is trained.

    Args:
        net: model whose layer is pooled.
        dataset: items ``(image, label)`` or ``(image, label, boxes)``; images are float in [0, 1], of one size.
        pooling: module from activations ``(B, N, h, w)`` to ``(B, N)``; None for the pooling of the model. Default:
            None.
        file: path of a file for the features, which is read if it exists, and written otherwise; None for no file.
            Default: None.
        device: device of the computation. Default: the CPU.
        num_workers: number of processes that read images. Default: 0.
        progress: show a progress bar. Default: False.

    Returns:
        Features ``(n, N)``, float32, and labels ``(n,)``, both on the CPU.

    Raises:
        UnreadableImageError: for an image that is missing or broken.
        ValueError: if the model cannot be cut before its pooling, for images of different sizes, or for a file that is
            damaged or holds other features.

    Example:
        >>> from captum_fam.demo import PlantedScenes
        >>> from captum_fam.models import create_model
        >>> features, labels = pooled_features(create_model("conv4net"), PlantedScenes("novel", length=10, size=84))
        >>> features.shape
        torch.Size([10, 64])
    """
    if file is not None and Path(file).is_file():
        return read_stored(Path(file), dataset, "features", _are_features)
    parts = TwoPartModel(*trunk_of(net, pooling), size=net.size, mean=net.mean, std=net.std).fast_copy(device)
    trunk = nn.Sequential(parts.backbone, parts.tail.pooling)
    embedded = embed_dataset(trunk, net, dataset, device, num_workers, progress)
    if file is not None:
        with write_all_or_nothing(Path(file).parent) as scratch:
            torch.save(embedded, scratch / Path(file).name)
    return embedded


def _are_features(values: Tensor) -> bool:
    return values.is_floating_point() and values.dim() == 2
