"""Every embedding model by name: registered models, and the models of torchvision and timm.

A package adds a model with :func:`register_model`, and declares the name as an entry point
(:mod:`captum_fam.models.entry_points`). Then the module that registers the model is imported when the name is first
used. The networks of the paper are registered in the same way.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, overload

from captum_fam.models.checkpoints import OWN_LAYOUT, Layout
from captum_fam.models.embedding_model import EmbeddingModel
from captum_fam.models.entry_points import declared_models, find_declaration, import_declared
from captum_fam.models.registered_model import CARD, RegisteredModel

_Factory = TypeVar("_Factory", bound=Callable[..., object])


class _Library(NamedTuple):
    """A library of models.

    Attributes:
        module: name of the module of this package for the library; it is imported when a model is first needed.
        names: name of the function in the module that lists the models.
        load: name of the function in the module that builds a model.
    """

    module: str
    names: str
    load: str


_LIBRARIES = {
    "torchvision": _Library("captum_fam.models.torchvision_models", "torchvision_names", "load_torchvision"),
    "timm": _Library("captum_fam.models.timm_models", "timm_names", "load_timm"),
}
_SHORT_NAMES = {"squeezenet": "squeezenet1_0", "conv4": "conv4net"}
_MODELS: dict[str, RegisteredModel] = {}


@overload
def register_model(
    name: str, factory: _Factory, *, layouts: Sequence[Layout] = ..., pretrained: bool = ..., **card: Any
) -> _Factory: ...


@overload
def register_model(
    name: str, factory: None = None, *, layouts: Sequence[Layout] = ..., pretrained: bool = ..., **card: Any
) -> Callable[[_Factory], _Factory]: ...


def register_model(
    name: str,
    factory: _Factory | None = None,
    *,
    layouts: Sequence[Layout] = (OWN_LAYOUT,),
    pretrained: bool = False,
    **card: Any,
) -> _Factory | Callable[[_Factory], _Factory]:
    """Register a model under a name, by which :func:`create_model` and the command line find the model.

    Args:
        name: a text without ``/`` and ``:`` that no other model has as its name.
        factory: a class or a function that makes the model: a :class:`torch.nn.Module` from images ``(B, 3, H, W)`` to
            embeddings ``(B, J)``, or an :class:`EmbeddingModel`. The factory takes the ``options`` of
            :func:`create_model`. None makes this function a decorator. Default: None.
        layouts: ways in which a file of weights may name the parameters. Default: the names in the model.
        pretrained: whether the factory gives a trained model, for which no file of weights is needed. Default: False.
        card: attributes of :class:`EmbeddingModel`: ``size``, ``any_size``, ``mean``, ``std``, ``layer``,
            ``token_grid``, ``pooling``, ``head``, ``similarity``, ``interpolation`` and ``evaluation_crop``. Attributes
            that are not given have the values in the :class:`EmbeddingModel` that the factory makes. For an
            :class:`EmbeddingNet` they are the layer ``features``, its pooling and its head. For any other module they
            are the layer that :func:`~captum_fam.find_layer` finds, global average pooling if the embedding is this
            average, and the defaults of :class:`EmbeddingModel`.

    Returns:
        ``factory`` itself, so that a decorated class stays a class; the decorator if ``factory`` is None.

    Raises:
        ValueError: if the name belongs to another model, an entry point or torchvision, or if it is not a text without
            ``/`` and ``:``.
        TypeError: if the factory is not callable, or a keyword is no attribute of the card.

    Example:
        >>> from torch import nn
        >>> @register_model("my_network", size=64, interpolation="bicubic")
        ... def my_network(width=8):
        ...     return nn.Sequential(nn.Conv2d(3, width, 5, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> net = create_model("my_network", width=16)
        >>> net.layer, net.size, net.pooling
        ('1', 64, GAP())
    """
    unknown = sorted(set(card) - CARD)
    if unknown:
        raise TypeError(f"model {name!r}: {', '.join(unknown)} is none of {', '.join(sorted(CARD))}")
    if factory is None:
        return lambda decorated: register_model(name, decorated, layouts=layouts, pretrained=pretrained, **card)
    if not callable(factory):
        raise TypeError(f"factory must be a class or a function that makes the model, got {factory!r}")
    _check_free(name)
    _MODELS[name] = RegisteredModel(name, factory, tuple(layouts), pretrained, card)
    return factory


def _check_free(name: str) -> None:
    if not isinstance(name, str) or not name or {"/", ":"} & set(name):
        raise ValueError(f"name must be a text without / and :, got {name!r}")
    if name in _MODELS:
        raise ValueError(f"name {name!r} is taken by another model; choose another name")
    if name in _SHORT_NAMES or name in _names_of("torchvision"):
        raise ValueError(f"name {name!r} is taken by a model of captum-fam or torchvision; choose another name")
    # The module that an entry point declares for the name may register the name. While that module runs, it is among
    # the imported modules, and find_declaration returns None.
    declaration = find_declaration(name)
    if declaration is not None:
        raise ValueError(f"name {name!r} is taken by the entry point {declaration}; choose another name")


def list_models(source: str = "registered") -> list[str]:
    """The names that :func:`create_model` knows, in alphabetical order.

    Args:
        source: ``"registered"`` for the names of :func:`register_model` and of entry points, the networks of the paper
            among them; the modules of the entry points are not imported. ``"torchvision"`` for the classification
            networks of torchvision, ``"timm"`` for all models of timm. Default: ``"registered"``.

    Returns:
        The names. Names in a library have the form ``torchvision/NAME`` and ``timm/NAME``.

    Raises:
        ImportError: for ``"timm"``, if timm is not installed.
        ValueError: for another source.

    Example:
        >>> "resnet12" in list_models(), "torchvision/resnet50" in list_models("torchvision")
        (True, True)
    """
    if source == "registered":
        return sorted({*_MODELS, *declared_models()})
    if source not in _LIBRARIES:
        known = ", ".join(map(repr, ("registered", *_LIBRARIES)))
        raise ValueError(f"source must be one of {known}, got {source!r}")
    return [f"{source}/{name}" for name in _names_of(source)]


def default_weights(name: str) -> str | None:
    """The argument ``weights`` with which :func:`create_model` gives a trained model without a file.

    Args:
        name: as in :func:`create_model`.

    Returns:
        ``"DEFAULT"`` for models of torchvision and timm, and for a registered model whose factory gives a trained
        model. None for a registered model that is only trained with a file of weights.

    Raises:
        ImportError: if the package of an entry point for this name cannot be imported.

    Example:
        >>> default_weights("resnet50"), default_weights("resnet12")
        ('DEFAULT', None)
    """
    registered = _find(_SHORT_NAMES.get(name, name))
    return "DEFAULT" if registered is None or registered.pretrained else None


def create_model(
    name: str,
    weights: str | Path | None = None,
    *,
    layer: str | None = None,
    negative_slope: float | None = None,
    **options: Any,
) -> EmbeddingModel:
    """Build an embedding model, with everything that an explanation needs to know about the model.

    Args:
        name: a name that :func:`list_models` lists. ``torchvision/NAME``, or NAME alone, is a classification network of
            torchvision without its classifier, and ``timm/NAME`` a model of timm. ``conv4`` is short for ``conv4net``,
            ``squeezenet`` for ``squeezenet1_0``. The weights that the paper calls MoCo are most likely
            ``lemniscate_resnet50_update.pth``, which ``npid_resnet50`` loads.
        weights: path of a file of weights, with the parameter names of this package or of any layout of the model. The
            networks of the paper have layouts for lemniscate, MoCo, ms-loss, ProtoNet, CloserLook, FRN, RelationNet,
            MetaOptNet, CAN and S2M2. ``"DEFAULT"`` downloads the pretrained weights of a model of torchvision or timm.
            None keeps the weights that the factory gives, which are mostly random. Default: None.
        layer: dotted name of the module to explain; None for the layer whose output is pooled, and for torchvision and
            timm the layer that :func:`~captum_fam.find_layer` finds. This layer depends on the weights; with random
            weights it may be another layer. Default: None.
        negative_slope: slope of the LeakyReLUs in a registered network for negative inputs; None for the slope in the
            network, or 0 (ReLU) for weights of a repository that trains with ReLU. Default: None.
        options: arguments of the factory of a registered network: ``drop_rate`` of ``resnet12``, ``dropout`` of
            ``wide_resnet28_10``, ...

    Returns:
        The model in eval mode, with layer, pooling, head, preprocessing and similarity.

    Raises:
        ValueError: for an unknown name or layer.
        WeightsError: (a ``ValueError``) if the weights cannot be found, downloaded or read, or do not fit the model.
            The message lists the parameters that are missing, unexpected or of another shape.
        TypeError: for options that the network does not have, or a factory that gives no network.
        ImportError: for a library that is not installed, or a package whose entry point for this name is broken.

    Example:
        >>> net = create_model("npid_resnet50", weights="lemniscate_resnet50.pth")
        >>> fam = LayerFAM(net.model, net.layer, similarity=net.similarity)
        >>> images = torch.stack([net.preprocess(PIL.Image.open(path)) for path in paths])
    """
    name = _SHORT_NAMES.get(name, name)
    registered = _find(name)
    if registered is not None:
        return registered.create(weights, layer, negative_slope, options)
    if negative_slope is not None or options:
        refused = ", ".join([*options, *(["negative_slope"] if negative_slope is not None else [])])
        raise TypeError(f"{refused}: only for registered networks, not for {name!r}")
    source, _, plain = name.rpartition("/")
    source = source or "torchvision"
    # A name for timm is not checked here: load_timm also knows names with the tag of weights, and refuses others.
    if source == "timm" or (source in _LIBRARIES and plain in _names_of(source)):
        load = getattr(import_module(_LIBRARIES[source].module), _LIBRARIES[source].load)
        net: EmbeddingModel = load(plain, weights, layer)
        return net
    known = [*list_models(), *_names_of("torchvision")]
    close = difflib.get_close_matches(name, known) or difflib.get_close_matches(plain, known)
    hint = f"did you mean {' or '.join(close)}?" if close else "list_models() lists them; timm's are timm/NAME"
    raise ValueError(f"model {name!r} is unknown; {hint}")


def _names_of(source: str) -> list[str]:
    names: list[str] = getattr(import_module(_LIBRARIES[source].module), _LIBRARIES[source].names)()
    return names


def _find(name: str) -> RegisteredModel | None:
    """The registered model of a name, after the import of the module that an entry point declares for the name."""
    if name in _MODELS or "/" in name or name in _names_of("torchvision"):
        return _MODELS.get(name)
    names_before = set(_MODELS)
    try:
        declaration = import_declared(name)
    except ImportError:
        # The next attempt imports the failed module again, and the module then registers the same names.
        for other in set(_MODELS) - names_before:
            if _MODELS[other].factory.__module__ not in sys.modules:
                del _MODELS[other]
        raise
    if declaration is not None and name not in _MODELS:
        raise ImportError(f"model {name!r}: the entry point {declaration} registers no model of this name")
    return _MODELS.get(name)
