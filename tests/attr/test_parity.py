"""Grad-CAM on our scores against the Grad-CAM of other libraries, given a cosine by hand, after min-max."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from captum.attr import LayerGradCam
from torch import Tensor, nn

from captum_fam import SimilarityToSupport, SupportSet

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture
def net(make_net: Callable[..., nn.Module]) -> nn.Module:
    """In float32, as the others need; its layer has the size of the image, so that nobody resizes."""
    return make_net(head="linear-bias").float()


@pytest.fixture
def x(make_images: Callable[..., Tensor]) -> Tensor:
    return make_images(3, seed=1).float()


@pytest.fixture
def support(make_images: Callable[..., Tensor]) -> Tensor:
    return make_images(3, seed=2).float()


def scaled(maps: Tensor) -> Tensor:
    flat = maps.clamp_min(0).flatten(1)
    low, high = flat.amin(1, keepdim=True), flat.amax(1, keepdim=True)
    return ((flat - low) / (high - low)).reshape(maps.shape)


def ours(net: nn.Module, x: Tensor, support: Tensor) -> Tensor:
    """Query i against support i: one class for each support."""
    scores = SimilarityToSupport(net, SupportSet(support, [0, 1, 2]))
    return scaled(LayerGradCam(scores, net.features).attribute(x, target=[0, 1, 2]).detach().squeeze(1))


class CosineTo:
    """The target that users of grad-cam copy from a notebook."""

    def __init__(self, reference: Tensor) -> None:
        self.reference = reference

    def __call__(self, embedding: Tensor) -> Tensor:
        return nn.functional.cosine_similarity(embedding, self.reference, dim=0)


def test_grad_cam_agrees_with_pytorch_grad_cam(net: nn.Module, x: Tensor, support: Tensor) -> None:
    pytorch_grad_cam: Any = pytest.importorskip("pytorch_grad_cam")
    want = ours(net, x, support)
    references = net(support).detach()
    other = copy.deepcopy(net)
    with pytorch_grad_cam.GradCAM(model=other, target_layers=[other.features]) as cam:
        got = torch.from_numpy(cam(input_tensor=x, targets=[CosineTo(one) for one in references]))
    assert got.shape == want.shape == (3, 7, 5)
    assert want.flatten(1).amax(1).tolist() == [1, 1, 1]
    assert torch.allclose(got, want, atol=1e-4)


def test_grad_cam_agrees_with_torchcam(net: nn.Module, x: Tensor, support: Tensor) -> None:
    methods: Any = pytest.importorskip("torchcam.methods")
    want = ours(net, x, support)
    references = net(support).detach()
    other = copy.deepcopy(net)
    with methods.GradCAM(other, "features") as cam:
        output = other(x)
        targets = [lambda z, i=i: nn.functional.cosine_similarity(z, references[i], dim=-1) for i in range(3)]
        got = cam(scores=output, targets=targets)[0]
    assert got.shape == want.shape
    assert torch.allclose(got, want, atol=1e-4)
