"""Does the model find the class? Recall@K and k-NN accuracy, one value a query."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from captum_fam.functional import widen
from captum_fam.similarity import SimilarityLike, get_similarity

if TYPE_CHECKING:
    from captum_fam.support.memory_bank import MemoryBank

# Similarities held at a time, 64 MiB in float32.
_BLOCK = 2**24


def recall_at_k(
    embeddings: Tensor, labels: Tensor, ks: Sequence[int] = (1, 2, 4, 8), similarity: SimilarityLike = "cosine"
) -> Tensor:
    """1 where one of the K most similar others is of the query's class, else 0: ``(n, len(ks))``.

    Every embedding is a query and all others are its gallery. Where others are exactly as similar as the best of the
    query's class the value is the chance that a random order of the equals puts one of them among the K: a collapsed
    model has the recall of guessing.

    Args:
        embeddings: ``(n, J)``.
        labels: n integers.
        ks: numbers of neighbors.
        similarity: name, :class:`~captum_fam.similarity.Similarity` or callable.

    Returns:
        float64 ``(n, len(ks))``; NaN for a query that is alone in its class, or whose embedding holds NaN or inf.

    Raises:
        ValueError: for shapes that do not fit, or a K below 1.

    Example:
        >>> embeddings, labels = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.8, 0.2]]), torch.tensor([0, 1, 0])
        >>> recall_at_k(embeddings, labels, ks=(1, 2))
        tensor([[0., 1.],
                [nan, nan],
                [0., 1.]], dtype=torch.float64)
    """
    if embeddings.dim() != 2 or labels.shape != embeddings.shape[:1]:
        raise ValueError(
            f"embeddings has shape {tuple(embeddings.shape)} and labels {tuple(labels.shape)}; "
            "they must be (n, J) and (n,)"
        )
    if min(ks) < 1:
        raise ValueError(f"ks must be at least 1 each, got {tuple(ks)}")
    measure = get_similarity(similarity)
    finite = embeddings.isfinite().all(1)
    rows = []
    for index in torch.arange(len(labels), device=labels.device).split(max(1, _BLOCK // max(1, len(labels)))):
        scores = measure.score(widen(embeddings[index]), widen(embeddings))
        same = labels[index, None] == labels
        same[torch.arange(len(index), device=index.device), index] = False
        other = (labels[index, None] != labels) & finite
        same &= finite
        best = scores.masked_fill(~same, -torch.inf).amax(1, keepdim=True)
        above = (other & (scores > best)).sum(1)
        equal = other & (scores == best)
        chance = torch.stack([_chance(k - above, (same & (scores == best)).sum(1), equal.sum(1)) for k in ks], 1)
        rows.append(chance.masked_fill((~same.any(1) | ~finite[index])[:, None], torch.nan))
    return torch.cat(rows)


def _chance(places: Tensor, right: Tensor, wrong: Tensor) -> Tensor:
    """That a random order of ``right`` and ``wrong`` equals has a right one in its first places."""
    places, right, wrong = places.double(), right.double(), wrong.double()
    taken = places.clamp(min=0).minimum(wrong)
    # 1 - C(wrong, places) / C(right + wrong, places)
    log_miss = (
        torch.lgamma(wrong + 1)
        - torch.lgamma(wrong - taken + 1)
        + torch.lgamma(right + wrong - taken + 1)
        - torch.lgamma(right + wrong + 1)
    )
    return torch.where(places <= 0, 0.0, torch.where(places > wrong, 1.0, 1 - log_miss.exp()))


def knn_accuracy(embeddings: Tensor, labels: Tensor, bank: MemoryBank, rows: Tensor | None = None) -> Tensor:
    """1 where the nearest rows of a memory bank vote for the query's class, else 0: ``(B,)``.

    Args:
        embeddings: queries, ``(B, J)``.
        labels: their classes, ``(B,)``.
        bank: with its number of neighbors and temperature.
        rows: where in the bank the queries themselves are, ``(B,)``, to leave each out of its own vote.

    Raises:
        ValueError: for queries that do not fit the bank, or labels of another number.

    Example:
        >>> bank = MemoryBank(torch.eye(2), [0, 1], k=1)
        >>> knn_accuracy(torch.tensor([[2.0, 1.0], [2.0, 1.0]]), torch.tensor([0, 1]), bank)
        tensor([1., 0.])
    """
    voters = bank if rows is None else bank.using(exclude=rows)
    return right(voters.classify(embeddings).predicted, labels)


def right(predicted: Tensor, target: Tensor) -> Tensor:
    """1 where the classes agree, else 0: ``(B,)`` float32.

    Raises:
        ValueError: if the shapes differ.
    """
    if predicted.shape != target.shape:
        raise ValueError(
            f"predicted has shape {tuple(predicted.shape)} and target {tuple(target.shape)}; give one class each"
        )
    return (predicted == target.to(predicted.device)).float()
