"""Does the model find images of the same class? Recall@K, one value per query."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from captum_fam.functional import widen
from captum_fam.similarity import SimilarityLike, get_similarity

# The number of similarities that are in memory at the same time: 64 MiB in float32.
_BLOCK_SIZE = 2**24


def recall_at_k(
    embeddings: Tensor, labels: Tensor, ks: Sequence[int] = (1, 2, 4, 8), similarity: SimilarityLike = "cosine"
) -> Tensor:
    """1 where one of the K embeddings most similar to the query is of the class of the query, and 0 elsewhere.

    Recall@K of Jegou et al. (PAMI 2011), as in metric learning: every embedding is a query, and all other embeddings
    are the gallery of the query. Embeddings of other classes may be exactly as similar to the query as the best
    embedding of the class of the query. Then the value is the probability that a random order of these equals puts the
    class of the query among the first K. So a model that gives the same embedding to all images has the recall of
    guessing.

    Args:
        embeddings: ``(n, J)``.
        labels: class of each embedding, integers ``(n,)``.
        ks: numbers of neighbors K. Default: 1, 2, 4, 8.
        similarity: name, :class:`~captum_fam.similarity.Similarity` or callable. Default: ``"cosine"``.

    Returns:
        float64 ``(n, len(ks))``; NaN for a query that is alone in its class, and for a query whose embedding holds NaN
        or inf.

    Raises:
        ValueError: if the shapes do not fit, if a K is below 1, or for an unknown similarity.

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
    for index in torch.arange(len(labels), device=labels.device).split(max(1, _BLOCK_SIZE // max(1, len(labels)))):
        scores = measure.score(widen(embeddings[index]), widen(embeddings))
        same = labels[index, None] == labels
        # A query is not in its own gallery.
        same[torch.arange(len(index), device=index.device), index] = False
        other = (labels[index, None] != labels) & finite
        same &= finite
        best = scores.masked_fill(~same, -torch.inf).amax(1, keepdim=True)
        # The wrong neighbors above the best right neighbor take their places for certain, equal neighbors by chance.
        above = (other & (scores > best)).sum(1)
        equal = other & (scores == best)
        chance = torch.stack([_chance(k - above, (same & (scores == best)).sum(1), equal.sum(1)) for k in ks], 1)
        rows.append(chance.masked_fill((~same.any(1) | ~finite[index])[:, None], torch.nan))
    return torch.cat(rows)


def _chance(places: Tensor, right: Tensor, wrong: Tensor) -> Tensor:
    """The probability that a random order of equals has a right neighbor among its first ``places``.

    Args:
        places: number of places that are left for the equals, ``(B,)``; may be zero or negative.
        right: number of equals of the class of the query, ``(B,)``.
        wrong: number of equals of other classes, ``(B,)``.

    Returns:
        float64 ``(B,)`` in [0, 1].
    """
    places, right, wrong = places.double(), right.double(), wrong.double()
    taken = places.clamp(min=0).minimum(wrong)
    # All places are wrong with probability C(wrong, places) / C(right + wrong, places). Logarithms keep the factorials
    # from overflowing.
    log_miss = (
        torch.lgamma(wrong + 1)
        - torch.lgamma(wrong - taken + 1)
        + torch.lgamma(right + wrong - taken + 1)
        - torch.lgamma(right + wrong + 1)
    )
    return torch.where(places <= 0, 0.0, torch.where(places > wrong, 1.0, 1 - log_miss.exp()))
