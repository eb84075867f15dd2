from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from captum_fam.metrics import area_share, energy_lift, energy_proportion, upsample


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
    result = energy_proportion(maps.to(dtype), [torch.tensor(rows) for rows in boxes], size, energy)  # type: ignore[arg-type]
    expected = [
        reference_energy(image, rows, energy == "positive")
        for image, rows in zip(upsample(maps, size), boxes, strict=True)
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
    with pytest.raises(ValueError, match="size"):
        energy_proportion(torch.rand(1, 3, 3), torch.tensor([[0, 0, 1, 1]]))


def test_mask_of_another_size_or_batch_is_refused() -> None:
    with pytest.raises(ValueError, match=r"region .*\(1, 3, 4\)"):
        energy_proportion(torch.rand(1, 3, 3), torch.ones(1, 3, 4, dtype=torch.bool), (3, 3))
    with pytest.raises(ValueError, match=r"region .*2 images .*maps of 1"):
        energy_proportion(torch.rand(1, 3, 3), torch.ones(2, 3, 3, dtype=torch.bool))
