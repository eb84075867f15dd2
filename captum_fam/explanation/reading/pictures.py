"""Pictures as people have them, files, PIL images and arrays, as batches of inputs of a model."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from captum_fam._text import printable_path
from captum_fam.explanation.reading.model import PreprocessingLike
from captum_fam.images import UnreadableImageError, as_rgb, image_from_bytes, read_image

Picture = str | Path | bytes | io.BytesIO | Image.Image | npt.NDArray[Any]
"""The path of an image file, the bytes of an image file, an image of PIL, or the pixels of an image, uint8 ``(H, W)``
or ``(H, W, C)``."""

_URL = re.compile("[A-Za-z][A-Za-z0-9+.-]+://")

_DISPLAY_SIDE = 1024
"""Longer side of a photograph for display, in pixels. Larger overlays would be large files without more detail."""
_CHANNELS = (1, 3, 4)


@dataclass(frozen=True)
class PictureBatch:
    """A batch of pictures that were read.

    Attributes:
        positions: the positions of the B pictures among all pictures.
        inputs: inputs of the model, ``(B, C, H, W)``.
        photos: the part of each picture that the model sees, at most 1024 pixels wide and high, for display.
        sizes: height and width of each picture, in pixels.
    """

    positions: tuple[int, ...]
    inputs: Tensor
    photos: tuple[Image.Image, ...]
    sizes: tuple[tuple[int, int], ...]


def read_batches(
    pictures: Sequence[Picture],
    preprocessing: PreprocessingLike,
    batch_size: int,
    device: torch.device | str | None = None,
    unreadable: dict[int, str] | None = None,
    dtype: torch.dtype | None = None,
) -> Iterator[PictureBatch]:
    """Read pictures batch by batch.

    A batch also ends where the next picture gives inputs of another size, as with a preprocessing that keeps the ratio
    of the sides.

    Args:
        pictures: the pictures.
        preprocessing: makes the input of the model from a picture.
        batch_size: pictures per batch.
        device: the device of the inputs. Default: None, the CPU.
        unreadable: a dictionary that gets the reason for each picture that cannot be read, by its position. Default:
            None, such a picture is an error.
        dtype: the floating-point type that the model takes. Default: None, that of the preprocessing.

    Yields:
        Batches in the order of the pictures.

    Raises:
        UnreadableImageError: for a picture that cannot be read, if ``unreadable`` is None.
        TypeError, ValueError: for something that is no picture.

    Example:
        >>> from captum_fam.preprocessing import Preprocessing
        >>> small = Preprocessing(size=(32, 16))
        >>> [len(batch.positions) for batch in read_batches([Image.new("RGB", (9, 9))] * 5, small, batch_size=2)]
        [2, 2, 1]
    """
    waiting: list[tuple[int, Tensor, Image.Image, tuple[int, int]]] = []
    for position, picture in enumerate(pictures):
        try:
            photo = open_picture(picture)
        except UnreadableImageError as error:
            if unreadable is None:
                raise
            unreadable[position] = str(error)
            continue
        inputs, size = preprocessing(photo), (photo.height, photo.width)
        view = _shown(preprocessing.view(photo))
        if waiting and (len(waiting) == batch_size or waiting[-1][1].shape != inputs.shape):
            yield _batch(waiting, device, dtype)
            waiting = []
        waiting.append((position, inputs, view, size))
    if waiting:
        yield _batch(waiting, device, dtype)


def open_picture(picture: Picture) -> Image.Image:
    """Read a picture as upright RGB.

    Args:
        picture: the path or the bytes of a file, an image of PIL, or uint8 pixels.

    Returns:
        The image in mode ``"RGB"``.

    Raises:
        UnreadableImageError: for a file that cannot be read.
        TypeError: for something that is no picture.
        ValueError: for pixels of another shape than ``(H, W)`` or ``(H, W, C)`` with one, three or four channels.

    Example:
        >>> open_picture(np.zeros((30, 40), np.uint8)).size
        (40, 30)
    """
    if isinstance(picture, str | Path):
        return read_image(picture)
    if isinstance(picture, bytes | io.BytesIO):
        return image_from_bytes(picture if isinstance(picture, bytes) else picture.getvalue())
    if isinstance(picture, Image.Image):
        return as_rgb(picture)
    if not isinstance(picture, np.ndarray):
        raise TypeError(
            f"a picture must be a path, the bytes of a file, an image of PIL or uint8 pixels, got "
            f"{type(picture).__name__}"
        )
    pixels = picture[..., 0] if picture.ndim == 3 and picture.shape[2] == 1 else picture
    if picture.dtype != np.uint8 or pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] not in (3, 4)):
        raise ValueError(
            f"pixels must be uint8 (H, W) or (H, W, C) of one, three or four channels, got {picture.dtype} of shape "
            f"{picture.shape}"
        )
    return as_rgb(Image.fromarray(pixels))


def as_pictures(values: object) -> list[Picture] | None:
    """Tell pictures from inputs of a model.

    Args:
        values: one picture, or a sequence or a batch of pictures.

    Returns:
        The pictures as a list; None for anything else, such as a tensor, an array of floating-point numbers or a
        sequence with something that is no picture.

    Example:
        >>> as_pictures("wren.jpg"), as_pictures(torch.rand(2, 3, 8, 8))
        (['wren.jpg'], None)
    """
    if _is_picture(values):
        return [values]
    if isinstance(values, np.ndarray):
        is_batch = values.dtype == np.uint8 and values.ndim == 4 and values.shape[3] in _CHANNELS
        return list(values) if is_batch else None
    if isinstance(values, Iterable) and not isinstance(values, Tensor | Mapping | str):
        pictures = list(values)
        return pictures if pictures and all(map(_is_picture, pictures)) else None
    return None


def kind_in_words(values: object) -> str:
    """What a user gave in the place of pictures, for messages.

    Args:
        values: anything.

    Example:
        >>> kind_in_words(["wren.jpg", torch.rand(3, 8, 8)]), kind_in_words([]), kind_in_words(np.zeros((2, 3)))
        ('a list of str and Tensor', 'an empty list', 'an array of float64 (2, 3)')
    """
    if isinstance(values, np.ndarray):
        return f"an array of {values.dtype} {values.shape}"
    if isinstance(values, type):
        return f"the class {values.__name__}; make an object of it"
    if not isinstance(values, list | tuple):
        return type(values).__name__
    kinds = dict.fromkeys(type(value).__name__ for value in values)
    if not kinds:
        return f"an empty {type(values).__name__}"
    remedy = "; join them with torch.stack" if all(isinstance(value, Tensor) for value in values) else ""
    return f"a {type(values).__name__} of {' and '.join(kinds)}{remedy}"


def _is_picture(value: object) -> TypeGuard[Picture]:
    if isinstance(value, np.ndarray):
        is_color = value.ndim == 3 and value.shape[2] in _CHANNELS
        return value.dtype == np.uint8 and (value.ndim == 2 or is_color)
    return isinstance(value, str | Path | bytes | io.BytesIO | Image.Image)


def check_no_urls(pictures: Iterable[object], name: str) -> None:
    """Refuse the addresses of pictures on the web.

    Args:
        pictures: pictures.
        name: the name of the argument, for the message.

    Raises:
        ValueError: for an address.

    Example:
        >>> check_no_urls(["wren.jpg"], "inputs")
    """
    for position, one in enumerate(pictures):
        if isinstance(one, str) and _URL.match(one):
            raise ValueError(
                f"{name}: picture {position} is the URL '{printable_path(one)}', and URLs are not read; download the "
                "file and pass its path, or its bytes"
            )


def images_for_display(images: Any, count: int) -> Any:
    """Images for display, with files read.

    Args:
        images: one image per query: tensors or arrays, images of PIL, or paths or bytes of image files.
        count: the number of queries.

    Returns:
        The images, without paths and bytes; a tensor or an array for one.

    Raises:
        TypeError: for something that is no image.
        ValueError: for another number of images than queries.
        UnreadableImageError: for a file that cannot be read.

    Example:
        >>> images_for_display([Image.new("RGB", (40, 30))], 1)[0].size
        (40, 30)
    """
    given = [images] if isinstance(images, str | Path | bytes | io.BytesIO | Image.Image) else images
    if not isinstance(given, Sequence | Tensor | np.ndarray):
        raise TypeError(f"images must be a sequence of images, one per query, got {kind_in_words(images)}")
    if len(given) != count:
        raise ValueError(f"images must be one per query: got {len(given)} for {count} queries")
    if isinstance(given, Tensor | np.ndarray):
        return given
    wrong = [one for one in given if not (_is_picture(one) or isinstance(one, Tensor | np.ndarray))]
    if wrong:
        raise TypeError(
            f"images must be tensors, arrays, images of PIL or paths of image files, got {kind_in_words(list(given))}"
        )
    return [_shown(open_picture(one)) if isinstance(one, str | Path | bytes | io.BytesIO) else one for one in given]


def _shown(photo: Image.Image) -> Image.Image:
    """A photograph at most 1024 pixels wide and high."""
    photo.thumbnail((_DISPLAY_SIDE, _DISPLAY_SIDE))
    return photo


def check_sizes(batches: Iterable[Tensor], name: str, remedy: str) -> None:
    """Check that pictures give inputs of one size.

    Args:
        batches: inputs of the model, ``(B, C, H, W)``.
        name: the name of the argument, for the message.
        remedy: what to do, besides another resize than ``"keep"``.

    Raises:
        ValueError: for different sizes.

    Example:
        >>> check_sizes([torch.zeros(2, 3, 8, 9), torch.zeros(1, 3, 8, 9)], "inputs", "explain them one by one")
    """
    shapes = sorted({tuple(batch.shape[1:]) for batch in batches})
    if len(shapes) > 1:
        raise ValueError(
            f"{name}: the pictures give inputs of the shapes {', '.join(map(str, shapes))}; {remedy}, or use another "
            'resize than "keep"'
        )


def _batch(
    waiting: Sequence[tuple[int, Tensor, Image.Image, tuple[int, int]]],
    device: torch.device | str | None,
    dtype: torch.dtype | None,
) -> PictureBatch:
    positions, inputs, photos, sizes = zip(*waiting, strict=True)
    stacked = torch.stack(inputs)
    # A transform of the user may give whole numbers, which the model converts.
    return PictureBatch(positions, stacked.to(device, dtype if stacked.is_floating_point() else None), photos, sizes)
