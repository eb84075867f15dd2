"""The methods and baselines of a table, by name, and what they explain.

``NAME`` is one of :data:`~captum_fam.methods.METHODS` or a baseline; ``NAME-foil`` explains the score less that of
the foil, ``NAME-runner-up`` less that of the runner-up whatever the foil is; ``NAME[option=value,...]`` sets options of
the method, as ``fam[normalization=maxabs]-foil``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn

from captum_fam.methods import METHODS, WITH_FOIL
from captum_fam.metrics import box_mask, centred_box
from captum_fam.similarity import SimilarityLike
from captum_fam.support import EmbeddedSupport, SimilarityToSupport, SupportSet

Foil = Literal["others", "runner-up"]
ScoresFor = Callable[[Foil | None], SimilarityToSupport]

CENTRE_BOX = "centre-box"
UNIFORM = "uniform"
METHOD_NAMES = (*METHODS, CENTRE_BOX)
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
    "centre",
    "centre-box",
    "uniform",
)


@dataclass(frozen=True)
class MapMethod:
    """A method of a table.

    Attributes:
        name: as it was asked for.
        base: its name without foil and options.
        foil: what is subtracted from the explained score.
        options: of the method's constructor.
    """

    name: str
    base: str
    foil: Foil | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def maps(
        self, scores_for: ScoresFor, layer: nn.Module, activation: Tensor, target: Tensor, size: tuple[int, int]
    ) -> Tensor:
        """Maps of a batch, ``(B, 1, h, w)``, detached.

        Args:
            scores_for: the scores on activations, for a foil.
            layer: the tail's ``activation``.
            activation: ``(B, N, h, w)``.
            target: the explained class of each, ``(B,)``.
            size: height and width of the images.
        """
        if self.base == CENTRE_BOX:
            box = centred_box(size).to(activation.device)
            return box_mask(box[None], size).to(activation).expand(len(activation), 1, *size)
        attribution = METHODS[self.base](scores_for(self.foil), layer, **self.options)
        maps: Tensor = attribution.attribute(activation, target=target)
        return maps.detach().sum(1, keepdim=True)


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
            "[option=value,...] as in fam[normalization=none]"
        )
    base, given, suffix = found.groups()
    options = dict(WITH_FOIL.get(base, {})) if suffix else {}
    for part in filter(None, (given or "").split(",")):
        key, equals, value = part.partition("=")
        if not equals:
            raise ValueError(f"method {name!r}: expected option=value in the brackets, got {part!r}")
        options[key.strip()] = _value(value.strip())
    if base == CENTRE_BOX and given:
        raise ValueError(f"method {name!r}: {CENTRE_BOX} has no options")
    if base == "centre" and "box" in options:
        raise ValueError(f"method {name!r}: a box has edges that the activation's grid cannot hold; use {CENTRE_BOX}")
    chosen: Foil | None = "runner-up" if suffix == "-runner-up" else foil if suffix else None
    return MapMethod(name, base, chosen, _Frozen(options))


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

    Where every query has supports of its own (retrieved images, nearest neighbours), any method of Captum explains
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
