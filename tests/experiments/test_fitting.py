from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from captum_fam.experiments.fitting import fit


def test_a_step_per_batch_goes_down_the_gradient_with_the_scheduled_rate() -> None:
    weight = nn.Parameter(torch.tensor(3.0))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    losses, weights = [], []
    for loss in fit([1.0, 2.0, 0.5], lambda batch: batch * weight**2, optimizer, schedule=schedule):
        losses.append(float(loss))
        weights.append(weight.item())
        assert not loss.requires_grad
    # w <- w - rate * 2 * batch * w, by hand, with rates 0.1, 0.05 and 0.025.
    assert losses == pytest.approx([9.0, 2 * 2.4**2, 0.5 * 1.92**2])
    assert weights == pytest.approx([2.4, 1.92, 1.872])


def test_nothing_happens_before_a_loss_is_asked_for() -> None:
    seen: list[int] = []

    def loss_of(batch: int) -> Tensor:
        seen.append(batch)
        return weight**2

    weight = nn.Parameter(torch.tensor(1.0))
    steps = fit(range(3), loss_of, torch.optim.SGD([weight], lr=0.1))
    assert not seen
    next(steps)
    assert seen == [0]
