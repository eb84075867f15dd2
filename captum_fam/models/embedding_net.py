"""The common form of the networks of this package: features, pooling and head."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import normalize


class EmbeddingNet(nn.Module):
    """A network of ``features``, ``pooling``, an optional ``head`` and an optional L2 normalization, in this order.

    ``features`` is the layer to attribute to: its output is exactly the input of the pooling, after the last activation
    function and any max-pool of the last block. So z_n = p(A^n) holds (section IV-B of the FAM paper, arXiv
    2307.05017).

    Args:
        features: module from images ``(B, 3, H, W)`` to activations ``(B, N, h, w)``.
        pooling: module from ``(B, N, h, w)`` to ``(B, N)``.
        head: module from ``(B, N)`` to ``(B, J)``; None if the pooled activation is the embedding. Default: None.
        unit_norm: whether an L2 normalization follows, which belongs to the similarity and not to the head. Default:
            False.

    Example:
        >>> from captum_fam.pooling import GAP
        >>> net = EmbeddingNet(nn.Conv2d(3, 8, 3), GAP(), head=nn.Linear(8, 4), unit_norm=True)
        >>> net(torch.rand(2, 3, 32, 32)).shape
        torch.Size([2, 4])
    """

    def __init__(
        self, features: nn.Module, pooling: nn.Module, head: nn.Module | None = None, unit_norm: bool = False
    ) -> None:
        super().__init__()
        self.features = features
        self.pooling = pooling
        self.head = head
        self.unit_norm = unit_norm

    def forward(self, x: Tensor) -> Tensor:
        embedding: Tensor = self.pooling(self.features(x))
        if self.head is not None:
            embedding = self.head(embedding)
        return normalize(embedding, dim=1) if self.unit_norm else embedding
