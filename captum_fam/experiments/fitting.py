"""Gradient descent: the loop of all trainings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import torch
from torch import Tensor

Batch = TypeVar("Batch")


def fit(
    batches: Iterable[Batch],
    loss_of: Callable[[Batch], Tensor],
    optimizer: torch.optim.Optimizer,
    *,
    schedule: torch.optim.lr_scheduler.LRScheduler | None = None,
    scaler: torch.amp.GradScaler | None = None,
) -> Iterator[Tensor]:
    """Take one step of an optimizer per batch.

    A step is taken when the caller asks for the next loss. So the loop of the caller decides what happens between two
    steps.

    Args:
        batches: arguments of ``loss_of``, one batch per step.
        loss_of: function from a batch to its loss, a scalar.
        optimizer: optimizer of the parameters on which the loss depends.
        schedule: schedule of the learning rate, which advances after each step. Default: None.
        scaler: scaler of the gradients, for training in float16. Default: None.

    Yields:
        The loss of each step, detached.

    Example:
        >>> weight = torch.tensor(3.0, requires_grad=True)
        >>> optimizer = torch.optim.SGD([weight], lr=0.1)
        >>> [round(float(loss), 4) for loss in fit([1.0, 2.0], lambda batch: batch * weight**2, optimizer)]
        [9.0, 11.52]
    """
    # A scaler that is not enabled leaves the gradients as they are.
    scaler = scaler or torch.amp.GradScaler(enabled=False)
    for batch in batches:
        loss = loss_of(batch)
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        if schedule is not None:
            schedule.step()
        yield loss.detach()
