"""Cuts an embedding model into two parts at the layer to explain."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from captum_fam.attr.layer_hooks import observe_layers
from captum_fam.attr.tokens import looks_channels_last
from captum_fam.experiments.two_part_model import TwoPartModel, probe_images
from captum_fam.functional import unit
from captum_fam.models import EmbeddingModel


def split_model(net: EmbeddingModel, layer: str | None = None) -> TwoPartModel:
    """Cut an embedding model at the layer that is pooled, or at another layer.

    For the cosine similarity a normalization at the end of the model is left out, because the cosine does not depend on
    it.

    Args:
        net: result of :func:`~captum_fam.models.create_model`. ``torch.fx`` must be able to trace the model, unless the
            model begins with the pooled layer under the name ``features``, as the networks of the paper do.
        layer: dotted name of a module in ``net.model`` with output ``(B, N, h, w)``. ``torch.fx`` must be able to trace
            the modules that contain this module; it does not trace all others. None for the layer that is pooled.
            Default: None.

    Returns:
        The model in two parts.

    Raises:
        ValueError: if the embedding depends on anything else than the output of the layer, or if the model cannot be
            cut at the layer; the message names the reason and a remedy.

    Example:
        >>> model = split_model(create_model("squeezenet1_0"), "features.5")
        >>> activation = model.backbone(torch.rand(2, 3, 224, 224))
        >>> activation.shape, model.tail.rest(activation).shape
        (torch.Size([2, 256, 54, 54]), torch.Size([2, 512, 13, 13]))
    """
    pooling, head, end = net.pooling, net.head, net.layer if net.token_grid is None else None
    if pooling is None or end is None:
        if layer is None:
            raise ValueError(
                f"model {net.name}: its embedding is no pooling of layer {net.layer!r}; it cannot be cut there unless "
                "the layer is named (--layer, or layer= in Python), and gives (B, N, h, w)"
            )
        # The pooling and the head in the model are not known: everything behind the layer becomes the rest.
        pooling, head, end = nn.Identity(), None, None
    layer = layer or net.layer
    probe = probe_images(net.size)
    backbone: nn.Module
    rest: nn.Module | None = None
    if layer == end == "features":
        backbone = net.layer_module
    else:
        backbone, rest = cut(net.model, layer, end, probe, net.name)
    parts = TwoPartModel(
        backbone,
        pooling,
        head,
        size=net.size,
        mean=net.mean,
        std=net.std,
        interpolation=net.interpolation,
        similarity=net.similarity,
        evaluation_crop=net.evaluation_crop,
        rest=rest if layer != end else None,
    ).eval()
    with torch.inference_mode():
        expected, embedding = net.model(probe), parts(probe)
    if net.similarity == "cosine":
        expected, embedding = unit(expected), unit(embedding)
    if not _is_close(embedding, expected):
        raise ValueError(f"model {net.name}: the embedding cannot be computed from the output of layer {layer!r}")
    return parts


def cut_earlier(model: TwoPartModel, layer: str, name: str) -> None:
    """Move a part of the backbone of a model to its tail.

    Args:
        model: model, which changes in place.
        layer: dotted name of a module in the backbone; the backbone ends behind this module afterwards.
        name: name of the model, for messages.

    Raises:
        ValueError: if the model cannot be cut there.
    """
    probe = probe_images(model.size)
    backbone, rest = cut(model.backbone, layer, None, probe, name)
    with torch.no_grad():
        if not _is_close(rest(backbone(probe).clone()), model.backbone(probe)):
            raise ValueError(f"model {name}: the activation cannot be computed from the output of layer {layer!r}")
    model.backbone = backbone
    model.tail.rest = rest if model.tail.rest is None else nn.Sequential(rest, model.tail.rest)


def cut(
    model: nn.Module, layer: str, end: str | None, probe: Tensor, name: str
) -> tuple[fx.GraphModule, fx.GraphModule]:
    """Cut a model behind a layer, with ``torch.fx``.

    Args:
        model: module that takes one tensor.
        layer: dotted name of the module behind which the model is cut.
        end: dotted name of the module with whose output the second part ends; None for the output of the model.
        probe: an input of the model.
        name: name of the model, for messages.

    Returns:
        Two modules: from the input of the model to the output of the layer, and from the output of the layer to the
        output of ``end``. Both share the modules of the model, under the same names.

    Raises:
        ValueError: if the model cannot be cut at the layer; the message names the reason and a remedy.
    """

    def refuse(reason: str) -> ValueError:
        return ValueError(f"model {name} cannot be cut at layer {layer!r}: {reason}")

    modules = dict(model.named_modules())
    if not layer or layer not in modules:
        close = difflib.get_close_matches(layer, modules) or [child for child, _ in model.named_children()]
        raise refuse(f"it is no module of the model; there are {', '.join(close)}")
    (outputs,) = observe_layers(model, [modules[layer]], (probe,))
    if len(outputs) != 1:
        raise refuse(f"it runs {len(outputs)} times; choose a layer that runs once")
    (output,) = outputs
    if not isinstance(output, Tensor) or output.dim() != 4:
        output_form = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise refuse(f"it gives {output_form}, and the protocols take (B, N, h, w); choose a layer of feature maps")
    if looks_channels_last([modules[layer], model], output, output.shape[1]):
        raise refuse(f"it gives {tuple(output.shape)}, channels last; choose a layer with (B, N, h, w)")
    tracer = _Tracer({layer, *([end] if end else [])})
    try:
        graph = tracer.trace(model)
    except Exception as error:  # tracing can raise any exception
        raise refuse(
            f"torch.fx does not trace the modules around it ({error}); choose another layer, or give a factory of a "
            "TwoPartModel (--model package.module:factory) with backbone, pooling and rest"
        ) from error
    start = tracer.outputs[layer]
    stop = tracer.outputs[end] if end else next(iter(graph.find_nodes(op="output"))).args[0]
    assert isinstance(stop, fx.Node)
    needed = _needed(stop, start)
    if start not in needed or any(node.op == "placeholder" for node in needed):
        raise refuse(
            "the modules behind it also take other tensors, or do not take its output, as inside a block with a "
            "shortcut; choose the whole block"
        )
    return _part(model, graph, _needed(start), None, start), _part(model, graph, needed, start, stop)


def _is_close(result: Tensor, expected: Tensor) -> bool:
    return result.shape == expected.shape and torch.allclose(result, expected, rtol=1e-3, atol=1e-5)


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
