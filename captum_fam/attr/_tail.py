"""The tail of a model, from a layer to the embedding, as a function that runs without the rest of the model."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from captum_fam import functional as F
from captum_fam.attr.layer_hooks import watch_modules

Step = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Link:
    """A module that ran, and the shape of its first input without the batch dimension."""

    module: nn.Module
    shape: tuple[int, ...]


class ModulesBehind(AbstractContextManager["ModulesBehind"]):
    """Lists the outermost modules that start behind a layer while the context lasts, in their order.

    For a layer that runs several times, the modules behind the last run are listed. All modules are watched, also
    modules inside a plain function, which no ``named_modules()`` lists. Other threads are not watched.

    Args:
        layer: the layer.
        at_input: begin with the layer itself.

    Attributes:
        links: the modules with their input shapes.
    """

    def __init__(self, layer: nn.Module, at_input: bool) -> None:
        self.links: list[Link] = []
        self._layer = layer
        self._at_input = at_input
        # Nesting depth of the modules that are running behind the layer; None before the layer has run.
        self._depth: int | None = None
        self._watch = ExitStack()

    def __enter__(self) -> ModulesBehind:
        self._watch.enter_context(watch_modules(None, self._start, self._finish))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._watch.close()

    def _start(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if module is self._layer and self._at_input:
            self._begin()
        if self._depth is None:
            return
        if self._depth == 0 and args and isinstance(args[0], Tensor):
            self.links.append(Link(module, tuple(args[0].shape[1:])))
        self._depth += 1

    def _finish(self, module: nn.Module, args: tuple[Any, ...], output: object) -> None:
        if module is self._layer and not self._at_input:
            self._begin()
        elif self._depth:  # at depth 0, the module that ends contains the layer and began before it
            self._depth -= 1

    def _begin(self) -> None:
        self.links, self._depth = [], 0


class LayerTail:
    """From the tensor of a layer to the embedding, ``(B, ...) -> (B, J)``.

    Args:
        steps: functions that run one after the other.
        activation: the tensor of the layer, ``(B, ...)``; ``(B, N, *spatial)`` where the tail may begin with a mean
            over the positions.

    Attributes:
        begins_with_mean: whether the embedding depends only on the mean over the positions. Measured on the activation
            and on noise of both signs, not concluded from names of modules.

    Raises:
        ValueError: if the embedding of a sample depends on the other samples in the batch.
    """

    def __init__(self, steps: Sequence[Step], activation: Tensor) -> None:
        self._steps = tuple(steps)
        # One more sample, of noise, must not change the embeddings of the others. Batch statistics would change them.
        probe = torch.randn(activation[:1].shape, generator=torch.Generator().manual_seed(0)).to(activation)
        if not _agree(self(torch.cat([activation, probe]))[:-1], self(activation), up_to_scale=False):
            raise ValueError(
                "tail embeds a sample differently in another batch; put the model in evaluation mode: model.eval()"
            )
        # Search for the first step after which both the activation and the noise are means over the positions.
        self._behind_mean: tuple[Step, ...] = ()
        self._shape: tuple[int, ...] = ()
        self.begins_with_mean = False
        pooled = activation, probe
        for count, step in enumerate(self._steps, start=1):
            if activation.dim() < 3 or self.begins_with_mean:
                break
            pooled = step(pooled[0]), step(pooled[1])
            if all(_is_mean(after, before) for after, before in zip(pooled, (activation, probe), strict=True)):
                self.begins_with_mean = True
                self._behind_mean, self._shape = self._steps[count:], tuple(pooled[0].shape[1:])

    def __call__(self, activation: Tensor) -> Tensor:
        """The embeddings of tensors of the layer, ``(M, ...) -> (M, J)``."""
        return _run(self._steps, activation)

    def from_mean(self, means: Tensor) -> Tensor:
        """The embeddings of means over the positions, ``(M, N) -> (M, J)``, for a tail that begins with a mean."""
        return _run(self._behind_mean, means.reshape(len(means), *self._shape))


def find_tail(links: Sequence[Link], activation: Tensor, embedding: Tensor, up_to_scale: bool) -> LayerTail:
    """Build the tail from the modules that ran behind a layer.

    Where a module took another shape than the module before gave, the tensor is reshaped to the noted shape, or pooled
    over the positions, by the mean or the maximum. The result must be the embedding, up to rounding.

    Args:
        links: the modules, from :class:`ModulesBehind`.
        activation: the tensor of the layer, ``(B, ...)``.
        embedding: the embedding that the model gave, ``(B, J)``.
        up_to_scale: accept an embedding that differs by a positive factor per sample.

    Raises:
        ValueError: if no chain of the modules gives the embedding.
    """
    # Pooling is often a function between two modules, which no hook sees: the mean is tried first, then the maximum.
    for pool in (F.global_average_pool, F.global_max_pool):
        steps = _matching_steps(links, pool, activation, embedding, up_to_scale)
        if steps is not None:
            return LayerTail(steps, activation)
    names = " -> ".join(type(link.module).__name__ for link in links) or "no module"
    raise ValueError(
        f'tail="auto": the modules behind the layer ({names}) do not give the embedding from the tensor of the layer, '
        f"shape {tuple(activation.shape)}. Pass tail=, a module or function from that tensor to the embedding (B, J), "
        "such as torch.nn.Sequential(pooling, head), or choose a layer right before the pooling. Only modules are "
        "seen: a tail that is passed has to contain the functions between the modules (relu, normalize) too"
    )


def given_tail(tail: Callable[..., Any], activation: Tensor, embedding: Tensor, up_to_scale: bool) -> LayerTail:
    """Check a tail that the user passed against the embedding of the model.

    Args:
        tail: from the tensor of the layer to the embedding.
        activation: the tensor of the layer, ``(B, ...)``.
        embedding: the embedding that the model gave, ``(B, J)``.
        up_to_scale: accept an embedding that differs by a positive factor per sample.

    Raises:
        ValueError: if the tail gives another embedding than the model.
    """
    output = tail(activation)
    if not isinstance(output, Tensor) or output.shape != embedding.shape:
        got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(
            f"tail gives {got} for the layer's tensor of shape {tuple(activation.shape)}, but the model's embeddings "
            f"are {tuple(embedding.shape)}; pass everything that runs behind the layer"
        )
    if not _agree(output, embedding, up_to_scale):
        raise ValueError(
            "tail gives other embeddings than the model; pass everything that runs behind the layer, and nothing else"
        )
    # As single steps, the children show whether the first of them is a mean.
    return LayerTail(list(tail) if type(tail) is nn.Sequential else [tail], activation)


def _matching_steps(
    links: Sequence[Link], pool: Step, activation: Tensor, embedding: Tensor, up_to_scale: bool
) -> list[Step] | None:
    """The longest chain, from the first module on, that gives the embedding; None where no chain does.

    Modules behind the chain, such as an auxiliary head, a dropout or a loss, have no part in the embedding.
    """
    steps: list[Step] = []
    matching: list[Step] | None = None
    tensor = activation
    for link in [*links, None]:
        end = _Fit(tuple(embedding.shape[1:]), pool)
        if end.takes(tensor) and _agree(end(tensor), embedding, up_to_scale):
            matching = [*steps, end]
        if link is None:
            break
        fit = _Fit(link.shape, pool)
        if not fit.takes(tensor):
            break
        try:
            tensor = link.module(fit(tensor))
        except Exception:  # a module that needs more than one tensor can raise any error
            break
        if not isinstance(tensor, Tensor) or len(tensor) != len(activation):
            break
        steps += [fit, link.module]
    return matching


@dataclass(frozen=True)
class _Fit:
    """Brings a tensor to the shape that the next module took: by a reshape, else by pooling."""

    shape: tuple[int, ...]
    pool: Step

    def takes(self, tensor: Tensor) -> bool:
        """Whether a reshape or a pooling of the tensor gives the shape."""
        return self._is_view(tensor) or self._is_pooled(tensor)

    def __call__(self, tensor: Tensor) -> Tensor:
        return (tensor if self._is_view(tensor) else self.pool(tensor)).reshape(len(tensor), *self.shape)

    def _is_view(self, tensor: Tensor) -> bool:
        return math.prod(tensor.shape[1:]) == math.prod(self.shape)

    def _is_pooled(self, tensor: Tensor) -> bool:
        return tensor.dim() > 2 and tensor.shape[1] == self.shape[0] == math.prod(self.shape)


def _run(steps: Sequence[Step], tensor: Tensor) -> Tensor:
    for step in steps:
        tensor = step(tensor)
    return tensor


def _is_mean(pooled: Tensor, activation: Tensor) -> bool:
    """Whether ``pooled`` is the mean of ``(B, N, *spatial)`` over the positions, up to rounding."""
    means = F.global_average_pool(activation)
    return pooled.numel() == means.numel() and _agree(pooled.flatten(1), means, up_to_scale=False)


def _agree(rows: Tensor, expected: Tensor, up_to_scale: bool) -> bool:
    """Whether all rows, or all directions of rows, are equal up to rounding."""
    eps = max(torch.finfo(rows.dtype).eps, torch.finfo(expected.dtype).eps)
    rows, expected = F.common_precision(rows, expected)
    if up_to_scale:
        rows, expected = F.unit(rows), F.unit(expected)
    # Relative tolerance: 2e-5 in float32, 4e-11 in float64. Sums of thousands of terms in another order differ by less.
    return bool(((rows - expected).norm(dim=1) <= eps ** (2 / 3) * expected.norm(dim=1)).all())
