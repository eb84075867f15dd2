"""The account of a score: which named parts of the network it comes from.

``score = map + class token + registers + bias + other paths + zero embedding + rest``. Every part is computed alone,
except the rest, which is what no other part accounts for. A part that a model does not have is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from captum_fam.attr.way_back.constants import Constants
from captum_fam.attr.way_back.where import CLASS_TOKEN, FIRST_POSITION, NOWHERE, OTHER_PATHS, REGISTERS

Biases = Literal["positions", "apart"]
Shares = dict[str, Tensor]

MAP, REST = "map", "rest"
"""The parts that every account has."""

ZERO_EMBEDDING = "zero embedding"
"""The part that is the score of the zero embedding, which a distance starts from: no share of the explained score."""

SLOTS = {NOWHERE: "bias", CLASS_TOKEN: "class token", REGISTERS: "registers", OTHER_PATHS: "other paths"}
"""The part that each slot without a position belongs to."""

NOISE = 1e-6
"""A map that is smaller than this share of its score is rounding noise."""


def resample(maps: Tensor, grid: tuple[int, ...]) -> Tensor:
    """Bring maps ``(B, N, *spatial)`` to another grid over the same image; every map keeps its sum.

    A coarser map is spread over the finer grid by linear interpolation; a finer one is summed, cells that lie in two
    being divided by their area.

    Example:
        >>> resample(torch.tensor([[[1.0, 3.0]]]), (4,)), resample(torch.tensor([[[1.0, 2.0, 3.0]]]), (1,))
        (tensor([[[0.5000, 0.7500, 1.2500, 1.5000]]]), tensor([[[6.]]]))
    """
    for axis, (before, after) in enumerate(zip(maps.shape[2:], grid, strict=True), start=2):
        if before != after:
            matrix = _resampling(before, after).to(maps)
            maps = torch.tensordot(maps, matrix, ([axis], [1])).movedim(-1, axis)
    return maps


def mean_of_layers(maps: Sequence[Tensor]) -> Tensor:
    """The mean of maps ``(B, N, *spatial)`` of several layers, on the finest of their grids.

    Each map accounts for the same score, and so does their mean: its sum is the mean of their sums.

    Example:
        >>> mean_of_layers([torch.tensor([[[1.0, 3.0]]]), torch.tensor([[[5.0]]])])
        tensor([[[1.7500, 2.7500]]])
    """
    grid = tuple(max(sides) for sides in zip(*(one.shape[2:] for one in maps), strict=True))
    return torch.stack([resample(one, grid) for one in maps]).mean(0)


def _resampling(before: int, after: int) -> Tensor:
    """The matrix of one axis, ``(after, before)``; its columns sum to one, so that the sum of a map is kept."""
    if after > before:
        # Each basis vector, interpolated: the weights that torch itself uses.
        eye = torch.eye(before, dtype=torch.float64).unsqueeze(1)
        matrix = torch.nn.functional.interpolate(eye, size=after, mode="linear", align_corners=False).squeeze(1).T
    else:
        # The length that a fine cell and a coarse cell have in common.
        edges = torch.arange(before + 1, dtype=torch.float64) / before
        cells = torch.arange(after + 1, dtype=torch.float64) / after
        low = torch.maximum(edges[None, :-1], cells[:-1, None])
        high = torch.minimum(edges[None, 1:], cells[1:, None])
        matrix = (high - low).clamp_min(0)
    return matrix / matrix.sum(0)


def laid_out(
    constants: Constants, grid: tuple[int, ...], biases: Biases, lay_back: Callable[[Tensor, int], Tensor]
) -> tuple[Tensor | None, Shares]:
    """What constants add to the map, ``(B, 1, *grid)``, and to the parts that lie beside it.

    Args:
        constants: as the way back found them.
        grid: of the map.
        biases: where constants go that have positions.
        lay_back: brings a map ``(B, 1, *spatial)`` of a view to its place.
    """
    map_: Tensor | None = None
    shares: Shares = {}

    # Several views and grids can have a share of the same part.
    def add(name: str, share: Tensor) -> None:
        shares[name] = shares[name] + share if name in shares else share

    for view, own in constants.placed:
        slots = constants.slots(view, own)
        # What comes around the layer is no bias, wherever biases go.
        if slots[:, OTHER_PATHS].any():
            add(SLOTS[OTHER_PATHS], slots[:, OTHER_PATHS])
        if biases == "apart":
            add("bias", slots.sum(1) - slots[:, OTHER_PATHS])
            continue
        for slot in (NOWHERE, CLASS_TOKEN, REGISTERS):
            if slots[:, slot].any():
                add(SLOTS[slot], slots[:, slot])
        placed = lay_back(slots[:, FIRST_POSITION:].unflatten(1, own).unsqueeze(1), view)
        placed = resample(placed, grid)
        map_ = placed if map_ is None else map_ + placed
    for slot, share in constants.unplaced.items():
        add(SLOTS[slot], share)
    return map_, shares


def drop_noise(maps: Tensor, magnitude: Tensor) -> Tensor:
    """Maps that are only rounding noise become exactly zero.

    Args:
        maps: in the unit of the score, ``(B, ...)``.
        magnitude: of the scores that the maps are made of, before a foil is taken off, ``(B,)``.

    Example:
        >>> drop_noise(torch.tensor([[2e-8, -1e-8], [2e-8, 0.5]]), torch.tensor([0.9, 0.9]))
        tensor([[0.0000e+00, 0.0000e+00],
                [2.0000e-08, 5.0000e-01]])
    """
    noise = maps.flatten(1).abs().amax(1) <= NOISE * magnitude
    return maps.masked_fill(noise.view(-1, *[1] * (maps.dim() - 1)), 0)


def score_in_words(score: float, zero_embedding: float | None = None) -> str:
    """``"0.731"``; of a distance ``"-3.00 = 11.0 explained + -14.0 of the zero embedding"``.

    Args:
        score: minus the score of its foil, if it has one.
        zero_embedding: what the account starts from; None for measures that start from zero.
    """
    if zero_embedding is None:
        return number_in_words(score)
    whole, explained, start = map(number_in_words, (score, score - zero_embedding, zero_embedding))
    return f"{whole} = {explained} explained + {start} of the zero embedding"


def coverage_in_words(coverage: float, shares: Mapping[str, float]) -> str:
    """``"explains 12 % of the score; class token 85 %, bias 3 %"``, for people.

    Of a distance ``"explains 100 % of the 11.0"``, the explained score of :func:`score_in_words`.

    Args:
        coverage: the map's share of the explained score.
        shares: the parts of one query.
    """
    parts = {name: value for name, value in shares.items() if name != ZERO_EMBEDDING}
    total = sum(parts.values())
    is_distance = ZERO_EMBEDDING in shares
    if coverage != coverage:
        return "the explained score is zero" if is_distance else "the score is zero"
    others = sorted(((name, value) for name, value in parts.items() if name != MAP), key=lambda pair: -abs(pair[1]))
    shown = [f"{name} {_percent(value / total)}" for name, value in others if total and abs(value / total) >= 0.005]
    whole = f"the {number_in_words(total)}" if is_distance else "the score"
    return "; ".join([f"explains {_percent(coverage)} of {whole}", *([", ".join(shown)] if shown else [])])


def number_in_words(value: float) -> str:
    """Three digits: ``"0.731"``, ``"-3.00"``, ``"-61,000"``."""
    rounded = f"{value:#.3g}".removesuffix(".")
    return f"{float(rounded):,.0f}" if 1000 <= abs(value) < 1e9 else rounded


def _percent(share: float) -> str:
    return f"{round(100 * share, 0) + 0.0:.0f} %"  # never "-0 %"
