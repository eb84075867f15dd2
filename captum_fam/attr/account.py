"""The account of a score: which named parts of the network it comes from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor

from captum_fam.attr._way_back import Constants
from captum_fam.attr.positions import CLASS_TOKEN, FIRST_POSITION, NOWHERE, OTHER_PATHS, REGISTERS

Biases = Literal["positions", "apart"]
Shares = dict[str, Tensor]

MAP, REST = "map", "rest"
"""The parts that every account has."""

SLOTS = {NOWHERE: "bias", CLASS_TOKEN: "class token", REGISTERS: "registers", OTHER_PATHS: "other paths"}
"""The part that each slot without a position belongs to."""

NOISE = 1e-6
"""A map that is smaller than this share of its score is rounding noise."""


def resample(maps: Tensor, grid: tuple[int, ...]) -> Tensor:
    """Bring maps ``(B, *spatial)`` to another grid over the same image; every map keeps its sum.

    A coarser map is spread over the finer grid by linear interpolation; a finer one is summed, cells that lie in two
    being divided by their area.

    Example:
        >>> resample(torch.tensor([[1.0, 3.0]]), (4,)), resample(torch.tensor([[1.0, 2.0, 3.0]]), (1,))
        (tensor([[0.5000, 0.7500, 1.2500, 1.5000]]), tensor([[6.]]))
    """
    for axis, (before, after) in enumerate(zip(maps.shape[1:], grid, strict=True), start=1):
        if before != after:
            matrix = _resampling(before, after).to(maps)
            maps = torch.tensordot(maps, matrix, ([axis], [1])).movedim(-1, axis)
    return maps


def _resampling(before: int, after: int) -> Tensor:
    """``(after, before)``, whose columns sum to one."""
    if after > before:
        eye = torch.eye(before, dtype=torch.float64).unsqueeze(1)
        matrix = torch.nn.functional.interpolate(eye, size=after, mode="linear", align_corners=False).squeeze(1).T
    else:
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

    def add(name: str, share: Tensor) -> None:
        shares[name] = shares[name] + share if name in shares else share

    for view, own in constants.placed:
        slots = constants.slots(view, own)
        if slots[:, OTHER_PATHS].any():
            add(SLOTS[OTHER_PATHS], slots[:, OTHER_PATHS])
        if biases == "apart":
            add("bias", slots.sum(1) - slots[:, OTHER_PATHS])
            continue
        for slot in (NOWHERE, CLASS_TOKEN, REGISTERS):
            if slots[:, slot].any():
                add(SLOTS[slot], slots[:, slot])
        placed = lay_back(slots[:, FIRST_POSITION:].unflatten(1, own).unsqueeze(1), view)
        placed = resample(placed.squeeze(1), grid).unsqueeze(1)
        map_ = placed if map_ is None else map_ + placed
    for slot, share in constants.unplaced.items():
        add(SLOTS[slot], share)
    return map_, shares


def coverage_in_words(coverage: float, shares: Mapping[str, float]) -> str:
    """``"explains 12 % of the score; class token 85 %, bias 3 %"``, for people.

    Args:
        coverage: the map's share of the explained score.
        shares: the parts of one query.
    """
    if coverage != coverage:
        return "the score is zero"
    total = sum(shares.values())
    others = sorted(((name, value) for name, value in shares.items() if name != MAP), key=lambda pair: -abs(pair[1]))
    shown = [f"{name} {_percent(value / total)}" for name, value in others if total and abs(value / total) >= 0.005]
    return "; ".join([f"explains {_percent(coverage)} of the score", *([", ".join(shown)] if shown else [])])


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
