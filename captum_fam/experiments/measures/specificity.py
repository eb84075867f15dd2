"""Measures of the support and the score: does the map follow the support, and how much of the score does it cover?"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from captum_fam.cli.ranges import between
from captum_fam.experiments import records
from captum_fam.experiments.measures.base import SHARE, Column, Conventions, MapBatch, register_measure
from captum_fam.metrics import cell_mask, map_correlation, mosaic_energy, mosaic_hit, region_auroc


@register_measure("swap", needs=("swap",), allowed={"swap": between(-1 - 1e-4, 1 + 1e-4)})
def swap(batch: MapBatch, conventions: Conventions) -> Tensor:
    """Compute the correlation of the maps for two supports, ``(B,)``.

    Args:
        batch: maps with those for another support.
        conventions: not used.
    """
    assert batch.swap is not None
    return map_correlation(*batch.swap())


@register_measure(
    "cells",
    needs=("cells",),
    columns=(Column("cell-energy", sees="positive"), Column("cell-hit", sees="positive"), Column("cell-auroc")),
    always=True,
    allowed={"cell-energy": SHARE, "cell-hit": SHARE, "cell-auroc": SHARE},
)
def cells(batch: MapBatch, conventions: Conventions) -> dict[str, Tensor]:
    """Compute ``cell-energy``, ``cell-hit`` and ``cell-auroc`` of mosaics, ``(B,)`` each.

    Args:
        batch: maps of mosaics.
        conventions: not used.
    """
    assert batch.cells is not None
    cell, grid = batch.cells.of_support, batch.cells.grid
    return {
        "cell-energy": mosaic_energy(batch.maps, cell, batch.size, grid),
        "cell-hit": mosaic_hit(batch.maps, cell, batch.size, grid),
        "cell-auroc": region_auroc(batch.maps, cell_mask(cell, batch.size, grid).to(batch.maps.device)),
    }


def _covered(kept: Mapping[str, records.Column]) -> Tensor:
    # The ratio of each map would be noise: with a foil some scores are near zero, where the bias of a head is not.
    sums, scores = (records.as_numbers(kept[name]) for name in ("sum", "score"))
    return 1 - (scores - sums).abs() / scores.abs().nanmean()


@register_measure("coverage", needs=("account",), columns=(Column("coverage", from_kept=_covered),), always=True)
def coverage(batch: MapBatch, conventions: Conventions) -> dict[str, Tensor]:
    """The sum of each map, and the score that the map explains, ``(B,)`` each.

    The column has ``1 - |score - sum| / mean |score|``, whose mean is the share of the scores that the maps explain.

    Args:
        batch: maps that add up to the explained score.
        conventions: not used.
    """
    assert batch.account is not None
    return {"sum": batch.account.sums, "score": batch.account.scores}
