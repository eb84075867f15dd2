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
# A block with zero channels for 1x1 and projection has neither, and halves the resolution.
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


# The published weights were trained on images of Caffe: pixels of 0 to 255, from which a mean per channel is
# subtracted, without a division. For pixels in [0, 1] this is a standard deviation of 1 / 255.
_PREPROCESSING: dict[str, Any] = {
    "size": 227,
    "mean": (128 / 255, 117 / 255, 104 / 255),
    "std": (1 / 255, 1 / 255, 1 / 255),
    "evaluation_crop": (256, 227),
}


@register_model("multi_similarity_bn_inception", layouts=BN_INCEPTION, **_PREPROCESSING)
@register_model("margin_bn_inception", layouts=BN_INCEPTION, **_PREPROCESSING)
class BNInception(EmbeddingNet):
    """BN-Inception, global max pooling, a linear head and L2 normalization, for Multi-Similarity and Margin loss.

    The network maps images ``(B, 3, H, W)`` to unit embeddings ``(B, 512)``. ``features`` returns the output of the
    last block (5b), ``(B, 1024, 7, 7)`` for images of 224 or 227 pixels, without negative values. The network has
    10,795,040 parameters, of which 10,270,240 are in ``features``.

    The published weights expect BGR images. This network takes RGB images, as all networks of this package do, and
    reverses the channels.

    Args:
        embedding_size: number of features J of the embedding. Default: 512 (Wang et al., CVPR 2019).

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
    for name, (width_1x1, widths_3x3, widths_double, projection) in _BLOCKS.items():
        # Blocks that keep the resolution pool by the average, but the last block pools by the maximum.
        pool: nn.Module = nn.AvgPool2d(3, 1, padding=1, ceil_mode=True)
        if name == "5b":
            pool = nn.MaxPool2d(3, 1, padding=1, ceil_mode=True)
        elif not projection:
            pool = nn.MaxPool2d(3, 2, ceil_mode=True)
        parts[f"inception_{name}"] = _Block(n_in, width_1x1, widths_3x3, widths_double, projection, pool)
        n_in = width_1x1 + widths_3x3[-1] + widths_double[-1] + (projection or n_in)
    return nn.Sequential(parts)


def _unit(n_in: int, n_out: int, size: int, stride: int = 1) -> nn.Sequential:
    """A unit of convolution with bias, batch norm and ReLU, under the parameter names of the published weights."""
    conv = nn.Conv2d(n_in, n_out, size, stride, padding=size // 2)
    return nn.Sequential(OrderedDict(conv=conv, bn=nn.BatchNorm2d(n_out), relu=nn.ReLU()))


class _ToBGR(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return _to_bgr(x)


def _to_bgr(x: Tensor) -> Tensor:
    # Strided convolutions round the side of a map up, strided poolings round it down. For other sides of the image the
    # branches of a block would differ in size.
    if any((side + 1) % 32 >= 8 for side in x.shape[2:]):
        raise ValueError(
            f"images of {x.shape[2]} x {x.shape[3]} pixels: BN-Inception takes sides of 32 k - 1 to 32 k + 6 pixels, "
            "such as 224 or 227"
        )
    return x.flip(1)


# Networks are cut at a layer with torch.fx, which cannot trace the condition on the size of the image.
torch.fx.wrap("_to_bgr")


class _Block(nn.ModuleDict):
    """A block of parallel branches, concatenated; the parameters have the names of the published weights."""

    def __init__(
        self,
        n_in: int,
        width_1x1: int,
        widths_3x3: tuple[int, int],
        widths_double: tuple[int, int, int],
        projection: int,
        pool: nn.Module,
    ) -> None:
        super().__init__({"1x1": _unit(n_in, width_1x1, 1)} if width_1x1 else {})
        stride = 1 if projection else 2
        self["3x3_reduce"] = _unit(n_in, widths_3x3[0], 1)
        self["3x3"] = _unit(widths_3x3[0], widths_3x3[1], 3, stride)
        self["double_3x3_reduce"] = _unit(n_in, widths_double[0], 1)
        self["double_3x3_1"] = _unit(widths_double[0], widths_double[1], 3)
        self["double_3x3_2"] = _unit(widths_double[1], widths_double[2], 3, stride)
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
