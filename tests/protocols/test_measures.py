"""What is kept of every map, and the numbers that it becomes."""

from __future__ import annotations

import math

import pytest
import torch

from captum_fam.protocols.measures import Conventions, Panel, Perturbable, jsonable, results
from captum_fam.protocols.methods import MapMethod, get_methods

BOX = [torch.tensor([[2.0, 0.0, 4.0, 4.0]]), torch.tensor([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 4.0, 2.0]])]


def _columns(methods: str, maps: torch.Tensor, *measures: str, **options: object) -> dict[str, list[object]]:
    panel = Panel(get_methods(methods), measures, **options)  # type: ignore[arg-type]
    return panel.values(lambda method: maps, (4, 4), BOX)


def test_the_uniform_row_is_the_whole_image() -> None:
    columns = _columns("uniform", torch.ones(2, 1, 2, 2), "localization", "max-box")
    assert columns["uniform.energy"] == [0.5, 0.5]
    assert columns["uniform.iou"] == [0.5, 0.5]
    assert columns["uniform.levels"] == ["2" * 100] * 2


@pytest.mark.parametrize(("over", "iou"), [("best", 0.5), ("first", 0.25), ("largest", 0.5), ("mean", 0.375)])
def test_the_uniform_row_follows_the_choice_among_several_boxes(over: str, iou: float) -> None:
    boxes = [BOX[1], torch.zeros(0, 4)]
    panel = Panel(get_methods("uniform"), ("localization", "max-box"), Conventions(over=over))  # type: ignore[arg-type]
    columns = panel.values(lambda method: torch.ones(2, 1, 2, 2), (4, 4), boxes)
    assert columns["uniform.iou"] == [iou, None]
    assert columns["uniform.levels"] == ["2" * 100, None]


def test_an_image_without_a_box_is_no_failure() -> None:
    maps = torch.zeros(3, 1, 4, 4)
    maps[:, 0, :, 2:] = 1
    boxes = [BOX[0], torch.zeros(0, 4), torch.tensor([[0.0, 0.0, 2.0, 4.0]])]
    panel = Panel(get_methods("fam"), ("localization", "max-box"))
    table = results("fam", panel.values(lambda method: maps, (4, 4), boxes), None)
    for measure in ("iou", "max-box-acc"):
        assert (table[measure].value, table[measure].n, table[measure].n_skipped) == (0.5, 2, 1)


def test_a_flat_map_of_another_method_is_empty_not_whole() -> None:
    columns = _columns("fam", torch.ones(2, 1, 2, 2), "localization")
    assert columns["fam.energy"] == [None, None]
    assert columns["fam.iou"] == [0, 0]
    assert columns["fam.empty"] == [1, 1]
    table = results("fam", columns, None)
    assert table["energy"].n == 0
    assert table["energy"].n_empty == 2
    assert math.isnan(table["energy"].value)


def test_a_map_with_nan_is_counted_and_left_out() -> None:
    maps = torch.zeros(2, 1, 4, 4)
    maps[0, 0, :, 2:] = 1
    maps[1, 0, 0, 0] = torch.nan
    columns = _columns("fam", maps, "localization", "max-box")
    table = results("fam", columns, None)
    assert columns["fam.energy"] == [1.0, None]
    assert (table["iou"].value, table["iou"].n, table["iou"].n_nan) == (1.0, 1, 1)
    assert (table["max-box-acc"].value, table["max-box-acc"].n) == (1.0, 1)


def test_signed_maps_have_two_energies() -> None:
    maps = torch.full((2, 1, 4, 4), -1.0)
    maps[:, 0, :, 2:] = 1
    maps[:, 0, 0, 0] = 0
    columns = _columns("fam", maps, "localization")
    assert columns["fam.energy-positive"] == [1.0, pytest.approx(0.5)]
    assert columns["fam.energy"][0] == pytest.approx(8 / 8.5)  # min-max lifts the zero to one half


def test_means_are_taken_in_groups_first() -> None:
    columns = {"fam.energy": [0.2, 0.4, 0.9], "fam.area": [0.1, 0.1, 0.3], "fam.nan": [0, 0, 0], "fam.empty": [0, 0, 0]}
    table = results("fam", columns, torch.tensor([0, 0, 5]))
    assert table["energy"].value == pytest.approx((0.3 + 0.9) / 2)
    assert table["lift"].value == pytest.approx((3 + 3) / 2)
    assert table["energy"].n_groups == 2


def test_max_box_levels_give_the_accuracy_of_the_ious() -> None:
    maps = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    boxes = [torch.tensor([[1.0, 1.0, 6.0, 7.0]])] * 6
    panel = Panel(get_methods("fam"), ("max-box",))
    table = results("fam", panel.values(lambda method: maps, (8, 8), boxes), None)
    from captum_fam.metrics import box_ious_by_threshold, max_box_accuracy

    expected = max_box_accuracy(box_ious_by_threshold(maps, boxes, (8, 8))).correct.mean()
    assert table["max-box-acc"].value == pytest.approx(float(expected))


def test_a_flat_map_is_never_scored_and_has_no_drop() -> None:
    maps = torch.rand(3, 1, 4, 4)
    maps[1] = 5.0
    seen: list[torch.Tensor] = []

    def score(images: torch.Tensor) -> torch.Tensor:
        seen.append(images)
        return images.mean((1, 2, 3))

    images = torch.rand(3, 3, 8, 8)
    queries = Perturbable(images, score, images.mean((1, 2, 3)), (0.0,) * 3, (1.0,) * 3)
    panel = Panel(get_methods("fam"), ("faithfulness",))
    columns = panel.values(lambda method: maps, (8, 8), (), queries)
    assert seen[0].isfinite().all()
    assert columns["fam.drop"][1] is None
    assert columns["fam.increase"][1] is None
    assert columns["fam.drop"][0] is not None


@pytest.mark.parametrize("mask", ["normalized", "raw"])
def test_the_mask_is_laid_on_the_chosen_pixels(mask: str) -> None:
    images, maps = torch.rand(1, 3, 2, 2), torch.tensor([[[[0.0, 1.0], [1.0, 1.0]]]])
    seen: list[torch.Tensor] = []

    def score(some: torch.Tensor) -> torch.Tensor:
        seen.append(some)
        return some.sum((1, 2, 3))

    queries = Perturbable(images, score, images.sum((1, 2, 3)), (0.5,) * 3, (0.25,) * 3)
    conventions = Conventions(mask=mask)  # type: ignore[arg-type]
    Panel(get_methods("fam"), ("faithfulness",), conventions).values(lambda method: maps, (2, 2), (), queries)
    # black is (0 - 0.5) / 0.25
    assert seen[0][0, :, 0, 0].tolist() == [0.0 if mask == "normalized" else -2.0] * 3
    torch.testing.assert_close(seen[0][0, :, 1, 1], images[0, :, 1, 1])


@pytest.mark.parametrize(("mask", "expected"), [("normalized", [0.3, -0.2]), ("raw", [-0.7, -1.2])])
def test_uniform_masks_by_half_everywhere(mask: str, expected: list[float]) -> None:
    images = torch.tensor([0.6, -0.4])[:, None, None, None].repeat(1, 3, 4, 6)
    seen: list[torch.Tensor] = []

    def score(some: torch.Tensor) -> torch.Tensor:
        seen.append(some)
        return torch.tensor([0.6, 0.9])

    queries = Perturbable(images, score, torch.tensor([0.8, 0.5]), (0.5,) * 3, (0.25,) * 3)
    panel = Panel(get_methods("uniform"), ("faithfulness",), Conventions(mask=mask))  # type: ignore[arg-type]
    columns = panel.values(lambda method: torch.ones(2, 1, 2, 3), (4, 6), (), queries)
    # raw: half of the pixel, x/4 + 1/2, is x/2 - 1 once it is normalised again
    torch.testing.assert_close(seen[0], torch.tensor(expected)[:, None, None, None].expand(2, 3, 4, 6))
    assert columns["uniform.drop"] == [pytest.approx(0.25), 0]
    assert columns["uniform.increase"] == [0, 1]


def test_numbers_survive_json_to_the_last_bit_of_float32() -> None:
    values = torch.rand(50) * torch.logspace(-20, 20, 50)
    assert torch.equal(torch.tensor(jsonable(values)), values)
    assert jsonable(torch.tensor([0.1, float("nan")])) == [0.1, None]
    assert jsonable(torch.tensor([True, False])) == [1, 0]


def test_unknown_measures_are_refused() -> None:
    with pytest.raises(ValueError, match="sharpness is none of localization"):
        Panel(measures=("sharpness",))  # type: ignore[arg-type]


def test_each_method_is_asked_for_its_own_maps() -> None:
    def maps_of(method: MapMethod) -> torch.Tensor:
        maps = torch.zeros(2, 1, 4, 4)
        maps[:, :, :, slice(2, 4) if method.base == "fam" else slice(0, 2)] = 1
        return maps

    columns = Panel(get_methods("fam,grad-cam")).values(maps_of, (4, 4), BOX)
    assert columns["fam.energy"][0] == 1
    assert columns["grad-cam.energy"][0] == 0
