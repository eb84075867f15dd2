r"""Normalization layers, :math:`y = w\,(x - \mu) / \sigma + b`: the deviation is held; the mean is linear.

The shift b is a constant that is added. The gradient of the held form on x is :math:`g' - \overline{g'}` with
:math:`g' = g\,w / \sigma`. This is the gradient of a normalization without the term of the deviation (Ali et al., "XAI
for Transformers: Better Explanations through Conservative Propagation", ICML 2022). Every rule gives exactly the value
of the function of torch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from captum_fam.attr.way_back.call import Call, Pull, linear


def layer_norm(call: Call) -> Tensor:
    """``layer_norm``: the deviation is held, and the shift is a constant."""
    x, shape = call.args[0], call.argument(1, "normalized_shape")
    weight, bias = call.argument(2, "weight"), call.argument(3, "bias")
    eps = call.argument(4, "eps", 1e-5)
    dims = tuple(range(x.dim() - len(shape), x.dim()))

    def compute(value: Tensor) -> tuple[Tensor, Pull]:
        if torch.is_autocast_enabled(value.device.type):
            result = call.on(value)
            scale = (_wide(value).var(dims, correction=0, keepdim=True) + eps).rsqrt()
        else:  # the native function gives the same value together with 1 / deviation
            result, _, scale = torch.native_layer_norm(value, shape, weight, bias, eps)

        def pull(gradient: Tensor) -> Tensor:
            gradient = gradient if weight is None else gradient * weight
            scaled = gradient * scale
            return (scaled - scaled.mean(dims, keepdim=True)).to(x.dtype)

        return result, pull

    result = linear(x, compute)
    if bias is not None:
        call.add_constant(result, bias, -1 if len(shape) == 1 else None)
    return result


def rms_norm(call: Call) -> Tensor:
    r"""``rms_norm``, :math:`y = w\,x / \sqrt{\overline{x^2} + \epsilon}`: the root is held; no mean is subtracted."""
    x, shape = call.args[0], call.argument(1, "normalized_shape")
    weight, eps = call.argument(2, "weight"), call.argument(3, "eps")
    dims = tuple(range(x.dim() - len(shape), x.dim()))

    def compute(value: Tensor) -> tuple[Tensor, Pull]:
        result = call.on(value)
        wide = _wide(value)
        # The default of torch: without an eps, the machine epsilon of the dtype of the computation.
        added = torch.finfo(wide.dtype).eps if eps is None else eps
        scale = (wide.square().mean(dims, keepdim=True) + added).rsqrt()
        return result, lambda gradient: (gradient * scale if weight is None else gradient * weight * scale).to(x.dtype)

    return linear(x, compute)


def group_norm(call: Call) -> Tensor:
    """``group_norm``: as :func:`layer_norm`, over groups of channels and all positions."""
    x, groups = call.args[0], call.argument(1, "num_groups")
    return _grouped(
        call, x, groups, call.argument(2, "weight"), call.argument(3, "bias"), call.argument(4, "eps", 1e-5)
    )


def instance_norm(call: Call) -> Tensor:
    """``instance_norm``: as :func:`group_norm` with one group per channel; with running statistics as batch norm."""
    x = call.args[0]
    weight, bias, mean, variance = _of_batch_norm(call)
    eps = call.argument(7, "eps", 1e-5)
    if call.argument(5, "use_input_stats", True):
        return _grouped(call, x, x.shape[1], weight, bias, eps)
    return _affine(call, x, weight, bias, mean, variance, eps)


def batch_norm(call: Call) -> Tensor:
    """``batch_norm``: linear up to the shift with running statistics; the statistics of a batch are held."""
    x = call.args[0]
    weight, bias, mean, variance = _of_batch_norm(call)
    training, eps = call.argument(5, "training", False), call.argument(7, "eps", 1e-5)
    if training or mean is None:
        wide = _wide(x.detach()).transpose(0, 1).flatten(1)
        mean, variance = wide.mean(1), wide.var(1, correction=0)
    return _affine(call, x, weight, bias, mean, variance, eps)


def _of_batch_norm(call: Call) -> list[Any]:
    """Weight, bias, running mean and running variance."""
    names = ("weight", "bias", "running_mean", "running_var")
    return [call.argument(position, name) for position, name in enumerate(names, start=1)]


def _affine(
    call: Call, x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, variance: Tensor, eps: float
) -> Tensor:
    r"""A normalization with fixed statistics: :math:`y = s\,x + (b - s\,\mu)`, :math:`s = w / \sigma` per channel."""
    scale = (variance + eps).rsqrt()
    scale = scale if weight is None else scale * weight
    shift = -mean * scale if bias is None else bias - mean * scale
    channel_scale = scale.view(-1, *[1] * (x.dim() - 2))
    result = linear(x, lambda value: (call.on(value), lambda gradient: (gradient * channel_scale).to(x.dtype)))
    call.add_constant(result, shift, 1)
    return result


def _grouped(call: Call, x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """A normalization by the statistics of groups of channels per sample, ``(B, groups, channels * positions)``."""

    def compute(value: Tensor) -> tuple[Tensor, Pull]:
        result = call.on(value)
        grouped = _wide(value).reshape(len(x), groups, -1)
        scale = (grouped.var(2, correction=0, keepdim=True) + eps).rsqrt()

        def pull(gradient: Tensor) -> Tensor:
            if weight is not None:
                gradient = gradient * weight.view(-1, *[1] * (x.dim() - 2))
            scaled = gradient.reshape(len(x), groups, -1) * scale
            return (scaled - scaled.mean(2, keepdim=True)).view_as(x).to(x.dtype)

        return result, pull

    result = linear(x, compute)
    if bias is not None:
        call.add_constant(result, bias, 1)
    return result


def _wide(tensor: Tensor) -> Tensor:
    """The tensor in float32 or float64: squares in half precision overflow."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
