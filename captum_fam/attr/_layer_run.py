"""One forward pass that gives a layer's activations, the embedding, and the way back through the head alone."""

from __future__ import annotations

import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from captum._utils.common import _reduce_list, _sort_key_list
from torch import Tensor, nn

from captum_fam import functional as F
from captum_fam.attr._way_back import Constants, Sink, Start, WayBack, current_view
from captum_fam.attr.tokens import TokenGridLike
from captum_fam.support import check_embedding

Tensors = tuple[Tensor, ...]


@dataclass(frozen=True)
class Way:
    """The way back from the embedding to one module.

    Attributes:
        starts: one per pass through the module.
        origin: where the way begins: the embedding, or a vector that the embedding is a rescaling of.
        factor: ``(B, 1)``, what the embedding is the vector times that the last layer gave; None for one.
        is_end: whether the origin is the embedding itself, and not a vector whose direction the embedding has.
        sink: takes the shares of constants.
    """

    starts: list[Start]
    origin: Tensor
    factor: Tensor | None
    is_end: bool
    sink: Sink

    @cached_property
    def live(self) -> list[Start]:
        """The passes that the embedding depends on.

        Raises:
            ValueError: if it depends on none.
        """
        if len(self.starts) == 1 and self.origin.requires_grad:
            return self.starts
        reached = self._gradients(torch.ones_like(self.origin), self.starts, True) if self.origin.requires_grad else []
        live = [
            start for start, pulled in zip(self.starts, reached, strict=False) if any(g is not None for g in pulled)
        ]
        if not live:
            raise ValueError(NO_WAY_BACK)
        return live

    def pull(self, cotangent: Tensor, is_contribution: bool = False) -> list[list[tuple[Tensor, Tensor]]]:
        """Vector-Jacobian product of the head, scales held: for each live pass, pairs of gradient and tensor.

        Args:
            cotangent: ``(B, J)``, on the features of the embedding.
            is_contribution: the cotangent is a contribution, which is the same before and after a rescaling of the
                embedding, and no weight.

        Raises:
            ValueError: if a pass has no influence on the embedding.
        """
        return self._pull(cotangent, is_contribution)[0]

    def account(self, cotangent: Tensor) -> tuple[list[list[tuple[Tensor, Tensor]]], Constants]:
        """:meth:`pull` of a weight, with what constants on the way add to ``<cotangent, embedding>``."""
        _ = self.live  # looking for it pulls gradients too, which are no part of the account
        self.sink.constants = Constants(len(cotangent))
        try:
            pulled, scale = self._pull(cotangent, False)
            constants = self.sink.constants
        finally:
            self.sink.constants = None
        if scale is not None:
            constants.scale(scale)
        return pulled, constants

    def _pull(
        self, cotangent: Tensor, is_contribution: bool
    ) -> tuple[list[list[tuple[Tensor, Tensor]]], Tensor | None]:
        live = self.live
        if self.factor is not None and is_contribution == self.is_end:
            # To the vector before the last rescaling, a contribution goes as it is and a weight times the factor.
            factor = self.factor.to(cotangent)
            cotangent = cotangent / factor if is_contribution else cotangent * factor
        # In half precision shares of a large map would underflow; the way back is linear, so scale before and after.
        half = torch.finfo(self.origin.dtype).bits == 16
        largest = cotangent.abs().amax(1).clamp_min(torch.finfo(cotangent.dtype).tiny)
        scale = largest if half else None
        upstream = cotangent if scale is None else cotangent / scale.unsqueeze(1)
        gradients = self._gradients(upstream.to(self.origin).view_as(self.origin), live, False)
        if any(gradient is None for pulled in gradients for gradient in pulled):
            raise ValueError(NO_WAY_BACK)
        return [
            [
                (g if scale is None else F.widen(g) * scale.view(-1, *[1] * (g.dim() - 1)), tensor.detach())
                for g, tensor in zip(pulled, start.tensors, strict=True)
            ]
            for pulled, start in zip(gradients, live, strict=True)
        ], scale

    def _gradients(self, upstream: Tensor, starts: list[Start], keep_graph: bool) -> list[list[Tensor]]:
        wanted = [tensor for start in starts for tensor in start.tensors]
        try:
            with torch.inference_mode(False):
                found = iter(torch.autograd.grad(self.origin, wanted, upstream, keep_graph, allow_unused=True))
        except RuntimeError as error:
            if "inplace operation" not in str(error):
                raise
            raise ValueError(
                "layer: what stands between it and the embedding overwrites a tensor that the way back needs, by an "
                "operation in place on the result of another; make that operation one of a new tensor, or explain a "
                "layer behind it"
            ) from error
        return [[next(found) for _ in start.tensors] for start in starts]


NO_WAY_BACK = (
    "layer: the embedding does not depend on it, or no gradient comes back from there, so that a map would explain no "
    "score; choose a layer on the way to the embedding (for a class token, one before the last attention), or mend "
    "what is not differentiable between the two (.data or detach() in a sum, a quantized, scripted or traced part): "
    "pass the eager model in floating point"
)


@dataclass(frozen=True)
class Pass:
    """The tensors that one pass through a layer left, detached, and the view of the input that it belongs to."""

    tensors: Tensors
    view: int = 0


@dataclass(frozen=True)
class LayerRun:
    """What a forward pass left behind.

    Attributes:
        passes: for each layer the passes that count: one, or one per view of a :class:`~captum_fam.Views` model.
        embedding: the output of the forward function, ``(B, J)``, detached.
        ways: the way back to each layer, or to the head; empty without a tape.
    """

    passes: list[list[Pass]]
    embedding: Tensor
    ways: list[Way]


def run_layers(
    forward_func: Callable[..., Any],
    inputs: Tensors,
    layers: list[nn.Module],
    additional_forward_args: tuple[Any, ...] | None = None,
    attribute_to_layer_input: bool = False,
    device_ids: list[int] | None = None,
    head: nn.Module | None = None,
    tape: bool = False,
    places: bool = False,
    token_grid: TokenGridLike | None = None,
) -> LayerRun:
    """Run ``forward_func`` once, without a graph up to where the tape starts.

    With a tape each of several layers has a pass of its own: the way back to the first must not begin again at the
    second.

    Args:
        tape: record the way from the layers to the embedding.
        head: record the way from the input of this module instead.
        places: note constants on the way and their positions.
        token_grid: lays out the layer's tensors; only for ``places``.

    Raises:
        ValueError: if a layer or the head did not run or gave something that is no tensor, or if a layer ran several
            times and the embedding depends on more than one of its passes.
    """
    at_input, args = attribute_to_layer_input, (*inputs, *(additional_forward_args or ()))

    def run(watched: list[nn.Module], tape: WayBack | None) -> _Pass:
        return _run(forward_func, args, watched, at_input, device_ids, head, tape)

    def make_tape() -> WayBack:
        return WayBack(inputs, places, _names_of(forward_func), token_grid)

    if not tape or head is not None:
        result = run(layers, make_tape() if tape else None)
        passes = [
            found if len(found) == 1 else run([layer], make_tape()).live()
            for layer, found in zip(layers, result.passes, strict=True)
        ]
        run_result = LayerRun(passes, result.embedding, [] if result.way is None else [result.way])
    else:
        results = [run([layer], make_tape()) for layer in layers]
        run_result = LayerRun(
            [result.live() for result in results],
            results[0].embedding,
            [result.way for result in results if result.way is not None],
        )
    for layer, found in zip(layers, run_result.passes, strict=True):
        _check_passes(layer, found)
    return run_result


@dataclass(frozen=True)
class _Pass:
    """One call of the forward function."""

    passes: list[list[Pass]]
    embedding: Tensor
    way: Way | None

    def live(self) -> list[Pass]:
        assert self.way is not None
        return [Pass(tuple(t.detach() for t in start.tensors), start.view) for start in self.way.live]


def _check_passes(layer: nn.Module, passes: list[Pass]) -> None:
    views = [one.view for one in passes]
    if len(set(views)) < len(views):
        raise ValueError(
            f"layer {type(layer).__name__} ran {len(views)} times in forward_func, and the embedding depends on all of "
            "them (mirrored views, scales, a pair, shared weights?); choose a module around them, explain one pass at "
            'a time, or for views of one image make the model Views(model, ["identity", "hflip"])'
        )


def _run(
    forward_func: Callable[..., Any],
    args: tuple[Any, ...],
    layers: list[nn.Module],
    at_input: bool,
    device_ids: list[int] | None,
    head: nn.Module | None,
    tape: WayBack | None,
) -> _Pass:
    saved: dict[nn.Module, dict[torch.device, list[Pass]]] = defaultdict(lambda: defaultdict(list))
    lock = threading.Lock()

    def on_layer(module: nn.Module, tensors: Tensors) -> Tensors:
        if tape is None or head is not None:
            kept, given = tensors, tuple([tensor.clone() for tensor in tensors])
        else:
            given = tape.start(tensors)
            kept = tape.starts[-1].tensors
            # For what is no torch call: autograd functions and scripted modules. The end of no_grad() restores it.
            torch.set_grad_enabled(True)
        with lock:
            saved[module][tensors[0].device].append(Pass(kept, current_view()))
        return given

    if tape is not None:
        # Grad mode and tape belong to a thread; replicas would run without.
        forward_func = _without_replicas(forward_func)
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        stack.enter_context(_eager())
        active = stack.enter_context(_active_run())
        for layer in layers:
            stack.enter_context(_hook(layer, at_input, active, on_layer))
        if head is not None and tape is not None:
            stack.enter_context(_hook(head, True, active, lambda _, tensors: tape.start(tensors)))
        if tape is not None:
            stack.enter_context(tape)
        output = forward_func(*args)
    for layer in layers:
        if layer not in saved:
            raise ValueError(
                f"layer {type(layer).__name__} did not run in forward_func; choose one that does. Its hooks were not "
                "called: layer.forward(x) instead of layer(x) passes them over, as do scripted, traced and exported "
                "models; pass the eager model"
            )
    if head is not None and tape is not None and not tape.starts:
        raise ValueError("transform did not run in forward_func: pass its weight, or a module of the model itself")
    embedding = check_embedding(output)
    way = None
    if tape is not None:
        embedding = tape.normal(embedding)
        origin, factor = tape.end(embedding)
        way = Way(tape.starts, origin, factor, origin is embedding, tape.sink)
    return _Pass([_gather(saved[layer], forward_func, device_ids) for layer in layers], embedding.detach(), way)


class _Active(threading.local):
    """The runs of this thread, the innermost last: a hook acts in its own run alone."""

    def __init__(self) -> None:
        self.runs: list[object] = []


_ACTIVE = _Active()


@contextmanager
def _active_run() -> Iterator[object]:
    run = object()
    _ACTIVE.runs.append(run)
    try:
        yield run
    finally:
        _ACTIVE.runs.pop()


@contextmanager
def _hook(
    layer: nn.Module, at_input: bool, run: object, replace: Callable[[nn.Module, Tensors], Tensors]
) -> Iterator[None]:
    """Pass the layer's output (or input) through ``replace`` while the context lasts, in this run alone.

    The hook stands on the module, which other threads may run too, and a nested call may run again.
    """

    # The module that runs may be a replica of the layer, in a thread of its own.
    def exchange(module: nn.Module, given: Any) -> Any:
        if _ACTIVE.runs[-1:] != [run] and not getattr(module, "_is_replica", False):
            return None
        several = isinstance(given, tuple | list)
        tensors = tuple(given) if several else (given,)
        for tensor in tensors:
            if not isinstance(tensor, Tensor):
                raise ValueError(
                    f"layer {type(layer).__name__} {'takes' if at_input else 'gives'} a {type(tensor).__name__} "
                    "among its tensors; choose a layer of tensors only"
                )
        if not tensors:
            raise ValueError(f"layer {type(layer).__name__} takes no positional input; attribute to its output")
        replaced = replace(layer, tensors)
        if not several:
            return replaced[0]
        return given._make(replaced) if hasattr(given, "_make") else type(given)(replaced)

    if at_input:
        handle = layer.register_forward_pre_hook(exchange)
    else:
        handle = layer.register_forward_hook(lambda module, _, output: exchange(module, output))
    try:
        yield
    finally:
        handle.remove()


def _gather(
    by_device: dict[torch.device, list[Pass]], forward_func: Callable[..., Any], device_ids: list[int] | None
) -> list[Pass]:
    """The passes with their batches in order, from the devices that DataParallel spread them over."""
    ids = device_ids or getattr(forward_func, "device_ids", None)
    keys = _sort_key_list(list(by_device), ids)
    passes = []
    for parts in zip(*(by_device[key] for key in keys), strict=True):
        gathered: Tensors = _reduce_list([part.tensors for part in parts])
        passes.append(Pass(tuple(tensor.detach() for tensor in gathered), parts[0].view))
    return passes


def _without_replicas(forward_func: Callable[..., Any]) -> Callable[..., Any]:
    owner = getattr(forward_func, "__self__", forward_func)
    if isinstance(owner, nn.DataParallel) and len(owner.device_ids) > 1:
        return owner.module
    return forward_func


def _names_of(forward_func: Callable[..., Any]) -> Callable[[Tensor], str]:
    """Names of parameters and buffers, by their address."""
    owner = getattr(forward_func, "__self__", forward_func)
    names: dict[int, str] = {}

    def name(tensor: Tensor) -> str:
        if not names and isinstance(owner, nn.Module):
            for key, value in (*owner.named_parameters(), *owner.named_buffers()):
                names[value.data_ptr()] = key
        return names.get(tensor.data_ptr(), "")

    return name


class _Stance:
    """Hooks are part of what torch.compile has compiled: those added later are passed over, unless run eagerly.

    The stance belongs to the process, so that the first of several overlapping runs sets it and the last one ends it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._runs = 0
        self._set: Any = None

    @contextmanager
    def eager(self) -> Iterator[None]:
        # Importing the compiler takes seconds; where nobody has, nothing is compiled.
        set_stance = getattr(torch.compiler, "set_stance", None)  # torch >= 2.6
        if set_stance is None or "torch._dynamo" not in sys.modules:
            yield
            return
        with self._lock:
            if not self._runs:
                self._set = set_stance("force_eager")
                self._set.__enter__()
            self._runs += 1
        try:
            yield
        finally:
            with self._lock:
                self._runs -= 1
                if not self._runs:
                    self._set.__exit__(None, None, None)


_eager = _Stance().eager
