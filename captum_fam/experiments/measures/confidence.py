"""Measures of the score: how does it change when the image is masked by the map?"""

from __future__ import annotations

import torch
from torch import Tensor

from captum_fam.cli.ranges import at_least
from captum_fam.experiments.measures.base import Column, Conventions, MapBatch, register_measure
from captum_fam.metrics import (
    apply_masks,
    average_drop,
    deletion_auc,
    find_empty,
    find_nan,
    increase_in_confidence,
    insertion_auc,
    masked_inputs,
)


@register_measure(
    "faithfulness",
    needs=("images",),
    columns=(Column("drop", sees="chosen"), Column("increase", sees="chosen")),
    allowed={"drop": at_least(0), "increase": (0, 1)},
)
def faithfulness(batch: MapBatch, conventions: Conventions) -> dict[str, Tensor]:
    """Compute ``drop`` and ``increase``, ``(B,)`` each, with one masked pass per map.

    Args:
        batch: maps with images.
        conventions: kind of mask, part of a signed map, and smallest score.
    """
    queries = batch.images
    assert queries is not None
    raw = {"mean": queries.mean, "std": queries.std} if conventions.mask == "raw" else {}
    if batch.drawing is not None:
        scores = queries.score(apply_masks(queries.images, batch.drawing.mask.to(queries.images), **raw))
    else:
        # An empty map gives a mask of NaN, which must not reach the model.
        usable = ~(find_nan(batch.maps) | find_empty(batch.maps, conventions.signed))
        masked = masked_inputs(queries.images, batch.maps, **raw, energy=conventions.signed)
        scores = queries.score(torch.where(usable[:, None, None, None], masked, 0)).masked_fill(~usable, torch.nan)
    return {
        "drop": average_drop(queries.scores, scores, conventions.epsilon),
        "increase": increase_in_confidence(queries.scores, scores, conventions.epsilon),
    }


@register_measure("perturbation", needs=("images",), columns=(Column("deletion"), Column("insertion")))
def perturbation(batch: MapBatch, conventions: Conventions) -> dict[str, Tensor]:
    """Compute ``deletion`` and ``insertion``, ``(B,)`` each: areas under the curves of the relative score.

    Args:
        batch: maps with images.
        conventions: number of steps, and smallest score.
    """
    queries = batch.images
    assert queries is not None
    return {
        name: auc(
            queries.score,
            queries.images,
            batch.maps,
            conventions.steps,
            eps=conventions.epsilon,
            scores=queries.scores,
        )
        for name, auc in (("deletion", deletion_auc), ("insertion", insertion_auc))
    }
