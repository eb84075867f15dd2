"""Detecting that a model has changed since it embedded a support."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_PLAIN = {bool, int, float, str}


def version_of(forward_func: object, *others: object) -> object | None:
    """A value that changes when the weights, buffers, submodules, modes or settings of a model or support change.

    In-place updates (optimizers, ``load_state_dict``, batch-norm statistics) increase PyTorch's version count of a
    tensor, and a tensor that replaces another has another address. PyTorch does not count updates through ``.data``,
    such as ``parameter.data.mul_(...)`` of a momentum encoder. They are detected if they change the first value of one
    of eight tensors that are spread over the model, the first and the last among them.

    Args:
        forward_func: a module, or a method of a module.
        others: modules, tensors and plain values that the result depends on as well.

    Returns:
        A value to compare with ``==``; None if ``forward_func`` is a plain function, whose weights cannot be seen.

    Example:
        >>> model = nn.Linear(2, 2)
        >>> before = version_of(model)
        >>> _ = nn.init.zeros_(model.weight)
        >>> version_of(model) == before
        False
    """
    owner = getattr(forward_func, "__self__", forward_func)
    if not isinstance(owner, nn.Module):
        return None
    roots = [part for part in (owner, *others) if isinstance(part, nn.Module)]
    return (
        getattr(forward_func, "__name__", ""),
        [_plain_state(part) for part in others if not isinstance(part, nn.Module)],
        [(torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)) for device in ("cpu", "cuda")],
        [_state(root) for root in roots],
    )


def _plain_state(part: object) -> tuple[object, ...]:
    """The version of a value that is no module: its identity, or the text itself, and its tensors and modules."""
    if isinstance(part, Tensor):
        return _version(part)
    values = list(getattr(part, "__dict__", {}).values())
    tensors = [_version(value) for value in values if isinstance(value, Tensor)]
    modules = [_state(value) for value in values if isinstance(value, nn.Module)]
    return part if part is None or isinstance(part, str) else id(part), tensors, modules


def _state(root: nn.Module) -> tuple[object, ...]:
    """The settings of all modules, the version of every tensor, and one value each of eight tensors."""
    modules = list(root.modules())
    tensors = [tensor for module in modules for tensor in _tensors_of(module)]
    spread = [tensors[index * (len(tensors) - 1) // 7] for index in range(8)] if tensors else []
    sample = [tensor for tensor in spread if tensor.numel() and not tensor.is_meta]
    return (
        [_settings(module) for module in modules],
        [_version(tensor) for tensor in tensors],
        [float(tensor.detach().flatten()[0]) for tensor in sample],
    )


def _tensors_of(module: nn.Module) -> list[Tensor]:
    """The parameters and buffers of one module; ``parameters()`` and ``buffers()`` would take twice the time."""
    # By getattr, since a scripted module has these outside its __dict__.
    return [
        tensor
        for kind in ("_parameters", "_buffers")
        for tensor in getattr(module, kind).values()
        if tensor is not None
    ]


def _settings(module: nn.Module) -> tuple[object, ...]:
    """The identity of a module and of a patched ``forward``, and all numbers and texts, such as ``training``."""
    attributes = vars(module)
    numbers_and_texts = [value for value in attributes.values() if type(value) in _PLAIN]
    return id(module), id(attributes.get("forward")), numbers_and_texts


def _version(tensor: Tensor) -> tuple[int, int]:
    # Inference tensors have no version count, and cannot be changed in place outside inference mode.
    return tensor.data_ptr(), -1 if tensor.is_inference() else tensor._version
