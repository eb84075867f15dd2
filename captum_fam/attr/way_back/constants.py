r"""The shares of constants in the score, gradient x constant :math:`\langle g, c \rangle`, by view and position.

In a network of ReLUs, input x gradient plus the sum of all biases x their gradients is the output (Srinivas and
Fleuret, "Full-Gradient Representation for Neural Network Visualization", NeurIPS 2019). With held scales, the same
holds for every network whose functions are in the table of rules.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass, field

import torch
from torch import Tensor

from captum_fam import functional as F
from captum_fam.attr.way_back.where import FIRST_POSITION, NOWHERE, Where


@dataclass
class Constants:
    """The shares of constants in the score, by view and position. The backward pass fills this object.

    Attributes:
        samples: size of the batch, B.
        placed: by view and grid, the shares of all slots, ``(B * slots,)``.
        unplaced: by slot, the shares ``(B,)`` of constants whose positions are not known.
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
        """Add gradient x constant to the slots of the elements, or to a single slot of each sample.

        Args:
            gradient: the gradient on the tensor that the constant was added to.
            constant: a vector along ``axis``; with ``axis=None`` a number or a tensor that broadcasts.
            axis: the dimension of a vector.
            part: ``(dimension, start, length)`` of the slice that the constant was added to; None: the whole tensor.
            where: the positions of the tensor; None: not known.
            view: number of the view of the input.
            slot: the slot for all of the share. Default: None, the slots of the elements.
        """
        gradient = F.widen(gradient)
        index = None if where is None else where.index if slot is None else where.special(slot)
        if part is not None:
            gradient = gradient.narrow(*part)
            index = None if index is None else index.narrow(*part)
        if axis is not None and isinstance(constant, Tensor):
            # All channels of a bias have the same position, so that they are summed in one product.
            share = torch.tensordot(gradient, constant.to(gradient.dtype), ([axis], [0]))
            if index is not None:
                index = index.select(axis, 0)
        else:
            share = gradient * constant
        if where is None or index is None:
            self._add_unplaced(share, NOWHERE if slot is None else slot)
            return
        # index_add_ is slow per element: expanded dimensions of the index, with a constant slot, are summed before.
        for dim in range(index.dim()):
            if index.stride(dim) == 0 and index.shape[dim] > 1:
                share = share.sum(dim, keepdim=True)
                index = index.narrow(dim, 0, 1)
        key = view, where.grid
        if key not in self.placed:
            self.placed[key] = share.new_zeros(self.samples * where.stride)
        self.placed[key].index_add_(0, index.reshape(-1), share.reshape(-1).to(self.placed[key].dtype))

    def _add_unplaced(self, share: Tensor, slot: int) -> None:
        """Add a share without known positions to a slot of each sample."""
        # The samples are the first dimension, also with several windows per sample, or the second, behind the tokens.
        if share.dim() and len(share) % self.samples == 0:
            per_sample = share.reshape(self.samples, -1).sum(1)
        elif share.dim() > 1 and share.shape[1] == self.samples:
            per_sample = share.transpose(0, 1).flatten(1).sum(1)
        else:
            return  # the samples are not known: the share stays in the rest of the account
        self.unplaced[slot] = per_sample if slot not in self.unplaced else self.unplaced[slot] + per_sample

    def scale(self, factors: Tensor) -> None:
        """Multiply the shares of each sample by a factor, ``(B,)``."""
        for shares in self.placed.values():
            shares.view(self.samples, -1).mul_(factors.to(shares).unsqueeze(1))
        self.unplaced = {slot: share * factors.to(share) for slot, share in self.unplaced.items()}

    def slots(self, view: int, grid: tuple[int, ...]) -> Tensor:
        """The shares of one view and grid, ``(B, slots)``."""
        return self.placed[view, grid].view(self.samples, FIRST_POSITION + math.prod(grid))


@dataclass
class Sink:
    """Receives the shares of constants from the backward pass.

    Attributes:
        constants: the shares. Default: None, the shares are not recorded.
        lock: held during a backward pass, so that threads that go one way back do not add to each other's shares.
    """

    constants: Constants | None = None
    lock: threading.RLock = field(default_factory=threading.RLock)
