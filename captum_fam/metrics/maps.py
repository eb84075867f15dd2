"""The first steps of every measure: interpolate a map to the size of the input, and scale it to a common range."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from captum_fam.functional import moderate, widen

Energy = Literal["minmax", "positive"]
Size = tuple[int, int]


def upsample(maps: Tensor, size: Size | None = None) -> Tensor:
    """Interpolate maps to the size of the input, bilinearly (``align_corners=False``).

    Args:
        maps: attributions of a layer, ``(B, 1, h, w)`` or ``(B, h, w)``.
        size: height H and width W of the input, in pixels; None for no interpolation. Default: None.

    Returns:
        ``(B, H, W)``, detached, in float32 or a wider dtype.

    Raises:
        ValueError: for maps of another shape, such as maps of several channels.

    Example:
        >>> upsample(torch.tensor([[[0.0, 1.0]]]), size=(1, 4))
        tensor([[[0.0000, 0.2500, 0.7500, 1.0000]]])
    """
    if maps.dim() == 4 and maps.shape[1] == 1:
        maps = maps[:, 0]
    if maps.dim() != 3:
        raise ValueError(f"maps must have shape (B, 1, h, w) or (B, h, w), got {tuple(maps.shape)}")
    maps = widen(maps.detach())
    if size is None or tuple(maps.shape[1:]) == tuple(size):
        return maps
    return torch.nn.functional.interpolate(maps[:, None], size=tuple(size), mode="bilinear", align_corners=False)[:, 0]


def normalize_maps(maps: Tensor, size: Size | None = None, energy: Energy = "minmax") -> Tensor:
    """Interpolate the maps and scale each map to [0, 1]: norm(up(L)) of Eq. 19 of the FAM paper (arXiv 2307.05017).

    Args:
        maps: ``(B, 1, h, w)`` or ``(B, h, w)``.
        size: height H and width W of the input, in pixels; None for no interpolation. Default: None.
        energy: ``"minmax"`` for (L - min L) / (max L - min L) as in the paper; then the zero of a signed map, and weak
            negative evidence, have energy. ``"positive"`` for max(L, 0) / max L; then negative evidence has no energy.
            Default: ``"minmax"``.

    Returns:
        ``(B, H, W)``, in float32 or a wider dtype. All zero for an :func:`empty <find_empty>` map, and all NaN for a
        map :func:`with NaN or inf <find_nan>`.

    Raises:
        ValueError: for maps of another shape, or an unknown energy.

    Example:
        >>> signed = torch.tensor([[[-1.0, 0.0, 3.0]]])
        >>> normalize_maps(signed), normalize_maps(signed, energy="positive")
        (tensor([[[0.0000, 0.2500, 1.0000]]]), tensor([[[0., 0., 1.]]]))
    """
    _check_energy(energy)
    # Without the scale, max - min of very large values would overflow.
    resized = upsample(_moderate(maps), size)
    flat = resized.flatten(1)
    # Measured before the interpolation, which gives a flat map rounding noise. Min-max would scale the noise to [0, 1].
    constant = _is_constant(maps)
    low, high = flat.amin(1), flat.amax(1)
    if energy == "positive":
        low = torch.zeros_like(low)
        resized = torch.where(constant[:, None, None], high[:, None, None], resized).clamp_min(0)
    # An empty map is divided by infinity, which gives zero everywhere.
    empty = constant if energy == "minmax" else high <= 0
    span = torch.where(empty | (high <= low), torch.inf, high - low)
    low = low.masked_fill(find_nan(maps), torch.nan)  # makes the whole map NaN
    return (resized - low[:, None, None]).div_(span[:, None, None])


def find_nan(maps: Tensor) -> Tensor:
    """Which maps hold NaN or inf?

    Args:
        maps: ``(B, ...)``.

    Returns:
        Boolean ``(B,)``.

    Example:
        >>> find_nan(torch.tensor([[[1.0, 2.0]], [[1.0, torch.nan]]]))
        tensor([False,  True])
    """
    return ~maps.flatten(1).isfinite().all(1)


def find_empty(maps: Tensor, energy: Energy = "minmax") -> Tensor:
    """Which maps show nothing?

    Args:
        maps: ``(B, ...)``.
        energy: ``"minmax"`` for the flat maps, whose range is at most the rounding error of the largest magnitude (4
            units in the last place); ``"positive"`` for the maps without a positive value. Default: ``"minmax"``.

    Returns:
        Boolean ``(B,)``.

    Raises:
        ValueError: for an unknown energy.

    Example:
        >>> find_empty(torch.tensor([[[1.0, 2.0]], [[3.0, 3.0]]]))
        tensor([False,  True])
    """
    _check_energy(energy)
    return _is_constant(maps) if energy == "minmax" else (maps.flatten(1) <= 0).all(1)


def _moderate(maps: Tensor) -> Tensor:
    """The maps in float32 or wider, each scaled to moderate numbers; min-max gives the same result for them."""
    return moderate(widen(maps.detach()).flatten(1)).view_as(maps)


def _is_constant(maps: Tensor) -> Tensor:
    flat = widen(maps.detach()).flatten(1)
    low, high = flat.amin(1), flat.amax(1)
    return high - low <= 4 * torch.finfo(flat.dtype).eps * torch.maximum(low.abs(), high.abs())


def _check_energy(energy: str) -> None:
    if energy not in get_args(Energy):
        raise ValueError(f"energy must be one of {', '.join(map(repr, get_args(Energy)))}, got {energy!r}")
