"""Which layer of a network is pooled into the embedding, and by which pooling: both are measured on one image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from captum_fam._text import first_line
from captum_fam.attr.layer_search import FoundLayer, find_layer, measure_layer
from captum_fam.geometry import height_and_width
from captum_fam.pooling import GAP


def layer_of(
    model: nn.Module, size: int | tuple[int, int], any_size: bool, layer: str | None = None, channels: int = 3
) -> FoundLayer:
    """The layer to explain, measured on the :func:`probe_image`.

    Args:
        model: network from images ``(B, C, H, W)`` to embeddings ``(B, J)``, in eval mode.
        size: side of the images of the model, or ``(height, width)``, in pixels.
        any_size: whether the model also takes smaller images.
        layer: dotted name of a layer; None for the layer that :func:`~captum_fam.find_layer` finds. Default: None.
        channels: number of channels, C. Default: 3.

    Returns:
        The layer with its name, its module and the grid of its tokens.

    Raises:
        ValueError: if no layer is found, if the named layer does not exist, has no positions or runs more than once, or
            if the model fails on images of this size.

    Example:
        >>> layer_of(model, size=224, any_size=True).name
        'layer4'
    """
    # The grid of tokens of an oblong image depends on its size; that of a square one is a square at every size.
    is_large = any_size and isinstance(size, int) and size > 224
    probe = probe_image(model, 224 if is_large else size, channels)
    try:
        return find_layer(model, probe) if layer is None else measure_layer(model, probe, layer)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"size={size}: {type(model).__name__} fails on images of {channels} channels and this size "
            f"({first_line(error)})"
        ) from error


def probe_image(model: nn.Module, size: int | tuple[int, int], channels: int = 3) -> Tensor:
    """An image of smooth random colors, the same in every call.

    Args:
        model: network whose device and floating-point type the image gets.
        size: side of the image, or ``(height, width)``, in pixels.
        channels: number of channels, C. Default: 3.

    Returns:
        ``(1, C, H, W)``.

    Example:
        >>> probe_image(model, size=(64, 32)).shape
        torch.Size([1, 3, 64, 32])
    """
    coarse = torch.randn(1, channels, 7, 7, generator=torch.Generator().manual_seed(0), device="cpu")
    image = nn.functional.interpolate(coarse, height_and_width(size), mode="bicubic")
    like = next((parameter for parameter in model.parameters() if parameter.is_floating_point()), image)
    return image.to(like)


@torch.no_grad()
def global_average(
    model: nn.Module, layer: FoundLayer, probe: Tensor, heads: Sequence[nn.Module | None] = (None,)
) -> tuple[nn.Module | None, nn.Module | None]:
    """Pooling and head that compute the embedding from the output of a layer, if the pooling is the global average.

    Args:
        model: network from images ``(B, C, H, W)`` to embeddings ``(B, J)``, in eval mode.
        layer: layer of the model.
        probe: images on which the embeddings are compared, ``(B, C, H, W)``.
        heads: modules that may follow the average; None in the sequence stands for no head. Default: no head.

    Returns:
        The global average and the first head that together give the embedding of the model. ``(None, None)`` if no
        head does.

    Example:
        >>> global_average(model, layer_of(model, 224, any_size=True), probe_image(model, 224))
        (GAP(), None)
    """
    outputs: list[Tensor] = []
    handle = layer.module.register_forward_hook(lambda _, __, output: outputs.append(output))
    try:
        embedding = model(probe)
    finally:
        handle.remove()
    pooling, activation = GAP(), outputs[0]
    pooled = pooling(activation if layer.token_grid is None else layer.token_grid(activation))
    for head in heads:
        candidate = pooled if head is None else head(pooled)
        # The order of the sums differs from the order in the model, so that equal embeddings differ by rounding.
        if candidate.shape == embedding.shape and torch.allclose(candidate, embedding, rtol=1e-4, atol=1e-5):
            return pooling, head
    return None, None


class OnePosition(nn.Module):
    """A head for feature maps, applied to their average as to a map of one position: ``(B, N)`` to ``(B, J)``.

    Args:
        head: module that takes ``(B, N, h, w)``, and that begins with global average pooling or works position by
            position.

    Example:
        >>> head = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(6, 2))
        >>> OnePosition(head)(torch.rand(4, 6)).shape
        torch.Size([4, 2])
    """

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, pooled: Tensor) -> Tensor:
        embedding: Tensor = self.head(pooled[:, :, None, None])
        return embedding
