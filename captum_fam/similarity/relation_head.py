"""A relation head: a small network that gives two embeddings a similarity, to be learned."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class RelationHead(nn.Module):
    r"""A two-layer network on a pair of embeddings: the metric of :class:`~captum_fam.similarity.Learned`.

    The network gets the query, the support and their product feature by feature, and gives one number,
    :math:`s(Z, t) = w^\top \operatorname{ReLU}(W [Z / c, t / c, Z \odot t / c^2] + b) + b'`. It is the relation module
    of relation networks (Sung et al., "Learning to Compare: Relation Network for Few-Shot Learning", CVPR 2018) for
    embeddings instead of feature maps, without the sigmoid at the end, which changes no order.
    :func:`~captum_fam.experiments.train_relation_head` trains one. It is continuous at the zero embedding, so that the
    contributions of ``Learned(head)`` sum to the score minus the score of zeros.

    Args:
        features: J, the number of features of an embedding.
        width: number of hidden units. Default: 64.
        scale: c, the size of a feature, such as the root mean square of embeddings. Default: 1.

    Example:
        >>> head = RelationHead(features=6)
        >>> head(torch.rand(4, 6), torch.rand(4, 6)).shape
        torch.Size([4])
    """

    scale: Tensor

    def __init__(self, features: int, width: int = 64, scale: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(float(scale)))
        self.hidden = nn.Linear(3 * features, width)
        self.out = nn.Linear(width, 1)

    def forward(self, query: Tensor, support: Tensor) -> Tensor:
        """The similarity of each pair.

        Args:
            query: Z, ``(B, J)``.
            support: t, ``(B, J)``.

        Returns:
            ``(B,)``; larger is more similar.
        """
        scale = self.scale.to(query)
        query, support = query / scale, support / scale
        hidden = self.hidden(torch.cat([query, support, query * support], 1)).relu()
        similarity: Tensor = self.out(hidden)
        return similarity.squeeze(1)
