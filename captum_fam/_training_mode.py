"""Telling whether a model would explain in training mode, where batches and dropout decide with the image."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

# These only hold other modules; their own flag says nothing.
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict, torch.fx.GraphModule)
_ACT_IN_TRAINING = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)


def module_in_training_mode(forward_func: Callable[..., Any]) -> str | None:
    """What acts otherwise in training mode and is in it: the name of a module's class; None: nothing.

    Batch norms, dropout and drop path count wherever they stand; the model itself too, which may ask for its flag. What
    only holds other modules does not count, nor a graph module, whose flag is that of its making.
    """
    model = getattr(forward_func, "__self__", forward_func)
    while isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        model = model.module
    if not isinstance(model, nn.Module):
        return None
    # The wrappers of this package (Views, SimilarityToSupport) do nothing by their own flag either.
    holds_others = isinstance(model, _CONTAINERS) or type(model).__module__.startswith("captum_fam.")
    is_compiled = hasattr(model, "_orig_mod")  # what torch.compile puts around a model
    if model.training and not holds_others and not is_compiled:
        return type(model).__name__
    for module in model.modules():
        # Drop path has a class of its own in every library.
        acts = isinstance(module, _ACT_IN_TRAINING) or "Drop" in type(module).__name__
        if module.training and (acts or "StochasticDepth" in type(module).__name__):
            return type(module).__name__
    return None


def training_mode_in_words(forward_func: Callable[..., Any]) -> str | None:
    """What to warn of where a model is explained in training mode; None: nothing."""
    name = module_in_training_mode(forward_func)
    if name is None:
        return None
    return (
        f"the model is in training mode ({name}): call model.eval(), or dropout and the statistics of the batch "
        "act on the map, and batch norms change with every call"
    )
