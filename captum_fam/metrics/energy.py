"""Does the map lie on the object? The share of the energy of a map inside the boxes, one value per sample."""

from __future__ import annotations

import torch
from torch import Tensor

from captum_fam.metrics.boxes import Boxes, region_mask, region_mask_of_maps
from captum_fam.metrics.maps import Energy, Size, normalize_maps


def energy_proportion(maps: Tensor, region: Boxes, size: Size | None = None, energy: Energy = "minmax") -> Tensor:
    """Eq. 19 of the FAM paper (arXiv 2307.05017): the share of a map's energy inside the boxes.

    A pixel that lies in several boxes counts once.

    Args:
        maps: ``(B, 1, h, w)`` or ``(B, h, w)``; interpolated to ``size`` here.
        region: boxes in pixels of the input, ``(B, 4)``, ``(B, M, 4)`` padded with zeros, or a list of B tensors
            ``(M_i, 4)``; or a boolean mask ``(B, H, W)``. A pixel lies in a box if the center of the pixel does.
        size: height and width of the input; None (default) is allowed with a mask only.
        energy: ``"minmax"`` (default) as in the paper, or ``"positive"``; see :func:`normalize_maps`.

    Returns:
        ``(B,)`` in [0, 1]. NaN for a map without energy (a flat one), for a map with NaN or inf, and where the region
        holds no pixel.

    Raises:
        ValueError: if the shapes do not fit, or ``size`` is missing.

    Example:
        >>> energy_proportion(torch.tensor([[[0.0, 1.0], [1.0, 2.0]]]), torch.tensor([[1, 0, 2, 2]]), size=(2, 2))
        tensor([0.7500])
    """
    inside = region_mask_of_maps(maps, region, size)
    normalized = normalize_maps(maps, (inside.shape[1], inside.shape[2]), energy).flatten(1)
    weight = inside.flatten(1).to(normalized.dtype)
    # A map without energy is 0 / 0 here, which is the NaN that is wanted.
    share = (normalized * weight).sum(1) / normalized.sum(1)
    return share.masked_fill(weight.amax(1) == 0, torch.nan)


def area_share(region: Boxes, size: Size | None = None) -> Tensor:
    """The share of the image's pixels inside the boxes: the energy proportion that a uniform map has.

    Args:
        region: boxes or a mask, as in :func:`energy_proportion`.
        size: height and width of the input; None (default) is allowed with a mask only.

    Returns:
        ``(B,)`` in (0, 1]; NaN where the region holds no pixel.

    Raises:
        ValueError: if the shapes do not fit, or ``size`` is missing.

    Example:
        >>> area_share(torch.tensor([[1, 0, 2, 2]]), size=(2, 2))
        tensor([0.5000])
    """
    share = region_mask(region, size).flatten(1).float().mean(1)
    return share.masked_fill(share == 0, torch.nan)


def energy_lift(maps: Tensor, region: Boxes, size: Size | None = None, energy: Energy = "minmax") -> Tensor:
    """:func:`energy_proportion` divided by :func:`area_share`: 1 is the lift of a uniform map.

    Args:
        maps: ``(B, 1, h, w)`` or ``(B, h, w)``.
        region: boxes or a mask, as in :func:`energy_proportion`.
        size: height and width of the input; None (default) is allowed with a mask only.
        energy: ``"minmax"`` (default) or ``"positive"``.

    Returns:
        ``(B,)``; NaN where :func:`energy_proportion` is NaN.

    Raises:
        ValueError: if the shapes do not fit, or ``size`` is missing.

    Example:
        >>> energy_lift(torch.tensor([[[0.0, 1.0], [1.0, 2.0]]]), torch.tensor([[1, 0, 2, 2]]), size=(2, 2))
        tensor([1.5000])
    """
    inside = region_mask_of_maps(maps, region, size)
    return energy_proportion(maps, inside, energy=energy) / area_share(inside)
