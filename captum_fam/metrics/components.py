"""Connected components of a batch of masks: scipy on the CPU, label propagation on the device."""

from __future__ import annotations

from types import ModuleType
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from captum_fam.metrics._extra import missing_extra


class Components(NamedTuple):
    """The components of a batch of masks, numbered through the batch in the order of their first pixels.

    Attributes:
        labels: ``(B, H, W)``, 1..n on the components, 0 elsewhere.
        owner: the mask of each component, ascending, ``(n,)`` int64.
    """

    labels: Tensor
    owner: Tensor


def label_components(masks: Tensor, connectivity: int = 8) -> Components:
    """Number the connected components of boolean masks ``(B, H, W)``.

    Args:
        masks: on a CUDA device they are labeled there, elsewhere by ``scipy.ndimage``.
        connectivity: 8, or 4, under which pixels that share a corner only are apart.

    Raises:
        ValueError: for another connectivity.
        ImportError: if scipy is missing.
    """
    if connectivity not in (4, 8):
        raise ValueError(f"connectivity must be 4 or 8, got {connectivity!r}")
    return propagate_labels(masks, connectivity) if masks.is_cuda else scipy_labels(masks, connectivity)


def scipy_labels(masks: Tensor, connectivity: int = 8) -> Components:
    """:func:`label_components` by ``scipy.ndimage``."""
    ndimage = _import_ndimage()
    plane = ndimage.generate_binary_structure(2, 1 if connectivity == 4 else 2)
    # One call for the whole batch: a stack of images that are not neighbors of each other.
    labels, _ = ndimage.label(masks.cpu().numpy(), np.stack([np.zeros_like(plane), plane, np.zeros_like(plane)]))
    numbered = torch.from_numpy(labels)
    # Numbers ascend from image to image, so that the last of each tells how many came with it.
    last = numbered.flatten(1).amax(1).cummax(0).values if len(numbered) else numbered.new_zeros(0)
    counts = last.diff(prepend=last.new_zeros(1))
    owner = torch.arange(len(masks)).repeat_interleave(counts)
    return Components(numbered.to(masks.device), owner.to(masks.device))


def propagate_labels(masks: Tensor, connectivity: int = 8) -> Components:
    """:func:`label_components` in torch alone, on any device.

    Every pixel starts with a number of its own. In turns it takes the largest of its neighborhood and the one
    that the pixel with that number has come to, until nothing changes.
    """
    batch, height, width = masks.shape
    count = height * width
    inside = masks.flatten(1)
    # max_pool2d needs floating point; the first pixel has the largest number.
    dtype = torch.float32 if count < 2**24 else torch.float64
    own = torch.arange(count, 0, -1, dtype=dtype, device=masks.device)
    numbers = own * inside
    while True:
        spread = _neighborhood_max(numbers.view(batch, 1, height, width), connectivity).flatten(1) * inside
        position = (count - spread).long().clamp_max(count - 1)
        following = spread.gather(1, position) * inside
        if torch.equal(following, numbers):
            break
        numbers = following
    first = (numbers == own) & inside
    ordinal = first.flatten().cumsum(0).view(batch, count)
    position = (count - numbers).long().clamp_max(count - 1)
    labels = ordinal.gather(1, position) * inside
    return Components(labels.view(batch, height, width), first.nonzero()[:, 0])


def _neighborhood_max(numbers: Tensor, connectivity: int) -> Tensor:
    pool = torch.nn.functional.max_pool2d
    if connectivity == 8:
        return pool(numbers, 3, stride=1, padding=1)
    return torch.maximum(pool(numbers, (3, 1), 1, (1, 0)), pool(numbers, (1, 3), 1, (0, 1)))


def component_boxes(components: Components) -> Tensor:
    """Half-open pixel boxes (x0, y0, x1, y1) of all components, ``(n, 4)`` int64."""
    return scattered_boxes(components) if components.labels.is_cuda else scipy_boxes(components)


def scipy_boxes(components: Components) -> Tensor:
    """:func:`component_boxes` by ``scipy.ndimage``."""
    if not len(components.owner):
        return components.owner.new_zeros(0, 4)
    found = _import_ndimage().find_objects(components.labels.cpu().numpy(), len(components.owner))
    corners = [(x.start, y.start, x.stop, y.stop) for _, y, x in found]
    return torch.tensor(corners, dtype=torch.int64, device=components.labels.device).reshape(-1, 4)


def scattered_boxes(components: Components) -> Tensor:
    """:func:`component_boxes` in torch alone, on any device."""
    labels, owner = components
    image, y, x = labels.nonzero(as_tuple=True)
    index = labels[image, y, x].long() - 1
    ends = [_reduce(x, index, owner, "amin"), _reduce(y, index, owner, "amin")]
    ends += [_reduce(x, index, owner, "amax") + 1, _reduce(y, index, owner, "amax") + 1]
    return torch.stack(ends, 1)


def _reduce(positions: Tensor, index: Tensor, owner: Tensor, how: str) -> Tensor:
    return torch.zeros_like(owner).scatter_reduce_(0, index, positions, how, include_self=False)


def largest_component_boxes(components: Components, maps: Tensor) -> Tensor:
    """Box of each mask's largest component by pixels, then by energy of the map, then the first: ``(B, 4)`` int64.

    A mask without a component has the box (0, 0, 0, 0).
    """
    labels, owner = components
    boxes = torch.zeros(len(maps), 4, dtype=torch.int64, device=maps.device)
    if not len(owner):
        return boxes
    size = torch.bincount(labels.flatten(), minlength=len(owner) + 1)[1:]
    largest = torch.zeros_like(boxes[:, 0]).scatter_reduce_(0, owner, size, "amax")
    candidate = size == largest[owner]
    number = torch.bincount(owner[candidate], minlength=len(maps))
    tied = (number > 1).nonzero()[:, 0]
    if len(tied):
        # In float64 the sum of float32 energies is exact, and so is a tie.
        energy = torch.bincount(labels[tied].flatten(), maps[tied].flatten().double(), len(owner) + 1)[1:]
        energy = energy.where(candidate, -1)
        most = energy.new_full((len(maps),), -1).scatter_reduce_(0, owner, energy, "amax")
        candidate = candidate & ((energy == most[owner]) | (number[owner] == 1))
    index = torch.arange(1, len(owner) + 1, device=owner.device)[candidate]
    chosen = torch.full_like(largest, len(owner) + 1).scatter_reduce_(0, owner[candidate], index, "amin")
    inside = (labels == chosen[:, None, None]).view(torch.uint8)
    for axis, (low, high) in enumerate(((0, 2), (1, 3)), start=1):
        line = inside.amax(axis)
        boxes[:, low] = line.argmax(1)
        boxes[:, high] = line.shape[1] - line.flip(1).argmax(1)
    return boxes.masked_fill_((number == 0)[:, None], 0)


def _import_ndimage() -> ModuleType:
    try:
        from scipy import ndimage
    except ModuleNotFoundError as error:
        raise missing_extra("scipy", error) from error
    return ndimage
