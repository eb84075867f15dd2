"""The CAM family by the code of other libraries, on the logit of the explained class.

    pip install grad-cam torchcam

Each call works on a fresh copy of the network, since some libraries leave hooks, gradients or layers in it. Maps are
taken as the libraries give them by default, except that torchcam's are not scaled to [0, 1], which loses the sign.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import redirect_stderr
from io import StringIO
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.classifiers.methods import Method
from benchmarks.classifiers.networks import Classifier
from benchmarks.classifiers.queries import Queries
from captum_fam.experiments.table_methods import Maps

CAM = "cam (torchcam)"


def peer_methods(classifier: Classifier) -> list[Method]:
    """The methods of Captum, torchcam and grad-cam.

    Args:
        classifier: the network.

    Raises:
        ImportError: without torchcam or grad-cam.
    """
    import pytorch_grad_cam as grad_cam
    import torchcam.methods as torchcam

    def of(name: str, library: Callable[..., Tensor], *args: Any, slow: bool = False) -> Method:
        return Method(name, lambda queries: Maps(library(classifier, queries, *args).detach()), slow)

    return [
        of(CAM, _torchcam, torchcam.CAM, classifier.last),
        of("grad-cam (captum)", _captum_grad_cam),
        of("grad-cam (grad-cam)", _grad_cam, grad_cam.GradCAM),
        of("grad-cam++ (grad-cam)", _grad_cam, grad_cam.GradCAMPlusPlus),
        of("layer-cam (torchcam)", _torchcam, torchcam.LayerCAM),
        of("score-cam (torchcam)", _torchcam, torchcam.ScoreCAM, slow=True),
        of("ablation-cam (grad-cam)", _ablation_cam),
    ]


def _captum_grad_cam(classifier: Classifier, queries: Queries) -> Tensor:
    from captum.attr import LayerGradCam

    net = classifier.fresh_net()
    maps = LayerGradCam(net, net.get_submodule(classifier.layer)).attribute(queries.images, target=queries.classes)
    assert isinstance(maps, Tensor)
    return maps


def _torchcam(classifier: Classifier, queries: Queries, extractor: Callable[..., Any], *args: Any) -> Tensor:
    net = classifier.fresh_net()
    with extractor(net, classifier.layer, *args) as cam:
        # An input with a gradient makes a graph, although the parameters are frozen.
        logits = net(queries.images.clone().requires_grad_())
        (maps,) = cam(queries.classes.tolist(), logits, normalized=False)
    return maps[:, None]


def _grad_cam(classifier: Classifier, queries: Queries, extractor: Callable[..., Any]) -> Tensor:
    net = classifier.fresh_net().requires_grad_()  # the library fails on frozen parameters
    return _run_grad_cam(extractor(net, [net.get_submodule(classifier.layer)]), queries.images, queries.classes)


def _ablation_cam(classifier: Classifier, queries: Queries) -> Tensor:
    from pytorch_grad_cam import AblationCAM
    from pytorch_grad_cam.ablation_layer import AblationLayer

    # Without a channel of the layer, what lies before the layer stays the same. So the library runs on what follows,
    # which saves a pass through the whole network for each channel.
    net = nn.Sequential(nn.Identity(), copy.deepcopy(classifier.top))
    # By default all instances share one layer.
    cam = AblationCAM(net, [net[0]], ablation_layer=AblationLayer())
    return _run_grad_cam(cam, queries.activation, queries.classes)


def _run_grad_cam(cam: Any, inputs: Tensor, classes: Tensor) -> Tensor:
    """Maps of a method of grad-cam, ``(B, 1, H, W)`` in the size of the inputs."""
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    targets = [ClassifierOutputTarget(int(index)) for index in classes]
    # The library draws a progress bar for each image.
    with redirect_stderr(StringIO()), cam:
        maps = cam(inputs.contiguous(), targets)
    return torch.from_numpy(maps)[:, None]
