"""A small residual network for trainings on a CPU: ``--model benchmarks/small_resnet.py:small_resnet``."""

from __future__ import annotations

import torch
from torch import nn
from torchvision.models.resnet import BasicBlock

from captum_fam.models import EmbeddingModel, EmbeddingNet
from captum_fam.pooling import GAP


def small_resnet() -> EmbeddingModel:
    """Four blocks of ResNet18 after a strided convolution: images of 64 x 64 pixels get 128 maps of 8 x 8 positions.

    The weights are random, and the same in every call.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        features = nn.Sequential(
            nn.Conv2d(3, 32, 3, 2, 1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            BasicBlock(32, 32),
            _wider_block(32, 64),
            _wider_block(64, 128),
            BasicBlock(128, 128),
        )
    net = EmbeddingNet(features, GAP())
    return EmbeddingModel("small_resnet", net.eval(), "features", size=64, pooling=net.pooling, interpolation="bicubic")


def _wider_block(channels_in: int, channels_out: int) -> BasicBlock:
    """A block of half the height and width, with a convolution in the short cut."""
    shortcut = nn.Sequential(nn.Conv2d(channels_in, channels_out, 1, 2, bias=False), nn.BatchNorm2d(channels_out))
    return BasicBlock(channels_in, channels_out, 2, shortcut)
