"""A look in the middle of a training leaves no trace in it."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from captum_fam.callbacks import ExplanationPanel
from captum_fam.callbacks.training_state import training_paused, without_wrappers
from tests.callbacks.trained_nets import (
    Flipped,
    SmallNet,
    check_same_state,
    labeled,
    random_states,
    small_panel,
    training_state,
)


def in_training() -> SmallNet:
    """A model with gradients, a batch norm that is kept in eval mode, and a hook of its user."""
    model = SmallNet()
    images, labels = labeled(6, seed=2)
    nn.functional.cross_entropy(model(images)[:, :3], labels).backward()
    model.features[1].eval()
    model.features.register_forward_hook(lambda *_: None)
    random.seed(5)
    np.random.seed(6)  # noqa: NPY002
    torch.manual_seed(7)
    return model


def test_everything_is_as_it_was() -> None:
    model = in_training()
    before = training_state(model)
    assert set(before["modes"].values()) == {True, False}
    panel = ExplanationPanel(Flipped(5, 3), Flipped(9, 4), k=3, layer=None)
    first, second = panel(model), panel(model)
    check_same_state(before, training_state(model))
    # The random transforms draw the same numbers in every look.
    assert torch.equal(first.explanation.attributions, second.explanation.attributions)


class Failing(Flipped):
    """Items from the third on fail once the data set has been opened."""

    fails = False

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if self.fails and index > 2:
            raise RuntimeError("the disk is gone")
        return super().__getitem__(index)


def test_everything_is_as_it_was_after_an_exception() -> None:
    model = in_training()
    before = training_state(model)
    queries = Failing(5, 3)
    panel = ExplanationPanel(queries, labeled(9, seed=4), layer="features")
    queries.fails = True
    with pytest.raises(RuntimeError, match="the disk is gone"):
        panel(model)
    with pytest.raises(ValueError, match="no-layer"):
        small_panel(layer="no-layer")(model)
    with torch.no_grad():
        model.head.weight.fill_(torch.nan)
    before["state"]["head.weight"].fill_(torch.nan)
    with pytest.raises(ValueError, match="NaN"):
        small_panel()(model)
    after = training_state(model)
    assert after["state"].pop("head.weight").isnan().all()
    before["state"].pop("head.weight")
    check_same_state(before, after)


@pytest.mark.parametrize("in_place", [True, False])
def test_buffers_that_change_in_eval_mode_get_their_values_back(in_place: bool) -> None:
    class Counting(SmallNet):
        calls: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

        def forward(self, x: Tensor) -> Tensor:
            self.calls = self.calls.add_(1) if in_place else self.calls + 1
            return super().forward(x)

    model = Counting()
    before = model.calls
    small_panel()(model)
    assert model.calls is before
    assert before == 0


def test_a_model_that_acts_when_its_mode_is_set_is_not_told() -> None:
    class Merging(SmallNet):
        def train(self, mode: bool = True) -> Merging:
            raise AssertionError("such as weights that are merged for good")

    model = Merging()
    with training_paused(model):
        assert not model.training
        assert not model.dropout.training
    assert model.training


def train(look: Any) -> dict[str, Tensor]:
    """Two epochs with shuffling, dropout and random transforms; ``look(model)`` between them and at the end."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    torch.manual_seed(0)
    model = SmallNet()
    optimizer = torch.optim.SGD(filter(lambda one: one.requires_grad, model.parameters()), 0.1, momentum=0.9)
    loader = DataLoader(Flipped(24, seed=1), batch_size=8, shuffle=True)
    for _ in range(2):
        for images, labels in loader:
            nn.functional.cross_entropy(model(images)[:, :3], labels).backward()
            optimizer.step()
            optimizer.zero_grad()
        look(model)
    return {**model.state_dict(), **dict(zip("abcd", random_states(), strict=True))}


def test_a_training_with_looks_ends_with_the_same_bits() -> None:
    plain = train(lambda model: None)
    panel = ExplanationPanel(Flipped(5, 3), Flipped(9, 4), k=3, layer="features")
    with_looks = train(panel)
    for name, value in plain.items():
        assert torch.equal(value, with_looks[name]), name


def test_wrappers_are_taken_off() -> None:
    model = SmallNet()
    assert without_wrappers(torch.compile(nn.DataParallel(model), backend="eager")) is model
    assert without_wrappers(abs) is abs


def test_the_wrapper_of_fabric_is_taken_off() -> None:
    fabric = pytest.importorskip("lightning.fabric", reason="needs Lightning")
    model = SmallNet()
    assert without_wrappers(fabric.Fabric(accelerator="cpu", devices=1).setup(model)) is model


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_random_numbers_of_the_gpu_are_as_they_were() -> None:
    model = in_training().cuda()
    torch.cuda.manual_seed(3)
    before, state = training_state(model), torch.cuda.get_rng_state()
    assert small_panel()(model).explanation.attributions.isfinite().all()
    check_same_state(before, training_state(model))
    assert torch.equal(state, torch.cuda.get_rng_state())
