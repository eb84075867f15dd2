from __future__ import annotations

import pytest
import torch

from captum_fam.metrics import MaxBoxAccV2, box_ious_by_threshold, max_box_accuracy

SIZE, THRESHOLDS = (19, 11), (0.05, 0.2, 0.4, 0.7)


def maps_and_boxes() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(11)
    maps = torch.randn(23, 1, 5, 3, generator=generator)
    maps[4], maps[9, 0, 1, 1] = 0.3, torch.nan
    corners = torch.rand(23, 2, 2, generator=generator).sort(1).values * torch.tensor([11, 19])
    return maps, corners.flatten(1)


def test_thresholds_are_chosen_over_all_batches() -> None:
    maps, boxes = maps_and_boxes()
    metric = MaxBoxAccV2(thresholds=THRESHOLDS)
    for batch in torch.arange(23).split(9):
        metric.update(maps[batch], boxes[batch], SIZE)
    expected = max_box_accuracy(box_ious_by_threshold(maps, boxes, SIZE, THRESHOLDS))
    result, levels = metric.result(), metric.levels()
    assert result.value == pytest.approx(expected.correct.nanmean().item())
    assert metric.compute().item() == pytest.approx(levels.accuracies.mean().item())
    assert levels.best.equal(expected.best)
    assert levels.accuracies.equal(expected.accuracies)
    assert (result.n, result.n_nan, result.n_empty, result.n_skipped) == (22, 1, 1, 0)


def test_groups_are_averaged_first_at_the_thresholds_of_all_samples() -> None:
    maps, boxes = maps_and_boxes()
    groups = torch.arange(23) // 7
    metric = MaxBoxAccV2(thresholds=THRESHOLDS)
    metric.update(maps, boxes, SIZE, groups=groups)
    correct = max_box_accuracy(box_ious_by_threshold(maps, boxes, SIZE, THRESHOLDS)).correct
    means = torch.stack([correct[groups == group].nanmean() for group in range(4)])
    assert metric.result().value == pytest.approx(means.mean().item())
    assert metric.result().n_groups == 4


def test_a_single_threshold_judges_without_choosing() -> None:
    maps, boxes = torch.tensor([[[0.0, 1.0, 0.9]]]), torch.tensor([[1, 0, 2, 1]])
    # The box of both pixels above 0.2 has the IoU 0.5, which reaches 0.3 and 0.5 but not 0.7.
    metric = MaxBoxAccV2(thresholds=(0.2,))
    metric.update(maps, boxes, (1, 3))
    assert metric.compute().item() == pytest.approx(2 / 3)
