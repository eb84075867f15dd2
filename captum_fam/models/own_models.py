"""Models of a user as embedding models: what is not said of them is found or measured."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Sequence

import torch
from torch import nn

from captum_fam.found_preprocessing import input_dimensions, preprocessing_of
from captum_fam.models.classifier import classifier_note
from captum_fam.models.embedding_model import EmbeddingModel
from captum_fam.models.model_settings import ModelSettings
from captum_fam.models.outputs import EmbeddingOutput, Output, TrunkAndEmbedder, give_embedding

ACCEPTED = (
    "a torch.nn.Module from images to embeddings, an EmbeddingModel, a pair (trunk, embedder) of modules, an "
    "InferenceModel of pytorch-metric-learning, or the name of a model"
)
"""What :func:`~captum_fam.models.create_model` takes, in words."""


def describe(source: object, name: str, settings: ModelSettings) -> EmbeddingModel:
    """Make an embedding model of what a user or a factory gives.

    Args:
        source: the model, in any form of :data:`ACCEPTED` but a name. A network is put in eval mode.
        name: name of the model.
        settings: what is said of the model.

    Returns:
        The model in eval mode.

    Raises:
        TypeError: for anything else.
        ValueError: for a network that fails on an image or whose output holds no embedding, an unknown layer, or
            settings that do not fit.

    Example:
        >>> describe((model, torch.nn.Linear(6, 2)), "mine", ModelSettings(size=64)).layer
        'trunk.layer4'
    """
    # A module may bring its own card, as the models in two parts of the experiments do.
    card = getattr(source, "embedding_model", None)
    source = card if isinstance(card, EmbeddingModel) else source
    if isinstance(source, EmbeddingModel):
        source.model.eval()
        return adapt(source, settings)
    return _describe_module(as_module(source).eval(), name, settings)


def as_module(source: object) -> nn.Module:
    """The network of what a user gives as a model.

    Args:
        source: a module, a ``(trunk, embedder)`` pair of modules, or an ``InferenceModel`` of pytorch-metric-learning.

    Returns:
        The module itself, or trunk and embedder as one module.

    Raises:
        TypeError: for anything else.

    Example:
        >>> as_module((nn.Flatten(), nn.Linear(12, 4)))(torch.rand(2, 3, 2, 2)).shape
        torch.Size([2, 4])
    """
    if isinstance(source, nn.Module):
        return source
    if isinstance(source, tuple | list) and len(source) == 2:
        trunk, embedder = source
        if isinstance(trunk, nn.Module) and isinstance(embedder, nn.Module):
            return TrunkAndEmbedder(trunk, embedder)
    trunk, embedder = getattr(source, "trunk", None), getattr(source, "embedder", None)
    if isinstance(trunk, nn.Module) and isinstance(embedder, nn.Module):  # InferenceModel
        return TrunkAndEmbedder(trunk, embedder, unit_norm=bool(getattr(source, "normalize_embeddings", False)))
    kind = type(source).__name__
    if isinstance(source, tuple | list):
        kind += f" of {', '.join(type(part).__name__ for part in source) or 'nothing'}"
    if inspect.isclass(source):
        kind = f"the class {source.__name__}; make an object of it"
    raise TypeError(f"model must be {ACCEPTED}; got {kind}")


def _describe_module(module: nn.Module, name: str, settings: ModelSettings) -> EmbeddingModel:
    preprocessing, is_found = preprocessing_of(module)
    said = settings.of_preprocessing()
    found = {key: getattr(preprocessing, key) for key in ("size", "mean", "std", "interpolation")}
    notes = []
    if not is_found and not {"size", "mean", "std"} <= said.keys():
        assumed = {**found, **said}
        notes.append(
            f"the preprocessing of {name} is not known; assumed are images of {_size_in_words(assumed['size'])} "
            f"pixels, mean {_numbers(assumed['mean'])} and std {_numbers(assumed['std'])}: say size, mean and std "
            "where they differ"
        )
    net = measure(settings.applied_to(EmbeddingModel(name, module, "", **found)), settings)
    note = classifier_note(net.model)
    return dataclasses.replace(net, notes=(*notes, *([note] if note else [])))


def measure(draft: EmbeddingModel, settings: ModelSettings, heads: Sequence[nn.Module | None] = ()) -> EmbeddingModel:
    """Measure what a draft of an embedding model lacks: the embedding, the layer, its token grid and its pooling.

    Args:
        draft: model with its preprocessing; its layer is "" where it is to be found.
        settings: what is said of the model.
        heads: modules that may follow the pooling. Default: the head of the draft.

    Returns:
        The model.

    Raises:
        ValueError: for a network that fails on an image or whose output holds no embedding, or an unknown layer.

    Example:
        >>> measure(EmbeddingModel("mine", model, "", size=64), ModelSettings()).layer
        'layer4'
    """
    # Imported here, because the search for layers imports all attribution methods.
    from captum_fam.models.pooled_layer import global_average, layer_of, probe_image

    channels = len(draft.mean)
    draft = dataclasses.replace(draft, model=_embedder(draft, settings.output))
    layer = _known_layer(draft.model, settings.layer or draft.layer or None)
    pooling, head = draft.pooling, draft.head
    found_layer = layer_of(draft.model, draft.size, draft.any_size, layer, channels)
    if pooling is None:
        probe = probe_image(draft.model, draft.size, channels)
        pooling, head = global_average(draft.model, found_layer, probe, heads or [head])
    return dataclasses.replace(
        draft,
        layer=found_layer.name,
        token_grid=draft.token_grid or found_layer.token_grid,
        pooling=pooling,
        head=head,
    )


def adapt(net: EmbeddingModel, settings: ModelSettings) -> EmbeddingModel:
    """Change an embedding model to what a user says of it.

    Args:
        net: the model.
        settings: what is said of the model.

    Returns:
        The model. Another layer has no pooling: it need not be what is pooled into the embedding.

    Raises:
        ValueError: for an output that holds no embedding, an unknown layer, or settings that do not fit.

    Example:
        >>> adapt(EmbeddingModel("mine", model, "layer4"), ModelSettings(size=(64, 96))).size
        (64, 96)
    """
    from captum_fam.models.pooled_layer import layer_of

    if settings.output is not None:
        model = _embedder(net, settings.output)
        net = dataclasses.replace(net, model=model, layer=_known_layer(model, net.layer) or net.layer, pooling=None)
    layer = _known_layer(net.model, settings.layer)
    if layer is not None and layer != net.layer:
        found_layer = layer_of(net.model, net.size, net.any_size, layer, len(net.mean))
        net = dataclasses.replace(net, layer=layer, token_grid=found_layer.token_grid, pooling=None)
    return settings.applied_to(net)


def _embedder(draft: EmbeddingModel, output: Output | None) -> nn.Module:
    """The module that gives the embedding of a draft, tried on an image."""
    from captum_fam.models.pooled_layer import probe_image

    channels, dimensions = len(draft.mean), input_dimensions(draft.model)
    if dimensions != 2:
        raise ValueError(
            f"model {draft.name} takes {'signals' if dimensions == 1 else 'volumes or videos'}, by its first "
            "convolution, and create_model describes models of images; pass the network itself to explain(), with "
            "inputs and supports as tensors"
        )
    probe = probe_image(draft.model, draft.size, channels)
    # An output without an embedding is another error than a network that fails.
    wrapped = draft.model if isinstance(draft.model, EmbeddingOutput) and output is None else None
    try:
        with torch.no_grad():
            made = draft.model(probe) if wrapped is None else wrapped.whole_output(probe)
    except Exception as error:  # a network of a user may fail in any way
        raise ValueError(
            f"model {draft.name} fails on an image of {channels} channels and {_size_in_words(draft.size)} pixels "
            f"({type(error).__name__}: {str(error).partition(chr(10))[0]}); say which size it takes with size= (--size)"
        ) from error
    try:
        if wrapped is None:
            return give_embedding(draft.model, output, made)
        give_embedding(wrapped.model, wrapped.output, made)
    except (TypeError, ValueError) as error:
        raise ValueError(f"model {draft.name}: {error}") from error
    return wrapped


def _known_layer(model: nn.Module, layer: str | None) -> str | None:
    """The name of a layer inside an EmbeddingOutput, where the user knows the network without it."""
    if layer is not None and isinstance(model, EmbeddingOutput):
        names = dict(model.named_modules())
        if layer not in names and f"model.{layer}" in names:
            return f"model.{layer}"
    return layer


def _size_in_words(size: int | tuple[int, int]) -> str:
    height, width = (size, size) if isinstance(size, int) else size
    return f"{height} x {width}"


def _numbers(values: tuple[float, ...]) -> str:
    shown = ", ".join(f"{value:g}" for value in values[:4])
    return f"({shown}{', ...' if len(values) > 4 else ''})"
