"""Boxes: of a map, as masks, and how far two boxes overlap.

A box is (x0, y0, x1, y1) in pixels of the input, half-open: ``map[y0:y1, x0:x1]`` lies inside, and the area is
(x1 - x0)(y1 - y0). Annotated boxes may have fractions and may reach out of the image; measures use the part inside.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from captum_fam.geometry import box_areas
from captum_fam.metrics.components import label_components, largest_component_boxes
from captum_fam.metrics.maps import Size, normalize_maps

Boxes = Tensor | Sequence[Tensor]

BOX_THRESHOLD = 0.2
"""The share of a map's range above which its box begins, in the FAM paper and in CAM before it."""


def box_from_map(
    maps: Tensor, threshold: float = BOX_THRESHOLD, connectivity: int = 8, size: Size | None = None
) -> Tensor:
    """The box of a map: around the largest connected component of its pixels above a share of its range.

    The map is scaled to [0, 1] by its minimum and maximum; pixels strictly above ``threshold`` are connected.
    The largest component has the most pixels; among equals the most energy, then the first in raster order.

    Args:
        maps: one map ``(h, w)``, or a batch ``(B, 1, h, w)`` or ``(B, h, w)``.
        threshold: in [0, 1); default 0.2.
        connectivity: 8 (default), or 4, which takes pixels that share only a corner as apart.
        size: height and width of the input, to which the maps are interpolated first; None (default): no
            interpolation.

    Returns:
        int64, ``(4,)`` for one map and ``(B, 4)`` for a batch. A flat map, and one with NaN or inf, has no box:
        (0, 0, 0, 0).

    Raises:
        ValueError: for another shape, threshold or connectivity.
        ModuleNotFoundError: if scipy is missing.

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
    """:func:`box_from_map` of maps ``(B, H, W)`` that are scaled to [0, 1] already: int64 ``(B, 4)``."""
    components = label_components(maps > threshold, connectivity)
    return largest_component_boxes(components, maps).to(maps.device)


def centered_box(size: Size, share: float = 0.6) -> Tensor:
    """The box in the middle of the image with this share of each side: the box that every map's box must beat.

    Args:
        size: height and width.
        share: in (0, 1]; default 0.6.

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
    """Boxes of a batch as one tensor, padded with (0, 0, 0, 0).

    Args:
        boxes: one box per image ``(B, 4)``, several ``(B, M, 4)`` padded with zeros, or a list of B tensors
            ``(M_i, 4)``.
        batch: B.
        device: of the result; None (default): that of the boxes.

    Returns:
        ``(B, M, 4)``, float64 for boxes of that type and float32 for all others.

    Raises:
        ValueError: for another number or shape of boxes, NaN or inf, or corners in the wrong order.

    Example:
        >>> format_boxes([torch.tensor([[1, 2, 3, 4]]), torch.zeros(0, 4)], batch=2)
        tensor([[[1., 2., 3., 4.]],
                [[0., 0., 0., 0.]]])
    """
    if not isinstance(boxes, Tensor):
        per_image = [torch.as_tensor(image_boxes) for image_boxes in boxes]
        boxes = pad_sequence([rows if rows.numel() else rows.new_zeros(1, 4) for rows in per_image], batch_first=True)
    if boxes.dim() == 2:
        boxes = boxes[:, None]
    if boxes.dim() != 3 or boxes.shape[2] != 4 or len(boxes) != batch:
        raise ValueError(
            f"boxes has shape {tuple(boxes.shape)} for a batch of {batch}; pass one box per image (B, 4), several "
            "(B, M, 4) padded with zeros, or a list of B tensors (M_i, 4)"
        )
    boxes = boxes.to(device=device, dtype=torch.float64 if boxes.dtype == torch.float64 else torch.float32)
    if not boxes.isfinite().all():
        raise ValueError("boxes contains NaN or inf; leave the box out, or put zeros in its place")
    if (boxes[..., 2:] < boxes[..., :2]).any():
        raise ValueError("boxes must be corners (x0, y0, x1, y1) with x0 <= x1 and y0 <= y1; is it (x, y, w, h)?")
    return boxes


def box_mask(boxes: Boxes, size: Size, batch: int | None = None, device: torch.device | None = None) -> Tensor:
    """The pixels whose centers lie in any box of their image.

    Args:
        boxes: one box per image ``(B, 4)``, several ``(B, M, 4)`` padded with zeros, or a list of B tensors
            ``(M_i, 4)``.
        size: height and width of the images.
        batch: B; None (default): as many as there are boxes, without a check.
        device: of the result; None (default): that of the boxes.

    Returns:
        Boolean ``(B, H, W)``.

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
    # A box is an outer product of its rows and columns; the product sums over the boxes, without (B, M, H, W).
    return torch.bmm(rows.transpose(1, 2), columns) > 0


def region_mask(region: Boxes, size: Size | None) -> Tensor:
    """A region as a mask.

    Args:
        region: boxes as in :func:`box_mask`, or a boolean mask ``(B, H, W)`` or ``(B, 1, H, W)``.
        size: height and width of the input; None is allowed with a mask only.

    Returns:
        Boolean ``(B, H, W)``.

    Raises:
        ValueError: for boxes without a size, and for a mask of another shape.
    """
    if not isinstance(region, Tensor) or region.dtype != torch.bool:
        if size is None:
            raise ValueError("size is missing: boxes are in pixels of the input, so pass its height and width")
        return box_mask(region, size)
    mask = region[:, 0] if region.dim() == 4 and region.shape[1] == 1 else region
    if mask.dim() != 3 or (size is not None and tuple(mask.shape[1:]) != tuple(size)):
        raise ValueError(
            f"region is a mask of shape {tuple(region.shape)}; it must be (B, H, W) with the size of the input"
            f"{'' if size is None else f', {tuple(size)}'}"
        )
    return mask


def region_mask_of_maps(maps: Tensor, region: Boxes, size: Size | None) -> Tensor:
    """:func:`region_mask`, checked to be of as many images as there are maps, on the device of the maps."""
    inside = region_mask(region, size).to(maps.device)
    if len(inside) != len(maps):
        raise ValueError(f"region is of {len(inside)} images but maps of {len(maps)}; give one region per map")
    return inside


def pairwise_iou(predicted: Tensor, boxes: Tensor) -> Tensor:
    """Eq. 20 of the FAM paper: the intersection of two boxes divided by their union.

    Args:
        predicted: ``(..., 4)``.
        boxes: ``(..., 4)``, which broadcasts with ``predicted``.

    Returns:
        ``(...)`` in [0, 1]; 0 where both boxes are empty.
    """
    low = torch.maximum(predicted[..., :2], boxes[..., :2])
    high = torch.minimum(predicted[..., 2:], boxes[..., 2:])
    common = (high - low).clamp_min(0).prod(-1)
    union = box_areas(predicted) + box_areas(boxes) - common
    return common / torch.where(union > 0, union, 1)


def check_threshold(threshold: float) -> None:
    """Refuse a threshold that keeps every pixel or none.

    Raises:
        ValueError: if the threshold is not in [0, 1).
    """
    if not 0 <= threshold < 1:
        raise ValueError(f"threshold must be in [0, 1), a share of the map's range, got {threshold}")
