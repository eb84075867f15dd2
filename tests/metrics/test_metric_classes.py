"""Every class is the mean of its function, whatever the batches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torchmetrics import Metric

from captum_fam import metrics
from captum_fam.metrics import (
    AreaShare,
    AverageDrop,
    BoxIoU,
    DeletionAUC,
    EnergyLift,
    EnergyProportion,
    GroupedAccuracy,
    IncreaseInConfidence,
    InsertionAUC,
    MaxBoxAccV2,
    MosaicAUROC,
    MosaicEnergy,
    MosaicHit,
    RecallAtK,
    RegionAUROC,
    SampleMean,
    SupportSwap,
    summarize,
)

SIZE = (19, 11)
COUNT = 23


def total(images: Tensor) -> Tensor:
    return images.sum((1, 2, 3))


def make_data() -> dict[str, Tensor]:
    torch.manual_seed(11)
    maps = torch.randn(COUNT, 1, 5, 3)
    maps[4], maps[9, 0, 1, 1] = 0.3, torch.nan
    corners = torch.rand(COUNT, 2, 2) * 0.4 + torch.tensor([[0.0], [0.6]])
    corners = corners * torch.tensor([SIZE[1], SIZE[0]])
    return {
        "maps": maps,
        "others": torch.randn(COUNT, 1, 5, 3),
        "boxes": corners.flatten(1),
        "cells": torch.randint(0, 4, (COUNT,)),
        "episodes": torch.arange(COUNT) // 5,
        "labels": torch.randint(0, 3, (COUNT,)),
        "predicted": torch.randint(0, 3, (COUNT,)),
        "embeddings": torch.randn(COUNT, 4),
        "inputs": torch.rand(COUNT, 3, *SIZE),
        "scores": torch.rand(COUNT) - 0.1,
        "masked": torch.rand(COUNT),
    }


# A metric, the arguments of its update from the data, and the values of its function.
CASES: dict[str, tuple[Any, Any, Any]] = {
    "energy": (
        EnergyProportion,
        lambda d: (d["maps"], d["boxes"], SIZE),
        lambda d: metrics.energy_proportion(d["maps"], d["boxes"], SIZE),
    ),
    "energy-positive": (
        lambda: EnergyProportion("positive"),
        lambda d: (d["maps"], d["boxes"], SIZE),
        lambda d: metrics.energy_proportion(d["maps"], d["boxes"], SIZE, "positive"),
    ),
    "lift": (
        EnergyLift,
        lambda d: (d["maps"], d["boxes"], SIZE),
        lambda d: metrics.energy_lift(d["maps"], d["boxes"], SIZE),
    ),
    "area": (
        AreaShare,
        lambda d: (d["maps"], d["boxes"], SIZE),
        lambda d: metrics.area_share(d["boxes"], SIZE),
    ),
    "iou": (
        lambda: BoxIoU(0.3, 4),
        lambda d: (d["maps"], d["boxes"], SIZE),
        lambda d: metrics.box_iou(d["maps"], d["boxes"], SIZE, 0.3, 4),
    ),
    "iou-positive": (
        lambda: BoxIoU(energy="positive"),
        lambda d: (d["maps"], d["boxes"], SIZE),
        lambda d: metrics.box_iou(d["maps"], d["boxes"], SIZE, energy="positive"),
    ),
    "drop": (
        AverageDrop,
        lambda d: (d["scores"], d["masked"]),
        lambda d: metrics.average_drop(d["scores"], d["masked"]),
    ),
    "increase": (
        IncreaseInConfidence,
        lambda d: (d["scores"], d["masked"]),
        lambda d: metrics.increase_in_confidence(d["scores"], d["masked"]),
    ),
    "deletion": (
        lambda: DeletionAUC(steps=4),
        lambda d: (total, d["inputs"], d["maps"]),
        lambda d: metrics.deletion_auc(total, d["inputs"], d["maps"], 4),
    ),
    "deletion-by-default": (
        DeletionAUC,
        lambda d: (total, d["inputs"], d["maps"]),
        lambda d: metrics.deletion_auc(total, d["inputs"], d["maps"]),
    ),
    "insertion": (
        lambda: InsertionAUC(steps=4, relative=False),
        lambda d: (total, d["inputs"], d["maps"], 1.0),
        lambda d: metrics.insertion_auc(total, d["inputs"], d["maps"], 4, 1.0, relative=False),
    ),
    "cell-energy": (
        MosaicEnergy,
        lambda d: (d["maps"], d["cells"], SIZE),
        lambda d: metrics.mosaic_energy(d["maps"], d["cells"], SIZE),
    ),
    "cell-hit": (
        lambda: MosaicHit(grid=(3, 2), by="peak"),
        lambda d: (d["maps"], d["cells"], SIZE),
        lambda d: metrics.mosaic_hit(d["maps"], d["cells"], SIZE, (3, 2), "peak"),
    ),
    "cell-auroc": (
        MosaicAUROC,
        lambda d: (d["maps"], d["cells"], SIZE),
        lambda d: metrics.mosaic_auroc(d["maps"], d["cells"], SIZE),
    ),
    "auroc": (
        RegionAUROC,
        lambda d: (d["maps"], d["boxes"], SIZE),
        lambda d: metrics.region_auroc(d["maps"], d["boxes"], SIZE),
    ),
    "values": (
        SampleMean,
        lambda d: (d["scores"],),
        lambda d: d["scores"],
    ),
    "swap": (
        lambda: SupportSwap("spearman"),
        lambda d: (d["maps"], d["others"]),
        lambda d: metrics.map_correlation(d["maps"], d["others"], "spearman"),
    ),
    "accuracy": (
        GroupedAccuracy,
        lambda d: (d["predicted"], d["labels"]),
        lambda d: metrics.is_correct(d["predicted"], d["labels"]),
    ),
}


def in_batches(data: dict[str, Tensor], sizes: tuple[int, ...]) -> list[dict[str, Tensor]]:
    parts = {name: tensor.split(sizes) for name, tensor in data.items()}
    return [{name: part[i] for name, part in parts.items()} for i in range(len(sizes))]


@pytest.mark.parametrize("case", CASES)
def test_batches_give_what_the_function_gives_at_once(case: str) -> None:
    make, arguments, measure = CASES[case]
    data, metric = make_data(), make()
    for batch in in_batches(data, (9, 9, 5)):
        metric.update(*arguments(batch), groups=batch["episodes"])
    values = measure(data)
    torch.testing.assert_close(metric.samples.values, values, equal_nan=True)
    expected, result = summarize(values, data["episodes"]), metric.result()
    assert result.value == pytest.approx(expected.value, rel=1e-6)
    assert result.half_width == pytest.approx(expected.half_width, rel=1e-5)
    assert (result.n, result.n_groups) == (expected.n, 5)


@pytest.mark.parametrize("case", CASES)
def test_without_groups_the_mean_is_over_samples(case: str) -> None:
    make, arguments, measure = CASES[case]
    data, metric = make_data(), make()
    metric.update(*arguments(data))
    assert metric.compute().item() == pytest.approx(measure(data).nanmean().item())
    assert metric.result().n_groups is None
    assert metric.samples.groups is None


@pytest.mark.parametrize(
    ("case", "counts"),
    [
        # n, n_nan, n_empty, n_skipped of 23 with one flat map and one with NaN
        ("energy", (21, 1, 1, 0)),
        ("energy-positive", (22, 1, 0, 0)),
        ("area", (23, 0, 0, 0)),
        ("iou", (22, 1, 1, 0)),
        ("deletion", (21, 1, 1, 0)),
        ("cell-auroc", (22, 1, 1, 0)),
        ("swap", (21, 1, 1, 0)),
    ],
)
def test_flat_and_nan_maps_are_counted(case: str, counts: tuple[int, ...]) -> None:
    make, arguments, _ = CASES[case]
    metric = make()
    metric.update(*arguments(make_data()))
    assert metric.result()[2:6] == counts


def test_images_without_a_box_are_skipped() -> None:
    for metric in (EnergyProportion(), BoxIoU()):
        metric.update(
            torch.rand(3, 1, 2, 2), [torch.tensor([[0, 0, 3, 3]]), torch.zeros(0, 4), torch.zeros(0, 4)], SIZE
        )
        assert metric.result()[2:6] == (1, 0, 0, 2)


def test_queries_of_too_small_a_score_are_skipped_by_the_relative_area_only() -> None:
    images, maps = torch.stack([torch.ones(1, 4, 4), torch.zeros(1, 4, 4)]), torch.rand(2, 1, 4, 4)
    for relative, counts in ((True, (1, 0, 0, 1)), (False, (2, 0, 0, 0))):
        metric = DeletionAUC(relative=relative)
        metric.update(total, images, maps)
        assert metric.result()[2:6] == counts


def test_a_score_that_is_nan_counts_as_nan() -> None:
    metric = InsertionAUC(steps=2)
    metric.update(lambda x: torch.tensor([1.0, torch.nan]), torch.rand(2, 1, 4, 4), torch.rand(2, 1, 4, 4))
    assert metric.result()[2:6] == (1, 1, 0, 0)


def test_metrics_say_which_way_is_up() -> None:
    up = [EnergyProportion, EnergyLift, BoxIoU, MaxBoxAccV2, IncreaseInConfidence, InsertionAUC, MosaicEnergy]
    up += [MosaicHit, MosaicAUROC, RegionAUROC, RecallAtK, GroupedAccuracy]
    assert all(metric.higher_is_better for metric in up)
    assert not any(metric.higher_is_better for metric in (AverageDrop, DeletionAUC, SupportSwap))
    assert AreaShare.higher_is_better is SampleMean.higher_is_better is None
    assert all(issubclass(metric, Metric) for metric in up)
