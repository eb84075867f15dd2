"""One forward pass: the activations of the layers, the embedding, and the way back from the embedding to a layer."""

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
    """The tensors of one pass through a layer, detached, and the number of the view of the input that was run."""

    tensors: Tensors
    view: int = 0


@dataclass(frozen=True)
class LayerRun:
    """The result of a forward pass.

    Attributes:
        passes: for each layer the passes that the embedding depends on: one pass, or one per view of a
            :class:`~captum_fam.Views` model.
        embedding: the output of the forward function, ``(B, J)``, detached.
        ways: the way back to each layer, or one way back to the head; empty without a tape.
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
    keep_graph: bool = False,
) -> LayerRun:
    """Run ``forward_func`` once and keep the tensors of some layers.

    With a tape, the calls of torch from the layer to the embedding are recorded; there is no graph before the layer.
    Several layers with a tape need one forward pass per layer: the tape of the first layer would end at the second.

    Args:
        forward_func: from the inputs to the embedding ``(B, J)``.
        inputs: the input tensors of ``forward_func``, ``(B, ...)`` each.
        layers: modules that run in ``forward_func``.
        additional_forward_args: further arguments of ``forward_func``. Default: None.
        attribute_to_layer_input: keep the inputs of the layers instead of the outputs. Default: False.
        device_ids: order of the devices of a DataParallel model. Default: None, those of ``forward_func``.
        head: a module; record the way back to the input of this module instead of the way back to the layers. Default:
            None.
        tape: record the way back. Default: False.
        places: also note the constants on the way, and the positions of all elements. Default: False.
        token_grid: lays out the tensors of the layer, for ``places``. Default: None, channels first.
        unit_norm: see :meth:`Recorder.way <captum_fam.attr.way_back.recorder.Recorder.way>`. Default: "auto".
        keep_graph: whether the ways back can be gone several times. Default: False.

    Raises:
        ValueError: for a layer or head that did not run or gave something other than tensors; for a layer that ran
            several times, where the embedding depends on more than one of the passes; for ``unit_norm=True`` where the
            embedding is not normalized.
    """
    args = (*inputs, *(additional_forward_args or ()))

    def run(watched: list[nn.Module], recorder: Recorder | None) -> _Call:
        call = _run(forward_func, args, watched, attribute_to_layer_input, device_ids, head, recorder)
        return call if recorder is None else replace(call, way=recorder.way(call.embedding, unit_norm, keep_graph))

    def make_recorder() -> Recorder:
        return Recorder(inputs, places, _names_of(forward_func), token_grid)

    if tape and head is None:
        calls = [run([layer], make_recorder()) for layer in layers]
        passes, embedding, ways = [call.live() for call in calls], calls[0].embedding, [call.way for call in calls]
    else:
        call = run(layers, make_recorder() if tape else None)
        # Only the way back shows on which of several passes the embedding depends: such a layer is run again, with a
        # tape.
        passes = [
            layer_passes if len(layer_passes) == 1 else run([layer], make_recorder()).live()
            for layer, layer_passes in zip(layers, call.passes, strict=True)
        ]
        embedding, ways = call.embedding, [call.way]
    for layer, layer_passes in zip(layers, passes, strict=True):
        _check_passes(layer, layer_passes)
    return LayerRun(passes, embedding.detach(), [way for way in ways if way is not None])


@dataclass(frozen=True)
class _Call:
    """One call of the forward function: the passes through each layer, the embedding, and the way back from it."""

    passes: list[list[Pass]]
    embedding: Tensor
    way: Way | None = None

    def live(self) -> list[Pass]:
        """The passes that the embedding depends on."""
        assert self.way is not None
        return [Pass(tuple(tensor.detach() for tensor in start.tensors), start.view) for start in self.way.live]


def _check_passes(layer: nn.Module, passes: list[Pass]) -> None:
    views = [pass_.view for pass_ in passes]
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
            # The model goes on with clones: an operation in place must not change the kept tensors.
            kept, passed_on = tensors, tuple([tensor.clone() for tensor in tensors])
        else:
            passed_on = recorder.start(tensors)
            kept = recorder.starts[-1].tensors
            # The recorder turns on gradients for calls of torch only. Autograd functions and scripted modules need the
            # global switch, which no_grad() around the run resets at its end.
            torch.set_grad_enabled(True)
        with lock:
            saved[module][tensors[0].device].append(Pass(kept, current_view()))
        return passed_on

    if recorder is not None:
        # Grad mode and recorder belong to a thread; replicas run in threads of their own, without the two.
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
    """The passes with the samples in their order, gathered from the devices of DataParallel."""
    ids = device_ids or getattr(forward_func, "device_ids", None)
    keys = sort_key_list(list(by_device), ids)
    passes = []
    for parts in zip(*(by_device[key] for key in keys), strict=True):
        gathered: Tensors = reduce_list([part.tensors for part in parts])
        passes.append(Pass(tuple(tensor.detach() for tensor in gathered), parts[0].view))
    return passes


def _without_replicas(forward_func: Callable[..., Any]) -> Callable[..., Any]:
    """The module inside a DataParallel of several devices; every other forward function as it is."""
    owner = getattr(forward_func, "__self__", forward_func)
    if isinstance(owner, nn.DataParallel) and len(owner.device_ids) > 1:
        return owner.module
    return forward_func


def _names_of(forward_func: Callable[..., Any]) -> Callable[[Tensor], str]:
    """A function from a tensor to the name of the parameter or buffer with the same memory; "" for other tensors."""
    owner = getattr(forward_func, "__self__", forward_func)
    names: dict[int, str] = {}

    def name(tensor: Tensor) -> str:
        if not names and isinstance(owner, nn.Module):
            for key, value in (*owner.named_parameters(), *owner.named_buffers()):
                names[value.data_ptr()] = key
        return names.get(tensor.data_ptr(), "")

    return name
