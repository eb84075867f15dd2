"""The k-NN accuracy of a network, with and without its projection head."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from captum_fam.embedding.forward import check_embedding
from captum_fam.experiments.training.contrastive.grouped_encoder import GroupedEncoder
from captum_fam.experiments.training.retrieval_features import embed_dataset
from captum_fam.experiments.training.training_run import autocast
from captum_fam.models import EmbeddingModel
from captum_fam.support import MemoryBank


def knn_accuracies(
    encoder: GroupedEncoder,
    net: EmbeddingModel,
    bank: Dataset[Any],
    val: Dataset[Any],
    k: int,
    device: torch.device | str,
    num_workers: int = 0,
) -> dict[str, float]:
    """The share of images whose class a memory bank of other images finds.

    Votes are weighted by ``exp(s / 0.07)``, as in :class:`~captum_fam.MemoryBank`.

    Args:
        encoder: network and head, in eval mode.
        net: model whose normalization and similarity count.
        bank: items ``(image, label)`` or ``(image, label, boxes)`` that vote; images float in [0, 1], of one size.
        val: items in the same form, whose class is asked.
        k: number of neighbors; all vote if there are fewer.
        device: device of the network.
        num_workers: number of processes that read images. Default: 0.

    Returns:
        ``"val_knn"`` for the embeddings of the network, as it is saved; and ``"val_knn_head"`` for those behind an
        added head, if there is one.
    """
    networks: dict[str, nn.Module] = {"val_knn": nn.Identity()}
    if not isinstance(encoder.head, nn.Identity):
        networks["val_knn_head"] = encoder.head
    with autocast(device, encoder.precision):
        rows, val_rows = (
            embed_dataset(_Outputs(encoder.model, list(networks.values())), net, data, device, num_workers)
            for data in (bank, val)
        )
    with torch.no_grad():
        width = check_embedding(encoder.model(net.normalize(bank[0][0])[None].to(device))).shape[1]
    accuracies = {}
    for name, part in zip(networks, (slice(width), slice(width, None)), strict=False):
        votes = MemoryBank(rows[0][:, part], rows[1], k=k, similarity=net.similarity)
        predicted = rows[1].unique()[votes.classify(val_rows[0][:, part]).predicted]
        accuracies[name] = int((predicted == val_rows[1]).sum()) / len(predicted)
    return accuracies


class _Outputs(nn.Module):
    """The embedding of a network, seen through several heads, side by side."""

    def __init__(self, model: nn.Module, heads: list[nn.Module]) -> None:
        super().__init__()
        self.model = model
        self.heads = nn.ModuleList(heads)

    def forward(self, images: Tensor) -> Tensor:
        embedding = check_embedding(self.model(images))
        return torch.cat([head(embedding).float() for head in self.heads], 1)
