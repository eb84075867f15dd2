"""One call of a torch function on the way back, and the linear form that a rule gives the call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor

Pull = Callable[[Tensor], Tensor]
"""From the gradient on a result to the gradient on what the result was made of."""


class Gate(IntEnum):
    """Which factor of a product is held: the factor of the higher level. Equal factors share the product in halves."""

    NONE = 0
    ACTIVATION = 1  # SwiGLU: the activated half is the gate of the other half
    BOUNDED = 2  # tanh, ReLU6: x * relu6(x + 3) / 6 and x * (1 + tanh(...)) / 2 are activations written by hand
    WEIGHT = 3  # sigmoid and softmax: weights of what they multiply
    SCALE = 4  # lengths and deviations


@dataclass
class Call:
    """One call of a torch function, some of whose tensors depend on the explained layer.

    Attributes:
        function: called as ``function(*args, **kwargs)``.
        args: its positional arguments.
        kwargs: its keyword arguments.
        gate_of: the gate level of a tensor.
        add_constant: ``add_constant(result, constant, axis)`` notes that ``constant`` was added to ``result`` and
            depends on nothing of the layer: a vector along dimension ``axis``, or with ``axis=None`` a tensor or number
            that broadcasts. ``part=(dimension, start, length)`` names the slice of the result that the constant was
            added to; ``source``, where that is another tensor, what the constant was made of.
    """

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    gate_of: Callable[[object], Gate]
    add_constant: Callable[..., None]

    def __call__(self) -> Any:
        """What the function itself gives, with its own gradient."""
        return self.function(*self.args, **self.kwargs)

    def on(self, x: Tensor) -> Tensor:
        """What the function gives for another first argument."""
        result: Tensor = self.function(x, *self.args[1:], **self.kwargs)
        return result

    def value(self) -> Any:
        """What the function gives, without a gradient."""
        with torch.no_grad():
            return self()

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """An argument, by position or by name."""
        return self.args[position] if len(self.args) > position else self.kwargs.get(name, default)

    def replace(self, old: object, new: object) -> None:
        """Put ``new`` in the place of the argument ``old``, also within lists."""

        def exchange(value: Any) -> Any:
            if isinstance(value, list | tuple):
                return type(value)([exchange(item) for item in value])
            return new if value is old else value

        self.args = tuple([exchange(value) for value in self.args])
        self.kwargs = {name: exchange(value) for name, value in self.kwargs.items()}


Rule = Callable[[Call], Any]
"""From a call to the result of its function, with the gradient of the held form."""


class _Held(torch.autograd.Function):
    """A function with its own value and a linear way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, compute: Callable[[Tensor], tuple[Tensor, Pull]]) -> Tensor:
        value, ctx.pull = compute(x.detach())
        return value

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return ctx.pull(gradients[0]), None


def linear(x: Tensor, compute: Callable[[Tensor], tuple[Tensor, Pull]]) -> Tensor:
    """A result whose gradient is that of a linear map.

    Args:
        x: the tensor that depends on the layer.
        compute: from ``x``, detached, to the result (a new tensor) and the function that takes the gradient on the
            result to the gradient on ``x``.

    Example:
        >>> x = torch.tensor([3.0], requires_grad=True)
        >>> linear(x, lambda value: (value**2, lambda gradient: gradient * value)).backward()  # x * x, one factor held
        >>> x.grad
        tensor([3.])
    """
    result: Tensor = _Held.apply(x, compute)
    return result


def share(x: Tensor, count: int) -> Tensor:
    """The tensor as one of ``count`` equal factors of a product: the gradient is divided among them.

    By Euler's theorem a product of k factors has k times its value as the sum of gradient x factor; a k-th part of each
    gradient makes the sum the value itself.
    """
    return linear(x, lambda value: (value.clone(), lambda gradient: gradient / count))
