"""Does any box of the map fit the object? MaxBoxAccV2, which chooses the best threshold for each map method."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from captum_fam.geometry import box_areas
from captum_fam.metrics.boxes import Boxes, boxes_of_normalized, check_threshold, pairwise_iou
from captum_fam.metrics.components import component_boxes, label_components
from captum_fam.metrics.maps import Energy, Size, find_nan, normalize_maps
from captum_fam.metrics.overlap import annotated_boxes

Which = Literal["all", "largest"]

MAX_BOX_THRESHOLDS = tuple(step / 100 for step in range(100))
"""The thresholds that MaxBoxAccV2 tries, as shares of the range of a map."""
MAX_BOX_DELTAS = (0.3, 0.5, 0.7)
"""The levels of IoU over which MaxBoxAccV2 averages."""


def box_ious_by_threshold(
    maps: Tensor,
    boxes: Boxes,
    size: Size,
    thresholds: Sequence[float] = MAX_BOX_THRESHOLDS,
    connectivity: int = 8,
    components: Which = "all",
    energy: Energy = "minmax",
) -> Tensor:
    """For every threshold, the best IoU of any box of the map with any annotated box.

    Args:
        maps: ``(B, 1, h, w)`` or ``(B, h, w)``; interpolated to ``size`` here.
        boxes: annotated boxes, as in :func:`box_iou`.
        size: height and width of the input, in pixels.
        thresholds: T shares of the range of the map, in [0, 1). Default: 0, 0.01, ..., 0.99.
        connectivity: 8 or 4, as in :func:`box_from_map`. Default: 8.
        components: ``"all"`` for one box around each connected component, as in MaxBoxAccV2; ``"largest"`` for the box
            around the largest component only, as in MaxBoxAcc. Default: ``"all"``.
        energy: as in :func:`box_iou`. Default: ``"minmax"``.

    Returns:
        ``(B, T)`` in [0, 1]; 0 for a flat map, NaN for a map with NaN or inf and for an image without a box.

    Raises:
        ValueError: for maps or boxes of another shape, boxes that are no corners, a threshold outside [0, 1), another
            connectivity, or an unknown ``components`` or ``energy``.
        ModuleNotFoundError: if scipy is missing.

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
    # Components are labeled on the CPU. One copy of the maps serves all thresholds.
    cpu_maps = normalized.cpu()
    truth = annotated_boxes(boxes, len(maps), size, maps.device).cpu()
    columns = []
    for threshold in thresholds:
        if components == "largest":
            predicted = boxes_of_normalized(cpu_maps, threshold, connectivity)
            columns.append(pairwise_iou(predicted[:, None].to(truth), truth).amax(1))
        else:
            # The components of the batch are in one list, from which each map takes the best of its own.
            labeled = label_components(cpu_maps > threshold, connectivity)
            ious = pairwise_iou(component_boxes(labeled)[:, None].to(truth), truth[labeled.owner]).amax(1)
            columns.append(ious.new_zeros(len(maps)).scatter_reduce_(0, labeled.owner, ious, "amax"))
    undefined = ~(box_areas(truth) > 0).any(1) | find_nan(maps).cpu()
    return torch.stack(columns, 1).masked_fill(undefined[:, None], torch.nan).to(normalized)


class MaxBoxAccuracy(NamedTuple):
    """Result of :func:`max_box_accuracy`, for n samples and D levels of IoU (deltas).

    Attributes:
        correct: for each sample, the share of the deltas that its IoU reaches, each at the best threshold of the delta;
            float64 ``(n,)``, NaN where the IoUs are NaN. The mean is MaxBoxAccV2.
        accuracies: accuracy for each delta at the best threshold of the delta, ``(D,)``.
        best: index of the best threshold of each delta, the first among equally good thresholds, int64 ``(D,)``.
    """

    correct: Tensor
    accuracies: Tensor
    best: Tensor


def max_box_accuracy(ious: Tensor, deltas: Sequence[float] = MAX_BOX_DELTAS) -> MaxBoxAccuracy:
    """MaxBoxAccV2 of Choe et al. (arXiv 2007.04178): the mean over delta of the best accuracy over the thresholds.

    A sample is correct if its IoU is at least delta. The thresholds are chosen on the same samples on which the
    accuracy is measured, unless ``ious`` only has the columns that were best on other samples.

    Args:
        ious: result of :func:`box_ious_by_threshold`, ``(n, T)``.
        deltas: D levels of IoU. Default: 0.3, 0.5, 0.7.

    Returns:
        The correct samples, the accuracies and the best thresholds.

    Example:
        >>> max_box_accuracy(torch.tensor([[0.5, 1.0], [0.4, 0.2]]), deltas=(0.3, 0.5)).accuracies
        tensor([1.0000, 0.5000])
    """
    defined = ~ious.isnan().any(1)
    reached = torch.stack([ious >= delta for delta in deltas], 2)  # (n, T, D)
    hits = reached[defined].sum(0)
    best = hits.argmax(0)
    level = torch.arange(len(deltas), device=ious.device)
    correct = reached[:, best, level].double().mean(1).masked_fill(~defined, torch.nan)
    return MaxBoxAccuracy(correct, hits[best, level] / defined.sum(), best)
