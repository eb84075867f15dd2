"""A model in two parts: up to the activation that is explained, and from there to the embedding.

Images go through the backbone once; every method and measure then works on the tail, whose input is the activation.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.transforms import Normalize

from captum_fam._files import sha256_of
from captum_fam.geometry import Geometry, ResizeCrop, Squash
from captum_fam.images import IMAGENET_MEAN, IMAGENET_STD
from captum_fam.similarity import SimilarityLike, similarity_name

Framing = Literal["squash", "crop"]

_CPU_CHUNK = 8


class Tail(nn.Module):
    """From the activation to the embedding: what is left of the network, pooling, then a head.

    ``tail.activation`` is the layer to explain, so that a method is made as ``LayerFAM(tail, tail.activation)`` and
    takes activations for its inputs. Of a network that is cut before its pooled layer, ``tail.rest`` gives that layer's
    output, and the modules between go by their names in the network: ``"rest.features.10"``.

    Args:
        pooling: ``(B, N, h, w)`` -> ``(B, N)``.
        head: ``(B, N)`` -> ``(B, J)``; None leaves the pooled activation.
        rest: from the activation to what is pooled; None: the activation itself is.
    """

    def __init__(self, pooling: nn.Module, head: nn.Module | None = None, rest: nn.Module | None = None) -> None:
        super().__init__()
        self.activation = nn.Identity()
        self.rest = rest
        self.pooling = pooling
        self.head = nn.Identity() if head is None else head

    def forward(self, activation: Tensor) -> Tensor:
        activation = self.activation(activation)
        if self.rest is not None:
            # Its first module may work in place, and what is explained must stay as it is.
            activation = self.rest(activation.clone())
        embedding: Tensor = self.head(self.pooling(activation))
        return embedding


class TwoPartModel(nn.Module):
    """An embedding model, cut at the activation that is explained, with what has to be done to its images.

    Args:
        backbone: images ``(B, 3, H, W)`` -> activation ``(B, N, h, w)``.
        pooling: ``(B, N, h, w)`` -> ``(B, N)``, such as :class:`~captum_fam.pooling.GAP`.
        head: ``(B, N)`` -> ``(B, J)``. Default: none, the embedding is the pooled activation.
        size: side of the square that images are brought to. Default: 224.
        mean: of the RGB channels in [0, 1], which is subtracted. Default: of ImageNet.
        std: of the RGB channels in [0, 1], by which is divided. Default: of ImageNet.
        interpolation: of the resizing, ``"bilinear"`` (default) or ``"bicubic"``.
        similarity: the measure that the model decides with: a name, or a similarity of your own. Default:
            ``"cosine"``.
        framing: ``"squash"`` the whole image to the square, or resize its shorter side and ``"crop"`` the center.
        evaluation_crop: of a crop, the shorter side after resizing and the side that is cut out, None: 256 and 224;
            another ``size`` keeps their ratio.
        rest: from the activation to what is pooled, where the network is cut before that.

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
        similarity: SimilarityLike = "cosine",
        framing: Framing = "squash",
        evaluation_crop: tuple[int, int] | None = None,
        rest: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.tail = Tail(pooling, head, rest)
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
        """The same model for inference: eval mode, frozen, channels last, batch normalization folded away.

        A batch normalization goes into the convolution that is registered right before it in the same module. Where
        that changes the activation, because the two do not run one after the other, the backbone stays as it is.

        Args:
            device: of the copy. Default: ``"cpu"``.

        Returns:
            A model whose embeddings are the same up to rounding.
        """
        model = copy.deepcopy(self).eval().requires_grad_(False).to("cpu")
        probe = probe_images(self.size)
        folded = copy.deepcopy(model.backbone)
        _fold_batch_norms(folded)
        with torch.no_grad():
            expected = model.backbone(probe)
            if torch.allclose(folded(probe), expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max())):
                model.backbone = folded
        return model.to(device).to(memory_format=torch.channels_last)

    def settings(self) -> dict[str, Any]:
        """What embeddings depend on, for JSON."""
        return {
            "weights": self.weights_hash(),
            # What the weights do not say: how the model pools.
            "tail": repr(self.tail),
            "similarity": similarity_name(self.similarity),
            "preprocessing": {
                "size": self.size,
                "mean": list(self.mean),
                "std": list(self.std),
                "interpolation": self.interpolation,
                "geometry": repr(self.geometry),
            },
        }

    def weights_hash(self) -> str:
        """SHA-256 of all parameters and buffers, with their names."""
        return sha256_of(*(part for named in sorted(self.state_dict().items()) for part in named))


def probe_images(size: int) -> Tensor:
    """Two images of noise, ``(2, 3, size, size)``, the same ones whenever they are asked for."""
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))


def _fold_batch_norms(module: nn.Module) -> None:
    """Put each batch normalization into the convolution that is registered right before it."""
    children = list(module.named_children())
    for (before, convolution), (name, norm) in itertools.pairwise(children):
        # Subclasses may do more than their names say, such as an activation behind the normalization.
        if type(convolution) is not nn.Conv2d or type(norm) is not nn.BatchNorm2d:
            continue
        if convolution.out_channels == norm.num_features:
            setattr(module, before, fuse_conv_bn_eval(convolution, norm))
            setattr(module, name, nn.Identity().eval())
    for child in module.children():
        _fold_batch_norms(child)
