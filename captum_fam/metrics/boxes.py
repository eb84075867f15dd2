"""Boxes: of a map, as masks, and how far they overlap.

A box is (x0, y0, x1, y1) in pixels of the input, half-open: ``map[y0:y1, x0:x1]`` lies inside, and its area is
(x1 - x0)(y1 - y0). Boxes of annotations may have fractions and may reach out of the image, which cuts them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from captum_fam.metrics.components import label_components, largest_component_boxes
from captum_fam.metrics.maps import Size, normalize_maps

Boxes = Tensor | Sequence[Tensor]


def box_from_map(maps: Tensor, threshold: float = 0.2, connectivity: int = 8, size: Size | None = None) -> Tensor:
    """The box of a map: around the largest connected component of its pixels above a share of its range.

    The map is scaled to [0, 1] by its minimum and maximum; pixels strictly above ``threshold`` are connected.
    The largest component has the most pixels; among equals the most energy, then the first in raster order.

    Args:
        maps: one map ``(h, w)``, or a batch ``(B, 1, h, w)`` or ``(B, h, w)``.
        threshold: in [0, 1); the paper (and CAM before it) takes 0.2.
        connectivity: 8, or 4.
        size: height and width of the input, to which the maps are interpolated first.

    Returns:
        int64, ``(4,)`` for one map and ``(B, 4)`` for a batch. A flat map, and one with NaN or inf, has no box:
        (0, 0, 0, 0).

    Raises:
        ValueError: for another shape, threshold or connectivity.

    Example:
        >>> box_from_map(torch.tensor([[0.0, 1.0, 0.9], [0.1, 0.0, 0.0]]))
        tensor([1, 0, 3, 1])
    """
    single = maps.dim() == 2
    check_threshold(threshold)
    normalized = normalize_maps(maps[None] if single else maps, size)
    boxes = boxes_of_normalized(normalized, threshold, connectivity)
    return boxes[0] if single else boxes


def boxes_of_normalized(maps: Tensor, threshold: float, connectivity: int) -> Tensor:
    """:func:`box_from_map` of maps ``(B, H, W)`` that are scaled to [0, 1]."""
    at_work = maps if maps.is_cuda else maps.cpu()
    components = label_components(at_work > threshold, connectivity)
    return largest_component_boxes(components, at_work).to(maps.device)


def centered_box(size: Size, share: float = 0.6) -> Tensor:
    """The box in the middle of the image with this share of its sides, ``(4,)``: what every IoU must beat.

    Args:
        size: height and width.
        share: in (0, 1].

    Returns:
        float32 ``(4,)``.

    Example:
        >>> centered_box((100, 200))
        tensor([ 40.,  20., 160.,  80.])
    """
    height, width = size
    margin = (1 - share) / 2
    return torch.tensor([width * margin, height * margin, width * (1 - margin), height * (1 - margin)])


def format_boxes(boxes: Boxes, batch: int, device: torch.device | None = None) -> Tensor:
    """Boxes of a batch as one tensor ``(B, M, 4)``, filled up with (0, 0, 0, 0).

    Args:
        boxes: a box an image ``(B, 4)``, several ``(B, M, 4)`` filled up with zeros, or a list of ``(M_i, 4)``.
        batch: B.
        device: of the result; None: that of the boxes.

    Raises:
        ValueError: for another number or shape of boxes, NaN or inf, or corners in the wrong order.
    """
    if not isinstance(boxes, Tensor):
        each = [torch.as_tensor(own) for own in boxes]
        boxes = pad_sequence([own if own.numel() else own.new_zeros(1, 4) for own in each], batch_first=True)
    if boxes.dim() == 2:
        boxes = boxes[:, None]
    if boxes.dim() != 3 or boxes.shape[2] != 4 or len(boxes) != batch:
        raise ValueError(
            f"boxes has shape {tuple(boxes.shape)} for a batch of {batch}; pass a box an image (B, 4), several "
            "(B, M, 4) filled up with zeros, or a list of B tensors (M_i, 4)"
        )
    boxes = boxes.to(device=device, dtype=torch.float64 if boxes.dtype == torch.float64 else torch.float32)
    if not boxes.isfinite().all():
        raise ValueError("boxes contains NaN or inf; leave the box out, or put zeros in its place")
    if (boxes[..., 2:] < boxes[..., :2]).any():
        raise ValueError("boxes must be corners (x0, y0, x1, y1) with x0 <= x1 and y0 <= y1; is it (x, y, w, h)?")
    return boxes


def clip_boxes(boxes: Tensor, size: Size) -> Tensor:
    """The part of boxes ``(..., 4)`` that lies in an image of this height and width."""
    height, width = size
    limit = boxes.new_tensor([width, height, width, height])
    return boxes.clamp_min(0).minimum(limit)


def box_area(boxes: Tensor) -> Tensor:
    """Areas of boxes ``(..., 4)``."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def box_mask(boxes: Boxes, size: Size, batch: int | None = None, device: torch.device | None = None) -> Tensor:
    """The pixels whose centers lie in any box of their image: boolean ``(B, H, W)``.

    Args:
        boxes: a box an image ``(B, 4)``, several ``(B, M, 4)`` filled up with zeros, or a list of ``(M_i, 4)``.
        size: height and width of the images.
        batch: B, where it is to be checked.
        device: of the result; None: that of the boxes.

    Raises:
        ValueError: for another number or shape of boxes, NaN or inf, or corners in the wrong order.

    Example:
        >>> box_mask(torch.tensor([[1, 0, 3, 1]]), size=(2, 3)).int()
        tensor([[[0, 1, 1],
                 [0, 0, 0]]], dtype=torch.int32)
    """
    padded = format_boxes(boxes, len(boxes) if batch is None else batch, device)
    x0, y0, x1, y1 = (corner[..., None] for corner in padded.unbind(-1))
    x = torch.arange(size[1], device=x0.device) + 0.5
    y = torch.arange(size[0], device=x0.device) + 0.5
    columns = ((x >= x0) & (x < x1)).float()
    rows = ((y >= y0) & (y < y1)).float()
    return torch.bmm(rows.transpose(1, 2), columns) > 0


def pairwise_iou(predicted: Tensor, boxes: Tensor) -> Tensor:
    """Intersection over union (Eq. 20) of boxes that broadcast, ``(..., 4)`` each; 0 where both are empty."""
    low = torch.maximum(predicted[..., :2], boxes[..., :2])
    high = torch.minimum(predicted[..., 2:], boxes[..., 2:])
    common = (high - low).clamp_min(0).prod(-1)
    union = box_area(predicted) + box_area(boxes) - common
    return common / torch.where(union > 0, union, 1)


def check_threshold(threshold: float) -> None:
    """Refuse a threshold that leaves all or nothing."""
    if not 0 <= threshold < 1:
        raise ValueError(f"threshold must be in [0, 1), a share of the map's range, got {threshold}")
