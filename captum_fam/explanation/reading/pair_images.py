"""The images of pairs: the two sides as people have them, each image once, and the images of supports."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

from captum_fam._files import sha256_of
from captum_fam.explanation.reading.arguments import INTERPOLATION, check_names, for_display
from captum_fam.explanation.reading.model import PreprocessingLike
from captum_fam.explanation.reading.pictures import (
    Picture,
    as_pictures,
    check_no_urls,
    check_sizes,
    images_for_display,
    kind_in_words,
    read_batches,
)
from captum_fam.image_files import find_queries, names_of_files
from captum_fam.images import UnreadableImageError


@dataclass
class DistinctImages:
    """Images of a model, each of them once: two images are one if their inputs of the model are equal.

    Attributes:
        inputs: the images as the model takes them, ``(C, *spatial)``, of any sizes.

    Example:
        >>> distinct = DistinctImages()
        >>> [distinct.add(image) for image in (torch.zeros(3, 4, 4), torch.ones(3, 4, 4), torch.zeros(3, 4, 4))]
        [0, 1, 0]
        >>> [(rows, batch.shape) for rows, batch in distinct.batches(32)]
        [([0, 1], torch.Size([2, 3, 4, 4]))]
    """

    inputs: list[Tensor] = field(default_factory=list)
    _rows: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def ids(self) -> list[str]:
        """The hash of each image, as :func:`~captum_fam._files.sha256_of` gives it."""
        return list(self._rows)

    def add(self, image: Tensor) -> int:
        """Add an image, unless it is there.

        Args:
            image: ``(C, *spatial)``.

        Returns:
            The row of the image.
        """
        row = self._rows.setdefault(sha256_of(image), len(self.inputs))
        if row == len(self.inputs):
            self.inputs.append(image.detach())
        return row

    def batches(self, batch_size: int) -> Iterator[tuple[list[int], Tensor]]:
        """The images in batches of one size of image.

        Args:
            batch_size: images per batch.

        Yields:
            The rows of the images, and the images ``(B, C, *spatial)``. Images of the size of the first image come
            first.
        """
        by_size: dict[Hashable, list[int]] = {}
        for row, image in enumerate(self.inputs):
            by_size.setdefault((image.shape, image.dtype), []).append(row)
        for rows in by_size.values():
            for start in range(0, len(rows), batch_size):
                part = rows[start : start + batch_size]
                yield part, torch.stack([self.inputs[row] for row in part])


@dataclass(frozen=True)
class PairImages:
    """B pairs of images.

    Attributes:
        distinct: the images, each of them once.
        left: for each pair the row of its left image in ``distinct``.
        right: the same for the right images.
        names: a name for each pair, fit for a file.
        right_names: a name for the right image of each pair.
        left_shown: the left images for display.
        right_shown: the right images for display.
    """

    distinct: DistinctImages
    left: tuple[int, ...]
    right: tuple[int, ...]
    names: tuple[str, ...]
    right_names: tuple[str, ...]
    left_shown: Sequence[Any]
    right_shown: Sequence[Any]

    def __len__(self) -> int:
        return len(self.left)

    @property
    def placed(self) -> list[tuple[str, Tensor]]:
        """The images as the model takes them, each with the words for its side and position."""
        sides = (("left", self.left), ("right", self.right))
        return [(f"{side}: image {n}", self.distinct.inputs[row]) for side, rows in sides for n, row in enumerate(rows)]


def read_pair_images(
    left: Any,
    right: Any,
    preprocessing: Callable[[], PreprocessingLike],
    batch_size: int,
    device: torch.device | None,
    dtype: torch.dtype | None,
    images: tuple[Any, Any] | None = None,
    names: Sequence[str] | None = None,
) -> PairImages:
    """Read the two sides of B pairs.

    A file that is named several times is read once.

    Args:
        left: the left images: a tensor or an array of floating-point numbers ``(B, C, *spatial)``; or pictures: a path,
            a folder, the bytes of a file, an image of PIL, uint8 pixels ``(H, W, C)``, or a sequence of these.
        right: the right images, as many as left images; their size may be another.
        preprocessing: a function that gives the preprocessing of pictures; it is called for pictures only.
        batch_size: how many pictures are read at once.
        device: the device of arrays and pictures; None for the CPU.
        dtype: the type of arrays and pictures; None for that of the array or the preprocessing.
        images: the left and the right images for display. Default: None, the pictures, or the inputs scaled to [0, 1].
        names: the names of the pairs. Default: None, the names of both files, or of both positions.

    Raises:
        TypeError: for a side that is neither a tensor nor pictures, or ``images`` that are no two sequences.
        ValueError: for sides of different lengths, a tensor of another shape, left images of several input sizes, or
            names that are no file names.
        UnreadableImageError: for a picture that cannot be read.

    Example:
        >>> sides = torch.zeros(2, 3, 8, 8), torch.ones(2, 3, 8, 8)
        >>> pairs = read_pair_images(*sides, None, 32, None, None)
        >>> pairs.left, pairs.right, pairs.names
        ((0, 0), (1, 1), ('left-0 - right-0', 'left-1 - right-1'))
    """
    given = [_entries(side, name, device, dtype) for name, side in (("left", left), ("right", right))]
    counts = list(map(len, given))
    if counts[0] != counts[1]:
        raise ValueError(f"left and right must hold equally many images, got {counts[0]} left and {counts[1]} right")
    shown = _for_display(images, counts[0])
    # In the order of the pairs, so that the two images of a pair come in one batch where they can.
    pictures: dict[Hashable, Picture] = {}
    places: list[str] = []
    for number, pair in enumerate(zip(*given, strict=True)):
        for side, one in zip(("left", "right"), pair, strict=True):
            if not isinstance(one, Tensor) and _key(one) not in pictures:
                pictures[_key(one)] = one
                places.append(f"{side}: picture {number}")
    read = _read(pictures, places, preprocessing, batch_size, device, dtype)
    files = [one for one in pictures.values() if isinstance(one, Path)]
    file_names = dict(zip(files, names_of_files(files), strict=True))
    distinct, found = DistinctImages(), []
    for number, pair in enumerate(zip(*given, strict=True)):
        for side, one in zip(("left", "right"), pair, strict=True):
            inputs, photo = (one, None) if isinstance(one, Tensor) else read[_key(one)]
            name = file_names[one] if isinstance(one, Path) else f"{side}-{number}"
            found.append((distinct.add(inputs), for_display(inputs[None])[0] if photo is None else photo, name))
    (left_rows, left_shown, left_names), (right_rows, right_shown, right_names) = (
        zip(*found[side::2], strict=True) for side in (0, 1)
    )
    check_sizes((distinct.inputs[row][None] for row in left_rows), "left", "explain them one by one")
    made = names_of_files([Path(f"{one} - {other}.png") for one, other in zip(left_names, right_names, strict=True)])
    return PairImages(
        distinct,
        left_rows,
        right_rows,
        check_names(made if names is None else names, counts[0]),
        right_names,
        left_shown if shown is None else shown[0],
        right_shown if shown is None else shown[1],
    )


def _entries(side: Any, name: str, device: torch.device | None, dtype: torch.dtype | None) -> list[Tensor | Picture]:
    """The images of one side of all pairs, each as an input of the model or as a picture; files as ``Path``."""
    pictures = as_pictures(side)
    if pictures is None:
        is_array = isinstance(side, np.ndarray) and np.issubdtype(side.dtype, np.floating)
        inputs = torch.from_numpy(side).to(device, dtype) if is_array else side
        if not isinstance(inputs, Tensor):
            raise TypeError(
                f"{name} must be a tensor or an array of floating-point numbers (B, C, H, W), or pictures: paths, a "
                f"folder, images of PIL, uint8 arrays (H, W, C); got {kind_in_words(side)}"
            )
        if inputs.dim() not in INTERPOLATION or not len(inputs):
            raise ValueError(f"{name} must be a batch of images (B, C, H, W), got shape {tuple(inputs.shape)}")
        return list(inputs)
    check_no_urls(pictures, name)
    entries: list[Tensor | Picture] = []
    for one in pictures:
        if isinstance(one, str | Path):
            entries += find_queries([Path(one)], name) if Path(one).is_dir() else [Path(one)]
        else:
            entries.append(one)
    return entries


def _key(picture: Picture) -> Hashable:
    """What two entries have in common that are the same file, or the same object."""
    return picture if isinstance(picture, Path) else id(picture)


def _read(
    pictures: Mapping[Hashable, Picture],
    places: Sequence[str],
    preprocessing: Callable[[], PreprocessingLike],
    batch_size: int,
    device: torch.device | None,
    dtype: torch.dtype | None,
) -> dict[Hashable, tuple[Tensor, Image]]:
    """The input of the model and the image for display of each picture, by the key of the picture."""
    if not pictures:
        return {}
    given, unreadable = list(pictures.values()), dict[int, str]()
    read: list[tuple[Tensor, Image]] = []
    for batch in read_batches(given, preprocessing(), batch_size, device, unreadable, dtype):
        if unreadable:
            break
        read += zip(batch.inputs, batch.photos, strict=True)
    for position, reason in unreadable.items():
        raise UnreadableImageError(f"{places[position]}: {reason}")
    return dict(zip(pictures, read, strict=True))


def _for_display(images: Any, count: int) -> tuple[Any, Any] | None:
    """The left and the right images for display that the user gave."""
    if images is None:
        return None
    if not isinstance(images, tuple | list) or len(images) != 2:
        raise TypeError(
            "images must be two sequences, the left and the right images for display, got " + kind_in_words(images)
        )
    left, right = (images_for_display(side, count) for side in images)
    return left, right
