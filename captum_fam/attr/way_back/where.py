"""Where the elements of a tensor stand in the image.

A bias behind the layer acts at the positions of its own output. To lay its share on the map, every element of that
output has to be told its position, through windows, heads, rolls and permutations. So an index tensor of the same shape
travels beside each tensor, from the explained layer to the embedding: :mod:`captum_fam.attr.way_back.tracker`.

A *slot* is where a share of the score can go: one of four parts without a position, or one of the h * w positions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

NOWHERE, CLASS_TOKEN, REGISTERS, OTHER_PATHS, FIRST_POSITION = range(5)
"""Slots of a sample: four parts that stand at no position, then the first of its positions."""


@dataclass(frozen=True)
class Where:
    """The slot of every element of a tensor.

    Attributes:
        grid: sizes of the grid of positions, ``(h, w)``.
        index: sample * :attr:`stride` + slot, of the tensor's own shape, int32. Dimensions along which the slot is
            the same, such as channels, are usually expanded and take no memory.
        is_placed: whether elements have positions; False: only the sample is known.
    """

    grid: tuple[int, ...]
    index: Tensor
    is_placed: bool = True

    @property
    def stride(self) -> int:
        """Slots per sample."""
        return FIRST_POSITION + math.prod(self.grid)

    def compacted(self, index: Tensor) -> Where:
        """As :meth:`at`; a slot that all channels of the last dimension share is stored once."""
        if index.dim() and index.shape[-1] > 1 and index.is_contiguous() and is_constant(index, -1):
            index = index[..., :1].clone().expand_as(index)
        return self.at(index)

    def at(self, index: Tensor) -> Where:
        """The same grid for another tensor, whose slots are these."""
        placed = self.is_placed
        if placed and index.numel() < self.index.numel():  # what was selected may be a class token
            placed = bool((_compact(index) % self.stride >= FIRST_POSITION).any())
        return Where(self.grid, index, placed)

    def without_positions(self, grid: tuple[int, ...]) -> Where:
        """The same slots as those of another grid, for elements that have no positions."""
        index = _compact(self.index)
        sample = index.div(self.stride, rounding_mode="floor")
        moved = sample * (FIRST_POSITION + math.prod(grid)) + index % self.stride
        return Where(grid, moved.expand(self.index.shape), False)

    def special(self, slot: int) -> Tensor:
        """The index with all elements of each sample in one of the slots before the positions."""
        index = _compact(self.index).div(self.stride, rounding_mode="floor") * self.stride + slot
        return index.expand(self.index.shape)


def _compact(index: Tensor, but: int | None = None) -> Tensor:
    """The same slots without the dimensions that are only expanded, all of them or all but one."""
    for dim in range(index.dim()):
        if dim != but and index.stride(dim) == 0 and index.shape[dim] > 1:
            index = index.narrow(dim, 0, 1)
    return index


def grid_positions(shape: Sequence[int], device: torch.device) -> Where:
    """The positions of a channels-first tensor ``(B, N, *spatial)``: element [b, :, y, x] has position y * w + x.

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
    """The positions of a tensor that ``laid_out`` rearranges into ``(B, N, *spatial)``.

    Of the tokens that it leaves out the first is called the class token, the others registers; or the last
    ``laid_out.registers`` of them are, where that is given.
    """
    # The grid is any function that selects and rearranges. Element numbers show what it takes, and where that goes.
    elements = torch.arange(math.prod(shape), device=device).view(*shape)
    chosen = laid_out(elements)
    where = grid_positions(chosen.shape, device)
    stride = where.stride
    # Elements that are left out have no sample yet. Each shares a row with elements of its sample that are not left
    # out; the batch dimension is the one whose rows hold elements of one sample only.
    sample_of = torch.full((math.prod(shape),), -1, dtype=torch.int32, device=device)
    sample_of[chosen.flatten()] = where.index.div(stride, rounding_mode="floor").flatten()
    index = torch.full((math.prod(shape),), NOWHERE, dtype=torch.int32, device=device)
    index[chosen.flatten()] = where.index.flatten()
    index, sample_of = index.view(*shape), sample_of.view(*shape)
    left_out = sample_of < 0
    if left_out.any():
        batch = next(d for d in range(len(shape)) if shape[d] == len(chosen) and not _mixes(sample_of, d))
        samples = sample_of.movedim(batch, 0).flatten(1).amax(1).view(-1, *[1] * (len(shape) - 1)).movedim(0, batch)
        tokens = left_out.movedim(batch, 0)[0].movedim(-1, 0)[0]  # without batch and channels
        # The tokens that are left out are numbered from 1; the class token comes first, registers follow.
        order = tokens.flatten().cumsum(0).view_as(tokens).unsqueeze(-1).unsqueeze(batch)
        registers = getattr(laid_out, "registers", None)
        first_register = 2 if registers is None else int(tokens.sum()) - registers + 1
        slots = torch.where(order < first_register, CLASS_TOKEN, REGISTERS)
        index = torch.where(left_out, samples * stride + slots, index).to(torch.int32)
    return where.compacted(index)


def _mixes(sample_of: Tensor, dim: int) -> bool:
    """Whether rows along ``dim`` hold elements of several samples."""
    rows = sample_of.movedim(dim, 0).flatten(1)
    known = rows >= 0
    low = torch.where(known, rows, rows.amax()).amin(1)
    return bool((known.any(1) & (torch.where(known, rows, -1).amax(1) != low)).any())


def is_constant(index: Tensor, dim: int) -> bool:
    """Whether elements along this dimension stand at the same position, as channels do."""
    if index.stride(dim) == 0 or index.shape[dim] == 1:
        return True
    compact = _compact(index)
    return bool((compact == compact.narrow(dim, 0, 1)).all())


def merge_cells(where: Where, axis: int) -> Where | None:
    """A coarser grid, where all positions along ``axis`` lie in one of its cells: patch merging, pooling of tokens.

    Args:
        where: positions that differ along ``axis``, such as those of four neighbors that Swin joins to one token.
        axis: the dimension that a function is about to mix.

    Returns:
        The positions on the coarser grid, of the same shape; None where no whole factor gives such a grid.
    """
    axis %= where.index.dim()
    index = _compact(where.index, but=axis)
    rows = index.numel() // index.shape[axis]
    samples = int(index.max()) // where.stride + 1
    for factor in range(2, max(where.grid, default=1) + 1):
        grid = tuple(math.ceil(size / factor) for size in where.grid)
        if math.prod(grid) * samples != rows or math.prod(grid) == 1:
            continue
        # From the fine position, last axis first: (y, x) -> (y // factor, x // factor) -> number of the coarse cell.
        slots = index % where.stride
        cells, left, unit = torch.zeros_like(slots), slots - FIRST_POSITION, 1
        for size, coarse in zip(reversed(where.grid), reversed(grid), strict=True):
            cells = cells + (left % size).div(factor, rounding_mode="floor") * unit
            left, unit = left.div(size, rounding_mode="floor"), unit * coarse
        sample = index.div(where.stride, rounding_mode="floor")
        slots = torch.where(slots >= FIRST_POSITION, cells + FIRST_POSITION, slots)
        coarse_index = sample * (FIRST_POSITION + math.prod(grid)) + slots
        return Where(grid, coarse_index.expand(where.index.shape)) if is_constant(coarse_index, axis) else None
    return None
