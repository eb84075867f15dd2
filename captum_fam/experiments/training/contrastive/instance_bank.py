"""A memory bank of all training images, each a class of its own."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from captum_fam.functional import unit


class InstanceBank(nn.Module):
    """One unit vector for each training image, and the softmax over them (Wu et al., CVPR 2018, Eq. 2).

    The probability that an embedding f is of image i is ``exp(v_i f / T) / sum_j exp(v_j f / T)`` over the rows v_j of
    the bank. The sum goes over all rows, or over row i and rows that are drawn at random. Wu et al. have drawn rows
    too, but for noise-contrastive estimation (Eq. 4-7), which needs an estimate of the full sum. Here the drawn rows
    make a softmax, as for the weights that the authors released later: no estimate is needed, and with all rows it is
    Eq. 2 itself.

    The parts of pytorch-metric-learning do not fit: its memory of batches is a queue, and its softmax compares every
    positive pair with every negative pair, which needs B x B x n numbers.

    Args:
        n_images: number of images n.
        embedding_size: number of features J.
        temperature: temperature T. Default: 0.07.
        momentum: share of its old value that a row keeps in an update. Default: 0.5.
        generator: generator of the rows of the start. Default: None, that of torch.

    Attributes:
        rows: ``(n, J)`` float32, of length one.

    Example:
        >>> bank = InstanceBank(1000, 16)
        >>> images, items = unit(torch.rand(4, 16)), torch.tensor([3, 1, 4, 999])
        >>> bank.logits(images, items).shape
        torch.Size([4, 1000])
        >>> bank.update(images, items)
    """

    rows: Tensor

    def __init__(
        self,
        n_images: int,
        embedding_size: int,
        temperature: float = 0.07,
        momentum: float = 0.5,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.temperature = temperature
        self.momentum = momentum
        self.register_buffer("rows", unit(torch.randn(n_images, embedding_size, generator=generator)))

    def logits(self, embeddings: Tensor, items: Tensor, negatives: Tensor | None = None) -> Tensor:
        """The logarithms of the probabilities of the images, but for a constant of each embedding.

        Args:
            embeddings: of length one, ``(B, J)``.
            items: the image of each embedding, ``(B,)``.
            negatives: rows that are the negatives of all embeddings, ``(m,)``; None for all rows. Default: None.

        Returns:
            ``(B, n)``, where the true image has the number ``items``; with ``negatives`` ``(B, 1 + m)``, where the true
            image comes first, and is left out where it was drawn as a negative.
        """
        if negatives is None:
            return embeddings @ self.rows.T / self.temperature
        own = (embeddings * self.rows[items]).sum(1, keepdim=True)
        others = embeddings @ self.rows[negatives].T
        others = others.masked_fill(negatives == items[:, None], -torch.inf)
        return torch.cat([own, others], 1) / self.temperature

    @torch.no_grad()
    def update(self, embeddings: Tensor, items: Tensor) -> None:
        """Move rows towards embeddings: ``v <- unit(momentum v + (1 - momentum) f)``.

        Args:
            embeddings: of length one, ``(B, J)``.
            items: the images of the embeddings, each at most once, ``(B,)``.
        """
        mixed = self.momentum * self.rows[items] + (1 - self.momentum) * embeddings
        self.rows[items] = unit(mixed)
