"""Where the elements of a tensor stand in the image, followed from the explained layer to the embedding.

A bias behind the layer acts at the positions of its own output. To lay its share on the map, every element of that
output has to be told its position, through windows, heads, rolls and permutations. So an index tensor of the same shape
travels beside each tensor: rearrangements are done to both, and other functions say what becomes of the positions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

NOWHERE, CLASS_TOKEN, REGISTERS, OTHER_PATHS, FIRST_POSITION = range(5)
"""Slots of a sample before those of its positions."""


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

    def within(self, index: Tensor) -> Where:
        """The same grid for another tensor; channels in the last dimension are made to take no memory."""
        if index.dim() and index.shape[-1] > 1 and index.is_contiguous() and _is_constant(index, -1):
            index = index[..., :1].clone().expand_as(index)
        return self.of(index)

    def of(self, index: Tensor) -> Where:
        """The same for another tensor."""
        placed = self.is_placed
        if placed and index.numel() < self.index.numel():  # what was selected may be a class token
            placed = bool((_compact(index) % self.stride >= FIRST_POSITION).any())
        return Where(self.grid, index, placed)

    def on(self, grid: tuple[int, ...]) -> Where:
        """Elements without positions, as those of another grid."""
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


def of_grid(shape: Sequence[int], device: torch.device) -> Where:
    """The positions of a channels-first tensor ``(B, N, *spatial)``."""
    grid = tuple(shape[2:])
    stride = FIRST_POSITION + math.prod(grid)
    samples = torch.arange(shape[0], dtype=torch.int32, device=device) * stride
    positions = torch.arange(math.prod(grid), dtype=torch.int32, device=device).view(grid) + FIRST_POSITION
    index = samples.view(-1, 1, *[1] * len(grid)) + positions
    return Where(grid, index.expand(*shape))


def of_tokens(shape: Sequence[int], laid_out: Callable[[Tensor], Tensor], device: torch.device) -> Where:
    """The positions of a tensor that ``laid_out`` rearranges into ``(B, N, *spatial)``.

    Of the tokens that it leaves out the first is called the class token, the others registers; or the last
    ``laid_out.registers`` of them are, where that is given.
    """
    elements = torch.arange(math.prod(shape), device=device).view(*shape)
    chosen = laid_out(elements)
    where = of_grid(chosen.shape, device)
    stride = where.stride
    # Elements of a sample that are left out share its rows with elements that are not: the batch dimension is theirs.
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
        order = tokens.flatten().cumsum(0).view_as(tokens).unsqueeze(-1).unsqueeze(batch)
        registers = getattr(laid_out, "registers", None)
        first_register = 2 if registers is None else int(tokens.sum()) - registers + 1
        slots = torch.where(order < first_register, CLASS_TOKEN, REGISTERS)
        index = torch.where(left_out, samples * stride + slots, index).to(torch.int32)
    return where.within(index)


def _mixes(sample_of: Tensor, dim: int) -> bool:
    """Whether rows along ``dim`` hold elements of several samples."""
    rows = sample_of.movedim(dim, 0).flatten(1)
    known = rows >= 0
    low = torch.where(known, rows, rows.amax()).amin(1)
    return bool((known.any(1) & (torch.where(known, rows, -1).amax(1) != low)).any())


def _is_constant(index: Tensor, dim: int) -> bool:
    if index.stride(dim) == 0 or index.shape[dim] == 1:
        return True
    compact = _compact(index)
    return bool((compact == compact.narrow(dim, 0, 1)).all())


def _merged(where: Where, axis: int) -> Where | None:
    """A coarser grid, where all positions along ``axis`` lie in one of its cells: patch merging, pooling of tokens."""
    axis %= where.index.dim()
    index = _compact(where.index, but=axis)
    rows = index.numel() // index.shape[axis]
    samples = int(index.max()) // where.stride + 1
    for factor in range(2, max(where.grid, default=1) + 1):
        grid = tuple(math.ceil(size / factor) for size in where.grid)
        if math.prod(grid) * samples != rows or math.prod(grid) == 1:
            continue
        slots = index % where.stride
        cells, left, unit = torch.zeros_like(slots), slots - FIRST_POSITION, 1
        for size, coarse in zip(reversed(where.grid), reversed(grid), strict=True):
            cells = cells + (left % size).div(factor, rounding_mode="floor") * unit
            left, unit = left.div(size, rounding_mode="floor"), unit * coarse
        sample = index.div(where.stride, rounding_mode="floor")
        slots = torch.where(slots >= FIRST_POSITION, cells + FIRST_POSITION, slots)
        merged = sample * (FIRST_POSITION + math.prod(grid)) + slots
        return Where(grid, merged.expand(where.index.shape)) if _is_constant(merged, axis) else None
    return None


_REARRANGING = frozenset(
    "view reshape permute transpose swapaxes swapdims movedim moveaxis flatten unflatten squeeze unsqueeze expand "
    "expand_as view_as reshape_as roll narrow select __getitem__ chunk split split_with_sizes tensor_split unbind "
    "flip fliplr rot90 t repeat repeat_interleave tile index_select gather take_along_dim pixel_shuffle "
    "pixel_unshuffle channel_shuffle unfold adjoint hsplit vsplit dsplit __get__ unsafe_chunk unsafe_split".split()
)
_JOINING = frozenset("cat concat concatenate stack".split())
_PRODUCTS = frozenset("matmul bmm mm mv baddbmm addmm".split())
_REDUCING = frozenset("mean sum amax amin nanmean nansum logsumexp".split())


def is_rearranging(name: str) -> bool:
    """Whether the function of torch by that name only moves or joins elements."""
    return name in _REARRANGING or name in _JOINING


def _is_spatial(name: str) -> bool:
    return name.startswith(("conv", "upsample", "grid_sampl", "max_pool", "avg_pool", "adaptive", "lp_pool")) or (
        name in ("interpolate", "fractional_max_pool2d", "fractional_max_pool3d", "max_unpool2d")
    )


@dataclass(frozen=True)
class Tracker:
    """Follows positions through the functions of torch.

    Attributes:
        samples: size of the batch.
        where_of: the positions of a tensor, as far as they are known.
        slot_of_constant: the slot for rows of a constant that is joined to the tokens.
    """

    samples: int
    where_of: Callable[[object], Where | None]
    slot_of_constant: Callable[[Tensor], int]

    def follow(
        self, name: str, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
    ) -> list[Where | None]:
        """The positions of each tensor of the result (one, or a tuple or list of several)."""
        results = list(result) if isinstance(result, tuple | list) else [result]
        if name in _REARRANGING or name == "pad":
            found = self._rearranged(name, function, args, kwargs)
        elif name in _JOINING:
            found = [self._joined(name, args, kwargs)]
        else:
            found = [self._computed(name, args, kwargs, one) if isinstance(one, Tensor) else None for one in results]
        found = found if len(found) == len(results) else [None] * len(results)
        return [
            where if where is None or (isinstance(one, Tensor) and where.index.shape == one.shape) else None
            for where, one in zip(found, results, strict=True)
        ]

    def _rearranged(
        self, name: str, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> list[Where | None]:
        where = self.where_of(args[0])
        if where is None:
            return [None]
        if name == "pad":
            return [self._padded(where, args[1] if len(args) > 1 else kwargs["pad"])]
        if name in ("view", "view_as"):
            if len(args) > 1 and isinstance(args[1], torch.dtype):
                return [None]
            # The index is expanded, which a view may not be able to follow.
            function = Tensor.reshape if name == "view" else Tensor.reshape_as
        # The unfolding of convolutions has no kernel for integers.
        index = where.index.double() if name == "unfold" else where.index
        moved = function(index, *args[1:], **kwargs)
        if name == "unfold":
            moved = moved.to(torch.int32)
        return [where.within(index) for index in (moved if isinstance(moved, tuple | list) else [moved])]

    @staticmethod
    def _padded(where: Where, widths: Sequence[int]) -> Where:
        """A border is empty; what is added to it later, as by the bias of a window, lies on the nearest position."""
        index = where.index
        for axis, (before, after) in enumerate(zip(widths[::2], widths[1::2], strict=True), start=1):
            size = index.shape[-axis]
            nearest = torch.arange(-before, size + after, device=index.device).clamp(0, size - 1)
            index = index.index_select(-axis, nearest) if before or after else index
        return where.within(index)

    def _joined(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Where | None:
        tensors: Sequence[Tensor] = args[0]
        dim = args[1] if len(args) > 1 else kwargs.get("dim", 0)
        wheres = [self.where_of(tensor) for tensor in tensors]
        # A part may be empty, such as the tokens before the first.
        placed = (where for where, tensor in zip(wheres, tensors, strict=True) if where is not None and tensor.numel())
        known = next((where for where in placed if where.is_placed), None)
        if known is None:
            return None
        parts = []
        for tensor, where in zip(tensors, wheres, strict=True):
            if where is not None and where.grid != known.grid and not where.is_placed:
                where = where.on(known.grid)  # a class token beside patches that were pooled
            if where is not None and where.grid == known.grid:
                parts.append(where.index)
            elif where is None and not tensor.requires_grad and name != "stack":
                model = known.index.narrow(dim, 0, 1)
                if not _is_constant(known.index, dim):
                    model = Where(known.grid, model).special(self.slot_of_constant(tensor))
                parts.append(model.expand(*tensor.shape) if model.dim() == tensor.dim() else model)
            else:
                return None
        index = torch.stack(parts, dim) if name == "stack" else torch.cat(parts, dim)
        return known.within(index)

    def _computed(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], result: Tensor) -> Where | None:
        if result.dim() == 0 or (result.dim() < 3 and len(result) == self.samples):
            return None  # a vector per sample: behind the pooling
        return self._placed(name, args, kwargs, result) or self._sample_of(args, kwargs, result)

    def _placed(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], result: Tensor) -> Where | None:
        if name == "linear":
            return self._mixed(args[0], -1, result)
        if name == "scaled_dot_product_attention":
            query = args[0] if args else kwargs.get("query")
            return self._mixed(query, -1, result)
        if name == "einsum":
            return self._summed(args, result)
        if name in _PRODUCTS:
            first, second = args[-2:]
            return self._multiplied(first, second, result)
        if _is_spatial(name):
            return self._resampled(args[0], result)
        if name in _REDUCING:
            return self._reduced(args, kwargs)
        for tensor in self._tensors(args, kwargs):
            where = self.where_of(tensor)
            if where is not None and where.index.dim() <= result.dim():
                try:
                    return where.of(where.index.expand(*result.shape))
                except RuntimeError:  # the shapes do not go together
                    continue
        return None

    def _sample_of(self, args: tuple[Any, ...], kwargs: dict[str, Any], result: Tensor) -> Where | None:
        """No position, but the sample, which a constant is added to all the same."""
        for tensor in self._tensors(args, kwargs):
            where = self.where_of(tensor)
            if where is None or where.index.dim() != result.dim():
                continue
            index = where.special(NOWHERE)
            for dim, size in enumerate(result.shape):
                if index.shape[dim] != size and _is_constant(index, dim):
                    index = index.narrow(dim, 0, 1)
            if all(own in (1, size) for own, size in zip(index.shape, result.shape, strict=True)):
                return Where(where.grid, index.expand(*result.shape), False)
        return None

    @staticmethod
    def _tensors(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor) and value.requires_grad]
        return sorted(tensors, key=lambda tensor: -tensor.numel())

    def _mixed(self, x: object, channels: int, result: Tensor) -> Where | None:
        """A function of the channels alone: positions stay."""
        where = self.where_of(x)
        if where is None:
            return None
        if _is_constant(where.index, channels):
            index = where.index.narrow(channels, 0, 1)
            sizes = list(result.shape)
            return where.of(index.expand(*sizes)) if index.dim() == result.dim() else None
        if where.index.shape == result.shape:
            return where  # positions are mixed; as there are as many as before, they are taken for the same
        merged = _merged(where, channels)
        if merged is None or merged.index.dim() != result.dim():
            return None
        return Where(merged.grid, merged.index.narrow(channels, 0, 1).expand(*result.shape))

    def _multiplied(self, first: object, second: object, result: Tensor) -> Where | None:
        for tensor, contracted in ((first, -1), (second, -2)):
            where = self.where_of(tensor)
            if where is None or not where.is_placed or where.index.dim() < 2:
                continue
            if _is_constant(where.index, contracted):
                index = where.index.narrow(contracted, 0, 1)
                if index.dim() < result.dim():
                    return None
                return Where(where.grid, index.expand(*result.shape))
        return None

    def _summed(self, args: tuple[Any, ...], result: Tensor) -> Where | None:
        """``einsum``: the positions of the first operand that does not sum over them."""
        equation = args[0].replace(" ", "")
        operands: Sequence[Tensor] = args[1] if isinstance(args[1], list | tuple) else args[1:]
        if "->" not in equation or "." in equation:
            return None
        given, kept = equation.split("->")
        for letters, tensor in zip(given.split(","), operands, strict=True):
            where = self.where_of(tensor)
            summed = [axis for axis, letter in enumerate(letters) if letter not in kept]
            if where is None or not where.is_placed or not all(_is_constant(where.index, axis) for axis in summed):
                continue
            index = where.index
            for axis in reversed(summed):
                index = index.select(axis, 0)
            left = [letter for letter in letters if letter in kept]
            index = index.permute([left.index(letter) for letter in kept if letter in left])
            for axis, letter in enumerate(kept):
                index = index if letter in left else index.unsqueeze(axis)
            return Where(where.grid, index.expand(*result.shape))
        return None

    def _resampled(self, x: object, result: Tensor) -> Where | None:
        """A convolution or pooling: the same grid, or a new one over the same image."""
        where = self.where_of(x)
        if where is None or where.index.dim() != result.dim() or math.prod(result.shape[2:]) == 1:
            return None
        if where.index.shape[2:] == result.shape[2:] and _is_constant(where.index, 1):
            return where.of(where.index.narrow(1, 0, 1).expand(*result.shape))
        if len(result) == self.samples and result.dim() - 2 == len(where.grid):
            return of_grid(result.shape, result.device)
        return None

    def _reduced(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Where | None:
        where = self.where_of(args[0])
        dims = args[1] if len(args) > 1 else kwargs.get("dim", kwargs.get("axis"))
        if where is None or dims is None:
            return None
        keep = args[2] if len(args) > 2 else kwargs.get("keepdim", False)
        dims = (dims,) if isinstance(dims, int) else tuple(dims)
        if not all(_is_constant(where.index, dim) for dim in dims):
            merged = _merged(where, dims[0]) if len(dims) == 1 else None
            where = merged or Where(where.grid, where.special(NOWHERE), False)
        if not all(_is_constant(where.index, dim) for dim in dims):
            return None
        return where.of(where.index.amin(dims, keepdim=bool(keep)))
