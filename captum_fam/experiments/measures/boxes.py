"""Measures of annotated boxes: does the map lie on the object?"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from captum_fam.experiments import records
from captum_fam.experiments.measures.base import SHARE, Column, Conventions, MapBatch, register_measure
from captum_fam.metrics import (
    MAX_BOX_DELTAS,
    MAX_BOX_THRESHOLDS,
    area_share,
    box_iou,
    box_ious_by_threshold,
    box_mask,
    energy_proportion,
    iou_with_boxes,
    max_box_accuracy,
)


def _lift(kept: Mapping[str, records.Column]) -> Tensor:
    return records.as_numbers(kept["energy"]) / records.as_numbers(kept["area"])


@register_measure(
    "localization",
    needs=("boxes",),
    columns=(
        Column("energy"),
        Column("energy-positive", sees="positive"),
        Column("lift", from_kept=_lift),
        Column("iou", sees="chosen"),
    ),
    allowed={"energy": SHARE, "energy-positive": SHARE, "iou": SHARE, "area": SHARE},
)
def localization(batch: MapBatch, conventions: Conventions) -> dict[str, Tensor]:
    """Compute ``energy``, ``energy-positive``, ``iou`` and the ``area`` of the boxes, ``(B,)`` each.

    Args:
        batch: maps with boxes.
        conventions: threshold, connectivity, choice among boxes, and part of a signed map.
    """
    boxes, size = batch.boxes or (), batch.size
    region = box_mask(boxes, size).to(batch.maps.device)
    area = area_share(region)
    if batch.drawing is not None:
        mask = batch.drawing.mask[:, 0]
        energy = (mask * region).flatten(1).sum(1) / mask.flatten(1).sum(1)
        energy = energy.masked_fill(area.isnan(), torch.nan)
        iou = iou_with_boxes(batch.drawing.box, boxes, size, conventions.over)
        return {"energy": energy, "energy-positive": energy, "iou": iou, "area": area}
    return {
        "energy": energy_proportion(batch.maps, region),
        "energy-positive": energy_proportion(batch.maps, region, energy="positive"),
        "iou": box_iou(
            batch.maps,
            boxes,
            size,
            conventions.threshold,
            conventions.connectivity,
            conventions.over,
            conventions.signed,
        ),
        "area": area,
    }


def _max_box_accuracy(kept: Mapping[str, records.Column]) -> Tensor:
    # The best threshold of a delta is chosen over all queries, so that the levels of every threshold are needed. Each
    # level is replaced by its smallest IoU, which reaches the same deltas.
    ious_of_level, undefined = (0.0, *MAX_BOX_DELTAS), [math.nan] * len(MAX_BOX_THRESHOLDS)
    ious = [undefined if row is None else [ious_of_level[int(digit)] for digit in row] for row in kept["levels"]]
    return max_box_accuracy(torch.tensor(ious)).correct


class _Levels:
    """The texts of ``levels``: one digit per threshold."""

    def __contains__(self, value: object) -> bool:
        pattern = f"[0-{len(MAX_BOX_DELTAS)}]{{{len(MAX_BOX_THRESHOLDS)}}}"
        return isinstance(value, str) and re.fullmatch(pattern, value, re.ASCII) is not None

    def __str__(self) -> str:
        return f"a text of {len(MAX_BOX_THRESHOLDS)} levels"


@register_measure(
    "max-box",
    needs=("boxes",),
    columns=(Column("max-box-acc", sees="chosen", from_kept=_max_box_accuracy),),
    allowed={"levels": _Levels()},
)
def max_box(batch: MapBatch, conventions: Conventions) -> dict[str, records.Column]:
    """Compute ``levels``: a text per query, with one digit per threshold.

    The digit is the number of levels, among 0.3, 0.5 and 0.7, that the best IoU reaches at the threshold. None stands
    for a map with NaN or inf, and for an image without a box.

    Args:
        batch: maps with boxes.
        conventions: connectivity, and part of a signed map.
    """
    boxes, size = batch.boxes or (), batch.size
    if batch.drawing is not None:
        # A drawn box is the same at every threshold.
        ious = iou_with_boxes(batch.drawing.box, boxes, size)[:, None].expand(-1, len(MAX_BOX_THRESHOLDS))
    else:
        ious = box_ious_by_threshold(
            batch.maps, boxes, size, connectivity=conventions.connectivity, energy=conventions.signed
        )
    levels = torch.stack([ious >= delta for delta in MAX_BOX_DELTAS]).sum(0)
    undefined = ious.isnan().any(1).tolist()
    rows = zip(levels.tolist(), undefined, strict=True)
    return {"levels": [None if is_undefined else "".join(map(str, row)) for row, is_undefined in rows]}
