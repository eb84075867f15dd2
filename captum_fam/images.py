"""Image files to tensors and back: reading with care, preprocessing, un-normalizing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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
    """The image files directly in a folder, by suffix, sorted by name; hidden ones are left out."""
    return sorted(
        path
        for path in Path(folder).iterdir()
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and path.is_file()
    )


@dataclass(frozen=True)
class Preprocessing:
    """From an image to what a model takes: squashed to a square, in [0, 1], less the mean, over the deviation.

    Squashing keeps all of the image in sight, where a center crop cuts off what may be the answer; a position in
    the square is the same relative position in the image.

    Attributes:
        size: side of the square in pixels.
        mean: of the RGB channels, for values in [0, 1].
        std: standard deviation of the RGB channels.
    """

    size: int = 224
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def __call__(self, image: Image.Image) -> Tensor:
        """An RGB image as a normalized tensor ``(3, size, size)``."""
        square = image.resize((self.size, self.size), Image.Resampling.BILINEAR)
        pixels = torch.from_numpy(np.asarray(square, dtype=np.float32) / 255).permute(2, 0, 1)
        return (pixels - _by_channel(self.mean, pixels)) / _by_channel(self.std, pixels)


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
