"""Cutting an embedding model in two at the layer that is explained."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from captum_fam.attr.layer_hooks import observe_layers
from captum_fam.attr.tokens import looks_channels_last
from captum_fam.experiments.split_model import TwoPartModel, probe_images
from captum_fam.functional import unit
from captum_fam.models import EmbeddingModel


def split_model(net: EmbeddingModel, layer: str | None = None) -> TwoPartModel:
    """Cut an embedding model at the layer that its pooling takes, or at another.

    A normalization at the end is left out where the similarity is the cosine, which does not see it.

    Args:
        net: as :func:`~captum_fam.models.create_model` gives it; ``torch.fx`` must be able to trace it, unless it
            begins with that layer under the name ``features``, as the networks of the paper do.
        layer: dotted name of a module in ``net.model`` with output ``(B, N, h, w)``; ``torch.fx`` must be able to trace
            the modules that it lies in, all others run as they are. None: that which the pooling takes.

    Raises:
        ValueError: if the embedding is not made of the layer's output alone, or the model cannot be cut there; the
            message says why and what to do.

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
        # What of the model is pooling and what head is not known: all of it is the rest.
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
        whole, again = net.model(probe), parts(probe)
    if net.similarity == "cosine":
        whole, again = unit(whole), unit(again)
    if not _is_same(again, whole):
        raise ValueError(f"model {net.name}: what follows layer {layer!r} does not make its embedding of it")
    return parts


def cut_earlier(model: TwoPartModel, layer: str, name: str) -> None:
    """Move a part of the backbone of a model to its tail.

    Args:
        model: is changed.
        layer: dotted name of a module in its backbone, behind which the backbone is to end.
        name: of the model, for messages.

    Raises:
        ValueError: if the model cannot be cut there.
    """
    probe = probe_images(model.size)
    backbone, rest = cut(model.backbone, layer, None, probe, name)
    with torch.no_grad():
        if not _is_same(rest(backbone(probe).clone()), model.backbone(probe)):
            raise ValueError(f"model {name}: what follows layer {layer!r} does not make its activation of it")
    model.backbone = backbone
    model.tail.rest = rest if model.tail.rest is None else nn.Sequential(rest, model.tail.rest)


def cut(
    model: nn.Module, layer: str, end: str | None, probe: Tensor, name: str
) -> tuple[fx.GraphModule, fx.GraphModule]:
    """Two modules: from a model's input to a layer's output, and from there to the output of another, or of the model.

    Both share the modules of the model, under the same names.

    Args:
        model: takes one tensor.
        layer: dotted name of the module to cut behind.
        end: dotted name of the module to go to; None: to the end.
        probe: an input.
        name: of the model, for messages.

    Raises:
        ValueError: if the model cannot be cut there; the message says why and what to do.
    """

    def refuse(reason: str) -> ValueError:
        return ValueError(f"model {name} cannot be cut at layer {layer!r}: {reason}")

    modules = dict(model.named_modules())
    if not layer or layer not in modules:
        close = difflib.get_close_matches(layer, modules) or [child for child, _ in model.named_children()]
        raise refuse(f"it is no module of the model; there are {', '.join(close)}")
    (outputs,) = observe_layers(model, [modules[layer]], (probe,))
    if len(outputs) != 1:
        raise refuse(f"it runs {len(outputs)} times; choose one that runs once")
    (output,) = outputs
    if not isinstance(output, Tensor) or output.dim() != 4:
        got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise refuse(f"it gives {got}, and the protocols take (B, N, h, w); choose a layer of feature maps")
    if looks_channels_last([modules[layer], model], output, output.shape[1]):
        raise refuse(f"it gives {tuple(output.shape)}, channels last; choose a layer with (B, N, h, w)")
    tracer = _Tracer({layer, *([end] if end else [])})
    try:
        graph = tracer.trace(model)
    except Exception as error:  # tracing fails in as many ways as there are models
        raise refuse(
            f"torch.fx does not trace the modules around it ({error}); choose another, or give a factory of a "
            "TwoPartModel (--model package.module:factory) with backbone, pooling and rest"
        ) from error
    start = tracer.outputs[layer]
    stop = tracer.outputs[end] if end else next(iter(graph.find_nodes(op="output"))).args[0]
    assert isinstance(stop, fx.Node)
    needed = _needed(stop, start)
    if start not in needed or any(node.op == "placeholder" for node in needed):
        raise refuse(
            "what runs behind it takes other tensors too, or none of it, as inside a block with a shortcut; choose the "
            "whole block"
        )
    return _part(model, graph, _needed(start), None, start), _part(model, graph, needed, start, stop)


def _is_same(made: Tensor, expected: Tensor) -> bool:
    return made.shape == expected.shape and torch.allclose(made, expected, rtol=1e-3, atol=1e-5)


class _Tracer(fx.Tracer):
    """Traces the modules around some others and notes what each module gives; all further modules run as they are.

    Args:
        names: dotted names of these others.
    """

    def __init__(self, names: set[str]) -> None:
        super().__init__()
        self._around = {name[:at] for name in names for at, letter in enumerate(name) if letter == "."}
        self.outputs: dict[str, fx.Node] = {}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_qualified_name not in self._around

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        output = super().call_module(m, forward, args, kwargs)
        if isinstance(output, fx.Proxy):
            self.outputs[self.path_of_module(m)] = output.node
        return output


def _needed(end: fx.Node, start: fx.Node | None = None) -> set[fx.Node]:
    """The nodes that a node is made of, itself included, without those that go into ``start``."""
    found: set[fx.Node] = set()
    waiting = [end]
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += [] if node is start else node.all_input_nodes
    return found


def _part(
    model: nn.Module, graph: fx.Graph, nodes: set[fx.Node], start: fx.Node | None, end: fx.Node
) -> fx.GraphModule:
    """These nodes of a model's graph as a module, whose input takes the place of ``start``."""
    part = fx.Graph()
    copies = {} if start is None else {start: part.placeholder("activation")}
    for node in graph.nodes:
        if node in nodes and node not in copies:
            copies[node] = part.node_copy(node, copies.__getitem__)
    part.output(copies[end])
    return fx.GraphModule(model, part)
