from __future__ import annotations

import pytest
import torch

from captum_fam.metrics import cell_mask, make_mosaic, mosaic_auroc, mosaic_energy, mosaic_hit, region_auroc


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
    with pytest.raises(ValueError, match="cells"):
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
    with pytest.raises(ValueError, match=r"cells .*3 .* 2 maps"):
        mosaic_hit(torch.rand(2, 2, 2), torch.arange(3), (4, 4))


def test_mosaic_auroc_is_that_of_the_cell() -> None:
    maps, cells = torch.randn(6, 1, 5, 4), torch.tensor([0, 1, 2, 3, 4, 5])
    expected = region_auroc(maps, cell_mask(cells, (12, 9), (3, 2)))
    assert mosaic_auroc(maps, cells, (12, 9), (3, 2)).equal(expected)


@pytest.mark.parametrize(("grid", "size"), [(2, (9, 7)), ((2, 3), (11, 13)), (3, None)])
def test_each_image_of_a_mosaic_fills_its_cell(grid: int | tuple[int, int], size: tuple[int, int] | None) -> None:
    rows, columns = (grid, grid) if isinstance(grid, int) else grid
    colors = torch.arange(1.0, rows * columns + 1)
    mosaic = make_mosaic(colors.view(-1, 1, 1, 1).expand(-1, 2, 4, 5), size, grid)
    size = size or (4 * rows, 5 * columns)
    expected = (cell_mask(torch.arange(len(colors)), size, grid) * colors.view(-1, 1, 1)).sum(0)
    assert mosaic.shape == (1, 2, *size)
    torch.testing.assert_close(mosaic[0, 0], expected)
    torch.testing.assert_close(mosaic[0, 1], expected)


def test_a_mosaic_needs_an_image_for_every_cell() -> None:
    with pytest.raises(ValueError, match=r"images must be \(4, C, H, W\) for this grid, got \(3, 1, 2, 2\)"):
        make_mosaic(torch.rand(3, 1, 2, 2))
