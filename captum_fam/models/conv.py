"""`Conv4Net`, the few-shot network of ``captum-fam demo``, and the convolutional block of this network."""

from __future__ import annotations

from torch import nn

from captum_fam.models.embedding_net import EmbeddingNet
from captum_fam.pooling import GAP


def conv_block(channels_in: int, channels_out: int, *, padding: int, pool: bool) -> nn.Sequential:
    """A block of 3x3 convolution (with bias), batch norm, LeakyReLU(0.1) and an optional 2x2 max-pool.

    The LeakyReLU works out of place. An activation in place would change the output that a hook on the layer before has
    seen.

    Args:
        channels_in: channels of the input.
        channels_out: channels of the output.
        padding: padding of the convolution, in pixels per side.
        pool: whether the block ends with the max-pool.

    Returns:
        A module from ``(B, channels_in, h, w)`` to ``(B, channels_out, h', w')``.

    Example:
        >>> import torch
        >>> conv_block(3, 64, padding=1, pool=True)(torch.rand(1, 3, 84, 84)).shape
        torch.Size([1, 64, 42, 42])
    """
    layers: list[nn.Module] = [
        nn.Conv2d(channels_in, channels_out, kernel_size=3, padding=padding),
        nn.BatchNorm2d(channels_out),
        nn.LeakyReLU(0.1),
    ]
    if pool:
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers)


class Conv4Net(EmbeddingNet):
    """Four blocks of 64 filters, each with a max-pool: the ProtoNet backbone with LeakyReLU and average pooling.

    Maps ``(B, 3, H, W)`` images to ``(B, 64)`` embeddings. ``features`` returns ``(B, 64, H // 16, W // 16)``:
    5x5 for 84x84 images. Global average pooling, no classifier. 113,088 parameters.

    Example:
        >>> import torch
        >>> net = Conv4Net()
        >>> net(torch.rand(2, 3, 84, 84)).shape, net.features(torch.rand(2, 3, 84, 84)).shape
        (torch.Size([2, 64]), torch.Size([2, 64, 5, 5]))
    """

    def __init__(self) -> None:
        blocks = [conv_block(channels, 64, padding=1, pool=True) for channels in (3, 64, 64, 64)]
        super().__init__(nn.Sequential(*blocks), GAP())
