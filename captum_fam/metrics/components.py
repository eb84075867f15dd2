"""Connected components of a batch of masks, by ``scipy.ndimage`` on the CPU.

A map is as small as the input of the model. To copy a map from a GPU is faster than to label its components there.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from captum_fam._files import need


class Components(NamedTuple):
    """The n components of a batch of masks, numbered through the batch in the order of their first pixels.

    Attributes:
        labels: the number of the component, 1 to n, at each of its pixels, and 0 elsewhere; integers ``(B, H, W)`` on
            the CPU.
        owner: index in the batch of the mask of each component, ascending, int64 ``(n,)`` on the CPU.
    """

    labels: Tensor
    owner: Tensor


def label_components(masks: Tensor, connectivity: int = 8) -> Components:
    """Number the connected components of masks.

    Args:
        masks: boolean ``(B, H, W)``, on any device.
        connectivity: 8 or 4; with 4, pixels that share only a corner are not connected. Default: 8.

    Returns:
        The components, on the CPU.

    Raises:
        ValueError: for another connectivity.
        ModuleNotFoundError: if scipy is missing.

    Example:
        >>> label_components(torch.tensor([[[True, False, True]], [[False, True, True]]]))
        Components(labels=tensor([[[1, 0, 2]],
                [[0, 3, 3]]], dtype=torch.int32), owner=tensor([0, 0, 1]))
    """
    if connectivity not in (4, 8):
        raise ValueError(f"connectivity must be 4 or 8, got {connectivity!r}")
    ndimage = need("scipy.ndimage", extra="eval", purpose="the box of a map")
    plane = ndimage.generate_binary_structure(2, 1 if connectivity == 4 else 2)
    # One call labels the whole batch as a volume. The structure has empty planes before and behind, so that pixels of
    # different masks are not connected.
    labels, _ = ndimage.label(masks.cpu().numpy(), np.stack([np.zeros_like(plane), plane, np.zeros_like(plane)]))
    numbered = torch.from_numpy(labels)
    # Numbers ascend from mask to mask, so that the largest number up to a mask counts the components up to this mask.
    last = numbered.flatten(1).amax(1).cummax(0).values if len(numbered) else numbered.new_zeros(0)
    counts = last.diff(prepend=last.new_zeros(1))
    return Components(numbered, torch.arange(len(masks)).repeat_interleave(counts))


def component_boxes(components: Components) -> Tensor:
    """The boxes around all components.

    Args:
        components: result of :func:`label_components`.

    Returns:
        Half-open boxes (x0, y0, x1, y1) in pixels of the masks, int64 ``(n, 4)`` on the CPU.

    Raises:
        ModuleNotFoundError: if scipy is missing.

    Example:
        >>> component_boxes(label_components(torch.tensor([[[True, False, True]], [[False, True, True]]])))
        tensor([[0, 0, 1, 1],
                [2, 0, 3, 1],
                [1, 0, 3, 1]])
    """
    labels, owner = components
    if not len(owner):
        return owner.new_zeros(0, 4)
    slices = need("scipy.ndimage", extra="eval", purpose="the box of a map").find_objects(labels.numpy(), len(owner))
    return torch.tensor([(x.start, y.start, x.stop, y.stop) for _, y, x in slices])


def largest_component_boxes(components: Components, maps: Tensor) -> Tensor:
    """The box of the largest component of each mask.

    The largest component has the most pixels; among components of as many pixels it has the most energy, and among
    components of equal energy too it is the first in raster order.

    Args:
        components: components of the masks.
        maps: energy of each pixel, ``(B, H, W)``, on any device.

    Returns:
        int64 ``(B, 4)`` on the CPU; (0, 0, 0, 0) for a mask without a component.

    Raises:
        ModuleNotFoundError: if scipy is missing.

    Example:
        >>> maps = torch.tensor([[[0.5, 0.0, 0.9]]])
        >>> largest_component_boxes(label_components(maps > 0), maps)
        tensor([[2, 0, 3, 1]])
    """
    labels, owner = components
    n_components = len(owner)
    boxes = torch.zeros(len(maps), 4, dtype=torch.int64)
    if not n_components:
        return boxes
    size = torch.bincount(labels.flatten(), minlength=n_components + 1)[1:]
    largest = owner.new_zeros(len(maps)).scatter_reduce_(0, owner, size, "amax")
    is_candidate = size == largest[owner]
    n_candidates = torch.bincount(owner[is_candidate], minlength=len(maps))
    tied_masks = (n_candidates > 1).nonzero()[:, 0]
    if len(tied_masks):
        # Sums of float32 energies in float64 have no rounding errors, so that equal energies compare as equal.
        pixel_energy = maps[tied_masks.to(maps.device)].cpu().flatten().double()
        energy = torch.bincount(labels[tied_masks].flatten(), pixel_energy, n_components + 1)[1:]
        energy = energy.where(is_candidate, -1)
        most = energy.new_full((len(maps),), -1).scatter_reduce_(0, owner, energy, "amax")
        is_candidate = is_candidate & ((energy == most[owner]) | (n_candidates[owner] == 1))
    # Components are numbered mask by mask in raster order, so that the first candidate of a mask is the first in raster
    # order.
    candidates = is_candidate.nonzero()[:, 0]
    is_first = torch.cat([owner.new_ones(1, dtype=torch.bool), owner[candidates].diff() > 0])
    chosen = candidates[is_first]
    boxes[owner[chosen]] = component_boxes(components)[chosen]
    return boxes
