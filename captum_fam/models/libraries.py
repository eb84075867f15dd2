"""The libraries whose models have names of the form ``LIBRARY/NAME``."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from captum_fam.models.embedding_model import EmbeddingModel
from captum_fam.models.model_settings import ModelSettings


class Library(NamedTuple):
    """A library of models.

    Attributes:
        module: name of the module of this package for the library; it is imported when a model is first needed.
        names: name of the function in the module that lists the names of the models.
        load: name of the function in the module that builds a model from a name, weights and settings.
        default_weights: name of the function in the module that gives the weights of a model by default; None if these
            are ``"DEFAULT"`` for every model. Default: None.
    """

    module: str
    names: str
    load: str
    default_weights: str | None = None


LIBRARIES = {
    "torchvision": Library("captum_fam.models.torchvision_models", "torchvision_names", "load_torchvision"),
    "timm": Library("captum_fam.models.timm_models", "timm_names", "load_timm"),
    "hf": Library("captum_fam.models.hf_models", "hf_names", "load_hf", "default_hf_weights"),
    "open_clip": Library(
        "captum_fam.models.open_clip_models", "open_clip_names", "load_open_clip", "default_open_clip_weights"
    ),
}
"""The libraries by the part of a name before the slash."""


def library_names(library: str) -> list[str]:
    """The names of the models of a library, without the name of the library.

    Args:
        library: key of :data:`LIBRARIES`.

    Returns:
        The names, in alphabetical order.

    Raises:
        ImportError: if the library is not installed.

    Example:
        >>> "resnet50" in library_names("torchvision")
        True
    """
    entry = LIBRARIES[library]
    names: list[str] = getattr(import_module(entry.module), entry.names)()
    return names


def load_from(library: str, name: str, weights: str | Path | None, settings: ModelSettings) -> EmbeddingModel:
    """Build a model of a library.

    Args:
        library: key of :data:`LIBRARIES`.
        name: name of the model, without the name of the library.
        weights: as in :func:`~captum_fam.models.create_model`.
        settings: settings of the user.

    Returns:
        The model in eval mode.

    Raises:
        ImportError: if the library is not installed.
        ValueError: for an unknown name, weights that cannot be downloaded or read, or settings that do not fit.

    Example:
        >>> load_from("torchvision", "resnet18", None, ModelSettings()).layer
        'layer4'
    """
    entry = LIBRARIES[library]
    net: EmbeddingModel = getattr(import_module(entry.module), entry.load)(name, weights, settings)
    return settings.applied_to(net)


def default_weights_of(library: str, name: str) -> str | None:
    """The weights of a model of a library by default, as :func:`~captum_fam.models.default_weights` gives them.

    Args:
        library: key of :data:`LIBRARIES`.
        name: name of the model, without the name of the library.

    Returns:
        ``"DEFAULT"``, or None for a model without trained weights.

    Raises:
        ImportError: if the library is not installed.

    Example:
        >>> default_weights_of("torchvision", "resnet50")
        'DEFAULT'
    """
    entry = LIBRARIES[library]
    if entry.default_weights is None:
        return "DEFAULT"
    weights: str | None = getattr(import_module(entry.module), entry.default_weights)(name)
    return weights
