"""The account of a score: its named parts, by the part of the network that they come from.

``score = map + class token + registers + bias + other paths + zero embedding + rest``. Every part is computed alone,
except the rest, which is the score minus all other parts. Parts that a model does not have are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from captum_fam.attr.way_back.constants import Constants
from captum_fam.attr.way_back.where import CLASS_TOKEN, FIRST_POSITION, NOWHERE, OTHER_PATHS, REGISTERS

Biases = Literal["positions", "apart"]
"""Where the shares of biases go: to the positions of the map, or to the part ``"bias"``."""

Shares = dict[str, Tensor]
"""The named parts of a score, ``(B,)`` each."""

MAP, REST = "map", "rest"
"""The names of the two parts that every account has."""

ZERO_EMBEDDING = "zero embedding"
"""The name of the part that is the score of the zero embedding, from which distances count. No map explains it."""

BIAS = "bias"
"""The name of the part of constants without a position, such as a bias behind the pooling."""

SLOTS = {NOWHERE: BIAS, CLASS_TOKEN: "class token", REGISTERS: "registers", OTHER_PATHS: "other paths"}
"""The name of the part of each slot without a position."""

NOISE = 1e-6
"""A map whose largest magnitude is at most this share of the magnitude of the score is rounding noise."""


def resample(maps: Tensor, grid: tuple[int, ...]) -> Tensor:
    """Bring maps to another grid over the same image; every map keeps its sum.

    To a finer grid, values are spread by linear interpolation. To a coarser grid, values are summed; a fine cell that
    lies in two coarse cells is divided between them by area.

    Args:
        maps: ``(B, N, *spatial)``.
        grid: the new spatial size.

    Returns:
        The maps, ``(B, N, *grid)``.

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
    """The mean of the maps of several layers.

    The sum of the mean is the mean of the sums: where each map sums to the score, the mean does too.

    Args:
        maps: one map ``(B, N, *spatial)`` per layer.

    Returns:
        The mean, ``(B, N, *grid)``. Along each axis the grid has the size of the finest map.

    Example:
        >>> mean_of_layers([torch.tensor([[[1.0, 3.0]]]), torch.tensor([[[5.0]]])])
        tensor([[[1.7500, 2.7500]]])
    """
    grid = tuple(max(sides) for sides in zip(*(map_.shape[2:] for map_ in maps), strict=True))
    return torch.stack([resample(map_, grid) for map_ in maps]).mean(0)


def _resampling(before: int, after: int) -> Tensor:
    """The matrix for one axis, ``(after, before)``. The columns sum to one, so that a map keeps its sum."""
    if after > before:
        # Interpolated basis vectors are the weights that torch uses.
        eye = torch.eye(before, dtype=torch.float64).unsqueeze(1)
        matrix = torch.nn.functional.interpolate(eye, size=after, mode="linear", align_corners=False).squeeze(1).T
    else:
        # The length that a fine cell and a coarse cell have in common; the image has length 1.
        edges = torch.arange(before + 1, dtype=torch.float64) / before
        cells = torch.arange(after + 1, dtype=torch.float64) / after
        low = torch.maximum(edges[None, :-1], cells[:-1, None])
        high = torch.minimum(edges[None, 1:], cells[1:, None])
        matrix = (high - low).clamp_min(0)
    return matrix / matrix.sum(0)


def laid_out(
    constants: Constants, grid: tuple[int, ...], biases: Biases, lay_back: Callable[[Tensor, int], Tensor]
) -> tuple[Tensor | None, Shares]:
    """Divide the shares of constants into a map and named parts.

    Args:
        constants: the shares of all constants, from the way back.
        grid: spatial size of the map.
        biases: ``"positions"``: shares of constants with positions go to the map; ``"apart"``: to the part ``"bias"``.
        lay_back: ``lay_back(maps, view)`` brings maps ``(B, 1, *spatial)`` of a view to the image without the view's
            transform.

    Returns:
        The map ``(B, 1, *grid)``, or None where no share has a position; and the named parts.
    """
    map_: Tensor | None = None
    shares: Shares = {}

    # Several views and grids can have a share of the same part.
    def add(name: str, share: Tensor) -> None:
        shares[name] = shares[name] + share if name in shares else share

    for view, constants_grid in constants.placed:
        slots = constants.slots(view, constants_grid)
        # A share that reaches the embedding around the layer comes from the image: it is no bias.
        if slots[:, OTHER_PATHS].any():
            add(SLOTS[OTHER_PATHS], slots[:, OTHER_PATHS])
        if biases == "apart":
            add(BIAS, slots.sum(1) - slots[:, OTHER_PATHS])
            continue
        for slot in (NOWHERE, CLASS_TOKEN, REGISTERS):
            if slots[:, slot].any():
                add(SLOTS[slot], slots[:, slot])
        placed = lay_back(slots[:, FIRST_POSITION:].unflatten(1, constants_grid).unsqueeze(1), view)
        placed = resample(placed, grid)
        map_ = placed if map_ is None else map_ + placed
    for slot, share in constants.unplaced.items():
        add(SLOTS[slot], share)
    return map_, shares


def drop_noise(maps: Tensor, magnitude: Tensor) -> Tensor:
    """Set maps that are only rounding noise to zero.

    Args:
        maps: maps in the unit of the score, ``(B, ...)``.
        magnitude: magnitude of the scores before a foil is subtracted, ``(B,)``.

    Returns:
        The maps. A map whose largest magnitude is at most ``NOISE * magnitude`` is zero.

    Example:
        >>> drop_noise(torch.tensor([[2e-8, -1e-8], [2e-8, 0.5]]), torch.tensor([0.9, 0.9]))
        tensor([[0.0000e+00, 0.0000e+00],
                [2.0000e-08, 5.0000e-01]])
    """
    noise = maps.flatten(1).abs().amax(1) <= NOISE * magnitude
    return maps.masked_fill(noise.view(-1, *[1] * (maps.dim() - 1)), 0)


def missing_part(shares: Shares, magnitude: Tensor) -> Tensor:
    """The part of the score that the map does not explain, as a fraction.

    The fraction is relative to the larger of the absolute score and the sum of the absolute parts: parts of opposite
    signs can leave a score near zero.

    Args:
        shares: the named parts of the scores, ``(B,)`` each.
        magnitude: magnitude of the scores before a foil is subtracted, ``(B,)``.

    Returns:
        ``(B,)``; 0 for a score that is only rounding noise.

    Example:
        >>> missing_part({"map": torch.tensor([0.3]), "bias": torch.tensor([0.9])}, torch.tensor([1.0]))
        tensor([0.7500])
    """
    parts = torch.stack([share for name, share in shares.items() if name != ZERO_EMBEDDING])
    score, size = parts.sum(0), parts.abs().sum(0)
    whole = torch.maximum(score.abs(), size)
    return torch.where(whole <= NOISE * magnitude, 0.0, (score - shares[MAP]).abs() / whole)


def score_in_words(score: float, zero_embedding: float | None = None) -> str:
    """A score in words.

    Args:
        score: the score, minus the score of the foil where there is a foil.
        zero_embedding: the score of the zero embedding, for distances. Default: None, for similarities that are zero
            for the zero embedding.

    Example:
        >>> score_in_words(0.7312)
        '0.731'
        >>> score_in_words(-3.0, -14.0)
        '-3.00, which is 11.0 more than an embedding of zeros has (-14.0)'
    """
    if zero_embedding is None:
        return number_in_words(score)
    whole, difference, start = map(number_in_words, (score, abs(score - zero_embedding), zero_embedding))
    more = "more" if score >= zero_embedding else "less"
    return f"{whole}, which is {difference} {more} than an embedding of zeros has ({start})"


def bias_in_words(shares: Mapping[str, float]) -> str | None:
    """The text of a warning where a bias is most of what a map does not explain, so that no other layer helps; or None.

    Args:
        shares: the named parts of the score of one query.

    Example:
        >>> bias_in_words({"map": 1.9, "bias": -0.9, "rest": 0.0})[:41]
        'The bias stands behind the pooling, as in'
        >>> bias_in_words({"map": 0.2, "class token": 0.7, "bias": 0.1}) is None
        True
    """
    missing = {name: abs(share) for name, share in shares.items() if name not in (MAP, ZERO_EMBEDDING)}
    if max(missing, key=lambda name: missing[name]) != BIAS:
        return None
    return (
        "The bias stands behind the pooling, as in a linear head, a BNNeck or a whitening, and no layer has a place "
        "for it in the image"
    )


def coverage_in_words(coverage: float, shares: Mapping[str, float]) -> str:
    """How much of the score a map explains, in words, with the other parts of at least half a percent.

    Args:
        coverage: the sum of the map divided by the explained score.
        shares: the named parts of the score of one query. With a part ``"zero embedding"`` the similarity is a
            distance, and the words name the difference to the zero embedding, as :func:`score_in_words` does.

    Example:
        >>> coverage_in_words(0.12, {"map": 0.12, "class token": 0.85, "bias": 0.03, "rest": 0.0})
        'explains 12 % of the score; class token 85 %, bias 3 %'
        >>> coverage_in_words(1.0, {"map": 11.0, "zero embedding": -14.0, "rest": 0.0})
        'explains 100 % of the difference of 11.0 from an embedding of zeros'
    """
    parts = {name: value for name, value in shares.items() if name != ZERO_EMBEDDING}
    total = sum(parts.values())
    is_distance = ZERO_EMBEDDING in shares
    if coverage != coverage:  # NaN
        return "the difference from an embedding of zeros is zero" if is_distance else "the score is zero"
    others = sorted(((name, value) for name, value in parts.items() if name != MAP), key=lambda pair: -abs(pair[1]))
    words = [f"{name} {_percent(value / total)}" for name, value in others if total and abs(value / total) >= 0.005]
    difference = f"the difference of {number_in_words(total)} from an embedding of zeros"
    whole = difference if is_distance else "the score"
    return "; ".join([f"explains {_percent(coverage)} of {whole}", *([", ".join(words)] if words else [])])


def number_in_words(value: float) -> str:
    """A number with three significant digits.

    Example:
        >>> number_in_words(0.7312), number_in_words(-3.0), number_in_words(-61000)
        ('0.731', '-3.00', '-61,000')
    """
    rounded = f"{value + 0.0:#.3g}".removesuffix(".")  # never "-0.00"
    return f"{float(rounded):,.0f}" if 1000 <= abs(value) < 1e9 else rounded


def _percent(share: float) -> str:
    return f"{round(100 * share, 0) + 0.0:.0f} %"  # never "-0 %"
