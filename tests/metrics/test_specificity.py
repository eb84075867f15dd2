from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from captum_fam.metrics import cell_mask, map_correlation, mosaic_energy, mosaic_hit, region_auroc, upsample


def test_cells_are_counted_in_raster_order() -> None:
    mask = cell_mask(torch.tensor([0, 1, 2, 3]), (4, 6))
    for cell, (rows, columns) in enumerate([((0, 2), (0, 3)), ((0, 2), (3, 6)), ((2, 4), (0, 3)), ((2, 4), (3, 6))]):
        expected = torch.zeros(4, 6, dtype=torch.bool)
        expected[slice(*rows), slice(*columns)] = True
        assert mask[cell].equal(expected)


@pytest.mark.parametrize(("grid", "size"), [(3, (10, 7)), ((2, 3), (9, 8)), (1, (3, 4))])
def test_cells_tile_the_mosaic_whatever_its_size(grid: int | tuple[int, int], size: tuple[int, int]) -> None:
    rows, columns = (grid, grid) if isinstance(grid, int) else grid
    masks = cell_mask(torch.arange(rows * columns), size, grid)
    assert (masks.sum(0) == 1).all()
    expected = [((i + 1) * size[0] // rows - i * size[0] // rows) for i in range(rows)]
    assert masks[::columns].any(2).sum(1).tolist() == expected


@pytest.mark.parametrize("cells", [torch.tensor([4]), torch.tensor([-1]), torch.tensor([1.0]), torch.tensor([[1]])])
def test_cells_outside_the_grid_are_refused(cells: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="cells must be integers"):
        cell_mask(cells, (4, 4))


def test_energy_and_hit_by_hand() -> None:
    # energies of the positive parts: 3, 1, 0, 2; minimum -4 would turn the empty cell to energy by min-max
    maps = torch.tensor([[[3.0, 1.0], [-4.0, 2.0]]]).expand(4, 2, 2)
    cells = torch.arange(4)
    torch.testing.assert_close(mosaic_energy(maps, cells, (2, 2)), torch.tensor([3.0, 1, 0, 2]) / 6)
    torch.testing.assert_close(mosaic_energy(maps, cells, (2, 2), energy="minmax"), torch.tensor([7.0, 5, 0, 6]) / 18)
    assert mosaic_hit(maps, cells, (2, 2)).tolist() == [1, 0, 0, 0]


def test_energy_and_peak_can_disagree() -> None:
    maps = torch.zeros(1, 4, 4)
    maps[0, :2, :2] = 2
    maps[0, 3, 3] = 7
    first, last = torch.tensor([0]), torch.tensor([3])
    assert mosaic_hit(maps, first, (4, 4)).item() == 1
    assert mosaic_hit(maps, last, (4, 4)).item() == 0
    assert mosaic_hit(maps, last, (4, 4), by="peak").item() == 1


@pytest.mark.parametrize("by", ["energy", "peak"])
def test_ties_have_the_value_of_a_random_choice(by: str) -> None:
    maps = torch.tensor([[[1.0, 1.0], [0.5, 0.0]]]).expand(4, 2, 2)
    hits = mosaic_hit(maps, torch.arange(4), (2, 2), by=by)  # type: ignore[arg-type]
    assert hits.tolist() == [0.5, 0.5, 0, 0]
    uniform = mosaic_hit(torch.full((4, 1, 5, 5), 0.3), torch.arange(4), (42, 34), by=by)  # type: ignore[arg-type]
    assert uniform.tolist() == [0.25] * 4


def test_hits_agree_with_energies_of_all_cells() -> None:
    maps = torch.randn(30, 1, 7, 5)
    size, grid = (33, 41), (2, 3)
    energies = torch.stack([mosaic_energy(maps, torch.full((30,), cell), size, grid) for cell in range(6)], 1)
    cells = torch.randint(0, 6, (30,))
    torch.testing.assert_close(energies.sum(1), torch.ones(30))
    assert mosaic_hit(maps, cells, size, grid).equal((energies.argmax(1) == cells).float())


def test_maps_without_positive_energy_and_nan_are_undefined() -> None:
    maps = torch.stack([-torch.rand(2, 2) - 0.1, torch.zeros(2, 2), torch.full((2, 2), torch.nan), torch.eye(2)])
    cells = torch.zeros(4, dtype=torch.int64)
    for result in (mosaic_energy(maps, cells, (4, 4)), mosaic_hit(maps, cells, (4, 4))):
        assert result.isnan().tolist() == [True, True, True, False]


def test_hits_need_a_cell_for_each_map() -> None:
    with pytest.raises(ValueError, match="cells has 3 entries for 2 maps"):
        mosaic_hit(torch.rand(2, 2, 2), torch.arange(3), (4, 4))


def test_auroc_counts_pairs_of_pixels() -> None:
    maps = torch.randint(0, 5, (6, 1, 4, 3)).double()
    mask = torch.rand(6, 9, 7) > 0.6
    expected = []
    for raised, inside in zip(upsample(maps, (9, 7)).numpy(), mask.numpy(), strict=True):
        within, without = raised[inside][:, None], raised[~inside][None]
        expected.append((within > without).mean() + 0.5 * (within == without).mean())
    np.testing.assert_allclose(region_auroc(maps, mask).numpy(), expected, rtol=1e-12)


def test_auroc_with_many_ties() -> None:
    maps = torch.tensor([[[1.0, 1.0, 0.0, 0.0]], [[0.0, 1.0, 1.0, 1.0]]])
    inside = torch.tensor([True, False, True, False]).expand(2, 1, 4)
    # of four pairs: a win, two ties, a loss; and two losses, two ties
    assert region_auroc(maps, inside).tolist() == [0.5, 0.25]


def test_auroc_does_not_see_a_monotone_change() -> None:
    maps = torch.randn(5, 8, 6, dtype=torch.float64)
    mask = cell_mask(torch.tensor([0, 1, 2, 3, 0]), (8, 6))
    assert region_auroc(maps, mask).equal(region_auroc((3 * maps).exp(), mask))


def test_auroc_is_one_for_the_region_itself_and_chance_for_a_flat_map() -> None:
    mask = cell_mask(torch.tensor([2, 1]), (6, 8))
    assert region_auroc(mask.float(), mask).tolist() == [1, 1]
    assert region_auroc(-mask.float(), mask).tolist() == [0, 0]
    # interpolation adds rounding noise to 0.3, which must not be ranked
    assert region_auroc(torch.full((2, 1, 5, 7), 0.3), cell_mask(torch.tensor([2, 1]), (33, 41))).tolist() == [0.5, 0.5]


def test_auroc_is_undefined_without_inside_or_outside_and_for_nan() -> None:
    mask = torch.stack([torch.zeros(3, 3), torch.ones(3, 3), torch.eye(3), torch.eye(3)]).bool()
    maps = torch.rand(4, 3, 3)
    maps[2, 0, 0] = torch.nan
    assert region_auroc(maps, mask).isnan().tolist() == [True, True, True, False]


def test_auroc_takes_boxes_too() -> None:
    maps, boxes = torch.rand(2, 1, 3, 3), torch.tensor([[1, 1, 4, 3], [0, 0, 2, 6]])
    mask = torch.zeros(2, 6, 5, dtype=torch.bool)
    mask[0, 1:3, 1:4] = mask[1, :, :2] = True
    assert region_auroc(maps, boxes, (6, 5)).equal(region_auroc(maps, mask))


@pytest.mark.parametrize("kind", ["pearson", "spearman"])
@pytest.mark.parametrize("levels", [4, 10**6])
def test_correlation_agrees_with_scipy(kind: str, levels: int) -> None:
    maps, others = torch.randint(0, levels, (2, 8, 1, 5, 7)).double()
    reference = stats.pearsonr if kind == "pearson" else stats.spearmanr
    expected = [reference(a.flatten(), b.flatten())[0] for a, b in zip(maps.numpy(), others.numpy(), strict=True)]
    np.testing.assert_allclose(map_correlation(maps, others, kind).numpy(), expected, rtol=1e-12)  # type: ignore[arg-type]


def test_correlation_of_a_map_with_itself_and_its_opposite() -> None:
    maps = torch.randn(3, 1, 5, 4)
    for kind in ("pearson", "spearman"):
        torch.testing.assert_close(map_correlation(maps, 2 * maps + 5, kind), torch.ones(3))  # type: ignore[arg-type]
        torch.testing.assert_close(map_correlation(maps, -maps, kind), -torch.ones(3))  # type: ignore[arg-type]


def test_correlation_of_tiny_maps_does_not_underflow() -> None:
    maps, others = torch.rand(2, 3, 1, 5, 4)
    torch.testing.assert_close(map_correlation(maps * 1e-30, others), map_correlation(maps, others))


def test_correlation_with_a_flat_or_nan_map_is_undefined() -> None:
    maps, others = torch.rand(2, 3, 1, 2, 2)
    maps[0] = 0.3
    others[1, 0, 0, 0] = torch.nan
    for kind in ("pearson", "spearman"):
        assert map_correlation(maps, others, kind).isnan().tolist() == [True, True, False]  # type: ignore[arg-type]


def test_maps_to_correlate_must_be_alike() -> None:
    with pytest.raises(ValueError, match="must be alike"):
        map_correlation(torch.rand(2, 1, 3, 3), torch.rand(1, 1, 3, 3))
    with pytest.raises(ValueError, match='kind must be "pearson" or "spearman"'):
        map_correlation(torch.rand(2, 3), torch.rand(2, 3), "kendall")  # type: ignore[arg-type]
