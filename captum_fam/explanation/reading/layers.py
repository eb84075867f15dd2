"""The layer of an explanation: named by the user, known from the model, or found by measurement."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from captum_fam.attr.layer_lookup import resolve_layer
from captum_fam.attr.layer_search import find_layer, measure_layer
from captum_fam.attr.registry import MapMethod
from captum_fam.attr.tokens import TokenGridLike
from captum_fam.explanation.reading.model import ExplainedModel
from captum_fam.explanation.reading.pictures import kind_in_words

LayerLike = nn.Module | str | Sequence[nn.Module | str]
"""A module or its dotted name, or a list of these."""


@dataclass(frozen=True)
class ChosenLayers:
    """The layers whose maps are made.

    Attributes:
        modules: the layers.
        names: their dotted names.
        is_list: whether the user gave a list, of which the mean of the maps is taken.
        token_grid: layout of the tokens; None for feature maps.
    """

    modules: list[nn.Module]
    names: list[str]
    is_list: bool
    token_grid: TokenGridLike | None

    @property
    def argument(self) -> Any:
        """The layers as the constructor of a method takes them."""
        return self.modules if self.is_list else self.modules[0]

    @property
    def name(self) -> str | list[str]:
        """The name, or the list of names."""
        return self.names if self.is_list else self.names[0]


def choose_layers(
    model: ExplainedModel, layer: LayerLike | None, methods: Sequence[MapMethod], inputs: Tensor, *, measures_grid: bool
) -> ChosenLayers:
    """Choose the layers of an explanation.

    Args:
        model: the model.
        layer: what the user named; None for the layer of the model, or else the layer that
            :func:`~captum_fam.find_layer` finds.
        methods: the methods of the maps.
        inputs: queries, ``(B, C, *spatial)``; the first is used to measure.
        measures_grid: whether the token grid of a layer that the user named is measured.

    Returns:
        The layers, and the token grid of the first.

    Raises:
        ValueError: for an unknown layer, a list of layers for a method whose maps have no mean, or a model without a
            suitable layer.
        TypeError: for a function without a named layer, or something that is no layer.
    """
    grid: TokenGridLike | None = None
    _check_kind(layer)
    if layer is None and model.layer is not None:
        layer, grid = model.layer, model.token_grid
    elif layer is None:
        best = find_layer(model.forward_func, inputs)  # type: ignore[arg-type]  # refuses a function
        layer, grid = best.name, best.token_grid
    elif measures_grid:
        grid = _grid_of(model.forward_func, layer if isinstance(layer, nn.Module | str) else layer[0], inputs)
    is_list = not isinstance(layer, nn.Module | str)
    without_mean = next((method.name for method in methods if not method.adds_up), None)
    if is_list and without_mean is not None:
        raise ValueError(
            f"layer is a list, but the maps of {without_mean} have no mean over layers: only maps that add up to the "
            "score have one, such as those of similarity-cam; name one layer"
        )
    layers = [layer] if isinstance(layer, nn.Module | str) else list(layer)
    names = [one if isinstance(one, str) else _name_in(model.forward_func, one) for one in layers]
    return ChosenLayers([resolve_layer(model.forward_func, one) for one in layers], names, is_list, grid)


def _check_kind(layer: object) -> None:
    """Refuse what is neither a layer, nor a list of layers, nor None."""
    if layer is None or isinstance(layer, nn.Module | str):
        return
    if not isinstance(layer, Sequence) or not all(isinstance(one, nn.Module | str) for one in layer):
        raise TypeError(f"layer must be a module, its dotted name, or a list of these, got {kind_in_words(layer)}")
    if not layer:
        raise ValueError("layer is an empty list, expected at least one layer")


def _grid_of(model: Callable[..., Any], layer: nn.Module | str, inputs: Tensor) -> TokenGridLike | None:
    """The token grid of a layer that the user has named; None for feature maps, and where none is found."""
    # A network without these modules has no tokens, and the passes of a measurement would be lost.
    token_modules = nn.LayerNorm | nn.RMSNorm | nn.MultiheadAttention
    if not isinstance(model, nn.Module) or not any(isinstance(part, token_modules) for part in model.modules()):
        return None
    try:
        return measure_layer(model, inputs, layer).token_grid
    except (ValueError, TypeError):
        return None  # the method says what is wrong with the layer


def _name_in(model: object, layer: nn.Module) -> str:
    """The dotted name of a layer in a model; its class name if the model does not contain it."""
    modules = model.named_modules() if isinstance(model, nn.Module) else []
    return next((name for name, module in modules if module is layer), type(layer).__name__)
