"""Cuts a model behind a layer with ``torch.fx``: each part holds and runs its own modules only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import fx, nn


class CutError(ValueError):
    """A model that cannot be cut at a layer; the message names the reason and a remedy."""


class BypassError(CutError):
    """A layer that does not get everything that the modules behind it take from the image."""


def cut_by_tracing(model: nn.Module, layer: str, end: str | None = None) -> tuple[fx.GraphModule, fx.GraphModule]:
    """Cut a model behind a layer, by a trace of the modules that contain the layer.

    Args:
        model: module that takes one tensor.
        layer: dotted name of the module behind which the model is cut.
        end: dotted name of the module with whose output the second part ends; None for the output of the model.
            Default: None.

    Returns:
        Two modules: from the input of the model to the output of the layer, and from the output of the layer to the
        output of ``end``. Both share the modules of the model, under the same names.

    Raises:
        CutError: if ``torch.fx`` does not trace the model.
        BypassError: if the modules behind the layer take something else than its output.

    Example:
        >>> network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Flatten())
        >>> first, second = cut_by_tracing(network, "0")
        >>> second(first(torch.rand(2, 3, 5, 5))).shape
        torch.Size([2, 36])
    """
    tracer = _Tracer({layer, *([end] if end else [])})
    try:
        graph = tracer.trace(model)
        start = tracer.outputs[layer]
        stop = tracer.outputs[end] if end else next(iter(graph.find_nodes(op="output"))).args[0]
    except Exception as error:  # tracing can raise any exception
        raise CutError(f"torch.fx does not trace the modules around it ({error})") from error
    if not isinstance(stop, fx.Node):
        raise CutError(f"the model gives a {type(stop).__name__}, expected a tensor")
    needed = _needed(stop, start)
    if start not in needed or any(node.op == "placeholder" for node in needed):
        raise BypassError("the modules behind it also take other tensors, or do not take its output")
    return _part(model, graph, _needed(start), None, start), _part(model, graph, needed, start, stop)


class _Tracer(fx.Tracer):
    """Traces the modules that contain the named modules, and records the output of each module.

    All other modules are not traced; they run as they are.

    Args:
        names: dotted names of modules.
    """

    def __init__(self, names: set[str]) -> None:
        super().__init__()
        self._containers = {name[:position] for name in names for position, letter in enumerate(name) if letter == "."}
        self.outputs: dict[str, fx.Node] = {}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_qualified_name not in self._containers

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        output = super().call_module(m, forward, args, kwargs)
        if isinstance(output, fx.Proxy):
            self.outputs[self.path_of_module(m)] = output.node
        return output


def _needed(end: fx.Node, start: fx.Node | None = None) -> set[fx.Node]:
    """The nodes on which the node ``end`` depends, with ``end`` itself, searched backward up to ``start``."""
    needed: set[fx.Node] = set()
    pending = [end]
    while pending:
        node = pending.pop()
        if node not in needed:
            needed.add(node)
            pending += [] if node is start else node.all_input_nodes
    return needed


def _part(
    model: nn.Module, graph: fx.Graph, nodes: set[fx.Node], start: fx.Node | None, end: fx.Node
) -> fx.GraphModule:
    """A module of nodes of the graph of a model; the input of the module takes the place of the node ``start``."""
    part = fx.Graph()
    copies = {} if start is None else {start: part.placeholder("activation")}
    for node in graph.nodes:
        if node in nodes and node not in copies:
            copies[node] = part.node_copy(node, copies.__getitem__)
    part.output(copies[end])
    return fx.GraphModule(model, part)
