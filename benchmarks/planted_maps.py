"""The maps that the table of the planted scenes compares, all called the same way."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models.vision_transformer import VisionTransformer

from captum_fam import LayerSimilarityCAM, SimilarityToSupport, TokenGrid
from captum_fam.attr import LayerAttention, LayerAttentionRollout
from captum_fam.attr.baselines import LayerCenterPrior, LayerMeanActivation, LayerUniform, SupportBlindAttribution

FIRST_INPUT = {"vit": "encoder.dropout", "convnet": "features.0"}
"""What gives the input of the first block."""
BLOCKS = {
    "vit": tuple(f"encoder.layers.encoder_layer_{index}" for index in range(5)),
    "convnet": ("features.1", "features.3.0", "features.3.1"),
}
LAST_NORM = "encoder.layers.encoder_layer_4.ln_1"
"""Where Grad-CAM is usually taken in a ViT: the last tensor whose patches reach a class token."""


class Explained(NamedTuple):
    """Maps ``(B, 1, h, w)``, and parts of the score ``(B,)`` by name, ``"map"`` first; none where nothing adds up."""

    maps: Tensor
    shares: dict[str, Tensor]


Method = Callable[[SimilarityToSupport, nn.Module, Tensor, Tensor], Explained]


@dataclass(frozen=True)
class Case:
    """One row: a method at a layer, its score with a foil or without.

    Attributes:
        name: of the method.
        method: called with scores, layer, queries ``(B, 3, H, W)`` and target classes ``(B,)``.
        layer: dotted name in the network.
        foil: whether the other classes are subtracted; None: the method is blind to the support.
    """

    name: str
    method: Method
    layer: str
    foil: bool | None = None

    def __call__(self, scores: SimilarityToSupport, queries: Tensor, target: Tensor) -> Explained:
        return self.method(scores, _network(scores).get_submodule(self.layer), queries, target)


def exact(scores: SimilarityToSupport, layer: nn.Module, queries: Tensor, target: Tensor) -> Explained:
    """`LayerSimilarityCAM` as it comes."""
    cam = LayerSimilarityCAM(scores, layer, token_grid=_grid(scores))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="the map ")  # that it explains little is what the table shows
        details = cam.details(queries, target=target)
    assert isinstance(details.attributions, Tensor)
    assert isinstance(details.shares, dict)
    return Explained(details.attributions, details.shares)


def gradient_times_activation(
    scores: SimilarityToSupport, layer: nn.Module, queries: Tensor, target: Tensor
) -> Explained:
    """Plain autograd of the score, times the activation, summed over the channels."""
    activation, gradient = _activation_and_gradient(scores, layer, queries, target)
    maps = (activation * gradient).sum(1, keepdim=True)
    return Explained(maps, {"map": maps.flatten(1).sum(1)})


def grad_cam(scores: SimilarityToSupport, layer: nn.Module, queries: Tensor, target: Tensor) -> Explained:
    """Grad-CAM: the positive part of the channels weighted by their mean gradient, for tokens over the patches."""
    activation, gradient = _activation_and_gradient(scores, layer, queries, target)
    weights = gradient.mean((2, 3), keepdim=True)
    return Explained((weights * activation).sum(1, keepdim=True).relu(), {})


def _blind(attribution: type[SupportBlindAttribution]) -> Method:
    def method(scores: SimilarityToSupport, layer: nn.Module, queries: Tensor, _: Tensor) -> Explained:
        maps = attribution(_network(scores), layer, token_grid=_grid(scores)).attribute(queries)
        assert isinstance(maps, Tensor)
        return Explained(maps, {})

    return method


def _activation_and_gradient(
    scores: SimilarityToSupport, layer: nn.Module, queries: Tensor, target: Tensor
) -> tuple[Tensor, Tensor]:
    """The layer's output and the gradient of the target's score there, both ``(B, N, h, w)``."""
    kept: list[Tensor] = []
    handle = layer.register_forward_hook(lambda _, __, output: kept.append(output))
    try:
        total = scores(queries).gather(1, target[:, None]).sum()
    finally:
        handle.remove()
    (gradient,) = torch.autograd.grad(total, kept)
    grid = _grid(scores) or nn.Identity()
    return grid(kept[0].detach()), grid(gradient)


def _network(scores: SimilarityToSupport) -> nn.Module:
    assert isinstance(scores.model, nn.Module)
    return scores.model


def _grid(scores: SimilarityToSupport) -> TokenGrid | None:
    return TokenGrid() if isinstance(scores.model, VisionTransformer) else None


def _exact_at_every_block(net: str) -> list[Case]:
    layers = (FIRST_INPUT[net], *BLOCKS[net])
    return [Case("similarity-cam", exact, layer, foil) for foil in (False, True) for layer in layers]


CASES: dict[str, list[Case]] = {
    "vit": [
        *_exact_at_every_block("vit"),
        Case("gradient x activation", gradient_times_activation, FIRST_INPUT["vit"], foil=False),
        Case("gradient x activation", gradient_times_activation, FIRST_INPUT["vit"], foil=True),
        Case("grad-cam", grad_cam, FIRST_INPUT["vit"], foil=True),
        Case("grad-cam", grad_cam, LAST_NORM, foil=True),
        Case("attention", _blind(LayerAttention), BLOCKS["vit"][-1]),
        Case("attention rollout", _blind(LayerAttentionRollout), BLOCKS["vit"][-1]),
        Case("mean activation", _blind(LayerMeanActivation), FIRST_INPUT["vit"]),
        Case("mean activation", _blind(LayerMeanActivation), BLOCKS["vit"][-1]),
        Case("center", _blind(LayerCenterPrior), FIRST_INPUT["vit"]),
        Case("uniform", _blind(LayerUniform), FIRST_INPUT["vit"]),
    ],
    "convnet": [
        *_exact_at_every_block("convnet"),
        Case("gradient x activation", gradient_times_activation, FIRST_INPUT["convnet"], foil=True),
        Case("gradient x activation", gradient_times_activation, BLOCKS["convnet"][-1], foil=True),
        Case("grad-cam", grad_cam, FIRST_INPUT["convnet"], foil=True),
        Case("grad-cam", grad_cam, BLOCKS["convnet"][-1], foil=True),
        Case("mean activation", _blind(LayerMeanActivation), FIRST_INPUT["convnet"]),
        Case("mean activation", _blind(LayerMeanActivation), BLOCKS["convnet"][-1]),
        Case("center", _blind(LayerCenterPrior), BLOCKS["convnet"][-1]),
        Case("uniform", _blind(LayerUniform), BLOCKS["convnet"][-1]),
    ],
}
