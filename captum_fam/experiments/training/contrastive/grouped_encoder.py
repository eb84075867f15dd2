"""A network and its head, which see a batch in equal parts."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from captum_fam.embedding.forward import check_embedding
from captum_fam.experiments.training.training_run import Precision, autocast


class GroupedEncoder(nn.Module):
    """A network and a head that see a batch in equal parts, one after the other.

    Batch normalization in training mode then has the statistics of a part only, as on several GPUs. MoCo needs such
    parts: with one part, only the positive key would share its batch with the query, and the statistics alone would
    tell it from the queue (He et al., CVPR 2020, section 3.3).

    Args:
        model: module from images ``(B, 3, H, W)`` to embeddings, in any form that
            :func:`~captum_fam.embedding.forward.check_embedding` takes.
        head: module from embeddings ``(B, N)`` to ``(B, J)``.
        groups: number of parts.
        precision: precision of the network. Default: ``"float32"``.

    Example:
        >>> encoder = GroupedEncoder(nn.Flatten(), nn.Linear(12, 4), groups=2)
        >>> encoder(torch.rand(6, 3, 2, 2)).shape
        torch.Size([6, 4])
    """

    def __init__(self, model: nn.Module, head: nn.Module, groups: int, precision: Precision = "float32") -> None:
        super().__init__()
        self.model = model
        self.head = head
        self.groups = groups
        self.precision = precision

    def forward(self, images: Tensor) -> Tensor:
        with autocast(images.device, self.precision):
            outputs = [self.head(check_embedding(self.model(part))) for part in images.chunk(self.groups)]
        # The similarities are computed in float32.
        return torch.cat(outputs).float()
