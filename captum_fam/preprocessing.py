"""From a photograph to the input of a model: size, resizing and normalization, as one object."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from numbers import Integral
from typing import Any, Literal, get_args

import torch
from PIL import Image
from torch import Tensor

from captum_fam.geometry import Fit, Pad, ResizeCrop, Squash, height_and_width
from captum_fam.images import IMAGENET_MEAN, IMAGENET_STD, as_rgb, image_to_tensor, normalize

Resize = Literal["squash", "pad", "crop", "keep"]
"""What happens to the aspect ratio of a photograph."""

LARGEST_SIDE = 4096
"""The largest side of an input image, in pixels. A model needs gigabytes of memory for more."""


@dataclass(frozen=True)
class Preprocessing:
    """What happens to a photograph before a model sees it.

    The object is called with an image of PIL, and can be sent to other processes: it holds no network.

    Attributes:
        size: side of the square input, or ``(height, width)``, in pixels, at most 4096. Default: 224.
        resize: what happens to the aspect ratio. ``"squash"``: it changes, and the whole photograph remains. ``"pad"``:
            it is kept, the whole photograph fits in ``size``, and the rest is zero after the normalization.
            ``"crop"``: it is kept, and the center is cut out. ``"keep"``: it is kept, and the longer side becomes
            ``size``; photographs of different ratios then give inputs of different shapes. Default: ``"squash"``.
        mean: mean of each channel, for pixels in [0, 1], which is subtracted. Default: ImageNet's.
        std: standard deviation of each channel, for pixels in [0, 1], by which is divided. Default: ImageNet's.
        interpolation: ``"nearest"``, ``"bilinear"``, ``"bicubic"``, ``"lanczos"``, ``"box"`` or ``"hamming"``. Default:
            ``"bilinear"``.
        crop_from: for ``"crop"``, the shorter side of the photograph before the center is cut out, in pixels; None for
            the smallest photograph that covers ``size``. Default: None.

    Raises:
        ValueError: for a size below one or above 4096, an unknown ``resize`` or ``interpolation``, means and deviations
            of different numbers, a mean above one, a deviation that is not above zero, or ``crop_from`` without
            ``"crop"`` or below ``size``.

    Example:
        >>> preprocessing = Preprocessing((256, 128), resize="pad")
        >>> preprocessing(Image.new("RGB", (640, 480))).shape
        torch.Size([3, 256, 128])
    """

    size: int | tuple[int, int] = 224
    resize: Resize = "squash"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    interpolation: str = "bilinear"
    crop_from: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", check_size(self.size))
        for name in ("mean", "std"):
            object.__setattr__(self, name, check_channels(getattr(self, name), name))
        if self.resize not in get_args(Resize):
            raise ValueError(f"resize must be one of {', '.join(get_args(Resize))}, got {self.resize!r}")
        if len(self.mean) != len(self.std) or not self.mean:
            raise ValueError(f"mean and std must have one number per channel, got mean={self.mean} and std={self.std}")
        if not all(math.isfinite(value) for value in (*self.mean, *self.std)) or min(self.std) <= 0:
            raise ValueError(
                f"mean must be finite and std finite and above zero, got mean={self.mean} and std={self.std}"
            )
        if max(self.mean) > 1:
            raise ValueError(
                f"mean and std are for pixels in [0, 1], got mean={self.mean} and std={self.std}; divide both by 255 "
                "if they are for pixels from 0 to 255"
            )
        if self.crop_from is not None and self.resize != "crop":
            raise ValueError(f"crop_from={self.crop_from} is for resize='crop', got resize={self.resize!r}")
        _ = self.geometry  # refuses an unknown interpolation, and a crop that does not fit

    @property
    def height_and_width(self) -> tuple[int, int]:
        """The size as ``(height, width)`` in pixels."""
        return height_and_width(self.size)

    @property
    def geometry(self) -> Squash | Fit | Pad | ResizeCrop:
        """The part of the preprocessing that moves pixels; it moves boxes along."""
        if self.resize == "squash":
            return Squash(self.size, self.interpolation)
        if self.resize == "keep":
            return Fit(self.size, self.interpolation)
        if self.resize == "crop":
            return ResizeCrop(self.crop_from, self.size, self.interpolation)
        return Pad(self.size, self.interpolation, self._fill())

    @property
    def normalize(self) -> Callable[[Tensor], Tensor]:
        """Function from images with pixels in [0, 1], ``(..., C, H, W)``, to the normalized input of the model."""
        return partial(normalize, mean=self.mean, std=self.std)

    def __call__(self, image: Image.Image) -> Tensor:
        """Make the input of a model from a photograph.

        Args:
            image: image of PIL, of any size and mode. For a model of one channel it becomes gray.

        Returns:
            float32 ``(C, H, W)`` with ``C`` numbers in ``mean``; ``(H, W)`` is ``size`` except for ``"keep"``.

        Raises:
            ValueError: for a preprocessing of other than one or three channels.
        """
        photograph = as_rgb(image)
        geometry = self.geometry
        moved, _ = geometry(photograph, torch.empty(0, 4))
        if len(self.mean) == 1:
            pixels = image_to_tensor(moved.convert("L").convert("RGB"))[:1]
        elif len(self.mean) == 3:
            pixels = image_to_tensor(moved)
        else:
            raise ValueError(
                f"image: the model takes {len(self.mean)} channels, and a photograph has three; pass tensors "
                "(B, C, H, W) as the model takes them"
            )
        normalized = normalize(pixels, self.mean, self.std)
        if isinstance(geometry, Pad):
            # The filled pixels are the mean rounded to 8 bits, which is zero only nearly.
            left, top, right, bottom = geometry.filled_by(photograph.width, photograph.height)
            padded = torch.zeros_like(normalized)
            padded[:, top:bottom, left:right] = normalized[:, top:bottom, left:right]
            return padded
        return normalized

    def view(self, image: Image.Image) -> Image.Image:
        """The part of a photograph that the model sees, at the resolution of the photograph.

        A map of the model's input lies right over this image, when the map is resized to it.

        Args:
            image: image of PIL, of any size and mode.

        Returns:
            RGB image: the photograph for ``"squash"`` and ``"keep"``, its center for ``"crop"``, and the photograph
            with filled sides for ``"pad"``.

        Example:
            >>> Preprocessing(64, resize="crop").view(Image.new("RGB", (300, 200))).size
            (200, 200)
        """
        photograph = as_rgb(image)
        if self.resize in ("squash", "keep"):
            return photograph
        x0, y0, x1, y1 = (round(edge) for edge in self.geometry.seen(photograph.width, photograph.height))
        x1, y1 = max(x1, x0 + 1), max(y1, y0 + 1)
        view = Image.new("RGB", (x1 - x0, y1 - y0), self._fill())
        view.paste(photograph, (-x0, -y0))
        return view

    def describe(self) -> dict[str, Any]:
        """The attributes by name, as numbers, texts and lists for JSON."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    def _fill(self) -> tuple[int, int, int]:
        """The color of filled pixels in a picture: the mean, which the normalization makes zero."""
        means = self.mean if len(self.mean) == 3 else (self.mean[0],) * 3
        red, green, blue = (min(255, max(0, round(255 * mean))) for mean in means)
        return red, green, blue


def check_size(size: int | tuple[int, int]) -> int | tuple[int, int]:
    """Check the size of the input of a model.

    Args:
        size: side of a square, or ``(height, width)``, in pixels.

    Returns:
        The size: a number for a square, else a tuple.

    Raises:
        ValueError: for anything but one or two whole numbers from 1 to 4096.

    Example:
        >>> check_size([256, 128])
        (256, 128)
    """
    given: tuple[object, ...] = tuple(size) if isinstance(size, tuple | list) else (size,)
    sides = [int(side) for side in given if not isinstance(side, bool) and isinstance(side, Integral)]
    if len(given) not in (1, 2) or len(sides) < len(given) or not all(1 <= side <= LARGEST_SIDE for side in sides):
        raise ValueError(
            f"size must be a whole number of pixels from 1 to {LARGEST_SIDE}, or (height, width), got {size!r}"
        )
    return sides[0] if len(set(sides)) == 1 else (sides[0], sides[-1])


def check_channels(values: object, name: str) -> tuple[float, ...]:
    """Check that a mean or a standard deviation has one number per channel.

    Args:
        values: the numbers.
        name: the argument, for the message.

    Returns:
        The numbers.

    Raises:
        ValueError: for anything but a sequence of numbers.

    Example:
        >>> check_channels([0.5, 0.5, 0.5], "mean")
        (0.5, 0.5, 0.5)
    """
    try:
        if isinstance(values, str):
            raise TypeError
        return tuple(map(float, values))  # type: ignore[call-overload]
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be one number per channel, such as (0.5, 0.5, 0.5), got {values!r}") from None
