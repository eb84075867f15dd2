"""Converting images, volumes and maps of all usual forms to the arrays that are drawn."""

from __future__ import annotations

from typing import Any, TypeGuard

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from captum_fam.images import as_rgb

Array = npt.NDArray[Any]
ImageLike = Tensor | Array | Image.Image
MapLike = Tensor | Array

# How far pixels may lie outside [0, 1]: undoing a normalization in half precision has rounding errors of this size.
_TOLERANCE = 1e-4

# With more channels than this and a width of at most four pixels, a tensor is taken for an image (H, W, C).
_MANY_CHANNELS = 16

_MOST_SLICES = 8

# By the number of dimensions of an input without its channels: the forms of its map, and the mode of interpolation.
_MAP_FORMS = {
    1: ("of a signal must have the shape (L,) or (1, L)", "linear"),
    2: ("of an image must have the shape (H, W), (1, H, W) or (H, W, 1)", "bilinear"),
    3: ("of a volume must have the shape (D, H, W) or (1, D, H, W)", "trilinear"),
}


def to_rgb(image: ImageLike, name: str = "image") -> Array:
    """Convert an image to an array of floats in [0, 1].

    An image of one or three channels keeps its values. Of another number of channels, each channel is scaled to [0, 1]
    by its smallest and largest value, and the mean of the channels is the gray image.

    Args:
        image: a tensor ``(C, H, W)``, an array ``(H, W)`` or ``(H, W, C)``, or a PIL image. One or three channels are
            floats in [0, 1] or 8-bit integers; other numbers of channels have any finite values. A PIL image, and an
            8-bit array ``(H, W, 4)`` of color and transparency, become upright RGB as
            :func:`~captum_fam.images.as_rgb` describes.
        name: the name of the image in error messages. Default: ``"image"``.

    Returns:
        ``(H, W, 3)``.

    Raises:
        ValueError: for another shape, values outside [0, 1], NaN or inf.

    Example:
        >>> to_rgb(torch.zeros(1, 4, 6)).shape
        (4, 6, 3)
    """
    if _is_with_transparency(image):
        image = Image.fromarray(image)
    if isinstance(image, Image.Image):
        image = np.asarray(as_rgb(image, name))
    pixels = _as_array(image)
    shape = pixels.shape
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    elif isinstance(image, Tensor):
        pixels = np.moveaxis(pixels, 0, -1)
    if pixels.ndim != 3 or not pixels.size or _has_channels_elsewhere(shape, pixels.shape[-1]):
        raise ValueError(f"{name} must be an image, a tensor (C, H, W) or an array (H, W, C), got shape {shape}")
    return _colors(pixels, name)


def to_slices(volume: ImageLike, name: str = "image") -> tuple[Array, tuple[int, ...], int]:
    """Convert a volume or a video to at most eight of its slices, evenly chosen, as arrays of floats in [0, 1].

    Args:
        volume: a tensor ``(C, D, H, W)`` or an array ``(D, H, W, C)``, with values as in :func:`to_rgb`; of another
            number of channels than one or three, the channels of the chosen slices are scaled.
        name: the name of the volume in error messages. Default: ``"image"``.

    Returns:
        The slices, ``(n, H, W, 3)``; their n positions, counted from zero; and the number of all slices, D.

    Raises:
        ValueError: for another shape, values outside [0, 1], NaN or inf.

    Example:
        >>> slices, positions, depth = to_slices(torch.rand(1, 12, 30, 40))
        >>> slices.shape, positions, depth
        ((8, 30, 40, 3), (0, 2, 3, 5, 6, 8, 9, 11), 12)
    """
    pixels = _as_array(volume)
    shape = pixels.shape
    if isinstance(volume, Tensor):
        pixels = np.moveaxis(pixels, 0, -1)
    if pixels.ndim != 4 or not pixels.size or _has_channels_elsewhere(shape, pixels.shape[-1]):
        raise ValueError(f"{name} must be a volume, a tensor (C, D, H, W) or an array (D, H, W, C), got shape {shape}")
    depth = len(pixels)
    count = min(depth, _MOST_SLICES)
    # The middle of each of `count` parts of equal depth; the first and the last slice are often empty.
    chosen = [(2 * part + 1) * depth // (2 * count) for part in range(count)]
    return _colors(pixels[chosen], name), tuple(chosen), depth


def to_signal(signal: ImageLike, name: str = "image") -> Array:
    """Convert a signal to an array.

    Args:
        signal: a tensor or an array, ``(C, L)`` or ``(L,)``, of any finite values.
        name: the name of the signal in error messages. Default: ``"image"``.

    Returns:
        float64 ``(C, L)``.

    Raises:
        ValueError: for another shape, NaN or inf.

    Example:
        >>> to_signal(torch.zeros(50)).shape
        (1, 50)
    """
    values = _as_array(signal).astype(np.float64)
    if values.ndim not in (1, 2) or not values.size:
        raise ValueError(f"{name} must be a signal (C, L) or (L,), got shape {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError(f"{name} contains NaN or inf")
    return np.atleast_2d(values)


def to_map(attribution: MapLike, size: tuple[int, ...], name: str = "attribution") -> Array:
    """Convert a map to an array, resized linearly to the size of an input as ``LayerAttribution.interpolate`` does.

    Args:
        attribution: the map, ``(h, w)``, ``(1, h, w)`` or ``(h, w, 1)`` of an image; ``(l,)`` or ``(1, l)`` of a
            signal; ``(d, h, w)`` or ``(1, d, h, w)`` of a volume.
        size: the size of the input: ``(H, W)`` of an image, ``(L,)`` of a signal, or ``(D, H, W)`` of a volume. A map
            of this size stays as it is.
        name: the name of the map in error messages. Default: ``"attribution"``.

    Returns:
        float64 of the given size.

    Raises:
        ValueError: for another shape, NaN or inf.

    Example:
        >>> to_map(torch.tensor([[0.0, 1.0]]), (1, 4))
        array([[0.  , 0.25, 0.75, 1.  ]])
        >>> to_map(torch.tensor([[0.0, 1.0]]), (4,))
        array([0.  , 0.25, 0.75, 1.  ])
    """
    values = torch.as_tensor(attribution).detach().cpu().double()
    shape, dims = tuple(values.shape), len(size)
    forms, mode = _MAP_FORMS[dims]
    if values.dim() == dims + 1 and shape[0] == 1:
        values = values.squeeze(0)
    elif values.dim() == dims + 1 == 3 and shape[2] == 1:
        values = values.squeeze(2)
    if values.dim() != dims or not values.numel():
        raise ValueError(f"{name}: a map {forms}, got {shape}")
    if not values.isfinite().all():
        raise ValueError(f"{name}: the map contains NaN or inf")
    if tuple(values.shape) != tuple(size):
        values = torch.nn.functional.interpolate(values[None, None], tuple(size), mode=mode)[0, 0]
    return values.numpy()


def channels_in_words(image: ImageLike) -> str:
    """What :func:`to_rgb` or :func:`to_slices` did to the channels of an image or a volume.

    Args:
        image: an image or a volume, of a form that these functions take.

    Returns:
        For example ``"mean of 13 channels"``; an empty text for an image of one or three channels.

    Example:
        >>> channels_in_words(torch.rand(13, 30, 40))
        'mean of 13 channels'
    """
    if isinstance(image, Image.Image) or image.ndim == 2 or _is_with_transparency(image):
        return ""
    channels = image.shape[0 if isinstance(image, Tensor) else -1]
    return "" if channels in (1, 3) else f"mean of {channels} channels"


def _as_array(values: ImageLike) -> Array:
    """An array with the values of a tensor or an array."""
    if not isinstance(values, Tensor):
        return np.asarray(values)
    values = values.detach().cpu()
    # NumPy has no bfloat16.
    array: Array = (values.float() if values.is_floating_point() else values).numpy()
    return array


def _is_with_transparency(image: ImageLike) -> TypeGuard[Array]:
    """Whether an image is an array of 8-bit red, green, blue and opacity, as image readers give it."""
    return isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 4


def _has_channels_elsewhere(shape: tuple[int, ...], channels: int) -> bool:
    """Whether a shape such as (64, 64, 3) of a tensor has the channels at the wrong end.

    Without this check, such an image would be drawn as the mean of 64 channels.
    """
    other_end = shape[0] if shape[-1] == channels else shape[-1]
    return channels > _MANY_CHANNELS and other_end in (1, 3, 4)


def _colors(pixels: Array, name: str) -> Array:
    """Pixels ``(..., C)`` of any number of channels as colors ``(..., 3)`` in [0, 1]."""
    channels = pixels.shape[-1]
    if channels not in (1, 3):
        if not np.isfinite(pixels).all():
            raise ValueError(f"{name} contains NaN or inf")
        pixels = _scaled(pixels.astype(np.float64)).mean(-1, keepdims=True)
    elif pixels.dtype == np.uint8:
        pixels = pixels / 255
    # Comparisons with NaN are false, so that `not` refuses NaN too.
    if not (pixels.min() >= -_TOLERANCE and pixels.max() <= 1 + _TOLERANCE):
        raise ValueError(
            f"{name} has values from {pixels.min():.3g} to {pixels.max():.3g}, expected [0, 1] or 8-bit integers; "
            "undo the normalization with unnormalize(...)"
        )
    return np.broadcast_to(pixels, (*pixels.shape[:-1], 3)).clip(0, 1)


def _scaled(pixels: Array) -> Array:
    """Pixels ``(..., C)``, each channel scaled to [0, 1] by its smallest and largest value; constant ones are zero."""
    axes = tuple(range(pixels.ndim - 1))
    low, high = pixels.min(axes), pixels.max(axes)
    scaled: Array = (pixels - low) / np.where(high > low, high - low, 1.0)
    return scaled
