"""Measures of a map: functions that give a value a sample, and torchmetrics of the same that give the table's line.

The functions need torch alone (and scipy, where boxes are drawn); the metrics need ``captum-fam[eval]``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from captum_fam.metrics.boxes import box_from_map, box_mask, centered_box
from captum_fam.metrics.faithfulness import (
    area_under_curve,
    average_drop,
    blurred,
    increase_in_confidence,
    masked_inputs,
    perturbation_curve,
)
from captum_fam.metrics.localization import (
    MaxBoxAccuracy,
    area_share,
    box_iou,
    box_ious_by_threshold,
    energy_lift,
    energy_proportion,
    max_box_accuracy,
)
from captum_fam.metrics.maps import find_empty, find_nan, normalize_maps, upsample
from captum_fam.metrics.randomization import RandomizationStage, cascading_randomization
from captum_fam.metrics.retrieval import knn_accuracy, recall_at_k
from captum_fam.metrics.specificity import cell_mask, map_correlation, mosaic_energy, mosaic_hit, region_auroc
from captum_fam.metrics.summary import Result, summarize

if TYPE_CHECKING:
    from captum_fam.metrics.streaming import (
        AreaShare,
        AverageDrop,
        BoxIoU,
        DeletionAUC,
        EnergyLift,
        EnergyProportion,
        FewShotAccuracy,
        IncreaseInConfidence,
        InsertionAUC,
        KNNAccuracy,
        MaxBoxAccV2,
        MaxBoxResult,
        MosaicAUROC,
        MosaicEnergy,
        MosaicHit,
        RecallAtK,
        SupportSwap,
    )

__all__ = [
    "AreaShare",
    "AverageDrop",
    "BoxIoU",
    "DeletionAUC",
    "EnergyLift",
    "EnergyProportion",
    "FewShotAccuracy",
    "IncreaseInConfidence",
    "InsertionAUC",
    "KNNAccuracy",
    "MaxBoxAccV2",
    "MaxBoxAccuracy",
    "MaxBoxResult",
    "MosaicAUROC",
    "MosaicEnergy",
    "MosaicHit",
    "RandomizationStage",
    "RecallAtK",
    "Result",
    "SupportSwap",
    "area_share",
    "area_under_curve",
    "average_drop",
    "blurred",
    "box_from_map",
    "box_iou",
    "box_ious_by_threshold",
    "box_mask",
    "cascading_randomization",
    "cell_mask",
    "centered_box",
    "energy_lift",
    "energy_proportion",
    "find_empty",
    "find_nan",
    "increase_in_confidence",
    "knn_accuracy",
    "map_correlation",
    "masked_inputs",
    "max_box_accuracy",
    "mosaic_energy",
    "mosaic_hit",
    "normalize_maps",
    "perturbation_curve",
    "recall_at_k",
    "region_auroc",
    "summarize",
    "upsample",
]


def __getattr__(name: str) -> object:
    # torchmetrics takes seconds to import, and is an extra.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from captum_fam.metrics import streaming

    return getattr(streaming, name)
