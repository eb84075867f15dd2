"""Mosaics of photographed textures: which part of the image belongs to the class of the support is known exactly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from captum_fam.demo.skimage_files import skimage_file
from captum_fam.images import image_to_tensor, read_image
from captum_fam.metrics import make_mosaic

TEXTURE_NAMES = ("brick", "grass", "gravel")
"""The textures of scikit-image, in the public domain (CC0): gray photographs of 512 x 512 pixels."""

_TILES = 4  # 2 x 2


@dataclass(frozen=True)
class TextureMosaics:
    """A few-shot task of three textures, and mosaics of them.

    All crops of the supports come from the left half of each photograph, and all other crops from the right half, so
    that no pixel is in both. Pixels are RGB in [0, 1], not normalized.

    Attributes:
        support_images: ``(3 * shot, 3, side, side)``, ordered by class.
        support_labels: positions in :data:`TEXTURE_NAMES`, ``(3 * shot,)``.
        single_images: crops of one texture each, ``(3 * shot, 3, side, side)``; their classes are ``support_labels``.
        images: mosaics of 2 x 2 crops, ``(M, 3, side, side)``.
        labels: the class to look for, ``(M,)``; one cell of the mosaic has the class, and each other class has one or
            two cells.
        cells: the cell of that class in raster order, ``(M,)``.
    """

    support_images: Tensor
    support_labels: Tensor
    single_images: Tensor
    images: Tensor
    labels: Tensor
    cells: Tensor


def read_textures() -> list[Tensor]:
    """The photographs of :data:`TEXTURE_NAMES`, in the installed scikit-image.

    Returns:
        Images ``(3, 512, 512)`` in [0, 1], float32.

    Raises:
        ImportError: if scikit-image is not installed; the message has the command that installs it.
        FileNotFoundError: if the installed scikit-image does not hold them.
    """
    return [image_to_tensor(read_image(skimage_file(f"{name}.png"))) for name in TEXTURE_NAMES]


def cut_texture_mosaics(
    textures: Sequence[Tensor], count: int = 24, *, shot: int = 5, side: int = 224, seed: int = 0
) -> TextureMosaics:
    """Cut supports, single crops and mosaics out of photographs of three textures.

    Args:
        textures: three images ``(3, H, W)``, with H at least ``side`` and W at least twice ``side``.
        count: number of mosaics; the classes take turns. Default: 24.
        shot: supports of each class, and single crops of each class. Default: 5.
        side: side of all images in pixels, even. Default: 224.
        seed: seed of the crops. Default: 0.

    Returns:
        The task.

    Raises:
        ValueError: for another number of textures, textures that are too small, or an odd side.

    Example:
        >>> task = cut_texture_mosaics(torch.rand(3, 3, 40, 80), count=6, side=40)
        >>> task.images.shape, task.labels.tolist()
        (torch.Size([6, 3, 40, 40]), [0, 1, 2, 0, 1, 2])
    """
    if len(textures) != 3:
        raise ValueError(f"textures must be three images, got {len(textures)}")
    if side < 2 or side % 2:
        raise ValueError(f"side must be even and positive, got {side}")
    small = [tuple(texture.shape) for texture in textures if texture.shape[1] < side or texture.shape[2] < 2 * side]
    if small:
        raise ValueError(f"textures must have {side} x {2 * side} pixels or more for side={side}, got {small[0]}")
    generator = torch.Generator().manual_seed(seed)

    def number(end: int) -> int:
        return int(torch.randint(end, (), generator=generator))

    def crop(kind: int, size: int, right: bool) -> Tensor:
        _, height, width = textures[kind].shape
        half = width // 2
        top, left = number(height - size + 1), number(half - size + 1) + half * right
        return textures[kind][:, top : top + size, left : left + size]

    labels = [label for label in range(3) for _ in range(shot)]
    supports = [crop(label, side, right=False) for label in labels]
    singles = [crop(label, side, right=True) for label in labels]
    mosaics, targets, cells = [], [], []
    for index in range(count):
        target = index % 3
        others = [kind for kind in range(3) if kind != target]
        kinds = [target, *others, others[number(2)]]
        kinds = [kinds[place] for place in torch.randperm(_TILES, generator=generator).tolist()]
        tiles = [crop(kind, side // 2, right=True) for kind in kinds]
        mosaics.append(make_mosaic(torch.stack(tiles))[0])
        targets.append(target)
        cells.append(kinds.index(target))
    return TextureMosaics(
        torch.stack(supports),
        torch.tensor(labels),
        torch.stack(singles),
        torch.stack(mosaics),
        torch.tensor(targets),
        torch.tensor(cells),
    )
