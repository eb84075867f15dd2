"""What a model does behind a layer, as a function that runs apart from the rest of it."""

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
    """A module that ran, and the shape of what it took, without the batch."""

    module: nn.Module
    shape: tuple[int, ...]


class ModulesBehind(AbstractContextManager["ModulesBehind"]):
    """Notes the modules that start behind a layer while the context lasts: the outermost ones, in order.

    Those of the last pass through the layer are kept. All modules are watched, also those that a function calls and
    nobody has a list of; of other threads no notice is taken.

    Args:
        layer: the layer.
        at_input: begin with the layer itself.

    Attributes:
        links: the modules.
    """

    def __init__(self, layer: nn.Module, at_input: bool) -> None:
        self.links: list[Link] = []
        self._layer = layer
        self._at_input = at_input
        # How many modules behind the layer are running, one within the other; None before the layer.
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
        elif self._depth:  # at 0 it is a module around the layer that ends
            self._depth -= 1

    def _begin(self) -> None:
        self.links, self._depth = [], 0


class LayerTail:
    """From a layer's tensor to the embedding, ``(B, ...) -> (B, J)``.

    Args:
        steps: run one after the other.
        activation: the layer's tensor, ``(B, N, *spatial)`` where the tail may begin with a mean over its positions.

    Attributes:
        begins_with_mean: whether only the mean over the positions counts. It is measured, on the activation and on
            noise of both signs, not read from a name.

    Raises:
        ValueError: if the embedding of a sample depends on the others in its batch.
    """

    def __init__(self, steps: Sequence[Step], activation: Tensor) -> None:
        self._steps = tuple(steps)
        # One more sample of noise in the batch must not change the others: batch statistics would.
        probe = torch.randn(activation[:1].shape, generator=torch.Generator().manual_seed(0)).to(activation)
        if not _agree(self(torch.cat([activation, probe]))[:-1], self(activation), up_to_scale=False):
            raise ValueError(
                "tail embeds a sample differently in another batch; put the model in evaluation mode: model.eval()"
            )
        # The first step after which the images and noise are their means over the positions, if there is one.
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
        return _run(self._steps, activation)

    def from_mean(self, means: Tensor) -> Tensor:
        """The embeddings that belong to these means over the positions, ``(M, N) -> (M, J)``."""
        return _run(self._behind_mean, means.reshape(len(means), *self._shape))


def find_tail(links: Sequence[Link], activation: Tensor, embedding: Tensor, up_to_scale: bool) -> LayerTail:
    """The tail made of the modules that ran behind a layer, where these modules are all of it.

    Where one takes another shape than the one before it gave, the tensor is reshaped as it was in the pass, or pooled
    over its positions, by the mean or the maximum. The result must be the embedding, up to rounding.

    Args:
        links: from :class:`ModulesBehind`.
        activation: the layer's tensor, ``(B, ...)``.
        embedding: the model's, ``(B, J)``.
        up_to_scale: a positive factor for each sample makes no difference.

    Raises:
        ValueError: if they do not make the embedding.
    """
    # Pooling is often a function between two modules, which no hook sees: the mean is tried first, then the maximum.
    for pool in (F.global_average_pool, F.global_max_pool):
        steps = _matching_steps(links, pool, activation, embedding, up_to_scale)
        if steps is not None:
            return LayerTail(steps, activation)
    names = " -> ".join(type(link.module).__name__ for link in links) or "no module"
    raise ValueError(
        f'tail="auto": what ran behind the layer ({names}) does not make the embedding of the layer\'s tensor alone, '
        f"shape {tuple(activation.shape)}. Pass tail=, a module or function from that tensor to the embedding (B, J), "
        "such as torch.nn.Sequential(pooling, head), or choose a layer right before the pooling. Only modules are "
        "seen: functions between them (relu, normalize) have to be part of the tail that is given"
    )


def given_tail(tail: Callable[..., Any], activation: Tensor, embedding: Tensor, up_to_scale: bool) -> LayerTail:
    """A tail that was passed by hand, held to the model's embedding.

    Raises:
        ValueError: if it makes another embedding than the model.
    """
    made = tail(activation)
    if not isinstance(made, Tensor) or made.shape != embedding.shape:
        got = tuple(made.shape) if isinstance(made, Tensor) else type(made).__name__
        raise ValueError(
            f"tail gives {got} for the layer's tensor of shape {tuple(activation.shape)}, but the model's embeddings "
            f"are {tuple(embedding.shape)}; pass all that runs behind the layer"
        )
    if not _agree(made, embedding, up_to_scale):
        raise ValueError(
            "tail gives other embeddings than the model does; pass all that runs behind the layer, and nothing else"
        )
    # Children one by one show whether the first of them is a mean.
    return LayerTail(list(tail) if type(tail) is nn.Sequential else [tail], activation)


def _matching_steps(
    links: Sequence[Link], pool: Step, activation: Tensor, embedding: Tensor, up_to_scale: bool
) -> list[Step] | None:
    """The longest chain from the first module on that makes the embedding: what comes behind has no part in it."""
    steps: list[Step] = []
    matching: list[Step] | None = None
    tensor = activation
    for link in [*links, None]:
        # The chain up to here may be all of the tail: an auxiliary head, a dropout or a loss can come behind it.
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
        except Exception:  # a module that takes more than one tensor fails in its own way
            break
        if not isinstance(tensor, Tensor) or len(tensor) != len(activation):
            break
        steps += [fit, link.module]
    return matching


@dataclass(frozen=True)
class _Fit:
    """Brings what a module gave to the shape that the next one took."""

    shape: tuple[int, ...]
    pool: Step

    def takes(self, tensor: Tensor) -> bool:
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
    means = F.global_average_pool(activation)
    return pooled.numel() == means.numel() and _agree(pooled.flatten(1), means, up_to_scale=False)


def _agree(made: Tensor, expected: Tensor, up_to_scale: bool) -> bool:
    """Whether each row is the expected one, up to rounding, or its direction is."""
    eps = max(torch.finfo(made.dtype).eps, torch.finfo(expected.dtype).eps)
    made, expected = F.common_precision(made, expected)
    if up_to_scale:
        made, expected = F.unit(made), F.unit(expected)
    # 2e-5 in float32, 4e-11 in float64: sums of thousands of terms in another order stay within it.
    return bool(((made - expected).norm(dim=1) <= eps ** (2 / 3) * expected.norm(dim=1)).all())
