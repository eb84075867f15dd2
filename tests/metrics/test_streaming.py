from __future__ import annotations

import copy
import importlib.util
import math
import os
import pickle
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from captum_fam import metrics
from captum_fam.metrics import (
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
    MosaicAUROC,
    MosaicEnergy,
    MosaicHit,
    RecallAtK,
    Result,
    SupportSwap,
    summarize,
)
from captum_fam.support.memory_bank import MemoryBank

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


BANK = MemoryBank(torch.randn(12, 4, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 3, k=5)

# A metric, the arguments of its update out of the data, and the values that its function gives.
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
        lambda d: metrics.area_under_curve(metrics.perturbation_curve(total, d["inputs"], d["maps"], "deletion", 4)),
    ),
    "insertion": (
        lambda: InsertionAUC(steps=4),
        lambda d: (total, d["inputs"], d["maps"], 1.0),
        lambda d: metrics.area_under_curve(
            metrics.perturbation_curve(total, d["inputs"], d["maps"], "insertion", 4, 1.0)
        ),
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
        lambda d: metrics.region_auroc(d["maps"], metrics.cell_mask(d["cells"], SIZE)),
    ),
    "swap": (
        lambda: SupportSwap("spearman"),
        lambda d: (d["maps"], d["others"]),
        lambda d: metrics.map_correlation(d["maps"], d["others"], "spearman"),
    ),
    "knn": (
        lambda: KNNAccuracy(BANK),
        lambda d: (d["embeddings"], d["labels"]),
        lambda d: metrics.knn_accuracy(d["embeddings"], d["labels"], BANK),
    ),
    "accuracy": (
        FewShotAccuracy,
        lambda d: (d["predicted"], d["labels"]),
        lambda d: (d["predicted"] == d["labels"]).float(),
    ),
}


def in_batches(data: dict[str, Tensor], sizes: tuple[int, ...]) -> list[dict[str, Tensor]]:
    parts = {name: tensor.split(sizes) for name, tensor in data.items()}
    return [{name: part[i] for name, part in parts.items()} for i in range(len(sizes))]


@pytest.mark.parametrize("case", CASES)
def test_batches_give_what_the_function_gives_at_once(case: str) -> None:
    make, arguments, measure = CASES[case]
    data, metric = make_data(), make()
    name = "episodes" if case == "accuracy" else "groups"
    for batch in in_batches(data, (9, 9, 5)):
        metric.update(*arguments(batch), **{name: batch["episodes"]})
    values = measure(data)
    torch.testing.assert_close(metric.samples.values, values, equal_nan=True)
    expected = summarize(values, data["episodes"])
    result = metric.compute()
    assert isinstance(result, Result)
    assert result.value == pytest.approx(expected.value, rel=1e-6)
    assert result.half_width == pytest.approx(expected.half_width, rel=1e-5)
    assert (result.n, result.n_groups) == (expected.n, 5)


@pytest.mark.parametrize("case", [case for case in CASES if case != "accuracy"])
def test_without_groups_the_mean_is_over_samples(case: str) -> None:
    make, arguments, measure = CASES[case]
    data, metric = make_data(), make()
    metric.update(*arguments(data))
    result = metric.compute()
    assert result.value == pytest.approx(summarize(measure(data)).value)
    assert result.n_groups is None
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
    assert metric.compute()[2:6] == counts


@pytest.mark.parametrize("make", [AverageDrop, IncreaseInConfidence])
def test_masked_scores_tell_small_scores_from_flat_and_nan_maps(make: Any) -> None:
    scores = torch.tensor([0.5, 0.5, 0.5, 0.0, math.nan, 0.5])
    masked = torch.tensor([0.4, math.nan, math.nan, 0.1, 0.1, 0.4])
    maps = torch.rand(6, 1, 2, 2)
    maps[1], maps[2, 0, 0, 0] = 0.3, math.nan
    metric = make()
    metric.update(scores, masked, maps)
    assert metric.compute()[2:6] == (2, 2, 1, 1)
    blind = make()
    blind.update(scores, masked)
    assert blind.compute()[2:6] == (2, 3, 0, 1)


def test_a_flat_map_is_left_out_though_its_masked_score_is_a_number() -> None:
    metric = AverageDrop()
    metric.update(torch.tensor([0.5, 0.5]), torch.tensor([0.0, 0.25]), torch.stack([torch.zeros(2, 2), torch.eye(2)]))
    assert metric.compute().value == 0.5


def test_images_without_a_box_are_skipped() -> None:
    for metric in (EnergyProportion(), BoxIoU()):
        metric.update(
            torch.rand(3, 1, 2, 2), [torch.tensor([[0, 0, 3, 3]]), torch.zeros(0, 4), torch.zeros(0, 4)], SIZE
        )
        assert metric.compute()[2:6] == (1, 0, 0, 2)


def test_max_box_accuracy_of_batches_is_that_of_all() -> None:
    data = make_data()
    thresholds = (0.05, 0.2, 0.4, 0.7)
    metric = MaxBoxAccV2(thresholds=thresholds)
    for batch in in_batches(data, (9, 9, 5)):
        metric.update(batch["maps"], batch["boxes"], SIZE)
    found = metrics.max_box_accuracy(metrics.box_ious_by_threshold(data["maps"], data["boxes"], SIZE, thresholds))
    result = metric.compute()
    assert result.value == pytest.approx(found.correct.nanmean().item())
    assert result.value == pytest.approx(sum(result.accuracies) / 3)
    assert result.thresholds == tuple(thresholds[i] for i in found.best)
    assert (result.n, result.n_nan, result.n_empty, result.n_skipped) == (22, 1, 1, 0)


def test_recall_of_batches_is_that_of_all() -> None:
    data = make_data()
    metric = RecallAtK(2)
    for batch in in_batches(data, (9, 9, 5)):
        metric.update(batch["embeddings"], batch["labels"])
    expected = metrics.recall_at_k(data["embeddings"], data["labels"], (2,))
    assert metric.compute() == summarize(expected[:, 0])


def test_one_episode_a_batch_can_be_given_as_a_number() -> None:
    metric = FewShotAccuracy()
    metric.update(torch.tensor([1, 1, 0, 0]), torch.tensor([1, 0, 1, 1]), 0)
    metric.update(torch.tensor([1, 1]), torch.tensor([1, 1]), 1)
    result = metric.compute()
    assert result.value == 0.625
    assert result.half_width == pytest.approx(1.96 * 0.375 / math.sqrt(2))
    assert (result.n, result.n_groups) == (6, 2)


def test_groups_are_for_all_updates_or_none() -> None:
    metric = BoxIoU()
    metric.update(torch.rand(1, 1, 2, 2), torch.tensor([[0, 0, 1, 1]]), SIZE)
    with pytest.raises(ValueError, match="groups must be given in every update or in none"):
        metric.update(torch.rand(1, 1, 2, 2), torch.tensor([[0, 0, 1, 1]]), SIZE, groups=3)


@pytest.mark.parametrize("groups", [torch.tensor([1.0, 2.0]), torch.tensor([1, 2, 3])])
def test_groups_that_do_not_fit_are_refused(groups: Tensor) -> None:
    with pytest.raises(ValueError, match=r"groups must be an integer, or integers of shape \(2,\)"):
        BoxIoU().update(torch.rand(2, 1, 2, 2), torch.tensor([[0, 0, 1, 1]] * 2), SIZE, groups=groups)


def test_two_metrics_merge_as_if_one_had_seen_all() -> None:
    data = make_data()
    whole, first, second = BoxIoU(), BoxIoU(), BoxIoU()
    for batch, part in zip(in_batches(data, (9, 9, 5)), (first, second, first), strict=True):
        for metric in (whole, part):
            metric.update(batch["maps"], batch["boxes"], SIZE, groups=batch["episodes"])
    first.merge_state(second)
    assert first.compute() == whole.compute()


def test_a_collection_takes_the_same_arguments() -> None:
    data = make_data()
    collection = MetricCollection({"energy": EnergyProportion(), "iou": BoxIoU(), "area": AreaShare()})
    for batch in in_batches(data, (9, 14)):
        collection.update(batch["maps"], batch["boxes"], SIZE, groups=batch["episodes"])
    results = collection.compute()
    for name in ("energy", "iou", "area"):
        metric = CASES[name][0]() if name != "iou" else BoxIoU()
        metric.update(data["maps"], data["boxes"], SIZE, groups=data["episodes"])
        assert results[name].value == pytest.approx(metric.compute().value, rel=1e-6)


def test_forward_gives_the_batch_and_keeps_the_whole() -> None:
    data, metric = make_data(), BoxIoU()
    for batch in in_batches(data, (9, 14)):
        now = metric(batch["maps"], batch["boxes"], SIZE)
        assert now.value == pytest.approx(summarize(metrics.box_iou(batch["maps"], batch["boxes"], SIZE)).value)
    assert metric.compute().value == pytest.approx(summarize(metrics.box_iou(data["maps"], data["boxes"], SIZE)).value)


def test_metrics_can_be_copied_pickled_and_reset() -> None:
    data, metric = make_data(), EnergyProportion("positive")
    metric.update(data["maps"], data["boxes"], SIZE)
    expected = metric.compute()
    for other in (copy.deepcopy(metric), metric.clone(), pickle.loads(pickle.dumps(metric))):
        assert other.compute() == expected
    metric.reset()
    assert len(metric.samples.values) == 0
    metric.update(data["maps"], data["boxes"], SIZE)
    assert metric.compute() == expected


def load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("two_processes", Path(__file__).with_name("two_processes.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_two_processes_with_uneven_batches_give_the_numbers_of_one(tmp_path: Path) -> None:
    script = load_script()
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, script.__file__, str(rank), str(tmp_path / "store")],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    outputs = []
    try:
        for process in processes:
            out, err = process.communicate(timeout=120)
            assert process.returncode == 0, err
            outputs.append(out.strip().splitlines()[-1])
    finally:
        for process in processes:
            process.kill()
    *alone, _, own = script.evaluate(script.BATCHES[0] + script.BATCHES[1], lonely=True)
    *first, seen, local = script.evaluate(script.BATCHES[0], lonely=True)
    # The last metric was fed by the first process only; repr shows every digit.
    alone[-1] = first[-1]
    assert own == 29
    assert outputs[0] == repr([*alone, 29, 19])
    assert outputs[1] == repr([*alone, 29, 10])
    assert (seen, local) == (19, 19)


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    root = str(Path(__file__).resolve().parents[2])
    environment = {**os.environ, "PYTHONPATH": root}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=120)


@pytest.mark.slow
def test_functions_need_neither_torchmetrics_nor_scipy_and_metrics_say_how_to_get_them() -> None:
    code = """
import sys
sys.modules["torchmetrics"] = sys.modules["scipy"] = None
import torch
from captum_fam import metrics
print(metrics.energy_proportion(torch.eye(2)[None], torch.tensor([[0, 0, 1, 1]]), (2, 2)).item())
for use in (lambda: metrics.BoxIoU, lambda: metrics.box_from_map(torch.eye(2))):
    try:
        use()
    except ImportError as error:
        print(error)
"""
    result = run_python(code)
    assert result.returncode == 0, result.stderr
    energy, no_metrics, no_scipy = result.stdout.strip().splitlines()
    assert energy == "0.5"
    assert 'torchmetrics: pip install "captum-fam[eval]"' in no_metrics
    assert 'scipy: pip install "captum-fam[eval]"' in no_scipy


@pytest.mark.slow
def test_importing_the_functions_does_not_import_torchmetrics() -> None:
    result = run_python("import sys, captum_fam.metrics; print('torchmetrics' in sys.modules)")
    assert result.stdout.strip() == "False", result.stderr


def test_unknown_names_are_unknown() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Sharpness'"):
        metrics.Sharpness  # noqa: B018


@pytest.mark.parametrize("name", metrics.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(metrics, name).__doc__


def test_metrics_say_which_way_is_up() -> None:
    up = [
        EnergyProportion,
        EnergyLift,
        BoxIoU,
        MaxBoxAccV2,
        IncreaseInConfidence,
        InsertionAUC,
        MosaicEnergy,
        MosaicHit,
    ]
    up += [MosaicAUROC, KNNAccuracy, RecallAtK, FewShotAccuracy]
    assert all(metric.higher_is_better for metric in up)
    assert not any(metric.higher_is_better for metric in (AverageDrop, DeletionAUC, SupportSwap))
    assert all(issubclass(metric, Metric) for metric in up)
