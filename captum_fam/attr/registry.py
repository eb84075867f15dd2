"""Map methods by name, with the properties that callers need.

A map method is a class or function that takes ``(scores, layer, **options)``, a
:class:`~captum_fam.SimilarityToSupport` and a module, and returns an object whose ``attribute(inputs, target=...)``
gives maps ``(B, N, *spatial)``. Layer methods of Captum and of this package are map methods, and users can add methods
of their own. Every method explains tokens too: :meth:`MapMethod.create` passes on the grid of the tokens, or lays the
tokens out for a method that knows feature maps only. :func:`register_method` makes a method known by a name: in
``explain``, on the command line and in the tables of the experiments.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args

from captum.attr import LayerGradCam
from torch import Tensor, nn

from captum_fam._registration import check_not_taken
from captum_fam.attr.account import drop_noise
from captum_fam.attr.attention import LayerAttention, LayerAttentionRollout
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
from captum_fam.attr.token_layer import TokenLayerAttribution
from captum_fam.attr.tokens import TokenGridLike

Make = Callable[..., Any]
MakeOrDecorated = TypeVar("MakeOrDecorated", bound=Make)
Unit = Literal["score", "activation", "cosine", "none"]


@dataclass(frozen=True)
class MapMethod:
    """A map method and its properties.

    Attributes:
        name: the name of the method in ``explain``, on the command line and in tables.
        make: a class or function of ``(scores, layer, **options)``.
        takes_foil: whether the map depends on the foil. Default: True.
        needs_images: whether the support must hold images, because positions are compared. Default: False.
        signed: whether negative values are evidence against the match. Default: True.
        support_blind: whether the map depends on neither support nor foil, like the map of a baseline. Default: False.
        adds_up: whether the sum of the map is the score, so that the mean of the maps of several layers makes sense.
            Default: False.
        unit: unit of the values of the map: ``"score"``, ``"activation"`` (of the layer), ``"cosine"`` or ``"none"``. A
            map in the unit of the score or of a cosine can be so small that it is only rounding noise. Default:
            "score".
        needs_attention: whether the model must be a transformer, because its attention is shown. Default: False.

    Example:
        >>> get_method("uniform").support_blind
        True
    """

    name: str
    make: Make
    takes_foil: bool = True
    needs_images: bool = False
    signed: bool = True
    support_blind: bool = False
    adds_up: bool = False
    unit: Unit = "score"
    needs_attention: bool = False

    def create(
        self,
        scores: Callable[..., Any],
        layer: nn.Module | list[nn.Module],
        *,
        token_grid: TokenGridLike | None = None,
        **options: Any,
    ) -> Any:
        """Make the attribution object of the method for one model and layer.

        Args:
            scores: a :class:`~captum_fam.SimilarityToSupport`.
            layer: the layer to explain; a list of layers for a method that takes several.
            token_grid: lays tokens of the layer out as an image. Default: None, the layer gives feature maps.
            **options: further arguments of the constructor of the method.

        Returns:
            An object with ``attribute``. A method that does not take ``token_grid=`` itself, such as those of Captum,
            explains the grid of the tokens by a :class:`~captum_fam.attr.TokenLayerAttribution`.

        Raises:
            TypeError: for options that the method does not take.
            ValueError: for options with values that the method refuses.

        Example:
            >>> scores = SimilarityToSupport(model, images)
            >>> get_method("grad-cam").create(scores, model.layer4).attribute(queries, target=0).shape
            torch.Size([8, 1, 7, 7])
        """
        made = self.make(scores, layer, **options)
        if token_grid is None:
            return made
        takes_token_grid = "token_grid" in inspect.signature(self.make).parameters
        if takes_token_grid or isinstance(made, SimilarityLayerAttribution):
            return self.make(scores, layer, token_grid=token_grid, **options)
        if not isinstance(layer, nn.Module):
            raise TypeError(f"layer: {self.name} takes a single layer of tokens, got {type(layer).__name__}")
        return TokenLayerAttribution(self.make, scores, layer, token_grid, **options)

    def without_noise(self, maps: Tensor, magnitude: Callable[[], Tensor]) -> Tensor:
        """Set maps of this method that are only rounding noise to zero, so that no color scale can show the noise.

        A map is noise where its largest magnitude is at most a millionth of the magnitude of the numbers from which the
        map was computed (:func:`~captum_fam.attr.account.drop_noise`): the scores before a foil is subtracted, or 1 for
        cosines. Maps in the unit of the activation are returned unchanged: FAM has already set contributions to zero
        that are only rounding noise.

        Args:
            maps: ``(B, N, *spatial)``.
            magnitude: a function that gives the magnitudes of the scores, ``(B,)``; called for maps in the unit of the
                score only. See :attr:`Comparison.magnitude <captum_fam.Comparison.magnitude>`.

        Returns:
            The maps, ``(B, N, *spatial)``.
        """
        if self.unit == "cosine":
            return drop_noise(maps, maps.new_ones(len(maps)))
        return drop_noise(maps, magnitude()) if self.unit == "score" else maps


METHODS: dict[str, MapMethod] = {}
"""The registered methods by name. Read the table at the time of use, because :func:`register_method` adds methods."""


def register_method(
    name: str,
    make: MakeOrDecorated | None = None,
    *,
    takes_foil: bool = True,
    needs_images: bool = False,
    signed: bool = True,
    support_blind: bool = False,
    adds_up: bool = False,
    unit: Unit = "score",
    needs_attention: bool = False,
) -> Any:
    """Make a method known by a name. Call the function, or use it as a decorator of a class.

    Args:
        name: the name, of letters, digits, ``-``, ``_`` and ``+``.
        make: a class or function of ``(scores, layer, **options)``. Default: None, return a decorator.
        takes_foil: whether the map depends on the foil. Default: True.
        needs_images: whether the support must hold images. Default: False.
        signed: whether negative values are evidence against the match. Default: True.
        support_blind: whether the map depends on neither support nor foil. Default: False.
        adds_up: whether the sum of the map is the score. Default: False.
        unit: unit of the values of the map, see :class:`MapMethod`. Default: "score".
        needs_attention: whether the model must be a transformer. Default: False.

    Returns:
        ``make``; or without ``make`` a decorator that registers a class and returns it.

    Raises:
        ValueError: for a name that another method has, a name with other characters or one that ends in ``-foil``,
            ``-runner-up`` or ``-gallery``, or an unknown unit.
        TypeError: for something that cannot be called.

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
    if name.endswith(("-foil", "-runner-up", "-gallery")):
        raise ValueError(f"name {name!r} ends as the names of tables do that ask for a foil; choose another")
    if unit not in get_args(Unit):
        raise ValueError(f"unit must be one of {', '.join(get_args(Unit))}, got {unit!r}")

    def register(make: MakeOrDecorated) -> MakeOrDecorated:
        if not callable(make):
            raise TypeError(f"make must be a class or a function of (scores, layer), got {type(make).__name__}")
        check_not_taken(name, METHODS[name].make if name in METHODS else None, make, "method")
        METHODS[name] = MapMethod(
            name, make, takes_foil, needs_images, signed, support_blind, adds_up, unit, needs_attention
        )
        return make

    return register if make is None else register(make)


def get_method(method: str | Make | MapMethod) -> MapMethod:
    """Look up a method with its properties.

    Args:
        method: the name of a registered method; its class, which gives the same result; or a :class:`MapMethod`, which
            is returned. A class that is not registered gets its own name and the default properties.

    Raises:
        ValueError: for an unknown name.
        TypeError: for an argument that is neither a name, nor callable, nor a MapMethod.

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
    # A class that is registered keeps the properties that it was registered with.
    for registered in METHODS.values():
        if registered.make is method:
            return registered
    return MapMethod(getattr(method, "__name__", type(method).__name__), method)


def list_methods() -> list[str]:
    """The names of all registered methods, in the order of their registration.

    Example:
        >>> "grad-cam" in list_methods()
        True
    """
    return list(METHODS)


register_method("fam", LayerFAM, unit="activation")
register_method("similarity-cam", LayerSimilarityCAM, adds_up=True)
register_method("shapley", LayerSimilarityShapley)
register_method("grad-cam", LayerGradCam)
register_method("correspondence", LayerCorrespondence, needs_images=True, unit="cosine")
for _name, _make in (
    ("mean-activation", LayerMeanActivation),
    ("eigen-cam", LayerEigenCAM),
    ("random", LayerRandom),
    ("center", LayerCenterPrior),
    ("uniform", LayerUniform),
):
    register_method(_name, _make, takes_foil=False, signed=False, support_blind=True, unit="none")
for _name, _make in (("attention", LayerAttention), ("attention-rollout", LayerAttentionRollout)):
    register_method(_name, _make, takes_foil=False, signed=False, support_blind=True, unit="none", needs_attention=True)
