"""Does the map lie on the object? Energy proportion, box IoU and MaxBoxAccV2, one value a sample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from captum_fam.metrics.boxes import (
    Boxes,
    box_area,
    box_mask,
    boxes_of_normalized,
    check_threshold,
    clip_boxes,
    format_boxes,
    pairwise_iou,
)
from captum_fam.metrics.components import component_boxes, label_components
from captum_fam.metrics.maps import Energy, Size, find_nan, normalize_maps

Over = Literal["best", "first", "largest", "mean"]


def energy_proportion(maps: Tensor, region: Boxes, size: Size | None = None, energy: Energy = "minmax") -> Tensor:
    """Eq. 19, the share of a map's energy inside the boxes; a pixel in several boxes counts once.

    Args:
        maps: ``(B, 1, h, w)`` or ``(B, h, w)``, interpolated to ``size`` here.
        region: boxes, ``(B, 4)``, ``(B, M, 4)`` filled up with zeros, or a list of B tensors ``(M_i, 4)``; or a
            boolean mask ``(B, H, W)``. A pixel lies in a box if its center does.
        size: height and width of the input; may be left out with a mask.
        energy: ``"minmax"``, the paper's; ``"positive"``: see :func:`normalize_maps`.

    Returns:
        ``(B,)`` in [0, 1]; NaN for a map without energy (a flat one), with NaN or inf, and where the region
        holds no pixel.

    Raises:
        ValueError: for shapes that do not fit.

    Example:
        >>> energy_proportion(torch.tensor([[[0.0, 1.0], [1.0, 2.0]]]), torch.tensor([[1, 0, 2, 2]]), size=(2, 2))
        tensor([0.7500])
    """
    inside = region_mask(maps, region, size)
    normalized = normalize_maps(maps, (inside.shape[1], inside.shape[2]), energy).flatten(1)
    weight = inside.flatten(1).to(normalized.dtype)
    share = (normalized * weight).sum(1) / normalized.sum(1)
    return share.masked_fill(weight.amax(1) == 0, torch.nan)


def area_share(region: Boxes, size: Size | None = None) -> Tensor:
    """The share of the image's pixels inside the boxes, ``(B,)``: the energy proportion of a uniform map.

    Args:
        region: boxes or a mask, as for :func:`energy_proportion`.
        size: height and width of the input; may be left out with a mask.

    Returns:
        ``(B,)``; NaN where the region holds no pixel.

    Raises:
        ValueError: for shapes that do not fit.

    Example:
        >>> area_share(torch.tensor([[1, 0, 2, 2]]), size=(2, 2))
        tensor([0.5000])
    """
    inside = _as_mask(region, size)
    share = inside.flatten(1).float().mean(1)
    return share.masked_fill(share == 0, torch.nan)


def energy_lift(maps: Tensor, region: Boxes, size: Size | None = None, energy: Energy = "minmax") -> Tensor:
    """:func:`energy_proportion` over :func:`area_share`, ``(B,)``: 1 is what a uniform map has.

    The arguments, and what is raised, are those of :func:`energy_proportion`.

    Example:
        >>> energy_lift(torch.tensor([[[0.0, 1.0], [1.0, 2.0]]]), torch.tensor([[1, 0, 2, 2]]), size=(2, 2))
        tensor([1.5000])
    """
    inside = region_mask(maps, region, size)
    return energy_proportion(maps, inside, energy=energy) / area_share(inside)


def region_mask(maps: Tensor, region: Boxes, size: Size | None) -> Tensor:
    """The region as a boolean mask ``(B, H, W)`` on the maps' device."""
    inside = _as_mask(region, size).to(maps.device)
    if len(inside) != len(maps):
        raise ValueError(f"region is of {len(inside)} images but maps of {len(maps)}; give one each")
    return inside


def _as_mask(region: Boxes, size: Size | None) -> Tensor:
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


def box_iou(
    maps: Tensor,
    boxes: Boxes,
    size: Size,
    threshold: float = 0.2,
    connectivity: int = 8,
    over: Over = "best",
    energy: Energy = "minmax",
) -> Tensor:
    """Eq. 20, intersection over union of the map's box (:func:`box_from_map`) and an annotated one.

    Args:
        maps: ``(B, 1, h, w)`` or ``(B, h, w)``, interpolated to ``size`` here.
        boxes: ``(B, 4)``, ``(B, M, 4)`` filled up with zeros, or a list of B tensors ``(M_i, 4)``; the parts
            outside the image are cut.
        size: height and width of the input.
        threshold: share of the map's range.
        connectivity: 8, or 4.
        over: an image's boxes: the ``"best"`` IoU, that of the ``"first"`` or ``"largest"``, or the ``"mean"``.
        energy: what the map's range is: ``"minmax"``, or ``"positive"``, from zero; see :func:`normalize_maps`.

    Returns:
        ``(B,)`` in [0, 1]; 0 for a flat map, NaN for one with NaN or inf and for an image without a box.

    Raises:
        ValueError: for shapes, boxes or choices that do not fit.

    Example:
        >>> box_iou(torch.tensor([[[0.0, 1.0, 0.9]]]), torch.tensor([[1, 0, 2, 1]]), size=(1, 3))
        tensor([0.5000])
    """
    check_threshold(threshold)
    normalized = normalize_maps(maps, size, energy)
    truth = clip_boxes(format_boxes(boxes, len(maps), maps.device), size)
    found = boxes_of_normalized(normalized, threshold, connectivity)
    value = iou_over_boxes(found[:, None].to(truth), truth, over)
    return value.masked_fill(find_nan(maps), torch.nan).to(normalized.dtype)


def iou_over_boxes(found: Tensor, truth: Tensor, over: Over) -> Tensor:
    """One IoU an image, of a box with those annotated there.

    Args:
        found: the box, ``(B, 1, 4)`` or ``(1, 1, 4)``.
        truth: the annotated ones, ``(B, M, 4)``, cut by the image and filled up with zeros.
        over: as for :func:`box_iou`.

    Returns:
        ``(B,)``; NaN for an image without a box.
    """
    if over not in get_args(Over):
        raise ValueError(f"over must be one of {', '.join(map(repr, get_args(Over)))}, got {over!r}")
    area = box_area(truth)
    exists = area > 0
    ious = pairwise_iou(found, truth)
    if over == "best":
        value = ious.masked_fill(~exists, -1).amax(1)
    elif over == "mean":
        value = ious.masked_fill(~exists, 0).sum(1) / exists.sum(1)
    else:
        index = (exists.int() if over == "first" else area).argmax(1, keepdim=True)
        value = ious.gather(1, index)[:, 0]
    return value.masked_fill(~exists.any(1), torch.nan)


MAX_BOX_THRESHOLDS = tuple(step / 100 for step in range(100))
MAX_BOX_DELTAS = (0.3, 0.5, 0.7)


def box_ious_by_threshold(
    maps: Tensor,
    boxes: Boxes,
    size: Size,
    thresholds: Sequence[float] = MAX_BOX_THRESHOLDS,
    connectivity: int = 8,
    components: Literal["all", "largest"] = "all",
    energy: Energy = "minmax",
) -> Tensor:
    """For every threshold the best IoU of any box of the map with any annotated box, ``(B, T)``.

    Args:
        maps: ``(B, 1, h, w)`` or ``(B, h, w)``, interpolated to ``size`` here.
        boxes: as for :func:`box_iou`.
        size: height and width of the input.
        thresholds: T shares of the map's range.
        connectivity: 8, or 4.
        components: the boxes of ``"all"`` connected components, each for itself, as in MaxBoxAccV2; or that of
            the ``"largest"``, as in MaxBoxAcc.
        energy: as for :func:`box_iou`.

    Returns:
        ``(B, T)``; 0 for a flat map, NaN for one with NaN or inf and for an image without a box.

    Raises:
        ValueError: for shapes, boxes, thresholds or choices that do not fit.

    Example:
        >>> maps, boxes = torch.tensor([[[0.0, 1.0, 0.9]]]), torch.tensor([[1, 0, 2, 1]])
        >>> box_ious_by_threshold(maps, boxes, size=(1, 3), thresholds=(0.2, 0.95))
        tensor([[0.5000, 1.0000]])
    """
    for threshold in thresholds:
        check_threshold(threshold)
    if components not in ("all", "largest"):
        raise ValueError(f'components must be "all" or "largest", got {components!r}')
    normalized = normalize_maps(maps, size, energy)
    truth = clip_boxes(format_boxes(boxes, len(maps), maps.device), size)
    undefined = ~(box_area(truth) > 0).any(1) | find_nan(maps)
    # The boxes of components are counted in Python: away from the device unless it labels itself.
    at_work, truth = (normalized, truth) if normalized.is_cuda else (normalized.cpu(), truth.cpu())
    columns = []
    for threshold in thresholds:
        if components == "largest":
            found = boxes_of_normalized(at_work, threshold, connectivity)
            columns.append(pairwise_iou(found[:, None].to(truth), truth).amax(1))
        else:
            each = label_components(at_work > threshold, connectivity)
            ious = pairwise_iou(component_boxes(each)[:, None].to(truth), truth[each.owner]).amax(1)
            columns.append(ious.new_zeros(len(maps)).scatter_reduce_(0, each.owner, ious, "amax"))
    ious = torch.stack(columns, 1).to(normalized)
    return ious.masked_fill(undefined[:, None], torch.nan)


class MaxBoxAccuracy(NamedTuple):
    """What :func:`max_box_accuracy` finds.

    Attributes:
        correct: of each sample, the share of the deltas that its IoU reaches at that delta's best threshold, ``(n,)``,
            NaN where undefined. Its mean is MaxBoxAccV2.
        accuracies: of each delta at its best threshold, ``(D,)``.
        best: the index of that threshold, the first among equals, ``(D,)``.
    """

    correct: Tensor
    accuracies: Tensor
    best: Tensor


def max_box_accuracy(ious: Tensor, deltas: Sequence[float] = MAX_BOX_DELTAS) -> MaxBoxAccuracy:
    """MaxBoxAccV2 of Choe et al. (arXiv 2007.04178): the mean over delta of max over threshold of accuracy.

    A sample is right where its IoU is at least delta. The thresholds are chosen on the very samples they are
    judged on, unless ``ious`` has the columns that were best on others.

    Args:
        ious: of :func:`box_ious_by_threshold`, ``(n, T)``.
        deltas: D levels of IoU.

    Example:
        >>> max_box_accuracy(torch.tensor([[0.5, 1.0], [0.4, 0.2]]), deltas=(0.3, 0.5)).accuracies
        tensor([1.0000, 0.5000])
    """
    defined = ~ious.isnan().any(1)
    right = torch.stack([ious >= delta for delta in deltas], 2)
    hits = right[defined].sum(0)
    best = hits.argmax(0)
    level = torch.arange(len(deltas), device=ious.device)
    correct = right[:, best, level].double().mean(1).masked_fill(~defined, torch.nan)
    return MaxBoxAccuracy(correct, hits[best, level] / defined.sum(), best)
