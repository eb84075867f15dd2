"""The methods of an explanation: the exact map with FAM beside it, or those that the user named."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from captum_fam.attr.registry import MapMethod, get_method
from captum_fam.similarity import Similarity

MethodLike = str | Callable[..., Any] | MapMethod
MethodsLike = MethodLike | Sequence[MethodLike] | None
"""A method, a sequence of methods, or None for the default."""

DEFAULT_METHODS = ("similarity-cam", "fam")
"""The methods that explain where the user names none: the map that adds up to the score, and the published method."""


@dataclass(frozen=True)
class ChosenMethods:
    """The methods of an explanation.

    Attributes:
        methods: the methods. The first gives the explanation, the others stand beside it.
        n_asked: how many of the methods the user asked for, or has to know about; the warnings of the others are kept
            in the explanation, but not issued.
        note: why a default method is missing; None if none is.
    """

    methods: tuple[MapMethod, ...]
    n_asked: int
    note: str | None = None

    @property
    def needs_images(self) -> bool:
        """Whether the support must hold images for one of the methods."""
        return any(method.needs_images for method in self.methods)


def read_methods(method: MethodsLike) -> tuple[MapMethod, ...] | None:
    """Look up the methods that the user named.

    Args:
        method: a name, a class or a :class:`~captum_fam.attr.MapMethod`; a sequence of these; or None.

    Returns:
        The methods; None for None.

    Raises:
        ValueError: for an unknown name, an empty sequence, or two methods of one name.
        TypeError: for something that is no method.

    Example:
        >>> [method.name for method in read_methods(["shapley", "fam"])]
        ['shapley', 'fam']
    """
    if method is None:
        return None
    named = method if isinstance(method, Sequence) and not isinstance(method, str) else [method]
    if not named:
        raise ValueError("method is an empty sequence, expected at least one method")
    methods = tuple(map(get_method, named))
    names = [one.name for one in methods]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"method has two methods of the name {twice!r}, whose files would have the same names")
    return methods


def choose_methods(named: tuple[MapMethod, ...] | None, similarity: Similarity, layer: object) -> ChosenMethods:
    """Choose the methods of an explanation.

    Args:
        named: the methods that the user named; None for the default.
        similarity: the similarity that the model decides with.
        layer: the layer or the list of layers that the user named; None for no layer.

    Returns:
        The methods. By default the exact map, with FAM beside it. FAM is alone for a similarity without linear weights,
        and the exact map is alone for a list of layers; a note says so.

    Example:
        >>> from captum_fam.similarity import get_similarity
        >>> [method.name for method in choose_methods(None, get_similarity("cosine"), "layer4").methods]
        ['similarity-cam', 'fam']
    """
    if named is not None:
        return ChosenMethods(named, len(named))
    exact, published = map(get_method, DEFAULT_METHODS)
    if not similarity.has_weights:
        note = (
            f"the similarity {type(similarity).__name__} has no linear weights, so that {exact.name} has no map of it: "
            f"{published.name} explains alone, without an account of the score"
        )
        return ChosenMethods((published,), 1, note)
    if layer is not None and not isinstance(layer, nn.Module | str):
        return ChosenMethods(
            (exact,), 1, f"{published.name} explains one layer: for a list of layers {exact.name} explains alone"
        )
    return ChosenMethods((exact, published), 1)


def check_options(methods: Sequence[MapMethod], options: Mapping[str, Any], function: str = "explain") -> None:
    """Refuse arguments that none of some methods takes.

    Args:
        methods: the methods.
        options: arguments of their constructors by name.
        function: what the user has called, for the message. Default: ``"explain"``.

    Raises:
        TypeError: for such an argument.

    Example:
        >>> check_options([get_method("fam"), get_method("random")], {"normalization": "none"})
    """
    unknown = [name for name in options if not any(_takes(method, name) for method in methods)]
    if unknown:
        names = ", ".join(method.name for method in methods)
        raise TypeError(
            f"neither {function}() nor the method{'s' * (len(methods) > 1)} {names} has an argument "
            f"{', '.join(map(repr, unknown))}"
        )


def options_of(method: MapMethod, options: Mapping[str, Any]) -> dict[str, Any]:
    """Those of some arguments that one method takes.

    Args:
        method: the method.
        options: arguments by name.

    Example:
        >>> options_of(get_method("fam"), {"normalization": "none", "biases": "apart"})
        {'normalization': 'none'}
    """
    return {name: value for name, value in options.items() if _takes(method, name)}


def options_in_words(method: MapMethod, options: Mapping[str, Any]) -> dict[str, str]:
    """Those of some arguments that one method takes, as JSON can represent them.

    Args:
        method: the method.
        options: arguments by name.

    Example:
        >>> options_in_words(get_method("similarity-cam"), {"biases": "apart", "token_grid": (7, 7)})
        {'biases': 'apart', 'token_grid': '(7, 7)'}
    """
    taken = options_of(method, options)
    return {name: value if isinstance(value, str) else repr(value) for name, value in taken.items()}


def _takes(method: MapMethod, name: str) -> bool:
    """Whether the constructor of a method has an argument; every method explains the grid of its tokens."""
    parameters = inspect.signature(method.make).parameters
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    return takes_all or name in parameters or name == "token_grid"
