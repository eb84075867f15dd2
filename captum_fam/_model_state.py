"""Telling whether a forward function still computes what it computed when a support was embedded with it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor, nn


def model_state(forward_func: Callable[..., Any]) -> Hashable | None:
    """A value that changes when the weights, buffers or modes behind ``forward_func`` change.

    None where no module can be seen behind a callable: then nothing computed with it may be kept.
    """
    modules = _modules_behind(forward_func)
    if not modules:
        return None
    modes = (torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda"))
    return modes, tuple(
        (*(m.training for m in module.modules()), *(_version(t) for t in (*module.parameters(), *module.buffers())))
        for module in modules
    )


def anchor(forward_func: Callable[..., Any]) -> object:
    """The object whose identity stands for ``forward_func``: a bound method is made anew at each access."""
    return getattr(forward_func, "__self__", forward_func)


def _version(tensor: Tensor) -> tuple[int, int]:
    # In-place updates (optimizers, load_state_dict, batch-norm statistics) raise the version;
    # inference tensors have none.
    return tensor.data_ptr(), -1 if tensor.is_inference() else tensor._version


def _modules_behind(forward_func: Callable[..., Any]) -> list[nn.Module]:
    if isinstance(forward_func, nn.Module):
        return [forward_func]
    if isinstance(forward_func, functools.partial):
        seen: list[Any] = [forward_func.func, *forward_func.args, *forward_func.keywords.values()]
    elif inspect.ismethod(forward_func):
        seen = [forward_func.__self__]
    elif inspect.isfunction(forward_func):
        names = inspect.getclosurevars(inspect.unwrap(forward_func))
        seen = [*names.nonlocals.values(), *names.globals.values()]
    else:
        seen = list(getattr(forward_func, "__dict__", {}).values())
    return [thing for thing in seen if isinstance(thing, nn.Module)]
