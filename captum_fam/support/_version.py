"""Noticing that the weights behind an embedding have changed."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def version_of(forward_func: object, *others: object) -> object | None:
    """A value that changes when a model, or a support, gets other weights, buffers, submodules, modes or settings.

    In-place updates (optimizers, ``load_state_dict``, batch-norm statistics) raise PyTorch's version count of a tensor,
    and another tensor in its place has another address. Updates behind the back of PyTorch,
    ``parameter.data.mul_(...)`` of a momentum encoder, are seen where they reach the first or the last tensor of a
    module, of which one value is compared.

    Args:
        forward_func: a module, or a method of one, which then counts.
        others: what else the value depends on: modules, and plain values.

    Returns:
        None for a plain function: what it computes with cannot be seen.
    """
    owner = getattr(forward_func, "__self__", forward_func)
    if not isinstance(owner, nn.Module):
        return None
    roots = [part for part in (owner, *others) if isinstance(part, nn.Module)]
    return (
        getattr(forward_func, "__name__", ""),
        [part for part in others if not isinstance(part, nn.Module)],
        [torch.is_autocast_enabled(device) for device in ("cpu", "cuda")],
        [_settings(module) for root in roots for module in root.modules()],
        [_tensors(root) for root in roots],
    )


def _settings(module: nn.Module) -> tuple[object, ...]:
    """What a module is, and its numbers and names, the mode among them."""
    own = vars(module)
    return (
        id(module),
        id(own.get("forward")),
        *(value for value in own.values() if type(value) in (bool, int, float, str)),
    )


def _tensors(root: nn.Module) -> tuple[object, ...]:
    tensors = [*root.parameters(), *root.buffers()]
    ends = [tensor for tensor in (*tensors[:1], *tensors[-1:]) if tensor.numel() and not tensor.is_meta]
    return [_version(tensor) for tensor in tensors], [float(tensor.detach().flatten()[0]) for tensor in ends]


def _version(tensor: Tensor) -> tuple[int, int]:
    # Inference tensors cannot be changed in place, and have no version.
    return tensor.data_ptr(), -1 if tensor.is_inference() else tensor._version
