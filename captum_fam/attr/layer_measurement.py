"""What the layers of a model give for one image: where positions are, and how much of the score each layer explains."""

from __future__ import annotations

import itertools
import weakref
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from captum_fam.attr.account import SLOTS
from captum_fam.attr.layer_hooks import hook_layer, run_without_graph, watch_modules
from captum_fam.attr.layer_similarity_cam import LayerSimilarityCAM
from captum_fam.attr.tokens import (
    TokenGrid,
    TokenHints,
    fits_image,
    looks_channels_first,
    looks_channels_last,
    measure_token_grid,
)
from captum_fam.attr.way_back.where import OTHER_PATHS
from captum_fam.embedding.forward import check_embedding

_ADAPTIVE_POOLING = (nn.modules.pooling._AdaptiveAvgPoolNd, nn.modules.pooling._AdaptiveMaxPoolNd)


@dataclass(frozen=True)
class TensorLayout:
    """In which dimensions of a tensor the positions of the image are.

    Attributes:
        positions: h and w, or the number of tokens.
        token_grid: lays the tensor out; None: it has the form ``(B, N, *spatial)``.
        fits: whether the positions have the aspect of the image.
    """

    positions: tuple[int, ...]
    token_grid: TokenGrid | None = None
    fits: bool = True


@dataclass(frozen=True, eq=False)
class Candidate:
    """A layer that may be explained: what one pass through a module gave.

    Attributes:
        name: of the module.
        module: itself.
        tensor: number of the tensor; the same for modules that give the same one.
        passes_on: whether the tensor came from another module and went through, as through an ``Identity``.
        layout: where its positions are.
    """

    name: str
    module: nn.Module
    tensor: int
    passes_on: bool
    layout: TensorLayout


class Measurement:
    """What the layers of one model give for one image, and how much of the score each explains.

    The model runs once on a pair of images, the first of the inputs and noise: tokens that are equal for both, such as
    a class token before the first attention, are no patches.

    Args:
        model: an embedding model.
        inputs: images, ``(B, C, *spatial)``, of which the first is used.

    Attributes:
        outputs: what modules gave that has positions, in the order in which the modules finished.
        runs: how often every module ran.
        embedding: of both images, ``(2, J)``.
    """

    def __init__(self, model: nn.Module, inputs: Tensor) -> None:
        self.model = model
        self.pair = torch.cat([inputs[:1], _noise_like(inputs[:1])])
        self.hints = TokenHints.of(model)
        # Tokens that do not depend on the image, for every number of tokens, where it is first seen.
        self.constant: dict[int, list[int]] = {}
        self.measured: dict[Candidate, float | None] = {}
        # Of these, those that a part of the score goes around, and those whose map is zero everywhere.
        self.bypassed: set[Candidate] = set()
        self.flat: set[Candidate] = set()
        self.outputs: list[Candidate] = []
        self.runs: dict[nn.Module, int] = defaultdict(int)
        self.embedding = self._observe()

    def candidates(self, names: set[str] | None) -> list[Candidate]:
        """Layers to measure among the modules of these names, or all, in the order in which they end.

        Of modules that give the same tensor the outermost of those that made it.
        """
        by_tensor: dict[int, Candidate] = {}
        for one in self.outputs:
            # With adaptive pooling begins the head.
            skipped = self.runs[one.module] > 1 or isinstance(one.module, _ADAPTIVE_POOLING)
            if skipped or (names is not None and one.name not in names):
                continue
            if one.tensor not in by_tensor or not one.passes_on:
                by_tensor[one.tensor] = one
        found = [by_tensor[tensor] for tensor in sorted(by_tensor)]
        return [one for one in found if one.layout.fits] or found

    def coverage(self, candidate: Candidate) -> float | None:
        """The share of the score that the map of this layer explains; None where no map can be made."""
        if candidate not in self.measured:
            self.measured[candidate] = self._coverage(candidate)
        return self.measured[candidate]

    def _coverage(self, candidate: Candidate) -> float | None:
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
        assert details.comparison is not None
        # A branch beside a shortcut explains the score of the branch alone: the rest comes around it.
        beside = details.shares.get(SLOTS[OTHER_PATHS])
        if beside is not None and bool(beside.abs() > 0.01 * details.comparison.score.abs()):
            self.bypassed.add(candidate)
        if not details.attributions.any():
            self.flat.add(candidate)
        return float(details.coverage)

    def has_influence(self, candidate: Candidate) -> bool:
        """Whether the embeddings change where two images exchange what stands at the positions of this layer."""

        def exchange(_: nn.Module, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            (tensor,), grid = tensors, candidate.layout.token_grid
            # A grid only selects and rearranges: element numbers show which elements stand at positions.
            elements = torch.arange(tensor.numel(), device=tensor.device).view_as(tensor)
            placed = (elements if grid is None else grid(elements)).flatten(1)
            flat = tensor.flatten().clone()
            flat[placed] = flat[placed.flip(0)]
            return (flat.view_as(tensor),)

        with run_without_graph() as run, hook_layer(candidate.module, False, run, exchange):
            return not torch.equal(self.model(self.pair), self.embedding)

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
        names = {module: name for name, module in self.model.named_modules() if name}
        known: dict[int, tuple[weakref.ref[Tensor], int, int]] = {}
        numbers = itertools.count()

        def note(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            self.runs[module] += 1
            if isinstance(output, tuple | list) and len(output) == 1:
                (output,) = output
            if not isinstance(output, Tensor) or not output.is_floating_point():
                return
            # The same object with the same version is the same tensor; an in-place operation makes it a new one. The
            # weak reference tells whether the address was given to another object since.
            version = -1 if output.is_inference() else output._version
            before, at, number = known.get(id(output), (None, -1, -1))
            is_known = before is not None and before() is output and at == version
            if not is_known:
                number = next(numbers)
                known[id(output)] = weakref.ref(output), version, number
            passes_on = is_known and any(output is argument for argument in args)
            layout = self._layout(module, output)
            if layout is not None:
                self.outputs.append(Candidate(names[module], module, number, passes_on, layout))

        with run_without_graph(), watch_modules(names, after=note):
            return check_embedding(self.model(self.pair))

    def _layout(self, module: nn.Module, tensor: Tensor) -> TensorLayout | None:
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
            return TensorLayout(tuple(shape[1:-1]), TokenGrid(prefix_tokens=0)) if shape[1:-1].numel() > 1 else None
        if shape[2:].numel() == 1 or not (first or (can_be_last and looks_channels_first(scopes, tensor))):
            return None
        return TensorLayout(tuple(shape[2:]), fits=first)

    def _layout_of_tokens(self, tokens: Tensor) -> TensorLayout | None:
        batch_dim = next((dim for dim in (0, 1) if tokens.shape[dim] == 2), None)
        if batch_dim is None:
            return None
        # Blocks before the first attention show which tokens do not depend on the image; later all of them do.
        first, second = tokens.unbind(batch_dim)
        count = len(first)
        if count not in self.constant and not tokens.is_meta:
            self.constant[count] = (first == second).all(1).nonzero().flatten().tolist()
        grid = measure_token_grid(count, self.pair.shape[2:], self.constant.get(count, ()), self.hints)
        if grid is None:
            return None
        return TensorLayout((count,), replace(grid, sequence_first=batch_dim == 1))


def _noise_like(image: Tensor) -> Tensor:
    """Another image with values in the same range, by a generator of its own."""
    low, high = image.detach().double().aminmax() if image.numel() and not image.is_meta else (0.0, 1.0)
    noise = torch.rand(image.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64, device="cpu")
    noise = noise.to(image.device)
    return (low + noise * ((high - low) + (high == low))).to(image.dtype)
