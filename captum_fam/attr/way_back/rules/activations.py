r"""Elementwise functions: :math:`\phi(x) = x \cdot (\phi(x) / x)`, with the quotient held.

With a held quotient, gradient x input is the value of the function. For a ReLU the quotient is the gradient itself.
A function that is not zero at zero, such as a clamp, adds a constant.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from captum_fam.attr.way_back.call import Call, Pull, linear
from captum_fam.attr.way_back.rules.lengths import hold


def hold_quotient(call: Call) -> Tensor:
    r"""An elementwise function that is zero at zero: :math:`x \cdot (\phi(x) / x)`, with the quotient held."""
    x = call.args[0]
    return linear(x, lambda value: _quotient(call, value))


def _quotient(call: Call, x: Tensor) -> tuple[Tensor, Pull]:
    result = call.on(x)
    # At zero the quotient is the slope. Shares are gradient x input, zero there, but FAM sums the gradients themselves.
    near = x.new_full((), 2.0**-12)
    slope = call.on(near) / near if x.numel() else near
    quotient = torch.where(x == 0, slope, result / x)
    return result, lambda gradient: gradient * quotient


def relu(call: Call) -> Any:
    """``relu`` and leaky forms: the gradient is the quotient already, for each sign of the input."""
    return call()


def gate(call: Call) -> Any:
    """A sigmoid or softmax: the product that it weighs holds it; without a product it keeps its own gradient."""
    return call()


def gated_half(call: Call) -> Tensor:
    r"""``glu``, :math:`a \cdot \sigma(b)`: the second half b of the channels is the gate and held."""
    x, dim = call.args[0], call.argument(1, "dim", -1)

    def compute(value: Tensor) -> tuple[Tensor, Pull]:
        kept, gates = value.chunk(2, dim)
        gates = gates.sigmoid()
        return kept * gates, lambda gradient: torch.cat([gradient * gates, torch.zeros_like(gates)], dim)

    return linear(x, compute)


def power(call: Call) -> Tensor:
    """``pow`` of a tensor of the layer: a held quotient for positive exponents, a scale for negative exponents."""
    base, exponent = call.args[0], call.argument(1, "exponent")
    if not (isinstance(base, Tensor) and base.requires_grad):
        return hold(call)  # such as 2 ** x, of which no part is linear in x
    if bool((torch.as_tensor(exponent) < 0).any()):
        return hold(call)  # such as x ** -0.5, the inverse of a length
    if isinstance(exponent, Tensor) and exponent.requires_grad:
        call.replace(exponent, exponent.detach())
    if isinstance(exponent, Tensor) and exponent.dim() > base.dim():
        return call()  # the base is broadcast, so that there is no quotient element by element
    return hold_quotient(call)


def clamp(call: Call) -> Tensor:
    """``clamp``: a held quotient where zero stays zero, as in ReLU6; else a reached bound is a constant."""
    x = call.args[0]
    if bool((call.on(torch.zeros_like(x[..., :1])) == 0).all()):
        return hold_quotient(call)
    result: Tensor = call()
    call.add_constant(result, torch.where(result == x, 0.0, result.detach()))
    return result


def extremum(call: Call) -> Tensor:
    """``maximum`` and ``minimum``: a constant is added at the elements where it is chosen."""
    result: Tensor = call()
    for value in call.args[:2]:
        if isinstance(value, Tensor) and not value.requires_grad:
            call.add_constant(result, torch.where(result == value, result.detach(), 0.0), source=value)
    return result
