r"""What constants on the way add to the score, gradient x constant :math:`\langle g, c \rangle`, by view and position.

Srinivas and Fleuret, "Full-Gradient Representation for Neural Network Visualization", NeurIPS 2019: input x gradient
and the biases x their gradients add up to the output of a network of ReLUs. With held scales the same holds for any
network that the table of rules covers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from captum_fam import functional as F
from captum_fam.attr.way_back.where import FIRST_POSITION, NOWHERE, Where


@dataclass
class Constants:
    """What constants add to the score, by view and position. Filled by the backward pass.

    Attributes:
        samples: size of the batch, B.
        placed: for each view and grid, ``(B * slots,)``.
        unplaced: by slot ``(B,)``, of constants whose position is not known.
    """

    samples: int
    placed: dict[tuple[int, tuple[int, ...]], Tensor] = field(default_factory=dict)
    unplaced: dict[int, Tensor] = field(default_factory=dict)

    def add(
        self,
        gradient: Tensor,
        constant: Tensor | float,
        axis: int | None,
        part: tuple[int, int, int] | None,
        where: Where | None,
        view: int,
        slot: int | None = None,
    ) -> None:
        """Add gradient x constant, position by position, or all of it to one slot of its sample.

        Args:
            gradient: on the tensor that the constant was added to.
            constant: a vector along ``axis``; with ``axis=None`` a number or a tensor that broadcasts.
            axis: the dimension of a vector.
            part: ``(dimension, start, length)`` of the slice that the constant was added to; None: the whole tensor.
            where: the positions of the tensor; None: not known.
            view: the view of the input.
            slot: put the share there; None: at its positions.
        """
        gradient = F.widen(gradient)
        index = None if where is None else where.index if slot is None else where.special(slot)
        if part is not None:
            gradient = gradient.narrow(*part)
            index = None if index is None else index.narrow(*part)
        if axis is not None and isinstance(constant, Tensor):
            # Summed over the channels at once: a bias has the same position in all of them.
            share = torch.tensordot(gradient, constant.to(gradient.dtype), ([axis], [0]))
            if index is not None:
                index = index.select(axis, 0)
        else:
            share = gradient * constant
        if where is None or index is None:
            self._add_unplaced(share, NOWHERE if slot is None else slot)
            return
        # Dimensions along which the index is only expanded are summed first: index_add_ is slow per element.
        for dim in range(index.dim()):
            if index.stride(dim) == 0 and index.shape[dim] > 1:
                share = share.sum(dim, keepdim=True)
                index = index.narrow(dim, 0, 1)
        key = view, where.grid
        if key not in self.placed:
            self.placed[key] = share.new_zeros(self.samples * where.stride)
        self.placed[key].index_add_(0, index.reshape(-1), share.reshape(-1).to(self.placed[key].dtype))

    def _add_unplaced(self, share: Tensor, slot: int) -> None:
        # Batches come first, also where windows or positions follow the samples; or second, behind the tokens.
        if share.dim() and len(share) % self.samples == 0:
            each = share.reshape(self.samples, -1).sum(1)
        elif share.dim() > 1 and share.shape[1] == self.samples:
            each = share.transpose(0, 1).flatten(1).sum(1)
        else:
            return  # of no sample that could be told: the share stays in the rest of the account
        self.unplaced[slot] = each if slot not in self.unplaced else self.unplaced[slot] + each

    def scale(self, factors: Tensor) -> None:
        """Multiply the shares of each sample, ``(B,)``."""
        for shares in self.placed.values():
            shares.view(self.samples, -1).mul_(factors.to(shares).unsqueeze(1))
        self.unplaced = {slot: share * factors.to(share) for slot, share in self.unplaced.items()}

    def slots(self, view: int, grid: tuple[int, ...]) -> Tensor:
        """``(B, slots)`` of one grid."""
        return self.placed[view, grid].view(self.samples, FIRST_POSITION + math.prod(grid))


@dataclass
class Sink:
    """Where the backward pass puts the shares of constants; None: they are not asked for."""

    constants: Constants | None = None
