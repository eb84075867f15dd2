r"""Elementwise functions: :math:`\phi(x) = x \cdot (\phi(x) / x)`, the quotient held.

Holding the quotient makes gradient x input the value of the function. For a ReLU the quotient is the gradient itself.
Where a function is not zero at zero, what the function adds there is a constant.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from captum_fam.attr.way_back.call import Call, Pull, linear
from captum_fam.attr.way_back.rules.lengths import hold


def hold_quotient(call: Call) -> Tensor:
    r"""An elementwise function that is zero at zero: :math:`x \cdot (\phi(x) / x)`, the quotient held."""
    x = call.args[0]
    return linear(x, lambda value: _quotient(call, value))


def _quotient(call: Call, x: Tensor) -> tuple[Tensor, Pull]:
    result = call.on(x)
    # At zero the quotient is the slope. No share of a score hangs on it, but FAM sums the gradients themselves.
    near = x.new_full((), 2.0**-12)
    slope = call.on(near) / near if x.numel() else near
    quotient = torch.where(x == 0, slope, result / x)
    return result, lambda gradient: gradient * quotient


def relu(call: Call) -> Any:
    """The gradient of a ReLU is its quotient already, also where its slope differs by sign."""
    return call()


def gate(call: Call) -> Any:
    """A sigmoid or softmax: held by the product that it weighs; its own gradient where there is no such product."""
    return call()


def gated_half(call: Call) -> Tensor:
    r"""``glu``: :math:`a \cdot \sigma(b)`, the second half b being the gate of the first half a."""
    x, dim = call.args[0], call.argument(1, "dim", -1)

    def compute(value: Tensor) -> tuple[Tensor, Pull]:
        kept, gates = value.chunk(2, dim)
        gates = gates.sigmoid()
        return kept * gates, lambda gradient: torch.cat([gradient * gates, torch.zeros_like(gates)], dim)

    return linear(x, compute)


def power(call: Call) -> Tensor:
    """A power of the layer: a quotient for positive exponents, a scale for negative ones."""
    base, exponent = call.args[0], call.argument(1, "exponent")
    if not (isinstance(base, Tensor) and base.requires_grad):
        return hold(call)  # 2 ** x has no part that is linear in x
    if bool((torch.as_tensor(exponent) < 0).any()):
        return hold(call)  # x ** -0.5 is one over a length
    if isinstance(exponent, Tensor) and exponent.requires_grad:
        call.replace(exponent, exponent.detach())
    if isinstance(exponent, Tensor) and exponent.dim() > base.dim():
        return call()  # the result is larger than the base, so that there is no quotient element by element
    return hold_quotient(call)


def clamp(call: Call) -> Tensor:
    """A quotient where zero stays zero, as in ReLU6; else the bound is a constant where the bound is met."""
    x = call.args[0]
    if bool((call.on(torch.zeros_like(x[..., :1])) == 0).all()):
        return hold_quotient(call)
    result: Tensor = call()
    call.add_constant(result, torch.where(result == x, 0.0, result.detach()))
    return result


def extremum(call: Call) -> Tensor:
    """``maximum`` and ``minimum``: the constants that are chosen are added."""
    result: Tensor = call()
    for value in call.args[:2]:
        if isinstance(value, Tensor) and not value.requires_grad:
            call.add_constant(result, torch.where(result == value, result.detach(), 0.0), source=value)
    return result
