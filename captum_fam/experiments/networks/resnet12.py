"""ResNet12 of the few-shot experiments: the network of MetaOptNet (Lee et al., CVPR 2019)."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torchvision.ops import DropBlock2d

from captum_fam.experiments.networks.layouts import RESNET12
from captum_fam.models import EmbeddingNet, register_model
from captum_fam.pooling import GAP

_WIDTHS = (64, 160, 320, 640)


@register_model("resnet12", layouts=RESNET12, size=84, interpolation="bicubic")
class ResNet12(EmbeddingNet):
    """Four residual blocks of three 3x3 convolutions, 64-160-320-640 wide, each ending with a 2x2 max-pool.

    The network maps images ``(B, 3, H, W)`` to embeddings ``(B, 640)``. ``features`` returns
    ``(B, 640, H // 16, W // 16)``: 5x5 positions for 84x84 images. The network has LeakyReLU(0.1), global average
    pooling, no stem, no classifier, and 12,424,320 parameters.

    Cross Attention Network calls another network ResNet12 (with a stem, 64-128-256-512, and strides). The checkpoints
    of that network do not fit.

    Args:
        drop_rate: rate of the dropout after the first two blocks in training, and final rate of the
            `DecayingDropBlock` after the last two blocks. MetaOptNet has 0.1. Default: 0, no dropout.
        block_size: side of the squares that DropBlock removes, in positions. Default: 5.

    Example:
        >>> net = ResNet12().eval()
        >>> net(torch.rand(2, 3, 84, 84)).shape, net.features(torch.rand(2, 3, 84, 84)).shape
        (torch.Size([2, 640]), torch.Size([2, 640, 5, 5]))
    """

    def __init__(self, drop_rate: float = 0.0, block_size: int = 5) -> None:
        drops: list[nn.Module | None] = [None] * 4
        if drop_rate:
            drops = [nn.Dropout(drop_rate) for _ in range(2)]
            drops += [DecayingDropBlock(drop_rate, block_size) for _ in range(2)]
        blocks = [
            _Block(n_in, n_out, drop) for n_in, n_out, drop in zip((3, *_WIDTHS[:3]), _WIDTHS, drops, strict=True)
        ]
        # Each block is a stage, because the published checkpoints have such parameter names.
        stages = OrderedDict[str, nn.Module]((f"layer{i}", nn.Sequential(block)) for i, block in enumerate(blocks, 1))
        super().__init__(nn.Sequential(stages), GAP())
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="leaky_relu")


class _Block(nn.Module):
    def __init__(self, n_in: int, n_out: int, drop: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(n_out)
        self.conv3 = nn.Conv2d(n_out, n_out, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(n_out)
        self.downsample = nn.Sequential(nn.Conv2d(n_in, n_out, 1, bias=False), nn.BatchNorm2d(n_out))
        self.relu = nn.LeakyReLU(0.1)
        self.maxpool = nn.MaxPool2d(2)
        self.drop = drop

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out = self.maxpool(self.relu(out + self.downsample(x)))
        return out if self.drop is None else self.drop(out)


class DecayingDropBlock(DropBlock2d):
    """DropBlock (Ghiasi et al., NeurIPS 2018) whose rate grows linearly with the training passes, as in MetaOptNet.

    Args:
        rate: final rate, the share of the activations that is removed.
        block_size: side of the squares that are removed, in positions. Default: 5.
        n_passes: number of training passes until the final rate. Default: 40,000.

    Example:
        >>> drop = DecayingDropBlock(rate=0.1, n_passes=4)
        >>> _ = drop(torch.rand(2, 8, 10, 10))
        >>> drop.p
        0.025
    """

    num_batches_tracked: Tensor

    def __init__(self, rate: float, block_size: int = 5, n_passes: int = 40_000) -> None:
        super().__init__(0.0, block_size)
        self.rate = rate
        self.n_passes = n_passes
        # The counter has the name of the counters of batch normalization, which may be missing in a file of weights.
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.num_batches_tracked += 1
            self.p = self.rate * min(1.0, int(self.num_batches_tracked) / self.n_passes)
        dropped: Tensor = super().forward(x)
        return dropped
