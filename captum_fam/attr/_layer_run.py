"""One forward pass that gives a layer's activation, the embedding, and the way back through the head alone."""

from __future__ import annotations

import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from captum._utils.common import _reduce_list, _sort_key_list
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from captum_fam import functional as F
from captum_fam.support import check_embedding

Tensors = tuple[Tensor, ...]

# Attributes that compute; all others only look at a tensor.
_VIEWS = (Tensor.T, Tensor.mT, Tensor.H, Tensor.mH, Tensor.real, Tensor.imag)


class HeadTape(TorchFunctionMode):
    """Records autograd from :meth:`start` on, whatever grad mode the forward function sets itself.

    It is entered at the start: before, the pass runs as it finds itself, without a graph or a detour through
    Python. From there every torch call is made outside inference mode and with gradients, so that a forward
    function wrapped in ``torch.no_grad()`` or ``torch.inference_mode()`` has a way back as well.
    """

    def __init__(self) -> None:
        super().__init__()
        self.starts: dict[nn.Module, Tensors] = {}
        self._vectors: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        self._stand_ins: dict[int, tuple[Tensor, Tensor]] = {}

    def start(self, module: nn.Module, tensors: Tensors) -> Tensors:
        """Make the tensors of ``module`` the ends of the way back; what it gives goes on in their place.

        One that is already on the tape stays connected. What goes on is a clone, because an in-place operation must
        not reach what is kept.
        """
        with torch.inference_mode(False), torch.enable_grad():
            self.starts[module] = tuple(
                t if t.requires_grad or not t.is_floating_point() else self.normal(t).detach().requires_grad_()
                for t in tensors
            )
            clones = _clones(self.starts[module])
            for clone in clones:
                self._record(clone)
        return clones

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") == "__get__" and getattr(func, "__self__", None) not in _VIEWS:
            return func(*args, **kwargs)
        with torch.inference_mode(False), torch.enable_grad():
            args = tuple([self._normal_inside(argument) for argument in args])
            kwargs = {name: self._normal_inside(argument) for name, argument in kwargs.items()}
            for argument in args:
                self._record(argument)
            result = func(*args, **kwargs)
            self._record(result)
        return result

    def normal(self, tensor: Tensor) -> Tensor:
        """What stands for a tensor made in inference mode, always the same: it may be changed in place."""
        if not tensor.is_inference():
            return tensor
        if id(tensor) not in self._stand_ins:
            self._stand_ins[id(tensor)] = tensor, tensor.clone()
        return self._stand_ins[id(tensor)][1]

    def _normal_inside(self, argument: Any) -> Any:
        if isinstance(argument, tuple | list | dict):
            return tree_map_only(Tensor, self.normal, argument)
        return self.normal(argument) if isinstance(argument, Tensor) else argument

    def _record(self, value: Any) -> None:
        if isinstance(value, Tensor) and value.requires_grad and _is_batch_of_vectors(value):
            key = id(value), value._version
            if key not in self._vectors:
                # The forward function may change the vector in place; its clone stays what it was.
                self._vectors[key] = value, value.clone()

    def origin(self, embedding: Tensor) -> Tensor:
        """The earliest vector with the embedding's direction: what a final normalisation was applied to.

        The rescaling of each sample belongs to the similarity. Its Jacobian would project the contributions
        onto the directions that leave the norm alone, and their sum to zero.
        """
        for _, vector in self._vectors.values():
            if vector.numel() == embedding.numel() and _parallel(vector, embedding):
                return vector
        return embedding


@dataclass(frozen=True)
class LayerRun:
    """What one forward pass left behind.

    Attributes:
        activations: for each layer its output (or input) tensors, detached.
        embedding: the output of the forward function, ``(B, J)``, detached.
    """

    activations: list[Tensors]
    embedding: Tensor
    _starts: list[Tensors]
    _origin: Tensor

    def pull(self, cotangent: Tensor, frozen_norm: bool = False) -> list[tuple[tuple[Tensor, Tensor], ...]]:
        """Vector-Jacobian product of the head: for each start of the tape, pairs of gradient and tensor.

        Args:
            cotangent: ``(B, J)``, on the features of the embedding.
            frozen_norm: the cotangent is a weight, which takes on the (constant) factor between the embedding
                and the vector before its normalisation. A contribution is the same on both.

        Raises:
            ValueError: if a start has no influence on the embedding.
        """
        if frozen_norm and self._origin is not self.embedding:
            before = self._origin.detach().flatten(1).to(cotangent).norm(dim=1, keepdim=True)
            after = self.embedding.to(cotangent).norm(dim=1, keepdim=True)
            cotangent = cotangent * torch.where(before == 0, 1.0, after / before)
        wanted = [tensor for tensors in self._starts for tensor in tensors]
        if not self._origin.requires_grad:
            raise ValueError(NO_INFLUENCE)
        # In half precision shares of a large map would underflow; the way back is linear, so scale before and after.
        half = torch.finfo(self._origin.dtype).bits == 16
        largest = cotangent.abs().amax(1).clamp_min(torch.finfo(cotangent.dtype).tiny)
        scale = largest if half else torch.ones_like(largest)
        upstream = (cotangent / scale.unsqueeze(1)).to(self._origin).view_as(self._origin)
        with torch.inference_mode(False):
            gradients = torch.autograd.grad(self._origin, wanted, upstream, allow_unused=True)
        if any(gradient is None for gradient in gradients):
            raise ValueError(NO_INFLUENCE)
        each = (F.widen(g) * scale.view(-1, *[1] * (g.dim() - 1)) if half else g for g in gradients)
        return [tuple((next(each), tensor.detach()) for tensor in tensors) for tensors in self._starts]


NO_INFLUENCE = (
    "layer: the embedding does not depend on it, so that a map of it would explain no score; "
    "choose a layer on the way to the embedding (for a class token, one before the last attention)"
)


def run_layers(
    forward_func: Callable[..., Any],
    inputs: Tensors,
    layers: list[nn.Module],
    additional_forward_args: tuple[Any, ...] | None = None,
    attribute_to_layer_input: bool = False,
    device_ids: list[int] | None = None,
    head: nn.Module | None = None,
    tape: bool = False,
) -> LayerRun:
    """Run ``forward_func`` once, without a graph up to where the tape starts.

    Args:
        tape: record the way from the layers to the embedding.
        head: record the way from the input of this module instead.

    Raises:
        ValueError: if a layer or the head did not run, or a layer gave something that is no tensor.
    """
    head_tape = HeadTape() if tape else None
    saved: dict[nn.Module, dict[torch.device, Tensors]] = defaultdict(dict)
    lock = threading.Lock()

    def start(module: nn.Module, tensors: Tensors) -> Tensors:
        assert head_tape is not None
        is_first = not head_tape.starts
        given = head_tape.start(module, tensors)
        if is_first:
            # For what is no torch call: autograd functions and scripted modules. The end of no_grad() restores it.
            torch.set_grad_enabled(True)
            stack.enter_context(head_tape)
        return given

    def on_layer(module: nn.Module, tensors: Tensors) -> Tensors:
        if head_tape is None or head is not None:
            kept, given = tensors, _clones(tensors)
        else:
            given = start(module, tensors)
            kept = head_tape.starts[module]
        with lock:
            saved[module][tensors[0].device] = kept
        return given

    if tape:
        # Grad mode and tape belong to a thread; replicas would run without.
        forward_func = _without_replicas(forward_func)
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        stack.enter_context(_eager())
        for layer in layers:
            stack.enter_context(_hook(layer, attribute_to_layer_input, on_layer))
        if head is not None:
            stack.enter_context(_hook(head, True, start))
        output = forward_func(*inputs, *(additional_forward_args or ()))
    for layer in layers:
        if layer not in saved:
            raise ValueError(f"layer {type(layer).__name__} did not run in forward_func; choose one that does")
    if head is not None and head_tape is not None and head not in head_tape.starts:
        raise ValueError("transform did not run in forward_func: pass its weight, or a module of the model itself")
    embedding = check_embedding(output)
    if head_tape is not None:
        embedding = head_tape.normal(embedding)
    starts = [] if head_tape is None else [head_tape.starts[m] for m in ([head] if head is not None else layers)]
    return LayerRun(
        activations=[_gather(saved[layer], forward_func, device_ids) for layer in layers],
        embedding=embedding.detach(),
        _starts=starts,
        _origin=embedding if head_tape is None else head_tape.origin(embedding),
    )


@contextmanager
def _hook(layer: nn.Module, at_input: bool, replace: Callable[[nn.Module, Tensors], Tensors]) -> Iterator[None]:
    """Pass the layer's output (or input) through ``replace`` while the context lasts."""

    # The module that runs may be a replica of the layer.
    def exchange(given: Any) -> Any:
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
        handle = layer.register_forward_pre_hook(lambda _, given: exchange(given))
    else:
        handle = layer.register_forward_hook(lambda _, __, output: exchange(output))
    try:
        yield
    finally:
        handle.remove()


def _clones(tensors: Tensors) -> Tensors:
    return tuple([tensor.clone() for tensor in tensors])


def _gather(
    by_device: dict[torch.device, Tensors], forward_func: Callable[..., Any], device_ids: list[int] | None
) -> Tensors:
    """The batch in order, from the devices that DataParallel spread it over."""
    ids = device_ids or getattr(forward_func, "device_ids", None)
    keys = _sort_key_list(list(by_device), ids)
    gathered: Tensors = _reduce_list([by_device[key] for key in keys])
    return tuple(tensor.detach() for tensor in gathered)


def _without_replicas(forward_func: Callable[..., Any]) -> Callable[..., Any]:
    owner = getattr(forward_func, "__self__", forward_func)
    if isinstance(owner, nn.DataParallel) and len(owner.device_ids) > 1:
        return owner.module
    return forward_func


def _eager() -> AbstractContextManager[Any]:
    """Hooks are part of what torch.compile has compiled: those added later are passed over, unless run eagerly."""
    set_stance = getattr(torch.compiler, "set_stance", None)  # torch >= 2.6
    # Importing the compiler takes seconds; where nobody has, nothing is compiled.
    return nullcontext() if set_stance is None or "torch._dynamo" not in sys.modules else set_stance("force_eager")


def _is_batch_of_vectors(tensor: Tensor) -> bool:
    return tensor.dim() >= 2 and tensor.numel() > 0 and max(tensor.shape[1:]) * len(tensor) == tensor.numel()


def _parallel(vector: Tensor, embedding: Tensor) -> bool:
    """Whether all rows have the same direction up to rounding; zero rows go with zero rows."""
    if embedding.shape[1] == 1:
        return False  # a single number has no direction
    eps = max(torch.finfo(vector.dtype).eps, torch.finfo(embedding.dtype).eps)
    tolerance = 8 * eps if eps < 1e-5 else 2 * eps
    a, b = F.common_precision(vector.detach().flatten(1), embedding.detach())
    if a.shape != b.shape:
        return False
    return torch.equal(a, b) or bool(((F.unit(a) - F.unit(b)).norm(dim=1) <= tolerance).all())
