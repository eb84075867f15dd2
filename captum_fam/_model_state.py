"""Telling whether a forward function still computes what it computed when a support was embedded with it."""

from __future__ import annotations

import functools
import inspect
import types
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

# Behind these stands no module of the user.
_PLAIN = (type(None), bool, int, float, str, bytes, torch.dtype, torch.device)
_SETTINGS = {bool, int, float, str}
_LIBRARIES = ("builtins", "einops", "math", "numpy", "timm", "torch", "torchvision", "transformers")


def model_state(forward_func: Callable[..., Any]) -> tuple[Any, ...] | None:
    """A value that changes when the weights, buffers, submodules or modes behind ``forward_func`` change.

    None where that cannot be told, because a callable refers to something else than modules, tensors and plain
    values, or to no module: then nothing computed with it may be kept.
    """
    parts = _parts_behind(forward_func, set())
    if not parts:
        return None
    modules = [module for part in parts if isinstance(part, nn.Module) for module in part.modules()]
    tensors = [part for part in parts if isinstance(part, Tensor)]
    for part in parts:
        if isinstance(part, nn.Module):
            tensors += [*part.parameters(), *part.buffers()]
    autocast = [(torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)) for device in ("cpu", "cuda")]
    return autocast, [_settings(m) for m in modules], [tensor_version(t) for t in tensors], _values(tensors)


def anchor(forward_func: Callable[..., Any]) -> object:
    """The object whose identity stands for ``forward_func``: a bound method is made anew at each access."""
    return getattr(forward_func, "__self__", forward_func)


def _settings(module: nn.Module) -> tuple[Any, ...]:
    """What a module is, in which mode, and its numbers and names; no reference that would keep it alive."""
    own = vars(module)
    numbers_and_names = [value for value in own.values() if type(value) in _SETTINGS]
    return id(module), type(module), id(own.get("forward")), numbers_and_names


def tensor_version(tensor: Tensor) -> tuple[int, int]:
    """A value that changes when another tensor takes its place, or it is changed in place."""
    # In-place updates (optimizers, load_state_dict, batch-norm statistics) raise the version;
    # inference tensors have none.
    return tensor.data_ptr(), -1 if tensor.is_inference() else tensor._version


@torch.no_grad()
def _values(tensors: Iterable[Tensor]) -> list[float]:
    """One value of each tensor: updates through ``.data``, as of momentum encoders, leave the version as it was."""
    groups: dict[tuple[torch.device, torch.dtype], list[Tensor]] = defaultdict(list)
    for tensor in tensors:
        if tensor.numel() and not tensor.is_meta:
            groups[tensor.device, tensor.dtype].append(tensor[tuple([size // 2 for size in tensor.shape])])
    return [value for group in groups.values() for value in torch.stack(group).tolist()]


def _parts_behind(thing: Any, seen: set[int]) -> list[nn.Module | Tensor] | None:
    """The modules and tensors that a callable refers to; None if it refers to what may hide others."""
    if isinstance(thing, nn.Module | Tensor):
        return [thing]
    if isinstance(thing, _PLAIN) or id(thing) in seen:
        return []
    seen.add(id(thing))
    referred: Iterable[Any]
    if _is_library(thing):
        # The decorators of torch, such as no_grad() and compile(), stand before the user's function.
        wrapped = isinstance(thing, types.FunctionType) and hasattr(thing, "__wrapped__")
        referred = [thing.__wrapped__] if wrapped else []
    elif isinstance(thing, functools.partial):
        referred = [thing.func, *thing.args, *thing.keywords.values()]
    elif inspect.ismethod(thing):
        referred = [thing.__self__] if isinstance(thing.__self__, nn.Module) else [thing.__func__, thing.__self__]
    elif isinstance(thing, types.FunctionType):
        names = inspect.getclosurevars(thing)
        referred = [*names.nonlocals.values(), *names.globals.values()]
    elif isinstance(thing, tuple):
        referred = thing
    else:
        return None
    parts: list[nn.Module | Tensor] = []
    for one in referred:
        behind = _parts_behind(one, seen)
        if behind is None:
            return None
        parts += behind
    return parts


def _is_library(thing: Any) -> bool:
    if isinstance(thing, types.ModuleType):
        name = thing.__name__
    elif isinstance(thing, types.FunctionType):
        name = thing.__globals__.get("__name__", "")
    elif isinstance(thing, type | types.BuiltinFunctionType):
        name = thing.__module__ or ""
    else:
        return False
    return name.partition(".")[0] in _LIBRARIES
