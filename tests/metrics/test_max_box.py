from __future__ import annotations

import numpy as np
import pytest
import torch

from captum_fam.metrics import box_iou, box_ious_by_threshold, max_box_accuracy

NAN = float("nan")


def test_a_small_component_can_be_the_best_of_all_but_is_not_the_largest() -> None:
    maps = torch.zeros(1, 4, 8)
    maps[0, 0:2, 0:3] = 0.5
    maps[0, 3, 7] = 1
    boxes = torch.tensor([[7, 3, 8, 4]])
    ious = box_ious_by_threshold(maps, boxes, (4, 8), (0.2, 0.7))
    assert ious.tolist() == [[1.0, 1.0]]
    largest = box_ious_by_threshold(maps, boxes, (4, 8), (0.2, 0.7), components="largest")
    assert largest.tolist() == [[0.0, 1.0]]


def test_largest_components_by_threshold_are_the_boxes_of_the_map() -> None:
    maps = torch.rand(9, 1, 5, 4)
    boxes = [torch.tensor([[1.0, 2.0, 9.0, 15.0], [0.0, 0.0, 4.0, 4.0]])] * 9
    thresholds = (0.0, 0.15, 0.5, 0.95)
    ious = box_ious_by_threshold(maps, boxes, (19, 14), thresholds, components="largest")
    for column, threshold in zip(ious.T, thresholds, strict=True):
        torch.testing.assert_close(column, box_iou(maps, boxes, (19, 14), threshold))


def test_thresholded_ious_keep_the_conventions_for_empty_and_nan() -> None:
    maps = torch.rand(4, 1, 3, 3)
    maps[0] = 0.3
    maps[1] = torch.nan
    boxes = [torch.tensor([[0, 0, 3, 3]])] * 3 + [torch.zeros(0, 4)]
    ious = box_ious_by_threshold(maps, boxes, (9, 7), (0.2, 0.5))
    assert (ious[0] == 0).all()
    assert ious[[1, 3]].isnan().all()
    assert ious[2].isfinite().all()


def test_max_box_accuracy_by_hand() -> None:
    # three samples at three thresholds
    ious = torch.tensor([[0.3, 0.6, 0.0], [0.35, 0.2, 0.8], [0.1, 0.5, 0.75], [NAN, NAN, NAN]])
    result = max_box_accuracy(ious)
    # delta 0.3: 2, 2, 2 of 3 (the first wins); 0.5: 0, 2, 2; 0.7: 0, 0, 2
    assert result.best.tolist() == [0, 1, 2]
    torch.testing.assert_close(result.accuracies, torch.tensor([2 / 3, 2 / 3, 2 / 3]))
    # each sample's hits at (0, 1, 2) for (0.3, 0.5, 0.7)
    assert result.correct[:3].tolist() == pytest.approx([2 / 3, 2 / 3, 2 / 3])
    assert result.correct[3].isnan()


def test_max_box_accuracy_is_the_mean_over_deltas_of_the_best_mean() -> None:
    ious = torch.rand(40, 9)
    expected = np.mean(
        [max((ious[:, t] >= delta).double().mean().item() for t in range(9)) for delta in (0.3, 0.5, 0.7)]
    )
    assert max_box_accuracy(ious).correct.mean().item() == pytest.approx(expected)


def test_max_box_accuracy_includes_the_level_itself() -> None:
    assert max_box_accuracy(torch.tensor([[0.5]]), deltas=(0.5,)).accuracies.tolist() == [1.0]
