"""One way to name a model: `create_model`."""

from __future__ import annotations

import dataclasses
import difflib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from captum_fam._warnings import warn_user
from captum_fam.models.checkpoints import load_weights
from captum_fam.models.embedding_model import EmbeddingModel
from captum_fam.models.factories import call_factory, names_factory
from captum_fam.models.libraries import LIBRARIES, default_weights_of, library_names, load_from
from captum_fam.models.model_settings import ModelSettings
from captum_fam.models.outputs import Output
from captum_fam.models.own_models import ACCEPTED, as_embedding_model, class_in_words
from captum_fam.models.registry import SHORT_NAMES, find_registered, registered_names
from captum_fam.preprocessing import Resize

if TYPE_CHECKING:
    from captum_fam.attr import TokenGrid


def create_model(
    model: str | nn.Module | EmbeddingModel | tuple[nn.Module, nn.Module] | object,
    weights: str | Path | None = None,
    *,
    layer: str | None = None,
    output: Output | None = None,
    token_grid: TokenGrid | None = None,
    pooling: nn.Module | None = None,
    size: int | tuple[int, int] | None = None,
    resize: Resize | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    interpolation: str | None = None,
    similarity: str | None = None,
    negative_slope: float | None = None,
    **options: Any,
) -> EmbeddingModel:
    """Build an embedding model, with everything that an explanation needs to know about the model.

    What is not given is found: the layer by :func:`~captum_fam.find_layer`, the token grid and the pooling by
    measurement, and the preprocessing from what timm, open_clip and transformers write into their networks. If
    nothing is found, the preprocessing of ImageNet is assumed, with a warning.

    Args:
        model: a name, or a model itself. Names are

            - ``NAME`` or ``torchvision/NAME``: a classification network of torchvision, without its classifier
            - ``timm/NAME``: a model of timm, without its classifier
            - ``hf/NAME`` or ``hf/FOLDER``: a vision model of transformers: DINOv2, ViT, the image towers of CLIP and
              SigLIP, Swin, ConvNeXt, ResNet, ...; ``hf/TYPE``, such as ``hf/dinov2``, is its default architecture with
              random weights
            - ``open_clip/NAME``: the image tower of a model of open_clip
            - a registered name, as :func:`list_models` lists them, ``demo`` among them; ``conv4`` is short for
              ``conv4net``, ``squeezenet`` for ``squeezenet1_0``
            - ``package.module:factory`` or ``path/to/file.py:factory``: a function or class of your own that makes a
              model. Modules in the current folder are found.

            A model itself, or the product of a factory, is a :class:`torch.nn.Module` from images to embeddings, an
            :class:`EmbeddingModel`, a pair ``(trunk, embedder)`` of modules, or an ``InferenceModel`` of
            pytorch-metric-learning. It is put in eval mode.
        weights: path of a file of weights, with the parameter names of this package or of any layout of the model. The
            networks of the paper have layouts for lemniscate, MoCo, ms-loss, ProtoNet, CloserLook, FRN, RelationNet,
            MetaOptNet, CAN and S2M2. ``"DEFAULT"`` downloads the pretrained weights of a library. For open_clip it is
            also the tag of pretrained weights. None keeps the weights with which the model is made: for libraries and
            most registered models these are random. ``"none"`` is for random weights also where a registered model
            brings a file of trained ones; a factory of your own keeps what it makes. Default: None.
        layer: dotted name of the module to explain; None for the layer whose output is pooled, or that
            :func:`~captum_fam.find_layer` finds. This layer depends on the weights; with random weights it may be
            another layer. Default: None.
        output: which part of the output of the network is the embedding: the name of a field, an index of a tuple, or a
            function. None for an output ``(B, J)`` or ``(B, J, 1, 1)``, and for the fields ``image_embeds`` or else
            ``pooler_output``. Default: None.
        token_grid: layout of the tokens of the layer; None to measure it. Default: None.
        pooling: module from the output of the layer to one feature per channel; None for the global average, if the
            embedding is this average. Default: None.
        size: side of the square input, or ``(height, width)``, in pixels, at most 4096; None for the size of the model.
            Default: None.
        resize: what happens to the aspect ratio of a photograph: ``"squash"``, ``"pad"``, ``"crop"`` or ``"keep"``, as
            in :class:`~captum_fam.preprocessing.Preprocessing`; None for ``"squash"``. Default: None.
        mean: mean of each channel, for pixels in [0, 1]; None for the mean of the model. Default: None.
        std: standard deviation of each channel, for pixels in [0, 1]; None for that of the model. Default: None.
        interpolation: interpolation of the resizing; None for that of the model. Default: None.
        similarity: name of the similarity with which the model decides; None for that of the model, mostly
            ``"cosine"``. Default: None.
        negative_slope: slope of the LeakyReLUs in a registered network for negative inputs; None for the slope in the
            network, or 0 (ReLU) for weights of a repository that trains with ReLU. Default: None.
        options: arguments of a factory or of the factory of a registered network: ``drop_rate`` of ``resnet12``, ...

    Returns:
        The model in eval mode, with layer, pooling, head, preprocessing and similarity. Its ``notes`` state what was
        assumed and what looks wrong; each note is also a warning.

    Raises:
        ValueError: for an unknown name or layer, a factory that fails or gives no model, a network whose output holds
            no embedding, or settings that do not fit.
        WeightsError: (a ``ValueError``) if the weights cannot be found, downloaded or read, or do not fit the model.
            The message lists the parameters that are missing, unexpected or of another shape.
        TypeError: for an object that is no model, weights that are neither a text nor a path, options that the network
            does not have, or a registered factory that gives no network.
        ImportError: for a library that is not installed, code that cannot be imported, or a package whose entry point
            for this name is broken.

    Example:
        >>> net = create_model("npid_resnet50", weights="lemniscate_resnet50.pth")
        >>> fam = LayerFAM(net.model, net.layer, similarity=net.similarity)
        >>> images = torch.stack([net.preprocess(PIL.Image.open(path)) for path in paths])
    """
    settings = ModelSettings(layer, output, token_grid, pooling, size, resize, mean, std, interpolation, similarity)
    if weights is not None and not isinstance(weights, str | Path):
        raise TypeError(f"weights must be the path of a file or a name such as 'DEFAULT', got {type(weights).__name__}")
    if not isinstance(model, str):
        weights = None if weights == "none" else weights
        whose = f"models by name, not for an object of class {type(model).__name__}"
        _refuse(whose, weights=weights, **options, negative_slope=negative_slope)
        net = as_embedding_model(model, getattr(model, "name", type(model).__name__), settings)
    else:
        net = _create_by_name(model, weights, settings, negative_slope, options)
    for note in net.notes:
        warn_user(note, 2)
    return net


def list_models(source: str = "registered") -> list[str]:
    """The names that :func:`create_model` knows, in alphabetical order.

    Args:
        source: ``"registered"`` for the names of :func:`register_model` and of entry points, the networks of the paper
            among them; the modules of the entry points are not imported. ``"torchvision"`` for the classification
            networks of torchvision, ``"timm"`` for all models of timm, ``"open_clip"`` for all models of open_clip, and
            ``"hf"`` for the model types of transformers. Default: ``"registered"``.

    Returns:
        The names. Names in a library have the form ``LIBRARY/NAME``.

    Raises:
        ImportError: for a library that is not installed.
        ValueError: for another source.

    Example:
        >>> "resnet12" in list_models(), "torchvision/resnet50" in list_models("torchvision")
        (True, True)
    """
    if source == "registered":
        return registered_names()
    if source not in LIBRARIES:
        known = ", ".join(map(repr, ("registered", *LIBRARIES)))
        raise ValueError(f"source must be one of {known}, got {source!r}")
    return [f"{source}/{name}" for name in library_names(source)]


def default_weights(name: str) -> str | None:
    """The argument ``weights`` with which :func:`create_model` gives a trained model without a file.

    Args:
        name: as in :func:`create_model`.

    Returns:
        ``"DEFAULT"`` for models of libraries, for a factory, and for a registered model whose factory gives a trained
        model. None for a registered model that needs a file of weights, for a model type of transformers, for a folder
        without weights, and for a model of open_clip without pretrained weights.

    Raises:
        ImportError: if the package of an entry point for this name cannot be imported, or a library is not installed.

    Example:
        >>> default_weights("resnet50"), default_weights("resnet12"), default_weights("demo")
        ('DEFAULT', None, 'DEFAULT')
    """
    name = SHORT_NAMES.get(name, name)
    library, slash, plain = name.partition("/")
    if slash and library in LIBRARIES and not names_factory(name):
        return default_weights_of(library, plain)
    registered = find_registered(name)
    return "DEFAULT" if registered is None or registered.pretrained else None


def has_factory_weights(name: str) -> bool:
    """Whether a factory gives a model its weights, so that there are no random ones to ask for.

    Args:
        name: as in :func:`create_model`.

    Returns:
        True for a factory and for a registered model whose factory gives a trained model. False for a registered model
        whose trained weights are in a file, and for a library.

    Raises:
        ImportError: if the package of an entry point for this name cannot be imported.

    Example:
        >>> has_factory_weights("demo"), has_factory_weights("resnet50")
        (True, False)
    """
    registered = find_registered(SHORT_NAMES.get(name, name))
    return names_factory(name) or (registered is not None and registered.is_made_trained)


def _create_by_name(
    name: str,
    weights: str | Path | None,
    settings: ModelSettings,
    negative_slope: float | None,
    options: dict[str, Any],
) -> EmbeddingModel:
    name = SHORT_NAMES.get(name, name)
    library, slash, plain = name.partition("/")
    registered = find_registered(name)
    if registered is not None:
        return registered.create(weights, settings, negative_slope, options)
    weights = None if weights == "none" else weights
    if names_factory(name):
        _refuse(f"registered networks, not for {name!r}", negative_slope=negative_slope)
        return _create_by_factory(name, weights, settings, options)
    if not slash:
        library, plain = "torchvision", name
    # Names of timm have tags of weights, and names of a hub are in no list: the library itself refuses unknown names.
    if library in LIBRARIES and (library != "torchvision" or plain in library_names("torchvision")):
        whose = f"registered networks and factories, not for {name!r}"
        _refuse(whose, **options, negative_slope=negative_slope)
        return load_from(library, plain, weights, settings)
    raise ValueError(f"model {name!r} is unknown; {_hint(name)}")


def _create_by_factory(
    name: str, weights: str | Path | None, settings: ModelSettings, options: dict[str, Any]
) -> EmbeddingModel:
    made = call_factory(name, **options)
    if weights is not None and weights != "DEFAULT":
        network = made.model if isinstance(made, EmbeddingModel) else made
        if not isinstance(network, nn.Module):
            raise ValueError(f"weights: {name} gives a {type(made).__name__}, expected a torch.nn.Module to load them")
        layout = load_weights(network, weights)
        if isinstance(made, EmbeddingModel):
            made = dataclasses.replace(made, layout=layout.name)
    try:
        return as_embedding_model(made, name, settings)
    except TypeError as error:
        raise ValueError(f"model {name}: its factory must give {ACCEPTED}; got {class_in_words(made)}") from error


def _refuse(whose: str, **given: object) -> None:
    """Refuse arguments that a kind of model does not have; ``whose`` tells which kinds have them."""
    refused = [key for key, value in given.items() if value is not None]
    if refused:
        raise TypeError(f"{', '.join(refused)}: only for {whose}")


def _hint(name: str) -> str:
    """What a user may have meant by an unknown name, in words."""
    library, slash, plain = name.partition("/")
    if name.endswith(".py"):
        return f"a file needs its factory: {name}:FACTORY"
    known = [*registered_names(), *library_names("torchvision")]
    close = difflib.get_close_matches(name, known) or difflib.get_close_matches(name.rpartition("/")[2], known)
    if slash and library not in LIBRARIES:
        nearest = difflib.get_close_matches(library, LIBRARIES)
        prefix = nearest[0] if nearest else "hf"
        return f"did you mean {prefix}/{plain if nearest else name}?"
    if close:
        return f"did you mean {' or '.join(close)}?"
    return "list_models() lists them; those of libraries are timm/NAME, hf/NAME and open_clip/NAME"
