"""The account of one layer: shares of its positions, and of named parts, in what a cotangent makes of the embedding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from captum_fam import functional as F
from captum_fam.attr.account import SLOTS, Biases, Shares, laid_out, resample
from captum_fam.attr.tokens import TokenGridLike
from captum_fam.attr.way_back.constants import Constants
from captum_fam.attr.way_back.way import Way
from captum_fam.attr.way_back.where import CLASS_TOKEN, REGISTERS


@dataclass(frozen=True)
class LayerAccount:
    """How the account of a layer is laid out.

    Attributes:
        lay_back: ``lay_back(maps, view)`` brings maps of a view to the image without the view's transform.
        token_grid: rearranges the tensors of the layer into ``(B, N, *spatial)``; None: the tensors have that form.
        biases: where the shares of biases go.
    """

    lay_back: Callable[[Tensor, int], Tensor]
    token_grid: TokenGridLike | None = None
    biases: Biases = "positions"

    def of(self, way: Way, cotangent: Tensor, sum_channels: bool = True) -> tuple[tuple[Tensor, ...], Shares]:
        """Divide ``<cotangent, embedding>`` among the positions of the layer and named parts.

        The account is linear in the cotangent. With a cotangent that requires a gradient, the account is differentiable
        in it.

        Args:
            way: the way back from the embedding to the layer, recorded with places.
            cotangent: a weight for every feature of the embedding, ``(B, J)``.
            sum_channels: sum the maps over the channels. Default: True.

        Returns:
            A map ``(B, 1, *spatial)`` for each tensor of the layer, or ``(B, N, *spatial)`` without summation; and the
            parts beside the map, ``(B,)`` each. Parts that are zero are left out.

        Raises:
            ValueError: if the embedding does not depend on the layer.
        """
        pulled, constants = way.account(cotangent)
        maps: list[Tensor] = []
        off_map = Constants(len(cotangent))
        for start, pairs in zip(way.live, pulled, strict=True):
            grid_pairs = [
                [tensor if self.token_grid is None else self.token_grid(tensor) for tensor in pair] for pair in pairs
            ]
            shares = [F.widen(gradient) * activation for gradient, activation in grid_pairs]
            if sum_channels:
                shares = [share.sum(1, keepdim=True) for share in shares]
            shares = [self.lay_back(share, start.view) for share in shares]
            if maps:
                # Views of different sizes have different grids over the same image.
                shares = [
                    map_ + resample(share, tuple(map_.shape[2:])) for map_, share in zip(maps, shares, strict=True)
                ]
            maps = shares
            # Tokens that the grid leaves out have shares beside the map.
            for (gradient, activation), where in zip(pairs, start.where, strict=True):
                if self.token_grid is not None:
                    off_map.add(gradient, activation, None, None, where, start.view)
        placed, parts = laid_out(constants, tuple(maps[0].shape[2:]), self.biases, self.lay_back)
        if placed is not None:
            # A map with channels takes an equal part of the constants in every channel.
            maps[0] = maps[0] + placed / maps[0].shape[1]
        for key in off_map.placed:
            for slot in (CLASS_TOKEN, REGISTERS):
                share = off_map.slots(*key)[:, slot]
                if share.any():
                    name = SLOTS[slot]
                    parts[name] = parts[name] + share if name in parts else share
        return tuple(maps), parts
