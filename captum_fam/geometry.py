"""Resizing, cropping and padding a photograph together with its boxes.

A box is ``(x0, y0, x1, y1)`` in pixels, half-open and continuous: pixel column i covers [i, i + 1). So the box of the
whole image is ``(0, 0, width, height)``, and boxes scale with the image without rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor

_INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
}
Box = tuple[float, float, float, float]


class Geometry(Protocol):
    """A transform of an image and of its boxes, such as :class:`Squash` and :class:`ResizeCrop`.

    Example:
        >>> def mirror(image, boxes):
        ...     x0, y0, x1, y1 = boxes.unbind(1)
        ...     mirrored = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        ...     return mirrored, torch.stack([image.width - x1, y0, image.width - x0, y1], 1)
        >>> mirror(Image.new("RGB", (10, 4)), torch.tensor([[0.0, 0.0, 3.0, 4.0]]))[1]
        tensor([[ 7.,  0., 10.,  4.]])
    """

    def __call__(self, image: Image.Image, boxes: Tensor) -> tuple[Image.Image, Tensor]:
        """Transform an image and its boxes ``(n, 4)`` in the same way."""
        ...


@dataclass(frozen=True)
class _Sized:
    """A size and an interpolation, both checked."""

    size: int | tuple[int, int]
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        _check_sizes(size=self.size)
        _check_interpolation(self.interpolation)


class _Resizing(_Sized):
    """Resizes the whole image, and its boxes along."""

    def __call__(self, image: Image.Image, boxes: Tensor) -> tuple[Image.Image, Tensor]:
        resized = image.resize(self._target(image.width, image.height), _INTERPOLATIONS[self.interpolation])
        return resized, self.map_boxes(boxes, image.width, image.height)

    def map_boxes(self, boxes: Tensor, width: int, height: int) -> Tensor:
        """Boxes ``(n, 4)`` of an image of the given size in pixels, moved to the resized image."""
        to_width, to_height = self._target(width, height)
        return _scale(boxes, to_width / width, to_height / height)

    def seen(self, width: int, height: int) -> Box:
        """The part of an image of the given size that the result shows, as a box in pixels: the whole image."""
        return 0, 0, width, height

    def _target(self, width: int, height: int) -> tuple[int, int]:
        """Width and height of the result, for an image of the given size."""
        raise NotImplementedError


@dataclass(frozen=True)
class Squash(_Resizing):
    """Resize to a fixed size without keeping the aspect ratio, so that the whole image remains.

    Args:
        size: side of the square, or ``(height, width)``, in pixels.
        interpolation: ``"nearest"``, ``"bilinear"``, ``"bicubic"``, ``"lanczos"``, ``"box"`` or ``"hamming"``,
            antialiased as in PIL. Default: ``"bilinear"``.

    Raises:
        ValueError: for a size below one or an unknown interpolation.

    Example:
        >>> Squash(84).map_boxes(torch.tensor([[0.0, 0.0, 250.0, 100.0]]), width=500, height=200)
        tensor([[ 0.,  0., 42., 42.]])
    """

    def _target(self, width: int, height: int) -> tuple[int, int]:
        to_height, to_width = height_and_width(self.size)
        return to_width, to_height


@dataclass(frozen=True)
class Fit(_Resizing):
    """Resize with the aspect ratio kept, so that the whole image fits in a size; nothing is padded.

    Args:
        size: the longer side of the result, or ``(height, width)`` in which the result fits, in pixels. The other side
            is rounded to a whole pixel.
        interpolation: ``"nearest"``, ``"bilinear"``, ``"bicubic"``, ``"lanczos"``, ``"box"`` or ``"hamming"``,
            antialiased as in PIL. Default: ``"bilinear"``.

    Raises:
        ValueError: for a size below one or an unknown interpolation.

    Example:
        >>> Fit(84).map_boxes(torch.tensor([[0.0, 0.0, 250.0, 100.0]]), width=500, height=250)
        tensor([[ 0.0000,  0.0000, 42.0000, 16.8000]])
    """

    def _target(self, width: int, height: int) -> tuple[int, int]:
        return _fitted(self.size, width, height)


@dataclass(frozen=True)
class Pad(_Sized):
    """Resize with the aspect ratio kept, so that the whole image fits in a size, and fill the rest on both sides.

    Args:
        size: side of the square, or ``(height, width)``, in pixels.
        interpolation: ``"nearest"``, ``"bilinear"``, ``"bicubic"``, ``"lanczos"``, ``"box"`` or ``"hamming"``,
            antialiased as in PIL. Default: ``"bilinear"``.
        fill: red, green and blue of the filled pixels, from 0 to 255. Default: black.

    Raises:
        ValueError: for a size below one or an unknown interpolation.

    Example:
        >>> Pad(84).map_boxes(torch.tensor([[0.0, 0.0, 500.0, 250.0]]), width=500, height=250)
        tensor([[ 0., 21., 84., 63.]])
    """

    fill: tuple[int, int, int] = (0, 0, 0)

    def __call__(self, image: Image.Image, boxes: Tensor) -> tuple[Image.Image, Tensor]:
        left, top, right, bottom = self.filled_by(image.width, image.height)
        height, width = height_and_width(self.size)
        resized = image.resize((right - left, bottom - top), _INTERPOLATIONS[self.interpolation])
        padded = Image.new("RGB", (width, height), self.fill)
        padded.paste(resized, (left, top))
        return padded, self.map_boxes(boxes, image.width, image.height)

    def map_boxes(self, boxes: Tensor, width: int, height: int) -> Tensor:
        """Boxes ``(n, 4)`` of an image of the given size in pixels, moved to the padded image."""
        left, top, right, bottom = self.filled_by(width, height)
        scaled = _scale(boxes, (right - left) / width, (bottom - top) / height)
        return scaled + boxes.new_tensor([left, top, left, top])

    def seen(self, width: int, height: int) -> Box:
        """The part of the plane that the result shows, in pixels of an image of the given size.

        The box is larger than the image on the sides that are filled.
        """
        left, top, right, bottom = self.filled_by(width, height)
        x, y = width / (right - left), height / (bottom - top)
        to_height, to_width = height_and_width(self.size)
        return -left * x, -top * y, (to_width - left) * x, (to_height - top) * y

    def filled_by(self, width: int, height: int) -> tuple[int, int, int, int]:
        """The box of the result, in whole pixels, that an image of the given size fills."""
        to_height, to_width = height_and_width(self.size)
        inner_width, inner_height = _fitted(self.size, width, height)
        left, top = (to_width - inner_width) // 2, (to_height - inner_height) // 2
        return left, top, left + inner_width, top + inner_height


@dataclass(frozen=True)
class ResizeCrop:
    """Resize the shorter side, then cut out the center: torchvision's ``Resize`` and ``CenterCrop``.

    Boxes are clipped to the crop. A box outside the crop stays in the list as a box of area zero.

    Args:
        resize: the shorter side after resizing, in pixels. The longer side keeps the aspect ratio, rounded down to a
            whole pixel. None: the image gets as small as it can be and still cover the crop.
        crop: side of the square that is cut out, or ``(height, width)``, in pixels.
        interpolation: ``"nearest"``, ``"bilinear"``, ``"bicubic"``, ``"lanczos"``, ``"box"`` or ``"hamming"``,
            antialiased as in PIL. Default: ``"bilinear"``.

    Raises:
        ValueError: for a size below one, a crop that is larger than ``resize``, or an unknown interpolation.

    Example:
        >>> ResizeCrop(256, 224).map_boxes(torch.tensor([[0.0, 0.0, 500.0, 250.0]]), width=500, height=250)
        tensor([[  0.,   0., 224., 224.]])
    """

    resize: int | None
    crop: int | tuple[int, int]
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        _check_sizes(crop=self.crop)
        _check_interpolation(self.interpolation)
        if self.resize is None:
            return
        _check_sizes(resize=self.resize)
        if max(height_and_width(self.crop)) > self.resize:
            raise ValueError(f"crop must fit in the resized image, got crop={self.crop} and resize={self.resize}")

    def __call__(self, image: Image.Image, boxes: Tensor) -> tuple[Image.Image, Tensor]:
        (width, height), (left, top) = self._layout(image.width, image.height)
        crop_height, crop_width = height_and_width(self.crop)
        resized = image.resize((width, height), _INTERPOLATIONS[self.interpolation])
        cropped = resized.crop((left, top, left + crop_width, top + crop_height))
        return cropped, self.map_boxes(boxes, image.width, image.height)

    def map_boxes(self, boxes: Tensor, width: int, height: int) -> Tensor:
        """Boxes ``(n, 4)`` of an image of the given size in pixels, moved to the crop and clipped to it."""
        (to_width, to_height), (left, top) = self._layout(width, height)
        crop_height, crop_width = height_and_width(self.crop)
        moved = _scale(boxes, to_width / width, to_height / height) - boxes.new_tensor([left, top, left, top])
        return clip_boxes(moved, crop_width, crop_height)

    def seen(self, width: int, height: int) -> Box:
        """The part of an image of the given size that the crop shows, as a box in pixels."""
        (to_width, to_height), (left, top) = self._layout(width, height)
        crop_height, crop_width = height_and_width(self.crop)
        x, y = width / to_width, height / to_height
        return left * x, top * y, (left + crop_width) * x, (top + crop_height) * y

    def _layout(self, width: int, height: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Size after resizing, and upper left corner of the crop, each ``(x, y)``, rounded as torchvision does."""
        crop_height, crop_width = height_and_width(self.crop)
        if self.resize is None:
            scale = max(crop_width / width, crop_height / height)
            to_width, to_height = max(crop_width, round(width * scale)), max(crop_height, round(height * scale))
        else:
            short, long = min(width, height), max(width, height)
            longer = int(self.resize * long / short)
            to_width, to_height = (self.resize, longer) if width <= height else (longer, self.resize)
        return (to_width, to_height), (round((to_width - crop_width) / 2), round((to_height - crop_height) / 2))


def clip_boxes(boxes: Tensor, width: float, height: float) -> Tensor:
    """Clip boxes to the borders of an image; a box outside the image gets the area zero.

    Args:
        boxes: ``(..., 4)``.
        width: the width of the image in pixels.
        height: the height of the image in pixels.

    Returns:
        ``(..., 4)`` in the dtype of the boxes.

    Example:
        >>> clip_boxes(torch.tensor([-1.0, 2.0, 9.0, 9.0]), width=7, height=5)
        tensor([0., 2., 7., 5.])
    """
    limits = boxes.new_tensor([width, height, width, height])
    return torch.minimum(boxes.clamp_min(0), limits)


def box_areas(boxes: Tensor) -> Tensor:
    """Areas in square pixels.

    Args:
        boxes: ``(..., 4)``.

    Returns:
        ``(...)`` in the dtype of the boxes; zero for a box whose corners are in the wrong order.

    Example:
        >>> box_areas(torch.tensor([[0, 0, 3, 2], [5, 0, 3, 2]]))
        tensor([6, 0])
    """
    return (boxes[..., 2] - boxes[..., 0]).clamp_min(0) * (boxes[..., 3] - boxes[..., 1]).clamp_min(0)


def height_and_width(size: int | tuple[int, int]) -> tuple[int, int]:
    """A size as height and width.

    Args:
        size: side of a square, or ``(height, width)``, in pixels.

    Returns:
        ``(height, width)``.

    Example:
        >>> height_and_width(224)
        (224, 224)
    """
    return (size, size) if isinstance(size, int) else size


def _scale(boxes: Tensor, x: float, y: float) -> Tensor:
    # The factors are float64, because factors rounded to float32 would move the box of a whole image off its border.
    factors = torch.tensor([x, y, x, y], dtype=torch.float64, device=boxes.device)
    return (boxes * factors).to(boxes.dtype)


def _fitted(size: int | tuple[int, int], width: int, height: int) -> tuple[int, int]:
    """Width and height of an image that is resized to fit in a size, each at least one pixel."""
    to_height, to_width = height_and_width(size)
    scale = min(to_width / width, to_height / height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def _check_sizes(**sizes: int | tuple[int, int]) -> None:
    for name, size in sizes.items():
        if min(height_and_width(size)) < 1:
            raise ValueError(f"{name} must be at least one pixel, got {size}")


def _check_interpolation(interpolation: str) -> None:
    if interpolation not in _INTERPOLATIONS:
        raise ValueError(f"interpolation must be one of {', '.join(_INTERPOLATIONS)}, got {interpolation!r}")
