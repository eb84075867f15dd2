"""Image files to tensors and back: reading with care, normalizing, and undoing that for display."""

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
    """A file that is no image, or a broken one; the message names it."""


def read_image(path: str | Path) -> Image.Image:
    """Read an image file as upright RGB.

    The camera's orientation tag is applied; gray, palette and CMYK images become RGB; 16-bit gray is brought to 8
    bits; transparent pixels are laid on white; of an animation the first frame is taken.

    Raises:
        UnreadableImageError: if the file is missing, truncated or no image.
    """
    try:
        with Image.open(path) as opened:
            upright = ImageOps.exif_transpose(opened)
    except FileNotFoundError as error:
        raise UnreadableImageError(f"{path}: no such file") from error
    except Exception as error:  # decoders raise whatever they trip over in a broken file
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
    """The image files directly in a folder, by suffix, sorted by name; hidden files are left out."""
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
    # Copied, because PIL lends its pixels for reading only.
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


def normalize(images: Tensor, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD) -> Tensor:
    """Images in [0, 1] to what a model takes, ``(images - mean) / std``: ``(..., C, H, W)`` to the same shape.

    Args:
        images: floating point.
        mean: one number per channel. Default: of ImageNet.
        std: one number per channel. Default: of ImageNet.
    """
    return (images - _by_channel(mean, images)) / _by_channel(std, images)


def normalize_bytes(
    images: Tensor, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD
) -> Tensor:
    """Pixels in 0 to 255 to what a model takes: uint8 ``(..., C, H, W)`` to float32 of the same shape.

    Args:
        images: uint8, on any device.
        mean: one number per channel, of images in [0, 1]. Default: of ImageNet.
        std: one number per channel, of images in [0, 1]. Default: of ImageNet.
    """
    pixels = images.float()
    # In place: a whole data set at once is normalized on the GPU.
    return pixels.div_(255).sub_(_by_channel(mean, pixels)).div_(_by_channel(std, pixels))


def unnormalize(images: Tensor, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD) -> Tensor:
    """Undo ``(x - mean) / std`` and cut to [0, 1], for display: ``(..., C, H, W)`` to the same shape.

    Raises:
        ValueError: if the images do not have as many channels as there are means and deviations.

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
    return torch.tensor(values, dtype=like.dtype, device=like.device).view(-1, 1, 1)
