from __future__ import annotations

import math

import pytest
import torch

from captum_fam.metrics import apply_masks, average_drop, increase_in_confidence, masked_inputs, normalize_maps

NAN = float("nan")
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.5)


def test_average_drop_by_hand() -> None:
    scores = torch.tensor([0.8, 0.5, 0.5, 0.2])
    masked = torch.tensor([0.6, 0.5, 0.7, -0.2])
    torch.testing.assert_close(average_drop(scores, masked), torch.tensor([0.25, 0.0, 0.0, 2.0]))


def test_increase_is_strict() -> None:
    scores = torch.tensor([0.5, 0.5, 0.5])
    masked = torch.tensor([0.6, 0.5, 0.4])
    assert increase_in_confidence(scores, masked).tolist() == [1.0, 0.0, 0.0]


@pytest.mark.parametrize("measure", [average_drop, increase_in_confidence])
def test_scores_of_zero_or_less_and_nan_are_left_out(measure: object) -> None:
    scores = torch.tensor([0.0, -0.5, 1e-7, NAN, 0.5, 0.5])
    masked = torch.tensor([0.1, 0.1, 0.1, 0.1, NAN, 0.5])
    assert measure(scores, masked).isnan().tolist() == [True] * 5 + [False]  # type: ignore[operator]


def test_increase_can_count_every_score() -> None:
    result = increase_in_confidence(torch.tensor([-0.5, -0.5]), torch.tensor([-0.4, -0.6]), eps=-math.inf)
    assert result.tolist() == [1.0, 0.0]


def test_scores_must_be_alike() -> None:
    with pytest.raises(ValueError, match=r"scores .*\(3,\) and masked_scores \(3, 1\)"):
        average_drop(torch.rand(3), torch.rand(3, 1))


def test_normalized_inputs_are_multiplied_by_the_map() -> None:
    inputs, maps = torch.randn(2, 3, 9, 7), torch.randn(2, 1, 3, 4)
    masked = masked_inputs(inputs, maps)
    mask = normalize_maps(maps, (9, 7))
    for channel in range(3):
        torch.testing.assert_close(masked[:, channel], inputs[:, channel] * mask)


def test_raw_pixels_are_multiplied_before_the_normalization() -> None:
    pixels, maps = torch.rand(2, 3, 9, 7, dtype=torch.float64), torch.randn(2, 1, 3, 4, dtype=torch.float64)
    mean, std = (torch.tensor(values, dtype=torch.float64).view(3, 1, 1) for values in (MEAN, STD))
    masked = masked_inputs((pixels - mean) / std, maps, MEAN, STD)
    expected = (pixels * normalize_maps(maps, (9, 7))[:, None] - mean) / std
    torch.testing.assert_close(masked, expected, rtol=1e-7, atol=1e-7)


def test_masking_with_half_of_the_statistics_is_refused() -> None:
    with pytest.raises(ValueError, match="mean and std"):
        masked_inputs(torch.randn(1, 3, 4, 4), torch.rand(1, 1, 2, 2), mean=MEAN)


@pytest.mark.parametrize("statistics", [(), (MEAN, STD)])
def test_flat_and_nan_maps_mask_with_nan_and_leave_the_others_alone(statistics: tuple[object, ...]) -> None:
    maps = torch.rand(3, 1, 2, 2)
    maps[0] = 0.3
    maps[1, 0, 0, 0] = NAN
    masked = masked_inputs(torch.randn(3, 3, 5, 4), maps, *statistics)  # type: ignore[arg-type]
    assert masked[:2].isnan().all()
    assert masked[2].isfinite().all()


def test_masked_inputs_keep_their_type() -> None:
    assert masked_inputs(torch.randn(1, 3, 4, 4).half(), torch.rand(1, 1, 2, 2)).dtype == torch.half


def test_images_and_maps_must_be_as_many() -> None:
    with pytest.raises(ValueError, match=r"inputs .*\(2, 3, 4, 4\) and maps \(1, 1, 2, 2\)"):
        masked_inputs(torch.randn(2, 3, 4, 4), torch.rand(1, 1, 2, 2))


def test_a_mask_that_exists_already_masks_as_a_map_of_its_values_does() -> None:
    inputs, maps = torch.randn(2, 3, 4, 5), torch.rand(2, 1, 4, 5)
    for statistics in ((), (MEAN, STD)):
        expected = masked_inputs(inputs, maps, *statistics)  # type: ignore[arg-type]
        masks = normalize_maps(maps)[:, None]
        torch.testing.assert_close(apply_masks(inputs, masks, *statistics), expected)  # type: ignore[arg-type]


def test_a_constant_mask_scales_the_image() -> None:
    inputs = torch.randn(2, 3, 4, 5)
    torch.testing.assert_close(apply_masks(inputs, torch.tensor(0.5)), inputs / 2)
