"""Laying the tokens of a transformer out as an image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class TokenGrid:
    """Turns channels-last tokens into a channels-first grid, for layers of ViT and Swin models.

    ``(B, T, N)`` loses its prefix tokens and becomes ``(B, N, h, w)``; ``(B, h, w, N)`` becomes
    ``(B, N, h, w)``. Any function that only selects and rearranges can stand in its place.

    Take the output of a norm before the last attention, as below, rather than that of a block: a norm forgets the
    length of a token, so that the shares of :class:`~captum_fam.LayerSimilarityCAM` before it are zero.

    Args:
        size: h and w of the grid of patches; None for a square one.
        prefix_tokens: tokens before the patches: the class token and any registers.

    Example:
        >>> vit = torchvision.models.vit_b_32().eval()
        >>> vit.heads = torch.nn.Identity()
        >>> fam = LayerFAM(vit, vit.encoder.layers[-1].ln_1, token_grid=TokenGrid())
        >>> fam.attribute(torch.rand(2, 3, 224, 224), support=torch.rand(5, 3, 224, 224)).shape
        torch.Size([2, 1, 7, 7])
    """

    size: tuple[int, int] | None = None
    prefix_tokens: int = 1

    def __call__(self, tokens: Tensor) -> Tensor:
        """Rearrange ``(B, T, N)`` or ``(B, h, w, N)`` into ``(B, N, h, w)``.

        Raises:
            ValueError: if the patches do not fill the grid.
        """
        if tokens.dim() == 4:
            return tokens.permute(0, 3, 1, 2)
        if tokens.dim() != 3:
            raise ValueError(f"token_grid: expected tokens (B, T, N) or (B, h, w, N), got {tuple(tokens.shape)}")
        count = tokens.shape[1] - self.prefix_tokens
        side = math.isqrt(max(count, 0))
        height, width = self.size or (side, side)
        if count < 1 or height * width != count:
            raise ValueError(
                f"token_grid: {tokens.shape[1]} tokens less {self.prefix_tokens} prefix tokens do not fill a grid of "
                f"{height} x {width}; pass TokenGrid(size=(h, w), prefix_tokens=...)"
            )
        return tokens[:, self.prefix_tokens :].transpose(1, 2).unflatten(2, (height, width))


def looks_channels_last(scopes: Sequence[object], tensor: Tensor, n_features: int) -> bool:
    """Whether the channels of a layer's tensor seem to stand in its last dimension.

    The sizes that modules work on decide: those of the first scope that has any, the layer, then its model. Without
    them the embedding decides, whose length is likelier to be repeated by the channels than by a row of the image.
    """
    first, last = tensor.shape[1], tensor.shape[-1]
    for scope in scopes:
        channels_last, channels_first = _channel_sizes(scope) if isinstance(scope, nn.Module) else (set(), set())
        if channels_last or channels_first:
            return last in channels_last and first not in channels_first
    return last == n_features != first


def _channel_sizes(scope: nn.Module) -> tuple[set[int], set[int]]:
    channels_last, channels_first = set(), set()
    found = [scope]
    for module in found:
        found.extend(module.children())
        if isinstance(module, nn.Linear):
            channels_last.add(module.out_features)
        elif isinstance(module, nn.LayerNorm) and len(module.normalized_shape) == 1:
            channels_last.add(module.normalized_shape[0])
        elif isinstance(module, nn.MultiheadAttention):
            channels_last.add(module.embed_dim)
        elif isinstance(module, nn.modules.conv._ConvNd):
            channels_first.add(module.out_channels)
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            channels_first.add(module.num_features)
        elif isinstance(module, nn.GroupNorm):
            channels_first.add(module.num_channels)
    return channels_last, channels_first
