"""The two sides of a pair of the small network, position by position, computed without the package."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from captum_fam.models import EmbeddingModel
from tests.explanation.by_hand import HEIGHT, MEAN, STD, WIDTH, small_net

NET = small_net().double()
MODEL = EmbeddingModel("small", NET, "features", size=(HEIGHT, WIDTH), mean=MEAN, std=STD)


def embedding(image: Tensor) -> Tensor:
    """The embedding of one image ``(C, H, W)``, ``(5,)``."""
    with torch.no_grad():
        made: Tensor = NET(image[None])[0]
    return made


def vectors(image: Tensor) -> Tensor:
    """What each position gives to the embedding: the head of its activation, divided by their number; (h, w, 5)."""
    with torch.no_grad():
        activation = NET.features(image[None])[0]
        _, height, width = activation.shape
        made = torch.zeros(height, width, 5, dtype=torch.float64)
        for row in range(height):
            for column in range(width):
                made[row, column] = NET.head.weight @ activation[:, row, column] / (height * width)
    return made


def unit(vector: Tensor) -> Tensor:
    return vector / vector.norm()


def cosine(one: Tensor, other: Tensor) -> float:
    return float(unit(one) @ unit(other))


def side(image: Tensor, classifier: Tensor) -> tuple[Tensor, float]:
    """The map of one image for a linear classifier of its embedding, and the share of the bias of the head."""
    own = vectors(image)
    map_ = torch.zeros(own.shape[:2], dtype=torch.float64)
    for row in range(own.shape[0]):
        for column in range(own.shape[1]):
            map_[row, column] = own[row, column] @ classifier
    return map_, float(NET.head.bias.detach() @ classifier)


def against_gallery(own: Tensor, other: Tensor, gallery: Sequence[Tensor]) -> tuple[float, Tensor]:
    """The cosine of two embeddings less the mean cosine to a gallery, and the classifier of the first embedding."""
    mean = sum((unit(one) for one in gallery), start=torch.zeros_like(own)) / len(gallery)
    return cosine(own, other) - float(unit(own) @ mean), (unit(other) - mean) / own.norm()


def pictures(count: int, height: int = 11, width: int = 8, seed: int = 0) -> Tensor:
    """Inputs of the model, float64 ``(count, 3, height, width)``."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, height, width, generator=generator, dtype=torch.float64)
