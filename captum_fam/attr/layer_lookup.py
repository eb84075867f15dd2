"""From the name of a layer to its module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn


def resolve_layer(owner: Callable[..., Any], layer: nn.Module | str) -> nn.Module:
    """Look up the module of a layer.

    Args:
        owner: the model.
        layer: a module, or its dotted name in the model.

    Returns:
        The module of that name; ``layer`` itself where it is a module.

    Raises:
        ValueError: for a name that the model does not have; for scripted, traced and exported models, in which no hook
            runs.
        TypeError: for a layer that is neither a module nor a name; for a name where the model is no module.

    Example:
        >>> resolve_layer(model, "layer4") is model.layer4
        True
    """
    if isinstance(owner, torch.jit.ScriptModule) or isinstance(layer, torch.jit.ScriptModule):
        where = "forward_func" if isinstance(owner, torch.jit.ScriptModule) else "layer"
        raise ValueError(
            f"{where} is a scripted or traced module, in which no hook runs; pass the eager model that it was made from"
        )
    if isinstance(owner, torch.export.ExportedProgram):
        raise ValueError("forward_func is an exported program, in which no hook runs; pass the eager model")
    if isinstance(layer, nn.Module):
        return layer
    if not isinstance(layer, str):
        raise TypeError(f"layer must be a module or its dotted name, got {type(layer).__name__}")
    if not isinstance(owner, nn.Module):
        raise TypeError(f"layer {layer!r} is a name, but forward_func is no module to look it up in; pass the module")
    try:
        return owner.get_submodule(layer)
    except AttributeError as error:
        children = ", ".join(name for name, _ in owner.named_children())
        raise ValueError(
            f"layer {layer!r} is no submodule of {type(owner).__name__}; its children are {children}"
        ) from error
