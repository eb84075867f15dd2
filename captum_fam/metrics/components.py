"""Connected components of a batch of masks, by ``scipy.ndimage`` on the CPU.

A map is small (an image of the model's input size), so that copying it from a GPU costs less than labeling it there.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from captum_fam._files import need


class Components(NamedTuple):
    """The components of a batch of masks, numbered through the batch in the order of their first pixels.

    Attributes:
        labels: 1..n on the components, 0 elsewhere, ``(B, H, W)`` on the CPU.
        owner: the index of the mask of each component, ascending, int64 ``(n,)`` on the CPU.
    """

    labels: Tensor
    owner: Tensor


def label_components(masks: Tensor, connectivity: int = 8) -> Components:
    """Number the connected components of masks.

    Args:
        masks: boolean ``(B, H, W)``, on any device.
        connectivity: 8 (default), or 4, which takes pixels that share only a corner as apart.

    Returns:
        The components, on the CPU.

    Raises:
        ValueError: for another connectivity.
        ModuleNotFoundError: if scipy is missing.
    """
    if connectivity not in (4, 8):
        raise ValueError(f"connectivity must be 4 or 8, got {connectivity!r}")
    ndimage = need("scipy.ndimage", extra="eval", purpose="the box of a map")
    plane = ndimage.generate_binary_structure(2, 1 if connectivity == 4 else 2)
    # One call for the whole batch: a stack of images that are not neighbors of each other.
    labels, _ = ndimage.label(masks.cpu().numpy(), np.stack([np.zeros_like(plane), plane, np.zeros_like(plane)]))
    numbered = torch.from_numpy(labels)
    # Numbers ascend from image to image: the largest number up to an image counts the components up to there.
    last = numbered.flatten(1).amax(1).cummax(0).values if len(numbered) else numbered.new_zeros(0)
    counts = last.diff(prepend=last.new_zeros(1))
    return Components(numbered, torch.arange(len(masks)).repeat_interleave(counts))


def component_boxes(components: Components) -> Tensor:
    """Half-open pixel boxes (x0, y0, x1, y1) of all components, int64 ``(n, 4)``."""
    labels, owner = components
    if not len(owner):
        return owner.new_zeros(0, 4)
    slices = need("scipy.ndimage", extra="eval", purpose="the box of a map").find_objects(labels.numpy(), len(owner))
    return torch.tensor([(x.start, y.start, x.stop, y.stop) for _, y, x in slices])


def largest_component_boxes(components: Components, maps: Tensor) -> Tensor:
    """The box of the largest component of each mask: by pixels, then by energy of the map, then the first.

    Args:
        components: of the masks.
        maps: the energy of each pixel, ``(B, H, W)``, on any device.

    Returns:
        int64 ``(B, 4)`` on the CPU; (0, 0, 0, 0) for a mask without a component.
    """
    labels, owner = components
    n = len(owner)
    boxes = torch.zeros(len(maps), 4, dtype=torch.int64)
    if not n:
        return boxes
    size = torch.bincount(labels.flatten(), minlength=n + 1)[1:]
    largest = owner.new_zeros(len(maps)).scatter_reduce_(0, owner, size, "amax")
    candidate = size == largest[owner]
    candidates = torch.bincount(owner[candidate], minlength=len(maps))
    tied = (candidates > 1).nonzero()[:, 0]
    if len(tied):
        # In float64 the sum of float32 energies is exact, and so is a tie.
        energy = torch.bincount(labels[tied].flatten(), maps[tied.to(maps.device)].cpu().flatten().double(), n + 1)[1:]
        energy = energy.where(candidate, -1)
        most = energy.new_full((len(maps),), -1).scatter_reduce_(0, owner, energy, "amax")
        candidate = candidate & ((energy == most[owner]) | (candidates[owner] == 1))
    # Ascending owners and a stable order: the first candidate of each owner is the first in raster order.
    chosen = candidate.nonzero()[:, 0]
    first = torch.cat([owner.new_ones(1, dtype=torch.bool), owner[chosen].diff() > 0])
    chosen = chosen[first]
    boxes[owner[chosen]] = component_boxes(components)[chosen]
    return boxes
