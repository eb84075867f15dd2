"""Reading image files, converting them to tensors, normalizing, and undoing the normalization for display."""

from __future__ import annotations

import io
import os
import stat
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np
import torch
from PIL import Image, ImageFile, UnidentifiedImageError
from torch import Tensor

from captum_fam._text import printable_path
from captum_fam.color_modes import UnreadableImageError as UnreadableImageError
from captum_fam.color_modes import as_rgb as as_rgb
from captum_fam.color_modes import errors_of
from captum_fam.image_folders import REFUSED_FORMATS

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

MAX_PIXELS = 128_000_000
"""Image files of more pixels are refused, because a file of a few kilobytes can hold any number of them. An image of
this size takes 1 to 2 GB to read."""

_SIGNATURE_BYTES = 16


def read_image(path: str | Path, *, upright: bool = True, max_pixels: int | None = None) -> Image.Image:
    """Read an image file as RGB, converted as by :func:`as_rgb`.

    Args:
        path: the file, in any format of photographs that Pillow reads. The first bytes of the file decide which format
            that is, not the suffix.
        upright: whether the image is rotated by the orientation tag of the camera. False gives the pixels as stored, on
            which the boxes of many data sets were drawn. Default: True.
        max_pixels: largest number of pixels of an image. Default: None, :data:`MAX_PIXELS`.

    Returns:
        The image in mode ``"RGB"``.

    Raises:
        UnreadableImageError: if the file is missing, truncated, no image or no regular file, if the image has more
            than ``max_pixels`` pixels, or if as_rgb does not convert it.

    Example:
        >>> Image.new("L", (40, 30)).save("gray.png")
        >>> read_image("gray.png").mode
        'RGB'
    """
    name = printable_path(path)
    limit = MAX_PIXELS if max_pixels is None else max_pixels
    with errors_of(name):
        _check_kind(path, name)
        with open(path, "rb") as file:
            return _decode(file, os.fspath(path), name, upright, limit)


def image_from_bytes(data: bytes, name: str = "image") -> Image.Image:
    """Read the bytes of an image file as RGB, as :func:`read_image` reads a file.

    Args:
        data: all bytes of the file.
        name: the name of the image in error messages. Default: ``"image"``.

    Returns:
        The image in mode ``"RGB"``, upright.

    Raises:
        UnreadableImageError: as :func:`read_image`.

    Example:
        >>> Image.new("L", (40, 30)).save("gray.png")
        >>> image_from_bytes(Path("gray.png").read_bytes()).size
        (40, 30)
    """
    with errors_of(name):
        return _decode(io.BytesIO(data), "", name, True, MAX_PIXELS)


def _decode(file: IO[bytes], path: str, name: str, upright: bool, limit: int) -> Image.Image:
    """The image in an open file as RGB."""
    opened = _open_format(file, path)
    n_pixels = opened.width * opened.height
    if n_pixels > limit:
        raise UnreadableImageError(
            f"{name}: too large, {opened.width} x {opened.height} pixels are {n_pixels / 1e6:.1f} megapixels "
            f"and the limit is {limit / 1e6:g}; make the image smaller, or raise the limit (max_pixels of "
            "read_image, captum_fam.images.MAX_PIXELS)"
        )
    return as_rgb(opened, name, upright=upright)


def _check_kind(path: str | Path, name: str) -> None:
    """Refuse what is no regular file before it is opened: a named pipe would block."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError as error:
        if os.path.islink(path):
            raise UnreadableImageError(f"{name}: a link to a file that does not exist") from error
        raise
    if not stat.S_ISREG(mode):
        kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket"}
        raise UnreadableImageError(f"{name}: {kinds.get(stat.S_IFMT(mode), 'a device')}, expected an image file")


def _open_format(file: IO[bytes], path: str) -> ImageFile.ImageFile:
    """An image of which only the head is read yet.

    ``PIL.Image.open`` has a limit of its own: it would warn of a large image, or refuse it, before its size is known
    here.
    """
    Image.init()  # loads the readers of all formats, once
    signature = file.read(_SIGNATURE_BYTES)
    if not signature:
        raise UnidentifiedImageError("the file is empty")
    reasons = []
    for kind, (reader, accepts) in Image.OPEN.items():
        is_known: bool | str = False  # by the signature; a format without one is recognized by its reader alone
        try:
            if accepts and not (is_known := accepts(signature)):
                continue
            if kind in REFUSED_FORMATS:
                reasons += [f"{kind} is no format of photographs"] if is_known else []
                continue
            if isinstance(is_known, str):  # a format for which a decoder is missing
                reasons.append(is_known)
                continue
            file.seek(0)
            return reader(file, path)
        except (SyntaxError, IndexError, TypeError, struct.error) as error:
            # The errors that a reader raises for a file of another format.
            reasons += [f"{kind}: {error}"] if is_known else []
    raise UnidentifiedImageError("; ".join(["cannot identify the format of an image", *reasons]))


def image_to_tensor(image: Image.Image) -> Tensor:
    """The pixels of an RGB image in [0, 1].

    Args:
        image: image of PIL in mode ``"RGB"``.

    Returns:
        float32 ``(3, H, W)``.

    Example:
        >>> image_to_tensor(Image.new("RGB", (40, 30), (255, 0, 51)))[:, 0, 0]
        tensor([1.0000, 0.0000, 0.2000])
    """
    # np.array copies: the pixels that PIL shares without a copy are read-only.
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


def tensor_to_image(pixels: Tensor) -> Image.Image:
    """An RGB image of pixels in [0, 1], ``(C, H, W)`` with one or three channels; rounded down to 8 bits.

    Example:
        >>> tensor_to_image(torch.full((1, 30, 40), 0.5)).getpixel((0, 0))
        (127, 127, 127)
    """
    # Not torchvision's to_pil_image: importing torchvision takes longer than importing the rest of this package.
    colors = pixels.detach().cpu().expand(3, -1, -1).permute(1, 2, 0)
    return Image.fromarray((colors * 255).byte().contiguous().numpy())


def normalize(images: Tensor, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD) -> Tensor:
    """Normalize images for a model: ``(images - mean) / std``.

    Args:
        images: ``(..., C, H, W)``, floating point, in [0, 1].
        mean: one number per channel. Default: the mean of ImageNet.
        std: the standard deviation, one number per channel. Default: the standard deviation of ImageNet.

    Returns:
        The same shape and dtype.

    Example:
        >>> normalize(torch.full((3, 1, 1), 0.5), mean=[0.5, 0.4, 0.3], std=[0.1, 0.1, 0.1]).flatten()
        tensor([0.0000, 1.0000, 2.0000])
    """
    return (images - _by_channel(mean, images)) / _by_channel(std, images)


def normalize_bytes(
    images: Tensor, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD
) -> Tensor:
    """Normalize 8-bit images for a model: ``(images / 255 - mean) / std``.

    Args:
        images: uint8 ``(..., C, H, W)``, on any device.
        mean: one number per channel, for images in [0, 1]. Default: the mean of ImageNet.
        std: the standard deviation, one number per channel, for images in [0, 1]. Default: the standard deviation of
            ImageNet.

    Returns:
        float32 of the same shape.

    Example:
        >>> normalize_bytes(torch.full((1, 1, 1), 255, dtype=torch.uint8), mean=[0.5], std=[0.25])
        tensor([[[2.]]])
    """
    pixels = images.float()
    # In place, because callers normalize a whole data set on the GPU, where a second copy may not fit.
    return pixels.div_(255).sub_(_by_channel(mean, pixels)).div_(_by_channel(std, pixels))


def unnormalize(images: Tensor, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD) -> Tensor:
    """Undo the normalization ``(x - mean) / std`` for display, and clamp the result to [0, 1].

    Args:
        images: ``(..., C, H, W)``, floating point, as the model takes them.
        mean: one number per channel. Default: the mean of ImageNet.
        std: the standard deviation, one number per channel. Default: the standard deviation of ImageNet.

    Returns:
        The same shape and dtype.

    Raises:
        ValueError: if the numbers of channels, means and deviations differ.

    Example:
        >>> figure = visualize_match(unnormalize(queries)[0], {"FAM": attributions[0]})
    """
    channels = images.shape[-3] if images.dim() >= 3 else 0
    if not channels == len(mean) == len(std):
        raise ValueError(
            f"images have shape {tuple(images.shape)}, so {channels} channels, but there are {len(mean)} means and "
            f"{len(std)} deviations"
        )
    return (images * _by_channel(std, images) + _by_channel(mean, images)).clamp(0, 1)


def _by_channel(values: Sequence[float], like: Tensor) -> Tensor:
    """One value per channel, ``(C, 1, 1)``, in the dtype and on the device of a tensor."""
    return torch.tensor(values, dtype=like.dtype, device=like.device).view(-1, 1, 1)
