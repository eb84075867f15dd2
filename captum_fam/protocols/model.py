"""A model in two parts: up to the activation that is explained, and from there to the embedding.

Images go through the backbone once; every method and measure then works on the tail, whose input is the activation.
"""

from __future__ import annotations

import copy
import hashlib
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.transforms import Normalize

from captum_fam.data.boxes import Geometry, ResizeCrop, Squash
from captum_fam.demo.network import load_demo_network
from captum_fam.functional import unit
from captum_fam.images import IMAGENET_MEAN, IMAGENET_STD
from captum_fam.models import EmbeddingModel, create_model, list_models
from captum_fam.models.registry import full_name
from captum_fam.pooling import GAP, GMP, LSE, GeM
from captum_fam.protocols.head import load_head

Framing = Literal["squash", "crop"]
POOLINGS: dict[str, Callable[[], nn.Module]] = {"gap": GAP, "gmp": GMP, "lse": LSE, "gem": GeM}

_CPU_CHUNK = 8


class Tail(nn.Module):
    """From the activation to the embedding: pooling, then a head.

    ``tail.activation`` is the layer to explain, so that a method is made as ``LayerFAM(tail, tail.activation)`` and
    takes activations for its inputs.

    Args:
        pooling: ``(B, N, h, w)`` -> ``(B, N)``.
        head: ``(B, N)`` -> ``(B, J)``; None leaves the pooled activation.
    """

    def __init__(self, pooling: nn.Module, head: nn.Module | None = None) -> None:
        super().__init__()
        self.activation = nn.Identity()
        self.pooling = pooling
        self.head = nn.Identity() if head is None else head

    def forward(self, activation: Tensor) -> Tensor:
        embedding: Tensor = self.head(self.pooling(self.activation(activation)))
        return embedding


class TwoPartModel(nn.Module):
    """An embedding model, cut at the activation that is explained, with what has to be done to its images.

    Args:
        backbone: images ``(B, 3, H, W)`` -> activation ``(B, N, h, w)``.
        pooling: ``(B, N, h, w)`` -> ``(B, N)``, such as :class:`~captum_fam.pooling.GAP`.
        head: ``(B, N)`` -> ``(B, J)``, or None.
        size: side of the square that images are brought to.
        mean: of the RGB channels in [0, 1], taken off.
        std: that they are divided by.
        interpolation: of the resizing, ``"bilinear"`` or ``"bicubic"``.
        similarity: the measure that the model decides with, by name.
        framing: ``"squash"`` the whole image to the square, or resize its shorter side and ``"crop"`` the centre.
        evaluation_crop: of a crop, the shorter side after resizing and the side that is cut out, None: 256 and 224;
            another ``size`` keeps their ratio.

    Example:
        >>> net = torchvision.models.resnet18(weights="DEFAULT").eval()
        >>> model = TwoPartModel(torch.nn.Sequential(*list(net.children())[:-2]), GAP())
        >>> model(torch.rand(2, 3, 224, 224)).shape
        torch.Size([2, 512])
    """

    def __init__(
        self,
        backbone: nn.Module,
        pooling: nn.Module,
        head: nn.Module | None = None,
        *,
        size: int = 224,
        mean: tuple[float, ...] = IMAGENET_MEAN,
        std: tuple[float, ...] = IMAGENET_STD,
        interpolation: str = "bilinear",
        similarity: str = "cosine",
        framing: Framing = "squash",
        evaluation_crop: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.tail = Tail(pooling, head)
        self.size = size
        self.mean = mean
        self.std = std
        self.interpolation = interpolation
        self.similarity = similarity
        self.framing: Framing = framing
        self.evaluation_crop = evaluation_crop

    def forward(self, images: Tensor) -> Tensor:
        embedding: Tensor = self.tail(self.backbone(images))
        return embedding

    @torch.no_grad()
    def activation(self, images: Tensor) -> Tensor:
        """The backbone's output, ``(B, 3, H, W)`` -> ``(B, N, h, w)`` in float32, on the model's device."""
        # On a CPU few images at a time, whose activations stay in its cache, take half as long as many.
        chunks = images.to(self.device).split(_CPU_CHUNK if self.device.type == "cpu" else len(images))
        return torch.cat(
            [self.backbone(chunk.contiguous(memory_format=torch.channels_last)) for chunk in chunks]
        ).float()

    @property
    def geometry(self) -> Geometry:
        """What a dataset does to pixels and boxes.

        Raises:
            ValueError: for an unknown framing.
        """
        if self.framing not in get_args(Framing):
            raise ValueError(f'framing must be "squash" or "crop", got {self.framing!r}')
        if self.framing == "squash":
            return Squash(self.size, self.interpolation)
        resize, crop = self.evaluation_crop or (256, 224)
        return ResizeCrop(round(self.size * resize / crop), self.size, self.interpolation)

    @property
    def normalize(self) -> Callable[[Tensor], Tensor]:
        """What a dataset does to the image of that geometry, in [0, 1]."""
        return Normalize(self.mean, self.std)

    @property
    def device(self) -> torch.device:
        return next((tensor.device for tensor in self.parameters()), torch.device("cpu"))

    def fast_copy(self, device: torch.device | str = "cpu") -> TwoPartModel:
        """The same model for inference: eval mode, frozen, channels last, batch normalisation folded away.

        Embeddings are the same up to rounding. A backbone that ``torch.fx`` cannot trace, or that comes out of it
        with other values, is copied as it is.
        """
        model = copy.deepcopy(self).eval().requires_grad_(False).to("cpu")
        probe = torch.rand(2, 3, self.size, self.size, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            expected = model.backbone(probe)
            try:
                # In place, because copies of traced modules come back in training mode, as what is traced does.
                fused = fuse(model.backbone, inplace=True).eval()
                same = torch.allclose(fused(probe), expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
            except Exception:  # tracing fails in as many ways as there are models
                same = False
        if same:
            model.backbone = fused
        return model.to(device).to(memory_format=torch.channels_last)

    def weights_hash(self) -> str:
        """SHA-256 of all parameters and buffers, with their names."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()


def split_model(net: EmbeddingModel) -> TwoPartModel:
    """Cut an embedding model at the layer that its pooling takes.

    A normalisation at the end is left out where the similarity is the cosine, which does not see it.

    Args:
        net: as :func:`~captum_fam.models.create_model` gives it; ``torch.fx`` must be able to trace it, unless it
            begins with that layer under the name ``features``, as the networks of the paper do.

    Raises:
        ValueError: if pooling and head do not make the model's embedding of the layer.
    """
    if net.pooling is None or net.token_grid is not None:
        raise ValueError(
            f"model {net.name}: its embedding is no pooling of layer {net.layer!r}; it cannot be cut there"
        )
    parts = TwoPartModel(
        _backbone(net),
        net.pooling,
        net.head,
        size=net.size,
        mean=net.mean,
        std=net.std,
        interpolation=net.interpolation,
        similarity=net.similarity,
        evaluation_crop=net.evaluation_crop,
    ).eval()
    probe = torch.rand(2, 3, net.size, net.size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        whole, again = net.model(probe), parts(probe)
    if net.similarity == "cosine":
        whole, again = unit(whole), unit(again)
    if whole.shape != again.shape or not torch.allclose(whole, again, rtol=1e-3, atol=1e-5):
        raise ValueError(f"model {net.name}: pooling and head do not make its embedding of layer {net.layer!r}")
    return parts


def _backbone(net: EmbeddingModel) -> nn.Module:
    """From images to the layer's output."""
    if net.layer == "features":
        return net.layer_module
    extractor = create_feature_extractor(net.model, {net.layer: "activation"})
    return nn.Sequential(extractor, _Only("activation"))


class _Only(nn.Module):
    """One entry of a dictionary."""

    def __init__(self, key: str) -> None:
        super().__init__()
        self.key = key

    def forward(self, tensors: dict[str, Tensor]) -> Tensor:
        return tensors[self.key]


def load_model(
    name: str,
    weights: str | Path | None = None,
    head: str | Path | nn.Module | None = None,
    pooling: str | None = None,
) -> TwoPartModel:
    """A model by name.

    Args:
        name: as for :func:`~captum_fam.models.create_model`; ``demo``, the network of ``captum-fam demo``; or
            ``package.module:factory``, a function without arguments that returns a :class:`TwoPartModel` or an
            :class:`~captum_fam.models.EmbeddingModel`.
        weights: a file of weights; None: the pretrained ones for networks of torchvision and timm, which are
            downloaded once, random ones for those of the paper.
        head: what stands in the place of the model's: a file as for :func:`~captum_fam.protocols.head.load_head`, or a
            module, of which ``torch.nn.Identity()`` leaves the pooled activation.
        pooling: before the head in place of the model's, ``"gap"``, ``"gmp"``, ``"lse"`` or ``"gem"``.

    Raises:
        ValueError: for an unknown name, weights or a head that do not fit, a factory of something else, or a pooling
            for which the model's own head was not trained.
    """
    made: object
    if ":" in name:
        if weights is not None:
            raise ValueError(f"weights: {name} brings its own; leave them out")
        module, _, attribute = name.partition(":")
        made = getattr(importlib.import_module(module), attribute)()
    elif name == "demo":
        net = load_demo_network()
        made = TwoPartModel(net.features, net.pooling, size=84, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    else:
        default = None if full_name(name) in list_models() else "DEFAULT"
        made = create_model(name, weights or default)
    model = split_model(made) if isinstance(made, EmbeddingModel) else made
    if not isinstance(model, TwoPartModel):
        raise ValueError(f"model {name}: its factory gave a {type(model).__name__}, expected a TwoPartModel")
    if pooling is not None:
        _set_pooling(model, name, pooling, head is not None)
    if head is not None:
        model.tail.head = head if isinstance(head, nn.Module) else load_head(head)
    return model.eval()


def _set_pooling(model: TwoPartModel, name: str, pooling: str, with_head: bool) -> None:
    if pooling not in POOLINGS:
        raise ValueError(f"pooling must be one of {', '.join(POOLINGS)}, got {pooling!r}")
    if not with_head and not isinstance(model.tail.head, nn.Identity):
        raise ValueError(f"pooling: {name} has a head, trained for the pooling that it has; give another head with it")
    model.tail.pooling = POOLINGS[pooling]()
