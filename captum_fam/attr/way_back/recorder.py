"""Recording the way back: every call of torch behind the layer, made with gradients and with scales held."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from captum_fam.attr.tokens import TokenGridLike, names_registers
from captum_fam.attr.way_back.call import Call
from captum_fam.attr.way_back.constants import Sink
from captum_fam.attr.way_back.notes import (
    Note,
    gate_of_result,
    has_note,
    is_marked,
    layer_tensors_among,
    mark,
    note_of,
    tensors_among,
)
from captum_fam.attr.way_back.rescaling import factor_between, factor_of_result
from captum_fam.attr.way_back.table import find_rule
from captum_fam.attr.way_back.torch_calls import (
    computes_nothing,
    is_written_in_python,
    new_tensor_form,
    opened,
    plain_name,
)
from captum_fam.attr.way_back.tracker import Tracker, is_rearranging
from captum_fam.attr.way_back.view import current_view
from captum_fam.attr.way_back.way import Start, UnitNorm, Way
from captum_fam.attr.way_back.where import CLASS_TOKEN, OTHER_PATHS, REGISTERS, Where, grid_positions, token_positions

Tensors = tuple[Tensor, ...]


class Recorder(TorchFunctionMode):
    """Records autograd from :meth:`start` on, with scales held and whatever grad mode the forward function sets itself.

    The mode stands around the whole pass and only watches until the start. From there every torch call is made outside
    inference mode and with gradients, so that a forward function wrapped in ``torch.no_grad()`` or
    ``torch.inference_mode()`` has a way back as well. Weights are taken off the graph: what requires a gradient depends
    on the layer.

    Args:
        inputs: of the forward function, ``(B, ...)`` each.
        places: follow positions and note constants, for a full account.
        names: of parameters and buffers of the model, to tell class tokens from registers.
        token_grid: lays out the tensors of the start.
    """

    def __init__(
        self, inputs: Tensors, places: bool, names: Callable[[Tensor], str], token_grid: TokenGridLike | None
    ) -> None:
        super().__init__()
        self.starts: list[Start] = []
        # Hooks of the graph hold the sink and not the recorder, whose vectors would hold the graph in turn.
        self.sink = Sink()
        self._places = places
        self._token_grid = token_grid
        self._leaves: set[int] = set()
        self._open: list[Callable[..., Any]] = []
        self._vectors: list[tuple[Tensor, int]] = []
        self._stand_ins: dict[int, tuple[Tensor, Tensor]] = {}
        self._inputs = {id(tensor) for tensor in inputs}
        self._of_image = object()  # of this run: a model may keep a tensor from call to call
        self._joined: dict[str, int] = {}
        # No method of its own: a circle of references would keep the tensors of the call until the next collection.
        slot_of_constant = functools.partial(_slot_of_constant, names, self._joined)
        self._tracker = Tracker(len(inputs[0]), lambda value: note_of(value).where, slot_of_constant)

    def start(self, tensors: Tensors) -> Tensors:
        """Make these tensors ends of the way back; what is returned goes on in their place.

        What goes on is a clone, because an in-place operation must not reach what is kept.
        """
        with torch.inference_mode(False), torch.enable_grad():
            leaves = tuple(
                self.normal(t).detach().requires_grad_() if t.is_floating_point() else self.normal(t) for t in tensors
            )
            self._leaves |= {id(leaf) for leaf in leaves}
            wheres = tuple(self._place(leaf) for leaf in leaves)
            self.starts.append(Start(leaves, current_view(), wheres))
            clones = tuple([leaf.clone() for leaf in leaves])
            for clone, where in zip(clones, wheres, strict=True):
                self._attach(clone, Note(where=where))
        return clones

    def _place(self, leaf: Tensor) -> Where | None:
        """The positions of a tensor of the layer."""
        if not self._places or not leaf.is_floating_point():
            return None
        if self._token_grid is not None:
            return token_positions(leaf.shape, self._token_grid, leaf.device)
        return grid_positions(leaf.shape, leaf.device) if leaf.dim() > 2 else None

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if computes_nothing(func, name):
            return func(*args, **kwargs)
        if not self.starts:  # before the layer only what comes from the image is marked
            return self._marked(func(*args, **kwargs), args, kwargs)
        with torch.inference_mode(False), torch.enable_grad():
            args = tuple([self._own(argument) for argument in args])
            kwargs = {key: self._own(argument) for key, argument in kwargs.items()}
            if next(layer_tensors_among(args, kwargs), None) is None:
                return self._marked(func(*args, **kwargs), args, kwargs)
            if not self._can_open(func, name):
                return self._follow(func, name, args, kwargs)
            self._open.append(func)
            try:
                with self:
                    return opened(func)(*args, **kwargs)
            finally:
                self._open.pop()

    def _can_open(self, func: Callable[..., Any], name: str) -> bool:
        """Whether a function of torch is written in Python, so that its parts are what is followed."""
        if is_rearranging(name) or func in self._open:  # a method of the same name in C hands over the one in Python
            return False
        return is_written_in_python(func)

    def _follow(self, func: Callable[..., Any], name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        name, in_place = plain_name(name)
        entry = find_rule(name)
        args, kwargs = _first_by_position(args, kwargs)
        target = args[0] if in_place else None
        # An in-place form changes its argument, and with it what was known of it: the notes are read before.
        before = [note_of(argument) for argument in layer_tensors_among(args, kwargs)]
        if in_place and entry is not None and not entry.acts_in_place:
            func = new_tensor_form(name)
        # Constants are noted before the positions of the result are known, and hooked after.
        pending: list[tuple[Tensor, _Added]] = []

        def add_constant(
            result: Tensor, constant: Any, axis: int | None = None, part: Any = None, source: Any = None
        ) -> None:
            source = constant if source is None else source
            of_image = isinstance(source, Tensor) and self._is_of_image(source)
            constant = constant.detach() if isinstance(constant, Tensor) else constant
            pending.append((result, _Added(constant, axis, part, OTHER_PATHS if of_image else None)))

        call = Call(func, args, kwargs, lambda value: note_of(value).gate, add_constant)
        result = call() if entry is None else entry.rule(call)
        if target is not None and result is not target and isinstance(result, Tensor):
            # The caller goes on with the tensor that was changed, so this tensor takes the held gradient over.
            target.copy_(result)
            pending = [(target, added) for _, added in pending]
            result = target
        self._attach_all(name, func, args, kwargs, result, before)
        self._marked(result, args, kwargs)
        for tensor, added in pending:
            if tensor.requires_grad and self._places:
                self._hook(tensor, added)
        return result

    def _hook(self, tensor: Tensor, added: _Added) -> None:
        """Let the backward pass note gradient x constant when the gradient comes to this tensor."""
        where, view, sink = note_of(tensor).where, current_view(), self.sink

        def note(gradient: Tensor) -> None:
            if sink.constants is not None:
                with torch.no_grad():
                    sink.constants.add(gradient, added.constant, added.axis, added.part, where, view, added.slot)

        tensor.register_hook(note)

    def _attach_all(
        self,
        name: str,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        result: Any,
        before: list[Note],
    ) -> None:
        """Give every tensor of the result its note."""
        results = list(result) if isinstance(result, tuple | list) else [result]
        if not any(isinstance(one, Tensor) and one.requires_grad for one in results):
            return
        wheres: list[Where | None] = [None] * len(results)
        if self._places:
            with torch.no_grad():
                wheres = self._tracker.follow(name, func, args, kwargs, result)
        gate = gate_of_result(name, before)
        for one, where in zip(results, wheres, strict=True):
            if isinstance(one, Tensor) and one.requires_grad:
                self._attach(one, Note(gate, factor_of_result(name, args, kwargs, one), where))

    def _attach(self, tensor: Tensor, note: Note) -> None:
        mark(tensor, note)
        # One vector per sample, in any layout such as (B, J, 1, 1): the embedding may turn out to be one of these.
        if tensor.dim() >= 2 and tensor.numel() > 0 and max(tensor.shape[1:]) * len(tensor) == tensor.numel():
            self._vectors.append((tensor, tensor._version))

    def _marked(self, result: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Mark what comes from the image, but not through the layer: it is no bias where it is added."""
        if self._places and any(self._is_of_image(tensor) for tensor in tensors_among(args, kwargs)):
            for tensor in tensors_among((result,), {}):
                if not tensor.requires_grad and id(tensor) not in self._inputs:
                    mark(tensor, self._of_image)
        return result

    def _is_of_image(self, tensor: Tensor) -> bool:
        if id(tensor) in self._inputs or is_marked(tensor, self._of_image):
            return True
        # Behind the start what requires a gradient depends on the layer; leaves are weights.
        return tensor.requires_grad and not tensor.is_leaf

    def _own(self, argument: Any) -> Any:
        """Tensors of inference mode are exchanged for normal ones, weights taken off the graph."""
        if isinstance(argument, Tensor):
            return self._own_tensor(argument)
        if isinstance(argument, tuple | list | dict):
            return tree_map_only(Tensor, self._own_tensor, argument)
        return argument

    def _own_tensor(self, tensor: Tensor) -> Tensor:
        tensor = self.normal(tensor)
        foreign = tensor.requires_grad and tensor.is_leaf and id(tensor) not in self._leaves
        return tensor.detach() if foreign else tensor

    def normal(self, tensor: Tensor) -> Tensor:
        """What stands for a tensor made in inference mode, always the same: it may be changed in place."""
        if not tensor.is_inference():
            return tensor
        if id(tensor) not in self._stand_ins:
            with torch.no_grad():
                stand_in = tensor.clone()
            if self._is_of_image(tensor):
                mark(stand_in, self._of_image)
            self._stand_ins[id(tensor)] = tensor, stand_in
        return self._stand_ins[id(tensor)][1]

    def way(self, embedding: Tensor, unit_norm: UnitNorm = "auto") -> Way:
        """The way back from what the forward function gave.

        Args:
            embedding: ``(B, J)``.
            unit_norm: whether the embedding is a vector times a number per sample, as behind a normalization, which
                contributions to the embedding are carried over to as they are. ``"auto"``: where a product or quotient
                by such a number was seen on the way. An embedding that left the graph (``detach()``, ``.data``, a round
                trip through numpy, an autograd function of the user) is looked for among the vectors that were seen:
                the way begins at the first of the same direction. True: as ``"auto"``, and refuse a model without.
                False: the way begins at the embedding itself.

        Raises:
            ValueError: with ``unit_norm=True`` for an embedding that is no rescaling of another vector.
        """
        embedding = self.normal(embedding)
        origin, factor = (embedding, None) if unit_norm is False else self._origin(embedding)
        if unit_norm is True and factor is None:
            raise ValueError(
                "unit_norm=True, but the embedding is no vector times one positive number per sample: the model does "
                'not normalize it, or does so before a further layer; pass unit_norm="auto" or False'
            )
        return Way(self.starts, origin, factor, origin is embedding, self.sink, self._joined)

    def _origin(self, embedding: Tensor) -> tuple[Tensor, Tensor | None]:
        """Where the way begins, and what the embedding is times the vector before it was rescaled, ``(B, 1)``."""
        if has_note(embedding) and embedding.requires_grad:
            return embedding, note_of(embedding).factor
        for vector, version in self._vectors:
            # A vector that was changed in place since is another one than the one that was seen.
            if vector._version == version and vector.numel() == embedding.numel():
                factor = factor_between(vector, embedding)
                if factor is not None:
                    return vector, factor
        return embedding, None


class _Added(NamedTuple):
    """A constant that a function added to its result: see :attr:`Call.add_constant`; ``slot``, if not its positions."""

    constant: Tensor | float
    axis: int | None
    part: tuple[int, int, int] | None
    slot: int | None


def _slot_of_constant(names: Callable[[Tensor], str], joined: dict[str, int], tensor: Tensor) -> int:
    """Whether rows that are joined to the tokens are class tokens or registers, by the name of their parameter."""
    name = names(tensor)
    joined[name] = REGISTERS if names_registers(name) else CLASS_TOKEN
    return joined[name]


def _first_by_position(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Rules read the first argument by position: ``softmax(input=x)`` becomes ``softmax(x)``."""
    first = None if args else next((key for key in ("input", "self", "x", "tensors", "query") if key in kwargs), None)
    if first is None:
        return args, kwargs
    return (kwargs[first],), {key: value for key, value in kwargs.items() if key != first}
