"""Finding the layer to explain by measurement: the last one whose map explains the score."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn

from captum_fam._training_mode import module_in_training_mode
from captum_fam.attr.account import NOISE
from captum_fam.attr.layer_lookup import resolve_layer
from captum_fam.attr.layer_measurement import Candidate, Measurement
from captum_fam.attr.tokens import TokenGrid
from captum_fam.attr.views import Views
from captum_fam.support import SimilarityToSupport

logger = logging.getLogger("captum_fam")

LEAST_COVERAGE = 0.95
"""A map that explains so much of its score will do."""

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


@dataclass(frozen=True)
class FoundLayer:
    """A layer to explain, and how.

    Attributes:
        name: dotted name in the model.
        module: the layer itself.
        token_grid: lays its tensor out as ``(B, N, h, w)``; None where it has that form.
        coverage: the map's share of the score of an image with itself; NaN on the meta device, which has no numbers.
    """

    name: str
    module: nn.Module
    token_grid: TokenGrid | None
    coverage: float


def find_layer(model: nn.Module, inputs: Tensor) -> FoundLayer:
    """Find the layer to explain: the last one whose map explains at least 95 % of the score, or the one of the most.

    Candidates are the children of the model and the elements of its ``Sequential`` and ``ModuleList`` parts, whose
    tensor has positions of the image: ``(B, N, *spatial)``, channels-last ``(B, h, w, N)``, or tokens, whose grid is
    measured. All of the score must pass through them: a branch beside a shortcut, which leaves the rest to ``"other
    paths"``, is only taken where there is no other layer.

    The last candidate is measured first, by the ``coverage`` of :class:`~captum_fam.LayerSimilarityCAM` for the first
    image against itself. For most networks that settles it. A class token takes the score over from the patches block
    by block; there the boundary is found by bisection. Where no layer reaches 95 %, layers whose coverage is within a
    hundredth of the best are as good, and the last of them is taken: a bias behind the pooling, which no layer can
    explain, does not move the choice.

    With random weights the measurement is as good as anywhere. But where blocks start as identities (LayerScale of
    1e-5), the class token is nearly a constant and patches explain next to nothing, mostly at the input of the first
    block, which is taken then; and where no map is more than rounding noise, the last layer whose positions have any
    influence on the embedding.

    The choice is logged at level ``INFO`` under ``"captum_fam"``. The model runs twice, and once with a way back, for
    most networks; about nine times with a way back for one with a class token.

    Args:
        model: an embedding model, ``(B, C, *spatial) -> (B, J)``, in eval mode, on the device of the inputs. A
            :class:`~captum_fam.Views` or ``DataParallel`` is looked into.
        inputs: one or more images; the first is used.

    Raises:
        TypeError: for a model that is no module, or inputs that are no tensor.
        ValueError: if no module has positions, or the model is in training mode.

    Example:
        >>> vit = torchvision.models.VisionTransformer(64, 16, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64)
        >>> vit.heads = torch.nn.Identity()
        >>> found = find_layer(vit.eval(), torch.rand(1, 3, 64, 64))
        >>> found.name, found.token_grid.prefix_tokens
        ('encoder.dropout', 1)
        >>> cam = LayerSimilarityCAM(vit, found.name, token_grid=found.token_grid)
    """
    prefix, model, inputs = _inner(model, inputs)
    measurement = Measurement(model, inputs)
    candidates = measurement.candidates(set(_blocks(model, "", measurement.runs)))
    chosen = _Choice(candidates, measurement).choose()
    if chosen is None:
        # No block will do: any module may.
        candidates = measurement.candidates(None)
        chosen = _Choice(candidates, measurement).choose()
    if chosen is None:
        raise ValueError(
            f"model {type(model).__name__} has no module with positions of the image that runs once and that the "
            f"embedding depends on{measurement.reasons()}; name a layer"
        )
    found = _found(measurement, prefix, chosen)
    logger.info(
        "layer %s of %s explains %.0f %% of the score, by measuring %d of %d candidates; token grid: %s",
        found.name,
        type(model).__name__,
        100 * found.coverage,
        len(measurement.measured),
        len(candidates),
        found.token_grid,
    )
    return found


def measure_layer(model: nn.Module, inputs: Tensor, layer: nn.Module | str) -> FoundLayer:
    """What :func:`find_layer` would say of this layer: its token grid and coverage.

    Args:
        model: as there.
        inputs: as there.
        layer: a module of the model or its dotted name.

    Raises:
        ValueError: for a layer that is no module of the model, does not run once or has no positions.

    Example:
        >>> found = measure_layer(model, images, "layer4")
        >>> found.token_grid, round(found.coverage, 2)
        (None, 1.0)
    """
    module = resolve_layer(model, layer)
    prefix, model, inputs = _inner(model, inputs)
    measurement = Measurement(model, inputs)
    seen = next((one for one in measurement.outputs if one.module is module), None)
    runs = measurement.runs[module]
    if seen is None or runs > 1:
        name = layer if isinstance(layer, str) else type(module).__name__
        what = f"runs {runs} times" if runs > 1 else "gives no tensor with positions of the image"
        raise ValueError(f"layer {name!r} of {type(model).__name__} {what}; name another, or use find_layer")
    found = _found(measurement, prefix, seen)
    return replace(found, name=layer) if isinstance(layer, str) else found


def _found(measurement: Measurement, prefix: str, one: Candidate) -> FoundLayer:
    """A candidate by its name in the model behind ``prefix``."""
    coverage = measurement.coverage(one)
    return FoundLayer(
        prefix + one.name, one.module, one.layout.token_grid, float("nan") if coverage is None else coverage
    )


class _Choice:
    """Which candidate to take: the last whose map explains the score.

    Args:
        candidates: in the order in which they end.
        measurement: of the model that they belong to.

    Attributes:
        shares: the coverage of candidates that were measured and can be taken.
    """

    def __init__(self, candidates: Sequence[Candidate], measurement: Measurement) -> None:
        self.candidates = tuple(candidates)
        self.measurement = measurement
        self.shares: dict[Candidate, float] = {}

    def is_usable(self, one: Candidate) -> bool:
        """Whether a map can be made here, of the whole score, that is not zero everywhere."""
        share = self.measurement.coverage(one)
        # Behind the last attention no position reaches the class token.
        if share is not None and one not in self.measurement.bypassed and one not in self.measurement.flat:
            self.shares[one] = share
        return one in self.shares

    def is_good(self, one: Candidate) -> bool:
        """Whether the map of a candidate explains enough: 95 %, or what the best one explains up to a hundredth."""
        if one not in self.shares:
            return False
        best = max(map(_explained, self.shares.values()))
        return _explained(self.shares[one]) >= min(LEAST_COVERAGE, best - 0.01 * abs(best) - NOISE)

    def choose(self) -> Candidate | None:
        """The candidate; None where the embedding depends on none."""
        candidates = list(self.candidates)
        while candidates and not self.is_usable(candidates[-1]):
            candidates.pop()
        if not candidates:
            return self._without_usable()
        if not _explained(self.shares[candidates[-1]]) < LEAST_COVERAGE:  # NaN will do
            return candidates[-1]
        # Tokens may join or be pooled where the positions change. In between, what the map explains only falls.
        stages = [list(stage) for _, stage in itertools.groupby(candidates, lambda one: one.layout.positions)]
        for stage in [stages[-1], *stages[:-1]]:
            while stage and not self.is_usable(stage[0]):
                stage.pop(0)
            if max(map(_explained, self.shares.values())) >= LEAST_COVERAGE:
                break
            if stage is not stages[-1] and self.is_good(candidates[-1]):
                return candidates[-1]
        self._bisect([stage for stage in stages if stage and self.is_good(stage[0])][-1][1:])
        return [one for one in candidates if self.is_good(one)][-1]

    def _bisect(self, between: list[Candidate]) -> None:
        """Measure candidates of one stage, whose first is good, until the last good one is known."""
        while between:
            middle = len(between) // 2
            if not self.is_usable(between[middle]):
                between.pop(middle)
            elif self.is_good(between[middle]):
                between = between[middle + 1 :]
            else:
                between = between[:middle]

    def _without_usable(self) -> Candidate | None:
        """The best of layers that a part of the score goes around; else the last that has any influence at all."""
        coverages = {one: self.measurement.coverage(one) for one in reversed(self.candidates)}
        beside = {one: share for one, share in coverages.items() if share is not None}
        if any(one not in self.measurement.flat for one in beside):
            return max(beside, key=lambda one: _explained(beside[one]))
        return next((one for one in beside if self.measurement.has_influence(one)), None)


def _explained(coverage: float) -> float:
    """1 for a map that adds up to the score; one that adds up to more is as far off as one that adds up to less."""
    return 1 - abs(1 - coverage)


def _blocks(module: nn.Module, prefix: str, ran: dict[nn.Module, int]) -> Iterator[str]:
    """Names of the children of the model and, where they are made of blocks, of these."""
    for name, child in module.named_children():
        yield prefix + name
        if isinstance(child, _CONTAINERS) or child not in ran or _is_made_of_blocks(child):
            yield from _blocks(child, f"{prefix}{name}.", ran)


def _is_made_of_blocks(module: nn.Module) -> bool:
    """Whether two modules of one class, with parts of their own, stand in a row in it."""
    for part in module.modules():
        if isinstance(part, _CONTAINERS):
            kinds = [type(child) for child in part.children() if next(child.children(), None) is not None]
            if len(set(kinds)) < len(kinds):
                return True
    return False


def _inner(model: object, inputs: object) -> tuple[str, nn.Module, Tensor]:
    """The model that a wrapper runs, the prefix of its modules' names, and its inputs."""
    if not isinstance(inputs, Tensor):
        raise TypeError(f"inputs must be a tensor of images (B, C, H, W), got {type(inputs).__name__}")
    if isinstance(model, SimilarityToSupport):
        return _inner(model.model, inputs)
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"model must be a torch.nn.Module, whose modules can be looked through, got {type(model).__name__}; pass "
            "the module that embeds, or name the layer"
        )
    name = module_in_training_mode(model)
    if name is not None:
        raise ValueError(
            f"model is in training mode ({name}), where a measurement depends on dropout and moves batch statistics; "
            "call model.eval() first, or name the layer"
        )
    if inputs.dim() < 3 or not len(inputs):
        raise ValueError(f"inputs must be a batch of images (B, C, H, W), got shape {tuple(inputs.shape)}")
    if isinstance(model, Views):
        prefix, inner, inputs = _inner(model.model, model.views[0][0](inputs[:1]))
        return f"model.{prefix}", inner, inputs
    if isinstance(model, nn.DataParallel):
        prefix, inner, inputs = _inner(model.module, inputs)
        return f"module.{prefix}", inner, inputs
    return "", model, inputs
