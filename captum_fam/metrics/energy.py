"""Does the map lie on the object? The share of the energy of a map inside the boxes, one value per sample."""

from __future__ import annotations

import torch
from torch import Tensor

from captum_fam.metrics.boxes import Boxes, region_mask, region_mask_of_maps
from captum_fam.metrics.maps import Energy, Size, normalize_maps


def energy_proportion(maps: Tensor, region: Boxes, size: Size | None = None, energy: Energy = "minmax") -> Tensor:
    """The share of the energy of a map inside the boxes, Eq. 19 of the FAM paper (arXiv 2307.05017).

    A pixel that lies in several boxes counts once.

    Args:
        maps: ``(B, 1, h, w)`` or ``(B, h, w)``; interpolated to ``size`` here.
        region: boxes in pixels of the input, ``(B, 4)``, ``(B, M, 4)`` padded with zeros, or a list of B tensors
            ``(M_i, 4)``; or a boolean mask ``(B, H, W)``. A pixel lies in a box if the center of the pixel lies in it.
        size: height and width of the input, in pixels; None is allowed only if the region is a mask. Default: None.
        energy: ``"minmax"`` as in the paper, or ``"positive"``; see :func:`normalize_maps`. Default: ``"minmax"``.

    Returns:
        ``(B,)`` in [0, 1]. NaN for a flat map, which has no energy, for a map with NaN or inf, and where the region
        holds no pixel.

    Raises:
        ValueError: if the shapes do not fit, or if the region is of boxes and ``size`` is None.

    Example:
        >>> energy_proportion(torch.tensor([[[0.0, 1.0], [1.0, 2.0]]]), torch.tensor([[1, 0, 2, 2]]), size=(2, 2))
        tensor([0.7500])
    """
    inside = region_mask_of_maps(maps, region, size)
    normalized = normalize_maps(maps, (inside.shape[1], inside.shape[2]), energy).flatten(1)
    weight = inside.flatten(1).to(normalized.dtype)
    # For a map without energy this is 0 / 0, which gives the NaN of an undefined share.
    share = (normalized * weight).sum(1) / normalized.sum(1)
    return share.masked_fill(weight.amax(1) == 0, torch.nan)


def area_share(region: Boxes, size: Size | None = None) -> Tensor:
    """The share of the pixels of the image inside the boxes, which is the energy proportion of a uniform map.

    Args:
        region: boxes or a mask, as in :func:`energy_proportion`.
        size: height and width of the input, in pixels; None is allowed only if the region is a mask. Default: None.

    Returns:
        ``(B,)`` in (0, 1]; NaN where the region holds no pixel.

    Raises:
        ValueError: if the shapes do not fit, or if the region is of boxes and ``size`` is None.

    Example:
        >>> area_share(torch.tensor([[1, 0, 2, 2]]), size=(2, 2))
        tensor([0.5000])
    """
    share = region_mask(region, size).flatten(1).float().mean(1)
    return share.masked_fill(share == 0, torch.nan)


def energy_lift(maps: Tensor, region: Boxes, size: Size | None = None, energy: Energy = "minmax") -> Tensor:
    """:func:`energy_proportion` divided by :func:`area_share`. A uniform map has a lift of 1.

    Args:
        maps: ``(B, 1, h, w)`` or ``(B, h, w)``; interpolated to ``size`` here.
        region: boxes or a mask, as in :func:`energy_proportion`.
        size: height and width of the input, in pixels; None is allowed only if the region is a mask. Default: None.
        energy: as in :func:`energy_proportion`. Default: ``"minmax"``.

    Returns:
        ``(B,)``; NaN where :func:`energy_proportion` is NaN.

    Raises:
        ValueError: if the shapes do not fit, or if the region is of boxes and ``size`` is None.

    Example:
        >>> energy_lift(torch.tensor([[[0.0, 1.0], [1.0, 2.0]]]), torch.tensor([[1, 0, 2, 2]]), size=(2, 2))
        tensor([1.5000])
    """
    inside = region_mask_of_maps(maps, region, size)
    return energy_proportion(maps, inside, energy=energy) / area_share(inside)
