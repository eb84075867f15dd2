"""The form that all networks of this package have."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import normalize


class EmbeddingNet(nn.Module):
    """``features`` -> ``pooling`` -> ``head`` -> L2 normalization, the last two where the model has them.

    ``features`` is the layer to attribute to: its output is exactly what the pooling takes, after the last activation
    function and any max-pool of the last block, so that z_n = p(A^n) holds (section IV-B of the paper).

    Args:
        features: images ``(B, 3, H, W)`` -> activation ``(B, N, h, w)``.
        pooling: ``(B, N, h, w)`` -> ``(B, N)``.
        head: ``(B, N)`` -> ``(B, J)``; None (default): the pooled activation is the embedding.
        unit_norm: end with an L2 normalization, which belongs to the similarity and not to the head. Default: False.

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
