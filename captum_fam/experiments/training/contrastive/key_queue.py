"""The keys of the last batches, in the order in which they came."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from captum_fam.functional import unit


class KeyQueue(nn.Module):
    """A ring of unit vectors: the newest take the place of the oldest (He et al., CVPR 2020, section 3.2).

    The memory bank of lightly 1.6 is such a ring, but it drops keys at the end of the ring where a batch does not fill
    it, and lightly brings Lightning and Hydra. CrossBatchMemory of pytorch-metric-learning holds the keys of the batch
    itself among the negatives, and compares every positive pair with every negative pair: B x B x K numbers.

    Args:
        length: number of keys K.
        embedding_size: number of features J.
        generator: generator of the keys of the start. Default: None, that of torch.

    Attributes:
        keys: ``(K, J)`` float32, of length one.
        position: the place of the next key, int64, a scalar.

    Example:
        >>> queue = KeyQueue(3, 2)
        >>> queue.push(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        >>> queue.push(torch.tensor([[-1.0, 0.0], [0.0, -1.0]]))
        >>> queue.keys
        tensor([[ 0., -1.],
                [ 0.,  1.],
                [-1.,  0.]])
    """

    keys: Tensor
    position: Tensor

    def __init__(self, length: int, embedding_size: int, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.register_buffer("keys", unit(torch.randn(length, embedding_size, generator=generator)))
        self.register_buffer("position", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def push(self, keys: Tensor) -> None:
        """Put keys in the place of the oldest ones.

        Args:
            keys: at most K keys of length one, ``(B, J)``.
        """
        places = (self.position + torch.arange(len(keys), device=keys.device)) % len(self.keys)
        self.keys[places] = keys
        self.position.add_(len(keys)).remainder_(len(self.keys))
