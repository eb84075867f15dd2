from __future__ import annotations

import pytest
import torch
from torch import Tensor

from captum_fam.metrics import box_from_map, box_mask, centered_box
from captum_fam.metrics.boxes import format_boxes, pairwise_iou


def test_box_is_half_open_and_in_x_y_order() -> None:
    image = torch.zeros(5, 8)
    image[1:3, 4:7] = 1
    assert box_from_map(image).tolist() == [4, 1, 7, 3]
    assert image[1:3, 4:7].sum() == image.sum()


def test_a_pixel_at_the_threshold_is_outside() -> None:
    # 0, 1, 2, 10 are scaled to 0, 0.1, 0.2, 1.
    image = torch.tensor([[0.0, 1.0, 2.0, 10.0]], dtype=torch.float64)
    assert box_from_map(image, threshold=0.2).tolist() == [3, 0, 4, 1]
    assert box_from_map(image, threshold=0.19).tolist() == [2, 0, 4, 1]
    assert box_from_map(image, threshold=0).tolist() == [1, 0, 4, 1]


def test_threshold_is_a_share_of_the_range_not_of_the_maximum() -> None:
    # 110 lies above 0.2 * 200 but below 100 + 0.2 * 100.
    assert box_from_map(torch.tensor([[100.0, 110.0, 200.0]])).tolist() == [2, 0, 3, 1]
    signed = torch.tensor([[-3.0, -2.0, 1.0]])
    assert box_from_map(signed).equal(box_from_map(signed * 7 + 40))


def test_largest_component_wins_over_the_highest() -> None:
    image = torch.tensor([[9.0, 0.0, 0.0, 0.0], [0.0, 0.0, 5.0, 5.0], [0.0, 0.0, 5.0, 0.0]])
    assert box_from_map(image).tolist() == [2, 1, 4, 3]


def test_connectivity_decides_over_a_corner() -> None:
    image = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.9, 0.8]])
    assert box_from_map(image, connectivity=8).tolist() == [0, 0, 3, 2]
    assert box_from_map(image, connectivity=4).tolist() == [1, 1, 3, 2]


def test_maps_without_a_box() -> None:
    maps = torch.stack([torch.zeros(3, 4), torch.full((3, 4), 0.3), torch.full((3, 4), torch.nan), torch.eye(3, 4)])
    assert box_from_map(maps).tolist() == [[0, 0, 0, 0]] * 3 + [[0, 0, 3, 3]]
    # Not even where interpolation adds rounding noise to them.
    assert box_from_map(maps, size=(33, 41)).tolist()[:3] == [[0, 0, 0, 0]] * 3


def test_one_map_and_a_batch_agree() -> None:
    maps = torch.rand(6, 1, 5, 7)
    boxes = box_from_map(maps, size=(33, 47))
    assert boxes.dtype == torch.int64
    assert boxes.shape == (6, 4)
    for one, box in zip(maps, boxes, strict=True):
        assert box_from_map(one[0], size=(33, 47)).equal(box)


def test_box_of_an_interpolated_map_is_in_pixels_of_the_input() -> None:
    image = torch.zeros(4, 4)
    image[2, 1] = 1
    x0, y0, x1, y1 = box_from_map(image, size=(40, 80)).tolist()
    # The peak is centered on x = 30, y = 25, and falls to zero a cell away.
    assert (x0 + x1) / 2 == 30
    assert (y0 + y1) / 2 == 25
    assert (x1 - x0) == 2 * (y1 - y0)
    assert 10 < y1 - y0 < 20


@pytest.mark.parametrize("threshold", [-0.1, 1.0, 20])
def test_thresholds_outside_the_range_are_refused(threshold: float) -> None:
    with pytest.raises(ValueError, match=f"threshold .*{threshold}"):
        box_from_map(torch.rand(3, 3), threshold=threshold)


def test_boxes_come_in_three_forms() -> None:
    first, second = [1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 2.0, 2.0]
    single = format_boxes(torch.tensor([first, second]), 2)
    assert single.tolist() == [[first], [second]]
    assert format_boxes([torch.zeros(0, 4)] * 2, 2).tolist() == [[[0.0] * 4]] * 2
    several = format_boxes([torch.tensor([first, second]), torch.zeros(0, 4), torch.tensor([])], 3)
    nothing = [0.0] * 4
    assert several.tolist() == [[first, second], [nothing, nothing], [nothing, nothing]]
    assert format_boxes(several, 3).equal(several)
    integers = format_boxes([torch.tensor([[1, 2, 3, 4]])], 1)
    assert integers.tolist() == [[first]]
    assert integers.is_floating_point()


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        (torch.zeros(3, 4), r"boxes .*\(3, 1, 4\) .*batch of 2"),
        (torch.zeros(2, 5), r"boxes .*\(2, 1, 5\)"),
        (torch.tensor([[0, 0, 1, 1], [4, 4, 2, 6]]), r"boxes .*corners"),
        (torch.tensor([[0, 0, 1, 1], [0, 0, torch.nan, 1]]), "boxes .*NaN or inf"),
    ],
)
def test_boxes_that_cannot_be_meant_are_refused(boxes: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        format_boxes(boxes, 2)


def test_mask_holds_the_pixels_whose_centers_are_in_a_box() -> None:
    mask = box_mask([torch.tensor([[0.6, 0.0, 2.4, 1.0]])], (2, 4))
    # centers 0.5, 1.5, 2.5, 3.5: only 1.5 is between 0.6 and 2.4
    assert mask.tolist() == [[[False, True, False, False], [False] * 4]]


def test_mask_of_several_boxes_is_their_union_and_padding_adds_nothing() -> None:
    boxes = torch.tensor([[[0, 0, 2, 2], [1, 1, 3, 3]], [[2, 0, 3, 1], [0, 0, 0, 0]]])
    mask = box_mask(boxes, (3, 4))
    assert mask[0].int().tolist() == [[1, 1, 0, 0], [1, 1, 1, 0], [0, 1, 1, 0]]
    assert mask[1].int().tolist() == [[0, 0, 1, 0], [0] * 4, [0] * 4]


def test_mask_of_boxes_that_reach_out_of_the_image_is_what_lies_inside() -> None:
    boxes = torch.tensor([[-5.0, -5.0, 1.0, 2.0], [10.0, 0.0, 20.0, 5.0]])
    mask = box_mask(boxes, (3, 4))
    assert mask[0].int().tolist() == [[1, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    assert not mask[1].any()


def test_iou_by_hand() -> None:
    box = torch.tensor([0.0, 0.0, 2.0, 2.0])
    others = torch.tensor([[0, 0, 2, 2], [1, 0, 3, 2], [2, 0, 4, 2], [0.5, 0.5, 1.5, 1.5], [0, 0, 0, 0]])
    torch.testing.assert_close(pairwise_iou(box, others), torch.tensor([1, 1 / 3, 0, 0.25, 0]))
    assert pairwise_iou(torch.zeros(4), torch.zeros(4)) == 0


def test_iou_of_pixel_boxes_is_that_of_their_masks() -> None:
    corners = torch.randint(0, 12, (200, 2, 2, 2)).sort(2).values
    boxes = corners.flatten(2).float()
    masks = [box_mask(boxes[:, side], (12, 12)) for side in (0, 1)]
    common, union = (masks[0] & masks[1]).sum((1, 2)), (masks[0] | masks[1]).sum((1, 2))
    torch.testing.assert_close(pairwise_iou(boxes[:, 0], boxes[:, 1]), common / union.clamp(min=1))


def test_centered_box_takes_its_share_of_each_side() -> None:
    torch.testing.assert_close(centered_box((100, 50), 0.6), torch.tensor([10.0, 20.0, 40.0, 80.0]))
