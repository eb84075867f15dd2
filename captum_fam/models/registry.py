"""Every embedding model by name: registered ones, torchvision's and timm's.

A package adds a model with :func:`register_model`, and declares the name as an entry point
(:mod:`captum_fam.models.entry_points`), so that the module which registers the model is imported when the name is first
asked for. The networks of the paper come through the same door.
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
    """A library of models: the module that is imported when one is asked for, and two functions in the module."""

    module: str
    names: str
    load: str


_LIBRARIES = {
    "torchvision": _Library("captum_fam.models.torchvision_models", "torchvision_names", "load_torchvision"),
    "timm": _Library("captum_fam.models.timm_models", "timm_names", "load_timm"),
}
_SHORT = {"squeezenet": "squeezenet1_0", "conv4": "conv4net"}
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
    """Give a model a name, by which :func:`create_model` and the command line find it from then on.

    Args:
        name: a text that is not taken, without ``/`` and ``:``.
        factory: a class or a function that makes the model: a :class:`torch.nn.Module` from images ``(B, 3, H, W)`` to
            embeddings ``(B, J)``, or an :class:`EmbeddingModel`. It takes the ``options`` of :func:`create_model`.
            Default: None, for use as a decorator.
        layouts: how files of weights may name the parameters. Default: as the model does.
        pretrained: whether the factory gives a trained model, for which no file of weights is needed. Default: False.
        card: what :class:`EmbeddingModel` says of the model: ``size``, ``any_size``, ``mean``, ``std``, ``layer``,
            ``token_grid``, ``pooling``, ``head``, ``similarity``, ``interpolation`` and ``evaluation_crop``. Default:
            what an :class:`EmbeddingModel` that the factory made says itself; ``features``, pooling and head of an
            :class:`EmbeddingNet`; for other modules the layer that :func:`~captum_fam.find_layer` finds, with global
            average pooling where that makes the embedding, and the defaults of :class:`EmbeddingModel`.

    Returns:
        ``factory`` itself, so that a decorated class stays what it is; without it the decorator.

    Raises:
        ValueError: for a name that is taken, by another model, an entry point or torchvision, or is no plain text.
        TypeError: for a factory that is not callable, or a word that is none of the card.

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
    if name in _SHORT or name in _names_of("torchvision"):
        raise ValueError(f"name {name!r} is taken by a model of captum-fam or torchvision; choose another name")
    # The module that is declared for the name may register it, and only runs once it is among the imported ones.
    declaration = find_declaration(name)
    if declaration is not None:
        raise ValueError(f"name {name!r} is taken by the entry point {declaration}; choose another name")


def list_models(source: str = "registered") -> list[str]:
    """The names that :func:`create_model` knows, in alphabetical order.

    Args:
        source: ``"registered"`` (default): those of :func:`register_model` and of entry points, which are not imported
            for that, the paper's networks among them; ``"torchvision"``: its classification networks; ``"timm"``: all
            models of timm.

    Raises:
        ImportError: for ``"timm"``, if it is not installed.
        ValueError: for another source.
    """
    if source == "registered":
        return sorted({*_MODELS, *declared_models()})
    if source not in _LIBRARIES:
        known = ", ".join(map(repr, ("registered", *_LIBRARIES)))
        raise ValueError(f"source must be one of {known}, got {source!r}")
    return [f"{source}/{name}" for name in _names_of(source)]


def default_weights(name: str) -> str | None:
    """What to give :func:`create_model` for trained weights where nobody gave a file.

    Returns:
        ``"DEFAULT"`` for torchvision, timm and a registered model whose factory gives a trained one; None for a
        registered model that only a file trains.

    Raises:
        ImportError: as :func:`create_model`.

    Example:
        >>> default_weights("resnet50"), default_weights("resnet12")
        ('DEFAULT', None)
    """
    registered = _find(_SHORT.get(name, name))
    return "DEFAULT" if registered is None or registered.pretrained else None


def create_model(
    name: str,
    weights: str | Path | None = None,
    *,
    layer: str | None = None,
    negative_slope: float | None = None,
    **options: Any,
) -> EmbeddingModel:
    """Build an embedding model and say how to explain it.

    Args:
        name: one of :func:`list_models`. ``torchvision/NAME``, or NAME alone, is a classification network of
            torchvision without its classifier, and ``timm/NAME`` a model of timm. ``conv4`` is short for ``conv4net``,
            ``squeezenet`` for ``squeezenet1_0``. What the paper calls MoCo is most likely
            ``lemniscate_resnet50_update.pth``, which ``npid_resnet50`` loads.
        weights: None (default): random ones, or those of the factory. A file of weights: ours, or with the names of
            one of the model's layouts; the paper's networks know those of lemniscate, MoCo, ms-loss, ProtoNet,
            CloserLook, FRN, RelationNet, MetaOptNet, CAN and S2M2. For torchvision and timm also ``"DEFAULT"``, which
            downloads the pretrained ones.
        layer: dotted name of the module to explain; None (default): the one whose output is pooled; for torchvision
            and timm what :func:`~captum_fam.find_layer` finds, with these weights: random ones are for trying out.
        negative_slope: of the LeakyReLUs in a registered network; None (default): as the network has them, or 0 (ReLU)
            for weights of a repository that trains with ReLU.
        options: of a registered network's factory: ``drop_rate`` of ``resnet12``, ``dropout`` of ``wide_resnet28_10``,
            ...

    Returns:
        The model in eval mode, with layer, pooling, head, preprocessing and similarity.

    Raises:
        ValueError: for an unknown name or layer.
        WeightsError: (a ``ValueError``) for weights that cannot be had, or do not fit; the message lists the
            parameters that are missing, left over or of another shape.
        TypeError: for options that the network does not have, or a factory that gives no network.
        ImportError: for a library that is not installed, or a package whose entry point for this name is broken.

    Example:
        >>> net = create_model("npid_resnet50", weights="lemniscate_resnet50.pth")
        >>> fam = LayerFAM(net.model, net.layer, similarity=net.similarity)
        >>> images = torch.stack([net.preprocess(PIL.Image.open(path)) for path in paths])
    """
    name = _SHORT.get(name, name)
    registered = _find(name)
    if registered is not None:
        return registered.create(weights, layer, negative_slope, options)
    if negative_slope is not None or options:
        given = ", ".join([*options, *(["negative_slope"] if negative_slope is not None else [])])
        raise TypeError(f"{given}: only for registered networks, not for {name!r}")
    source, _, plain = name.rpartition("/")
    source = source or "torchvision"
    # timm answers unknown names itself, because it also knows names with the tags of weights.
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
    """A registered model, after the import of the module that an entry point declares for the name."""
    if name in _MODELS or "/" in name or name in _names_of("torchvision"):
        return _MODELS.get(name)
    before = set(_MODELS)
    try:
        declaration = import_declared(name)
    except ImportError:
        # A module that failed is imported anew the next time, and must find its names free.
        for other in set(_MODELS) - before:
            if _MODELS[other].factory.__module__ not in sys.modules:
                del _MODELS[other]
        raise
    if declaration is not None and name not in _MODELS:
        raise ImportError(f"model {name!r}: the entry point {declaration} registers no model of this name")
    return _MODELS.get(name)
