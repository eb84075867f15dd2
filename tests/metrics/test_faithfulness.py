from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from captum_fam.metrics import (
    area_under_curve,
    average_drop,
    blurred,
    increase_in_confidence,
    masked_inputs,
    normalize_maps,
    perturbation_curve,
)

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
    with pytest.raises(ValueError, match="masked_scores"):
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
    with pytest.raises(ValueError, match="mean and std come together"):
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
    with pytest.raises(ValueError, match="a map each"):
        masked_inputs(torch.randn(2, 3, 4, 4), torch.rand(1, 1, 2, 2))


def total(images: Tensor) -> Tensor:
    return images.sum((1, 2, 3))


def test_deletion_takes_the_highest_pixels_first() -> None:
    images = torch.tensor([[[[1.0, 2.0], [4.0, 8.0]]], [[[1.0, 2.0], [4.0, 8.0]]]])
    maps = torch.tensor([[[[0.1, 0.2], [0.3, 0.4]]], [[[0.4, 0.3], [0.2, 0.1]]]])
    curve = perturbation_curve(total, images, maps, "deletion", steps=4)
    assert curve.tolist() == [[15, 7, 3, 1, 0], [15, 14, 12, 8, 0]]


def test_insertion_is_the_way_back_from_the_baseline() -> None:
    images = torch.tensor([[[[1.0, 2.0], [4.0, 8.0]]]])
    maps = torch.tensor([[[[0.1, 0.2], [0.3, 0.4]]]])
    curve = perturbation_curve(total, images, maps, "insertion", steps=4, baseline=-1.0)
    assert curve.tolist() == [[-4, 5, 10, 13, 15]]


def test_a_tensor_can_be_the_baseline() -> None:
    images, baseline = torch.rand(2, 3, 4, 5), torch.rand(2, 3, 4, 5)
    maps = torch.rand(2, 1, 4, 5)
    curve = perturbation_curve(total, images, maps, "deletion", steps=3, baseline=baseline)
    torch.testing.assert_close(curve[:, 0], total(images))
    torch.testing.assert_close(curve[:, -1], total(baseline))


def test_all_channels_of_a_pixel_go_together() -> None:
    images = torch.ones(1, 3, 5, 4)
    seen: list[Tensor] = []

    def score(batch: Tensor) -> Tensor:
        seen.append(batch)
        return total(batch)

    perturbation_curve(score, images, torch.rand(1, 1, 5, 4), steps=7)
    for batch in seen:
        assert (batch == batch[:, :1]).all()
    # 20 pixels in 7 steps: the numbers rise by two or three
    assert [int(20 - total(batch).item() / 3) for batch in seen] == [0, 3, 6, 9, 12, 15, 18, 20]


def test_ties_do_not_favor_a_corner() -> None:
    # Both halves of the map are flat; the image's score is the row of the pixels that are left.
    maps = torch.zeros(1, 1, 20, 10)
    maps[..., 5:] = 1
    images = torch.ones(1, 1, 20, 10)
    rows = torch.arange(20.0).view(1, 1, 20, 1)
    curve = perturbation_curve(lambda x: total(x * rows), images, maps, steps=4)
    whole = total(images * rows).item()
    assert curve[0, 2].item() == pytest.approx(whole / 2)
    assert curve[0, 1].item() == pytest.approx(0.75 * whole, rel=0.05)


def test_curve_has_no_graph_and_the_inputs_none_either() -> None:
    weight = torch.ones(1, requires_grad=True)
    images = torch.rand(1, 1, 3, 3)
    curve = perturbation_curve(lambda x: total(x) * weight, images, torch.rand(1, 1, 3, 3), steps=2)
    assert not curve.requires_grad


def test_flat_and_nan_maps_have_no_curve() -> None:
    maps = torch.rand(3, 1, 2, 2)
    maps[0] = 0.3
    maps[1, 0, 0, 0] = NAN
    curve = perturbation_curve(total, torch.rand(3, 1, 5, 4), maps, steps=2)
    assert curve.isnan().all(1).tolist() == [True, True, False]


def test_area_by_trapezia() -> None:
    # 0.25 (0.5 * 1 + 0.8 + 0.6 + 0.2 + 0.5 * 0)
    assert area_under_curve(torch.tensor([[1.0, 0.8, 0.6, 0.2, 0.0]])).item() == pytest.approx(0.525)
    assert area_under_curve(torch.ones(1, 11)).item() == pytest.approx(1)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"mode": "both"}, "mode must be"), ({"steps": 0}, "steps must be at least 1")],
)
def test_unknown_curves_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        perturbation_curve(total, torch.rand(1, 1, 3, 3), torch.rand(1, 1, 3, 3), **options)  # type: ignore[arg-type]


def test_a_score_function_with_several_scores_is_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(2,\), got \(2, 5\); select the class"):
        perturbation_curve(lambda x: torch.zeros(2, 5), torch.rand(2, 1, 3, 3), torch.rand(2, 1, 3, 3))


def test_blur_keeps_the_mean_of_a_plateau_and_takes_edges_away() -> None:
    images = torch.zeros(1, 2, 40, 56)
    images[:, :, :, 28:] = 1
    result = blurred(images)
    assert result.shape == images.shape
    # sigma is 5 * 40 / 224; far from the edge nothing changes, on it the step becomes a slope
    torch.testing.assert_close(result[..., [0, -1]], images[..., [0, -1]])
    assert 0.2 < result[0, 0, 20, 27] < 0.5 < result[0, 0, 20, 28] < 0.8


def test_blur_is_possible_on_images_smaller_than_its_reach() -> None:
    assert blurred(torch.rand(1, 3, 4, 9), sigma=5.0).shape == (1, 3, 4, 9)
