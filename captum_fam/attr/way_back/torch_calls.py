"""Calls of torch as a function mode gets them: operators, in-place forms, and functions written in Python."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

# Attributes that compute a tensor. All other attributes, such as shape, only read.
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
    """Whether a call only switches a mode of torch or reads an attribute such as ``shape``.

    Args:
        function: the function that the mode got.
        name: the ``__name__`` of the function.
    """
    return name in _GRAD_MODES or (name == "__get__" and getattr(function, "__self__", None) not in _VIEWS)


def is_written_in_python(function: Callable[..., Any]) -> bool:
    """Whether a function of torch is written in Python, so that the functions that it calls can be followed.

    Example:
        >>> is_written_in_python(torch.nn.functional.normalize), is_written_in_python(torch.nn.functional.conv2d)
        (True, False)
    """
    return isinstance(function, FunctionType) and function.__globals__["__name__"] in _PYTHON_OF_TORCH


def plain_name(name: str) -> tuple[str, bool]:
    """The name of a function in the table, and whether the function changes its first argument.

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
    """The function of a plain name, which makes a new tensor and does not change its arguments."""
    owner = next(owner for owner in (Tensor, torch._C._nn, torch) if hasattr(owner, name))
    function: Callable[..., Any] = getattr(owner, name)
    return function


@functools.cache
def opened(function: FunctionType) -> Callable[..., Any]:
    """A copy of a Python function of torch that runs its own body.

    The original function would hand itself to the function mode again. In the copy, the check for a function mode
    always answers no.
    """
    open_globals = {**function.__globals__}
    for check in ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic"):
        if check in open_globals:
            open_globals[check] = lambda *args: False
    copy = FunctionType(function.__code__, open_globals, function.__name__, function.__defaults__, function.__closure__)
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy
