"""Positions are followed through the functions of torch, from the explained layer to the embedding.

Rearrangements are done to the tensor of positions as they were done to the tensor itself; of all other functions it is
said here what becomes of the positions. Where a function is not known, positions are given up and not guessed: the
share of what is added from there on is a part beside the map, ``"bias"``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from captum_fam.attr.way_back.where import NOWHERE, Where, grid_positions, is_constant, merge_cells

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
        # The table of what becomes of positions: moved with the elements, joined, or kept by the kind of function.
        if name in _REARRANGING or name == "pad":
            found = self._rearranged(name, function, args, kwargs)
        elif name in _JOINING:
            found = [self._joined(name, args, kwargs)]
        else:
            found = [self._computed(name, args, kwargs, one) if isinstance(one, Tensor) else None for one in results]
        # An index whose shape is not that of its tensor would put shares on wrong positions: better none.
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
            moved = moved.to(torch.int32)  # exact: a double holds all of them
        return [where.compacted(index) for index in (moved if isinstance(moved, tuple | list) else [moved])]

    @staticmethod
    def _padded(where: Where, widths: Sequence[int]) -> Where:
        """A border is empty; what is added to it later, as by the bias of a window, lies on the nearest position."""
        index = where.index
        for axis, (before, after) in enumerate(zip(widths[::2], widths[1::2], strict=True), start=1):
            size = index.shape[-axis]
            nearest = torch.arange(-before, size + after, device=index.device).clamp(0, size - 1)
            index = index.index_select(-axis, nearest) if before or after else index
        return where.compacted(index)

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
                where = where.without_positions(known.grid)  # a class token beside patches that were pooled
            if where is not None and where.grid == known.grid:
                parts.append(where.index)
            elif where is None and not tensor.requires_grad and name != "stack":
                # A constant between tokens of the layer: the class token or registers, by the name of the parameter.
                model = known.index.narrow(dim, 0, 1)
                if not is_constant(known.index, dim):
                    model = Where(known.grid, model).special(self.slot_of_constant(tensor))
                parts.append(model.expand(*tensor.shape) if model.dim() == tensor.dim() else model)
            else:
                return None
        index = torch.stack(parts, dim) if name == "stack" else torch.cat(parts, dim)
        return known.compacted(index)

    def _computed(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], result: Tensor) -> Where | None:
        """The positions; else the samples; else nothing."""
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
        # All other functions are taken for elementwise, where the shapes allow it.
        for tensor in self._tensors(args, kwargs):
            where = self.where_of(tensor)
            if where is not None and where.index.dim() <= result.dim():
                try:
                    return where.at(where.index.expand(*result.shape))
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
                if index.shape[dim] != size and is_constant(index, dim):
                    index = index.narrow(dim, 0, 1)
            if all(own in (1, size) for own, size in zip(index.shape, result.shape, strict=True)):
                return Where(where.grid, index.expand(*result.shape), False)
        return None

    @staticmethod
    def _tensors(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
        """Tensors of the layer, the largest first: smaller ones are broadcast to it and know less of the positions."""
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor) and value.requires_grad]
        return sorted(tensors, key=lambda tensor: -tensor.numel())

    def _mixed(self, x: object, channels: int, result: Tensor) -> Where | None:
        """A function of the channels alone: positions stay."""
        where = self.where_of(x)
        if where is None:
            return None
        if is_constant(where.index, channels):
            index = where.index.narrow(channels, 0, 1)
            sizes = list(result.shape)
            return where.at(index.expand(*sizes)) if index.dim() == result.dim() else None
        if where.index.shape == result.shape:
            return where  # positions are mixed; as there are as many as before, they are taken for the same
        coarse = merge_cells(where, channels)
        if coarse is None or coarse.index.dim() != result.dim():
            return None
        return Where(coarse.grid, coarse.index.narrow(channels, 0, 1).expand(*result.shape))

    def _multiplied(self, first: object, second: object, result: Tensor) -> Where | None:
        """A matrix product: rows of the first factor, or columns of the second, whichever are positions that stay.

        In ``attention weights @ values`` the weights have the positions of the queries as rows; values have theirs in
        the dimension that is summed over.
        """
        for tensor, contracted in ((first, -1), (second, -2)):
            where = self.where_of(tensor)
            if where is None or not where.is_placed or where.index.dim() < 2:
                continue
            if is_constant(where.index, contracted):
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
            if where is None or not where.is_placed or not all(is_constant(where.index, axis) for axis in summed):
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
        if where.index.shape[2:] == result.shape[2:] and is_constant(where.index, 1):
            return where.at(where.index.narrow(1, 0, 1).expand(*result.shape))
        if len(result) == self.samples and result.dim() - 2 == len(where.grid):
            return grid_positions(result.shape, result.device)
        return None

    def _reduced(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Where | None:
        """A sum, mean or maximum: over channels positions stay, over neighbors they merge, over the image they end."""
        where = self.where_of(args[0])
        dims = args[1] if len(args) > 1 else kwargs.get("dim", kwargs.get("axis"))
        if where is None or dims is None:
            return None
        keep = args[2] if len(args) > 2 else kwargs.get("keepdim", False)
        dims = (dims,) if isinstance(dims, int) else tuple(dims)
        if not all(is_constant(where.index, dim) for dim in dims):
            coarse = merge_cells(where, dims[0]) if len(dims) == 1 else None
            where = coarse or Where(where.grid, where.special(NOWHERE), False)
        if not all(is_constant(where.index, dim) for dim in dims):
            return None
        return where.at(where.index.amin(dims, keepdim=bool(keep)))
