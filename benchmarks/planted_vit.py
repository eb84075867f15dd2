"""The class-token ViT of docs/results/planted.md as an embedding model for images of any size."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.planted_training import SIZE, load
from captum_fam import TokenGrid
from captum_fam.models import EmbeddingModel


class AnySize(nn.Module):
    """torchvision's ViT for images of any size: its position embedding is interpolated, as DINOv2 does.

    Args:
        vit: the network, whose head is an identity.
    """

    def __init__(self, vit: nn.Module) -> None:
        super().__init__()
        self.vit = vit

    def forward(self, images: Tensor) -> Tensor:
        """Images ``(B, 3, H, W)`` to class tokens ``(B, N)``."""
        patches = self.vit.conv_proj(images)
        tokens = torch.cat([self.vit.class_token.expand(images.shape[0], -1, -1), patches.flatten(2).mT], 1)
        encoder = self.vit.encoder
        places = places_for(encoder.pos_embedding, (patches.shape[2], patches.shape[3]))
        return encoder.ln(encoder.layers(encoder.dropout(tokens + places)))[:, 0]


def places_for(embedding: Tensor, grid: tuple[int, int]) -> Tensor:
    """A position embedding of a class token and a square grid, for another grid.

    Args:
        embedding: ``(1, 1 + side * side, N)``.
        grid: rows and columns.

    Returns:
        ``(1, 1 + rows * columns, N)``.
    """
    side = math.isqrt(embedding.shape[1] - 1)
    if grid == (side, side):
        return embedding
    square = embedding[:, 1:].mT.unflatten(2, (side, side))
    larger = nn.functional.interpolate(square, grid, mode="bicubic", align_corners=False)
    return torch.cat([embedding[:, :1], larger.flatten(2).mT], 1)


def planted_vit(folder: Path) -> EmbeddingModel:
    """The class-token network of the account's page, as an embedding model.

    Args:
        folder: folder of the weights.

    Raises:
        FileNotFoundError: if it is not trained; the message names the command.
    """
    if not (folder / "vit.pt").exists():
        raise FileNotFoundError(f"{folder / 'vit.pt'}: make it by python -m benchmarks.planted train --net vit")
    net, _ = load("vit", folder)
    middle, spread = (0.5,) * 3, (0.25,) * 3
    return EmbeddingModel(
        "vit", AnySize(net).eval(), "vit.encoder.dropout", SIZE, mean=middle, std=spread, token_grid=TokenGrid()
    )
