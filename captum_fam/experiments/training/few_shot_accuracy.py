"""Accuracy of an embedding over few-shot episodes."""

from __future__ import annotations

import torch
from torch import Tensor

from captum_fam.experiments.data.episodes import EpisodeSampler
from captum_fam.experiments.training.few_shot_recipe import TEST_QUERIES
from captum_fam.experiments.training.training_run import Precision, autocast
from captum_fam.functional import unit
from captum_fam.images import normalize_bytes
from captum_fam.models import EmbeddingModel

_BATCH_SIZE = 256


@torch.no_grad()
def embed_bytes(
    net: EmbeddingModel, images: Tensor, device: torch.device | str = "cpu", precision: Precision = "float32"
) -> Tensor:
    """Embed decoded images.

    Args:
        net: the model, in eval mode, on ``device``.
        images: ``(n, 3, H, W)`` uint8, on any device.
        device: device of the model. Default: the CPU.
        precision: precision of the forward pass. Default: ``"float32"``.

    Returns:
        Embeddings ``(n, J)``, float32 on the CPU.

    Raises:
        ValueError: for an unknown precision, or ``"float16"`` on a CPU.

    Example:
        >>> from captum_fam.models import create_model
        >>> embed_bytes(create_model("conv4net"), torch.zeros(2, 3, 84, 84, dtype=torch.uint8)).shape
        torch.Size([2, 64])
    """
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
    query: int = TEST_QUERIES,
    episodes: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Mean accuracy over episodes, in which the cosine to the mean support of each class decides.

    Args:
        embeddings: ``(n, J)``.
        labels: class of each embedding, ``(n,)``.
        way: classes per episode. Default: 5.
        shot: supports per class. Default: 1.
        query: queries per class. Default: 15.
        episodes: number of episodes. Default: 2,000.
        seed: seed of the episodes. Default: 0.

    Returns:
        The mean over episodes, and half the width of its 95 % interval (1.96 standard errors), both as shares.

    Raises:
        ValueError: if there are too few classes, or too few embeddings of a class.

    Example:
        >>> labels = torch.arange(40) % 5
        >>> few_shot_accuracy(torch.eye(5)[labels], labels, query=3, episodes=10)
        (1.0, 0.0)
    """
    sampler = EpisodeSampler(labels, way, shot, query, episodes, seed)
    truth = torch.arange(way).repeat_interleave(query)
    accuracies = torch.empty(episodes)
    for episode in sampler:
        prototypes = embeddings[episode.support].mean(1)
        scores = embeddings[episode.query.flatten()] @ unit(prototypes).T
        accuracies[episode.number] = (scores.argmax(1) == truth).float().mean()
    return float(accuracies.mean()), float(1.96 * accuracies.std(correction=0) / episodes**0.5)
