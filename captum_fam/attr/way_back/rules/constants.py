"""Functions that add a constant: biases, position embeddings, class tokens, borders and bounds.

A constant does not depend on the layer, so that its gradient does not reach the map. The share of a constant in the
score is gradient x constant, at the positions of the tensor that the constant was added to (Srinivas and Fleuret,
"Full-Gradient Representation for Neural Network Visualization", NeurIPS 2019). The rules here do not change values or
gradients of sums; they note constants with :attr:`Call.add_constant`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from captum_fam.attr.way_back.call import Call
from captum_fam.attr.way_back.rules.lengths import hold
from captum_fam.attr.way_back.rules.products import hold_gates


def linear_layer(call: Call) -> Tensor:
    """``linear``: the bias is a constant along the last dimension."""
    return _with_bias(call, call.argument(2, "bias"), -1)


def convolution(call: Call) -> Tensor:
    """Convolutions: the bias is a constant along the channels."""
    return _with_bias(call, call.argument(2, "bias"), 1)


def _with_bias(call: Call, bias: Tensor | None, axis: int) -> Tensor:
    """Note the bias of a call. A weight that depends on the layer (dynamic convolution) makes the call a product."""
    hold_gates(call, [call.args[0], call.argument(1, "weight")])
    result: Tensor = call()
    if bias is not None and not bias.requires_grad:
        call.add_constant(result, bias, axis)
    return result


def sum_and_product(call: Call) -> Tensor:
    r"""``addmm``, ``baddbmm``, ``addcmul`` and the like: :math:`\beta a + \alpha b c`."""
    added = call.args[0]
    hold_gates(call, call.args[1:3])
    result: Tensor = call()
    if isinstance(added, Tensor) and not added.requires_grad:
        call.add_constant(result, added * call.kwargs.get("beta", 1), source=added)
    return result


def addition(call: Call) -> Tensor:
    """``add``: a constant that is added, such as a position embedding."""
    return _sum(call, 1, call.kwargs.get("alpha", 1))


def subtraction(call: Call) -> Tensor:
    """``sub``: a constant that is subtracted, or a constant minus a tensor of the layer."""
    return _sum(call, 1, -call.kwargs.get("alpha", 1))


def reversed_subtraction(call: Call) -> Tensor:
    """``rsub``: b - alpha * a."""
    return _sum(call, -call.kwargs.get("alpha", 1), 1)


def _sum(call: Call, first: float, second: float) -> Tensor:
    """``first * a + second * b``: note the term that does not depend on the layer."""
    result: Tensor = call()
    for value, factor in ((call.args[0], first), (call.argument(1, "other"), second)):
        if isinstance(value, Tensor):
            if not value.requires_grad:
                call.add_constant(result, value * factor, source=value)
        elif value != 0:
            call.add_constant(result, value * factor)
    return result


def joining(call: Call) -> Tensor:
    """``cat``: constants among the tensors, such as a class token."""
    tensors, dim = call.args[0], call.argument(1, "dim", 0)
    result: Tensor = call()
    start = 0
    for tensor in tensors:
        if not tensor.requires_grad and tensor.numel():
            call.add_constant(result, tensor, part=(dim, start, tensor.shape[dim]))
        # torch accepts an empty vector beside tensors of any shape, and ignores it.
        start += tensor.shape[dim] if tensor.dim() == result.dim() else 0
    return result


def stacking(call: Call) -> Tensor:
    """``stack``: as :func:`joining`."""
    tensors, dim = call.args[0], call.argument(1, "dim", 0)
    result: Tensor = call()
    for index, tensor in enumerate(tensors):
        if not tensor.requires_grad:
            call.add_constant(result, tensor.unsqueeze(dim), part=(dim, index, 1), source=tensor)
    return result


def choice(call: Call) -> Tensor:
    """``where``: a constant is added at the elements where it is chosen."""
    if len(call.args) < 3:
        return hold(call)  # where(condition) gives indices
    condition, *values = call.args[:3]
    result: Tensor = call()
    for value, is_chosen in zip(values, (condition, ~condition), strict=True):
        if not (isinstance(value, Tensor) and value.requires_grad):
            call.add_constant(result, torch.where(is_chosen, value, torch.zeros_like(result)), source=value)
    return result


def filling(call: Call) -> Tensor:
    """``masked_fill``: the value is a constant that is added where the mask is True."""
    mask, value = call.argument(1, "mask"), call.argument(2, "value")
    result: Tensor = call()
    if not isinstance(value, Tensor) or not value.requires_grad:
        call.add_constant(result, torch.where(mask, value, torch.zeros_like(result)), source=value)
    return result


def padding(call: Call) -> Tensor:
    """``pad``: a border with a constant value other than zero is added."""
    result: Tensor = call()
    value = call.argument(3, "value")
    if value and call.argument(2, "mode", "constant") == "constant":
        call.add_constant(result, call.on(torch.zeros_like(call.args[0])))
    return result
