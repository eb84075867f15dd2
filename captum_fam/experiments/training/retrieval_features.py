"""Embeddings of whole data sets for retrieval, and the recall among them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from captum_fam._files import write_all_or_nothing
from captum_fam.embedding import Batch, DatasetEmbedder
from captum_fam.experiments.cut import split_model
from captum_fam.metrics import recall_at_k
from captum_fam.models import EmbeddingModel

_RECALLS = (1, 2, 4, 8)


def recalls_at(embeddings: Tensor, labels: Tensor, ks: Sequence[int] = _RECALLS) -> dict[str, float]:
    """Mean Recall@K by name, every embedding a query and all others its gallery."""
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
    """The output of a module for every item of a data set: ``(n, J)`` float32 and labels ``(n,)``, both on the CPU.

    Args:
        model: in eval mode, takes normalized images ``(B, 3, H, W)``.
        net: gives the normalization.
        dataset: items ``(image, label)`` or ``(image, label, boxes)``, float in [0, 1], of one size.
        device: of the model. Default: the CPU.
        num_workers: processes that read images. Default: 0.
        progress: show a progress bar. Default: False.
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
    """Pooled activations of a data set, on which a head is trained: ``(n, N)``, and labels ``(n,)``.

    Args:
        net: whose layer is pooled.
        dataset: items ``(image, label)`` or ``(image, label, boxes)``, float in [0, 1], of one size.
        pooling: None: that of the model. Default: None.
        file: keeps the features; read instead of computing them, if it is there. Default: None.
        device: to compute on. Default: the CPU.
        num_workers: processes that read images. Default: 0.
        progress: show a progress bar. Default: False.

    Raises:
        ValueError: if the model cannot be cut before its pooling.
    """
    if file is not None and Path(file).is_file():
        features, labels = torch.load(file, weights_only=True)
        return features, labels
    parts = split_model(net).fast_copy(device)
    trunk = nn.Sequential(parts.backbone, pooling or parts.tail.pooling)
    embedded = embed_dataset(trunk, net, dataset, device, num_workers, progress)
    if file is not None:
        with write_all_or_nothing(Path(file).parent) as scratch:
            torch.save(embedded, scratch / Path(file).name)
    return embedded
