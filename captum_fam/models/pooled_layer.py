"""The layer of a network that is pooled into the embedding, and how, measured on one image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from captum_fam.attr.layer_search import FoundLayer, find_layer, measure_layer
from captum_fam.pooling import GAP


def layer_of(model: nn.Module, size: int, any_size: bool, layer: str | None = None) -> FoundLayer:
    """The layer to explain, measured on an image of colors that vary smoothly.

    Args:
        model: ``(B, 3, H, W)`` to embeddings ``(B, J)``, in eval mode.
        size: side of its images.
        any_size: whether smaller images will do.
        layer: dotted name of a chosen layer; None (default): the one that :func:`~captum_fam.find_layer` finds.

    Raises:
        ValueError: if none is found, or the chosen one does not exist, has no positions or runs more than once.
    """
    probe = probe_image(model, min(size, 224) if any_size else size)
    return find_layer(model, probe) if layer is None else measure_layer(model, probe, layer)


def probe_image(model: nn.Module, size: int) -> Tensor:
    """Smooth random colors, ``(1, 3, size, size)``, on the device of the model; always the same."""
    coarse = torch.randn(1, 3, 7, 7, generator=torch.Generator().manual_seed(0), device="cpu")
    image = nn.functional.interpolate(coarse, (size, size), mode="bicubic")
    return image.to(next((parameter.device for parameter in model.parameters()), image.device))


@torch.no_grad()
def global_average(
    model: nn.Module, layer: FoundLayer, probe: Tensor, heads: Sequence[nn.Module | None] = (None,)
) -> tuple[nn.Module | None, nn.Module | None]:
    """Pooling and head that make the embedding of a layer, if the pooling is the global average.

    Args:
        model: ``(B, 3, H, W)`` to embeddings ``(B, J)``, in eval mode.
        layer: of the model.
        probe: images on which the embeddings are compared.
        heads: what may follow the average; None: nothing.

    Returns:
        The average and the first head with which the embedding is the same; None and None if there is none.
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
        made = pooled if head is None else head(pooled)
        if made.shape == embedding.shape and torch.allclose(made, embedding, rtol=1e-4, atol=1e-5):
            return pooling, head
    return None, None


class OnePosition(nn.Module):
    """A head of feature maps applied to their average: ``(B, N) -> (B, J)``.

    Args:
        head: takes ``(B, N, h, w)`` and begins with global average pooling, or works position by position.
    """

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, pooled: Tensor) -> Tensor:
        embedding: Tensor = self.head(pooled[:, :, None, None])
        return embedding
