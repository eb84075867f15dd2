"""How well an embedding tells the classes of episodes apart."""

from __future__ import annotations

import torch
from torch import Tensor

from captum_fam.experiments.data.episodes import EpisodeSampler
from captum_fam.experiments.training.training_run import Precision, autocast
from captum_fam.functional import unit
from captum_fam.images import normalize_bytes
from captum_fam.models import EmbeddingModel

_BATCH_SIZE = 256


@torch.no_grad()
def embed_bytes(
    net: EmbeddingModel, images: Tensor, device: torch.device | str = "cpu", precision: Precision = "float32"
) -> Tensor:
    """Embeddings ``(n, J)``, float32 on the CPU, of decoded images ``(n, 3, H, W)`` uint8."""
    parts = []
    for batch in images.split(_BATCH_SIZE):
        pixels = normalize_bytes(batch.to(device), net.mean, net.std).contiguous(memory_format=torch.channels_last)
        with autocast(device, precision):
            parts.append(net.model(pixels).float().cpu())
    return torch.cat(parts)


def few_shot_accuracy(
    embeddings: Tensor,
    labels: Tensor,
    *,
    way: int = 5,
    shot: int = 1,
    query: int = 15,
    episodes: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Accuracy over episodes by the cosine to the mean support of each class, and the half-width of its 95 % interval.

    Args:
        embeddings: ``(n, J)``.
        labels: ``(n,)``.
        way: classes per episode. Default: 5.
        shot: supports per class. Default: 1.
        query: queries per class. Default: 15.
        episodes: how many. Default: 2,000.
        seed: of the episodes. Default: 0.

    Returns:
        Mean and 1.96 standard errors over episodes, both as shares.
    """
    sampler = EpisodeSampler(labels, way, shot, query, episodes, seed)
    truth = torch.arange(way).repeat_interleave(query)
    right = torch.empty(episodes)
    for episode in sampler:
        prototypes = embeddings[episode.support].mean(1)
        scores = embeddings[episode.query.flatten()] @ unit(prototypes).T
        right[episode.number] = (scores.argmax(1) == truth).float().mean()
    return float(right.mean()), float(1.96 * right.std(correction=0) / episodes**0.5)
