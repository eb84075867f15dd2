"""Recording the way back: every call of torch behind the layer runs with gradients and with scales held."""

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
    """A function mode that builds a graph from the layer to the embedding, with scales held.

    The mode is active for the whole forward pass. Before :meth:`start` it only marks tensors that depend on the image.
    After the start, every call of torch runs with gradients and outside inference mode, so that a forward function
    inside ``torch.no_grad()`` or ``torch.inference_mode()`` has a way back as well. Weights are detached: a tensor
    requires a gradient exactly if the tensor depends on the layer.

    Args:
        inputs: the inputs of the forward function, ``(B, ...)`` each.
        places: follow positions and note constants, for a full account.
        names: a function that gives the name of a parameter or buffer, to tell class tokens from registers.
        token_grid: lays out the tensors of the layer; None: channels first.

    Attributes:
        starts: one start per pass through the layer.
        sink: receives the shares of constants in the backward pass.
    """

    def __init__(
        self, inputs: Tensors, places: bool, names: Callable[[Tensor], str], token_grid: TokenGridLike | None
    ) -> None:
        super().__init__()
        self.starts: list[Start] = []
        # Hooks of the graph hold only the sink. The recorder holds tensors of the graph: with the recorder in a hook, a
        # circle of references would keep the graph in memory.
        self.sink = Sink()
        self._places = places
        self._token_grid = token_grid
        self._leaves: set[int] = set()
        self._open: list[Callable[..., Any]] = []
        self._vectors: list[tuple[Tensor, int]] = []
        self._stand_ins: dict[int, tuple[Tensor, Tensor]] = {}
        self._inputs = {id(tensor) for tensor in inputs}
        self._of_image = object()  # the mark of this run: a model may keep a tensor from an earlier run
        self._joined: dict[str, int] = {}
        # A function instead of a method: a reference to the recorder would be a circle too.
        slot_of_constant = functools.partial(_slot_of_constant, names, self._joined)
        self._tracker = Tracker(len(inputs[0]), lambda value: note_of(value).where, slot_of_constant)

    def start(self, tensors: Tensors) -> Tensors:
        """Make the tensors of the layer the leaves of the graph.

        Returns:
            Clones with which the model goes on, so that an operation in place does not change the leaves.
        """
        with torch.inference_mode(False), torch.enable_grad():
            leaves = tuple(
                self.normal(tensor).detach().requires_grad_() if tensor.is_floating_point() else self.normal(tensor)
                for tensor in tensors
            )
            self._leaves |= {id(leaf) for leaf in leaves}
            wheres = tuple(self._place(leaf) for leaf in leaves)
            self.starts.append(Start(leaves, current_view(), wheres))
            clones = tuple([leaf.clone() for leaf in leaves])
            for clone, where in zip(clones, wheres, strict=True):
                self._attach(clone, Note(where=where))
        return clones

    def _place(self, leaf: Tensor) -> Where | None:
        """The positions of a tensor of the layer; None where positions are not followed."""
        if not self._places or not leaf.is_floating_point():
            return None
        if self._token_grid is not None:
            return token_positions(leaf.shape, self._token_grid, leaf.device)
        return grid_positions(leaf.shape, leaf.device) if leaf.dim() > 2 else None

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Called by torch for every function of torch while the mode is active."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if computes_nothing(func, name):
            return func(*args, **kwargs)
        if not self.starts:  # before the layer
            return self._marked(func(*args, **kwargs), args, kwargs)
        with torch.inference_mode(False), torch.enable_grad():
            args = tuple([self._prepared(argument) for argument in args])
            kwargs = {key: self._prepared(argument) for key, argument in kwargs.items()}
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
        """Whether to follow the calls inside a function of torch that is written in Python, instead of the function."""
        if is_rearranging(name) or func in self._open:  # a function may call itself again, through a method in C
            return False
        return is_written_in_python(func)

    def _follow(self, func: Callable[..., Any], name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a function by its rule, and give the results their notes."""
        name, in_place = plain_name(name)
        entry = find_rule(name)
        args, kwargs = _first_by_position(args, kwargs)
        target = args[0] if in_place else None
        # An in-place form changes its argument and the note of the argument: the notes are read before.
        before = [note_of(argument) for argument in layer_tensors_among(args, kwargs)]
        if in_place and entry is not None and not entry.acts_in_place:
            func = new_tensor_form(name)
        # A rule notes constants while it runs, before the positions of the result are known. Hooks follow at the end.
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
            # The model goes on with the tensor that the in-place form changes, so this tensor gets the held gradient.
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
        """Let the backward pass add gradient x constant to the account when the gradient reaches this tensor."""
        where, view, sink = note_of(tensor).where, current_view(), self.sink

        def note(gradient: Tensor) -> None:
            if sink.constants is not None:
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
        if not any(isinstance(tensor, Tensor) and tensor.requires_grad for tensor in results):
            return
        wheres: list[Where | None] = [None] * len(results)
        if self._places:
            with torch.no_grad():
                wheres = self._tracker.follow(name, func, args, kwargs, result)
        gate = gate_of_result(name, before)
        for tensor, where in zip(results, wheres, strict=True):
            if isinstance(tensor, Tensor) and tensor.requires_grad:
                self._attach(tensor, Note(gate, factor_of_result(name, args, kwargs, tensor), where))

    def _attach(self, tensor: Tensor, note: Note) -> None:
        """Give a tensor its note, and keep vectors where the way back may begin."""
        mark(tensor, note)
        # One vector per sample, in any layout such as (B, J, 1, 1): the embedding may have the direction of the vector.
        if tensor.dim() >= 2 and tensor.numel() > 0 and max(tensor.shape[1:]) * len(tensor) == tensor.numel():
            self._vectors.append((tensor, tensor._version))

    def _marked(self, result: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Mark a result that depends on the image but not on the layer: where it is added, it is no bias."""
        if self._places and any(self._is_of_image(tensor) for tensor in tensors_among(args, kwargs)):
            for tensor in tensors_among((result,), {}):
                if not tensor.requires_grad and id(tensor) not in self._inputs:
                    mark(tensor, self._of_image)
        return result

    def _is_of_image(self, tensor: Tensor) -> bool:
        """Whether a tensor depends on the image."""
        if id(tensor) in self._inputs or is_marked(tensor, self._of_image):
            return True
        # Behind the start, a tensor that requires a gradient depends on the layer, except for leaves: weights.
        return tensor.requires_grad and not tensor.is_leaf

    def _prepared(self, argument: Any) -> Any:
        """An argument with normal tensors in place of inference tensors, and with detached weights."""
        if isinstance(argument, Tensor):
            return self._prepared_tensor(argument)
        if isinstance(argument, tuple | list | dict):
            return tree_map_only(Tensor, self._prepared_tensor, argument)
        return argument

    def _prepared_tensor(self, tensor: Tensor) -> Tensor:
        tensor = self.normal(tensor)
        is_weight = tensor.requires_grad and tensor.is_leaf and id(tensor) not in self._leaves
        return tensor.detach() if is_weight else tensor

    def normal(self, tensor: Tensor) -> Tensor:
        """A tensor itself, or a normal copy of a tensor that was made in inference mode.

        The same inference tensor always gives the same copy, because the model may change it in place.
        """
        if not tensor.is_inference():
            return tensor
        if id(tensor) not in self._stand_ins:
            with torch.no_grad():
                stand_in = tensor.clone()
            if self._is_of_image(tensor):
                mark(stand_in, self._of_image)
            self._stand_ins[id(tensor)] = tensor, stand_in
        return self._stand_ins[id(tensor)][1]

    def way(self, embedding: Tensor, unit_norm: UnitNorm = "auto", keep_graph: bool = False) -> Way:
        """The way back from the embedding.

        Args:
            embedding: the output of the forward function, ``(B, J)``.
            unit_norm: whether the embedding is a vector times a number per sample, as behind a normalization. Then
                contributions are those of the vector before the normalization. ``"auto"``: yes, where the recorder has
                seen a product with such a number or a quotient. An embedding that has left the graph (``detach()``,
                ``.data``, a round trip through numpy, an autograd function of the user) is replaced by the first
                recorded vector with the same direction. True: as ``"auto"``, but an error for an embedding that is not
                normalized. False: the way back begins at the embedding itself. Default: "auto".
            keep_graph: whether the way can be gone several times. Default: False.

        Raises:
            ValueError: with ``unit_norm=True``, for an embedding that is not a rescaled vector.
        """
        embedding = self.normal(embedding)
        origin, factor = (embedding, None) if unit_norm is False else self._origin(embedding)
        if unit_norm is True and factor is None:
            raise ValueError(
                "unit_norm=True, but the embedding is no vector times one positive number per sample: the model does "
                'not normalize it, or does so before a further layer; pass unit_norm="auto" or False'
            )
        return Way(self.starts, origin, factor, origin is embedding, self.sink, self._joined, keep_graph)

    def _origin(self, embedding: Tensor) -> tuple[Tensor, Tensor | None]:
        """The tensor where the way back begins, and the factor ``(B, 1)`` of the normalization or None."""
        if has_note(embedding) and embedding.requires_grad:
            return embedding, note_of(embedding).factor
        for vector, version in self._vectors:
            # A vector that was changed in place since then is no longer the recorded vector.
            if vector._version == version and vector.numel() == embedding.numel():
                factor = factor_between(vector, embedding)
                if factor is not None:
                    return vector, factor
        return embedding, None


class _Added(NamedTuple):
    """A constant that a function added to its result; see :attr:`Call.add_constant`.

    Attributes:
        constant: the constant.
        axis: dimension of a vector.
        part: slice of the result.
        slot: the slot of the share; None: the positions of the result.
    """

    constant: Tensor | float
    axis: int | None
    part: tuple[int, int, int] | None
    slot: int | None


def _slot_of_constant(names: Callable[[Tensor], str], joined: dict[str, int], tensor: Tensor) -> int:
    """The slot of rows that are joined to the tokens, class tokens or registers, by the name of their parameter.

    The slot is noted in ``joined`` as well.
    """
    name = names(tensor)
    joined[name] = REGISTERS if names_registers(name) else CLASS_TOKEN
    return joined[name]


def _first_by_position(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments with the first one by position, as rules read it: ``softmax(input=x)`` becomes ``softmax(x)``."""
    first = None if args else next((key for key in ("input", "self", "x", "tensors", "query") if key in kwargs), None)
    if first is None:
        return args, kwargs
    return (kwargs[first],), {key: value for key, value in kwargs.items() if key != first}
