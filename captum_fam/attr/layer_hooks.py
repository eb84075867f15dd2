"""Hooks for the time of one run: replace what a layer gives, or watch which modules run."""

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
    """The runs of this thread, the innermost last. A hook acts only in the run that it was made for."""

    def __init__(self) -> None:
        self.runs: list[object] = []


_ACTIVE = _Active()


@contextmanager
def active_run() -> Iterator[object]:
    """Begin a run of this thread.

    Yields:
        The object that identifies the run in :func:`hook_layer`.
    """
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
    """Replace the output (or the input) of a layer while the context lasts.

    Other threads may run the same module, and a nested call may run the module again. The hook therefore acts only in
    the given run.

    Args:
        layer: the module.
        at_input: replace the input of the layer instead of the output.
        run: the run to act in, from :func:`active_run`.
        replace: from the layer and its tensors to the tensors with which the model goes on.

    Raises:
        ValueError: while the model runs, for a layer that takes or gives something other than tensors, or that takes no
            input by position.
    """

    # DataParallel runs replicas of the layer, each in a thread of its own: these threads have no run.
    def exchange(module: nn.Module, value: Any) -> Any:
        if _ACTIVE.runs[-1:] != [run] and not getattr(module, "_is_replica", False):
            return None
        is_sequence = isinstance(value, tuple | list)
        tensors = tuple(value) if is_sequence else (value,)
        for tensor in tensors:
            if not isinstance(tensor, Tensor):
                raise ValueError(
                    f"layer {type(layer).__name__} {'takes' if at_input else 'gives'} a {type(tensor).__name__} "
                    "among its tensors; choose a layer of tensors only"
                )
        if not tensors:
            raise ValueError(f"layer {type(layer).__name__} takes no positional input; attribute to its output")
        replaced = replace(layer, tensors)
        if not is_sequence:
            return replaced[0]
        # The model may read the fields of a named tuple, so that its type is kept.
        return value._make(replaced) if hasattr(value, "_make") else type(value)(replaced)

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
    """Call functions before and after modules run in this thread, while the context lasts.

    Args:
        modules: the modules to watch; None: every module that runs, also modules inside a plain function, which no
            ``named_modules()`` lists.
        before: ``before(module, args)`` is called when a module starts. Default: None, no call.
        after: ``after(module, args, output)`` is called when a module has finished. Default: None, no call.
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
            if not isinstance(module, torch.jit.ScriptModule):  # scripted modules take no hooks
                if before is not None:
                    stack.callback(module.register_forward_pre_hook(on_start).remove)
                if after is not None:
                    stack.callback(module.register_forward_hook(on_end).remove)
        yield


def observe_layers(model: Callable[..., Any], layers: Sequence[nn.Module], inputs: Tensors) -> list[list[object]]:
    """Run a model once, without a graph, and collect the outputs of some layers.

    Args:
        model: called as ``model(*inputs)``.
        layers: modules of the model.
        inputs: the model's input tensors.

    Returns:
        The outputs of each layer, one per run of the layer; an empty list for a layer that did not run.

    Example:
        >>> [(activation,)] = observe_layers(model, [model.layer4], (images,))
    """
    outputs: dict[nn.Module, list[object]] = {layer: [] for layer in layers}
    with run_without_graph(), watch_modules(outputs, after=lambda module, _, output: outputs[module].append(output)):
        model(*inputs)
    return [outputs[layer] for layer in layers]


@contextmanager
def run_without_graph() -> Iterator[object]:
    """Run without a graph and without compiled code while the context lasts.

    Yields:
        The run, for :func:`hook_layer`.
    """
    with torch.inference_mode(False), torch.no_grad(), eager(), active_run() as run:
        yield run


class _Stance:
    """Lets compiled modules run eagerly: compiled code does not call hooks that are added after the compilation.

    The stance of ``torch.compile`` belongs to the process. The first of several overlapping runs sets the stance, and
    the last run to finish resets it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._runs = 0
        self._set: Any = None

    @contextmanager
    def eager(self) -> Iterator[None]:
        # Where the compiler was never imported, nothing is compiled. An import here would take seconds.
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
    """Run compiled modules eagerly, with their hooks, while the context lasts."""
    return _STANCE.eager()
