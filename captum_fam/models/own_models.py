"""Models of a user as embedding models: what the user does not set is found or measured."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from captum_fam._text import first_line
from captum_fam.found_preprocessing import evaluation_crop_of, input_dimensions, preprocessing_of
from captum_fam.geometry import height_and_width
from captum_fam.models.classifier import classifier_note
from captum_fam.models.embedding_model import EmbeddingModel
from captum_fam.models.model_settings import ModelSettings
from captum_fam.models.outputs import EmbeddingOutput, Output, TrunkAndEmbedder, give_embedding
from captum_fam.preprocessing import Preprocessing

ACCEPTED = (
    "a torch.nn.Module from images to embeddings, an EmbeddingModel, a pair (trunk, embedder) of modules, or an "
    "InferenceModel of pytorch-metric-learning"
)
"""The models other than names that :func:`~captum_fam.models.create_model` takes, in words."""


def as_embedding_model(source: object, name: str, settings: ModelSettings) -> EmbeddingModel:
    """Make an embedding model of what a user or a factory gives.

    Args:
        source: the model, in any form of :data:`ACCEPTED`. It is put in eval mode.
        name: name of the model.
        settings: settings of the user.

    Returns:
        The model in eval mode.

    Raises:
        TypeError: for anything else.
        ValueError: for a network that fails on an image or whose output holds no embedding, an unknown layer, or
            settings that do not fit.

    Example:
        >>> as_embedding_model((model, torch.nn.Linear(6, 2)), "mine", ModelSettings(size=64)).layer
        'trunk.layer4'
    """
    # A network may have its EmbeddingModel as an attribute, as the models in two parts of the experiments do.
    owned = getattr(source, "embedding_model", None)
    source = owned if isinstance(owned, EmbeddingModel) else source
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
        check_takes_images(source)
        return source
    if isinstance(source, tuple | list) and len(source) == 2:
        trunk, embedder = source
        if isinstance(trunk, nn.Module) and isinstance(embedder, nn.Module):
            return TrunkAndEmbedder(trunk, embedder)
    trunk, embedder = getattr(source, "trunk", None), getattr(source, "embedder", None)
    if isinstance(trunk, nn.Module) and isinstance(embedder, nn.Module):  # InferenceModel
        return TrunkAndEmbedder(trunk, embedder, unit_norm=bool(getattr(source, "normalize_embeddings", False)))
    raise TypeError(f"model must be a name, {ACCEPTED}; got {class_in_words(source)}")


def check_takes_images(module: nn.Module) -> None:
    """Refuse a network that takes images beside a text, as a whole CLIP model of transformers does.

    Args:
        module: the network.

    Raises:
        TypeError: if images (``pixel_values``) are not the first argument of the network.

    Example:
        >>> check_takes_images(nn.Flatten())
    """
    names = list(_parameters(module))
    if "pixel_values" in names[1:]:
        raise TypeError(
            f"model {type(module).__name__} takes {names[0]} first, and images as pixel_values: pass its vision tower, "
            "such as a CLIPVisionModelWithProjection in the place of a CLIPModel, or a module from images to embeddings"
        )


def missing_inputs(module: nn.Module) -> list[str]:
    """The inputs that a network needs beside a batch of images.

    Args:
        module: the network.

    Returns:
        Names of the parameters of ``forward`` without a default, but for the first.

    Example:
        >>> missing_inputs(nn.Bilinear(3, 4, 5))
        ['input2']
    """
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = list(_parameters(module).values())[1:]
    return [one.name for one in parameters if one.default is one.empty and one.kind not in kinds]


def _parameters(module: nn.Module) -> dict[str, inspect.Parameter]:
    """The parameters of ``forward``; none where they are not known, as for scripted modules."""
    try:
        return dict(inspect.signature(module.forward).parameters)
    except (TypeError, ValueError):
        return {}


def class_in_words(source: object) -> str:
    """The class of an object that is no model, for messages.

    Args:
        source: any object.

    Returns:
        The name of its class, with the classes of the elements of a tuple or a list.

    Example:
        >>> class_in_words((3, "a"))
        'tuple of int, str'
    """
    if inspect.isclass(source):
        return f"the class {source.__name__}; make an object of it"
    kind = type(source).__name__
    if isinstance(source, tuple | list):
        kind += f" of {', '.join(type(part).__name__ for part in source) or 'nothing'}"
    return kind


def _describe_module(module: nn.Module, name: str, settings: ModelSettings) -> EmbeddingModel:
    preprocessing, is_found = preprocessing_of(module)
    given = settings.of_preprocessing()
    found = {**attributes_of(preprocessing), "evaluation_crop": evaluation_crop_of(module)}
    notes = []
    if not is_found and not {"size", "mean", "std"} <= given.keys():
        assumed = {**found, **given}
        notes.append(
            f"the preprocessing of {name} is not known; assumed are images of {_size_in_words(assumed['size'])} "
            f"pixels, mean {_numbers(assumed['mean'])} and std {_numbers(assumed['std'])}: give size=, mean= and std= "
            "if they differ"
        )
    net = measure(settings.applied_to(EmbeddingModel(name, module, "", **found)), settings)
    # A user who says which part of the output is the embedding has looked at the output. The network runs once more
    # only where it has a classifier, which may give the embedding or not.
    has_classifier = settings.output is None and classifier_note(net.model) is not None
    note = classifier_note(net.model, _length(net)) if has_classifier else None
    return dataclasses.replace(net, notes=(*notes, *([note] if note else [])))


def _length(net: EmbeddingModel) -> int:
    """The length of the embedding, J, of one image."""
    from captum_fam.models.pooled_layer import probe_image

    with torch.no_grad():
        return int(net.model(probe_image(net.model, net.size, len(net.mean))).shape[1])


def attributes_of(preprocessing: Preprocessing) -> dict[str, Any]:
    """The attributes of an embedding model that a preprocessing gives.

    Args:
        preprocessing: the preprocessing of the model.

    Returns:
        Attributes of :class:`EmbeddingModel`, by name.

    Example:
        >>> attributes_of(Preprocessing(64))["size"]
        64
    """
    return {name: getattr(preprocessing, name) for name in ("size", "mean", "std", "interpolation")}


def measure(draft: EmbeddingModel, settings: ModelSettings, heads: Sequence[nn.Module | None] = ()) -> EmbeddingModel:
    """Measure what a draft of an embedding model lacks: the embedding, the layer, its token grid and its pooling.

    Args:
        draft: model with its preprocessing; its layer is "" where it is to be found.
        settings: settings of the user.
        heads: modules that may follow the pooling, of which the first that fits is taken; None in the sequence stands
            for no head. Default: the head of the draft.

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
    """Change an embedding model by the settings of a user.

    Args:
        net: the model.
        settings: settings of the user.

    Returns:
        The model. With another layer its pooling is None, because that layer need not be pooled into the embedding.

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
            "convolution, and create_model takes models of images; pass the network itself to explain(), with "
            "inputs and supports as tensors"
        )
    wanted = missing_inputs(draft.model.model if isinstance(draft.model, EmbeddingOutput) else draft.model)
    if wanted:
        raise ValueError(
            f"model {draft.name} needs {', '.join(wanted)} beside images; wrap it in a module from images to embeddings"
        )
    probe = probe_image(draft.model, draft.size, channels)
    # A network that fails and an output without an embedding are different errors.
    wrapped = draft.model if isinstance(draft.model, EmbeddingOutput) and output is None else None
    try:
        with torch.no_grad():
            made = draft.model(probe) if wrapped is None else wrapped.whole_output(probe)
    except (Exception, SystemExit) as error:  # a network of a user may fail in any way
        raise ValueError(
            f"model {draft.name} fails on an image of {channels} channels and {_size_in_words(draft.size)} pixels "
            f"({type(error).__name__}: {first_line(error)}); give the size that it takes as size= (--size)"
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
    height, width = height_and_width(size)
    return f"{height} x {width}"


def _numbers(values: tuple[float, ...]) -> str:
    shown = ", ".join(f"{value:g}" for value in values[:4])
    return f"({shown}{', ...' if len(values) > 4 else ''})"
