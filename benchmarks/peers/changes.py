"""What a call leaves behind in the model of its user, by a look before and after."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_GLOBAL_HOOKS = ("_global_forward_hooks", "_global_forward_pre_hooks", "_global_backward_hooks")


@dataclass(frozen=True)
class State:
    """All of a model that a call may change by mistake.

    Attributes:
        hooks: number of hooks in the model, and of those that torch keeps for all modules.
        modules: name and type of each module.
        training: whether each module is in training mode.
        requires_grad: whether each parameter asks for a gradient.
        grads: the gradient of each parameter.
        tensors: values of parameters and buffers.
        generator: state of the random numbers of torch.
    """

    hooks: int
    modules: tuple[tuple[str, type], ...]
    training: tuple[bool, ...]
    requires_grad: tuple[bool, ...]
    grads: tuple[Tensor | None, ...]
    tensors: tuple[Tensor, ...]
    generator: Tensor


def look(model: nn.Module) -> State:
    """The state of a model, copied.

    Args:
        model: the model.
    """
    modules, parameters = list(model.named_modules()), list(model.parameters())
    return State(
        hooks=sum(len(getattr(module, kind)) for _, module in modules for kind in _HOOKS)
        + sum(len(getattr(torch_module, kind)) for kind in _GLOBAL_HOOKS),
        modules=tuple((name, type(module)) for name, module in modules),
        training=tuple(module.training for _, module in modules),
        requires_grad=tuple(parameter.requires_grad for parameter in parameters),
        grads=tuple(None if one.grad is None else one.grad.clone() for one in parameters),
        tensors=tuple(tensor.detach().clone() for tensor in model.state_dict().values()),
        generator=torch.get_rng_state(),
    )


def changes(before: State, after: State) -> list[str]:
    """What differs, in words; empty for a model that is as it was.

    Args:
        before: the state before a call.
        after: the state after it.
    """
    found = []
    if after.hooks != before.hooks:
        found.append(f"{after.hooks - before.hooks} hooks left")
    if after.modules != before.modules:
        found.append("modules replaced")
    elif after.training != before.training:
        found.append("training mode changed")
    if after.requires_grad != before.requires_grad:
        found.append("requires_grad changed")
    if not _equal(before.grads, after.grads):
        found.append(".grad written")
    if not _equal(before.tensors, after.tensors):
        found.append("weights or buffers changed")
    if not torch.equal(before.generator, after.generator):
        found.append("random numbers drawn")
    return found


def _equal(before: tuple[Tensor | None, ...], after: tuple[Tensor | None, ...]) -> bool:
    if len(before) != len(after):
        return False
    pairs = zip(before, after, strict=True)
    return all(one is other if one is None or other is None else torch.equal(one, other) for one, other in pairs)
