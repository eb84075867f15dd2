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
"""The coverage at which the search accepts a layer without comparing it with the others."""

MOST_MEASURED = 48
"""The most candidates that a choice measures, each with one forward and one backward pass."""

_TRIED_IN_TURN = 12
_TRIED_IN_STEPS = 24

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


@dataclass(frozen=True)
class FoundLayer:
    """A layer to explain, with the arguments and the quality of its maps.

    Attributes:
        name: dotted name of the layer in the model.
        module: the layer.
        token_grid: rearranges the tensor of the layer into ``(B, N, h, w)``; None where the tensor has that form.
        coverage: the share of the score that the map explains, for an image compared with itself; NaN where no map can
            be made, and on the meta device, which has no numbers.
    """

    name: str
    module: nn.Module
    token_grid: TokenGrid | None
    coverage: float


def find_layer(model: nn.Module, inputs: Tensor) -> FoundLayer:
    """Find the layer to explain: the last layer whose map explains at least 95 % of the score.

    Candidates are the children of the model and the elements of its ``Sequential`` and ``ModuleList`` parts whose
    tensor has positions of the image: ``(B, N, *spatial)``, channels-last ``(B, h, w, N)``, or tokens, whose grid is
    measured. All of the score must pass through the layer: a branch beside a shortcut, which leaves the rest of the
    score to the part ``"other paths"``, is chosen only where there is no other layer.

    A candidate is measured by the ``coverage`` of :class:`~captum_fam.LayerSimilarityCAM` for the first image compared
    with itself. The last candidate is measured first, and in most networks it explains at least 95 %. A class token
    takes the score over from the patches block by block; in such networks the last good block is found by bisection.
    A search measures at most 48 candidates; where the last twelve have no map, the earlier ones are tried in steps.
    Where no layer reaches 95 %, the choice is the last layer whose coverage is within a hundredth of the best coverage:
    a bias behind the pooling, which no layer can explain, does not change the choice.

    The search works for random weights too, with two special cases. Where blocks start as identities (LayerScale of
    1e-5), the class token is nearly constant and the patches explain very little, most at the input of the first block,
    which is then chosen. Where all maps are only rounding noise, the choice is the last layer whose positions have any
    influence on the embedding.

    The choice is logged at level ``INFO`` under ``"captum_fam"``. For most networks the model runs twice without and
    once with a backward pass; for networks with a class token there are about nine backward passes.

    Args:
        model: an embedding model, ``(B, C, *spatial) -> (B, J)``, in evaluation mode, on the device of the inputs. The
            search looks inside a :class:`~captum_fam.Views`, a ``DataParallel`` and a
            :class:`~captum_fam.SimilarityToSupport`.
        inputs: one or more images, ``(B, C, *spatial)``; the first image is used.

    Returns:
        The layer, with its token grid and its coverage.

    Raises:
        TypeError: for a model that is no module, or inputs that are no tensor.
        ValueError: for a model without a suitable layer, a model in training mode, or inputs that are no batch of
            images; for images or embeddings with NaN, and embeddings that are zero.

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
    problem = measurement.problem()
    if problem is not None:
        raise ValueError(f"no layer of model {type(model).__name__} can be found: {problem}")
    candidates = measurement.candidates(set(_blocks(model, "", measurement.runs)))
    chosen = _Choice(candidates, measurement).choose()
    if chosen is None:
        # No block is usable: search all modules.
        candidates = measurement.candidates(None)
        chosen = _Choice(candidates, measurement).choose()
    if chosen is None:
        raise ValueError(
            f"model {type(model).__name__} has no module with positions of the image that runs once and that the "
            f"embedding depends on{measurement.reasons()}; name a layer"
        )
    layer = _to_found_layer(measurement, prefix, chosen)
    logger.info(
        "layer %s of %s explains %.0f %% of the score, by measuring %d of %d candidates; token grid: %s",
        layer.name,
        type(model).__name__,
        100 * layer.coverage,
        len(measurement.measured),
        len(candidates),
        layer.token_grid,
    )
    return layer


def measure_layer(model: nn.Module, inputs: Tensor, layer: nn.Module | str) -> FoundLayer:
    """Measure the token grid and the coverage of one layer, as :func:`find_layer` measures them.

    Args:
        model: an embedding model, as for :func:`find_layer`.
        inputs: one or more images, ``(B, C, *spatial)``; the first image is used.
        layer: a module of the model, or its dotted name.

    Returns:
        The layer, with its token grid and its coverage.

    Raises:
        TypeError: for a model that is no module, inputs that are no tensor, or a layer that is no module or name.
        ValueError: for a layer that is no module of the model, runs several times or not at all, or gives no tensor
            with positions; for a model in training mode.

    Example:
        >>> found = measure_layer(model, images, "layer4")
        >>> found.token_grid, round(found.coverage, 2)
        (None, 1.0)
    """
    module = resolve_layer(model, layer)
    prefix, model, inputs = _inner(model, inputs)
    measurement = Measurement(model, inputs)
    candidate = next((candidate for candidate in measurement.outputs if candidate.module is module), None)
    runs = measurement.runs[module]
    if candidate is None or runs > 1:
        name = layer if isinstance(layer, str) else type(module).__name__
        reason = f"runs {runs} times" if runs > 1 else "gives no tensor with positions of the image"
        raise ValueError(f"layer {name!r} of {type(model).__name__} {reason}; name another, or use find_layer")
    measured = _to_found_layer(measurement, prefix, candidate)
    return replace(measured, name=layer) if isinstance(layer, str) else measured


def _to_found_layer(measurement: Measurement, prefix: str, candidate: Candidate) -> FoundLayer:
    """The result for a candidate. The prefix leads from the user's model to the model inside its wrappers."""
    coverage = measurement.coverage(candidate)
    return FoundLayer(
        prefix + candidate.name,
        candidate.module,
        candidate.layout.token_grid,
        float("nan") if coverage is None else coverage,
    )


class _Choice:
    """The choice of a candidate: the last one whose map explains the score.

    Args:
        candidates: the candidates, in the order in which the modules finished.
        measurement: the measurement of their model.

    Attributes:
        candidates: the candidates.
        measurement: the measurement.
        shares: the coverage of the measured candidates that are usable.
    """

    def __init__(self, candidates: Sequence[Candidate], measurement: Measurement) -> None:
        self.candidates = tuple(candidates)
        self.measurement = measurement
        self.shares: dict[Candidate, float] = {}
        self._n_measured = 0

    def is_usable(self, candidate: Candidate) -> bool:
        """Whether a candidate has a map that is not zero, and all of the score passes through the layer.

        Candidates beyond the first :data:`MOST_MEASURED` are not measured, and count as not usable.
        """
        if candidate not in self.measurement.measured:
            if self._n_measured == MOST_MEASURED:
                return False
            self._n_measured += 1
        share = self.measurement.coverage(candidate)
        # Maps behind the last attention are zero: no position there reaches the class token.
        is_bypassed, is_flat = candidate in self.measurement.bypassed, candidate in self.measurement.flat
        if share is not None and not is_bypassed and not is_flat:
            self.shares[candidate] = share
        return candidate in self.shares

    def is_good(self, candidate: Candidate) -> bool:
        """Whether a map explains 95 % of the score, or at most a hundredth less than the best map measured so far."""
        if candidate not in self.shares:
            return False
        best = max(map(_explained, self.shares.values()))
        return _explained(self.shares[candidate]) >= min(LEAST_COVERAGE, best - 0.01 * abs(best) - NOISE)

    def choose(self) -> Candidate | None:
        """Measure candidates until the choice is clear; None where the embedding depends on no candidate."""
        positions = _backwards(len(self.candidates))
        last = next((position for position in positions if self.is_usable(self.candidates[position])), None)
        if last is None:
            return self._without_usable()
        candidates = list(self.candidates[: last + 1])
        if not _explained(self.shares[candidates[-1]]) < LEAST_COVERAGE:  # "not <" accepts NaN too
            return candidates[-1]
        # Candidates in a row with the same positions form a stage. Within a stage, the coverage falls from block to
        # block; between stages it can rise, because tokens may be joined or pooled there. So the first candidate of a
        # stage shows whether the stage has any good candidate. The last stage is tried first.
        stages = [list(stage) for _, stage in itertools.groupby(candidates, lambda item: item.layout.positions)]
        for stage in [stages[-1], *stages[:-1]]:
            while stage and not self.is_usable(stage[0]):
                stage.pop(0)
            if max(map(_explained, self.shares.values())) >= LEAST_COVERAGE:
                break
            if stage is not stages[-1] and self.is_good(candidates[-1]):
                return candidates[-1]
        # With random weights the last candidate may explain more than the first of its stage: then no stage is good.
        good_stages = [stage for stage in stages if stage and self.is_good(stage[0])]
        if good_stages:
            self._bisect(good_stages[-1][1:])
        return [candidate for candidate in candidates if self.is_good(candidate)][-1]

    def _bisect(self, between: list[Candidate]) -> None:
        """Measure candidates of a stage, behind its first, good candidate, until the last good one is known."""
        while between:
            middle = len(between) // 2
            if not self.is_usable(between[middle]):
                between.pop(middle)
            elif self.is_good(between[middle]):
                between = between[middle + 1 :]
            else:
                between = between[:middle]

    def _without_usable(self) -> Candidate | None:
        """Of the measured candidates, the one with the best map that is not zero; else the last with any influence."""
        coverages = {candidate: self.measurement.measured.get(candidate) for candidate in reversed(self.candidates)}
        shares = {candidate: share for candidate, share in coverages.items() if share is not None}
        if any(candidate not in self.measurement.flat for candidate in shares):
            return max(shares, key=lambda candidate: _explained(shares[candidate]))
        return next((candidate for candidate in shares if self.measurement.has_influence(candidate)), None)


def _backwards(count: int) -> Iterator[int]:
    """Positions of candidates, the last first: the last twelve, then 24 of those before, at equal distances."""
    rest = max(count - _TRIED_IN_TURN, 0)
    yield from reversed(range(rest, count))
    if rest:
        yield from sorted({step * rest // _TRIED_IN_STEPS for step in range(_TRIED_IN_STEPS)}, reverse=True)


def _explained(coverage: float) -> float:
    """A measure with the maximum 1 for a map that sums to the score; too much and too little count alike."""
    return 1 - abs(1 - coverage)


def _blocks(module: nn.Module, prefix: str, ran: dict[nn.Module, int]) -> Iterator[str]:
    """Names of the children of a model; for containers and children made of blocks, the names of the blocks too.

    Args:
        module: the model, or a part of it.
        prefix: the dotted name of the part, with a dot at the end; "" for the model.
        ran: the modules that ran. Containers such as a ``ModuleList`` do not run themselves.
    """
    for name, child in module.named_children():
        yield prefix + name
        if isinstance(child, _CONTAINERS) or child not in ran or _is_made_of_blocks(child):
            yield from _blocks(child, f"{prefix}{name}.", ran)


def _is_made_of_blocks(module: nn.Module) -> bool:
    """Whether a container in the module holds two modules of one class that have children."""
    for part in module.modules():
        if isinstance(part, _CONTAINERS):
            kinds = [type(child) for child in part.children() if next(child.children(), None) is not None]
            if len(set(kinds)) < len(kinds):
                return True
    return False


def _inner(model: object, inputs: object) -> tuple[str, nn.Module, Tensor]:
    """The prefix of names, the model inside all wrappers, and the inputs that this model gets.

    Raises:
        TypeError, ValueError: as :func:`find_layer`.
    """
    if not isinstance(inputs, Tensor):
        raise TypeError(f"inputs must be a tensor of images (B, C, H, W), got {type(inputs).__name__}")
    if isinstance(model, SimilarityToSupport):
        return _inner(model.model, inputs)
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"model must be a torch.nn.Module, whose submodules can be searched, got {type(model).__name__}; pass the "
            "module that embeds, or name the layer"
        )
    name = module_in_training_mode(model)
    if name is not None:
        raise ValueError(
            f"model is in training mode ({name}), where a measurement depends on dropout and changes batch statistics; "
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
