from __future__ import annotations

import pytest
import torch
from torch import Tensor

from captum_fam.metrics import (
    PERTURBATION_STEPS,
    blurred,
    deletion_auc,
    insertion_auc,
    perturbation_auc,
    perturbation_curve,
)
from captum_fam.metrics.perturbation import Mode

NAN = float("nan")


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
    curve = torch.tensor([[1.0, 0.8, 0.6, 0.2, 0.0]])
    assert perturbation_auc(curve, "deletion", relative=False).item() == pytest.approx(0.525)
    assert perturbation_auc(torch.ones(1, 11), "deletion", relative=False).item() == pytest.approx(1)


def test_the_relative_area_is_that_over_the_score_of_the_whole_image() -> None:
    # Deletion begins with the whole image, insertion ends with it.
    curve = torch.tensor([[4.0, 3.0, 2.0]])
    assert perturbation_auc(curve, "deletion", relative=False).item() == 3
    assert perturbation_auc(curve, "deletion").item() == 0.75
    assert perturbation_auc(curve, "insertion").item() == 1.5
    assert perturbation_auc(curve, "insertion", scores=torch.tensor([6.0])).item() == 0.5


def test_scores_too_small_to_divide_by_have_no_relative_area() -> None:
    curve = torch.tensor([[0.0, 1.0], [-2.0, 1.0], [1e-7, 1.0], [0.5, 0.5]])
    assert perturbation_auc(curve, "deletion").isnan().tolist() == [True, True, True, False]
    assert perturbation_auc(curve, "deletion", eps=-3.0).isnan().tolist() == [False, False, False, False]
    assert not perturbation_auc(curve, "deletion", relative=False).isnan().any()


@pytest.mark.parametrize(("auc", "mode"), [(deletion_auc, "deletion"), (insertion_auc, "insertion")])
def test_deletion_and_insertion_are_the_areas_of_their_curves(auc: object, mode: Mode) -> None:
    images, maps = torch.rand(3, 2, 6, 5), torch.rand(3, 1, 3, 2)
    curve = perturbation_curve(total, images, maps, mode, steps=7, baseline=0.5)
    # The trapezoids of seven steps: the ends of the curve count half.
    expected = (curve[:, 1:-1].sum(1) + (curve[:, 0] + curve[:, -1]) / 2) / 7
    torch.testing.assert_close(auc(total, images, maps, 7, 0.5, relative=False), expected)  # type: ignore[operator]
    torch.testing.assert_close(auc(total, images, maps, 7, 0.5), expected / total(images))  # type: ignore[operator]


def test_curves_and_areas_have_the_same_number_of_steps_unless_told_otherwise() -> None:
    images, maps = torch.rand(2, 1, 9, 8), torch.rand(2, 1, 9, 8)
    curve = perturbation_curve(total, images, maps)
    assert curve.shape == (2, PERTURBATION_STEPS + 1)
    assert deletion_auc(total, images, maps).equal(perturbation_auc(curve, "deletion"))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"mode": "both"}, "mode .*'both'|mode .*\"both\""), ({"steps": 0}, "steps .*0")],
)
def test_unknown_curves_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        perturbation_curve(total, torch.rand(1, 1, 3, 3), torch.rand(1, 1, 3, 3), **options)  # type: ignore[arg-type]


def test_a_score_function_with_several_scores_is_refused() -> None:
    with pytest.raises(ValueError, match=r"score_func .*\(2, 5\)"):
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
