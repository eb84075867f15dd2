"""An embedding model together with what an explanation of it needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from PIL.Image import Image
from torch import Tensor, nn
from torchvision.transforms import Normalize
from torchvision.transforms.functional import pil_to_tensor

from captum_fam.geometry import Geometry, ResizeCrop, Squash
from captum_fam.models.torchvision_models import Backbone


@dataclass(frozen=True)
class EmbeddingModel(Backbone):
    """What :func:`~captum_fam.models.create_model` gives. ``dataclasses.replace`` changes a part of it.

    All models take RGB, also those whose weights read BGR.

    Attributes:
        name: in the registry.
        model: ``(B, 3, H, W)`` to embeddings ``(B, J)``, in eval mode.
        layer: dotted name of the module to explain, whose output the pooling takes.
        size: side of the images that the model is used with, in pixels.
        any_size: whether images of another size will do.
        mean: of the RGB channels in [0, 1], that is taken off.
        std: that they are divided by.
        token_grid: lays out the tokens of the layer, where it gives tokens.
        pooling: from the layer's output, laid out by ``token_grid``, to one feature a channel; None where there is more
            to it.
        head: from there to the embedding, without a normalization; None: nothing.
        similarity: what the model decides with, a name of :mod:`captum_fam.similarity`.
        interpolation: of the resizing.
        evaluation_crop: shorter side after resizing and side of the center crop, with which the published accuracy
            was measured; None: with squashed images.
        layout: whose naming the weights had; None: no file of weights.
    """

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
        """What the published accuracy was measured with."""
        if self.evaluation_crop is None:
            return self.geometry
        return ResizeCrop(*self.evaluation_crop, self.interpolation)

    @property
    def normalize(self) -> Callable[[Tensor], Tensor]:
        """From images in [0, 1], ``(..., 3, H, W)``, to what the model takes."""
        return Normalize(self.mean, self.std)

    def preprocess(self, image: Image) -> Tensor:
        """An RGB image, squashed and normalized: ``(3, size, size)``."""
        squashed, _ = self.geometry(image.convert("RGB"), torch.empty(0, 4))
        return self.normalize(pil_to_tensor(squashed).float() / 255)
