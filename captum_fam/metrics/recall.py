"""Does the model find images of the same class? Recall@K, one value per query."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from captum_fam.functional import widen
from captum_fam.similarity import SimilarityLike, get_similarity
from captum_fam.support.checks import whole_number
from captum_fam.support.labels import Labels, encode_labels

# The number of similarities that are in memory at the same time: 64 MiB in float32.
_BLOCK_SIZE = 2**24


def recall_at_k(
    embeddings: Tensor, labels: Labels, ks: Sequence[int] = (1, 2, 4, 8), similarity: SimilarityLike = "cosine"
) -> Tensor:
    """1 where one of the K embeddings most similar to the query is of the class of the query, and 0 elsewhere.

    Recall@K of Jegou et al. (PAMI 2011), as in metric learning: every embedding is a query, and all other embeddings
    are the gallery of the query. Embeddings of other classes may be exactly as similar to the query as the best
    embedding of the class of the query. Then the value is the probability that a random order of these equals puts the
    class of the query among the first K. So a model that gives the same embedding to all images has the recall of
    guessing.

    Args:
        embeddings: ``(n, J)``.
        labels: the class of each embedding, ``(n,)``: names, or whole numbers of any type and size.
        ks: numbers of neighbors K, whole numbers. Default: 1, 2, 4, 8.
        similarity: name, :class:`~captum_fam.similarity.Similarity` or callable. Default: ``"cosine"``.

    Returns:
        float64 ``(n, len(ks))``; NaN for a query that is alone in its class, and for a query whose embedding holds NaN
        or inf.

    Raises:
        TypeError: if ``embeddings`` is no tensor, a K is no whole number, or labels are neither whole numbers nor
            names.
        ValueError: if the shapes do not fit, if there is no K or a K below 1, or for an unknown similarity.

    Example:
        >>> embeddings, labels = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.8, 0.2]]), torch.tensor([0, 1, 0])
        >>> recall_at_k(embeddings, labels, ks=(1, 2))
        tensor([[0., 1.],
                [nan, nan],
                [0., 1.]], dtype=torch.float64)
    """
    if not isinstance(embeddings, Tensor) or not embeddings.is_floating_point():
        kind = embeddings.dtype if isinstance(embeddings, Tensor) else type(embeddings).__name__
        raise TypeError(f"embeddings must be a floating-point tensor (n, J), got {kind}")
    if embeddings.dim() != 2:
        raise ValueError(f"embeddings must be (n, J), got shape {tuple(embeddings.shape)}")
    indices, _ = encode_labels(labels, None, len(embeddings))
    classes = indices.to(embeddings.device)
    if not isinstance(ks, Iterable):
        raise TypeError(f"ks must be a list of whole numbers, got {ks!r}")
    counts = [whole_number(k, "each of ks") for k in ks]
    if not counts:
        raise ValueError("ks is empty; pass one number of neighbors at least")
    measure = get_similarity(similarity)
    finite = embeddings.isfinite().all(1)
    rows = []
    for index in torch.arange(len(classes), device=classes.device).split(max(1, _BLOCK_SIZE // max(1, len(classes)))):
        scores = measure.score(widen(embeddings[index]), widen(embeddings))
        same = classes[index, None] == classes
        # A query is not in its own gallery.
        same[torch.arange(len(index), device=index.device), index] = False
        other = (classes[index, None] != classes) & finite
        same &= finite
        best = scores.masked_fill(~same, -torch.inf).amax(1, keepdim=True)
        # The wrong neighbors above the best right neighbor take their places for certain, equal neighbors by chance.
        above = (other & (scores > best)).sum(1)
        equal = other & (scores == best)
        chance = torch.stack([_chance(k - above, (same & (scores == best)).sum(1), equal.sum(1)) for k in counts], 1)
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
