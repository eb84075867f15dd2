r"""Products and divisions of what depends on the layer with itself.

In :math:`a \cdot b` with both factors from the layer, the factor of the higher :class:`Gate` level is held: a length
scales, a softmax weighs, a sigmoid opens and closes. Factors of the same level share the product in equal parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from captum_fam.attr.way_back.call import Call, linear, share


def product(call: Call) -> Any:
    """A product of tensors that both depend on the layer: the gate is held; else each has its half."""
    hold_gates(call, [*call.args, *call.kwargs.values()])
    return call()


def hold_gates(call: Call, factors: Sequence[Any]) -> None:
    """Hold the factors above the lowest gate level; factors that are left share the gradient."""
    tensors = [t for f in factors for t in (f if isinstance(f, list | tuple) else [f]) if isinstance(t, Tensor)]
    dependent = [t for t in tensors if t.requires_grad]
    if len(dependent) < 2:
        return
    lowest = min(call.gate_of(t) for t in dependent)
    free = [t for t in dependent if call.gate_of(t) == lowest]
    # One tensor may be both factors, as in x * x: the tensor is replaced once, and counts twice among the free ones.
    for tensor in {id(t): t for t in dependent}.values():
        if call.gate_of(tensor) > lowest:
            call.replace(tensor, tensor.detach())
        elif len(free) > 1:
            call.replace(tensor, share(tensor, len(free)))


def quotient_of_two(call: Call) -> Tensor:
    """A division holds its denominator."""
    denominator = call.argument(1, "other")
    if isinstance(denominator, Tensor) and denominator.requires_grad:
        call.replace(denominator, denominator.detach())
    result: Tensor = call()
    return result


def attention(call: Call) -> Any:
    """``scaled_dot_product_attention``: the weights, and so queries and keys, are held.

    Ali et al., "XAI for Transformers: Better Explanations through Conservative Propagation", ICML 2022.
    """
    for name, position in (("query", 0), ("key", 1), ("attn_mask", 3)):
        value = call.argument(position, name)
        # Queries may be the values themselves; only their role as queries is held.
        if isinstance(value, Tensor) and len(call.args) > position:
            call.args = (*call.args[:position], value.detach(), *call.args[position + 1 :])
        elif isinstance(value, Tensor):
            call.kwargs = {**call.kwargs, name: value.detach()}
    return call()


def cosine(call: Call) -> Tensor:
    """``cosine_similarity``: a product of two vectors over their lengths, which are held."""
    first, second = call.args[:2]
    value = call.value()
    dim = call.argument(2, "dim", 1)
    eps = call.argument(3, "eps", 1e-8)
    lengths = [t.detach().norm(dim=dim, keepdim=True).clamp_min(eps) for t in (first, second)]
    both = Call(torch.mul, (first, second), {}, call.gate_of, call.add_constant)
    summed = (product(both) / (lengths[0] * lengths[1])).sum(dim)
    # The value is torch's own to the last place.
    return linear(summed, lambda _: (value, lambda gradient: gradient))
