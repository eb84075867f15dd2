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

    Maps ``(B, 3, H, W)`` images to ``(B, 640)`` embeddings. ``features`` returns ``(B, 640, H // 16, W // 16)``: 5x5
    for 84x84 images. LeakyReLU(0.1), global average pooling, no stem, no classifier. 12,424,320 parameters.

    The network that Cross Attention Network calls ResNet12 is another one (a stem, 64-128-256-512, strides), and its
    checkpoints do not fit.

    Args:
        drop_rate: in training, the rate of dropout after the first two blocks, and what the rate of
            `DecayingDropBlock` after the last two grows to. MetaOptNet has 0.1. Default: 0, none.
        block_size: side of the squares that DropBlock cuts out, in positions. Default: 5.

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
        # Stages of one block each, so that parameters have the names of the published checkpoints.
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
    """DropBlock (Ghiasi et al., NeurIPS 2018) whose rate grows linearly with the passes in training, as in MetaOptNet.

    Args:
        rate: share of the activations that is dropped in the end.
        block_size: side of the squares that are cut out, in positions. Default: 5.
        n_passes: training passes until then. Default: 40,000.
    """

    num_batches_tracked: Tensor

    def __init__(self, rate: float, block_size: int = 5, n_passes: int = 40_000) -> None:
        super().__init__(0.0, block_size)
        self.rate = rate
        self.n_passes = n_passes
        # Named like the counters of batch normalization, which a checkpoint may have or lack.
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.num_batches_tracked += 1
            self.p = self.rate * min(1.0, int(self.num_batches_tracked) / self.n_passes)
        dropped: Tensor = super().forward(x)
        return dropped
