"""Measuring the layers of a model on one image: where positions are, and how much of the score each layer explains."""

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

_ZERO = (
    "the embedding of the first image is zero in every number, as behind a ReLU that lets nothing through; check the "
    "weights, or pass another image"
)
_ADAPTIVE_POOLING = (nn.modules.pooling._AdaptiveAvgPoolNd, nn.modules.pooling._AdaptiveMaxPoolNd)


@dataclass(frozen=True)
class TensorLayout:
    """Where the positions of the image are in a tensor.

    Attributes:
        positions: the sizes ``(h, w)``, or the number of tokens ``(T,)``.
        token_grid: rearranges the tensor into ``(B, N, *spatial)``; None: the tensor has that form.
        fits: whether the positions have the aspect ratio of the image.
    """

    positions: tuple[int, ...]
    token_grid: TokenGrid | None = None
    fits: bool = True


@dataclass(frozen=True, eq=False)
class Candidate:
    """A layer that may be explained: a module with the tensor that it gave.

    Attributes:
        name: dotted name of the module.
        module: the module.
        tensor: number of the tensor. Modules that give the same tensor have the same number.
        passes_on: whether the module only passes on a tensor of another module, like an ``Identity``.
        layout: where positions are in the tensor.
    """

    name: str
    module: nn.Module
    tensor: int
    passes_on: bool
    layout: TensorLayout


class Measurement:
    """The tensors of all layers of a model for one image, and how much of the score the map of each layer explains.

    The model runs once on a pair of images: the first of the inputs, and noise. Tokens that are equal for both, such as
    a class token before the first attention, are no patches.

    Args:
        model: an embedding model.
        inputs: images, ``(B, C, *spatial)``; the first image is used.

    Attributes:
        model: the model.
        pair: the two images, ``(2, C, *spatial)``.
        hints: numbers of special tokens, from the names of the parameters.
        outputs: one candidate per module that gave a tensor with positions, in the order in which the modules finished.
        runs: number of runs of every module.
        embedding: the embeddings of both images, ``(2, J)``.
        constant: for every number of tokens, the indices of tokens that do not depend on the image.
        measured: the coverage of the candidates that were measured; None where no map can be made.
        bypassed: measured candidates that a part of the score goes around.
        flat: measured candidates whose map is zero everywhere.
    """

    def __init__(self, model: nn.Module, inputs: Tensor) -> None:
        self.model = model
        self.pair = torch.cat([inputs[:1], _noise_like(inputs[:1])])
        self.hints = TokenHints.of(model)
        self.constant: dict[int, list[int]] = {}
        self.measured: dict[Candidate, float | None] = {}
        self.bypassed: set[Candidate] = set()
        self.flat: set[Candidate] = set()
        self.outputs: list[Candidate] = []
        self.runs: dict[nn.Module, int] = defaultdict(int)
        self.embedding = self._observe()

    def candidates(self, names: set[str] | None) -> list[Candidate]:
        """The layers to measure, in the order in which their tensors were made.

        For a tensor that several modules give, the candidate is the outermost module that did not just pass the tensor
        on. Where any tensors have the aspect ratio of the image, only these are candidates.

        Args:
            names: names of the modules to choose from; None: all modules.
        """
        by_tensor: dict[int, Candidate] = {}
        for candidate in self.outputs:
            # An adaptive pooling is the beginning of the head.
            is_skipped = self.runs[candidate.module] > 1 or isinstance(candidate.module, _ADAPTIVE_POOLING)
            if is_skipped or (names is not None and candidate.name not in names):
                continue
            if candidate.tensor not in by_tensor or not candidate.passes_on:
                by_tensor[candidate.tensor] = candidate
        candidates = [by_tensor[tensor] for tensor in sorted(by_tensor)]
        return [candidate for candidate in candidates if candidate.layout.fits] or candidates

    def coverage(self, candidate: Candidate) -> float | None:
        """The share of the score that the map of a candidate explains; None where no map can be made.

        The score is the similarity of the image to itself. The share is NaN on the meta device.
        """
        if candidate not in self.measured:
            self.measured[candidate] = self._coverage(candidate)
        return self.measured[candidate]

    def _coverage(self, candidate: Candidate) -> float | None:
        if self.embedding.is_meta:
            return float("nan")
        cam = LayerSimilarityCAM(self.model, candidate.module, token_grid=candidate.layout.token_grid)
        cam.has_warned = True  # a small coverage is a result here, not a reason for a warning
        try:
            details = cam.details(self.pair[:1], support=self.embedding[:1])
        except ValueError:  # no gradient reaches the layer, or the layout of the tensor was concluded wrongly
            return None
        assert isinstance(details.coverage, Tensor)
        assert isinstance(details.attributions, Tensor)
        assert isinstance(details.shares, dict)
        assert details.comparison is not None
        # A branch beside a shortcut explains only the score of the branch: the rest of the score bypasses the branch.
        other_paths = details.shares.get(SLOTS[OTHER_PATHS])
        if other_paths is not None and bool(other_paths.abs() > 0.01 * details.comparison.score.abs()):
            self.bypassed.add(candidate)
        if not details.attributions.any():
            self.flat.add(candidate)
        return float(details.coverage)

    def has_influence(self, candidate: Candidate) -> bool:
        """Whether the embeddings of the pair change when the two images exchange their values at the positions."""

        def exchange(_: nn.Module, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            (tensor,), grid = tensors, candidate.layout.token_grid
            # A grid only selects and rearranges: applied to element numbers, it shows which elements have positions.
            elements = torch.arange(tensor.numel(), device=tensor.device).view_as(tensor)
            placed = (elements if grid is None else grid(elements)).flatten(1)
            flat = tensor.flatten().clone()
            flat[placed] = flat[placed.flip(0)]
            return (flat.view_as(tensor),)

        with run_without_graph() as run, hook_layer(candidate.module, False, run, exchange):
            return not torch.equal(self.model(self.pair), self.embedding)

    def problem(self) -> str | None:
        """Why no map of the first image can explain anything, whatever the layer; None where a map can."""
        first = self.embedding[0]
        if first.is_meta:
            return None
        if not first.isfinite().all():
            where = "the first image" if not self.pair[0].isfinite().all() else "its embedding of the first image"
            return f"{where} has NaN or inf"
        # Where noise has another embedding, the influence of a layer can still be measured.
        return None if self.embedding.any() else f"{_ZERO}, or name a layer"

    def reasons(self) -> str:
        """The likely reason why no layer was found, in words; "" without a likely reason."""
        if not self.embedding.is_meta and not self.embedding[0].any():
            return f" ({_ZERO})"
        repeated = [candidate.name for candidate in self.outputs if self.runs[candidate.module] > 1]
        if repeated:
            return f" ({repeated[-1]} and others run several times: for views of one image pass a Views model)"
        if not self.runs:
            return " (no module was called: a scripted, traced or exported model? Pass the eager one)"
        return ""

    def _observe(self) -> Tensor:
        """Run the pair once, fill :attr:`outputs` and :attr:`runs`, and return the embeddings, ``(2, J)``."""
        names = {module: name for name, module in self.model.named_modules() if name}
        known: dict[int, tuple[weakref.ref[Tensor], int, int]] = {}
        numbers = itertools.count()

        def note(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            self.runs[module] += 1
            if isinstance(output, tuple | list) and len(output) == 1:
                (output,) = output
            if not isinstance(output, Tensor) or not output.is_floating_point():
                return
            # The same object with the same version is the same tensor; after an in-place operation the tensor counts as
            # a new one. The weak reference shows whether the id belongs to another object by now.
            version = -1 if output.is_inference() else output._version
            reference, known_version, number = known.get(id(output), (None, -1, -1))
            is_known = reference is not None and reference() is output and known_version == version
            if not is_known:
                number = next(numbers)
                known[id(output)] = weakref.ref(output), version, number
            passes_on = is_known and any(output is argument for argument in args)
            layout = self._layout(module, output)
            if layout is not None:
                self.outputs.append(Candidate(names[module], module, number, passes_on, layout))

        with run_without_graph(), watch_modules(names, after=note):
            embedding = check_embedding(self.model(self.pair))
        if len(embedding) != 2:
            raise ValueError(
                f"model {type(self.model).__name__} gives {len(embedding)} embeddings for a batch of 2 images, "
                "expected one embedding per image; for several views of each image, such as mirrored ones, pass a "
                "Views model"
            )
        return embedding

    def _layout(self, module: nn.Module, tensor: Tensor) -> TensorLayout | None:
        """Where positions are in a tensor; None for a tensor without positions."""
        image, shape = self.pair.shape[2:], tensor.shape
        if tensor.dim() == 3 and len(image) == 2:
            return self._layout_of_tokens(tensor)
        if tensor.dim() != self.pair.dim() or shape[0] != 2:
            return None
        scopes, can_be_last = [module, self.model], len(image) == 2
        if len(image) == 3:
            # Convolutions without padding take as much from a short side as from a long one, so that the aspect ratio
            # of a volume says little. No grid lays out a volume with channels in the last dimension.
            has_positions = shape[2:].numel() > 1 and not looks_channels_last(scopes, tensor, 0)
            return TensorLayout(tuple(shape[2:])) if has_positions else None
        first, last = fits_image(shape[2:], image), fits_image(shape[1:-1], image)
        if first and last:
            # Both orders fit: numbers of channels decide. The length of the embedding is not known yet, hence 0.
            last = looks_channels_last(scopes, tensor, 0)
            first = not last
        if last and can_be_last:
            return TensorLayout(tuple(shape[1:-1]), TokenGrid(prefix_tokens=0)) if shape[1:-1].numel() > 1 else None
        if shape[2:].numel() == 1 or not (first or (can_be_last and looks_channels_first(scopes, tensor))):
            return None
        return TensorLayout(tuple(shape[2:]), fits=first)

    def _layout_of_tokens(self, tokens: Tensor) -> TensorLayout | None:
        """The layout of ``(2, T, N)`` or ``(T, 2, N)``; None where the tokens form no grid."""
        batch_dim = next((dim for dim in (0, 1) if tokens.shape[dim] == 2), None)
        if batch_dim is None:
            return None
        # Before the first attention, constant tokens are equal for both images. Later, all tokens depend on the image,
        # so that only the first tensor with this number of tokens is used.
        first, second = tokens.unbind(batch_dim)
        count = len(first)
        if count not in self.constant and not tokens.is_meta:
            self.constant[count] = (first == second).all(1).nonzero().flatten().tolist()
        grid = measure_token_grid(count, self.pair.shape[2:], self.constant.get(count, ()), self.hints)
        if grid is None:
            return None
        return TensorLayout((count,), replace(grid, sequence_first=batch_dim == 1))


def _noise_like(image: Tensor) -> Tensor:
    """A noise image with the shape and the range of values of an image, without the global generator of torch."""
    low, high = image.detach().double().aminmax() if image.numel() and not image.is_meta else (0.0, 1.0)
    noise = torch.rand(image.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64, device="cpu")
    noise = noise.to(image.device)
    return (low + noise * ((high - low) + (high == low))).to(image.dtype)
