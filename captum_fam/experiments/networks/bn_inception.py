"""BN-Inception (Ioffe and Szegedy, ICML 2015) as an embedding model, for the retrieval experiments."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn

from captum_fam.experiments.networks.layouts import BN_INCEPTION
from captum_fam.models import EmbeddingNet, register_model
from captum_fam.pooling import GMP

# Channels of the blocks: 1x1 | 3x3 reduce, 3x3 | double 3x3 reduce, first, second | pool projection.
# Without 1x1 and projection a block halves the resolution.
_BLOCKS: dict[str, tuple[int, tuple[int, int], tuple[int, int, int], int]] = {
    "3a": (64, (64, 64), (64, 96, 96), 32),
    "3b": (64, (64, 96), (64, 96, 96), 64),
    "3c": (0, (128, 160), (64, 96, 96), 0),
    "4a": (224, (64, 96), (96, 128, 128), 128),
    "4b": (192, (96, 128), (96, 128, 128), 128),
    "4c": (160, (128, 160), (128, 160, 160), 128),
    "4d": (96, (128, 192), (160, 192, 192), 128),
    "4e": (0, (128, 192), (192, 256, 256), 0),
    "5a": (352, (192, 320), (160, 224, 224), 128),
    "5b": (352, (192, 320), (192, 224, 224), 128),
}


# As in Caffe, on whose images of 0 to 255 the published weights were trained: a mean per channel is subtracted, and
# nothing is divided.
_PREPROCESSING: dict[str, Any] = {
    "size": 227,
    "mean": (128 / 255, 117 / 255, 104 / 255),
    "std": (1 / 255, 1 / 255, 1 / 255),
    "evaluation_crop": (256, 227),
}


@register_model("multi_similarity_bn_inception", layouts=BN_INCEPTION, **_PREPROCESSING)
@register_model("margin_bn_inception", layouts=BN_INCEPTION, **_PREPROCESSING)
class BNInception(EmbeddingNet):
    """BN-Inception, global max pooling, a linear head and L2 normalization: Multi-Similarity and Margin.

    Maps ``(B, 3, H, W)`` images to unit embeddings ``(B, 512)``. ``features`` returns the concatenation of the last
    block (5b), ``(B, 1024, 7, 7)`` for images of 224 or 227 pixels, never negative. 10,795,040 parameters, of which
    10,270,240 are in ``features``.

    The published weights read BGR. This network takes RGB as all others do, and turns the channels itself.

    Args:
        embedding_size: J, the width of the head. Default: 512 (Wang et al., CVPR 2019).

    Raises:
        ValueError: in the forward pass, for images whose sides are not 32 k - 1 to 32 k + 6 pixels.

    Example:
        >>> net = BNInception().eval()
        >>> net(torch.rand(2, 3, 227, 227)).shape
        torch.Size([2, 512])
    """

    def __init__(self, embedding_size: int = 512) -> None:
        head = nn.Linear(1024, embedding_size)
        nn.init.kaiming_normal_(head.weight, mode="fan_out")
        nn.init.zeros_(head.bias)
        super().__init__(_trunk(), GMP(), head, unit_norm=True)


def _trunk() -> nn.Sequential:
    parts = OrderedDict[str, nn.Module](
        bgr=_ToBGR(),
        conv1_7x7_s2=_unit(3, 64, 7, stride=2),
        pool1=nn.MaxPool2d(3, 2, ceil_mode=True),
        conv2_3x3_reduce=_unit(64, 64, 1),
        conv2_3x3=_unit(64, 192, 3),
        pool2=nn.MaxPool2d(3, 2, ceil_mode=True),
    )
    n_in = 192
    for name, (one, three, double, projection) in _BLOCKS.items():
        # The last block pools by the maximum, all others that keep the resolution by the average.
        pool: nn.Module = nn.AvgPool2d(3, 1, padding=1, ceil_mode=True)
        if name == "5b":
            pool = nn.MaxPool2d(3, 1, padding=1, ceil_mode=True)
        elif not projection:
            pool = nn.MaxPool2d(3, 2, ceil_mode=True)
        parts[f"inception_{name}"] = _Block(n_in, one, three, double, projection, pool)
        n_in = one + three[-1] + double[-1] + (projection or n_in)
    return nn.Sequential(parts)


def _unit(n_in: int, n_out: int, size: int, stride: int = 1) -> nn.Sequential:
    """Convolution with bias, batch norm, ReLU."""
    conv = nn.Conv2d(n_in, n_out, size, stride, padding=size // 2)
    return nn.Sequential(OrderedDict(conv=conv, bn=nn.BatchNorm2d(n_out), relu=nn.ReLU()))


class _ToBGR(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return _to_bgr(x)


def _to_bgr(x: Tensor) -> Tensor:
    # Strided convolutions round sides up and strided poolings down; their results only meet if nothing is rounded.
    if any((side + 1) % 32 >= 8 for side in x.shape[2:]):
        raise ValueError(
            f"images of {x.shape[2]} x {x.shape[3]} pixels: BN-Inception takes sides of 32 k - 1 to 32 k + 6 pixels, "
            "such as 224 or 227"
        )
    return x.flip(1)


torch.fx.wrap("_to_bgr")  # torch.fx, which cuts networks at a layer, cannot trace the condition


class _Block(nn.ModuleDict):
    """Parallel branches, concatenated; the names are those of the published weights."""

    def __init__(
        self,
        n_in: int,
        one: int,
        three: tuple[int, int],
        double: tuple[int, int, int],
        projection: int,
        pool: nn.Module,
    ) -> None:
        super().__init__({"1x1": _unit(n_in, one, 1)} if one else {})
        stride = 1 if projection else 2
        self["3x3_reduce"] = _unit(n_in, three[0], 1)
        self["3x3"] = _unit(three[0], three[1], 3, stride)
        self["double_3x3_reduce"] = _unit(n_in, double[0], 1)
        self["double_3x3_1"] = _unit(double[0], double[1], 3)
        self["double_3x3_2"] = _unit(double[1], double[2], 3, stride)
        self["pool"] = pool
        if projection:
            self["pool_proj"] = _unit(n_in, projection, 1)

    def forward(self, x: Tensor) -> Tensor:
        branches = [self["1x1"](x)] if "1x1" in self else []
        branches.append(self["3x3"](self["3x3_reduce"](x)))
        branches.append(self["double_3x3_2"](self["double_3x3_1"](self["double_3x3_reduce"](x))))
        pooled = self["pool"](x)
        branches.append(self["pool_proj"](pooled) if "pool_proj" in self else pooled)
        return torch.cat(branches, 1)
