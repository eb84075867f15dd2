"""The methods and baselines of a table, by name, and what they explain.

``NAME`` is a method of :mod:`captum_fam.attr.registry` or one of the :data:`DRAWN` baselines; ``NAME-foil`` explains
the score minus that of the foil, ``NAME-runner-up`` minus that of the runner-up whatever the foil is;
``NAME[option=value,...]`` sets options of the method, as ``fam[normalization=maxabs]-foil``.

A method explains the activation at which the model is cut. ``NAME[layers=LAYER]`` explains another layer behind it,
named as in the model's tail, and ``similarity-cam[layers=activation+rest.features.10+rest]`` is the mean of the maps of
several: each adds up to the same score, and so does their mean.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from captum_fam.attr.account import mean_of_layers
from captum_fam.attr.registry import METHODS, get_method
from captum_fam.metrics import box_mask, centered_box
from captum_fam.support import SimilarityToSupport

Foil = Literal["others", "runner-up"]
ScoresFor = Callable[[Foil | None], SimilarityToSupport]

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
    """What a baseline shows in the place of its scaled map, which min-max leaves nothing of.

    Attributes:
        mask: in [0, 1] at the size of the images, ``(B, 1, H, W)``: what is masked by it, and where its energy lies.
        box: ``(4,)``, left, top, right and bottom in pixels.
    """

    mask: Tensor
    box: Tensor


class Maps(NamedTuple):
    """What a method gives for a batch.

    Attributes:
        maps: ``(B, 1, h, w)``, detached.
        coverage: of a method whose maps add up, their sum over the explained score, ``(B,)``; NaN where that is zero.
        drawing: of a baseline that draws its mask and box itself.
    """

    maps: Tensor
    coverage: Tensor | None = None
    drawing: Drawing | None = None


def draw_center_box(activation: Tensor, size: tuple[int, int]) -> Maps:
    """One in the box in the middle of the image, at the size of the image, which has the edges of the box."""
    box = centered_box(size).to(activation.device)
    return Maps(box_mask(box[None], size).to(activation).expand(len(activation), 1, *size))


def draw_uniform(activation: Tensor, size: tuple[int, int]) -> Maps:
    """One everywhere: the whole image for its box, and a mask of 0.5, the middle of what other maps hide."""
    mask = activation.new_full((len(activation), 1, *size), 0.5)
    box = torch.tensor([0.0, 0.0, size[1], size[0]], device=activation.device)
    return Maps(torch.ones_like(activation[:, :1]), drawing=Drawing(mask, box))


DRAWN: dict[str, Callable[[Tensor, tuple[int, int]], Maps]] = {"center-box": draw_center_box, "uniform": draw_uniform}
"""Baselines by name that look at nothing: functions of the activation ``(B, N, h, w)`` and the size of the images."""

_DRAWN_INSTEAD = {("center", "box"): "center-box"}  # options whose edges the grid of an activation cannot hold


def list_methods() -> tuple[str, ...]:
    """The names of all methods and baselines that there are now."""
    return tuple(dict.fromkeys((*METHODS, *DRAWN)))


@dataclass(frozen=True)
class TableMethod:
    """A method of a table.

    Attributes:
        name: as it was asked for.
        base: its name without foil and options.
        foil: what is subtracted from the explained score.
        options: of the method's constructor.
        layers: names of what it explains in the model's tail; of several the mean.
    """

    name: str
    base: str
    foil: Foil | None = None
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    layers: tuple[str, ...] = ("activation",)

    def maps(
        self, scores_for: ScoresFor, tail: nn.Module, activation: Tensor, target: Tensor, size: tuple[int, int]
    ) -> Maps:
        """Maps of a batch.

        Args:
            scores_for: gives the scores on activations, for a foil.
            tail: of the model.
            activation: ``(B, N, h, w)``.
            target: the explained class of each query, ``(B,)``.
            size: height and width of the images.

        Raises:
            ValueError: for a layer that the tail does not have.
        """
        if self.base in DRAWN:
            return DRAWN[self.base](activation, size)
        layers = self.modules(tail)
        mean = len(layers) > 1
        scores = scores_for(self.foil)
        entry = get_method(self.base)
        attribution = entry.make(scores, layers if mean else layers[0], **self.options)
        # The coverage has a column of its own, and a method is made for each batch.
        attribution.has_warned = True
        details = attribution.details(activation, target=target) if hasattr(attribution, "details") else None
        if details is None:
            maps, coverage = attribution.attribute(activation, target=target), None
        elif not mean:
            maps, coverage = details.attributions, details.coverage
        else:
            # Only methods whose maps add up explain several layers, and such methods know what the maps cover.
            maps, coverage = mean_of_layers(details.attributions), torch.stack(details.coverage).mean(0)
        maps = maps.detach().sum(1, keepdim=True)

        @torch.no_grad()
        def magnitude() -> Tensor:
            comparison = None if details is None else details.comparison
            size: Tensor = (scores.compare(activation) if comparison is None else comparison).magnitude
            return size

        kept = entry.without_noise(maps, magnitude)
        if coverage is not None:
            # A map that was nothing but rounding noise covers nothing.
            coverage = coverage.masked_fill(maps.flatten(1).any(1) & ~kept.flatten(1).any(1), 0)
        return Maps(kept, coverage)

    def modules(self, tail: nn.Module) -> list[nn.Module]:
        """The layers that are explained.

        Raises:
            ValueError: for a name that the tail does not have.
        """
        known = dict(tail.named_modules())
        missing = [layer for layer in self.layers if not layer or layer not in known]
        if missing:
            # What a network is made of, without what lies in its blocks.
            names = [name for name in known if name == "activation" or re.fullmatch(r"rest(\.\w+){0,2}", name)]
            raise ValueError(
                f"method {self.name!r}: {', '.join(missing)} is no layer behind the activation, where the model is "
                f"cut; there are {', '.join(names)}. Cut it before the first that you name (--layer)"
            )
        return [known[layer] for layer in self.layers]

    @property
    def needs_images(self) -> bool:
        """Whether the method needs the supports before they are embedded, as where it compares positions."""
        return self.base not in DRAWN and get_method(self.base).needs_images

    @property
    def is_signed(self) -> bool:
        """Whether zero has a meaning in the maps: they speak for the match above it and against it below."""
        return self.base not in DRAWN and get_method(self.base).signed


def get_methods(names: str | Sequence[str], foil: Foil = "others") -> tuple[TableMethod, ...]:
    """Methods by name.

    Args:
        names: ``NAME``, ``NAME-foil`` or ``NAME[option=value,...]``; several in a list, or with commas between.
        foil: what a foil is: the mean of the ``"others"``, or the ``"runner-up"``. Default: the others.

    Raises:
        ValueError: for an unknown name or an option that cannot be read.

    Example:
        >>> [method.base for method in get_methods("fam, grad-cam-foil")]
        ['fam', 'grad-cam']
    """
    # Commas within brackets belong to the options.
    each = re.split(r",(?![^\[]*\])", names) if isinstance(names, str) else list(names)
    return tuple(dict.fromkeys(_parse(name.strip(), foil) for name in each if name.strip()))


def _parse(name: str, foil: Foil) -> TableMethod:
    parts = re.fullmatch(r"([\w+-]+?)(?:\[([^\]]*)\])?(-foil|-runner-up)?", name)
    if parts is None or parts[1] not in list_methods():
        raise ValueError(
            f"method {name!r} is unknown; give {', '.join(list_methods())}, each with -foil or -runner-up behind it, "
            "or [option=value,...] as in fam[normalization=none], or [layers=LAYER+LAYER]"
        )
    base, in_brackets, suffix = parts.groups()
    options: dict[str, Any] = {}
    for part in filter(None, (in_brackets or "").split(",")):
        key, equals, value = part.partition("=")
        if not equals:
            raise ValueError(f"method {name!r}: expected option=value in the brackets, got {part!r}")
        options[key.strip()] = _number_or_text(value.strip())
    layers = tuple(layer.strip() for layer in str(options.pop("layers", "activation")).split("+"))
    for option in options:
        if (base, option) in _DRAWN_INSTEAD:
            instead = _DRAWN_INSTEAD[base, option]
            raise ValueError(
                f"method {name!r}: {option} has edges that the activation's grid cannot hold; use {instead}"
            )
    if base in DRAWN and in_brackets:
        raise ValueError(f"method {name!r}: {base} has no options")
    if len(layers) > 1 and not get_method(base).adds_up:
        others = ", ".join(one for one, entry in METHODS.items() if entry.adds_up)
        raise ValueError(
            f"method {name!r}: maps of several layers have a mean only where each adds up to the score, as of "
            f"{others}; name one layer"
        )
    chosen: Foil | None = "runner-up" if suffix == "-runner-up" else foil if suffix else None
    return TableMethod(name, base, chosen, options, layers)


def _number_or_text(text: str) -> str | int | float:
    for convert in (int, float):
        try:
            return convert(text)
        except ValueError:
            pass
    return text
