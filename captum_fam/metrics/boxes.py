"""Boxes: the box of a map, boxes as masks, and the overlap of two boxes.

A box is (x0, y0, x1, y1) in pixels of the input, half-open: ``map[y0:y1, x0:x1]`` lies inside, and the area is
(x1 - x0)(y1 - y0). Annotated boxes may have fractional corners and may reach out of the image; measures use the part
inside the image.
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
"""The share of the range of a map above which a pixel belongs to the box, as in the FAM paper and in CAM."""


def box_from_map(
    maps: Tensor, threshold: float = BOX_THRESHOLD, connectivity: int = 8, size: Size | None = None
) -> Tensor:
    """The box around the largest connected component of the pixels above a share of the range of the map.

    The map is scaled to [0, 1] by its minimum and maximum, and the pixels strictly above ``threshold`` form components.
    The largest component has the most pixels. Among components of as many pixels the component with the most energy is
    taken, then the first component in raster order.

    Args:
        maps: one map ``(h, w)``, or a batch ``(B, 1, h, w)`` or ``(B, h, w)``.
        threshold: share of the range of the map, in [0, 1). Default: 0.2.
        connectivity: 8 or 4; with 4, pixels that share only a corner are not connected. Default: 8.
        size: height and width of the input, in pixels, to which the maps are interpolated first; None for no
            interpolation. Default: None.

    Returns:
        int64, ``(4,)`` for one map and ``(B, 4)`` for a batch. A flat map, and a map with NaN or inf, has no box:
        (0, 0, 0, 0).

    Raises:
        ValueError: for maps of another shape, a threshold outside [0, 1), or another connectivity.
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
    """:func:`box_from_map` for maps that are scaled to [0, 1] already.

    Args:
        maps: ``(B, H, W)`` in [0, 1].
        threshold: in [0, 1).
        connectivity: 8 or 4.

    Returns:
        int64 ``(B, 4)``, on the device of the maps.

    Raises:
        ValueError: for another connectivity.
        ModuleNotFoundError: if scipy is missing.

    Example:
        >>> boxes_of_normalized(torch.tensor([[[0.0, 1.0, 0.9]]]), threshold=0.2, connectivity=8)
        tensor([[1, 0, 3, 1]])
    """
    components = label_components(maps > threshold, connectivity)
    return largest_component_boxes(components, maps).to(maps.device)


def centered_box(size: Size, share: float = 0.6) -> Tensor:
    """The box in the middle of the image, as a baseline for the boxes of maps.

    Args:
        size: height and width of the image, in pixels.
        share: side of the box as a share of the side of the image, in (0, 1]. Default: 0.6.

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
        boxes: one box per image ``(B, 4)``, several boxes per image ``(B, M, 4)`` padded with zeros, or a list of B
            tensors ``(M_i, 4)``; in pixels of the input.
        batch: B, the number of images.
        device: device of the result; None for the device of the boxes. Default: None.

    Returns:
        ``(B, M, 4)``, float64 for boxes in float64 and float32 for all others.

    Raises:
        ValueError: for boxes of another number or shape, boxes with NaN or inf, or corners in the wrong order.

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
            f"boxes has shape {tuple(boxes.shape)} for a batch of {batch}; pass one box per image (B, 4), several per "
            "image (B, M, 4) padded with zeros, or a list of B tensors (M_i, 4)"
        )
    boxes = boxes.to(device=device, dtype=torch.float64 if boxes.dtype == torch.float64 else torch.float32)
    if not boxes.isfinite().all():
        raise ValueError("boxes contains NaN or inf; leave out the box, or replace it by zeros")
    if (boxes[..., 2:] < boxes[..., :2]).any():
        raise ValueError("boxes must be corners (x0, y0, x1, y1) with x0 <= x1 and y0 <= y1; are they (x, y, w, h)?")
    return boxes


def box_mask(boxes: Boxes, size: Size, batch: int | None = None, device: torch.device | None = None) -> Tensor:
    """The pixels whose centers lie in any box of the image.

    Args:
        boxes: one box per image ``(B, 4)``, several boxes per image ``(B, M, 4)`` padded with zeros, or a list of B
            tensors ``(M_i, 4)``; in pixels of the input.
        size: height H and width W of the images, in pixels.
        batch: B, which the number of boxes must equal; None for no check of the number. Default: None.
        device: device of the result; None for the device of the boxes. Default: None.

    Returns:
        Boolean ``(B, H, W)``.

    Raises:
        ValueError: for boxes of another number or shape, boxes with NaN or inf, or corners in the wrong order.

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
    # The mask of a box is the outer product of its rows and columns. The batched product sums over the M boxes of an
    # image, so that no tensor (B, M, H, W) is needed.
    return torch.bmm(rows.transpose(1, 2), columns) > 0


def region_mask(region: Boxes, size: Size | None) -> Tensor:
    """A region as a mask.

    Args:
        region: boxes as in :func:`box_mask`, or a boolean mask ``(B, H, W)`` or ``(B, 1, H, W)``.
        size: height H and width W of the input, in pixels; None is allowed only if the region is a mask.

    Returns:
        Boolean ``(B, H, W)``.

    Raises:
        ValueError: for boxes without a size, boxes as :func:`box_mask` refuses them, or a mask of another shape.

    Example:
        >>> region_mask(torch.tensor([[0, 0, 1, 1]]), size=(1, 2))
        tensor([[[ True, False]]])
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
    """:func:`region_mask` of one region per map.

    Args:
        maps: ``(B, ...)``.
        region: as in :func:`region_mask`.
        size: as in :func:`region_mask`.

    Returns:
        Boolean ``(B, H, W)``, on the device of the maps.

    Raises:
        ValueError: as :func:`region_mask`, or if there are not as many regions as maps.

    Example:
        >>> region_mask_of_maps(torch.rand(1, 1, 2), torch.tensor([[0, 0, 1, 1]]), size=(1, 2))
        tensor([[[ True, False]]])
    """
    inside = region_mask(region, size).to(maps.device)
    if len(inside) != len(maps):
        raise ValueError(f"region is of {len(inside)} images but maps of {len(maps)} images; give one region per map")
    return inside


def pairwise_iou(predicted: Tensor, boxes: Tensor) -> Tensor:
    """Intersection over union of two boxes, Eq. 20 of the FAM paper (arXiv 2307.05017).

    Args:
        predicted: ``(..., 4)``.
        boxes: ``(..., 4)``, broadcast with ``predicted``.

    Returns:
        ``(...)`` in [0, 1]; 0 where both boxes are empty.

    Example:
        >>> pairwise_iou(torch.tensor([0.0, 0.0, 2.0, 1.0]), torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 2.0, 1.0]]))
        tensor([0.5000, 1.0000])
    """
    low = torch.maximum(predicted[..., :2], boxes[..., :2])
    high = torch.minimum(predicted[..., 2:], boxes[..., 2:])
    intersection = (high - low).clamp_min(0).prod(-1)
    union = box_areas(predicted) + box_areas(boxes) - intersection
    return intersection / torch.where(union > 0, union, 1)


def check_threshold(threshold: float) -> None:
    """Refuse a threshold outside [0, 1), which would keep every pixel of a normalized map or none.

    Args:
        threshold: share of the range of the map.

    Raises:
        ValueError: if the threshold is not in [0, 1).

    Example:
        >>> check_threshold(0.2)
    """
    if not 0 <= threshold < 1:
        raise ValueError(f"threshold must be a share of the range of the map, in [0, 1), got {threshold}")
