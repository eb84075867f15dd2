"""Hooks on layers for the time of one run: exchange what a layer gives, or watch which modules run."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

Tensors = tuple[Tensor, ...]
Before = Callable[[nn.Module, tuple[Any, ...]], None]
After = Callable[[nn.Module, tuple[Any, ...], Any], None]


class _Active(threading.local):
    """The runs of this thread, the innermost last: a hook acts in its own run alone."""

    def __init__(self) -> None:
        self.runs: list[object] = []


_ACTIVE = _Active()


@contextmanager
def active_run() -> Iterator[object]:
    """Begin a run of this thread; gives the object that :func:`hook_layer` knows the run by."""
    run = object()
    _ACTIVE.runs.append(run)
    try:
        yield run
    finally:
        _ACTIVE.runs.pop()


@contextmanager
def hook_layer(
    layer: nn.Module, at_input: bool, run: object, replace: Callable[[nn.Module, Tensors], Tensors]
) -> Iterator[None]:
    """Pass the layer's output (or input) through ``replace`` while the context lasts, in this run alone.

    The hook stands on the module, which other threads may run too, and a nested call may run again.

    Args:
        layer: the module.
        at_input: exchange what the layer takes instead of what the layer gives.
        run: from :func:`active_run`.
        replace: from the module that ran and its tensors to the tensors that go on in their place.

    Raises:
        ValueError: in the run, where the layer takes or gives something that is no tensor, or no input by position.
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
        return given._make(replaced) if hasattr(given, "_make") else type(given)(replaced)  # a named tuple stays one

    if at_input:
        handle = layer.register_forward_pre_hook(exchange)
    else:
        handle = layer.register_forward_hook(lambda module, _, output: exchange(module, output))
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def watch_modules(
    modules: Iterable[nn.Module] | None, before: Before | None = None, after: After | None = None
) -> Iterator[None]:
    """Be told of every call of some modules in this thread, while the context lasts.

    Args:
        modules: which; None: all that run, also modules inside a plain function, which nobody has a list of.
        before: ``before(module, args)`` is called when a module starts.
        after: ``after(module, args, output)`` is called when a module has finished.
    """
    thread = threading.get_ident()

    def on_start(module: nn.Module, args: tuple[Any, ...]) -> None:
        if before is not None and threading.get_ident() == thread:
            before(module, args)

    def on_end(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if after is not None and threading.get_ident() == thread:
            after(module, args, output)

    with ExitStack() as stack:
        if modules is None:
            stack.callback(register_module_forward_pre_hook(on_start).remove)
            stack.callback(register_module_forward_hook(on_end).remove)
        for module in modules or ():
            if not isinstance(module, torch.jit.ScriptModule):  # which takes no hooks
                if before is not None:
                    stack.callback(module.register_forward_pre_hook(on_start).remove)
                if after is not None:
                    stack.callback(module.register_forward_hook(on_end).remove)
        yield


def observe_layers(model: Callable[..., Any], layers: Sequence[nn.Module], inputs: Tensors) -> list[list[object]]:
    """Run a model once, without a graph, to see what some of its layers give.

    Args:
        model: called as ``model(*inputs)``.
        layers: modules of the model.
        inputs: the model's input tensors.

    Returns:
        For each layer what the layer gave, one entry per run of the layer; an empty list for a layer that did not run.

    Example:
        >>> [(activation,)] = observe_layers(model, [model.layer4], (images,))
    """
    outputs: dict[nn.Module, list[object]] = {layer: [] for layer in layers}
    with run_without_graph(), watch_modules(outputs, after=lambda module, _, output: outputs[module].append(output)):
        model(*inputs)
    return [outputs[layer] for layer in layers]


@contextmanager
def run_without_graph() -> Iterator[object]:
    """A pass without a graph, through modules that are not compiled; gives the run that :func:`hook_layer` acts in."""
    with torch.inference_mode(False), torch.no_grad(), eager(), active_run() as run:
        yield run


class _Stance:
    """Hooks are part of what torch.compile has compiled: hooks added later are passed over, unless run eagerly.

    The stance belongs to the process, so that the first of several overlapping runs sets the stance and the last one
    ends it.
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


_STANCE = _Stance()


def eager() -> AbstractContextManager[None]:
    """While the context lasts, compiled modules run as they were written, with their hooks."""
    return _STANCE.eager()
