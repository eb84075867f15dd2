"""Everything that a method computed on its way to the maps."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from captum_fam.attr.account import Shares
from captum_fam.attr.way_back.way import Detected
from captum_fam.support import Comparison

Maps = Tensor | tuple[Tensor, ...] | list[Tensor | tuple[Tensor, ...]]
"""Maps of a layer, a tuple where the layer gives several tensors; a list for a list of layers."""


@dataclass(frozen=True, eq=False)
class AttributionDetails:
    """The result of ``details(...)`` of every method; what a method does not have is None.

    Attributes:
        attributions: what ``attribute`` returns.
        comparison: queries and supports: similarities, scores, classes and support weights. None for a baseline that
            was given no support.
        contributions: C on the channels before Eq. 12, for each layer and tensor ``(B, N)``.
        convergence_delta: the sum of the attributions minus what they are to sum to, ``(B,)``; a list for a list of
            layers.
        coverage: the sum of the attributions over the explained score, ``(B,)``; NaN where the score is zero. A list
            for a list of layers.
        shares: named parts of the score, each ``(B,)`` and computed by itself; they add up to ``comparison.score``. A
            list for a list of layers. ``"map"`` and ``"rest"`` (what none of the parts accounts for) are always there;
            where they exist, ``"class token"``, ``"registers"``, ``"bias"`` (constants behind the pooling; with
            ``biases="apart"`` all constants, a class token that is joined behind the layer among them), ``"other
            paths"`` (what comes from the image around the layer, as through a shortcut), ``"empty"`` (what Shapley
            values leave: the score without any position) and ``"zero embedding"`` (where a distance starts from).
        standard_error: of each position, ``(B, 1, *spatial)``, where the map is an estimate; zero where it is exact.
            It is right on average over the positions; that of a single one is rough, as it comes of few orders.
        detected: what the way back found out about the model by itself, for each layer: passes that count, a final
            normalization, class tokens by their parameters' names. What is not right can be said by hand: ``Views``,
            ``unit_norm``, ``token_grid``.
    """

    attributions: Maps
    comparison: Comparison | None
    contributions: list[tuple[Tensor, ...]] | None = None
    convergence_delta: Tensor | list[Tensor] | None = None
    coverage: Tensor | list[Tensor] | None = None
    shares: Shares | list[Shares] | None = None
    standard_error: Tensor | None = None
    detected: list[Detected] | None = None
