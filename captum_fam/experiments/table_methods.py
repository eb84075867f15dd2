"""The methods and baselines of a table, by name.

``NAME`` is a method of :mod:`captum_fam.attr.registry` or a baseline in :data:`DRAWN`. ``NAME-foil`` explains the score
minus the score of the foil, ``NAME-runner-up`` the score minus the score of the runner-up for any choice of the foil,
and ``NAME-gallery`` the score minus the mean similarity to the gallery, the images of other classes.
``NAME[option=value,...]`` sets options of the method, for example ``fam[normalization=maxabs]-foil``.

A method explains the activation at which the model is cut. ``NAME[layers=LAYER]`` explains another layer, behind the
cut, by its name in the tail of the model. ``similarity-cam[layers=activation+rest.features.10+rest]`` gives the mean of
the maps of several layers: each map adds up to the same score, so that the mean does too.

``NAME[smooth=5]`` passes the map through a mean filter of 5 x 5 positions that keeps the sum of the map
(:func:`~captum_fam.functional.smooth_maps`); the mean of several layers is filtered as one map.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from captum_fam.attr.account import mean_of_layers
from captum_fam.attr.details import check_map
from captum_fam.attr.registry import METHODS, get_method
from captum_fam.attr.tokens import TokenGridLike
from captum_fam.cli.parser import did_you_mean
from captum_fam.experiments.two_part_model import Tail
from captum_fam.functional import check_window, smooth_maps
from captum_fam.metrics import box_mask, centered_box
from captum_fam.support import SimilarityToSupport

Foil = Literal["others", "runner-up", "gallery"]
ScoresFor = Callable[[Foil | None], SimilarityToSupport]
Computed = TypeVar("Computed")

DEFAULT_METHODS = (
    "fam",
    "fam-foil",
    "similarity-cam",
    "similarity-cam-foil",
    "grad-cam",
    "grad-cam-foil",
    "mean-activation",
    "eigen-cam",
    "random",
    "center",
    "center-box",
    "uniform",
)


class Drawing(NamedTuple):
    """The mask and the box of a baseline whose map is flat, so that min-max would leave neither.

    Attributes:
        mask: mask in [0, 1] of the size of the images, ``(B, 1, H, W)``, which is also the energy of the baseline.
        box: left, top, right and bottom in pixels, ``(4,)``.
    """

    mask: Tensor
    box: Tensor


class Account(NamedTuple):
    """The sum of each map, and the score that it explains, with its foil: ``(B,)`` each."""

    sums: Tensor
    scores: Tensor


class Maps(NamedTuple):
    """The maps of a method for a batch.

    Attributes:
        maps: ``(B, 1, h, w)``, detached.
        account: sums and explained scores, for a method whose maps add up to the score; None for all other methods.
            Default: None.
        drawing: mask and box of a baseline that draws them itself; None for all other methods. Default: None.
    """

    maps: Tensor
    account: Account | None = None
    drawing: Drawing | None = None


def draw_center_box(activation: Tensor, size: tuple[int, int]) -> Maps:
    """The map that is one inside the box in the middle of the image, and zero outside.

    The map has the size of the image, because a smaller map could not have the edges of the box.

    Args:
        activation: ``(B, N, h, w)``, for the batch size, dtype and device.
        size: height and width of the images, in pixels.

    Example:
        >>> draw_center_box(torch.rand(2, 6, 7, 7), (224, 224)).maps.shape
        torch.Size([2, 1, 224, 224])
    """
    box = centered_box(size).to(activation.device)
    return Maps(box_mask(box[None], size).to(activation).expand(len(activation), 1, *size))


def draw_uniform(activation: Tensor, size: tuple[int, int]) -> Maps:
    """The map that is one everywhere, with the whole image as its box, and with a mask of 0.5 everywhere.

    Args:
        activation: ``(B, N, h, w)``, for the shape, dtype and device.
        size: height and width of the images, in pixels.

    Example:
        >>> draw_uniform(torch.rand(2, 6, 7, 7), (224, 224)).drawing.box
        tensor([  0.,   0., 224., 224.])
    """
    mask = activation.new_full((len(activation), 1, *size), 0.5)
    box = torch.tensor([0.0, 0.0, size[1], size[0]], device=activation.device)
    return Maps(torch.ones_like(activation[:, :1]), drawing=Drawing(mask, box))


DRAWN: dict[str, Callable[[Tensor, tuple[int, int]], Maps]] = {"center-box": draw_center_box, "uniform": draw_uniform}
"""Baselines by name whose maps do not depend on the images: functions of the activation and the size of the images."""

# Options of methods whose edges do not fit the grid of an activation, with the baseline that replaces them.
_DRAWN_INSTEAD = {("center", "box"): "center-box"}


def list_table_methods() -> tuple[str, ...]:
    """The names of all methods and baselines, registered methods included.

    Example:
        >>> "fam" in list_table_methods(), "uniform" in list_table_methods()
        (True, True)
    """
    return tuple(dict.fromkeys((*METHODS, *DRAWN)))


@dataclass(frozen=True)
class TableMethod:
    """A method of a table.

    Attributes:
        name: full name, with foil and options.
        base: name without foil and options.
        foil: foil whose score is subtracted from the explained score; None for no foil. Default: None.
        options: options of the constructor of the method. Default: none.
        layers: names of the explained layers in the tail of the model; the maps of several layers are averaged.
            Default: ``("activation",)``.
        smooth: side of the mean filter of the maps, in positions, odd; 1 for no filter. Default: 1.
    """

    name: str
    base: str
    foil: Foil | None = None
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    layers: tuple[str, ...] = ("activation",)
    smooth: int = 1

    def maps(
        self, scores_for: ScoresFor, tail: Tail, activation: Tensor, target: Tensor, size: tuple[int, int]
    ) -> Maps:
        """Compute the maps of a batch.

        Args:
            scores_for: function from a foil to the scores of activations.
            tail: tail of the model.
            activation: ``(B, N, h, w)``, or tokens for a tail with a token grid.
            target: the explained class of each query, ``(B,)``.
            size: height and width of the images, in pixels.

        Returns:
            Maps ``(B, 1, h, w)``, without rounding noise, with their account of the score.

        Raises:
            ValueError: for a layer that the tail does not have.
        """
        grid = tail.token_grids.get("activation")
        feature_maps = activation if grid is None else grid(activation)
        if self.base in DRAWN:
            return DRAWN[self.base](feature_maps, size)
        layers = self.modules(tail)
        has_several_layers = len(layers) > 1
        scores = scores_for(self.foil)
        entry = get_method(self.base)
        options: dict[str, Any] = {"token_grid": self.token_grid(tail), **self.options}
        attribution = entry.create(scores, layers if has_several_layers else layers[0], **options)
        # The warning of a low coverage is left out: the coverage has its own column, and each batch would warn again.
        attribution.has_warned = True
        details = attribution.details(activation, target=target) if hasattr(attribution, "details") else None
        if details is None:
            maps = attribution.attribute(activation, target=target)
        else:
            # Only methods whose maps add up to the score explain several layers.
            maps = mean_of_layers(details.attributions) if has_several_layers else details.attributions
        maps = check_map(maps, feature_maps).detach().sum(1, keepdim=True)

        @torch.no_grad()
        def magnitude() -> Tensor:
            comparison = None if details is None else details.comparison
            score_magnitude: Tensor = (scores.compare(activation) if comparison is None else comparison).magnitude
            return score_magnitude

        # A map that is only rounding noise becomes zero.
        clean_maps = entry.without_noise(maps, magnitude)
        account = None
        if details is not None and details.coverage is not None:
            account = Account(clean_maps.flatten(1).sum(1), details.comparison.score.detach())
        # The filter keeps the sum.
        return Maps(smooth_maps(clean_maps, self.smooth), account)

    def token_grid(self, tail: Tail) -> TokenGridLike | None:
        """The layout of the tokens of the explained layers; None for feature maps.

        Args:
            tail: tail of the model.

        Raises:
            ValueError: for several layers with different layouts.
        """
        grids = [tail.token_grids.get(layer) for layer in self.layers]
        if any(grid != grids[0] for grid in grids):
            raise ValueError(
                f"method {self.name!r}: its layers lay out their tokens differently; name layers of one layout"
            )
        return grids[0]

    def modules(self, tail: Tail) -> list[nn.Module]:
        """The explained layers.

        Args:
            tail: tail of the model.

        Raises:
            ValueError: for a name that the tail does not have.
        """
        known = dict(tail.named_modules())
        missing = [layer for layer in self.layers if not layer or layer not in known]
        if missing:
            # The message lists the modules of the network, without the modules inside its blocks.
            names = [name for name in known if name == "activation" or re.fullmatch(r"rest(\.\w+){0,2}", name)]
            raise ValueError(
                f"method {self.name!r}: {', '.join(missing)} is no layer behind the activation, where the model is "
                f"cut; there are {', '.join(names)}. Cut the model before the first layer that you name (--layer)"
            )
        return [known[layer] for layer in self.layers]

    @property
    def needs_images(self) -> bool:
        """Whether the method needs the supports before they are embedded, for example to compare positions."""
        return self.base not in DRAWN and get_method(self.base).needs_images

    @property
    def is_signed(self) -> bool:
        """Whether the maps are signed: positive values are evidence for the match, negative values against it."""
        return self.base not in DRAWN and get_method(self.base).signed


def once_for_all_windows(compute: Callable[[TableMethod], Computed]) -> Callable[[TableMethod], Computed]:
    """Make a function compute once for methods that differ in the window of their filter only.

    Args:
        compute: function of a method without a filter.

    Returns:
        A function of any method, which calls ``compute`` for the first of such methods, and gives its result for all.
    """
    results: dict[TableMethod, Computed] = {}

    def computed(method: TableMethod) -> Computed:
        key = replace(method, name=method.base, smooth=1)
        if key not in results:
            results[key] = compute(replace(method, smooth=1))
        return results[key]

    return computed


def get_methods(names: str | Sequence[str], foil: Foil = "others") -> tuple[TableMethod, ...]:
    """Methods by name.

    Args:
        names: ``NAME``, ``NAME-foil``, ``NAME-runner-up``, ``NAME-gallery`` or ``NAME[option=value,...]``; several
            names in a list, or separated by commas.
        foil: the foil of ``NAME-foil``: ``"others"`` for the mean of all other classes, or ``"runner-up"``. Default:
            ``"others"``.

    Returns:
        The methods without repetitions.

    Raises:
        ValueError: for an unknown name or an option that cannot be read.

    Example:
        >>> [method.base for method in get_methods("fam, grad-cam-foil")]
        ['fam', 'grad-cam']
    """
    # Commas in brackets separate options, all other commas separate names.
    separate = re.split(r",(?![^\[]*\])", names) if isinstance(names, str) else list(names)
    return tuple(dict.fromkeys(_parse(name.strip(), foil) for name in separate if name.strip()))


def _parse(name: str, foil: Foil) -> TableMethod:
    parts = re.fullmatch(r"([\w+-]+?)(?:\[([^\]]*)\])?(-foil|-runner-up|-gallery)?", name)
    known = list_table_methods()
    if parts is None or parts[1] not in known:
        raise ValueError(
            f"method {name!r} is unknown{did_you_mean(name if parts is None else parts[1], known)}; give "
            f"{', '.join(known)}; a name may end with -foil, -runner-up or -gallery, or with [option=value,...] as in "
            "fam[normalization=none], [layers=LAYER+LAYER] or [smooth=N]"
        )
    base, in_brackets, suffix = parts.groups()
    options: dict[str, Any] = {}
    for part in filter(None, (in_brackets or "").split(",")):
        key, equals, value = part.partition("=")
        if not equals:
            raise ValueError(f"method {name!r}: expected option=value in the brackets, got {part!r}")
        options[key.strip()] = _number_or_text(value.strip())
    layers = tuple(layer.strip() for layer in str(options.pop("layers", "activation")).split("+"))
    smooth = check_window(f"method {name!r}: smooth", options.pop("smooth", 1))
    for option in options:
        if (base, option) in _DRAWN_INSTEAD:
            baseline = _DRAWN_INSTEAD[base, option]
            raise ValueError(
                f"method {name!r}: the edges of {option} do not fit the grid of the activation; use {baseline}"
            )
    if base in DRAWN and in_brackets:
        raise ValueError(f"method {name!r}: {base} has no options")
    if len(layers) > 1 and not get_method(base).adds_up:
        additive = ", ".join(other for other, entry in METHODS.items() if entry.adds_up)
        raise ValueError(
            f"method {name!r}: maps of several layers have a mean only if each map adds up to the score, as for "
            f"{additive}; name one layer"
        )
    foils: dict[str | None, Foil | None] = {None: None, "-foil": foil, "-runner-up": "runner-up", "-gallery": "gallery"}
    return TableMethod(name, base, foils[suffix], options, layers, smooth)


def _number_or_text(text: str) -> str | int | float:
    for convert in (int, float):
        try:
            return convert(text)
        except ValueError:
            pass
    return text
