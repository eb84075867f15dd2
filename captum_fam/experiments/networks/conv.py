"""The 64-filter networks of the few-shot experiments: `Conv64F`, and the registration of `Conv4Net`.

Both networks have four blocks of convolution, batch normalization and LeakyReLU(0.1), some with max-pooling, then
global average pooling, and no classifier. ``features`` is the layer to attribute to: its output is exactly the input of
the pooling.
"""

from __future__ import annotations

from functools import partial

from torch import nn

from captum_fam.experiments.networks.layouts import CONV
from captum_fam.models import Conv4Net, EmbeddingNet, register_model
from captum_fam.models.conv import conv_block
from captum_fam.pooling import GAP


@register_model("conv64f", layouts=CONV, size=84, interpolation="bicubic")
class Conv64F(EmbeddingNet):
    """Four blocks of 64 filters, the first two with a max-pool: the map is finer than the map of `Conv4Net`.

    Maps ``(B, 3, H, W)`` images to ``(B, 64)`` embeddings. For 84x84 images ``features`` returns 19x19 positions with
    ``padding=0`` (RelationNet's encoder) and 21x21 with ``padding=1`` (DN4's). 113,088 parameters either way.

    Args:
        padding: padding of the convolutions in the first two blocks, 0 or 1, in pixels per side; in the last two blocks
            it is always 1. Default: 0.

    Raises:
        ValueError: if ``padding`` is neither 0 nor 1.

    Example:
        >>> import torch
        >>> Conv64F(padding=1).features(torch.rand(2, 3, 84, 84)).shape
        torch.Size([2, 64, 21, 21])
    """

    def __init__(self, padding: int = 0) -> None:
        if padding not in (0, 1):
            raise ValueError(f"padding must be 0 (19x19 map) or 1 (21x21 map), got {padding!r}")
        blocks = [
            conv_block(3, 64, padding=padding, pool=True),
            conv_block(64, 64, padding=padding, pool=True),
            conv_block(64, 64, padding=1, pool=False),
            conv_block(64, 64, padding=1, pool=False),
        ]
        super().__init__(nn.Sequential(*blocks), GAP())


register_model("conv4net", Conv4Net, layouts=CONV, size=84, interpolation="bicubic")
register_model("conv64f_21x21", partial(Conv64F, padding=1), layouts=CONV, size=84, interpolation="bicubic")
