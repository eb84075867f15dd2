"""The two 64-filter networks of the few-shot experiments (Conv4Net and Conv64F).

Both are four blocks of convolution, batch normalization, LeakyReLU(0.1) and, where stated, max-pooling, then global
average pooling; no classifier. The embedding is what a similarity compares, and ``features`` is the layer to
attribute to: its output is exactly what the pooling averages.
"""

from __future__ import annotations

from torch import Tensor, nn

from captum_fam.pooling import GAP


def conv_block(channels_in: int, channels_out: int, *, padding: int, pool: bool) -> nn.Sequential:
    """One block: 3x3 convolution (with bias), batch norm, LeakyReLU(0.1), and a 2x2 max-pool if ``pool``.

    The LeakyReLU is out of place, so hooks on any layer see what that layer really returned.
    """
    layers: list[nn.Module] = [
        nn.Conv2d(channels_in, channels_out, kernel_size=3, padding=padding),
        nn.BatchNorm2d(channels_out),
        nn.LeakyReLU(0.1),
    ]
    if pool:
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers)


class _ConvNet(nn.Module):
    """Blocks, then global average pooling."""

    def __init__(self, *blocks: nn.Sequential) -> None:
        super().__init__()
        self.features = nn.Sequential(*blocks)
        self.pooling = GAP()

    def forward(self, x: Tensor) -> Tensor:
        embedding: Tensor = self.pooling(self.features(x))
        return embedding


class Conv4Net(_ConvNet):
    """Four 64-filter blocks, each with a max-pool (the ProtoNet backbone with LeakyReLU and average pooling).

    Maps ``(B, 3, H, W)`` images to ``(B, 64)`` embeddings. ``features`` returns ``(B, 64, H // 16, W // 16)``:
    5x5 for 84x84 images. 113,088 parameters.

    Example:
        >>> import torch
        >>> net = Conv4Net()
        >>> net(torch.rand(2, 3, 84, 84)).shape, net.features(torch.rand(2, 3, 84, 84)).shape
        (torch.Size([2, 64]), torch.Size([2, 64, 5, 5]))
    """

    def __init__(self) -> None:
        super().__init__(
            conv_block(3, 64, padding=1, pool=True),
            *(conv_block(64, 64, padding=1, pool=True) for _ in range(3)),
        )


class Conv64F(_ConvNet):
    """Four 64-filter blocks, the first two with a max-pool: a finer map than `Conv4Net`.

    Maps ``(B, 3, H, W)`` images to ``(B, 64)`` embeddings. For 84x84 images ``features`` returns 19x19 positions with
    ``padding=0`` (RelationNet's encoder) and 21x21 with ``padding=1`` (DN4's). 113,088 parameters either way.

    Args:
        padding: Padding of the convolutions of the first two blocks, 0 or 1. The last two always pad by 1.

    Raises:
        ValueError: If ``padding`` is neither 0 nor 1.
    """

    def __init__(self, padding: int = 0) -> None:
        if padding not in (0, 1):
            raise ValueError(f"padding must be 0 (19x19 map) or 1 (21x21 map), got {padding!r}")
        super().__init__(
            conv_block(3, 64, padding=padding, pool=True),
            conv_block(64, 64, padding=padding, pool=True),
            conv_block(64, 64, padding=1, pool=False),
            conv_block(64, 64, padding=1, pool=False),
        )
