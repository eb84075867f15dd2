"""The position in the image of every element of a tensor.

A bias behind the layer acts at the positions of the output that the bias is added to. To add the share of the bias to
the map, the position of every element of that output must be known, through windows, heads, rolls and permutations.
Therefore an index tensor of the same shape is kept for each tensor from the explained layer to the embedding
(:mod:`captum_fam.attr.way_back.tracker`).

A *slot* is a place for a share of the score: one of four parts without a position, or one of the h * w positions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

NOWHERE, CLASS_TOKEN, REGISTERS, OTHER_PATHS, FIRST_POSITION = range(5)
"""The slots of a sample: four parts without a position, then the first of the positions."""


@dataclass(frozen=True)
class Where:
    """The slot of every element of a tensor.

    Attributes:
        grid: sizes of the grid of positions, ``(h, w)``.
        index: sample * :attr:`stride` + slot for every element, int32, with the shape of the tensor. Dimensions along
            which the slot is constant, such as channels, are usually expanded, so that they take no memory.
        is_placed: whether elements have positions. False: only the sample is known. Default: True.
    """

    grid: tuple[int, ...]
    index: Tensor
    is_placed: bool = True

    @property
    def stride(self) -> int:
        """Number of slots per sample."""
        return FIRST_POSITION + math.prod(self.grid)

    def compacted(self, index: Tensor) -> Where:
        """The same grid for another tensor, as :meth:`at`, with a constant last dimension stored only once."""
        if index.dim() and index.shape[-1] > 1 and index.is_contiguous() and is_constant(index, -1):
            index = index[..., :1].clone().expand_as(index)
        return self.at(index)

    def at(self, index: Tensor) -> Where:
        """The same grid for another tensor with this index."""
        is_placed = self.is_placed
        if is_placed and index.numel() < self.index.numel():  # a selection may be the class token alone
            is_placed = bool((_compact(index) % self.stride >= FIRST_POSITION).any())
        return Where(self.grid, index, is_placed)

    def without_positions(self, grid: tuple[int, ...]) -> Where:
        """The same slots on another grid, for elements without positions."""
        index = _compact(self.index)
        sample = index.div(self.stride, rounding_mode="floor")
        moved = sample * (FIRST_POSITION + math.prod(grid)) + index % self.stride
        return Where(grid, moved.expand(self.index.shape), False)

    def special(self, slot: int) -> Tensor:
        """The index with all elements of each sample in one slot, a slot without a position."""
        index = _compact(self.index).div(self.stride, rounding_mode="floor") * self.stride + slot
        return index.expand(self.index.shape)


def _compact(index: Tensor, but: int | None = None) -> Tensor:
    """The index with all expanded dimensions, or all but one, reduced to the size 1."""
    for dim in range(index.dim()):
        if dim != but and index.stride(dim) == 0 and index.shape[dim] > 1:
            index = index.narrow(dim, 0, 1)
    return index


def grid_positions(shape: Sequence[int], device: torch.device) -> Where:
    """The positions of a channels-first tensor: element [b, :, y, x] has the position y * w + x.

    Args:
        shape: ``(B, N, *spatial)``.
        device: the device of the tensor.

    Example:
        >>> grid_positions((1, 8, 2, 2), torch.device("cpu")).index[0, 0] - FIRST_POSITION
        tensor([[0, 1],
                [2, 3]], dtype=torch.int32)
    """
    grid = tuple(shape[2:])
    stride = FIRST_POSITION + math.prod(grid)
    samples = torch.arange(shape[0], dtype=torch.int32, device=device) * stride
    positions = torch.arange(math.prod(grid), dtype=torch.int32, device=device).view(grid) + FIRST_POSITION
    index = samples.view(-1, 1, *[1] * len(grid)) + positions
    return Where(grid, index.expand(*shape))


def token_positions(shape: Sequence[int], laid_out: Callable[[Tensor], Tensor], device: torch.device) -> Where:
    """The positions of a tensor that a token grid rearranges into ``(B, N, *spatial)``.

    Of the tokens that the grid leaves out, the first is the class token and the others are registers. Where the grid
    has an attribute ``registers`` that is not None, the last ``registers`` tokens are registers and the others are
    class tokens.

    Args:
        shape: the shape of the tensor, as the layer gives it.
        laid_out: the token grid, a function that selects and rearranges elements.
        device: the device of the tensor.

    Example:
        >>> where = token_positions((1, 5, 8), TokenGrid(), torch.device("cpu"))  # a class token and 2 x 2 patches
        >>> where.index[0, :, 0] - FIRST_POSITION  # the class token is in slot 1
        tensor([-3,  0,  1,  2,  3], dtype=torch.int32)
    """
    # Applied to element numbers, the grid shows which elements it takes and where they go.
    elements = torch.arange(math.prod(shape), device=device).view(*shape)
    chosen = laid_out(elements)
    where = grid_positions(chosen.shape, device)
    stride = where.stride
    # Elements that the grid leaves out have no sample yet. The batch dimension is the dimension whose rows hold chosen
    # elements of one sample only; an element that is left out belongs to the sample of its row.
    sample_of = torch.full((math.prod(shape),), -1, dtype=torch.int32, device=device)
    sample_of[chosen.flatten()] = where.index.div(stride, rounding_mode="floor").flatten()
    index = torch.full((math.prod(shape),), NOWHERE, dtype=torch.int32, device=device)
    index[chosen.flatten()] = where.index.flatten()
    index, sample_of = index.view(*shape), sample_of.view(*shape)
    left_out = sample_of < 0
    if left_out.any():
        batch = next(dim for dim in range(len(shape)) if shape[dim] == len(chosen) and not _mixes(sample_of, dim))
        samples = sample_of.movedim(batch, 0).flatten(1).amax(1).view(-1, *[1] * (len(shape) - 1)).movedim(0, batch)
        tokens = left_out.movedim(batch, 0)[0].movedim(-1, 0)[0]  # without batch and channels
        # Numbers of the tokens that are left out, from 1: first the class token, then registers.
        order = tokens.flatten().cumsum(0).view_as(tokens).unsqueeze(-1).unsqueeze(batch)
        registers = getattr(laid_out, "registers", None)
        first_register = 2 if registers is None else int(tokens.sum()) - registers + 1
        slots = torch.where(order < first_register, CLASS_TOKEN, REGISTERS)
        index = torch.where(left_out, samples * stride + slots, index).to(torch.int32)
    return where.compacted(index)


def _mixes(sample_of: Tensor, dim: int) -> bool:
    """Whether rows along ``dim`` hold elements of several samples."""
    rows = sample_of.movedim(dim, 0).flatten(1)
    is_known = rows >= 0
    lowest = torch.where(is_known, rows, rows.amax()).amin(1)
    highest = torch.where(is_known, rows, -1).amax(1)
    return bool((is_known.any(1) & (highest != lowest)).any())


def is_constant(index: Tensor, dim: int) -> bool:
    """Whether the slot is constant along a dimension, as along the channels."""
    if index.stride(dim) == 0 or index.shape[dim] == 1:
        return True
    compact = _compact(index)
    return bool((compact == compact.narrow(dim, 0, 1)).all())


def merge_cells(where: Where, axis: int) -> Where | None:
    """The positions on a coarser grid whose cells hold all positions along ``axis``: patch merging, pooling of tokens.

    Args:
        where: positions that differ along ``axis``, such as those of the four neighbors that Swin joins to one token.
        axis: the dimension that the next function mixes.

    Returns:
        The positions on the coarser grid, for a tensor of the same shape; None where no whole factor gives such a grid.
    """
    axis %= where.index.dim()
    index = _compact(where.index, but=axis)
    rows = index.numel() // index.shape[axis]
    samples = int(index.max()) // where.stride + 1
    for factor in range(2, max(where.grid, default=1) + 1):
        grid = tuple(math.ceil(size / factor) for size in where.grid)
        if math.prod(grid) * samples != rows or math.prod(grid) == 1:
            continue
        # (y, x) -> (y // factor, x // factor) -> number of the coarse cell. x and y come from the number of the fine
        # position by repeated division, the last axis first.
        slots = index % where.stride
        cells, remaining, unit = torch.zeros_like(slots), slots - FIRST_POSITION, 1
        for size, coarse_size in zip(reversed(where.grid), reversed(grid), strict=True):
            cells = cells + (remaining % size).div(factor, rounding_mode="floor") * unit
            remaining, unit = remaining.div(size, rounding_mode="floor"), unit * coarse_size
        sample = index.div(where.stride, rounding_mode="floor")
        slots = torch.where(slots >= FIRST_POSITION, cells + FIRST_POSITION, slots)
        coarse_index = sample * (FIRST_POSITION + math.prod(grid)) + slots
        return Where(grid, coarse_index.expand(where.index.shape)) if is_constant(coarse_index, axis) else None
    return None
