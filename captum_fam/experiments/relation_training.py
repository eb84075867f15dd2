"""Training of a relation head on frozen embeddings."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from captum_fam.experiments.fitting import fit_adamw
from captum_fam.similarity import RelationHead


def train_relation_head(
    embeddings: Tensor,
    labels: Tensor,
    width: int = 64,
    *,
    way: int = 16,
    steps: int = 600,
    learning_rate: float = 1e-3,
    weight_decay: float = 1e-2,
    seed: int = 0,
) -> RelationHead:
    """Train a relation head so that a query is most similar to the support of its own class.

    Every step is an episode of ``way`` classes with one query and one support each. The loss is the cross-entropy of a
    softmax over the supports, which AdamW minimizes. (Relation networks regress a similarity of 0 or 1 instead.)

    Args:
        embeddings: embeddings of the training images, ``(n, J)``.
        labels: class of each image, any integers ``(n,)``.
        width: number of hidden units. Default: 64.
        way: classes per step; all classes if there are fewer. Default: 16.
        steps: number of steps of the optimizer. Default: 600.
        learning_rate: initial learning rate, which falls to zero along a cosine. Default: 1e-3.
        weight_decay: weight decay of the optimizer. Default: 1e-2.
        seed: seed of the initial weights and of the episodes. Default: 0.

    Returns:
        The head in eval mode, without gradients, for ``Learned(head)``.

    Raises:
        ValueError: for embeddings of another shape or that are all zero, labels of another length, fewer than two
            classes with two images, or steps of fewer than two classes.

    Example:
        >>> from captum_fam.similarity import Learned
        >>> embeddings, labels = torch.rand(40, 8), torch.arange(40) % 4
        >>> similarity = Learned(train_relation_head(embeddings, labels, steps=2))
        >>> similarity(embeddings[:2], embeddings[:3]).shape
        torch.Size([2, 3])
    """
    if embeddings.dim() != 2 or labels.shape != embeddings.shape[:1]:
        raise ValueError(
            f"embeddings must be (n, J) and labels (n,), got {tuple(embeddings.shape)} and {tuple(labels.shape)}"
        )
    if way < 2:
        raise ValueError(f"way must be at least 2, because a step tells classes apart, got {way}")
    embeddings, labels = embeddings.detach().float().cpu(), labels.cpu()
    members = [rows for label in labels.unique() if len(rows := (labels == label).nonzero()[:, 0]) > 1]
    if len(members) < 2:
        raise ValueError(f"labels must be of at least two classes with two images each, got {len(members)} such")
    scale = float(embeddings.square().mean().sqrt())
    if not math.isfinite(scale) or not scale:
        raise ValueError(f"embeddings must be finite and not all zero, got a root mean square of {scale}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = RelationHead(embeddings.shape[1], width, scale)
    generator = torch.Generator().manual_seed(seed)
    way = min(way, len(members))

    def pick(size: int, count: int) -> Tensor:
        return torch.randperm(size, generator=generator)[:count]

    def loss_of(_: int) -> Tensor:
        chosen = [members[index] for index in pick(len(members), way).tolist()]
        query, support = embeddings[torch.stack([rows[pick(len(rows), 2)] for rows in chosen])].unbind(1)
        # Every query beside every support of the episode.
        scores = head(query.repeat_interleave(way, 0), support.repeat(way, 1)).view(way, way)
        return cross_entropy(scores, torch.arange(way))

    fit_adamw(head.parameters(), range(steps), loss_of, learning_rate, weight_decay)
    return head.eval().requires_grad_(False)
