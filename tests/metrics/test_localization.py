from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from captum_fam.metrics import (
    area_share,
    box_from_map,
    box_iou,
    box_ious_by_threshold,
    energy_lift,
    energy_proportion,
    max_box_accuracy,
    upsample,
)

NAN = float("nan")


def reference_energy(image: Tensor, boxes: list[list[float]], positive: bool) -> float:
    """Pixel by pixel in float64."""
    values = image.double().numpy()
    values = np.maximum(values, 0) if positive else (values - values.min()) / (values.max() - values.min())
    inside = total = 0.0
    for (i, j), value in np.ndenumerate(values):
        total += value
        if any(x0 <= j + 0.5 < x1 and y0 <= i + 0.5 < y1 for x0, y0, x1, y1 in boxes):
            inside += value
    return inside / total


@pytest.mark.parametrize("energy", ["minmax", "positive"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_energy_agrees_with_a_reference(energy: str, dtype: torch.dtype, tolerance: float) -> None:
    maps = torch.randn(4, 1, 5, 3, dtype=torch.float64)
    boxes = [
        [[2.0, 3.0, 9.5, 14.0]],
        [[0.0, 0.0, 5.0, 5.0], [3.0, 3.0, 8.2, 30.0]],
        [[-4.0, 2.0, 4.0, 9.0]],
        [[1, 1, 8, 3]],
    ]
    size = (19, 11)
    result = energy_proportion(maps.to(dtype), [torch.tensor(own) for own in boxes], size, energy)  # type: ignore[arg-type]
    expected = [
        reference_energy(image, own, energy == "positive")
        for image, own in zip(upsample(maps, size), boxes, strict=True)
    ]
    assert result.dtype == dtype
    np.testing.assert_allclose(result.double().numpy(), expected, rtol=tolerance)


def test_energy_by_hand() -> None:
    maps = torch.tensor([[[1.0, 2.0, 4.0], [1.0, 1.0, 3.0]]])
    boxes = torch.tensor([[1, 0, 3, 1]])
    # min-max takes one off each: 0 1 3 / 0 0 2, so 4 of 6; without it 6 of 12
    assert energy_proportion(maps, boxes, (2, 3)).item() == pytest.approx(4 / 6)
    assert energy_proportion(maps, boxes, (2, 3), "positive").item() == pytest.approx(6 / 12)
    assert area_share(boxes, (2, 3)).item() == pytest.approx(2 / 6)
    assert energy_lift(maps, boxes, (2, 3)).item() == pytest.approx(2.0)


def test_a_pixel_in_two_boxes_counts_once() -> None:
    maps = torch.tensor([[[0.0, 1.0, 1.0, 2.0]]])
    boxes = torch.tensor([[[1, 0, 3, 1], [2, 0, 4, 1]]])
    assert energy_proportion(maps, boxes, (1, 4)).item() == 1
    assert area_share(boxes, (1, 4)).item() == 0.75


def test_mask_and_box_of_the_same_pixels_agree() -> None:
    maps = torch.rand(2, 1, 4, 6)
    boxes = torch.tensor([[1, 2, 5, 4], [0, 0, 3, 3]])
    mask = torch.zeros(2, 4, 6, dtype=torch.bool)
    mask[0, 2:4, 1:5] = mask[1, :3, :3] = True
    expected = energy_proportion(maps, boxes, (4, 6))
    assert energy_proportion(maps, mask).equal(expected)
    assert energy_proportion(maps, mask[:, None], (4, 6)).equal(expected)
    assert area_share(mask).equal(area_share(boxes, (4, 6)))


def test_uniform_map_has_the_lift_one_in_its_positive_part() -> None:
    boxes = torch.tensor([[3.3, 1.2, 8.9, 17.0], [0, 0, 1, 1]])
    torch.testing.assert_close(energy_lift(torch.full((2, 1, 5, 5), 0.3), boxes, (23, 13), "positive"), torch.ones(2))


def test_energy_is_undefined_for_flat_maps_nan_and_images_without_a_box() -> None:
    maps = torch.rand(6, 1, 3, 3)
    maps[0], maps[1] = 0.3, 0.0
    maps[2, 0, 0, 0] = torch.nan
    boxes = [torch.tensor([[0, 0, 5, 5]])] * 3 + [
        torch.zeros(0, 4),
        torch.tensor([[41, 0, 50, 5]]),
        torch.tensor([[0, 0, 5, 5]]),
    ]
    for measure in (energy_proportion, energy_lift):
        assert measure(maps, boxes, (33, 41)).isnan().tolist() == [True] * 5 + [False]
    assert area_share(boxes, (33, 41)).isnan().tolist() == [False] * 3 + [True, True, False]


def test_energy_asks_for_the_size_that_boxes_are_in() -> None:
    with pytest.raises(ValueError, match="size is missing"):
        energy_proportion(torch.rand(1, 3, 3), torch.tensor([[0, 0, 1, 1]]))


def test_mask_of_another_size_or_batch_is_refused() -> None:
    with pytest.raises(ValueError, match=r"region is a mask of shape \(1, 3, 4\)"):
        energy_proportion(torch.rand(1, 3, 3), torch.ones(1, 3, 4, dtype=torch.bool), (3, 3))
    with pytest.raises(ValueError, match="region is of 2 images but maps of 1"):
        energy_proportion(torch.rand(1, 3, 3), torch.ones(2, 3, 3, dtype=torch.bool))


def test_iou_by_hand() -> None:
    maps = torch.zeros(2, 6, 8)
    maps[0, 1:3, 2:6] = maps[1, 4, 7] = 1
    boxes = torch.tensor([[2, 1, 6, 5], [7, 4, 8, 5]])
    # 8 pixels of 16, and the same pixel
    assert box_iou(maps, boxes, (6, 8)).tolist() == [0.5, 1.0]


def test_iou_over_several_boxes() -> None:
    maps = torch.zeros(1, 4, 8)
    maps[0, 0:2, 0:2] = 1
    boxes = [torch.tensor([[0, 0, 0, 0], [0, 0, 1, 2], [0, 0, 4, 4], [0, 0, 2, 2]])]
    # the first is padding; then 2 of 4 pixels, 4 of 16, all
    results = {over: box_iou(maps, boxes, (4, 8), over=over).item() for over in ("best", "first", "largest", "mean")}
    assert results == pytest.approx({"best": 1.0, "first": 0.5, "largest": 0.25, "mean": 1.75 / 3})


def test_iou_is_with_the_part_of_a_box_that_lies_in_the_image() -> None:
    maps = torch.zeros(1, 4, 4)
    maps[0, 0:2, 0:2] = 1
    assert box_iou(maps, torch.tensor([[-10, -10, 2, 2]]), (4, 4)).item() == 1


def test_iou_is_zero_for_flat_maps_and_undefined_without_a_box_or_with_nan() -> None:
    maps = torch.rand(5, 1, 3, 3)
    maps[0], maps[1] = 0.0, 0.3
    maps[2, 0, 0, 0] = torch.inf
    boxes = [torch.tensor([[0, 0, 5, 5]])] * 3 + [torch.zeros(0, 4), torch.tensor([[41, 33, 60, 60]])]
    result = box_iou(maps, boxes, (33, 41))
    assert result[:2].tolist() == [0, 0]
    assert result[2:].isnan().all()


def test_iou_of_batches_without_any_box_is_undefined() -> None:
    assert box_iou(torch.rand(2, 3, 3), [torch.zeros(0, 4)] * 2, (3, 3)).isnan().all()


def test_iou_passes_threshold_and_connectivity_on() -> None:
    maps = torch.rand(20, 1, 6, 5)
    for threshold, connectivity in ((0.1, 4), (0.6, 8)):
        found = box_from_map(maps, threshold, connectivity, (17, 23))
        # A map's own box is the only one with IoU 1.
        assert box_iou(maps, found, (17, 23), threshold, connectivity).tolist() == [1.0] * 20


def test_unknown_choice_of_boxes_is_refused() -> None:
    with pytest.raises(ValueError, match="over must be one of 'best', 'first', 'largest', 'mean', got 'all'"):
        box_iou(torch.rand(1, 3, 3), torch.tensor([[0, 0, 1, 1]]), (3, 3), over="all")  # type: ignore[arg-type]


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
