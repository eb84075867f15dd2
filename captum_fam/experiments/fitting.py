"""Gradient descent: the loop of all trainings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
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


def fit_adamw(
    parameters: Iterable[Tensor],
    batches: Sequence[Batch],
    loss_of: Callable[[Batch], Tensor],
    learning_rate: float,
    weight_decay: float,
) -> None:
    """Train by AdamW, one step per batch, with a learning rate that falls to zero along a cosine.

    Args:
        parameters: what is trained.
        batches: arguments of ``loss_of``.
        loss_of: function from a batch to its loss, a scalar.
        learning_rate: initial learning rate.
        weight_decay: weight decay of the optimizer.

    Example:
        >>> weight = torch.tensor([3.0], requires_grad=True)
        >>> fit_adamw([weight], range(200), lambda _: weight.square().sum(), learning_rate=0.1, weight_decay=0.0)
        >>> bool(weight.abs() < 0.1)
        True
    """
    optimizer = torch.optim.AdamW(parameters, learning_rate, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(batches))
    for _ in fit(batches, loss_of, optimizer, schedule=schedule):
        pass  # The loop takes the steps.
