"""The maps of a call, with everything else that the method computed for the maps."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from captum_fam.attr.account import Shares
from captum_fam.attr.way_back.way import Detected
from captum_fam.support import Comparison

Maps = Tensor | tuple[Tensor, ...] | list[Tensor | tuple[Tensor, ...]]
"""The map of a layer; a tuple of maps where the layer gives several tensors; a list for a list of layers."""


def check_map(attributions: object, inputs: Tensor) -> Tensor:
    """Refuse what is no map ``(B, N, *spatial)`` of one tensor for each of the inputs.

    Args:
        attributions: what ``attribute`` of a method returned.
        inputs: ``(B, ...)``, of as many dimensions as the map.

    Raises:
        ValueError: for several tensors, another batch or other dimensions.

    Example:
        >>> check_map(torch.zeros(2, 1, 7, 7), torch.rand(2, 3, 224, 224)).shape
        torch.Size([2, 1, 7, 7])
    """
    if not isinstance(attributions, Tensor):
        raise ValueError(f"layer: the method gave a {type(attributions).__name__}; choose a layer of one tensor")
    if attributions.dim() != inputs.dim() or len(attributions) != len(inputs):
        raise ValueError(
            f"method: its attributions have shape {tuple(attributions.shape)}, expected (B, N, *spatial) for inputs of "
            f"{tuple(inputs.shape)}; a layer of tokens needs a method that takes token_grid"
        )
    return attributions


def one_position_in_words(attributions: Tensor, inputs: Tensor) -> str | None:
    """The text of a warning for a map of one position, which says nothing of places; None for any other map.

    Args:
        attributions: the map, ``(B, N, *spatial)``.
        inputs: ``(B, C, *spatial)``.

    Example:
        >>> one_position_in_words(torch.zeros(2, 1, 1, 1), torch.rand(2, 3, 64, 64))[:47]
        'layer: it has one position for inputs of (64, 6'
    """
    if attributions.shape[2:].numel() != 1 or inputs.shape[2:].numel() == 1:
        return None
    return (
        f"layer: it has one position for inputs of {tuple(inputs.shape[2:])}, so that its map is one number for the "
        "whole input and says nothing of places; choose a layer before the pooling, or larger inputs"
    )


@dataclass(frozen=True, eq=False)
class AttributionDetails:
    """The result of ``details(...)`` of every method. A value that a method does not compute is None.

    Attributes:
        attributions: the maps that ``attribute`` returns.
        comparison: similarities, scores, classes and support weights of the queries. None for a baseline without a
            support.
        contributions: C on the channels before Eq. 12 of the FAM paper, ``(B, N)`` for each layer and tensor.
        convergence_delta: the sum of the attributions minus the value that the sum should have, ``(B,)``, in the unit
            of the score. A list for a list of layers.
        coverage: the sum of the attributions divided by the explained score, ``(B,)``; NaN where the score is zero. A
            list for a list of layers.
        shares: named parts of the score, ``(B,)`` each, whose sum is ``comparison.score``. A list for a list of layers.
            Each part is computed alone, except ``"rest"``. Two parts are always there: ``"map"``, and ``"rest"``, the
            score minus all other parts. The other parts are there where the model or the method has them:
            ``"class token"``; ``"registers"``; ``"bias"``, the constants behind the pooling (with ``biases="apart"``
            all constants, also a class token that is joined behind the layer); ``"other paths"``, what reaches the
            embedding from the image around the layer, such as through a shortcut; ``"empty"``, the score without any
            position, which Shapley values do not share out; and ``"zero embedding"``, the score of the zero vector,
            from which a distance counts.
        standard_error: the standard error of each position, ``(B, 1, *spatial)``, where the map is an estimate; zero
            where the map is exact. The error is right on average over the positions; at a single position it is rough,
            because few orders are sampled.
        detected: what the way back measured of the model, one entry per layer: the passes that count, a final
            normalization, class tokens by the names of their parameters. ``Views``, ``unit_norm`` and ``token_grid``
            override a wrong finding.
    """

    attributions: Maps
    comparison: Comparison | None
    contributions: list[tuple[Tensor, ...]] | None = None
    convergence_delta: Tensor | list[Tensor] | None = None
    coverage: Tensor | list[Tensor] | None = None
    shares: Shares | list[Shares] | None = None
    standard_error: Tensor | None = None
    detected: list[Detected] | None = None
