"""ResNets of torchvision as in the paper: for few-shot learning, and with a head for contrastive learning."""

from __future__ import annotations

from collections import OrderedDict
from functools import partial
from typing import Literal

from torch import nn
from torchvision import models

from captum_fam.experiments.networks.layouts import CONTRASTIVE, RESNET18
from captum_fam.models import EmbeddingNet, register_model
from captum_fam.pooling import GAP


@register_model("few_shot_resnet18", layouts=RESNET18, size=84, interpolation="bicubic")
class ResNet18(EmbeddingNet):
    """ResNet18 of the few-shot experiments: every activation is LeakyReLU(0.1), global average pooling, no classifier.

    The network maps images ``(B, 3, H, W)`` to embeddings ``(B, 512)``. For 84x84 images ``features`` returns 3x3
    positions with the 7x7 stem and 11x11 positions with the 3x3 stem. The network has 11,176,512 parameters with the
    7x7 stem and 11,168,832 parameters with the 3x3 stem.

    Args:
        stem: ``"7x7"`` for a strided 7x7 convolution and a max-pool (He et al., CVPR 2016); or ``"3x3"`` for one 3x3
            convolution, which is usual in few-shot learning. The paper does not name the stem; a network with the 7x7
            stem is closer to the accuracy in the paper. Default: ``"7x7"``.

    Raises:
        ValueError: for another stem.

    Example:
        >>> net = ResNet18(stem="3x3").eval()
        >>> net.features(torch.rand(2, 3, 84, 84)).shape
        torch.Size([2, 512, 11, 11])
    """

    def __init__(self, stem: Literal["7x7", "3x3"] = "7x7") -> None:
        if stem not in ("7x7", "3x3"):
            raise ValueError(f'stem must be "7x7" or "3x3", got {stem!r}')
        net = models.resnet18()
        if stem == "3x3":
            net.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
            nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")
            del net.maxpool
        super().__init__(_trunk(net, nn.LeakyReLU(0.1)), GAP())


class ContrastiveResNet(EmbeddingNet):
    """ResNet18 or ResNet50 with a projection head and L2 normalization, for NPID and MoCo.

    The network maps images ``(B, 3, H, W)`` to unit embeddings ``(B, 128)``. ``features`` returns
    ``(B, N, H / 32, W / 32)``: 7x7 positions for 224x224 images, with N = 512 for ResNet18 and N = 2048 for ResNet50.
    With the linear head ResNet18 has 11,242,176 parameters and ResNet50 23,770,304; with the MLP, ResNet50 has
    27,966,656.

    Args:
        depth: number of layers, 18 or 50. Default: 50.
        head: ``"linear"`` (NPID, Wu et al., CVPR 2018; MoCo v1, He et al., CVPR 2020); or ``"mlp"``, with a hidden
            layer of N features and a ReLU before the linear layer (MoCo v2). Default: ``"linear"``.

    Raises:
        ValueError: for another depth or head.

    Example:
        >>> net = ContrastiveResNet(18).eval()
        >>> net(torch.rand(2, 3, 224, 224)).shape
        torch.Size([2, 128])
    """

    def __init__(self, depth: Literal[18, 50] = 50, head: Literal["linear", "mlp"] = "linear") -> None:
        if depth not in (18, 50):
            raise ValueError(f"depth must be 18 or 50, got {depth!r}")
        if head not in ("linear", "mlp"):
            raise ValueError(f'head must be "linear" or "mlp", got {head!r}')
        net = models.get_model(f"resnet{depth}")
        width = net.fc.in_features
        projection: nn.Module = nn.Linear(width, 128)
        if head == "mlp":
            projection = nn.Sequential(nn.Linear(width, width), nn.ReLU(), projection)
        super().__init__(_trunk(net, nn.ReLU()), GAP(), projection, unit_norm=True)


def _trunk(net: models.ResNet, activation: nn.Module) -> nn.Sequential:
    """The modules before the pooling, with ``activation`` in place of every ReLU.

    The activation must work out of place. An activation in place would change the output that a hook on the layer
    before has seen.
    """
    for module in list(net.modules()):
        if hasattr(module, "relu"):
            module.relu = activation
    return nn.Sequential(
        OrderedDict((name, child) for name, child in net.named_children() if name not in ("avgpool", "fc"))
    )


register_model(
    "few_shot_resnet18_3x3_stem", partial(ResNet18, stem="3x3"), layouts=RESNET18, size=84, interpolation="bicubic"
)
for _name, _make in {
    "npid_resnet18": partial(ContrastiveResNet, 18),
    "npid_resnet50": partial(ContrastiveResNet, 50),
    "moco_v1_resnet50": partial(ContrastiveResNet, 50),
    "moco_v2_resnet50": partial(ContrastiveResNet, 50, head="mlp"),
}.items():
    register_model(_name, _make, layouts=CONTRASTIVE, size=224, evaluation_crop=(256, 224))
