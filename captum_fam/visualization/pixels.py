"""Converting images and maps of all usual forms to the arrays that are drawn."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

Array = npt.NDArray[Any]
ImageLike = Tensor | Array | Image.Image
MapLike = Tensor | Array

# How far pixels may lie outside [0, 1]: undoing a normalization in half precision has rounding errors of this size.
_TOLERANCE = 1e-4


def to_rgb(image: ImageLike, name: str = "image") -> Array:
    """Convert an image to an array of floats in [0, 1].

    Args:
        image: a tensor ``(C, H, W)``, an array ``(H, W)`` or ``(H, W, C)``, or a PIL image; one or three channels,
            floats in [0, 1] or 8-bit integers.
        name: the name of the image in error messages. Default: ``"image"``.

    Returns:
        ``(H, W, 3)``.

    Raises:
        ValueError: for another shape, or values outside [0, 1].

    Example:
        >>> to_rgb(torch.zeros(1, 4, 6)).shape
        (4, 6, 3)
    """
    if isinstance(image, Tensor):
        image = image.detach().cpu().float() if image.is_floating_point() else image.cpu()
        pixels: Array = (image.movedim(0, -1) if image.dim() == 3 else image).numpy()
    else:
        pixels = np.asarray(image.convert("RGB") if isinstance(image, Image.Image) else image)
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3) or not pixels.size:
        raise ValueError(
            f"{name} must be an image of one or three channels, a tensor (C, H, W) or an array (H, W, C), "
            f"got shape {tuple(getattr(image, 'shape', ()))}"
        )
    if pixels.dtype == np.uint8:
        pixels = pixels / 255
    # Comparisons with NaN are false, so that `not` refuses NaN too.
    if not (pixels.min() >= -_TOLERANCE and pixels.max() <= 1 + _TOLERANCE):
        raise ValueError(
            f"{name} has values from {pixels.min():.3g} to {pixels.max():.3g}, expected [0, 1] or 8-bit integers; "
            "undo the normalization with unnormalize(...)"
        )
    return np.broadcast_to(pixels, (*pixels.shape[:2], 3)).clip(0, 1)


def to_map(attribution: MapLike, size: tuple[int, ...], name: str = "attribution") -> Array:
    """Convert a map to an array, resized bilinearly to the size of an image as ``LayerAttribution.interpolate`` does.

    Args:
        attribution: the map, ``(h, w)``, ``(1, h, w)`` or ``(h, w, 1)``.
        size: height H and width W of the image; a map of this size stays as it is.
        name: the name of the map in error messages. Default: ``"attribution"``.

    Returns:
        float64 ``(H, W)``.

    Raises:
        ValueError: for another shape, NaN or inf.

    Example:
        >>> to_map(torch.tensor([[0.0, 1.0]]), (1, 4))
        array([[0.  , 0.25, 0.75, 1.  ]])
    """
    values = torch.as_tensor(attribution).detach().cpu().double()
    shape = tuple(values.shape)
    if values.dim() == 3 and 1 in (shape[0], shape[2]):
        values = values.squeeze(0 if shape[0] == 1 else 2)
    if values.dim() != 2 or not values.numel():
        raise ValueError(f"{name}: a map must have the shape (H, W), (1, H, W) or (H, W, 1), got {shape}")
    if not values.isfinite().all():
        raise ValueError(f"{name}: the map contains NaN or inf")
    if tuple(values.shape) != tuple(size):
        values = torch.nn.functional.interpolate(values[None, None], tuple(size), mode="bilinear")[0, 0]
    return values.numpy()
