"""Does the map follow the support? Mosaic pointing and support swap, one value a sample."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from captum_fam.functional import widen
from captum_fam.metrics.boxes import Boxes
from captum_fam.metrics.localization import energy_proportion, region_mask
from captum_fam.metrics.maps import Energy, Size, find_empty, find_nan, normalize_maps, upsample

Grid = int | tuple[int, int]
Correlation = Literal["pearson", "spearman"]


def cell_mask(cells: Tensor, size: Size, grid: Grid = 2) -> Tensor:
    """The pixels of one cell of each mosaic: boolean ``(B, H, W)``.

    Args:
        cells: index of the cell in raster order, integers ``(B,)``.
        size: height and width of the mosaic; cell row i covers the pixel rows from i H // k to (i + 1) H // k.
        grid: k for k x k cells, or rows and columns.

    Raises:
        ValueError: for a cell outside the grid.

    Example:
        >>> cell_mask(torch.tensor([1]), size=(2, 4)).int()
        tensor([[[0, 0, 1, 1],
                 [0, 0, 0, 0]]], dtype=torch.int32)
    """
    rows, columns = _grid(grid)
    if cells.dim() != 1 or cells.is_floating_point() or ((cells < 0) | (cells >= rows * columns)).any():
        raise ValueError(f"cells must be integers (B,) from 0 to {rows * columns - 1}, got {cells}")
    row = _cell_index(size[0], rows, cells.device) == (cells // columns)[:, None]
    column = _cell_index(size[1], columns, cells.device) == (cells % columns)[:, None]
    return row[:, :, None] & column[:, None, :]


def mosaic_energy(maps: Tensor, cells: Tensor, size: Size, grid: Grid = 2, energy: Energy = "positive") -> Tensor:
    """Share of the map's energy in the support's cell, ``(B,)``; chance is 1 / cells.

    Args:
        maps: of mosaics, ``(B, 1, h, w)`` or ``(B, h, w)``.
        cells: the cell whose class the support is of, ``(B,)`` in raster order.
        size: height and width of the mosaic.
        grid: k for k x k cells, or rows and columns.
        energy: that of the positive part, or ``"minmax"``.

    Returns:
        ``(B,)``; NaN for a map without energy and one with NaN or inf.

    Raises:
        ValueError: for shapes, cells or an energy that do not fit.

    Example:
        >>> mosaic_energy(torch.tensor([[[1.0, 3.0], [0.0, -2.0]]]), torch.tensor([1]), size=(2, 2))
        tensor([0.7500])
    """
    return energy_proportion(maps, cell_mask(cells, size, grid), energy=energy)


def mosaic_hit(
    maps: Tensor,
    cells: Tensor,
    size: Size,
    grid: Grid = 2,
    by: Literal["energy", "peak"] = "energy",
    energy: Energy = "positive",
) -> Tensor:
    """1 where the support's cell has the most energy, or the highest pixel, of all cells, else 0: ``(B,)``.

    Where n cells tie the value is 1 / n for each of them, what choosing one at random has on average.

    Args:
        maps, cells, size, grid: as for :func:`mosaic_energy`.
        by: ``"energy"`` or ``"peak"``.
        energy: what counts as energy.

    Returns:
        ``(B,)``; NaN for a map without energy and one with NaN or inf.

    Raises:
        ValueError: for shapes, cells or choices that do not fit.

    Example:
        >>> mosaic_hit(torch.tensor([[[1.0, 3.0], [0.0, -2.0]]]), torch.tensor([1]), size=(2, 2))
        tensor([1.])
    """
    if by not in ("energy", "peak"):
        raise ValueError(f'by must be "energy" or "peak", got {by!r}')
    rows, columns = _grid(grid)
    target = cell_mask(cells, size, grid).to(maps.device)
    if len(target) != len(maps):
        raise ValueError(f"cells has {len(target)} entries for {len(maps)} maps; give one each")
    normalized = normalize_maps(maps, size, energy)
    row = _cell_index(size[0], rows, maps.device)
    column = _cell_index(size[1], columns, maps.device)
    index = (row[:, None] * columns + column).flatten().expand(len(maps), -1)
    levels = normalized.new_zeros(len(maps), rows * columns)
    levels.scatter_reduce_(1, index, normalized.flatten(1), "sum" if by == "energy" else "amax")
    winners = levels == levels.amax(1, keepdim=True)
    hit = winners.gather(1, cells.to(maps.device)[:, None])[:, 0].to(normalized) / winners.sum(1)
    return hit.masked_fill(find_nan(maps) | (levels <= 0).all(1), torch.nan)


def region_auroc(maps: Tensor, region: Boxes, size: Size | None = None) -> Tensor:
    """How often a pixel inside the region is higher than one outside, ties counting half: ``(B,)``; chance is 0.5.

    The area under the ROC curve, by ranks (Mann and Whitney). It depends on the order of the pixels alone, so that
    no sharpening of the map can buy any of it.

    Args:
        maps: ``(B, 1, h, w)`` or ``(B, h, w)``, interpolated to ``size`` here.
        region: boolean mask ``(B, H, W)``, :func:`cell_mask` for a mosaic; or boxes, with ``size``.
        size: height and width of the input; may be left out with a mask.

    Returns:
        ``(B,)``; 0.5 for a flat map, NaN for one with NaN or inf, and where all pixels or none are inside.

    Raises:
        ValueError: for shapes that do not fit.

    Example:
        >>> region_auroc(torch.tensor([[[1.0, 3.0], [0.0, -2.0]]]), cell_mask(torch.tensor([0]), (2, 2)))
        tensor([0.6667])
    """
    mask = region_mask(maps, region, size)
    inside = mask.flatten(1)
    raised = upsample(maps, (mask.shape[1], mask.shape[2])).flatten(1)
    # Rounding noise of the interpolation must not rank the pixels of a flat map.
    ranks = _average_ranks(raised.masked_fill(find_empty(maps)[:, None], 0))
    n_inside = inside.sum(1).double()
    n_outside = inside.shape[1] - n_inside
    wins = (ranks * inside).sum(1) - n_inside * (n_inside + 1) / 2
    return (wins / (n_inside * n_outside)).masked_fill(find_nan(maps), torch.nan).to(raised.dtype)


def map_correlation(maps: Tensor, others: Tensor, kind: Correlation = "pearson") -> Tensor:
    """Correlation of each map with another of the same query, ``(B,)``.

    Between the maps for two supports this is the support swap: 1 says that the map does not see the support.

    Args:
        maps: ``(B, ...)``.
        others: of the same shape.
        kind: ``"pearson"``, or ``"spearman"``, that of the ranks with ties averaged.

    Returns:
        ``(B,)``; NaN where a map is flat or holds NaN or inf.

    Raises:
        ValueError: if the shapes differ, or for an unknown kind.

    Example:
        >>> map_correlation(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[9.0, 4.0, 1.0]]), "spearman")
        tensor([-1.])
    """
    if maps.shape != others.shape:
        raise ValueError(f"maps has shape {tuple(maps.shape)} and others {tuple(others.shape)}; they must be alike")
    if kind not in ("pearson", "spearman"):
        raise ValueError(f'kind must be "pearson" or "spearman", got {kind!r}')
    undefined = find_nan(maps) | find_nan(others) | find_empty(maps) | find_empty(others)
    first, second = (_centered(widen(one.detach()).flatten(1), kind) for one in (maps, others))
    correlation = (first * second).sum(1) / (first.norm(dim=1) * second.norm(dim=1))
    return correlation.clamp(-1, 1).masked_fill(undefined, torch.nan)


def _centered(flat: Tensor, kind: str) -> Tensor:
    if kind == "spearman":
        flat = _average_ranks(flat).to(flat.dtype)
    flat = flat - flat.mean(1, keepdim=True)
    # Squares of tiny values would underflow.
    largest = flat.abs().amax(1, keepdim=True)
    return flat / torch.where(largest > 0, largest, 1)


def _average_ranks(flat: Tensor) -> Tensor:
    """Ranks 1..P within each row, equals sharing their mean: ``(B, P)`` float64."""
    ordered, order = flat.sort(1)
    count = flat.shape[1]
    position = torch.arange(count, device=flat.device)
    step = ordered[:, 1:] != ordered[:, :-1]
    edge = step.new_ones(len(flat), 1)
    first = torch.where(torch.cat([edge, step], 1), position, 0).cummax(1).values
    last = torch.where(torch.cat([step, edge], 1), position, count).flip(1).cummin(1).values.flip(1)
    return torch.empty_like(flat, dtype=torch.float64).scatter_(1, order, (first + last + 2).double() / 2)


def _grid(grid: Grid) -> tuple[int, int]:
    rows, columns = (grid, grid) if isinstance(grid, int) else grid
    if rows < 1 or columns < 1:
        raise ValueError(f"grid must be the number of cells a side, or rows and columns, got {grid!r}")
    return rows, columns


def _cell_index(length: int, cells: int, device: torch.device) -> Tensor:
    """For each pixel of a side the cell it is in."""
    ends = torch.tensor([(cell + 1) * length // cells for cell in range(cells)], device=device)
    return torch.searchsorted(ends, torch.arange(length, device=device), right=True)
