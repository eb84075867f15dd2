"""One forward pass that gives a layer's activations, the embedding, and the way back through the head alone."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from captum_fam._captum import reduce_list, sort_key_list
from captum_fam.attr.layer_hooks import hook_layer, run_without_graph
from captum_fam.attr.tokens import TokenGridLike
from captum_fam.attr.way_back.recorder import Recorder
from captum_fam.attr.way_back.view import current_view
from captum_fam.attr.way_back.way import UnitNorm, Way
from captum_fam.embedding.forward import check_embedding

Tensors = tuple[Tensor, ...]


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
    unit_norm: UnitNorm = "auto",
) -> LayerRun:
    """Run ``forward_func`` once, without a graph up to where the tape starts.

    With a tape each of several layers has a pass of its own: the way back to the first must not begin again at the
    second.

    Args:
        forward_func: from the inputs to the embedding ``(B, J)``.
        inputs: its input tensors, ``(B, ...)`` each.
        layers: modules that run in it.
        additional_forward_args: further arguments of ``forward_func``.
        attribute_to_layer_input: keep what the layers take instead of what they give.
        device_ids: order of the devices of a DataParallel model.
        head: record the way from the input of this module instead of from the layers.
        tape: record the way from the layers to the embedding.
        places: note constants on the way and their positions.
        token_grid: lays out the layer's tensors; only for ``places``.
        unit_norm: see :meth:`Recorder.way <captum_fam.attr.way_back.recorder.Recorder.way>`.

    Raises:
        ValueError: if a layer or the head did not run or gave something that is no tensor, if a layer ran several
            times and the embedding depends on more than one of its passes, or for a ``unit_norm`` that is not so.
    """
    args = (*inputs, *(additional_forward_args or ()))

    def run(watched: list[nn.Module], recorder: Recorder | None) -> _Call:
        call = _run(forward_func, args, watched, attribute_to_layer_input, device_ids, head, recorder)
        return call if recorder is None else replace(call, way=recorder.way(call.embedding, unit_norm))

    def make_recorder() -> Recorder:
        return Recorder(inputs, places, _names_of(forward_func), token_grid)

    if tape and head is None:
        calls = [run([layer], make_recorder()) for layer in layers]
        passes, embedding, ways = [call.live() for call in calls], calls[0].embedding, [call.way for call in calls]
    else:
        call = run(layers, make_recorder() if tape else None)
        # Which of several passes counts only the way back can tell: such a layer has a pass with a tape of its own.
        passes = [
            found if len(found) == 1 else run([layer], make_recorder()).live()
            for layer, found in zip(layers, call.passes, strict=True)
        ]
        embedding, ways = call.embedding, [call.way]
    for layer, found in zip(layers, passes, strict=True):
        _check_passes(layer, found)
    return LayerRun(passes, embedding.detach(), [way for way in ways if way is not None])


@dataclass(frozen=True)
class _Call:
    """One call of the forward function: its passes through each layer, the embedding, and the way back from there."""

    passes: list[list[Pass]]
    embedding: Tensor
    way: Way | None = None

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
    recorder: Recorder | None,
) -> _Call:
    saved: dict[nn.Module, dict[torch.device, list[Pass]]] = defaultdict(lambda: defaultdict(list))
    lock = threading.Lock()

    def on_layer(module: nn.Module, tensors: Tensors) -> Tensors:
        if recorder is None or head is not None:
            kept, given = tensors, tuple([tensor.clone() for tensor in tensors])
        else:
            given = recorder.start(tensors)
            kept = recorder.starts[-1].tensors
            # For what is no torch call: autograd functions and scripted modules. The end of no_grad() restores it.
            torch.set_grad_enabled(True)
        with lock:
            saved[module][tensors[0].device].append(Pass(kept, current_view()))
        return given

    if recorder is not None:
        # Grad mode and recorder belong to a thread; replicas would run without.
        forward_func = _without_replicas(forward_func)
    with ExitStack() as stack:
        active = stack.enter_context(run_without_graph())
        for layer in layers:
            stack.enter_context(hook_layer(layer, at_input, active, on_layer))
        if head is not None and recorder is not None:
            stack.enter_context(hook_layer(head, True, active, lambda _, tensors: recorder.start(tensors)))
        if recorder is not None:
            stack.enter_context(recorder)
        output = forward_func(*args)
    for layer in layers:
        if layer not in saved:
            raise ValueError(
                f"layer {type(layer).__name__} did not run in forward_func; choose one that does. Its hooks were not "
                "called: layer.forward(x) instead of layer(x) passes them over, as do scripted, traced and exported "
                "models; pass the eager model"
            )
    if head is not None and recorder is not None and not recorder.starts:
        raise ValueError("transform did not run in forward_func: pass its weight, or a module of the model itself")
    embedding = check_embedding(output)
    if recorder is not None:
        embedding = recorder.normal(embedding)  # where the model ran in inference mode
    return _Call([_gather(saved[layer], forward_func, device_ids) for layer in layers], embedding)


def _gather(
    by_device: dict[torch.device, list[Pass]], forward_func: Callable[..., Any], device_ids: list[int] | None
) -> list[Pass]:
    """The passes with their batches in order, from the devices that DataParallel spread them over."""
    ids = device_ids or getattr(forward_func, "device_ids", None)
    keys = sort_key_list(list(by_device), ids)
    passes = []
    for parts in zip(*(by_device[key] for key in keys), strict=True):
        gathered: Tensors = reduce_list([part.tensors for part in parts])
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
