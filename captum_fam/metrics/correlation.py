"""Does the map change with the support, or with the model? The correlation of two maps, one value per sample."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from captum_fam.functional import widen
from captum_fam.metrics.maps import find_empty, find_nan
from captum_fam.metrics.ranking import average_ranks

Correlation = Literal["pearson", "spearman"]


def map_correlation(maps: Tensor, others: Tensor, kind: Correlation = "pearson") -> Tensor:
    """Correlation of each map with another map of the same query, over the pixels.

    The correlation of the maps for two supports is the measure of the support swap: 1 means that the map does not
    depend on the support.

    Args:
        maps: ``(B, ...)``.
        others: the other map of each query, of the same shape.
        kind: ``"pearson"``; or ``"spearman"``, the correlation of the ranks, in which equal pixels share the mean of
            their ranks. Default: ``"pearson"``.

    Returns:
        ``(B,)`` in [-1, 1]; NaN where a map is flat or holds NaN or inf.

    Raises:
        ValueError: if the shapes differ, or for an unknown kind.

    Example:
        >>> map_correlation(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[9.0, 4.0, 1.0]]), "spearman")
        tensor([-1.])
    """
    if maps.shape != others.shape:
        raise ValueError(f"maps has shape {tuple(maps.shape)} and others {tuple(others.shape)}; pass the same shape")
    if kind not in ("pearson", "spearman"):
        raise ValueError(f'kind must be "pearson" or "spearman", got {kind!r}')
    undefined = find_nan(maps) | find_nan(others) | find_empty(maps) | find_empty(others)
    first, second = (_centered(widen(batch.detach()).flatten(1), kind) for batch in (maps, others))
    correlation = (first * second).sum(1) / (first.norm(dim=1) * second.norm(dim=1))
    return correlation.clamp(-1, 1).masked_fill(undefined, torch.nan)


def _centered(flat: Tensor, kind: Correlation) -> Tensor:
    """Rows, or the ranks of the rows, minus their mean and scaled to a largest magnitude of 1."""
    if kind == "spearman":
        flat = average_ranks(flat).to(flat.dtype)
    flat = flat - flat.mean(1, keepdim=True)
    # Without the scale the squares of tiny values would underflow to zero.
    largest = flat.abs().amax(1, keepdim=True)
    return flat / torch.where(largest > 0, largest, 1)
