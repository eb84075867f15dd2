"""The neighbors that any search engine has found, as supports."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from captum_fam.support.support_per_query import SupportPerQuery


class Neighbors(SupportPerQuery):
    """The hits of a search for each of B queries: FAISS, a vector database, or any other engine.

    The engine gives ids; the embeddings of the hits come from the gallery, or from a function that looks them up.

    Args:
        ids: of the hits, ``(B, K)``, the most similar first: positions in ``embeddings``, or what ``fetch`` takes.
        embeddings: the gallery, ``(M, J)``.
        fetch: gives the embeddings ``(n, J)`` of n ids, where the gallery is not in memory.
        labels: the class of each item of the gallery, ``(M,)``; or of each hit, ``(B, K)``; default: all hits are of
            one class.
        class_names: C names.

    Raises:
        ValueError: unless there is either a gallery or a function, or if the ids are not ``(B, K)``.

    Example:
        >>> gallery = torch.eye(3)
        >>> hits = Neighbors(torch.tensor([[0, 2], [1, 0]]), gallery, labels=torch.tensor([0, 1, 1]))
        >>> hits.compare(torch.tensor([[0.8, 0.0, 0.6], [0.0, 1.0, 0.0]])).scores
        tensor([[0.8000, 0.6000],
                [0.0000, 1.0000]])
    """

    def __init__(
        self,
        ids: Tensor,
        embeddings: Tensor | None = None,
        *,
        fetch: Callable[[Tensor], Tensor] | None = None,
        labels: Tensor | None = None,
        class_names: Sequence[str] | None = None,
    ) -> None:
        ids = torch.as_tensor(ids)
        if ids.dim() != 2 or not ids.numel():
            raise ValueError(f"ids must be (B, K), K hits for each query, got shape {tuple(ids.shape)}")
        if (embeddings is None) == (fetch is None):
            raise ValueError("pass either embeddings, the gallery (M, J), or fetch, a function of ids")
        flat = ids.flatten()
        found = fetch(flat) if fetch is not None else embeddings[flat.to(embeddings.device)]  # type: ignore[index,union-attr]
        if found.dim() != 2 or len(found) != len(flat):
            raise ValueError(f"fetch must give (n, J) for {len(flat)} ids, got shape {tuple(found.shape)}")
        if labels is not None and labels.dim() == 1:
            labels = labels[ids.to(labels.device)]
        super().__init__(found.unflatten(0, ids.shape), labels, class_names)
        self.ids = ids
