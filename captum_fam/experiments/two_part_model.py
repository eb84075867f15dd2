"""A model in two parts: the backbone from images to the explained activation, and the tail to the embedding.

Every image passes through the backbone only once. All methods and measures then work on the tail, whose input is the
activation.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from captum_fam._files import sha256_of_weights
from captum_fam.attr.tokens import TokenGrid, TokenGridLike
from captum_fam.embedding.forward import check_embedding
from captum_fam.geometry import Geometry
from captum_fam.images import IMAGENET_MEAN, IMAGENET_STD, normalize
from captum_fam.models import EmbeddingModel
from captum_fam.preprocessing import Preprocessing, Resize, check_size
from captum_fam.similarity import SimilarityLike, similarity_name

_CPU_CHUNK_SIZE = 8  # images per pass on a CPU


class AsEmbedding(nn.Module):
    """Takes the place of the pooling where the embedding is no pooling of a layer: the rest computes the embedding.

    The input has any form that :func:`~captum_fam.embedding.forward.check_embedding` takes; the output is ``(B, J)``.
    """

    def forward(self, output: object) -> Tensor:
        return check_embedding(output)


class Tail(nn.Module):
    """The part of a model from the activation to the embedding: the rest of the network, the pooling, and the head.

    ``tail.activation`` is the layer to explain: ``LayerFAM(tail, tail.activation)`` takes activations as its inputs. If
    the network is cut before its pooled layer, ``tail.rest`` computes the output of the pooled layer, or the embedding
    where it is no pooling of a layer. The modules in ``rest`` have the names that they have in the network, such as
    ``"rest.features.10"``.

    Args:
        pooling: module from ``(B, N, h, w)`` to ``(B, N)``; :class:`AsEmbedding` if ``rest`` computes the embedding.
        head: module from ``(B, N)`` to ``(B, J)``; None if the pooled activation is the embedding. Default: None.
        rest: module from the activation to the input of the pooling; None if the activation is pooled itself. Default:
            None.
        token_grid: layout of the tokens of the activation, which come as ``(B, T, N)`` or ``(B, h, w, N)``. Default:
            None, the activation is ``(B, N, h, w)``.

    Attributes:
        token_grids: layout of the tokens of each module of the tail that gives tokens, by the name of the module.

    Example:
        >>> from captum_fam.pooling import GAP
        >>> tail = Tail(GAP(), nn.Linear(6, 4))
        >>> tail(torch.rand(2, 6, 7, 7)).shape
        torch.Size([2, 4])
    """

    def __init__(
        self,
        pooling: nn.Module,
        head: nn.Module | None = None,
        rest: nn.Module | None = None,
        token_grid: TokenGridLike | None = None,
    ) -> None:
        super().__init__()
        self.activation = nn.Identity()
        self.token_grids: dict[str, TokenGridLike] = {} if token_grid is None else {"activation": token_grid}
        self.rest = rest
        self.pooling = pooling
        self.head = nn.Identity() if head is None else head

    def forward(self, activation: Tensor) -> Tensor:
        activation = self.activation(activation)
        if self.rest is not None:
            # The first module of the rest may work in place, but the explained activation must not change.
            activation = self.rest(activation.clone())
        embedding: Tensor = self.head(self.pooling(activation))
        return embedding


class TwoPartModel(nn.Module):
    """An embedding model in two parts, cut at the explained activation, with the preprocessing of its images.

    Args:
        backbone: module from images ``(B, C, H, W)`` to activations ``(B, N, h, w)``; or to tokens, with a
            ``token_grid``.
        pooling: module from ``(B, N, h, w)`` to ``(B, N)``, such as :class:`~captum_fam.pooling.GAP`; or
            :class:`AsEmbedding` if ``rest`` computes the embedding.
        head: module from ``(B, N)`` to ``(B, J)``; None if the pooled activation is the embedding. Default: None.
        size: side of the square images, or ``(height, width)``, in pixels. Default: 224.
        mean: mean of each RGB channel, for pixels in [0, 1], which is subtracted. Default: ImageNet's.
        std: standard deviation of each RGB channel, for pixels in [0, 1], by which is divided. Default: ImageNet's.
        interpolation: interpolation of the resizing, as in :class:`~captum_fam.preprocessing.Preprocessing`. Default:
            ``"bilinear"``.
        similarity: similarity with which the model decides: a name, or a similarity of your own. Default:
            ``"cosine"``.
        resize: what happens to the aspect ratio of an image: ``"squash"``, ``"pad"`` or ``"crop"``, as in
            :class:`~captum_fam.preprocessing.Preprocessing`. Default: ``"squash"``.
        evaluation_crop: shorter side after the resizing and side of the crop, in pixels, for ``"crop"``; for another
            ``size`` the ratio of the two stays. Default: None, the largest crop.
        rest: as in :class:`Tail`. Default: None.
        token_grid: as in :class:`Tail`. Default: None.
        any_size: whether the model also takes images of another size. Default: True.

    Raises:
        ValueError: for a size that is not one or two whole numbers of pixels.

    Example:
        >>> from torchvision.models import resnet18
        >>> from captum_fam.pooling import GAP
        >>> net = resnet18(weights="DEFAULT").eval()
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
        size: int | tuple[int, int] = 224,
        mean: tuple[float, ...] = IMAGENET_MEAN,
        std: tuple[float, ...] = IMAGENET_STD,
        interpolation: str = "bilinear",
        similarity: SimilarityLike = "cosine",
        resize: Resize = "squash",
        evaluation_crop: tuple[int, int] | None = None,
        rest: nn.Module | None = None,
        token_grid: TokenGridLike | None = None,
        any_size: bool = True,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.tail = Tail(pooling, head, rest, token_grid)
        self.size = check_size(size)
        self.any_size = any_size
        self.mean = mean
        self.std = std
        self.interpolation = interpolation
        self.similarity = similarity
        self.resize: Resize = resize
        self.evaluation_crop = evaluation_crop

    def forward(self, images: Tensor) -> Tensor:
        embedding: Tensor = self.tail(self.backbone(images))
        return embedding

    @torch.no_grad()
    def activation(self, images: Tensor) -> Tensor:
        """Compute the output of the backbone.

        Args:
            images: ``(B, C, H, W)``, on any device.

        Returns:
            float32 ``(B, N, h, w)`` or tokens, on the device of the model.
        """
        # A CPU works in chunks of a few images, whose activations stay in the cache. This halves the time.
        chunks = images.to(self.device).split(_CPU_CHUNK_SIZE if self.device.type == "cpu" else len(images))
        return torch.cat(
            [self.backbone(chunk.contiguous(memory_format=torch.channels_last)) for chunk in chunks]
        ).float()

    @property
    def embedding_model(self) -> EmbeddingModel:
        """The model with its layer, preprocessing and similarity, for :func:`~captum_fam.models.create_model`."""
        return EmbeddingModel(
            "two parts",
            self,
            "tail.activation",
            size=self.size,
            any_size=self.any_size,
            mean=self.mean,
            std=self.std,
            token_grid=self.tail.token_grids.get("activation"),  # type: ignore[arg-type]
            similarity=self.similarity,  # type: ignore[arg-type]
            interpolation=self.interpolation,
            resize=self.resize,
            evaluation_crop=self.evaluation_crop,
        )

    def take(self, net: EmbeddingModel) -> None:
        """Take the preprocessing and the similarity of an embedding model.

        Args:
            net: result of :attr:`embedding_model`, with changes.
        """
        self.size, self.mean, self.std, self.interpolation = net.size, net.mean, net.std, net.interpolation
        self.resize, self.similarity = net.resize, net.similarity

    @property
    def preprocessing(self) -> Preprocessing:
        """From a photograph to the input of the model, by the rules of an :class:`~captum_fam.models.EmbeddingModel`.

        Raises:
            ValueError: for an unknown way to resize, or one that gives images of different sizes.
        """
        if self.resize == "keep":
            raise ValueError(
                "resize: keep gives images of different sizes, and a protocol needs one size; use pad, which keeps the "
                "ratio too"
            )
        return self.embedding_model.preprocessing

    @property
    def geometry(self) -> Geometry:
        """The resizing, padding or cropping of the images and their boxes.

        Raises:
            ValueError: as :attr:`preprocessing`.
        """
        return self.preprocessing.geometry

    @property
    def height_and_width(self) -> tuple[int, int]:
        """Height and width of the images, in pixels."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    @property
    def takes_larger_images(self) -> bool:
        """Whether the model takes images of several times its size, such as mosaics of whole images."""
        grid = self.tail.token_grids.get("activation")
        return self.any_size and (grid is None or (isinstance(grid, TokenGrid) and grid.size is None))

    @property
    def normalize(self) -> Callable[[Tensor], Tensor]:
        """Function from images in [0, 1], after the geometry, to the normalized input of the model."""
        return partial(normalize, mean=self.mean, std=self.std)

    @property
    def device(self) -> torch.device:
        """Device of the parameters; the CPU for a model without parameters."""
        return next((tensor.device for tensor in self.parameters()), torch.device("cpu"))

    def fast_copy(self, device: torch.device | str = "cpu") -> TwoPartModel:
        """A copy of the model for fast inference: eval mode, no gradients, channels last, and folded batch norms.

        Each batch normalization is folded into the convolution that is registered directly before it in the same
        module. If this changes the activation, because the two modules do not run one after the other, the backbone is
        not folded.

        Args:
            device: device of the copy. Default: ``"cpu"``.

        Returns:
            A model with the same embeddings up to rounding.
        """
        model = copy.deepcopy(self).eval().requires_grad_(False).to("cpu")
        # Without batch normalization the two parts of a transformer go on to share their weights.
        if any(isinstance(module, nn.BatchNorm2d) for module in model.backbone.modules()):
            probe = probe_images(self.size, len(self.mean))
            folded = copy.deepcopy(model.backbone)
            _fold_batch_norms(folded)
            with torch.no_grad():
                expected = model.backbone(probe)
                if torch.allclose(folded(probe), expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max())):
                    model.backbone = folded
        return model.to(device).to(memory_format=torch.channels_last)

    def settings(self) -> dict[str, Any]:
        """Everything on which embeddings depend, in types that JSON can hold."""
        return {
            "weights": sha256_of_weights(self),
            # The pooling may have no parameters, so that the hash of the weights does not depend on it.
            "tail": repr(self.tail),
            "token_grid": repr(self.tail.token_grids.get("activation")),
            "similarity": similarity_name(self.similarity),
            "preprocessing": {
                "size": list(self.size) if isinstance(self.size, tuple) else self.size,
                "mean": list(self.mean),
                "std": list(self.std),
                "interpolation": self.interpolation,
                "geometry": repr(self.geometry),
            },
        }


def probe_images(size: int | tuple[int, int], channels: int = 3) -> Tensor:
    """Two images of noise, the same in every call.

    Args:
        size: side of the images, or ``(height, width)``, in pixels.
        channels: number of channels. Default: 3.

    Returns:
        ``(2, channels, height, width)`` in [0, 1).

    Example:
        >>> probe_images((32, 16)).shape
        torch.Size([2, 3, 32, 16])
    """
    height, width = (size, size) if isinstance(size, int) else size
    return torch.rand(2, channels, height, width, generator=torch.Generator().manual_seed(0))


def _fold_batch_norms(module: nn.Module) -> None:
    """Fold each batch normalization into the convolution that is registered directly before it."""
    children = list(module.named_children())
    for (before, convolution), (name, norm) in itertools.pairwise(children):
        # A subclass may do more than its base class, such as an activation after the normalization.
        if type(convolution) is not nn.Conv2d or type(norm) is not nn.BatchNorm2d:
            continue
        if convolution.out_channels == norm.num_features:
            setattr(module, before, fuse_conv_bn_eval(convolution, norm))
            setattr(module, name, nn.Identity().eval())
    for child in module.children():
        _fold_batch_norms(child)
