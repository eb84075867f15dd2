"""The functions of torch as a function mode sees them: operators, in-place forms, and functions written in Python."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

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


def computes_nothing(function: Callable[..., Any], name: str) -> bool:
    """Whether a call only switches a mode of torch or reads an attribute such as ``shape``."""
    return name in _GRAD_MODES or (name == "__get__" and getattr(function, "__self__", None) not in _VIEWS)


def is_written_in_python(function: Callable[..., Any]) -> bool:
    """Whether a function of torch is made of calls of other functions of torch, which can be followed one by one."""
    return isinstance(function, FunctionType) and function.__globals__["__name__"] in _PYTHON_OF_TORCH


def plain_name(name: str) -> tuple[str, bool]:
    """The name in the table, and whether the function changes its first argument.

    Example:
        >>> plain_name("__imul__"), plain_name("relu_"), plain_name("gelu")
        (('mul', True), ('relu', True), ('gelu', False))
    """
    if name.startswith("__") and name.endswith("__"):
        operator = name[2:-2]
        if operator in _OPERATORS:
            return _OPERATORS[operator], False
        if operator[:1] == "i" and operator[1:] in _OPERATORS:
            return _OPERATORS[operator[1:]], True
        return name, False
    return (name[:-1], True) if name.endswith("_") else (name, False)


def new_tensor_form(name: str) -> Callable[..., Any]:
    """The function of that name that leaves its arguments as they are."""
    owner = next(owner for owner in (Tensor, torch._C._nn, torch) if hasattr(owner, name))
    found: Callable[..., Any] = getattr(owner, name)
    return found


@functools.cache
def opened(function: FunctionType) -> Callable[..., Any]:
    """A copy of a Python function of torch that does its work instead of handing itself to the mode again."""
    open_globals = {**function.__globals__}
    for check in ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic"):
        if check in open_globals:
            open_globals[check] = lambda *args: False
    copy = FunctionType(function.__code__, open_globals, function.__name__, function.__defaults__, function.__closure__)
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy
