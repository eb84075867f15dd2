"""The measures of a table: what is kept of every map, and the number it becomes.

======================  ==========================  ================================================================
group                   measure                     of the map
======================  ==========================  ================================================================
``localization``        ``energy``                  energy proportion (Eq. 19), map scaled by min-max as in the paper
                        ``energy-positive``         the same of its positive part
                        ``lift``                    ``energy`` over the boxes' share of the image
                        ``iou``                     IoU of box and map's box (Eq. 20), map scaled as chosen
``max-box``             ``max-box-acc``             MaxBoxAccV2, map scaled as chosen
``faithfulness``        ``drop``, ``increase``      average drop and increase in confidence (Eq. 21, 22), as chosen
``perturbation``        ``deletion``, ``insertion``  area under the curve of the score, over that of the whole image
``swap``                ``swap``                    correlation with the map for another support
(additive maps)         ``coverage``                sum over the explained score
(mosaics)               ``cell-energy``             energy in the support's cell, of the positive part
                        ``cell-hit``                whether that cell has the most
                        ``cell-auroc``              by the rank of the pixels of the signed map
======================  ==========================  ================================================================

All are shares or correlations, none in percent. The row ``uniform`` stands for the whole image in measures of boxes,
and for a mask of 0.5 everywhere in ``drop`` and ``increase``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from captum_fam.experiments.table_methods import DEFAULT_METHODS, UNIFORM, MapMethod, Maps, get_methods
from captum_fam.metrics import (
    Result,
    area_share,
    area_under_curve,
    average_drop,
    box_iou,
    box_ious_by_threshold,
    box_mask,
    cell_mask,
    energy_proportion,
    find_empty,
    find_nan,
    increase_in_confidence,
    map_correlation,
    masked_inputs,
    max_box_accuracy,
    mosaic_energy,
    mosaic_hit,
    perturbation_curve,
    region_auroc,
    summarize,
)
from captum_fam.metrics.boxes import clip_boxes, format_boxes
from captum_fam.metrics.faithfulness import apply_masks
from captum_fam.metrics.localization import MAX_BOX_DELTAS, MAX_BOX_THRESHOLDS, Over, iou_over_boxes
from captum_fam.metrics.maps import Energy

Measure = Literal["localization", "max-box", "faithfulness", "perturbation", "swap"]
MEASURES: tuple[Measure, ...] = get_args(Measure)

COLUMN_ORDER = (
    "energy",
    "energy-positive",
    "lift",
    "iou",
    "max-box-acc",
    "drop",
    "increase",
    "deletion",
    "insertion",
    "swap",
    "cell-energy",
    "cell-hit",
    "cell-auroc",
    "coverage",
)

# Measures that see the positive part of a map, always or where the conventions say so.
_OF_POSITIVE = {"energy-positive", "cell-energy", "cell-hit"}
_AS_CHOSEN = {"iou", "max-box-acc", "drop", "increase"}

Size = tuple[int, int]
Values = dict[str, Tensor]


@dataclass(frozen=True)
class Conventions:
    """What the definitions of the measures leave open.

    Attributes:
        threshold: of the map's box, a share of its range.
        connectivity: 8 or 4.
        over: the boxes of an image: the ``"best"`` IoU, that of the ``"first"`` or ``"largest"``, or the ``"mean"``.
        mask: ``"normalized"`` masks the tensor that the model takes, ``"raw"`` the pixels before normalization.
        steps: of the perturbation curves.
        signed: what box and mask see of a signed map: the whole of it by ``"minmax"``, or its ``"positive"`` part.
        epsilon: similarities of at most this have no drop, increase, deletion and insertion.
    """

    threshold: float = 0.2
    connectivity: int = 8
    over: Over = "best"
    mask: Literal["normalized", "raw"] = "normalized"
    steps: int = 20
    signed: Energy = "minmax"
    epsilon: float = 1e-6


@dataclass(frozen=True)
class Perturbable:
    """Queries whose images can be masked and scored again.

    Attributes:
        images: as the model takes them, ``(B, 3, H, W)``.
        score: of images ``(B, 3, H, W)`` in the order of the queries, for the target of each, ``(B,)``.
        scores: of the images as they are, ``(B,)``.
        mean: of the images' channels, by which they were normalized.
        std: of the images' channels.
    """

    images: Tensor
    score: Callable[[Tensor], Tensor]
    scores: Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]


def localization(method: str, maps: Tensor, boxes: Sequence[Tensor], size: Size, conventions: Conventions) -> Values:
    """``energy``, ``energy-positive``, ``iou`` and the boxes' ``area``, ``(B,)`` each."""
    region = box_mask(boxes, size).to(maps.device)
    share = area_share(region)
    if method == UNIFORM:
        # Min-max leaves nothing of a flat map. These are the values of the whole image, which it stands for.
        iou = _whole_image_iou(boxes, size, conventions.over)
        return {"energy": share, "energy-positive": share, "iou": iou, "area": share}
    return {
        "energy": energy_proportion(maps, region),
        "energy-positive": energy_proportion(maps, region, energy="positive"),
        "iou": box_iou(
            maps,
            boxes,
            size,
            conventions.threshold,
            conventions.connectivity,
            conventions.over,
            conventions.signed,
        ),
        "area": share,
    }


def faithfulness(method: str, maps: Tensor, queries: Perturbable, conventions: Conventions) -> Values:
    """``drop`` and ``increase``, ``(B,)`` each, by one masked pass a map."""
    raw = {"mean": queries.mean, "std": queries.std} if conventions.mask == "raw" else {}
    if method == UNIFORM:
        # Min-max leaves nothing of a flat map. It hides everywhere half, the middle of what other maps hide.
        half = apply_masks(queries.images, torch.full_like(queries.images[:, :1], 0.5), **raw)
        return _drop_and_increase(queries.scores, queries.score(half), conventions.epsilon)
    # An empty map masks with NaN, which must not reach the model.
    usable = ~(find_nan(maps) | find_empty(maps, conventions.signed))
    masked = masked_inputs(queries.images, maps, **raw, energy=conventions.signed)
    scores = queries.score(torch.where(usable[:, None, None, None], masked, 0)).masked_fill(~usable, torch.nan)
    return _drop_and_increase(queries.scores, scores, conventions.epsilon)


def _drop_and_increase(scores: Tensor, masked_scores: Tensor, epsilon: float) -> Values:
    return {
        "drop": average_drop(scores, masked_scores, epsilon),
        "increase": increase_in_confidence(scores, masked_scores, epsilon),
    }


def perturbation(maps: Tensor, queries: Perturbable, conventions: Conventions) -> Values:
    """``deletion`` and ``insertion``, ``(B,)`` each: areas under the curves over the score of the whole image."""
    whole = queries.scores.masked_fill(queries.scores <= conventions.epsilon, torch.nan)

    def area(mode: Literal["deletion", "insertion"]) -> Tensor:
        curve = perturbation_curve(queries.score, queries.images, maps, mode, conventions.steps)
        return area_under_curve(curve) / whole

    return {"deletion": area("deletion"), "insertion": area("insertion")}


def _whole_image_iou(boxes: Sequence[Tensor], size: Size, over: Over = "best") -> Tensor:
    """The IoU of a box around everything, ``(B,)``."""
    truth = clip_boxes(format_boxes(boxes, len(boxes)), size)
    return iou_over_boxes(truth.new_tensor([[[0, 0, size[1], size[0]]]]), truth, over)


def max_box_levels(
    method: str, maps: Tensor, boxes: Sequence[Tensor], size: Size, conventions: Conventions
) -> list[str | None]:
    """For every map a digit a threshold: how many of the levels 0.3, 0.5, 0.7 the best IoU reaches there.

    None for a map with NaN or inf and for an image without a box.
    """
    if method == UNIFORM:
        ious = _whole_image_iou(boxes, size)[:, None].expand(-1, len(MAX_BOX_THRESHOLDS))
    else:
        ious = box_ious_by_threshold(
            maps, boxes, size, connectivity=conventions.connectivity, energy=conventions.signed
        )
    levels = sum((ious >= delta).int() for delta in MAX_BOX_DELTAS)
    assert isinstance(levels, Tensor)
    undefined = ious.isnan().any(1).tolist()
    return [
        None if skipped else "".join(map(str, row)) for row, skipped in zip(levels.tolist(), undefined, strict=True)
    ]


def mosaic(maps: Tensor, cells: Tensor, size: Size, grid: int) -> Values:
    """``cell-energy``, ``cell-hit`` and ``cell-auroc``, ``(B,)`` each."""
    return {
        "cell-energy": mosaic_energy(maps, cells, size, grid),
        "cell-hit": mosaic_hit(maps, cells, size, grid),
        "cell-auroc": region_auroc(maps, cell_mask(cells, size, grid).to(maps.device)),
    }


def flags(maps: Tensor) -> Values:
    """``nan``, ``empty`` and, for measures of the positive part, ``empty-positive``, boolean ``(B,)``."""
    return {"nan": find_nan(maps), "empty": find_empty(maps), "empty-positive": find_empty(maps, "positive")}


def jsonable(values: Tensor) -> list[Any]:
    """Numbers as JSON has them: no NaN, and float32 in its shortest form."""
    array = values.detach().cpu().numpy()
    if array.dtype.kind != "f":
        return list(array.astype(int).tolist())
    # float32 to text and back is exact, with half the digits of a double.
    texts = array.astype(np.float32).astype(str)
    return [None if text == "nan" else float(text) for text in texts]


@dataclass(frozen=True)
class Panel:
    """The methods, measures and conventions of a table.

    Attributes:
        methods: rows of the table.
        measures: groups of its columns.
        conventions: of the measures.
    """

    methods: tuple[MapMethod, ...] = get_methods(DEFAULT_METHODS)
    measures: tuple[Measure, ...] = ("localization",)
    conventions: Conventions = Conventions()

    def __post_init__(self) -> None:
        unknown = sorted({*self.measures} - {*MEASURES})
        if unknown:
            raise ValueError(f"measures: {', '.join(unknown)} is none of {', '.join(MEASURES)}")

    @property
    def needs_images(self) -> bool:
        """Whether a measure masks images and scores them again."""
        return "faithfulness" in self.measures or "perturbation" in self.measures

    def values(
        self,
        maps_of: Callable[[MapMethod], Maps],
        size: Size,
        boxes: Sequence[Tensor] = (),
        images: Perturbable | None = None,
        pairs_of: Callable[[MapMethod, Tensor], tuple[Tensor, Tensor]] | None = None,
        cells: tuple[Tensor, int] | None = None,
    ) -> dict[str, list[Any]]:
        """Columns ``"METHOD.NAME"`` with a value a query.

        Args:
            maps_of: gives the maps of a method.
            size: height and width of the images.
            boxes: of each query.
            images: for the measures that mask them.
            pairs_of: for ``swap``, gives maps of one query for two supports, from a method and its maps by ``maps_of``.
            cells: of mosaics, the cell of each query's support, and the number of cells a side.
        """
        columns: dict[str, list[Any]] = {}
        for method in self.methods:
            maps, coverage = maps_of(method)
            found = flags(maps)
            if coverage is not None:
                found["coverage"] = coverage
            if "localization" in self.measures and boxes:
                found |= localization(method.base, maps, boxes, size, self.conventions)
            if "faithfulness" in self.measures and images is not None:
                found |= faithfulness(method.base, maps, images, self.conventions)
            if "perturbation" in self.measures and images is not None:
                found |= perturbation(maps, images, self.conventions)
            if "swap" in self.measures and pairs_of is not None:
                found["swap"] = map_correlation(*pairs_of(method, maps))
            if cells is not None:
                found |= mosaic(maps, cells[0], size, cells[1])
            columns |= {f"{method.name}.{name}": jsonable(column) for name, column in found.items()}
            if "max-box" in self.measures and boxes:
                columns[f"{method.name}.levels"] = max_box_levels(method.base, maps, boxes, size, self.conventions)
        return columns


def results(
    method: str, columns: Mapping[str, Sequence[Any]], groups: Tensor | None, signed: Energy = "minmax"
) -> dict[str, Result]:
    """The numbers of one method from the columns of :meth:`Panel.values`, those of all records joined.

    Args:
        method: its name.
        columns: ``"METHOD.NAME"`` -> a value a query.
        groups: the episode of each query, over which means are taken first; None: over queries at once.
        signed: of the conventions.
    """
    own = {name.removeprefix(f"{method}."): column for name, column in columns.items() if name.startswith(f"{method}.")}
    levels = own.pop("levels", None)
    values = {name: torch.tensor(np.array(column, dtype=float)) for name, column in own.items()}
    nan, empty, dark = (values.pop(name).bool() for name in ("nan", "empty", "empty-positive"))
    of_positive = _OF_POSITIVE | (_AS_CHOSEN if signed == "positive" else set())
    if "area" in values:
        values["lift"] = values["energy"] / values.pop("area")
    if levels is not None:
        reached, undefined = (0.0, *MAX_BOX_DELTAS), [math.nan] * len(MAX_BOX_THRESHOLDS)
        ious = [undefined if row is None else [reached[int(digit)] for digit in row] for row in levels]
        values["max-box-acc"] = max_box_accuracy(torch.tensor(ious)).correct
    return {
        name: summarize(values[name], groups, nan, dark if name in of_positive else empty)
        for name in COLUMN_ORDER
        if name in values
    }
