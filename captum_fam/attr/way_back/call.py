"""One call of a torch function on the way back, and the linear form that a rule gives the call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor

Pull = Callable[[Tensor], Tensor]
"""From the gradient on the result of a function to the gradient on the argument of the function."""


class Gate(IntEnum):
    """The gate level of a tensor. Of the factors of a product, the factor of the higher level is held.

    Factors of equal level share the product equally.
    """

    NONE = 0
    ACTIVATION = 1  # SwiGLU: the activated half is the gate of the other half
    BOUNDED = 2  # tanh, ReLU6: x * relu6(x + 3) / 6 and x * (1 + tanh(...)) / 2 are activations written by hand
    WEIGHT = 3  # sigmoid and softmax: weights of the other factor
    SCALE = 4  # lengths and deviations


@dataclass
class Call:
    """One call of a torch function, some of whose tensors depend on the explained layer.

    Attributes:
        function: called as ``function(*args, **kwargs)``.
        args: positional arguments of the function.
        kwargs: keyword arguments of the function.
        gate_of: a function that gives the gate level of a tensor.
        add_constant: ``add_constant(result, constant, axis)`` notes that the function added a constant, which does not
            depend on the layer, to ``result``: a vector along dimension ``axis``, or with ``axis=None`` a tensor or
            number that broadcasts. ``part=(dimension, start, length)`` names the slice of the result that the constant
            was added to. ``source`` names the tensor from which the constant was computed, where this is another
            tensor.

    Example:
        >>> call = Call(torch.relu, (torch.tensor([-1.0, 2.0]),), {}, lambda value: Gate.NONE, lambda *args: None)
        >>> call(), call.argument(0, "input")
        (tensor([0., 2.]), tensor([-1.,  2.]))
    """

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    gate_of: Callable[[object], Gate]
    add_constant: Callable[..., None]

    def __call__(self) -> Any:
        """The result of the function, with the gradient of the function."""
        return self.function(*self.args, **self.kwargs)

    def on(self, x: Tensor) -> Tensor:
        """The result of the function for another first argument."""
        result: Tensor = self.function(x, *self.args[1:], **self.kwargs)
        return result

    def value(self) -> Any:
        """The result of the function, without a gradient."""
        with torch.no_grad():
            return self()

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """The argument at a position or by a name; ``default`` where the call has neither."""
        return self.args[position] if len(self.args) > position else self.kwargs.get(name, default)

    def replace(self, old: object, new: object) -> None:
        """Replace the argument ``old`` by ``new``, also inside lists and tuples."""

        def exchange(value: Any) -> Any:
            if isinstance(value, list | tuple):
                return type(value)([exchange(item) for item in value])
            return new if value is old else value

        self.args = tuple([exchange(value) for value in self.args])
        self.kwargs = {name: exchange(value) for name, value in self.kwargs.items()}


Rule = Callable[[Call], Any]
"""From a call to the result of the function, with the gradient of the held form."""


class _Held(torch.autograd.Function):
    """A function whose gradient is replaced by that of a linear map; see :func:`linear`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, compute: Callable[[Tensor], tuple[Tensor, Pull]]) -> Tensor:
        value, ctx.pull = compute(x.detach())
        return value

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return ctx.pull(gradients[0]), None


def linear(x: Tensor, compute: Callable[[Tensor], tuple[Tensor, Pull]]) -> Tensor:
    """Compute a result whose gradient is that of a linear map.

    Args:
        x: the tensor that depends on the layer.
        compute: from ``x``, detached, to a pair: the result, which must be a new tensor, and the function from the
            gradient on the result to the gradient on ``x``.

    Returns:
        The result.

    Example:
        >>> x = torch.tensor([3.0], requires_grad=True)
        >>> linear(x, lambda value: (value**2, lambda gradient: gradient * value)).backward()  # x * x, one factor held
        >>> x.grad
        tensor([3.])
    """
    result: Tensor = _Held.apply(x, compute)
    return result


def share(x: Tensor, count: int) -> Tensor:
    """The tensor as one of ``count`` equal factors of a product: its gradient is divided by ``count``.

    For a product of k factors, the sum of gradient x factor over the factors is k times the product (Euler's theorem).
    With each gradient divided by k, the sum is the product.

    Example:
        >>> x = torch.tensor([3.0], requires_grad=True)
        >>> y = share(x, 2)
        >>> (y * y).backward()
        >>> x.grad * x.detach()  # the product, 9, and not twice the product
        tensor([9.])
    """
    return linear(x, lambda value: (value.clone(), lambda gradient: gradient / count))
