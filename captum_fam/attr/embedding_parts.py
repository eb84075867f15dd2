"""An embedding as a sum of vectors: one for each position of a layer, and named other parts."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass

import torch
from torch import Tensor

from captum_fam import functional as F
from captum_fam._arithmetic import plain_arithmetic
from captum_fam.attr.account import REST, Shares
from captum_fam.attr.layer_account import LayerAccount
from captum_fam.attr.way_back.way import Way

# How closely two computations of one account agree, in roundings of its sums; see _by_positions.
_AGREEMENT = 64


@dataclass(frozen=True, eq=False)
class EmbeddingParts:
    """Where the embeddings of a batch come from: ``positions.sum(1) + sum(others.values()) == embedding``.

    The vector of a position is what :class:`~captum_fam.LayerSimilarityCAM` gives to the position in each feature of
    the embedding. The exact map of any linear weights u is therefore the product of the vectors with u.

    Attributes:
        embedding: Z', ``(B, J)``, float32 or float64.
        positions: the vector of each position of the layer, ``(B, P, J)``; positions are counted row by row.
        grid: the spatial size of the layer, such as ``(h, w)`` with ``P = h * w``.
        others: the vectors of the parts that have no position, ``(B, J)`` each, such as ``"class token"`` and
            ``"bias"``; the last is ``"rest"``, the embedding minus everything else.
        descriptors: a unit vector of the activation around each position, ``(B, P, N)``, as
            :func:`~captum_fam.attr.matching.descriptors` makes them with a window of 3.

    Example:
        >>> from captum_fam.attr import LayerPairs
        >>> parts = LayerPairs(model, model.layer4).run(queries[:2]).parts()
        >>> parts.positions.shape, parts.grid, list(parts.others)
        (torch.Size([2, 49, 6]), (7, 7), ['rest'])
        >>> (parts.positions.sum(1) + parts.others["rest"]).allclose(parts.embedding)
        True
    """

    embedding: Tensor
    positions: Tensor
    grid: tuple[int, ...]
    others: dict[str, Tensor]
    descriptors: Tensor

    def __len__(self) -> int:
        return len(self.embedding)

    def __getitem__(self, index: int | slice) -> EmbeddingParts:
        """The parts of one embedding, as a batch of one, or of a slice of the batch.

        Raises:
            TypeError: for an index that is no whole number and no slice.
            IndexError: for an image that is not in the batch.
        """
        if not isinstance(index, slice):
            number = operator.index(index)
            if not -len(self) <= number < len(self):
                raise IndexError(f"index {number} is out of range: these are the parts of {len(self)} images")
            position = number % len(self)
            index = slice(position, position + 1)
        return EmbeddingParts(
            self.embedding[index],
            self.positions[index],
            self.grid,
            {name: part[index] for name, part in self.others.items()},
            self.descriptors[index],
        )

    def account(self, weights: Tensor) -> tuple[Tensor, Shares]:
        """The account of a linear score ``<weights, embedding>``, without another pass through the model.

        Args:
            weights: u, ``(B, J)``.

        Returns:
            The map, ``(B, 1, *grid)``, and the share of each other part, ``(B,)``; together they sum to the score.

        Raises:
            ValueError: for weights of another shape.
        """
        if weights.shape != self.embedding.shape:
            raise ValueError(f"weights must be (B, J) = {tuple(self.embedding.shape)}, got {tuple(weights.shape)}")
        with plain_arithmetic(self.positions.device):
            weights = weights.to(self.positions)
            map_ = torch.einsum("bpj,bj->bp", self.positions, weights)
            shares = {name: (part * weights).sum(1) for name, part in self.others.items()}
        return map_.unflatten(1, self.grid).unsqueeze(1), shares


def split_embedding(
    account: LayerAccount, way: Way, embedding: Tensor, grid: tuple[int, ...]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Divide each feature of the embedding among the positions of the layer and named parts.

    Args:
        account: how the account of the layer is laid out.
        way: the way back from the embedding to the layer, which can be gone several times.
        embedding: ``(B, J)``.
        grid: the spatial size of the layer, P positions.

    Returns:
        The vectors of the positions, ``(B, P, J)``, and those of the other parts, ``(B, J)`` each, with the rest.
    """
    embedding = F.widen(embedding)
    with plain_arithmetic(embedding.device):
        split = None
        if _cost(account) * math.prod(grid) <= embedding.shape[1] and torch.finfo(way.origin.dtype).bits > 16:
            split = _by_positions(account, way, embedding)
        positions, others = split or _by_features(account, way, embedding)
        rest = embedding - positions.sum(1) - sum(others.values())
    return positions, {**others, REST: rest}


def _cost(account: LayerAccount) -> int:
    """The time of one derivative of the account, in backward passes, as measured.

    The derivative of a convolution's gradient takes longer than the gradient; that of a product of tokens with a matrix
    does not.
    """
    return 2 if account.token_grid is None else 1


def _by_features(account: LayerAccount, way: Way, embedding: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """One way back for each of the J features."""
    positions = embedding.new_zeros(0)
    others: dict[str, Tensor] = {}
    cotangent = torch.zeros_like(embedding)
    for feature in range(embedding.shape[1]):
        cotangent.zero_()[:, feature] = 1
        (map_,), parts = account.of(way, cotangent)
        if not feature:
            positions = embedding.new_empty(*map_.flatten(1).shape, embedding.shape[1])
        positions[:, :, feature] = map_.flatten(1)
        for name, share in parts.items():
            others.setdefault(name, torch.zeros_like(embedding))[:, feature] = share
    return positions, others


def _by_positions(account: LayerAccount, way: Way, embedding: Tensor) -> tuple[Tensor, dict[str, Tensor]] | None:
    """One derivative for each position and part, which is faster where there are fewer of these than features.

    The account is linear in the cotangent, so that its derivative does not depend on the cotangent. A linear function
    is the product of the cotangent with the derivative, which is checked.

    Returns:
        As :func:`split_embedding`, without the rest; None where the way back cannot be differentiated, as with an
        autograd function of the user.
    """
    generator = torch.Generator().manual_seed(0)
    probe = 0.5 + torch.rand(embedding.shape, generator=generator, dtype=embedding.dtype).to(embedding.device)
    try:
        with torch.enable_grad():
            (map_,), parts = account.of(way, probe.requires_grad_())
            values = map_.flatten(1)
        one_hot = torch.zeros_like(values)
        positions = embedding.new_empty(*values.shape, embedding.shape[1])
        for position in range(values.shape[1]):
            one_hot.zero_()[:, position] = 1
            positions[:, position] = torch.autograd.grad(values, probe, one_hot, retain_graph=True)[0]
        others = {
            name: torch.autograd.grad(share, probe, torch.ones_like(share), retain_graph=True)[0]
            for name, share in parts.items()
        }
    except RuntimeError:
        return None
    probe = probe.detach()
    computed = torch.cat([values.detach(), *(share.detach().unsqueeze(1) for share in parts.values())], 1)
    vectors = torch.cat([positions, *(part.unsqueeze(1) for part in others.values())], 1)
    error = (torch.einsum("bpj,bj->bp", vectors, probe) - computed).abs()
    scale = torch.einsum("bpj,bj->bp", vectors.abs(), probe) + computed.abs()
    tolerance = _AGREEMENT * F.rounding(probe.shape[1], probe.dtype)
    return (positions, others) if bool((error <= tolerance * scale).all()) else None
