"""The way back from the embedding to a layer: autograd with held scales, and the constants that it meets."""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from captum_fam import functional as F
from captum_fam.attr import held_scales
from captum_fam.attr.held_scales import Call, Gate
from captum_fam.attr.positions import (
    CLASS_TOKEN,
    FIRST_POSITION,
    NOWHERE,
    OTHER_PATHS,
    REGISTERS,
    Tracker,
    Where,
    is_rearranging,
    of_grid,
    of_tokens,
)
from captum_fam.attr.tokens import TokenGridLike

Tensors = tuple[Tensor, ...]

# Attributes that compute; all others only look at a tensor.
_VIEWS = (Tensor.T, Tensor.mT, Tensor.H, Tensor.mH, Tensor.real, Tensor.imag)
_GRAD_MODES = ("_set_grad_enabled", "_enter_inference_mode", "_exit_inference_mode")
_PYTHON_OF_TORCH = ("torch.nn.functional", "torch.functional", "torch._tensor")
_OPERATORS = {
    "add": "add",
    "radd": "add",
    "sub": "sub",
    "mul": "mul",
    "rmul": "mul",
    "truediv": "div",
    "div": "div",
    "matmul": "matmul",
    "pow": "pow",
    "getitem": "__getitem__",
    "get": "__get__",
    "setitem": "__setitem__",
}
# In-place forms of these change their tensor themselves; of the others only a new tensor has the held gradient.
_ACT_IN_PLACE = (
    held_scales.relu,
    held_scales.gate,
    held_scales.product,
    held_scales.quotient_of_two,
    held_scales.addition,
    held_scales.subtraction,
    held_scales.sum_and_product,
    held_scales.filling,
)


@dataclass(frozen=True)
class Note:
    """What is known of a tensor that depends on the layer.

    Attributes:
        gate: whether the tensor is the gate of what it multiplies.
        factor: ``(B, 1)``, what the embedding was rescaled by, sample by sample, since it was last computed.
        where: the positions of the elements.
    """

    gate: Gate = Gate.NONE
    factor: Tensor | None = None
    where: Where | None = None


@dataclass(frozen=True)
class Start:
    """One pass through the module whose tensors are the ends of the way back.

    Attributes:
        tensors: leaves of the graph.
        view: which of several views of the input this pass belongs to.
        where: the positions of each tensor.
    """

    tensors: Tensors
    view: int = 0
    where: tuple[Where | None, ...] = ()


@dataclass
class Constants:
    """What constants add to the score, by view and position. Filled by the backward pass.

    Attributes:
        samples: size of the batch.
        placed: for each view and grid ``(B, slots)``.
        unplaced: by slot ``(B,)``, of constants whose position is not known.
    """

    samples: int
    placed: dict[tuple[int, tuple[int, ...]], Tensor] = field(default_factory=dict)
    unplaced: dict[int, Tensor] = field(default_factory=dict)

    def add(
        self,
        gradient: Tensor,
        constant: Tensor | float,
        axis: int | None,
        part: tuple[int, int, int] | None,
        where: Where | None,
        view: int,
        slot: int | None = None,
    ) -> None:
        """Add gradient x constant, position by position, or all of it to one slot of its sample."""
        gradient = F.widen(gradient)
        index = None if where is None else where.index if slot is None else where.special(slot)
        if part is not None:
            gradient = gradient.narrow(*part)
            index = None if index is None else index.narrow(*part)
        if axis is not None and isinstance(constant, Tensor):
            share = torch.tensordot(gradient, constant.to(gradient.dtype), ([axis], [0]))
            if index is not None:
                index = index.select(axis, 0)
        else:
            share = gradient * constant
        if where is None or index is None:
            self._add_unplaced(share, NOWHERE if slot is None else slot)
            return
        for dim in range(index.dim()):
            if index.stride(dim) == 0 and index.shape[dim] > 1:
                share = share.sum(dim, keepdim=True)
                index = index.narrow(dim, 0, 1)
        key = view, where.grid
        if key not in self.placed:
            self.placed[key] = share.new_zeros(self.samples * where.stride)
        self.placed[key].index_add_(0, index.reshape(-1), share.reshape(-1).to(self.placed[key].dtype))

    def _add_unplaced(self, share: Tensor, slot: int) -> None:
        # Batches come first, also where windows or positions follow the samples; or second, behind the tokens.
        if share.dim() and len(share) % self.samples == 0:
            each = share.reshape(self.samples, -1).sum(1)
        elif share.dim() > 1 and share.shape[1] == self.samples:
            each = share.transpose(0, 1).flatten(1).sum(1)
        else:
            return
        self.unplaced[slot] = each if slot not in self.unplaced else self.unplaced[slot] + each

    def scale(self, factors: Tensor) -> None:
        """Multiply the shares of each sample, ``(B,)``."""
        for shares in self.placed.values():
            shares.view(self.samples, -1).mul_(factors.to(shares).unsqueeze(1))
        self.unplaced = {slot: share * factors.to(share) for slot, share in self.unplaced.items()}

    def slots(self, view: int, grid: tuple[int, ...]) -> Tensor:
        """``(B, slots)`` of one grid."""
        return self.placed[view, grid].view(self.samples, FIRST_POSITION + math.prod(grid))


@dataclass
class Sink:
    """Where the backward pass puts the shares of constants; None: they are not asked for."""

    constants: Constants | None = None


class WayBack(TorchFunctionMode):
    """Records autograd from :meth:`start` on, with scales held and whatever grad mode the forward function sets itself.

    The mode stands around the whole pass and looks on until the start. From there every torch call is made outside
    inference mode and with gradients, so that a forward function wrapped in ``torch.no_grad()`` or
    ``torch.inference_mode()`` has a way back as well. Weights are taken off the graph: what requires a gradient depends
    on the layer.

    Args:
        inputs: of the forward function, the batch first.
        places: follow positions and note constants, for a full account.
        names: of parameters and buffers of the model, to tell class tokens from registers.
        token_grid: lays out the tensors of the start.
    """

    def __init__(
        self, inputs: Tensors, places: bool, names: Callable[[Tensor], str], token_grid: TokenGridLike | None
    ) -> None:
        super().__init__()
        self.starts: list[Start] = []
        # Hooks of the graph hold the sink and not the tape, whose vectors would hold the graph in turn.
        self.sink = Sink()
        self._places = places
        self._token_grid = token_grid
        self._leaves: set[int] = set()
        self._open: list[Callable[..., Any]] = []
        self._vectors: list[tuple[Tensor, int]] = []
        self._stand_ins: dict[int, tuple[Tensor, Tensor]] = {}
        self._inputs = {id(tensor) for tensor in inputs}
        self._of_image = object()  # of this run: a model may keep a tensor from call to call
        samples = len(inputs[0])
        self._tracker = Tracker(samples, lambda value: _note(value).where, functools.partial(_slot_of_constant, names))

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
        if not self._places or not leaf.is_floating_point():
            return None
        if self._token_grid is not None:
            return of_tokens(leaf.shape, self._token_grid, leaf.device)
        return of_grid(leaf.shape, leaf.device) if leaf.dim() > 2 else None

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in _GRAD_MODES or (name == "__get__" and getattr(func, "__self__", None) not in _VIEWS):
            return func(*args, **kwargs)
        if not self.starts:
            return self._marked(func(*args, **kwargs), args, kwargs)
        with torch.inference_mode(False), torch.enable_grad():
            args = tuple([self._own(argument) for argument in args])
            kwargs = {key: self._own(argument) for key, argument in kwargs.items()}
            if not _depends((*args, *kwargs.values())):
                return self._marked(func(*args, **kwargs), args, kwargs)
            if not self._can_open(func, name):
                return self._follow(func, name, args, kwargs)
            self._open.append(func)
            try:
                with self:
                    return _opened(func)(*args, **kwargs)
            finally:
                self._open.pop()

    def _can_open(self, func: Callable[..., Any], name: str) -> bool:
        """Whether a function of torch is written in Python, so that its parts are what is followed."""
        if is_rearranging(name) or func in self._open:  # a method of the same name in C hands over the one in Python
            return False
        return isinstance(func, FunctionType) and func.__globals__["__name__"] in _PYTHON_OF_TORCH

    def _follow(self, func: Callable[..., Any], name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        name, in_place = _plain_name(name)
        rule = held_scales.find_rule(name)
        if not args:
            first = next((key for key in ("input", "self", "x", "tensors", "query") if key in kwargs), None)
            if first is not None:
                args, kwargs = (kwargs[first],), {key: value for key, value in kwargs.items() if key != first}
        target = args[0] if in_place else None
        before = [_note(argument) for argument in _flat(args, kwargs)]
        if in_place and rule is not None and rule not in _ACT_IN_PLACE:
            func = _new_tensor_form(name)
        # Constants are noted before the positions of the result are known, and hooked after.
        pending: list[tuple[Tensor, Any, int | None, Any, bool]] = []

        def add_constant(
            result: Tensor, constant: Any, axis: int | None = None, part: Any = None, source: Any = None
        ) -> None:
            source = constant if source is None else source
            pending.append((result, constant, axis, part, isinstance(source, Tensor) and self._is_of_image(source)))

        call = Call(func, args, kwargs, lambda value: _note(value).gate, add_constant)
        result = call() if rule is None else rule(call)
        if target is not None and result is not target and isinstance(result, Tensor):
            target.copy_(result)
            pending = [(target, *rest) for _, *rest in pending]
            result = target
        self._attach_all(name, func, args, kwargs, result, before)
        self._marked(result, args, kwargs)
        for tensor, *constant in pending:
            if tensor.requires_grad and self._places:
                self._hook(tensor, *constant)
        return result

    def _hook(self, tensor: Tensor, constant: Any, axis: int | None, part: Any, of_image: bool) -> None:
        where, view, sink = _note(tensor).where, current_view(), self.sink
        slot = OTHER_PATHS if of_image else None
        constant = constant.detach() if isinstance(constant, Tensor) else constant

        def note(gradient: Tensor) -> None:
            if sink.constants is not None:
                with torch.no_grad():
                    sink.constants.add(gradient, constant, axis, part, where, view, slot)

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
        results = list(result) if isinstance(result, tuple | list) else [result]
        if not any(isinstance(one, Tensor) and one.requires_grad for one in results):
            return
        wheres: list[Where | None] = [None] * len(results)
        if self._places:
            with torch.no_grad():
                wheres = self._tracker.follow(name, func, args, kwargs, result)
        gate = _gate_of_result(name, before)
        for one, where in zip(results, wheres, strict=True):
            if isinstance(one, Tensor) and one.requires_grad:
                self._attach(one, Note(gate, _factor_of_result(name, args, kwargs, one), where))

    def _attach(self, tensor: Tensor, note: Note) -> None:
        tensor._captum_fam = note  # type: ignore[attr-defined]
        if tensor.dim() >= 2 and tensor.numel() > 0 and max(tensor.shape[1:]) * len(tensor) == tensor.numel():
            self._vectors.append((tensor, tensor._version))

    def _marked(self, result: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Mark what comes from the image, but not through the layer: it is no bias where it is added."""
        if self._places and any(self._is_of_image(tensor) for tensor in _tensors(args, kwargs)):
            for tensor in _tensors((result,), {}):
                if not tensor.requires_grad and id(tensor) not in self._inputs:
                    tensor._captum_fam = self._of_image  # type: ignore[attr-defined]
        return result

    def _is_of_image(self, tensor: Tensor) -> bool:
        if id(tensor) in self._inputs or getattr(tensor, "_captum_fam", None) is self._of_image:
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
                stand_in._captum_fam = self._of_image  # type: ignore[attr-defined]
            self._stand_ins[id(tensor)] = tensor, stand_in
        return self._stand_ins[id(tensor)][1]

    def end(self, embedding: Tensor) -> tuple[Tensor, Tensor | None]:
        """Where the way back begins, and what the embedding is that vector times: ``(B, 1)``, or None for one.

        An embedding that left the graph (``detach()``, ``.data``, a round trip through numpy, an autograd function of
        the user) is looked for among the vectors that were seen: the first that has its direction.
        """
        embedding = self.normal(embedding)
        note = getattr(embedding, "_captum_fam", None)
        if isinstance(note, Note) and embedding.requires_grad:
            return embedding, note.factor
        for vector, version in self._vectors:
            if vector._version == version and vector.numel() == embedding.numel() and _parallel(vector, embedding):
                before = F.widen(vector.detach()).flatten(1).norm(dim=1, keepdim=True)
                after = F.widen(embedding.detach()).norm(dim=1, keepdim=True)
                return vector, torch.where(before == 0, 1.0, after / before)
        return embedding, None


def _slot_of_constant(names: Callable[[Tensor], str], tensor: Tensor) -> int:
    name = names(tensor).lower()
    return REGISTERS if "reg" in name or "storage" in name else CLASS_TOKEN


def _note(value: object) -> Note:
    note = getattr(value, "_captum_fam", None) if isinstance(value, Tensor) else None
    return note if isinstance(note, Note) else _NOTHING


_NOTHING = Note()


def _tensors(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Tensor]:
    for value in (*args, *kwargs.values()):
        for one in value if isinstance(value, tuple | list) else (value,):
            if isinstance(one, Tensor):
                yield one


def _flat(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Tensor]:
    return (tensor for tensor in _tensors(args, kwargs) if tensor.requires_grad)


def _depends(values: tuple[Any, ...]) -> bool:
    return next(_flat(values, {}), None) is not None


def _plain_name(name: str) -> tuple[str, bool]:
    """The name in the table, and whether the function changes its first argument."""
    if name.startswith("__") and name.endswith("__"):
        operator = name[2:-2]
        if operator in _OPERATORS:
            return _OPERATORS[operator], False
        if operator[:1] == "i" and operator[1:] in _OPERATORS:
            return _OPERATORS[operator[1:]], True
        return name, False
    return (name[:-1], True) if name.endswith("_") else (name, False)


def _new_tensor_form(name: str) -> Callable[..., Any]:
    """The function of that name that leaves its arguments as they are."""
    owner = next(owner for owner in (Tensor, torch._C._nn, torch) if hasattr(owner, name))
    found: Callable[..., Any] = getattr(owner, name)
    return found


@functools.cache
def _opened(function: FunctionType) -> Callable[..., Any]:
    """A copy of a Python function of torch that does its work instead of handing itself to the mode again."""
    open_globals = {**function.__globals__}
    for check in ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic"):
        if check in open_globals:
            open_globals[check] = lambda *args: False
    copy = FunctionType(function.__code__, open_globals, function.__name__, function.__defaults__, function.__closure__)
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


_ELEMENTWISE_WITH_CONSTANT = frozenset(
    "add sub rsub div neg masked_fill where dropout contiguous clone type type_as to float half bfloat16 double".split()
)
_LINEAR = frozenset(
    "linear conv1d conv2d conv3d mean sum pad interpolate upsample_nearest1d upsample_nearest2d upsample_nearest3d "
    "_upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d upsample_linear1d "
    "upsample_bilinear2d upsample_bicubic2d upsample_trilinear3d avg_pool1d avg_pool2d avg_pool3d "
    "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d max_pool1d max_pool2d max_pool3d amax amin".split()
)


def _gate_of_result(name: str, before: list[Note]) -> Gate:
    own = held_scales.gate_level(name)
    if own is not None:
        return own
    # expand_as and its like take only the shape of their second tensor.
    levels = [note.gate for note in (before[:1] if name.endswith("_as") else before)]
    if not levels:
        return Gate.NONE
    lowest = min(levels)
    if name in ("mul", "matmul", "bmm", "einsum"):
        # A gate times a constant is a gate; what a gate multiplied is as it was.
        return lowest if len(levels) == 1 or lowest >= Gate.WEIGHT else Gate.NONE
    if is_rearranging(name) or name in _ELEMENTWISE_WITH_CONSTANT:
        return lowest
    return lowest if lowest >= Gate.WEIGHT and name in _LINEAR else Gate.NONE


def _factor_of_result(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], result: Tensor) -> Tensor | None:
    """How the result is a rescaling of the samples of a vector, ``(B, 1)``."""
    source = next(_flat(args, kwargs), None)
    if source is None or source.numel() != result.numel() or len(source) != len(result):
        return None
    known = _note(source).factor
    if is_rearranging(name) or name in ("clone", "contiguous", "to", "float", "double", "half", "bfloat16"):
        return known
    if name not in ("mul", "div") or max(result.shape[1:], default=0) * len(result) != result.numel():
        return None
    other = args[1] if len(args) > 1 and args[0] is source else args[0] if len(args) > 1 else kwargs.get("other")
    # A fixed number is a part of the head; what differs by sample is a normalization.
    if not isinstance(other, Tensor) or other.dim() != result.dim() or len(other) != len(result):
        return None
    factor = F.widen(other.detach()).reshape(len(result), -1)
    if factor.shape[1] > 1 and not bool((factor == factor[:, :1]).all()):
        return None
    factor = factor[:, :1].reciprocal() if name == "div" else factor[:, :1]
    if bool((factor <= 0).any()):
        return None
    return factor if known is None else known * factor


def _parallel(vector: Tensor, embedding: Tensor) -> bool:
    """Whether all rows have the same direction up to rounding; zero rows go with zero rows."""
    if embedding.shape[1] == 1:
        return torch.equal(vector.detach().reshape(-1), embedding.detach().reshape(-1))  # a number has no direction
    eps = max(torch.finfo(vector.dtype).eps, torch.finfo(embedding.dtype).eps)
    tolerance = 8 * eps if eps < 1e-5 else 2 * eps
    a, b = F.common_precision(vector.detach().flatten(1), embedding.detach())
    if a.shape != b.shape:
        return False
    return torch.equal(a, b) or bool(((F.unit(a) - F.unit(b)).norm(dim=1) <= tolerance).all())


class _View(threading.local):
    index = 0


_VIEW = _View()


def current_view() -> int:
    """Which of several views of the input this thread is running."""
    return _VIEW.index


@contextmanager
def running_view(index: int) -> Iterator[None]:
    """Passes through a layer belong to view ``index`` while the context lasts."""
    before = _VIEW.index
    _VIEW.index = index
    try:
        yield
    finally:
        _VIEW.index = before
