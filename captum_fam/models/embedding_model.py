"""An embedding model together with everything that an explanation needs to know about the model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from PIL import Image
from torch import Tensor, nn

from captum_fam.geometry import Geometry, ResizeCrop
from captum_fam.images import IMAGENET_MEAN, IMAGENET_STD, normalize
from captum_fam.preprocessing import Preprocessing, Resize

if TYPE_CHECKING:
    from captum_fam.attr import TokenGrid


@dataclass(frozen=True)
class EmbeddingModel:
    """A network and everything that an explanation has to know about the network.

    :func:`~captum_fam.models.create_model` makes an embedding model by name. A network of your own needs the first
    three attributes, and those that differ from the defaults. ``dataclasses.replace`` changes single attributes. All
    models take RGB images, also models whose published weights expect BGR.

    Attributes:
        name: name of the model, for messages and files.
        model: network from images ``(B, C, H, W)`` to embeddings ``(B, J)``, in eval mode.
        layer: dotted name of the module to explain; the pooling takes the output of this module.
        size: side of the square images that the model is used with, or ``(height, width)``, in pixels. Default: 224.
        any_size: whether the model also takes images of another size. Default: True.
        mean: mean of each RGB channel, for pixels in [0, 1], which is subtracted from the image. Default: ImageNet's.
        std: standard deviation of each RGB channel, for pixels in [0, 1], by which the image is divided. Default:
            ImageNet's.
        token_grid: layout of the tokens of the layer; None for a layer that gives feature maps. Default: None.
        pooling: module from the output of the layer, laid out by ``token_grid``, to one feature per channel; None if
            the embedding is not a pooling of this layer alone. Default: None.
        head: module from the pooled features to the embedding, without a normalization at the end; None if the pooled
            features are the embedding. Default: None.
        similarity: name of the similarity with which the model decides, see :mod:`captum_fam.similarity`. Default:
            ``"cosine"``.
        interpolation: interpolation of the resizing, as in :class:`~captum_fam.preprocessing.Preprocessing`. Default:
            ``"bilinear"``.
        evaluation_crop: shorter side after the resizing and side of the center crop, in pixels, with which the
            published accuracy was measured; None if it was measured with squashed images. Default: None.
        layout: repository whose parameter names the file of weights used; None if no file was loaded. Default: None.
        resize: what happens to the aspect ratio of a photograph: ``"squash"``, ``"pad"``, ``"crop"`` or ``"keep"``, as
            in :class:`~captum_fam.preprocessing.Preprocessing`. ``"crop"`` is the crop of ``evaluation_crop``, at any
            square size. Default: ``"squash"``.
        notes: sentences for the user: what was assumed of the model, and what looks wrong. Default: none.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> net = EmbeddingModel("tiny", model.eval(), "1", size=64)
        >>> net.model(net.preprocess(Image.new("RGB", (90, 60)))[None]).shape
        torch.Size([1, 8])
    """

    name: str
    model: nn.Module
    layer: str
    size: int | tuple[int, int] = 224
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
    resize: Resize = "squash"
    notes: tuple[str, ...] = ()

    @property
    def layer_module(self) -> nn.Module:
        """The module to explain."""
        return self.model.get_submodule(self.layer)

    @property
    def preprocessing(self) -> Preprocessing:
        """From a photograph to the input of the model. It holds no network, so that it can go to worker processes."""
        crop_from = None
        if self.resize == "crop" and self.evaluation_crop is not None and isinstance(self.size, int):
            shorter, crop = self.evaluation_crop
            crop_from = max(self.size, round(self.size * shorter / crop))
        return Preprocessing(self.size, self.resize, self.mean, self.std, self.interpolation, crop_from)

    @property
    def geometry(self) -> Geometry:
        """Moves the pixels of a photograph to the size of the model, and boxes along with them."""
        return self.preprocessing.geometry

    @property
    def evaluation_geometry(self) -> Geometry:
        """Resizes and crops images as in the measurement of the published accuracy."""
        if self.evaluation_crop is None:
            return self.geometry
        return ResizeCrop(*self.evaluation_crop, self.interpolation)

    @property
    def normalize(self) -> Callable[[Tensor], Tensor]:
        """Function from images with pixels in [0, 1], ``(..., C, H, W)``, to the normalized input of the model."""
        # A partial function instead of a method: worker processes that read a data set get a copy of the function. A
        # copy of a bound method would copy the network too.
        return partial(normalize, mean=self.mean, std=self.std)

    def preprocess(self, image: Image.Image) -> Tensor:
        """Make the input of the model from a photograph of any size and mode.

        Args:
            image: image of PIL.

        Returns:
            float32 ``(C, H, W)``.
        """
        return self.preprocessing(image)
