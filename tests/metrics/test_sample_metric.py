"""What all classes share: groups, merging, copies, collections, several processes."""

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

import pytest
import torch
from torch import Tensor
from torchmetrics import MetricCollection

from captum_fam.metrics import (
    AreaShare,
    BoxIoU,
    EnergyProportion,
    GroupedAccuracy,
    MosaicHit,
    Result,
    SampleMean,
    summarize,
)

SIZE = (19, 11)
NAN = float("nan")


def maps_and_boxes(count: int = 23) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(11)
    maps = torch.randn(count, 1, 5, 3, generator=generator)
    maps[4], maps[9, 0, 1, 1] = 0.3, torch.nan
    corners = torch.rand(count, 2, 2, generator=generator).sort(1).values * torch.tensor([11, 19])
    return maps, corners.flatten(1)


def test_the_mean_is_a_scalar_tensor_as_loggers_take_it() -> None:
    metric = SampleMean()
    metric.update(torch.tensor([0.25, 0.75], dtype=torch.float64))
    mean = metric.compute()
    assert isinstance(mean, Tensor)
    assert mean.shape == ()
    assert mean.item() == 0.5


def test_the_result_has_the_interval_and_the_counts() -> None:
    values = torch.tensor([0.1, NAN, NAN, 0.4, NAN], dtype=torch.float64)
    nan, empty = torch.tensor([[False, True, False, False, False], [False, False, True, True, False]])
    metric = SampleMean()
    metric.update(values[:2], nan[:2], empty[:2], groups=7)
    metric.update(values[2:], nan[2:], empty[2:], groups=torch.tensor([7, 8, 8]))
    # Group 7 has the mean 0.1, group 8 the mean 0.4.
    result = metric.result()
    assert result.value == pytest.approx(0.25)
    assert result.half_width == pytest.approx(1.96 * 0.15 / math.sqrt(2))
    assert result[2:] == (2, 1, 2, 1, 2)


def test_one_episode_per_batch_can_be_given_as_a_number() -> None:
    metric = GroupedAccuracy()
    metric.update(torch.tensor([1, 1, 0, 0]), torch.tensor([1, 0, 1, 1]), 0)
    metric.update(torch.tensor([1, 1]), torch.tensor([1, 1]), 1)
    result = metric.result()
    assert result.value == 0.625
    assert result.half_width == pytest.approx(1.96 * 0.375 / math.sqrt(2))
    assert (result.n, result.n_groups) == (6, 2)


def test_groups_are_for_all_updates_or_none() -> None:
    metric = SampleMean()
    metric.update(torch.rand(2))
    with pytest.raises(ValueError, match="groups"):
        metric.update(torch.rand(2), groups=3)


@pytest.mark.parametrize("groups", [torch.tensor([1.0, 2.0]), torch.tensor([1, 2, 3])])
def test_groups_that_do_not_fit_are_refused(groups: Tensor) -> None:
    with pytest.raises(ValueError, match=r"groups .*\(2,\)"):
        SampleMean().update(torch.rand(2), groups=groups)


def test_stored_samples_give_the_result_of_the_metric_that_they_are_from() -> None:
    maps, boxes = maps_and_boxes()
    metric, stored = BoxIoU(), SampleMean()
    metric.update(maps, boxes, SIZE, groups=torch.arange(23) // 5)
    stored.update(*metric.samples)
    assert stored.result() == metric.result()


def test_two_metrics_merge_as_if_one_had_seen_all() -> None:
    maps, boxes = maps_and_boxes()
    whole, first, second = BoxIoU(), BoxIoU(), BoxIoU()
    for batch, part in zip(torch.arange(23).split(9), (first, second, first), strict=True):
        for metric in (whole, part):
            metric.update(maps[batch], boxes[batch], SIZE, groups=batch // 5)
    first.merge_state(second)
    assert first.result() == whole.result()


def test_a_collection_takes_the_same_arguments() -> None:
    maps, boxes = maps_and_boxes()
    collection = MetricCollection({"energy": EnergyProportion(), "iou": BoxIoU(), "area": AreaShare()})
    for batch in torch.arange(23).split(9):
        collection.update(maps[batch], boxes[batch], SIZE, groups=batch // 5)
    means = collection.compute()
    for name, metric in {"energy": EnergyProportion(), "iou": BoxIoU(), "area": AreaShare()}.items():
        metric.update(maps, boxes, SIZE, groups=torch.arange(23) // 5)
        assert means[name].item() == pytest.approx(metric.compute().item(), rel=1e-6)


def test_a_collection_keeps_metrics_apart_that_agree_on_the_first_batch() -> None:
    first = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])
    # The most energy is in the first cell, the highest pixel in the last.
    second = torch.zeros(1, 4, 4)
    second[0, :2, :2], second[0, 3, 3] = 2.0, 7.0
    collection = MetricCollection({"energy": MosaicHit(by="energy"), "peak": MosaicHit(by="peak")})
    for maps in (first, second):
        collection.update(maps, torch.tensor([0]), (4, 4))
    assert {name: mean.item() for name, mean in collection.compute().items()} == {"energy": 1.0, "peak": 0.5}


def test_forward_gives_the_batch_and_keeps_the_whole() -> None:
    values, metric = torch.rand(23), SampleMean()
    for batch in values.split(9):
        assert metric(batch).item() == pytest.approx(batch.mean().item())
    assert metric.compute().item() == pytest.approx(values.mean().item())


def test_metrics_can_be_copied_pickled_and_reset() -> None:
    maps, boxes = maps_and_boxes()
    metric = EnergyProportion("positive")
    metric.update(maps, boxes, SIZE)
    expected = metric.result()
    assert isinstance(expected, Result)
    for other in (copy.deepcopy(metric), metric.clone(), pickle.loads(pickle.dumps(metric))):
        assert other.result() == expected
    metric.reset()
    assert len(metric.samples.values) == 0
    metric.update(maps, boxes, SIZE)
    assert metric.result() == expected


def test_the_mean_can_be_plotted() -> None:
    metric = SampleMean()
    metric.update(torch.tensor([0.25, 0.75]))
    _, axes = metric.plot()
    assert list(axes.lines[0].get_ydata()) == [0.5]


def test_a_metric_that_has_seen_nothing_has_the_mean_nan() -> None:
    metric = SampleMean()
    metric.update(torch.zeros(0))
    assert metric.compute().isnan()
    assert metric.result() == pytest.approx(summarize(torch.zeros(0)), nan_ok=True)


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
