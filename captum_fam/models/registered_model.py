"""A registered model: its factory, the parameter names in files of its weights, and its attributes for explanations."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from captum_fam.models.checkpoints import Layout, load_weights
from captum_fam.models.embedding_model import EmbeddingModel
from captum_fam.models.embedding_net import EmbeddingNet
from captum_fam.models.model_settings import ModelSettings
from captum_fam.models.own_models import adapt, measure
from captum_fam.models.weights_file import WeightsError

Reader = Callable[[str | Path], str | Path | Mapping[str, Tensor]]
"""A function from the path of weights to what `load_weights` takes."""

SETTABLE = {field.name for field in dataclasses.fields(EmbeddingModel)} - {"name", "model", "layout"}
"""Attributes of `EmbeddingModel` that a registration may set; the others are known only when the model is created."""


@dataclasses.dataclass(frozen=True)
class RegisteredModel:
    """An entry of the registry.

    Attributes:
        name: name of the model.
        factory: class or function that makes a :class:`torch.nn.Module` or an :class:`EmbeddingModel`.
        layouts: ways in which a file of weights may name the parameters.
        pretrained: whether the model is trained where no weights are given.
        attributes: attributes of :class:`EmbeddingModel` that the registration sets, by name.
        default_weights: function that gives the file of weights where none is given; None if the factory gives all that
            there is. Default: None.
        reader: function from the path of weights to what :func:`~captum_fam.models.load_weights` takes; None for the
            path itself. Default: None.
    """

    name: str
    factory: Callable[..., object]
    layouts: tuple[Layout, ...]
    pretrained: bool
    attributes: Mapping[str, Any]
    default_weights: Callable[[], str | Path] | None = None
    reader: Reader | None = None

    @property
    def is_made_trained(self) -> bool:
        """Whether the factory itself gives a trained model."""
        return self.pretrained and self.default_weights is None

    def create(
        self,
        weights: str | Path | None,
        settings: ModelSettings,
        negative_slope: float | None,
        options: Mapping[str, Any],
    ) -> EmbeddingModel:
        """Create the model.

        Args:
            weights: as in :func:`~captum_fam.models.create_model`.
            settings: settings of the user, which replace those of the registration.
            negative_slope: as in :func:`~captum_fam.models.create_model`.
            options: arguments of the factory, by name.

        Returns:
            The model in eval mode.

        Raises:
            ValueError: for an unknown layer, or settings that do not fit.
            WeightsError: (a ``ValueError``) if the weights cannot be found, read or loaded into the model.
            ImportError: if the default weights come with a package that is not installed.
            TypeError: if the factory refuses the options or returns no network, or if ``negative_slope`` is given and
                the network has no LeakyReLU.
        """
        if weights == "DEFAULT":
            if not self.pretrained:
                raise WeightsError(
                    f"weights: {self.name} has none that can be downloaded; give the path of a file of weights"
                )
            weights = None
        if weights == "none":
            if self.is_made_trained:
                raise WeightsError(f"weights: {self.name} is made with trained weights, and cannot have random ones")
            weights = None
        elif weights is None and self.default_weights is not None:
            weights = self.default_weights()
        product = self._call_factory(options)
        model = product.model if isinstance(product, EmbeddingModel) else product
        layout = None if weights is None else self._load(model, weights)
        attributes: dict[str, Any] = {**self.attributes, "name": self.name, "model": model.eval()}
        if layout is not None:
            attributes["layout"] = layout.name
            if layout.normalization is not None:
                attributes["mean"], attributes["std"] = ((value,) * 3 for value in layout.normalization)
        self._set_negative_slope(model, negative_slope, layout)
        if isinstance(product, EmbeddingModel):
            return adapt(dataclasses.replace(product, **attributes), settings)
        if isinstance(model, EmbeddingNet):
            attributes = {"layer": "features", "pooling": model.pooling, "head": model.head, **attributes}
            return adapt(EmbeddingModel(**attributes), settings)
        if settings.layer not in (None, attributes.get("layer")):
            # The registered token grid and pooling belong to the registered layer.
            attributes = {**attributes, "layer": "", "token_grid": None, "pooling": None}
        return measure(settings.applied_to(EmbeddingModel(**{"layer": "", **attributes})), settings)

    def _load(self, model: nn.Module, weights: str | Path) -> Layout:
        return load_weights(model, weights if self.reader is None else self.reader(weights), self.layouts)

    def _call_factory(self, options: Mapping[str, Any]) -> nn.Module | EmbeddingModel:
        try:
            product = self.factory(**options)
        except TypeError as error:
            raise TypeError(f"{self.name}: {error}") from error
        except SystemExit as error:  # as argparse raises it in the code of a user
            raise ValueError(f"{self.name}: its factory raised SystemExit: {error}") from error
        if not isinstance(product, nn.Module | EmbeddingModel):
            raise TypeError(
                f"{self.name}: its factory gave a {type(product).__name__}, expected a torch.nn.Module or an "
                "EmbeddingModel"
            )
        return product

    def _set_negative_slope(self, model: nn.Module, requested: float | None, layout: Layout | None) -> None:
        """Set the slope of all LeakyReLUs: the requested slope, else the slope of the weights' authors, else as is."""
        leaky = [module for module in model.modules() if isinstance(module, nn.LeakyReLU)]
        if requested is not None and not leaky:
            raise TypeError(f"negative_slope: {self.name} has no LeakyReLU")
        slope = requested if requested is not None or layout is None else layout.negative_slope
        if slope is not None:
            for module in leaky:
                module.negative_slope = slope
