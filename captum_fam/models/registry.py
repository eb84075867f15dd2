"""Registered models: every model by a name of its own.

A package adds a model with :func:`register_model`, and declares the name as an entry point
(:mod:`captum_fam.models.entry_points`). Then the module that registers the model is imported when the name is first
used. The networks of the paper are registered in the same way.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar, overload

from captum_fam._registration import check_not_taken
from captum_fam.models.checkpoints import OWN_LAYOUT, Layout
from captum_fam.models.entry_points import declared_models, find_declaration, import_declared
from captum_fam.models.libraries import library_names
from captum_fam.models.registered_model import SETTABLE, Reader, RegisteredModel

_Factory = TypeVar("_Factory", bound=Callable[..., object])

SHORT_NAMES = {"squeezenet": "squeezenet1_0", "conv4": "conv4net"}
"""Short names, and what they are short for."""

_MODELS: dict[str, RegisteredModel] = {}


@overload
def register_model(
    name: str,
    factory: _Factory,
    *,
    layouts: Sequence[Layout] = ...,
    pretrained: bool = ...,
    default_weights: Callable[[], str | Path] | None = ...,
    reader: Reader | None = ...,
    **attributes: Any,
) -> _Factory: ...


@overload
def register_model(
    name: str,
    factory: None = None,
    *,
    layouts: Sequence[Layout] = ...,
    pretrained: bool = ...,
    default_weights: Callable[[], str | Path] | None = ...,
    reader: Reader | None = ...,
    **attributes: Any,
) -> Callable[[_Factory], _Factory]: ...


def register_model(
    name: str,
    factory: _Factory | None = None,
    *,
    layouts: Sequence[Layout] = (OWN_LAYOUT,),
    pretrained: bool = False,
    default_weights: Callable[[], str | Path] | None = None,
    reader: Reader | None = None,
    **attributes: Any,
) -> _Factory | Callable[[_Factory], _Factory]:
    """Register a model under a name, by which :func:`~captum_fam.models.create_model` and the command line find it.

    Args:
        name: a text without ``/`` and ``:`` that no other model has as its name.
        factory: a class or a function that makes the model: a :class:`torch.nn.Module` from images ``(B, 3, H, W)`` to
            embeddings ``(B, J)``, or an :class:`EmbeddingModel`. The factory takes the ``options`` of
            :func:`~captum_fam.models.create_model`. None makes this function a decorator. Default: None.
        layouts: ways in which a file of weights may name the parameters. Default: the names in the model.
        pretrained: whether the factory gives a trained model, for which no file of weights is needed. Default: False.
        default_weights: function that gives the file of trained weights, such as a file in an installed package. The
            function is called where :func:`~captum_fam.models.create_model` gets no weights. Where the file is missing,
            the function raises an error that says how to get it. Default: None, no file.
        reader: function from the path of weights to what :func:`~captum_fam.models.load_weights` takes, for files of a
            form of their own. Default: None, the path itself.
        attributes: attributes of :class:`EmbeddingModel`: ``size``, ``any_size``, ``mean``, ``std``, ``layer``,
            ``token_grid``, ``pooling``, ``head``, ``similarity``, ``interpolation``, ``evaluation_crop``, ``resize``
            and ``notes``. Attributes that are not given have the values in the :class:`EmbeddingModel` that the
            factory makes. For an :class:`EmbeddingNet` they are the layer ``features``, its pooling and its head. For
            any other module they are the layer that :func:`~captum_fam.find_layer` finds, global average pooling if
            the embedding is this average, and the defaults of :class:`EmbeddingModel`.

    Returns:
        ``factory`` itself, so that a decorated class stays a class; the decorator if ``factory`` is None.

    Raises:
        ValueError: if the name belongs to another model, an entry point or torchvision, or if it is not a text without
            ``/`` and ``:``.
        TypeError: if the factory is not callable, or a keyword is none of these attributes.

    Example:
        >>> from torch import nn
        >>> @register_model("my_network", size=64, interpolation="bicubic")
        ... def my_network(width=8):
        ...     return nn.Sequential(nn.Conv2d(3, width, 5, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> net = create_model("my_network", width=16)
        >>> net.layer, net.size, net.pooling
        ('1', 64, GAP())
    """
    unknown = sorted(set(attributes) - SETTABLE)
    if unknown:
        raise TypeError(f"model {name!r}: {', '.join(unknown)} is none of {', '.join(sorted(SETTABLE))}")
    if factory is None:
        return lambda decorated: register_model(
            name,
            decorated,
            layouts=layouts,
            pretrained=pretrained,
            default_weights=default_weights,
            reader=reader,
            **attributes,
        )
    if not callable(factory):
        raise TypeError(f"factory must be a class or a function that makes the model, got {factory!r}")
    _check_free(name, factory)
    _MODELS[name] = RegisteredModel(
        name, factory, tuple(layouts), pretrained or default_weights is not None, attributes, default_weights, reader
    )
    return factory


def _check_free(name: str, factory: Callable[..., object]) -> None:
    if not isinstance(name, str) or not name or {"/", ":"} & set(name):
        raise ValueError(f"name must be a text without / and :, got {name!r}")
    check_not_taken(name, _MODELS[name].factory if name in _MODELS else None, factory, "model")
    if name in SHORT_NAMES or name in library_names("torchvision"):
        raise ValueError(f"name {name!r} is taken by a model of captum-fam or torchvision; choose another name")
    # The module that an entry point declares for the name may register the name. While that module runs, it is among
    # the imported modules, and find_declaration returns None.
    declaration = find_declaration(name)
    if declaration is not None:
        raise ValueError(f"name {name!r} is taken by the entry point {declaration}; choose another name")


def registered_names() -> list[str]:
    """The names of :func:`register_model` and of entry points, in alphabetical order.

    Returns:
        The names; the modules of the entry points are not imported.

    Example:
        >>> "resnet12" in registered_names()
        True
    """
    return sorted({*_MODELS, *declared_models()})


def find_registered(name: str) -> RegisteredModel | None:
    """The registered model of a name, after the import of the module that an entry point declares for the name.

    Args:
        name: name of a model, of any form.

    Returns:
        The entry of the registry; None for a name that is not registered.

    Raises:
        ImportError: if the package of an entry point for this name cannot be imported.

    Example:
        >>> find_registered("resnet12").name, find_registered("resnet50")
        ('resnet12', None)
    """
    if name in _MODELS or {"/", ":"} & set(name) or name in library_names("torchvision"):
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
