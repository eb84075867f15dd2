"""WideResNet of the few-shot experiments (Zagoruyko and Komodakis, BMVC 2016)."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from captum_fam.experiments.networks.layouts import WIDE_RESNET
from captum_fam.models import EmbeddingNet, register_model
from captum_fam.pooling import GAP


@register_model("wide_resnet28_10", layouts=WIDE_RESNET, size=84, interpolation="bicubic")
class WideResNet(EmbeddingNet):
    """Pre-activation residual network in three stages: LeakyReLU(0.1), global average pooling, no classifier.

    The network maps images ``(B, 3, H, W)`` to embeddings ``(B, 64 * width)``. ``features`` ends with the last batch
    norm and activation function, because the output of the last block is neither normalized nor activated. It returns
    21x21 positions for 84x84 images. WideResNet28-10 has 36,472,784 parameters.

    Args:
        depth: number of layers, 6 n + 4 for n blocks per stage. Default: 28.
        width: factor by which the network is wider than a thin ResNet. The paper does not state the factor. Default:
            10, as usual in few-shot learning.
        dropout: rate of the dropout between the two convolutions of a block, in training. Default: 0.

    Raises:
        ValueError: for another depth.

    Example:
        >>> net = WideResNet(depth=10, width=1).eval()
        >>> net.features(torch.rand(2, 3, 84, 84)).shape
        torch.Size([2, 64, 21, 21])
    """

    def __init__(self, depth: int = 28, width: int = 10, dropout: float = 0.0) -> None:
        n_blocks, rest = divmod(depth - 4, 6)
        if rest or n_blocks < 1:
            raise ValueError(f"depth must be 6 n + 4 (10, 16, 22, 28, ...), got {depth}")
        parts = OrderedDict[str, nn.Module](conv1=nn.Conv2d(3, 16, 3, padding=1, bias=False))
        n_in = 16
        for number, (n_out, stride) in enumerate([(16 * width, 1), (32 * width, 2), (64 * width, 2)], 1):
            parts[f"block{number}"] = _Stage(n_in, n_out, stride, n_blocks, dropout)
            n_in = n_out
        parts["bn1"] = nn.BatchNorm2d(n_in)
        parts["relu"] = nn.LeakyReLU(0.1)
        super().__init__(nn.Sequential(parts), GAP())
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


class _Stage(nn.Module):
    """A stage of blocks, under the name ``layer`` as in the published checkpoints."""

    def __init__(self, n_in: int, n_out: int, stride: int, n_blocks: int, dropout: float) -> None:
        super().__init__()
        further_blocks = [_Block(n_out, n_out, 1, dropout) for _ in range(n_blocks - 1)]
        self.layer = nn.Sequential(_Block(n_in, n_out, stride, dropout), *further_blocks)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x)
        return out


class _Block(nn.Module):
    def __init__(self, n_in: int, n_out: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(n_in)
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(n_out)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, padding=1, bias=False)
        self.relu = nn.LeakyReLU(0.1)
        self.shortcut = None if n_in == n_out else nn.Conv2d(n_in, n_out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        activated = self.relu(self.bn1(x))
        out = self.relu(self.bn2(self.conv1(activated)))
        out = self.conv2(self.dropout(out))
        # A shortcut with a convolution takes the activated input, the identity takes the raw input.
        return out + (x if self.shortcut is None else self.shortcut(activated))
