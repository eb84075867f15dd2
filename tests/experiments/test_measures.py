"""What is kept of every map, and the numbers that it becomes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch

from captum_fam.experiments.measures import (
    MEASURES,
    Cells,
    Column,
    Conventions,
    MapBatch,
    Panel,
    Perturbable,
    list_measures,
    register_measure,
)
from captum_fam.experiments.records import MethodColumns, jsonable
from captum_fam.experiments.table_methods import Account, Maps, TableMethod, draw_uniform, get_methods
from captum_fam.metrics import Result, box_ious_by_threshold, max_box_accuracy
from tests.experiments.runs import method_columns

BOX = [torch.tensor([[2.0, 0.0, 4.0, 4.0]]), torch.tensor([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 4.0, 2.0]])]


class Measured:
    """What a panel keeps of maps, by ``"METHOD.NAME"``, and its tables."""

    def __init__(self, panel: Panel, explained: Mapping[str, MethodColumns]) -> None:
        self.panel = panel
        self.explained = explained
        self.columns = method_columns(explained)

    def __getitem__(self, name: str) -> list[Any]:
        return self.columns[name]

    def table(self, method: str, groups: torch.Tensor | None = None) -> dict[str, Result]:
        return self.panel.results(self.explained[method], groups)


def measure(panel: Panel, *arguments: Any, **options: Any) -> Measured:
    return Measured(panel, panel.values(*arguments, **options))


def measure_in_box(methods: str, maps: torch.Tensor, *measures: str) -> Measured:
    return measure(Panel(get_methods(methods), measures), lambda method: Maps(maps), (4, 4), BOX)


def test_the_uniform_row_is_the_whole_image() -> None:
    panel = Panel(get_methods("uniform"), ("localization", "max-box"))
    columns = measure(panel, lambda method: draw_uniform(torch.ones(2, 1, 2, 2), (4, 4)), (4, 4), BOX)
    assert columns["uniform.energy"] == [0.5, 0.5]
    assert columns["uniform.iou"] == [0.5, 0.5]
    assert columns["uniform.levels"] == ["2" * 100] * 2


@pytest.mark.parametrize(("over", "iou"), [("best", 0.5), ("first", 0.25), ("largest", 0.5), ("mean", 0.375)])
def test_the_uniform_row_follows_the_choice_among_several_boxes(over: str, iou: float) -> None:
    boxes = [BOX[1], torch.zeros(0, 4)]
    panel = Panel(get_methods("uniform"), ("localization", "max-box"), Conventions(over=over))  # type: ignore[arg-type]
    columns = measure(panel, lambda method: draw_uniform(torch.ones(2, 1, 2, 2), (4, 4)), (4, 4), boxes)
    assert columns["uniform.iou"] == [iou, None]
    assert columns["uniform.levels"] == ["2" * 100, None]


def test_an_image_without_a_box_is_no_failure() -> None:
    maps = torch.zeros(3, 1, 4, 4)
    maps[:, 0, :, 2:] = 1
    boxes = [BOX[0], torch.zeros(0, 4), torch.tensor([[0.0, 0.0, 2.0, 4.0]])]
    panel = Panel(get_methods("fam"), ("localization", "max-box"))
    table = measure(panel, lambda method: Maps(maps), (4, 4), boxes).table("fam")
    for column in ("iou", "max-box-acc"):
        assert (table[column].value, table[column].n, table[column].n_skipped) == (0.5, 2, 1)


def test_a_flat_map_of_another_method_is_empty_not_whole() -> None:
    columns = measure_in_box("fam", torch.ones(2, 1, 2, 2), "localization")
    assert columns["fam.energy"] == [None, None]
    assert columns["fam.iou"] == [0, 0]
    assert columns["fam.empty"] == [1, 1]
    table = columns.table("fam")
    assert table["energy"].n == 0
    assert table["energy"].n_empty == 2
    assert math.isnan(table["energy"].value)


def test_a_map_with_nan_is_counted_and_left_out() -> None:
    maps = torch.zeros(2, 1, 4, 4)
    maps[0, 0, :, 2:] = 1
    maps[1, 0, 0, 0] = torch.nan
    columns = measure_in_box("fam", maps, "localization", "max-box")
    table = columns.table("fam")
    assert columns["fam.energy"] == [1.0, None]
    assert (table["iou"].value, table["iou"].n, table["iou"].n_nan) == (1.0, 1, 1)
    assert (table["max-box-acc"].value, table["max-box-acc"].n) == (1.0, 1)


def test_signed_maps_have_two_energies() -> None:
    maps = torch.full((2, 1, 4, 4), -1.0)
    maps[:, 0, :, 2:] = 1
    maps[:, 0, 0, 0] = 0
    columns = measure_in_box("fam", maps, "localization")
    assert columns["fam.energy-positive"] == [1.0, pytest.approx(0.5)]
    assert columns["fam.energy"][0] == pytest.approx(8 / 8.5)  # min-max lifts the zero to one half


def test_means_are_taken_in_groups_first() -> None:
    kept = {"localization": {"energy": [0.2, 0.4, 0.9], "area": [0.1, 0.1, 0.3]}}
    kept["localization"] |= {"energy-positive": [0.2, 0.4, 0.9], "iou": [0.0, 0.0, 0.0]}
    columns = MethodColumns([0, 0, 0], [0, 0, 0], [0, 0, 0], kept)
    table = Panel(get_methods("fam")).results(columns, torch.tensor([0, 0, 5]))
    assert table["energy"].value == pytest.approx((0.3 + 0.9) / 2)
    assert table["lift"].value == pytest.approx((3 + 3) / 2)
    assert table["energy"].n_groups == 2


def test_max_box_levels_give_the_accuracy_of_the_ious() -> None:
    maps = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    boxes = [torch.tensor([[1.0, 1.0, 6.0, 7.0]])] * 6
    panel = Panel(get_methods("fam"), ("max-box",))
    table = measure(panel, lambda method: Maps(maps), (8, 8), boxes).table("fam")
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
    columns = measure(panel, lambda method: Maps(maps), (8, 8), None, queries)
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
    measure(Panel(get_methods("fam"), ("faithfulness",), conventions), lambda method: Maps(maps), (2, 2), None, queries)
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
    columns = measure(panel, lambda method: draw_uniform(torch.ones(2, 1, 2, 3), (4, 6)), (4, 6), None, queries)
    # raw: half of the pixel, x/4 + 1/2, is x/2 - 1 once it is normalized again
    torch.testing.assert_close(seen[0], torch.tensor(expected)[:, None, None, None].expand(2, 3, 4, 6))
    assert columns["uniform.drop"] == [pytest.approx(0.25), 0]
    assert columns["uniform.increase"] == [0, 1]


def test_numbers_survive_json_to_the_last_bit_of_float32() -> None:
    values = torch.rand(50) * torch.logspace(-20, 20, 50)
    assert torch.equal(torch.tensor(jsonable(values)), values)
    assert jsonable(torch.tensor([0.1, float("nan")])) == [0.1, None]
    assert jsonable(torch.tensor([True, False])) == [1, 0]


def test_a_map_without_a_positive_value_is_counted_by_the_measures_of_the_positive_part() -> None:
    maps = -torch.rand(2, 1, 4, 4) - 1
    maps[1, 0, 2:, 1] = 3
    table = measure_in_box("fam", maps, "localization").table("fam")
    found = table["energy-positive"]
    assert (found.n, found.n_nan, found.n_empty, found.n_skipped) == (1, 0, 1, 0)
    assert (table["energy"].n, table["energy"].n_empty) == (2, 0)
    cells = measure(
        Panel(get_methods("fam"), ()), lambda method: Maps(maps), (4, 4), cells=Cells(torch.tensor([0, 2]), 2)
    )
    table = cells.table("fam")
    assert table["cell-hit"] == table["cell-energy"]._replace(value=1.0)
    assert (table["cell-hit"].n, table["cell-hit"].n_empty, table["cell-auroc"].n_empty) == (1, 1, 0)


@pytest.mark.parametrize(("signed", "iou"), [("minmax", 1 / 4), ("positive", 1 / 2)])
def test_the_box_of_a_signed_map_is_that_of_all_or_of_its_positive_part(signed: str, iou: float) -> None:
    # Of 16 pixels one is negative, two positive: 0.2 of the range from -4 to 1 is -3, of that from 0 it is 0.2.
    maps = torch.zeros(1, 1, 4, 4)
    maps[0, 0, 3, 3] = -4
    maps[0, 0, 0, :2] = 1
    boxes = [torch.tensor([[0.0, 0.0, 4.0, 1.0]])]
    panel = Panel(get_methods("fam"), ("localization", "max-box"), Conventions(signed=signed))  # type: ignore[arg-type]
    columns = measure(panel, lambda method: Maps(maps), (4, 4), boxes)
    assert columns["fam.iou"] == [pytest.approx(iou)]
    levels = columns["fam.levels"][0]
    assert levels[20] == {"minmax": "0", "positive": "2"}[signed]  # 0.3 and 0.5 reached


@pytest.mark.parametrize(("signed", "mask"), [("minmax", [0.0, 0.75, 1.0]), ("positive", [0.0, 0.0, 1.0])])
def test_the_mask_of_a_signed_map_is_all_of_it_or_its_positive_part(signed: str, mask: list[float]) -> None:
    maps = torch.tensor([[[[-3.0, 0.0, 1.0]]], [[[-3.0, -2.0, -1.0]]]])
    seen: list[torch.Tensor] = []

    def score(some: torch.Tensor) -> torch.Tensor:
        seen.append(some)
        return torch.tensor([0.2, 0.2])

    queries = Perturbable(torch.ones(2, 3, 1, 3), score, torch.tensor([0.4, 0.4]), (0.0,) * 3, (1.0,) * 3)
    panel = Panel(get_methods("fam"), ("faithfulness",), Conventions(signed=signed))  # type: ignore[arg-type]
    columns = measure(panel, lambda method: Maps(maps), (1, 3), None, queries)
    torch.testing.assert_close(seen[0][0], torch.tensor(mask).expand(3, 1, 3))
    assert columns["fam.drop"] == [pytest.approx(0.5), pytest.approx(0.5) if signed == "minmax" else None]
    found = columns.table("fam")["drop"]  # type: ignore[arg-type]
    assert (found.n, found.n_empty, found.n_skipped) == ((2, 0, 0) if signed == "minmax" else (1, 1, 0))


def test_similarities_up_to_epsilon_have_no_measure_that_divides_by_them() -> None:
    maps = torch.rand(3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    scores = torch.tensor([0.04, 0.05, 0.06])
    queries = Perturbable(torch.rand(3, 3, 4, 4), lambda some: scores / 2, scores, (0.0,) * 3, (1.0,) * 3)
    panel = Panel(get_methods("fam"), ("faithfulness", "perturbation"), Conventions(epsilon=0.05, steps=2))
    columns = measure(panel, lambda method: Maps(maps), (4, 4), None, queries)
    for name in ("drop", "increase", "deletion", "insertion"):
        assert [value is None for value in columns[f"fam.{name}"]] == [True, True, False]
    assert [columns["fam.drop"][2], columns["fam.deletion"][2]] == pytest.approx([0.5, 0.5])


def test_unknown_measures_are_refused() -> None:
    with pytest.raises(ValueError, match="sharpness is none of localization"):
        Panel(measures=("sharpness",))  # type: ignore[arg-type]


def test_each_method_is_asked_for_its_own_maps() -> None:
    def maps_of(method: TableMethod) -> Maps:
        maps = torch.zeros(2, 1, 4, 4)
        maps[:, :, :, slice(2, 4) if method.base == "fam" else slice(0, 2)] = 1
        return Maps(maps)

    columns = measure(Panel(get_methods("fam,grad-cam")), maps_of, (4, 4), BOX)
    assert columns["fam.energy"][0] == 1
    assert columns["grad-cam.energy"][0] == 0


def test_the_coverage_is_the_share_of_all_scores_so_that_a_score_near_zero_cannot_drown_the_others() -> None:
    maps = torch.rand(3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    # The ratios are 1, 100 and 0.5, whose mean says nothing.
    account = Account(sums=torch.tensor([0.8, 0.1, -0.35]), scores=torch.tensor([0.8, 0.001, -0.7]))
    columns = measure(
        Panel(get_methods("similarity-cam,fam"), ()),
        lambda method: Maps(maps, account if method.base == "similarity-cam" else None),
        (4, 4),
    )
    assert columns["similarity-cam.score"] == pytest.approx([0.8, 0.001, -0.7])
    found = columns.table("similarity-cam")["coverage"]
    assert found.value == pytest.approx(1 - (0.099 + 0.35) / 1.501)
    assert (found.n, found.n_skipped) == (3, 0)
    assert "coverage" not in columns.table("fam")


def test_the_coverage_is_undefined_where_all_scores_are_zero() -> None:
    account = Account(sums=torch.zeros(2), scores=torch.zeros(2))
    maps = torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    columns = measure(Panel(get_methods("similarity-cam"), ()), lambda _: Maps(maps, account), (4, 4))
    assert columns.table("similarity-cam")["coverage"].n == 0


def test_the_columns_of_a_table_stand_in_the_order_of_the_measures() -> None:
    assert list_measures() == ("localization", "max-box", "faithfulness", "perturbation", "swap")
    assert list_measures({"swap", "cells"}) == ("swap",)
    maps = torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    panel = Panel(get_methods("fam"), ("swap", "localization"))
    table = measure(panel, lambda _: Maps(maps), (4, 4), BOX, pairs_of=lambda _, first: (first, first)).table("fam")
    assert list(table) == ["energy", "energy-positive", "lift", "iou", "swap"]
    assert table["swap"].value == pytest.approx(1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "new", "needs": "boxes"}, r"needs must be .*'boxes'"),
        ({"name": "new", "columns": ["x"]}, r"columns must be Column objects, got \('x',\)"),
    ],
)
def test_needs_and_columns_of_another_type_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        register_measure(**arguments)
    with pytest.raises(TypeError, match="compute must be a function"):
        register_measure("new")(5)  # type: ignore[arg-type]


@pytest.fixture
def open_registry() -> Iterator[None]:
    """What a test registers is forgotten with it."""
    before = dict(MEASURES)
    yield
    MEASURES.clear()
    MEASURES.update(before)


@pytest.mark.usefixtures("open_registry")
def test_a_measure_of_ones_own_is_a_column_of_the_table() -> None:

    @register_measure("corner", needs=("boxes",), columns=(Column("corner"), Column("twice", from_kept=_twice)))
    def corner(batch: MapBatch, conventions: Conventions) -> dict[str, torch.Tensor]:
        return {"corner": batch.maps[:, 0, 0, 0]}

    maps = torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    panel = Panel(get_methods("fam"), ("corner",))
    table = measure(panel, lambda _: Maps(maps), (4, 4), BOX).table("fam")
    assert table["corner"].value == pytest.approx(float(maps[:, 0, 0, 0].mean()))
    assert table["twice"].value == pytest.approx(2 * table["corner"].value)
    # Without what it needs it does not run.
    assert measure(panel, lambda _: Maps(maps), (4, 4)).table("fam") == {}


@pytest.mark.usefixtures("open_registry")
def test_a_measure_of_another_number_of_values_is_named_at_once() -> None:
    register_measure("short")(lambda batch, conventions: batch.maps[:1, 0, 0, 0])
    panel = Panel(get_methods("fam"), ("short",))
    with pytest.raises(ValueError, match="measure 'short' gave 1 values of 'short' for 2 maps"):
        measure(panel, lambda _: Maps(torch.rand(2, 1, 4, 4)), (4, 4), BOX)


def _twice(kept: Mapping[str, list[Any]]) -> torch.Tensor:
    return 2 * torch.tensor(kept["corner"], dtype=torch.float64)


@pytest.mark.parametrize(
    ("name", "needs", "columns", "message"),
    [
        ("new", ("depth",), None, "needs: depth"),
        ("new", (), (Column("iou"),), "columns: iou"),
        ("swap", (), None, "name"),
        ("a b/c", (), None, r"name must be .*'a b/c'"),
        (7, (), None, r"name must be .*7"),
    ],
)
def test_a_measure_that_no_table_can_have_is_refused(name: str, needs: Any, columns: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        register_measure(name, needs, columns)(min)
