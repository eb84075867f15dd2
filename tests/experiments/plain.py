"""The protocols' numbers once more, image by image with a whole model in float64, for the tests to compare with."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, interpolate

from captum_fam.experiments.two_part_model import TwoPartModel

Score = Callable[[Tensor], Tensor]


class Plain:
    """A model without its cut, in float64, and the items of a dataset one at a time."""

    def __init__(self, model: TwoPartModel, dataset: Any) -> None:
        self.model = copy.deepcopy(model).double().eval()
        self.dataset = dataset

    def image(self, item: int) -> Tensor:
        image: Tensor = self.dataset[item].image.double()
        return image

    def activation(self, image: Tensor) -> Tensor:
        with torch.no_grad():
            activation: Tensor = self.model.backbone(image[None])[0]
        return activation

    def embedding(self, item: int) -> Tensor:
        return self.activation(self.image(item)).mean((1, 2))

    def embeddings(self) -> Tensor:
        return torch.stack([self.embedding(item) for item in range(len(self.dataset))])

    def energy(self, map_: Tensor, item: int) -> float:
        """Energy proportion of a map ``(h, w)`` in the item's box, min-max."""
        full = self.full(map_)
        x0, y0, x1, y1 = self.dataset[item].boxes[0].round().int().tolist()
        return float(full[y0:y1, x0:x1].sum() / full.sum())

    def full(self, map_: Tensor, side: int | None = None) -> Tensor:
        side = side or self.model.size
        full = interpolate(map_[None, None], (side, side), mode="bilinear")[0, 0]
        return (full - full.min()) / (full.max() - full.min())


def fam_map(activation: Tensor, supports: Tensor) -> Tensor:
    """Eq. 11-15 without a head, for supports ``(K, N)``."""
    z = activation.mean((1, 2))
    contributions = torch.zeros_like(z)
    for support in supports:
        products = z * support / (z.norm() * support.norm())
        contributions += products / products.sum().abs() / len(supports)
    weights = (contributions - contributions.min()) / (contributions.max() - contributions.min())
    return (weights[:, None, None] * activation).sum(0)


def grad_cam_map(activation: Tensor, score: Score) -> Tensor:
    """Channels weighted by the slope of the score at the pooled activation; its scale changes no measure."""
    z = activation.mean((1, 2)).requires_grad_()
    (slope,) = torch.autograd.grad(score(z), z)
    return (slope[:, None, None] * activation).sum(0)


def mean_cosine(z: Tensor, supports: Tensor) -> Tensor:
    return cosine_similarity(z[None], supports).mean()
