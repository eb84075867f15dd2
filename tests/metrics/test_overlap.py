from __future__ import annotations

import pytest
import torch

from captum_fam.metrics import box_from_map, box_iou, iou_with_boxes

NAN = float("nan")


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
    with pytest.raises(ValueError, match=r"over .*'all'"):
        box_iou(torch.rand(1, 3, 3), torch.tensor([[0, 0, 1, 1]]), (3, 3), over="all")  # type: ignore[arg-type]


def test_a_box_that_comes_from_no_map_is_compared_as_the_box_of_a_map_is() -> None:
    maps, boxes = torch.rand(5, 1, 4, 6), torch.tensor([[-3.0, 0.5, 4.2, 9.0], [1, 1, 20, 20], [0, 0, 2, 2]])
    several = [boxes, boxes[:1], boxes[1:], torch.zeros(0, 4), boxes]
    predicted = box_from_map(maps, size=(13, 17))
    for over in ("best", "first", "largest", "mean"):
        expected = box_iou(maps, several, (13, 17), over=over)
        torch.testing.assert_close(iou_with_boxes(predicted, several, (13, 17), over), expected, equal_nan=True)


def test_one_box_can_be_compared_with_those_of_all_images() -> None:
    whole = torch.tensor([0, 0, 4, 2])
    # 4 of 8 pixels, all of them (the rest of the box is outside), and no box
    boxes = [torch.tensor([[0, 0, 2, 2]]), torch.tensor([[-1, 0, 9, 2]]), torch.zeros(0, 4)]
    assert iou_with_boxes(whole, boxes, (2, 4)).tolist() == pytest.approx([0.5, 1.0, NAN], nan_ok=True)
