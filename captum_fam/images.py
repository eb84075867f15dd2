"""Reading image files, converting them to tensors, normalizing, and undoing the normalization for display."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")


class UnreadableImageError(ValueError):
    """An image file that is missing, broken or no image; the message names the file.

    Example:
        >>> try:
        ...     read_image("no-such.jpg")
        ... except UnreadableImageError as error:
        ...     print(error)
        no-such.jpg: no such file
    """


def read_image(path: str | Path) -> Image.Image:
    """Read an image file as upright RGB.

    The image is rotated as the orientation tag of the camera says. Gray, palette and CMYK images become RGB, 16-bit
    gray becomes 8-bit, transparent pixels become white, and an animation gives its first frame.

    Args:
        path: the file, in any format that PIL reads.

    Returns:
        The image in mode ``"RGB"``.

    Raises:
        UnreadableImageError: if the file is missing, truncated or no image, or has floating-point pixels.

    Example:
        >>> Image.new("L", (40, 30)).save("gray.png")
        >>> read_image("gray.png").mode
        'RGB'
    """
    try:
        with Image.open(path) as opened:
            upright = ImageOps.exif_transpose(opened)
    except FileNotFoundError as error:
        raise UnreadableImageError(f"{path}: no such file") from error
    except Exception as error:  # for a broken file, decoders raise exceptions of many kinds
        raise UnreadableImageError(f"{path}: cannot be read as an image ({error})") from error
    if upright.mode.startswith("I"):
        return Image.fromarray((np.asarray(upright) / 257).clip(0, 255).astype(np.uint8)).convert("RGB")
    if upright.mode == "F":
        raise UnreadableImageError(f"{path}: floating-point pixels of unknown range; save it with 8 or 16 bits")
    if upright.has_transparency_data:
        layer = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return upright.convert("RGB")


def find_images(folder: str | Path) -> list[Path]:
    """The image files in a folder, sorted by name, without hidden files and without subfolders.

    Args:
        folder: the folder.

    Returns:
        Paths of the files whose suffix is one of :data:`IMAGE_SUFFIXES`.

    Raises:
        OSError: if the folder cannot be read.

    Example:
        >>> Image.new("RGB", (2, 2)).save("b.png")
        >>> [path.name for path in find_images(".") if path.name.startswith("b")]
        ['b.png']
    """
    return sorted(
        path
        for path in Path(folder).iterdir()
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and path.is_file()
    )


def image_to_tensor(image: Image.Image) -> Tensor:
    """The pixels of an RGB image in [0, 1]: float32 ``(3, H, W)``.

    Example:
        >>> image_to_tensor(Image.new("RGB", (40, 30), (255, 0, 51)))[:, 0, 0]
        tensor([1.0000, 0.0000, 0.2000])
    """
    # np.array copies: the pixels that PIL shares without a copy are read-only.
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


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
