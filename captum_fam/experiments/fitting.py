"""Gradient descent: the loop that all trainings share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import torch
from torch import Tensor

B = TypeVar("B")


def fit(
    batches: Iterable[B],
    loss_of: Callable[[B], Tensor],
    optimizer: torch.optim.Optimizer,
    *,
    schedule: torch.optim.lr_scheduler.LRScheduler | None = None,
    scaler: torch.amp.GradScaler | None = None,
) -> Iterator[Tensor]:
    """Take one step of an optimizer per batch.

    A step is taken when its loss is asked for, so that the caller's loop decides what happens between two steps.

    Args:
        batches: what ``loss_of`` takes, one per step.
        loss_of: the loss of a batch, a scalar.
        optimizer: of the parameters behind the loss.
        schedule: of the learning rate, moved on after each step. Default: None.
        scaler: of the gradients in float16. Default: None.

    Yields:
        The loss of each step, without its graph.

    Example:
        >>> weight = torch.tensor(3.0, requires_grad=True)
        >>> optimizer = torch.optim.SGD([weight], lr=0.1)
        >>> [round(float(loss), 4) for loss in fit([1.0, 2.0], lambda batch: batch * weight**2, optimizer)]
        [9.0, 11.52]
    """
    # A scaler that is not enabled scales by nothing.
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
