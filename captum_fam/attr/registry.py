"""Map methods by name, with what a caller has to know of each.

A method is anything made as ``method(scores, layer, **options)`` from a :class:`~captum_fam.SimilarityToSupport` and a
module, with ``attribute(inputs, target=...)`` that gives ``(B, N, *spatial)``: the layer methods of Captum and of this
package, and your own. :func:`register_method` makes one known by a name, in ``explain``, on the command line and in the
tables of the experiments.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from captum.attr import LayerGradCam
from torch import Tensor

from captum_fam.attr.account import drop_noise
from captum_fam.attr.base import SimilarityLayerAttribution
from captum_fam.attr.baselines import (
    LayerCenterPrior,
    LayerEigenCAM,
    LayerMeanActivation,
    LayerRandom,
    LayerUniform,
)
from captum_fam.attr.layer_correspondence import LayerCorrespondence
from captum_fam.attr.layer_fam import LayerFAM
from captum_fam.attr.layer_similarity_cam import LayerSimilarityCAM
from captum_fam.attr.layer_similarity_shapley import LayerSimilarityShapley

Make = Callable[..., Any]
MakeOrDecorated = TypeVar("MakeOrDecorated", bound=Make)
Unit = Literal["score", "activation", "cosine", "none"]


@dataclass(frozen=True)
class MapMethod:
    """A map method and its properties.

    Attributes:
        name: by which it is asked for.
        make: a class or function of ``(scores, layer, **options)``.
        takes_foil: whether the map knows of a foil.
        needs_images: whether the support must hold images, because positions are compared.
        takes_tokens: whether it takes ``token_grid=``, which lays tokens out as an image.
        signed: whether negative values speak against the match.
        support_blind: whether the map knows neither support nor foil, as that of a baseline.
        adds_up: whether the map's sum is the score, so that maps of several layers have a mean.
        unit: of the map's values: the ``"score"``, the layer's ``"activation"``, a ``"cosine"``, or ``"none"``. In the
            unit of the score or a cosine, a map can be too small to be more than rounding noise.

    Example:
        >>> get_method("uniform").support_blind
        True
    """

    name: str
    make: Make
    takes_foil: bool = True
    needs_images: bool = False
    takes_tokens: bool = True
    signed: bool = True
    support_blind: bool = False
    adds_up: bool = False
    unit: Unit = "score"

    def without_noise(self, maps: Tensor, magnitude: Callable[[], Tensor]) -> Tensor:
        """Maps of this method; one that is only rounding noise is exactly zero, and no scale can bring it up.

        A map is noise where its largest value is within a millionth of what it is made of
        (:func:`~captum_fam.attr.account.drop_noise`): the scores before the foil, or one for cosines. Maps in the unit
        of the activation stay as they are: contributions that have cancelled to rounding are zero already.

        Args:
            maps: ``(B, N, *spatial)``.
            magnitude: gives that of the scores, ``(B,)``, where it is needed:
                :attr:`Comparison.magnitude <captum_fam.Comparison.magnitude>`.
        """
        if self.unit == "cosine":
            return drop_noise(maps, maps.new_ones(len(maps)))
        return drop_noise(maps, magnitude()) if self.unit == "score" else maps


METHODS: dict[str, MapMethod] = {}
"""The registered methods by name: look them up when they are needed, as :func:`register_method` adds to them."""


def register_method(
    name: str,
    make: MakeOrDecorated | None = None,
    *,
    takes_foil: bool = True,
    needs_images: bool = False,
    takes_tokens: bool = True,
    signed: bool = True,
    support_blind: bool = False,
    adds_up: bool = False,
    unit: Unit = "score",
) -> Any:
    """Make a method known by a name; as a function, or as a decorator of a class.

    Args:
        name: letters, digits, ``-``, ``_`` and ``+``.
        make: a class or function of ``(scores, layer, **options)``.
        takes_foil: whether the map knows of a foil. Default: True.
        needs_images: whether the support must hold images. Default: False.
        takes_tokens: whether it takes ``token_grid=``. Default: True.
        signed: whether negative values speak against the match. Default: True.
        support_blind: whether the map knows neither support nor foil. Default: False.
        adds_up: whether the map's sum is the score. Default: False.
        unit: of the map's values, see :class:`MapMethod`. Default: the score.

    Raises:
        ValueError: for a name that is taken or has other characters.

    Example:
        >>> from captum_fam.attr import LayerMaps, SimilarityLayerAttribution
        >>> @register_method("absolute-activation", support_blind=True, takes_foil=False, unit="activation")
        ... class LayerAbsoluteActivation(SimilarityLayerAttribution):
        ...     def map_layers(self, call):
        ...         (tensors,) = call.activations
        ...         return LayerMaps([tuple(tensor.abs().sum(1, keepdim=True) for tensor in tensors)])
        >>> explain(model, queries, images, method="absolute-activation").maps.shape
        torch.Size([8, 1, 224, 224])
    """
    if not isinstance(name, str) or not re.fullmatch(r"[\w+-]+", name):
        raise ValueError(f"name must be letters, digits, '-', '_' and '+', got {name!r}")
    if name in METHODS:
        raise ValueError(f"name {name!r} is taken by {METHODS[name].make.__name__}; choose another")

    def register(make: MakeOrDecorated) -> MakeOrDecorated:
        METHODS[name] = MapMethod(
            name, make, takes_foil, needs_images, takes_tokens, signed, support_blind, adds_up, unit
        )
        return make

    return register if make is None else register(make)


def get_method(method: str | Make | MapMethod) -> MapMethod:
    """A method by its name, its class, or itself; name and class give the same.

    A class that is not registered goes by its own name, and takes tokens where it is a
    :class:`~captum_fam.attr.base.SimilarityLayerAttribution`.

    Raises:
        ValueError: for an unknown name.
        TypeError: for anything that is neither a name nor callable.

    Example:
        >>> get_method("similarity-cam").adds_up, get_method(LayerSimilarityCAM).name
        (True, 'similarity-cam')
    """
    if isinstance(method, MapMethod):
        return method
    if isinstance(method, str):
        if method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)} or a layer method's class, got {method!r}")
        return METHODS[method]
    if not callable(method):
        raise TypeError(f"method must be a name or a layer method's class, got {type(method).__name__}")
    for known in METHODS.values():
        if known.make is method:
            return known
    is_own = isinstance(method, type) and issubclass(method, SimilarityLayerAttribution)
    return MapMethod(getattr(method, "__name__", type(method).__name__), method, takes_tokens=is_own)


def list_methods() -> list[str]:
    """The names of all methods.

    Example:
        >>> "grad-cam" in list_methods()
        True
    """
    return list(METHODS)


register_method("fam", LayerFAM, unit="activation")
register_method("similarity-cam", LayerSimilarityCAM, adds_up=True)
register_method("shapley", LayerSimilarityShapley)
register_method("grad-cam", LayerGradCam, takes_tokens=False)
register_method("correspondence", LayerCorrespondence, needs_images=True, unit="cosine")
for _name, _make in (
    ("mean-activation", LayerMeanActivation),
    ("eigen-cam", LayerEigenCAM),
    ("random", LayerRandom),
    ("center", LayerCenterPrior),
    ("uniform", LayerUniform),
):
    register_method(_name, _make, takes_foil=False, signed=False, support_blind=True, unit="none")
