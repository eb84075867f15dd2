"""The methods and baselines of a table, by name, and what they explain.

``NAME`` is one of :data:`~captum_fam.attr.registry.METHODS` or a baseline; ``NAME-foil`` explains the score less that
of the foil, ``NAME-runner-up`` less that of the runner-up whatever the foil is; ``NAME[option=value,...]`` sets options
of the method, as ``fam[normalization=maxabs]-foil``.

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
from captum_fam.attr.registry import METHODS, magnitude_of_scores, without_noise
from captum_fam.metrics import box_mask, centered_box
from captum_fam.similarity import SimilarityLike
from captum_fam.support import EmbeddedSupport, SimilarityToSupport, SupportSet

Foil = Literal["others", "runner-up"]
ScoresFor = Callable[[Foil | None], SimilarityToSupport]

CENTER_BOX = "center-box"
UNIFORM = "uniform"
AVERAGED = ("similarity-cam",)
"""Methods whose maps add up to one score at every layer, so that the maps of several layers have a mean."""
METHOD_NAMES = (*METHODS, CENTER_BOX)
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


class Maps(NamedTuple):
    """What a method gives for a batch.

    Attributes:
        maps: ``(B, 1, h, w)``, detached.
        coverage: of a method whose maps add up, their sum over the explained score, ``(B,)``; NaN where that is zero.
    """

    maps: Tensor
    coverage: Tensor | None = None


@dataclass(frozen=True)
class MapMethod:
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
    options: Mapping[str, Any] = field(default_factory=dict)
    layers: tuple[str, ...] = ("activation",)

    def maps(
        self, scores_for: ScoresFor, tail: nn.Module, activation: Tensor, target: Tensor, size: tuple[int, int]
    ) -> Maps:
        """Maps of a batch.

        Args:
            scores_for: the scores on activations, for a foil.
            tail: of the model.
            activation: ``(B, N, h, w)``.
            target: the explained class of each, ``(B,)``.
            size: height and width of the images.

        Raises:
            ValueError: for a layer that the tail does not have.
        """
        if self.base == CENTER_BOX:
            box = centered_box(size).to(activation.device)
            return Maps(box_mask(box[None], size).to(activation).expand(len(activation), 1, *size))
        layers = self.modules(tail)
        mean = len(layers) > 1
        scores = scores_for(self.foil)
        attribution = METHODS[self.base](scores, layers if mean else layers[0], **self.options)
        # The coverage has a column of its own, and a method is made for each batch.
        attribution.has_warned = True
        details = None
        if not hasattr(attribution, "details"):
            maps, coverage = attribution.attribute(activation, target=target), None
        else:
            details = attribution.details(activation, target=target)
            maps, coverage = details.attributions, getattr(details, "coverage", None)
            if mean:
                maps, coverage = mean_of_layers(maps), torch.stack(details.coverage).mean(0)
        maps = maps.detach().sum(1, keepdim=True)

        def magnitude() -> Tensor:
            if details is not None:
                return magnitude_of_scores(scores, details.comparison.similarities)
            with torch.no_grad():
                return magnitude_of_scores(scores, scores._compare(activation)[2])

        kept = without_noise(attribution, maps, magnitude)
        if coverage is not None:
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


def get_methods(names: str | Sequence[str], foil: Foil = "others") -> tuple[MapMethod, ...]:
    """Methods by name.

    Args:
        names: ``NAME``, ``NAME-foil`` or ``NAME[option=value,...]``; several in a list, or with commas between.
        foil: what a foil is: the mean of the ``"others"``, or the ``"runner-up"``.

    Raises:
        ValueError: for an unknown name or an option that cannot be read.

    Example:
        >>> [method.base for method in get_methods("fam, grad-cam-foil")]
        ['fam', 'grad-cam']
    """
    # Commas within brackets belong to the options.
    each = re.split(r",(?![^\[]*\])", names) if isinstance(names, str) else list(names)
    return tuple(dict.fromkeys(_parse(name.strip(), foil) for name in each if name.strip()))


def _parse(name: str, foil: Foil) -> MapMethod:
    found = re.fullmatch(r"([a-z-]+?)(?:\[([^\]]*)\])?(-foil|-runner-up)?", name)
    if found is None or found[1] not in METHOD_NAMES:
        raise ValueError(
            f"method {name!r} is unknown; give {', '.join(METHOD_NAMES)}, each with -foil or -runner-up behind it, or "
            "[option=value,...] as in fam[normalization=none], or [layers=LAYER+LAYER]"
        )
    base, given, suffix = found.groups()
    options: dict[str, Any] = {}
    for part in filter(None, (given or "").split(",")):
        key, equals, value = part.partition("=")
        if not equals:
            raise ValueError(f"method {name!r}: expected option=value in the brackets, got {part!r}")
        options[key.strip()] = _value(value.strip())
    layers = tuple(layer.strip() for layer in str(options.pop("layers", "activation")).split("+"))
    if len(layers) > 1 and base not in AVERAGED:
        raise ValueError(
            f"method {name!r}: maps of several layers have a mean only where each adds up to the score, as of "
            f"{', '.join(AVERAGED)}; name one layer"
        )
    if base == CENTER_BOX and given:
        raise ValueError(f"method {name!r}: {CENTER_BOX} has no options")
    if base == "center" and "box" in options:
        raise ValueError(f"method {name!r}: a box has edges that the activation's grid cannot hold; use {CENTER_BOX}")
    chosen: Foil | None = "runner-up" if suffix == "-runner-up" else foil if suffix else None
    return MapMethod(name, base, chosen, _Frozen(options), layers)


def check_no_positions(methods: Sequence[MapMethod]) -> None:
    """Refuse methods that compare positions, where the supports are embeddings."""
    found = [method.name for method in methods if method.base == "correspondence"]
    if found:
        raise ValueError(
            f"methods: {', '.join(found)} compares with the positions of support images, which only the protocols "
            "few-shot and mosaic have"
        )


def _value(text: str) -> str | int | float:
    for convert in (int, float):
        try:
            return convert(text)
        except ValueError:
            pass
    return text


class _Frozen(dict[str, Any]):
    """Options that hash, as a method does."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(tuple(sorted(self.items(), key=str)))


class PairedScores(SimilarityToSupport):
    """Scores of which class b is what query b of the batch is compared with.

    Where every query has supports of its own (retrieved images, nearest neighbors), any method of Captum explains
    query b with ``target=b``.

    Args:
        model: maps a batch to embeddings.
        embeddings: of all supports, ``(K, J)``.
        class_weights: ``(C, K)``; row c says what each support counts in the score of class c.
        foil_weights: ``(C, K)``, subtracted from it.
        similarity: as for :class:`~captum_fam.SimilarityToSupport`.
    """

    def __init__(
        self,
        model: nn.Module,
        embeddings: Tensor,
        class_weights: Tensor,
        foil_weights: Tensor | None = None,
        similarity: SimilarityLike = "cosine",
    ) -> None:
        # Before the base, which asks for it.
        self._paired = EmbeddedSupport(embeddings, class_weights, foil_weights)
        super().__init__(model, SupportSet(embeddings), similarity)

    def _embed(self) -> EmbeddedSupport:
        return self._paired
