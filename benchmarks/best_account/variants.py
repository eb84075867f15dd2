"""Ways to combine accounts of one score into another account of it; every one keeps the sum."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from benchmarks.best_account.collect import VIEWS
from captum_fam.attr.account import mean_of_layers, resample
from captum_fam.functional import smooth_maps

Maps = dict[str, Tensor]
Combine = Callable[[Maps], Tensor]

SHARES = (0.11, 0.18, 0.25, 0.32, 0.39, 0.46)
"""Sides of the windows as shares of the side of the mosaic; a cell of the mosaic has 0.5."""


def window_of(side: int, share: float) -> int:
    """The odd window that is nearest to a share of a side.

    Args:
        side: positions along a side.
        share: share of the side.
    """
    return max(1, 2 * round((side * share - 1) / 2) + 1)


def variants() -> Iterator[tuple[str, Combine]]:
    """Names and functions from the collected maps to combined maps."""
    for layers in (("early",), ("middle",), ("last",), ("middle", "last"), ("early", "middle", "last")):
        for share in (0.0, *SHARES):
            yield f"{' + '.join(layers)}{_told(share)}", _over(layers, share)
    for weight in (0.25, 0.75):
        yield f"{weight:g} middle + {1 - weight:g} last{_told(0.39)}", _weighted(weight, 0.39)
    for sigma in (0.09, 0.125):
        yield f"middle + last, Gaussian of sigma {sigma:g}", _gaussian(("middle", "last"), sigma)
    for temperature in (0.1, 0.2, 0.5):
        for sigma in (0.18, math.inf):
            near = "anywhere" if sigma == math.inf else f"within sigma {sigma:g}"
            yield f"last, spread over alike positions {near}, temperature {temperature:g}", _alike(temperature, sigma)
    for told, views in (("mirrored views", VIEWS[:2]), ("moved views", (VIEWS[0], *VIEWS[2:])), ("all views", VIEWS)):
        for share in (0.0, 0.25, 0.39):
            yield f"middle + last, {told}{_told(share)}", _over(("middle", "last"), share, views)
    for share in (0.0, 0.25, 0.39):
        yield f"middle + last against the runner-up{_told(share)}", _over(("middle", "last"), share, ("runner-up",))


def _told(share: float) -> str:
    return f", window {share:g}" if share else ""


def _mean(maps: Maps, layers: Sequence[str], views: Sequence[str] = VIEWS[:1]) -> Tensor:
    return mean_of_layers([maps[f"{view}/{layer}"] for layer in layers for view in views])


def _over(layers: Sequence[str], share: float, views: Sequence[str] = VIEWS[:1]) -> Combine:
    def combine(maps: Maps) -> Tensor:
        mean = _mean(maps, layers, views)
        return smooth_maps(mean, window_of(mean.shape[-1], share))

    return combine


def _weighted(weight: float, share: float) -> Combine:
    def combine(maps: Maps) -> Tensor:
        middle = maps[f"{VIEWS[0]}/middle"]
        last = resample(maps[f"{VIEWS[0]}/last"], tuple(middle.shape[2:]))
        return smooth_maps(weight * middle + (1 - weight) * last, window_of(middle.shape[-1], share))

    return combine


def _gaussian(layers: Sequence[str], sigma: float) -> Combine:
    def combine(maps: Maps) -> Tensor:
        mean = _mean(maps, layers)
        position = torch.arange(mean.shape[-1]) / mean.shape[-1]
        # Column p says where the value at p goes; a column sums to one.
        spread = torch.softmax(-((position[:, None] - position) ** 2) / (2 * sigma**2), 0).to(mean)
        return spread @ mean @ spread.T

    return combine


def _alike(temperature: float, sigma: float) -> Combine:
    """Every position gives its value to positions with a similar descriptor."""

    def combine(maps: Maps) -> Tensor:
        last, descriptors = maps[f"{VIEWS[0]}/last"], maps["descriptors"]
        height, width = last.shape[2:]
        unit = torch.nn.functional.normalize(descriptors.flatten(2), dim=1)
        place = torch.cartesian_prod(torch.arange(height) / height, torch.arange(width) / width)
        logits = unit.transpose(1, 2) @ unit / temperature - torch.cdist(place, place) ** 2 / (2 * sigma**2)
        targets = len(last) // len(descriptors)
        values = last.view(len(descriptors), targets, -1)
        return (values @ torch.softmax(logits, 1).transpose(1, 2)).view_as(last)

    return combine
