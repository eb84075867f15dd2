"""Images and maps of every usual form as the arrays that are drawn."""

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

# How far a float may lie outside [0, 1]: undoing a normalization in half precision rounds by about as much.
_TOLERANCE = 1e-4


def to_rgb(image: ImageLike, name: str = "image") -> Array:
    """An image as floats ``(H, W, 3)`` in [0, 1].

    Args:
        image: ``(C, H, W)`` as a tensor, ``(H, W)`` or ``(H, W, C)`` as an array, or a PIL image; one or three
            channels, floats in [0, 1] or 8-bit integers.
        name: what an error calls the image.

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
    # Written so that NaN is refused too: it compares as false.
    if not (pixels.min() >= -_TOLERANCE and pixels.max() <= 1 + _TOLERANCE):
        raise ValueError(
            f"{name} has values from {pixels.min():.3g} to {pixels.max():.3g}, expected [0, 1] or 8-bit integers; "
            "undo the normalization with unnormalize(...)"
        )
    return np.broadcast_to(pixels, (*pixels.shape[:2], 3)).clip(0, 1)


def to_map(attribution: MapLike, size: tuple[int, ...], name: str = "attribution") -> Array:
    """A map as float64 ``(H, W)``, brought bilinearly to an image's size, as ``LayerAttribution.interpolate`` does.

    Args:
        attribution: ``(h, w)``, ``(1, h, w)`` or ``(h, w, 1)``.
        size: height and width of the image; a map of this size stays as it is.
        name: what an error calls the map.

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
