"""Does the map follow the support? Maps of a mosaic of images, in which one cell shows the class of the support."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from captum_fam.metrics.energy import energy_proportion
from captum_fam.metrics.maps import Energy, Size, find_nan, normalize_maps
from captum_fam.metrics.ranking import region_auroc

Grid = int | tuple[int, int]
By = Literal["energy", "peak"]


def cell_mask(cells: Tensor, size: Size, grid: Grid = 2) -> Tensor:
    """The pixels of one cell of each mosaic.

    Args:
        cells: index of the cell in raster order, integers ``(B,)``.
        size: height H and width W of the mosaic, in pixels; row i of k rows of cells covers the pixel rows from
            i H // k up to, but without, (i + 1) H // k.
        grid: k for k x k cells, or the numbers of rows and columns. Default: 2.

    Returns:
        Boolean ``(B, H, W)``, on the device of ``cells``.

    Raises:
        ValueError: for a cell outside the grid, or a grid without cells.

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


def make_mosaic(images: Tensor, size: Size | None = None, grid: Grid = 2) -> Tensor:
    """Images side by side, each in the cell that :func:`cell_mask` has for it.

    Args:
        images: the images of all cells in raster order, floating point ``(number of cells, C, H, W)``. An image of
            another size than its cell is resized, bilinear with antialiasing.
        size: height and width of the mosaic, in pixels. Default: None, that of the images as they are.
        grid: k for k x k cells, or the numbers of rows and columns. Default: 2.

    Returns:
        The mosaic, ``(1, C, *size)``.

    Raises:
        ValueError: for another number of images than cells, or a grid without cells.

    Example:
        >>> make_mosaic(torch.arange(4.0).view(4, 1, 1, 1))
        tensor([[[[0., 1.],
                  [2., 3.]]]])
    """
    rows, columns = _grid(grid)
    if images.dim() != 4 or len(images) != rows * columns:
        raise ValueError(f"images must be ({rows * columns}, C, H, W) for this grid, got {tuple(images.shape)}")
    height, width = size or (rows * images.shape[2], columns * images.shape[3])
    lines = []
    for row, line in enumerate(images.split(columns)):
        sizes = [(_extent(row, height, rows), _extent(column, width, columns)) for column in range(columns)]
        lines.append(torch.cat([_resized(image, cell) for image, cell in zip(line, sizes, strict=True)], 2))
    return torch.cat(lines, 1)[None]


def mosaic_energy(maps: Tensor, cells: Tensor, size: Size, grid: Grid = 2, energy: Energy = "positive") -> Tensor:
    """The share of the energy of the map in the cell of the support; chance is 1 / (number of cells).

    Args:
        maps: maps of mosaics, ``(B, 1, h, w)`` or ``(B, h, w)``; interpolated to ``size`` here.
        cells: index in raster order of the cell that shows the class of the support, integers ``(B,)``.
        size: height and width of the mosaic, in pixels.
        grid: k for k x k cells, or the numbers of rows and columns. Default: 2.
        energy: ``"positive"`` for the positive part of the map, or ``"minmax"``; see :func:`normalize_maps`. Default:
            ``"positive"``.

    Returns:
        ``(B,)`` in [0, 1]; NaN for a map without energy and for a map with NaN or inf.

    Raises:
        ValueError: for maps or cells of another shape, a cell outside the grid, or an unknown energy.

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
    by: By = "energy",
    energy: Energy = "positive",
) -> Tensor:
    """1 if the cell of the support has the most energy, or the highest pixel, of all cells, and 0 otherwise.

    If n cells share the first place, a cell of the support among them gives 1 / n, the mean of a random choice.

    Args:
        maps: maps of mosaics, ``(B, 1, h, w)`` or ``(B, h, w)``; interpolated to ``size`` here.
        cells: index in raster order of the cell that shows the class of the support, integers ``(B,)``.
        size: height and width of the mosaic, in pixels.
        grid: k for k x k cells, or the numbers of rows and columns. Default: 2.
        by: ``"energy"`` for the sum over the cell, or ``"peak"`` for the highest pixel. Default: ``"energy"``.
        energy: as in :func:`mosaic_energy`. Default: ``"positive"``.

    Returns:
        ``(B,)`` in [0, 1]; NaN for a map without energy and for a map with NaN or inf.

    Raises:
        ValueError: for maps or cells of another shape, a cell outside the grid, or an unknown ``by`` or ``energy``.

    Example:
        >>> mosaic_hit(torch.tensor([[[1.0, 3.0], [0.0, -2.0]]]), torch.tensor([1]), size=(2, 2))
        tensor([1.])
    """
    if by not in ("energy", "peak"):
        raise ValueError(f'by must be "energy" or "peak", got {by!r}')
    rows, columns = _grid(grid)
    target = cell_mask(cells, size, grid).to(maps.device)
    if len(target) != len(maps):
        raise ValueError(f"cells has {len(target)} entries for {len(maps)} maps; pass one cell per map")
    normalized = normalize_maps(maps, size, energy)
    row = _cell_index(size[0], rows, maps.device)
    column = _cell_index(size[1], columns, maps.device)
    # The cell of every pixel, by which the pixels of each map are summed or maximized per cell.
    index = (row[:, None] * columns + column).flatten().expand(len(maps), -1)
    levels = normalized.new_zeros(len(maps), rows * columns)
    levels.scatter_reduce_(1, index, normalized.flatten(1), "sum" if by == "energy" else "amax")
    winners = levels == levels.amax(1, keepdim=True)
    hit = winners.gather(1, cells.to(maps.device)[:, None])[:, 0].to(normalized) / winners.sum(1)
    return hit.masked_fill(find_nan(maps) | (levels <= 0).all(1), torch.nan)


def mosaic_auroc(maps: Tensor, cells: Tensor, size: Size, grid: Grid = 2) -> Tensor:
    """:func:`region_auroc` of the cell of the support: how often a pixel inside is higher than a pixel outside.

    Args:
        maps: maps of mosaics, ``(B, 1, h, w)`` or ``(B, h, w)``; interpolated to ``size`` here.
        cells: index in raster order of the cell that shows the class of the support, integers ``(B,)``.
        size: height and width of the mosaic, in pixels.
        grid: k for k x k cells, or the numbers of rows and columns. Default: 2.

    Returns:
        ``(B,)`` in [0, 1]; chance is 0.5. 0.5 for a flat map, NaN for a map with NaN or inf.

    Raises:
        ValueError: for maps or cells of another shape, or a cell outside the grid.

    Example:
        >>> mosaic_auroc(torch.tensor([[[1.0, 3.0], [0.0, -2.0]]]), torch.tensor([0]), size=(2, 2))
        tensor([0.6667])
    """
    return region_auroc(maps, cell_mask(cells, size, grid))


def _grid(grid: Grid) -> tuple[int, int]:
    rows, columns = (grid, grid) if isinstance(grid, int) else grid
    if rows < 1 or columns < 1:
        raise ValueError(f"grid must be the number of cells per side, or rows and columns, got {grid!r}")
    return rows, columns


def _extent(cell: int, length: int, cells: int) -> int:
    """The pixels of a cell along a side of ``length`` pixels."""
    return (cell + 1) * length // cells - cell * length // cells


def _resized(image: Tensor, size: Size) -> Tensor:
    if image.shape[1:] == size:
        return image
    return torch.nn.functional.interpolate(image[None], size, mode="bilinear", antialias=True)[0]


def _cell_index(length: int, cells: int, device: torch.device) -> Tensor:
    """The cell of each pixel along a side of ``length`` pixels, int64 ``(length,)``."""
    ends = torch.tensor([(cell + 1) * length // cells for cell in range(cells)], device=device)
    return torch.searchsorted(ends, torch.arange(length, device=device), right=True)
