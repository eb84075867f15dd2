"""Finding the layer to explain by measurement: the last one whose map explains the score."""

from __future__ import annotations

import itertools
import logging
import threading
import weakref
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from captum_fam._training_mode import module_in_training_mode
from captum_fam.attr._base import resolve_layer
from captum_fam.attr._layer_run import _active_run, _eager, _hook
from captum_fam.attr.account import NOISE, SLOTS
from captum_fam.attr.layer_similarity_cam import LayerSimilarityCAM
from captum_fam.attr.positions import OTHER_PATHS
from captum_fam.attr.tokens import (
    TokenGrid,
    TokenHints,
    fits_image,
    looks_channels_first,
    looks_channels_last,
    measure_token_grid,
)
from captum_fam.attr.views import Views
from captum_fam.support import SimilarityToSupport, check_embedding

logger = logging.getLogger("captum_fam")

LEAST_COVERAGE = 0.95
"""A map that explains so much of its score will do."""

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_ADAPTIVE_POOLING = (nn.modules.pooling._AdaptiveAvgPoolNd, nn.modules.pooling._AdaptiveMaxPoolNd)


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
    search = _Search(model, inputs)
    blocks = set(_blocks(model, "", search.runs))
    candidates = search.candidates(blocks)
    chosen = _choose(candidates, search)
    if chosen is None:
        candidates = search.candidates(None)
        chosen = _choose(candidates, search)
    if chosen is None:
        raise ValueError(
            f"model {type(model).__name__} has no module with positions of the image that runs once and that the "
            f"embedding depends on{search.reasons()}; name a layer"
        )
    found = search.found(prefix, chosen)
    logger.info(
        "layer %s of %s explains %.0f %% of the score, by measuring %d of %d candidates; token grid: %s",
        found.name,
        type(model).__name__,
        100 * found.coverage,
        len(search.measured),
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
    search = _Search(model, inputs)
    seen = next((one for one in search.outputs if one.module is module), None)
    runs = search.runs[module]
    if seen is None or runs > 1:
        name = layer if isinstance(layer, str) else type(module).__name__
        what = f"runs {runs} times" if runs > 1 else "gives no tensor with positions of the image"
        raise ValueError(f"layer {name!r} of {type(model).__name__} {what}; name another, or use find_layer")
    found = search.found(prefix, seen)
    return replace(found, name=layer) if isinstance(layer, str) else found


@dataclass(frozen=True)
class _Layout:
    """Where the positions of a tensor are.

    Attributes:
        positions: h and w, or the number of tokens.
        token_grid: lays the tensor out; None: it has the form ``(B, N, *spatial)``.
        fits: whether the positions have the aspect of the image.
    """

    positions: tuple[int, ...]
    token_grid: TokenGrid | None = None
    fits: bool = True


@dataclass(frozen=True, eq=False)
class _Output:
    """What one pass through a module gave.

    Attributes:
        name: of the module.
        module: itself.
        tensor: number of the tensor; the same for modules that give the same one.
        passes_on: whether the tensor came from another module and went through.
        layout: where its positions are.
    """

    name: str
    module: nn.Module
    tensor: int
    passes_on: bool
    layout: _Layout


class _Search:
    """Measures the layers of one model on one image.

    Args:
        model: an embedding model.
        inputs: images, of which the first is used, beside another made of noise.

    Attributes:
        outputs: with positions, in the order in which they were finished.
        runs: how often every module ran.
        embedding: of both images, ``(2, J)``.
    """

    def __init__(self, model: nn.Module, inputs: Tensor) -> None:
        self.model = model
        self.pair = torch.cat([inputs[:1], _noise_like(inputs[:1])])
        self.hints = TokenHints.of(model)
        # Tokens that do not depend on the image, for every number of tokens, where it is first seen.
        self.constant: dict[int, list[int]] = {}
        self.measured: dict[_Output, float | None] = {}
        # Of these, those that a part of the score goes around, and those whose map is zero everywhere.
        self.bypassed: set[_Output] = set()
        self.flat: set[_Output] = set()
        self.outputs: list[_Output] = []
        self.runs: dict[nn.Module, int] = defaultdict(int)
        self.embedding = self._observe()

    def candidates(self, names: set[str] | None) -> list[_Output]:
        """Layers to measure among the modules of these names, or all, in the order in which they end.

        Of modules that give the same tensor the outermost of those that made it.
        """
        by_tensor: dict[int, _Output] = {}
        for one in self.outputs:
            # With adaptive pooling begins the head.
            skipped = self.runs[one.module] > 1 or isinstance(one.module, _ADAPTIVE_POOLING)
            if skipped or (names is not None and one.name not in names):
                continue
            if one.tensor not in by_tensor or not one.passes_on:
                by_tensor[one.tensor] = one
        found = [by_tensor[tensor] for tensor in sorted(by_tensor)]
        return [one for one in found if one.layout.fits] or found

    def coverage(self, candidate: _Output) -> float | None:
        """The share of the score that the map of this layer explains; None where no map can be made."""
        if candidate not in self.measured:
            self.measured[candidate] = self._coverage(candidate)
        return self.measured[candidate]

    def _coverage(self, candidate: _Output) -> float | None:
        if self.embedding.is_meta:
            return float("nan")
        cam = LayerSimilarityCAM(self.model, candidate.module, token_grid=candidate.layout.token_grid)
        cam.has_warned = True  # a small coverage is what is looked for
        try:
            details = cam.details(self.pair[:1], support=self.embedding[:1])
        except ValueError:  # no gradient comes back, or the form of the tensor is not what it looks like
            return None
        assert isinstance(details.coverage, Tensor)
        assert isinstance(details.attributions, Tensor)
        assert isinstance(details.shares, dict)
        beside = details.shares.get(SLOTS[OTHER_PATHS])
        if beside is not None and bool(beside.abs() > 0.01 * details.comparison.score.abs()):
            self.bypassed.add(candidate)
        if not details.attributions.any():
            self.flat.add(candidate)
        return float(details.coverage)

    def has_influence(self, candidate: _Output) -> bool:
        """Whether the embeddings change where two images exchange what stands at the positions of this layer."""

        def exchange(_: nn.Module, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            (tensor,), grid = tensors, candidate.layout.token_grid
            elements = torch.arange(tensor.numel(), device=tensor.device).view_as(tensor)
            placed = (elements if grid is None else grid(elements)).flatten(1)
            flat = tensor.flatten().clone()
            flat[placed] = flat[placed.flip(0)]
            return (flat.view_as(tensor),)

        with _inference() as active, _hook(candidate.module, False, active, exchange):
            return not torch.equal(self.model(self.pair), self.embedding)

    def found(self, prefix: str, one: _Output) -> FoundLayer:
        """One of the layers, by its name in the model behind ``prefix``."""
        coverage = self.coverage(one)
        return FoundLayer(
            prefix + one.name, one.module, one.layout.token_grid, float("nan") if coverage is None else coverage
        )

    def reasons(self) -> str:
        """Why no layer was found, as far as that can be told."""
        several = [one.name for one in self.outputs if self.runs[one.module] > 1]
        if several:
            return f" ({several[-1]} and others run several times: for views of one image pass a Views model)"
        if not self.runs:
            return " (no module was called: a scripted, traced or exported model? Pass the eager one)"
        return ""

    def _observe(self) -> Tensor:
        """Fill :attr:`outputs` and :attr:`runs` in a pass of the pair; gives its embeddings, ``(2, J)``."""
        known: dict[int, tuple[weakref.ref[Tensor], int, int]] = {}
        thread, numbers = threading.get_ident(), itertools.count()

        def note(name: str, module: nn.Module, args: Any, output: Any) -> None:
            if threading.get_ident() != thread:
                return
            self.runs[module] += 1
            if isinstance(output, tuple | list) and len(output) == 1:
                (output,) = output
            if not isinstance(output, Tensor) or not output.is_floating_point():
                return
            version = -1 if output.is_inference() else output._version
            before, at, number = known.get(id(output), (None, -1, -1))
            is_known = before is not None and before() is output and at == version
            if not is_known:
                number = next(numbers)
                known[id(output)] = weakref.ref(output), version, number
            passes_on = is_known and any(output is argument for argument in args)
            layout = self._layout(module, output)
            if layout is not None:
                self.outputs.append(_Output(name, module, number, passes_on, layout))

        with _inference(), ExitStack() as stack:
            for name, module in self.model.named_modules():
                if name and not isinstance(module, torch.jit.ScriptModule):  # which takes no hooks
                    handle = module.register_forward_hook(
                        lambda module, args, output, name=name: note(name, module, args, output)
                    )
                    stack.callback(handle.remove)
            return check_embedding(self.model(self.pair))

    def _layout(self, module: nn.Module, tensor: Tensor) -> _Layout | None:
        """None for a tensor without positions."""
        image, shape = self.pair.shape[2:], tensor.shape
        if tensor.dim() == 3 and len(image) == 2:
            return self._layout_of_tokens(tensor)
        if tensor.dim() != self.pair.dim() or shape[0] != 2:
            return None
        scopes, can_be_last = [module, self.model], len(image) == 2
        first, last = fits_image(shape[2:], image), fits_image(shape[1:-1], image)
        if first and last:
            # The embedding's features are not known yet. They would matter where no module has a size of its own.
            last = looks_channels_last(scopes, tensor, 0)
            first = not last
        if last and can_be_last:
            return _Layout(tuple(shape[1:-1]), TokenGrid(prefix_tokens=0)) if shape[1:-1].numel() > 1 else None
        if shape[2:].numel() == 1 or not (first or (can_be_last and looks_channels_first(scopes, tensor))):
            return None
        return _Layout(tuple(shape[2:]), fits=first)

    def _layout_of_tokens(self, tokens: Tensor) -> _Layout | None:
        batch_dim = next((dim for dim in (0, 1) if tokens.shape[dim] == 2), None)
        if batch_dim is None:
            return None
        first, second = tokens.unbind(batch_dim)
        count = len(first)
        if count not in self.constant and not tokens.is_meta:
            self.constant[count] = (first == second).all(1).nonzero().flatten().tolist()
        grid = measure_token_grid(count, self.pair.shape[2:], self.constant.get(count, ()), self.hints)
        if grid is None:
            return None
        return _Layout((count,), replace(grid, sequence_first=batch_dim == 1))


def _choose(candidates: list[_Output], search: _Search) -> _Output | None:
    """The candidate to take."""
    shares: dict[_Output, float] = {}

    def is_usable(one: _Output) -> bool:
        share = search.coverage(one)
        # Behind the last attention no position reaches the class token.
        if share is not None and one not in search.bypassed and one not in search.flat:
            shares[one] = share
        return one in shares

    def is_good(share: float | None) -> bool:
        best = max(map(_explained, shares.values()))
        return share is not None and _explained(share) >= min(LEAST_COVERAGE, best - 0.01 * abs(best) - NOISE)

    everyone, candidates = candidates, list(candidates)
    while candidates and not is_usable(candidates[-1]):
        candidates.pop()
    if not candidates:
        beside = {one: share for one in reversed(everyone) if (share := search.coverage(one)) is not None}
        if any(one not in search.flat for one in beside):
            return max(beside, key=lambda one: _explained(beside[one]))
        return next((one for one in beside if search.has_influence(one)), None)
    if not _explained(shares[candidates[-1]]) < LEAST_COVERAGE:  # NaN will do
        return candidates[-1]
    # Tokens may join or be pooled where the positions change. In between, what the map explains only falls.
    stages = [list(stage) for _, stage in itertools.groupby(candidates, lambda one: one.layout.positions)]
    for stage in [stages[-1], *stages[:-1]]:
        while stage and not is_usable(stage[0]):
            stage.pop(0)
        if max(map(_explained, shares.values())) >= LEAST_COVERAGE:
            break
        if stage is not stages[-1] and is_good(shares[candidates[-1]]):
            return candidates[-1]
    between = [stage for stage in stages if stage and is_good(shares.get(stage[0]))][-1][1:]
    while between:
        middle = len(between) // 2
        if not is_usable(between[middle]):
            between.pop(middle)
        elif is_good(shares[between[middle]]):
            between = between[middle + 1 :]
        else:
            between = between[:middle]
    return [one for one in candidates if is_good(shares.get(one))][-1]


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


@contextmanager
def _inference() -> Iterator[object]:
    """A pass without a graph, through modules that are not compiled; gives the run that its hooks belong to."""
    with torch.inference_mode(False), torch.no_grad(), _eager(), _active_run() as active:
        yield active


def _noise_like(image: Tensor) -> Tensor:
    """Another image with values in the same range, by a generator of its own."""
    low, high = image.detach().double().aminmax() if image.numel() and not image.is_meta else (0.0, 1.0)
    noise = torch.rand(image.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64, device="cpu")
    noise = noise.to(image.device)
    return (low + noise * ((high - low) + (high == low))).to(image.dtype)
