"""The hits of a search engine as supports."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from captum_fam.support.support_per_query import SupportPerQuery


class Neighbors(SupportPerQuery):
    """The hits of a search for each of B queries, by FAISS, a vector database or any other search engine.

    The engine gives the ids of the hits. The embeddings of the hits are taken from the gallery in memory, or from a
    function that looks up ids.

    Args:
        ids: the ids of the hits, ``(B, K)``, the most similar first: positions in ``embeddings``, or whatever ids
            ``fetch`` takes. -1 says that a search has found fewer than K, as FAISS does; it is no support.
        embeddings: the gallery, ``(M, J)``. Default: None, pass ``fetch`` instead.
        fetch: maps n ids ``(n,)`` to embeddings ``(n, J)``. Default: None, pass ``embeddings`` instead.
        labels: the class of each item of the gallery, ``(M,)``, or of each hit, ``(B, K)``. Default: None, all hits
            belong to one class.
        class_names: C names. Default: the class indices, or ``("support",)`` without labels.

    Attributes:
        ids: ``(B, K)``.

    Raises:
        ValueError: if ``embeddings`` and ``fetch`` are both given or both missing, if ``ids`` are no whole numbers
            ``(B, K)`` or not in the gallery, if a query has no hit, if ``fetch`` returns another shape, or if labels or
            names do not fit.

    Example:
        >>> gallery = torch.eye(3)
        >>> hits = Neighbors(torch.tensor([[0, 2], [1, 0]]), gallery, labels=torch.tensor([0, 1, 1]))
        >>> hits.compare(torch.tensor([[0.8, 0.0, 0.6], [0.0, 1.0, 0.0]])).scores
        tensor([[0.8000, 0.6000],
                [0.0000, 1.0000]])
    """

    def __init__(
        self,
        ids: Tensor | Sequence[Sequence[int]],
        embeddings: Tensor | None = None,
        *,
        fetch: Callable[[Tensor], Tensor] | None = None,
        labels: Tensor | Sequence[int] | None = None,
        class_names: Sequence[str] | None = None,
    ) -> None:
        ids = torch.as_tensor(ids)
        if ids.dim() != 2 or not ids.numel() or ids.is_floating_point():
            raise ValueError(f"ids must be whole numbers (B, K), got {ids.dtype} of shape {tuple(ids.shape)}")
        if (embeddings is None) == (fetch is None):
            raise ValueError("pass either embeddings, the gallery (M, J), or fetch, a function of ids")
        is_hit = ids >= 0 if embeddings is not None else ids != -1
        if not is_hit.any(1).all():
            raise ValueError(f"ids: query {int((~is_hit.any(1)).nonzero()[0])} has no hit at all")
        if embeddings is None:
            assert fetch is not None
            hits = torch.as_tensor(fetch(ids[is_hit]))
        else:
            gallery = torch.as_tensor(embeddings)
            if ids.max() >= len(gallery) or ids.min() < -1:
                raise ValueError(f"ids must be -1 or 0..{len(gallery) - 1}, got {int(ids.min())}..{int(ids.max())}")
            hits = gallery[ids[is_hit].to(gallery.device)]
        if hits.dim() != 2 or len(hits) != int(is_hit.sum()):
            source = "fetch must give" if embeddings is None else "embeddings must give"
            raise ValueError(f"{source} (n, J) for {int(is_hit.sum())} ids, got shape {tuple(hits.shape)}")
        vectors = hits.new_zeros(*ids.shape, hits.shape[1])
        vectors[is_hit.to(hits.device)] = hits
        if labels is not None:
            labels = torch.as_tensor(labels)
            if labels.dim() == 1:
                labels = labels[ids.clamp_min(0).to(labels.device)]
        super().__init__(vectors, labels, class_names, is_support=is_hit)
        self.ids = ids
