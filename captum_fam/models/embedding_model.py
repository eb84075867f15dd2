"""An embedding model together with what an explanation needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor, nn

from captum_fam.geometry import Geometry, ResizeCrop, Squash
from captum_fam.images import IMAGENET_MEAN, IMAGENET_STD, image_to_tensor, normalize

if TYPE_CHECKING:
    from captum_fam.attr import TokenGrid


@dataclass(frozen=True)
class EmbeddingModel:
    """A network and all that an explanation has to know about the network.

    :func:`~captum_fam.models.create_model` makes one by name; a network of your own needs the first three attributes,
    and what differs from the defaults. ``dataclasses.replace`` changes a part. All models take RGB, also those whose
    published weights read BGR.

    Attributes:
        name: in the registry.
        model: ``(B, 3, H, W)`` to embeddings ``(B, J)``, in eval mode.
        layer: dotted name of the module to explain, whose output the pooling takes.
        size: side of the images that the model is used with, in pixels. Default: 224.
        any_size: whether images of another size will do. Default: True.
        mean: of the RGB channels in [0, 1], which is subtracted. Default: of ImageNet.
        std: of the RGB channels in [0, 1], by which is divided. Default: of ImageNet.
        token_grid: lays out the tokens of the layer; None (default) for a layer that gives feature maps.
        pooling: from the layer's output, laid out by ``token_grid``, to one feature per channel; None (default) where
            the embedding is no pooling of that layer alone.
        head: from the pooled features to the embedding, without a normalization at the end; None (default): nothing.
        similarity: with which the model decides, a name of :mod:`captum_fam.similarity`. Default: ``"cosine"``.
        interpolation: of the resizing, ``"bilinear"`` (default), ``"bicubic"`` or ``"nearest"``.
        evaluation_crop: shorter side after resizing and side of the center crop, with which the published accuracy
            was measured; None (default): measured with squashed images.
        layout: the repository whose names the weights had; None (default): no file of weights.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> net = EmbeddingModel("tiny", model.eval(), "1", size=64)
        >>> net.model(net.preprocess(Image.new("RGB", (90, 60)))[None]).shape
        torch.Size([1, 8])
    """

    name: str
    model: nn.Module
    layer: str
    size: int = 224
    any_size: bool = True
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    token_grid: TokenGrid | None = None
    pooling: nn.Module | None = None
    head: nn.Module | None = None
    similarity: str = "cosine"
    interpolation: str = "bilinear"
    evaluation_crop: tuple[int, int] | None = None
    layout: str | None = None

    @property
    def layer_module(self) -> nn.Module:
        """The module to explain."""
        return self.model.get_submodule(self.layer)

    @property
    def geometry(self) -> Geometry:
        """Images squashed to the size of the model, so that nothing is cut off: for explanations and boxes."""
        return Squash(self.size, self.interpolation)

    @property
    def evaluation_geometry(self) -> Geometry:
        """The resizing and cropping with which the published accuracy was measured."""
        if self.evaluation_crop is None:
            return self.geometry
        return ResizeCrop(*self.evaluation_crop, self.interpolation)

    @property
    def normalize(self) -> Callable[[Tensor], Tensor]:
        """From images in [0, 1], ``(..., 3, H, W)``, to what the model takes."""
        # Not a method: processes that read a data set get this function, and would get the network with a method.
        return partial(normalize, mean=self.mean, std=self.std)

    def preprocess(self, image: Image.Image) -> Tensor:
        """An image of any size and mode, squashed and normalized: float32 ``(3, size, size)``."""
        squashed, _ = self.geometry(image.convert("RGB"), torch.empty(0, 4))
        return normalize(image_to_tensor(squashed), self.mean, self.std)
