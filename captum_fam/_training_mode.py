"""Detecting a model in training mode, where the embedding of an image also depends on its batch and on dropout."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

# Classes that only hold other modules: their own training flag changes nothing.
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict, torch.fx.GraphModule)
_ACTING_IN_TRAINING = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)


def module_in_training_mode(forward_func: Callable[..., Any]) -> str | None:
    """The class name of the first module that is in training mode and acts differently there.

    These modules count: batch norms, dropout and drop path anywhere in the model, and the model itself, whose
    ``forward`` may depend on its training flag. These do not: containers such as ``nn.Sequential``, and graph modules,
    whose flag was set when the graph was made.

    Args:
        forward_func: a module, a method of a module, or any other callable.

    Returns:
        The name of the class; None if there is no such module, or ``forward_func`` is no module.

    Example:
        >>> module_in_training_mode(nn.Sequential(nn.Linear(2, 2), nn.Dropout()))
        'Dropout'
        >>> module_in_training_mode(nn.Sequential(nn.Linear(2, 2), nn.Dropout()).eval()) is None
        True
    """
    model = getattr(forward_func, "__self__", forward_func)
    while isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        model = model.module
    if not isinstance(model, nn.Module):
        return None
    # The wrappers of this package (Views, SimilarityToSupport) do not depend on their own flag either.
    holds_others = isinstance(model, _CONTAINERS) or type(model).__module__.startswith("captum_fam.")
    is_compiled = hasattr(model, "_orig_mod")  # the wrapper that torch.compile puts around a model
    if model.training and not holds_others and not is_compiled:
        return type(model).__name__
    for module in model.modules():
        # Every library has its own class for drop path, so that its name must do.
        acts = isinstance(module, _ACTING_IN_TRAINING) or "Drop" in type(module).__name__
        if module.training and (acts or "StochasticDepth" in type(module).__name__):
            return type(module).__name__
    return None


@contextmanager
def buffers_kept(forward_func: Callable[..., Any]) -> Iterator[None]:
    """Give a model in training mode its buffers back at the end: every pass changes the statistics of batch norms.

    Args:
        forward_func: as for :func:`module_in_training_mode`. The buffers of a model in eval mode are not copied.

    Example:
        >>> norm = nn.BatchNorm1d(1)
        >>> with buffers_kept(norm):
        ...     _ = norm(torch.tensor([[3.0], [5.0]]))
        >>> norm.running_mean
        tensor([0.])
    """
    model = getattr(forward_func, "__self__", forward_func)
    buffers = model.buffers() if isinstance(model, nn.Module) and module_in_training_mode(model) is not None else ()
    kept = [(buffer, buffer.clone()) for buffer in buffers]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in kept:
                buffer.copy_(value)


def training_mode_in_words(forward_func: Callable[..., Any]) -> str | None:
    """The warning for a model that is explained in training mode.

    Args:
        forward_func: as for :func:`module_in_training_mode`.

    Returns:
        The text of the warning; None if no module is in training mode.

    Example:
        >>> training_mode_in_words(nn.Dropout())[:42]
        'the model is in training mode (Dropout): c'
    """
    name = module_in_training_mode(forward_func)
    if name is None:
        return None
    return (
        f"the model is in training mode ({name}): call model.eval(); otherwise dropout and batch statistics change "
        "the map, and every call of a method changes the batch norms, which only explain and explain_pairs restore"
    )
