"""Following positions through the functions of torch, from the explained layer to the embedding.

A function that rearranges a tensor is applied to the index tensor of positions as well. For every other kind of
function, this file says which positions the result has. For an unknown function positions are dropped, not guessed: the
shares of constants that are added behind that function go to the part ``"bias"`` beside the map.
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
    """Whether the function of torch with this name only moves or joins elements.

    Example:
        >>> is_rearranging("permute"), is_rearranging("relu")
        (True, False)
    """
    return name in _REARRANGING or name in _JOINING


def _is_spatial(name: str) -> bool:
    """Whether the function is a convolution, a pooling or an interpolation."""
    return name.startswith(("conv", "upsample", "grid_sampl", "max_pool", "avg_pool", "adaptive", "lp_pool")) or (
        name in ("interpolate", "fractional_max_pool2d", "fractional_max_pool3d", "max_unpool2d")
    )


@dataclass(frozen=True)
class Tracker:
    """Follows positions through the functions of torch.

    Attributes:
        samples: size of the batch, B.
        where_of: a function that gives the positions of a tensor; None where they are not known.
        slot_of_constant: a function that gives the slot of a constant that is joined to the tokens: class token or
            register.
    """

    samples: int
    where_of: Callable[[object], Where | None]
    slot_of_constant: Callable[[Tensor], int]

    def follow(
        self, name: str, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
    ) -> list[Where | None]:
        """The positions of each tensor of a result.

        Args:
            name: plain name of the function, such as ``"add"``.
            function: the function of torch.
            args: positional arguments of the call.
            kwargs: keyword arguments of the call.
            result: a tensor, or a tuple or list of tensors.

        Returns:
            One entry per tensor; None where the positions are not known.
        """
        results = list(result) if isinstance(result, tuple | list) else [result]
        if name in _REARRANGING or name == "pad":
            wheres = self._rearranged(name, function, args, kwargs)
        elif name in _JOINING:
            wheres = [self._joined(name, args, kwargs)]
        else:
            wheres = [
                self._computed(name, args, kwargs, tensor) if isinstance(tensor, Tensor) else None for tensor in results
            ]
        # An index with another shape than its tensor would put shares on wrong positions: no positions then.
        wheres = wheres if len(wheres) == len(results) else [None] * len(results)
        return [
            where if where is None or (isinstance(tensor, Tensor) and where.index.shape == tensor.shape) else None
            for where, tensor in zip(wheres, results, strict=True)
        ]

    def _rearranged(
        self, name: str, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> list[Where | None]:
        """Positions that move with the elements: the function is applied to the index."""
        where = self.where_of(args[0])
        if where is None:
            return [None]
        if name == "pad":
            return [self._padded(where, args[1] if len(args) > 1 else kwargs["pad"])]
        if name in ("view", "view_as"):
            if len(args) > 1 and isinstance(args[1], torch.dtype):
                return [None]
            # The index may be an expanded tensor, for which a view can be impossible. A reshape always works.
            function = Tensor.reshape if name == "view" else Tensor.reshape_as
        # torch.nn.functional.unfold has no kernel for integers.
        index = where.index.double() if name == "unfold" else where.index
        moved = function(index, *args[1:], **kwargs)
        if name == "unfold":
            moved = moved.to(torch.int32)  # exact: float64 holds every int32
        return [where.compacted(index) for index in (moved if isinstance(moved, tuple | list) else [moved])]

    @staticmethod
    def _padded(where: Where, widths: Sequence[int]) -> Where:
        """Positions of a padded tensor: an element of the border gets the position of the nearest inner element.

        The border itself is empty, but a later function can add a constant there, such as the bias of a window.
        """
        index = where.index
        for axis, (before, after) in enumerate(zip(widths[::2], widths[1::2], strict=True), start=1):
            size = index.shape[-axis]
            nearest = torch.arange(-before, size + after, device=index.device).clamp(0, size - 1)
            index = index.index_select(-axis, nearest) if before or after else index
        return where.compacted(index)

    def _joined(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Where | None:
        """Positions of tensors that are joined; constants among them are class tokens or registers."""
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
                # A class token beside patches that were pooled: the patches have a coarser grid by now.
                where = where.without_positions(known.grid)
            if where is not None and where.grid == known.grid:
                parts.append(where.index)
            elif where is None and not tensor.requires_grad and name != "stack":
                # A constant between tokens of the layer: the class token or registers, by the name of the parameter.
                row = known.index.narrow(dim, 0, 1)
                if not is_constant(known.index, dim):
                    row = Where(known.grid, row).special(self.slot_of_constant(tensor))
                parts.append(row.expand(*tensor.shape) if row.dim() == tensor.dim() else row)
            else:
                return None
        index = torch.stack(parts, dim) if name == "stack" else torch.cat(parts, dim)
        return known.compacted(index)

    def _computed(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], result: Tensor) -> Where | None:
        """The positions of a result; without positions its samples; None for a vector per sample."""
        if result.dim() == 0 or (result.dim() < 3 and len(result) == self.samples):
            return None  # a vector per sample: behind the pooling
        return self._placed(name, args, kwargs, result) or self._sample_of(args, kwargs, result)

    def _placed(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], result: Tensor) -> Where | None:
        """The positions of a result, by the kind of function."""
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
        # All other functions count as elementwise where the shapes allow this.
        for tensor in self._tensors(args, kwargs):
            where = self.where_of(tensor)
            if where is not None and where.index.dim() <= result.dim():
                try:
                    return where.at(where.index.expand(*result.shape))
                except RuntimeError:  # the shapes do not broadcast
                    continue
        return None

    def _sample_of(self, args: tuple[Any, ...], kwargs: dict[str, Any], result: Tensor) -> Where | None:
        """No positions, but the sample of every element, so that constants still go to the right sample."""
        for tensor in self._tensors(args, kwargs):
            where = self.where_of(tensor)
            if where is None or where.index.dim() != result.dim():
                continue
            index = where.special(NOWHERE)
            for dim, size in enumerate(result.shape):
                if index.shape[dim] != size and is_constant(index, dim):
                    index = index.narrow(dim, 0, 1)
            if all(length in (1, size) for length, size in zip(index.shape, result.shape, strict=True)):
                return Where(where.grid, index.expand(*result.shape), False)
        return None

    @staticmethod
    def _tensors(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
        """Arguments that depend on the layer, the largest first: smaller ones are broadcast, with fewer positions."""
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor) and value.requires_grad]
        return sorted(tensors, key=lambda tensor: -tensor.numel())

    def _mixed(self, x: object, channels: int, result: Tensor) -> Where | None:
        """Positions behind a function that mixes only the dimension ``channels``: they stay.

        Where positions differ along that dimension, the function mixes positions, as in a mixer block or in patch
        merging.
        """
        where = self.where_of(x)
        if where is None:
            return None
        if is_constant(where.index, channels):
            index = where.index.narrow(channels, 0, 1)
            sizes = list(result.shape)
            return where.at(index.expand(*sizes)) if index.dim() == result.dim() else None
        if where.index.shape == result.shape:
            return where  # mixed positions; as many as before, so that each keeps its place
        coarse = merge_cells(where, channels)
        if coarse is None or coarse.index.dim() != result.dim():
            return None
        return Where(coarse.grid, coarse.index.narrow(channels, 0, 1).expand(*result.shape))

    def _multiplied(self, first: object, second: object, result: Tensor) -> Where | None:
        """Positions of a matrix product: the rows of the first factor or the columns of the second factor.

        The factor whose positions are not summed over gives the positions. In ``attention weights @ values`` the rows
        of the weights are the positions of the queries, which stay; the positions of the values are summed over.
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
        """Positions of an ``einsum``: those of the first operand whose positions are not summed over."""
        equation = args[0].replace(" ", "")
        operands: Sequence[Tensor] = args[1] if isinstance(args[1], list | tuple) else args[1:]
        if "->" not in equation or "." in equation:
            return None
        operand_letters, kept = equation.split("->")
        for letters, tensor in zip(operand_letters.split(","), operands, strict=True):
            where = self.where_of(tensor)
            summed = [axis for axis, letter in enumerate(letters) if letter not in kept]
            if where is None or not where.is_placed or not all(is_constant(where.index, axis) for axis in summed):
                continue
            index = where.index
            for axis in reversed(summed):
                index = index.select(axis, 0)
            # The dimensions that remain come into the order of the result; dimensions of other operands have size 1.
            remaining = [letter for letter in letters if letter in kept]
            index = index.permute([remaining.index(letter) for letter in kept if letter in remaining])
            for axis, letter in enumerate(kept):
                index = index if letter in remaining else index.unsqueeze(axis)
            return Where(where.grid, index.expand(*result.shape))
        return None

    def _resampled(self, x: object, result: Tensor) -> Where | None:
        """Positions of a convolution, pooling or interpolation: the same grid, or a new grid over the same image."""
        where = self.where_of(x)
        if where is None or where.index.dim() != result.dim() or math.prod(result.shape[2:]) == 1:
            return None
        if where.index.shape[2:] == result.shape[2:] and is_constant(where.index, 1):
            return where.at(where.index.narrow(1, 0, 1).expand(*result.shape))
        if len(result) == self.samples and result.dim() - 2 == len(where.grid):
            return grid_positions(result.shape, result.device)
        return None

    def _reduced(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Where | None:
        """Positions of a sum, mean or maximum.

        Over channels, positions stay. Over neighbors, positions merge to a coarser grid. Over the whole image, no
        positions are left, only samples.
        """
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
