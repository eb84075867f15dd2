"""A registered model: what makes it, how files may name its weights, and what an explanation needs to know."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from captum_fam.models.checkpoints import Layout, WeightsError, load_weights
from captum_fam.models.embedding_model import EmbeddingModel
from captum_fam.models.embedding_net import EmbeddingNet

CARD = {field.name for field in dataclasses.fields(EmbeddingModel)} - {"name", "model", "layout"}
"""What a registration may say of a model; the rest of `EmbeddingModel` is known when the model is made."""


@dataclasses.dataclass(frozen=True)
class RegisteredModel:
    """An entry of the registry.

    Attributes:
        name: of the model.
        factory: makes a :class:`torch.nn.Module` or an :class:`EmbeddingModel`.
        layouts: how files of weights may name the parameters.
        pretrained: whether the factory gives a trained model.
        card: what the registration says of the model, by the names of the attributes of :class:`EmbeddingModel`.
    """

    name: str
    factory: Callable[..., object]
    layouts: tuple[Layout, ...]
    pretrained: bool
    card: Mapping[str, Any]

    def create(
        self,
        weights: str | Path | None,
        layer: str | None,
        negative_slope: float | None,
        options: Mapping[str, Any],
    ) -> EmbeddingModel:
        """Make the model; arguments and errors are those of :func:`~captum_fam.models.create_model`."""
        if weights == "DEFAULT":
            if not self.pretrained:
                raise WeightsError(f"weights: {self.name} has none that can be downloaded; give the path of a file")
            weights = None
        made = self._make(options)
        model = made.model if isinstance(made, EmbeddingModel) else made
        layout = None if weights is None else load_weights(model, weights, self.layouts)
        card: dict[str, Any] = {**self.card, "name": self.name, "model": model.eval()}
        if layout is not None:
            card["layout"] = layout.name
            if layout.normalization is not None:
                card["mean"], card["std"] = ((value,) * 3 for value in layout.normalization)
        self._set_negative_slope(model, negative_slope, layout)
        if isinstance(made, EmbeddingModel):
            net = dataclasses.replace(made, **card)
        elif isinstance(model, EmbeddingNet):
            net = EmbeddingModel(**{"layer": "features", "pooling": model.pooling, "head": model.head, **card})
        else:
            return _measured(card, layer)
        return net if layer is None or layer == net.layer else _with_layer(net, layer)

    def _make(self, options: Mapping[str, Any]) -> nn.Module | EmbeddingModel:
        try:
            made = self.factory(**options)
        except TypeError as error:
            raise TypeError(f"{self.name}: {error}") from error
        if not isinstance(made, nn.Module | EmbeddingModel):
            raise TypeError(
                f"{self.name}: its factory gave a {type(made).__name__}, expected a torch.nn.Module or an "
                "EmbeddingModel"
            )
        return made

    def _set_negative_slope(self, model: nn.Module, given: float | None, layout: Layout | None) -> None:
        """What the caller says goes before what the authors of the weights had, and that before the network's own."""
        leaky = [module for module in model.modules() if isinstance(module, nn.LeakyReLU)]
        if given is not None and not leaky:
            raise TypeError(f"negative_slope: {self.name} has no LeakyReLU")
        slope = given if given is not None or layout is None else layout.negative_slope
        if slope is not None:
            for module in leaky:
                module.negative_slope = slope


def _measured(card: Mapping[str, Any], layer: str | None) -> EmbeddingModel:
    """A module of which nothing more is known: layer, token grid and pooling are measured where the card is silent."""
    # Imported here, because the search for layers brings the attribution methods with it.
    from captum_fam.models.pooled_layer import global_average, layer_of, probe_image

    if layer is not None and layer != card.get("layer"):
        # What the card says of the pooling holds for its own layer only.
        card = {**card, "layer": layer, "token_grid": None, "pooling": None}
    draft = EmbeddingModel(**{"layer": "", **card})
    found = layer_of(draft.model, draft.size, draft.any_size, draft.layer or None)
    pooling, head = draft.pooling, draft.head
    if pooling is None:
        pooling, head = global_average(draft.model, found, probe_image(draft.model, draft.size), [head])
    return dataclasses.replace(
        draft, layer=found.name, token_grid=draft.token_grid or found.token_grid, pooling=pooling, head=head
    )


def _with_layer(net: EmbeddingModel, layer: str) -> EmbeddingModel:
    """The model with another layer to explain, of which no pooling is claimed."""
    from captum_fam.models.pooled_layer import layer_of

    found = layer_of(net.model, net.size, net.any_size, layer)
    return dataclasses.replace(net, layer=layer, token_grid=found.token_grid, pooling=None)
