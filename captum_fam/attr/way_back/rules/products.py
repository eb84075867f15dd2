r"""Products and quotients of tensors that all depend on the layer.

In a product :math:`a \cdot b` of two factors that depend on the layer, the factor of the higher :class:`Gate` level is
held, such as a length, the weights of a softmax, or the gate of a sigmoid. Factors of equal level share the product in
equal parts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from captum_fam.attr.way_back.call import Call, Pull, linear, share


def product(call: Call) -> Any:
    """A product of tensors that depend on the layer: the gate is held; without a gate the factors share equally."""
    hold_gates(call, [*call.args, *call.kwargs.values()])
    return call()


def hold_gates(call: Call, factors: Sequence[Any]) -> None:
    """Hold the factors above the lowest gate level; the other factors share the gradient equally.

    Args:
        call: the call, whose arguments are replaced.
        factors: the factors among the arguments, tensors or lists of tensors; other values are skipped.
    """
    values = [value for factor in factors for value in (factor if isinstance(factor, list | tuple) else [factor])]
    dependent = [value for value in values if isinstance(value, Tensor) and value.requires_grad]
    if len(dependent) < 2:
        return
    lowest = min(call.gate_of(tensor) for tensor in dependent)
    free = [tensor for tensor in dependent if call.gate_of(tensor) == lowest]
    # One tensor may be two factors, as in x * x: it is replaced once, and counts as two free factors.
    for tensor in {id(tensor): tensor for tensor in dependent}.values():
        if call.gate_of(tensor) > lowest:
            call.replace(tensor, tensor.detach())
        elif len(free) > 1:
            call.replace(tensor, share(tensor, len(free)))


def quotient_of_two(call: Call) -> Tensor:
    """A quotient: the denominator is held."""
    denominator = call.argument(1, "other")
    if isinstance(denominator, Tensor) and denominator.requires_grad:
        call.replace(denominator, denominator.detach())
    result: Tensor = call()
    return result


def attention(call: Call) -> Any:
    """``scaled_dot_product_attention``: the attention weights are held, and with them queries, keys and mask.

    Ali et al., "XAI for Transformers: Better Explanations through Conservative Propagation", ICML 2022.
    """
    for name, position in (("query", 0), ("key", 1), ("attn_mask", 3)):
        value = call.argument(position, name)
        # One tensor may be queries and values, so that call.replace would detach the values too. Only this argument is
        # exchanged.
        if isinstance(value, Tensor) and len(call.args) > position:
            call.args = (*call.args[:position], value.detach(), *call.args[position + 1 :])
        elif isinstance(value, Tensor):
            call.kwargs = {**call.kwargs, name: value.detach()}
    value = call.argument(2, "value")
    if call.argument(4, "dropout_p", 0.0) or call.kwargs.get("enable_gqa") or not value.requires_grad:
        return call()
    # The graph holds this function: with the call in it, which knows the result, a circle would keep the graph alive.
    on = _of_values(call.function, call.args, call.kwargs)

    def compute(values: Tensor) -> tuple[Tensor, Pull]:
        with torch.enable_grad():  # once: a kept way back is gone many times, and each would run the function again
            free = values.requires_grad_()
            result = on(free)

        def pull(gradient: Tensor) -> Tensor:
            if not gradient.requires_grad:
                # Outside of autocast the function computes in the precision of its arguments.
                return torch.autograd.grad(result, free, gradient.to(result), retain_graph=True)[0]
            # The gradient of the function of torch has no derivative. It is the transpose of the attention weights,
            # which the function gives for a matrix of ones on the diagonal.
            with torch.no_grad():
                diagonal = torch.eye(free.shape[-2], dtype=free.dtype, device=free.device)
                weights = on(diagonal.expand(*free.shape[:-1], -1))
            return (weights.transpose(-2, -1) @ gradient.to(weights)).sum_to_size(free.shape)

        return result.detach().clone(), pull  # a copy: the model may change its result in place

    return linear(value, compute)


def _of_values(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Callable[[Tensor], Tensor]:
    """The attention as a function of the values alone."""
    if len(args) > 2:
        return lambda values: function(*args[:2], values, *args[3:], **kwargs)
    return lambda values: function(*args, **{**kwargs, "value": values})


def cosine(call: Call) -> Tensor:
    """``cosine_similarity``: the product of two vectors divided by their lengths, which are held."""
    first, second = call.args[:2]
    value = call.value()
    dim = call.argument(2, "dim", 1)
    eps = call.argument(3, "eps", 1e-8)
    lengths = [tensor.detach().norm(dim=dim, keepdim=True).clamp_min(eps) for tensor in (first, second)]
    product_call = Call(torch.mul, (first, second), {}, call.gate_of, call.add_constant)
    similarity = (product(product_call) / (lengths[0] * lengths[1])).sum(dim)
    # The sum here can differ in the last place. The result has the value of torch and the gradient of the sum.
    return linear(similarity, lambda _: (value, lambda gradient: gradient))
