"""Does the box of the map fit the object? The intersection over union (IoU), one value per sample."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from captum_fam.geometry import box_areas, clip_boxes
from captum_fam.metrics.boxes import (
    BOX_THRESHOLD,
    Boxes,
    boxes_of_normalized,
    check_threshold,
    format_boxes,
    pairwise_iou,
)
from captum_fam.metrics.maps import Energy, Size, find_nan, normalize_maps

Over = Literal["best", "first", "largest", "mean"]


def box_iou(
    maps: Tensor,
    boxes: Boxes,
    size: Size,
    threshold: float = BOX_THRESHOLD,
    connectivity: int = 8,
    over: Over = "best",
    energy: Energy = "minmax",
) -> Tensor:
    """IoU of the :func:`box_from_map` and an annotated box, Eq. 20 of the FAM paper (arXiv 2307.05017).

    Args:
        maps: ``(B, 1, h, w)`` or ``(B, h, w)``; interpolated to ``size`` here.
        boxes: annotated boxes in pixels of the input, ``(B, 4)``, ``(B, M, 4)`` padded with zeros, or a list of B
            tensors ``(M_i, 4)``; the parts outside the image are cut off.
        size: height and width of the input, in pixels.
        threshold: share of the range of the map, in [0, 1). Default: 0.2.
        connectivity: 8 or 4, as in :func:`box_from_map`. Default: 8.
        over: how the IoUs with several boxes of an image become one value: the ``"best"`` IoU, the IoU with the
            ``"first"`` or with the ``"largest"`` box, or the ``"mean"``. Default: ``"best"``.
        energy: range of the map, ``"minmax"`` or ``"positive"``; see :func:`normalize_maps`. Default: ``"minmax"``.

    Returns:
        ``(B,)`` in [0, 1]; 0 for a flat map, NaN for a map with NaN or inf and for an image without a box.

    Raises:
        ValueError: for maps or boxes of another shape, boxes that are no corners, a threshold outside [0, 1), another
            connectivity, or an unknown ``over`` or ``energy``.
        ModuleNotFoundError: if scipy is missing.

    Example:
        >>> box_iou(torch.tensor([[[0.0, 1.0, 0.9]]]), torch.tensor([[1, 0, 2, 1]]), size=(1, 3))
        tensor([0.5000])
    """
    check_threshold(threshold)
    normalized = normalize_maps(maps, size, energy)
    truth = annotated_boxes(boxes, len(maps), size, maps.device)
    predicted = boxes_of_normalized(normalized, threshold, connectivity)
    iou = _over_boxes(predicted.to(truth), truth, over)
    return iou.masked_fill(find_nan(maps), torch.nan).to(normalized.dtype)


def iou_with_boxes(predicted: Tensor, boxes: Boxes, size: Size, over: Over = "best") -> Tensor:
    """IoU of predicted boxes and annotated boxes, Eq. 20, for example of the constant box of a baseline.

    Args:
        predicted: one box per image ``(B, 4)``, or one box for all images ``(4,)``.
        boxes: annotated boxes, as in :func:`box_iou`.
        size: height and width of the input, in pixels.
        over: as in :func:`box_iou`. Default: ``"best"``.

    Returns:
        ``(B,)`` in [0, 1]; NaN for an image without a box.

    Raises:
        ValueError: for boxes of another shape, boxes that are no corners, or an unknown ``over``.

    Example:
        >>> iou_with_boxes(torch.tensor([0, 0, 4, 2]), torch.tensor([[0, 0, 2, 2], [0, 0, 4, 2]]), size=(2, 4))
        tensor([0.5000, 1.0000])
    """
    truth = annotated_boxes(boxes, len(boxes), size)
    return _over_boxes(predicted.to(truth).expand(len(truth), 4), truth, over)


def annotated_boxes(boxes: Boxes, batch: int, size: Size, device: torch.device | None = None) -> Tensor:
    """The parts of annotated boxes inside the image.

    Args:
        boxes: as in :func:`box_iou`.
        batch: B, the number of images.
        size: height and width of the images, in pixels.
        device: device of the result; None for the device of the boxes. Default: None.

    Returns:
        ``(B, M, 4)``. Padding, and a box outside the image, has no area.

    Raises:
        ValueError: for boxes of another number or shape, boxes with NaN or inf, or corners in the wrong order.

    Example:
        >>> annotated_boxes([torch.tensor([[-1, 0, 3, 9]])], batch=1, size=(4, 4))
        tensor([[[0., 0., 3., 4.]]])
    """
    height, width = size
    return clip_boxes(format_boxes(boxes, batch, device), width=width, height=height)


def _over_boxes(predicted: Tensor, truth: Tensor, over: Over) -> Tensor:
    """One IoU ``(B,)`` per image, of predicted boxes ``(B, 4)`` and annotated boxes ``(B, M, 4)``."""
    if over not in get_args(Over):
        raise ValueError(f"over must be one of {', '.join(map(repr, get_args(Over)))}, got {over!r}")
    area = box_areas(truth)
    exists = area > 0  # not padding
    ious = pairwise_iou(predicted[:, None], truth)
    if over == "best":
        value = ious.masked_fill(~exists, -1).amax(1)
    elif over == "mean":
        value = ious.masked_fill(~exists, 0).sum(1) / exists.sum(1)
    else:
        index = (exists.int() if over == "first" else area).argmax(1, keepdim=True)
        value = ious.gather(1, index)[:, 0]
    return value.masked_fill(~exists.any(1), torch.nan)
