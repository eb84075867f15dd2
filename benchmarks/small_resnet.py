"""A small residual network for trainings on a CPU: ``--model benchmarks/small_resnet.py:small_resnet``."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from captum_fam.models import EmbeddingModel, EmbeddingNet
from captum_fam.pooling import GAP


class Block(nn.Module):
    """Two 3 x 3 convolutions and a short cut, as in ResNet18.

    Args:
        channels_in: channels of the input.
        channels_out: channels of the output.
        stride: stride of the first convolution and of the short cut.
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False),
            nn.BatchNorm2d(channels_out),
            nn.ReLU(),
            nn.Conv2d(channels_out, channels_out, 3, 1, 1, bias=False),
            nn.BatchNorm2d(channels_out),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or channels_in != channels_out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels_out, 1, stride, bias=False), nn.BatchNorm2d(channels_out)
            )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.residual(x) + self.shortcut(x))


def small_resnet() -> EmbeddingModel:
    """Four blocks after a strided convolution: images of 64 x 64 pixels get 128 maps of 8 x 8 positions.

    The weights are random, and the same in every call.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = EmbeddingNet(_features(), GAP())
    return EmbeddingModel("small_resnet", net.eval(), "features", size=64, pooling=net.pooling, interpolation="bicubic")


def _features() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, 2, 1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        Block(32, 32, 1),
        Block(32, 64, 2),
        Block(64, 128, 2),
        Block(128, 128, 1),
    )
