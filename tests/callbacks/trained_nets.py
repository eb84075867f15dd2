"""A small network in the middle of a training, data for it, and all that a look must leave as it was."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from captum_fam.callbacks import ExplanationPanel

CLASSES = 3


class SmallNet(nn.Module):
    """Convolution -> batch norm -> ReLU (``features``) -> dropout -> pooling -> ``head``; one parameter is frozen."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            self.features = nn.Sequential(nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.BatchNorm2d(6), nn.ReLU())
            self.dropout = nn.Dropout2d(0.3)
            self.head = nn.Linear(6, 5)
        self.head.bias.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        embedding: Tensor = self.head(self.dropout(self.features(x)).mean((2, 3)))
        return embedding


def labeled(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images ``(count, 3, 14, 10)`` of three classes, each brighter in a channel of its own, and labels."""
    labels = torch.arange(count) % CLASSES
    images = torch.rand(count, 3, 14, 10, generator=torch.Generator().manual_seed(seed))
    images[torch.arange(count), labels] += 0.4
    return images, labels


class Flipped(Dataset[Any]):
    """Images that Python, NumPy and PyTorch flip and shift at random."""

    def __init__(self, count: int, seed: int) -> None:
        self.images, self.labels = labeled(count, seed)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = self.images[index].flip(2) if random.random() < 0.5 else self.images[index]
        image = image + 0.1 * torch.rand(()) + 0.1 * float(np.random.rand())  # noqa: NPY002
        return image, int(self.labels[index])


def small_panel(**options: Any) -> ExplanationPanel:
    """A panel of five queries, of which two are shown, and nine images in the bank."""
    options = {"shown": 2, "k": 3, "layer": "features", **options}
    return ExplanationPanel(labeled(5, seed=3), labeled(9, seed=4), **options)


def random_states() -> list[Tensor]:
    """The states of the random number generators."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    states = [torch.tensor(python[1]), torch.from_numpy(np.array(numpy[1], np.int64)), torch.tensor(numpy[2])]
    return [*states, torch.get_rng_state()]


def training_state(model: nn.Module) -> dict[str, Any]:
    """All that belongs to a model in the middle of its training, with copies of its tensors."""
    parts = dict(model.named_modules())
    hooks = {
        f"{name}.{kind}": list(value)
        for name, part in parts.items()
        for kind, value in vars(part).items()
        if kind.endswith("hooks")
    }
    return {
        "state": {name: value.clone() for name, value in model.state_dict().items()},
        "modes": {name: part.training for name, part in parts.items()},
        "grads": {name: None if one.grad is None else one.grad.clone() for name, one in model.named_parameters()},
        "requires_grad": {name: one.requires_grad for name, one in model.named_parameters()},
        "hooks": hooks,
        "random": dict(enumerate(random_states())),
        "grad_mode": {
            "enabled": torch.is_grad_enabled(),
            "deterministic": torch.are_deterministic_algorithms_enabled(),
        },
    }


def check_same_state(before: dict[str, Any], after: dict[str, Any]) -> None:
    """Every entry is equal, tensors bit by bit."""
    assert before.keys() == after.keys()
    for kind, values in before.items():
        assert values.keys() == after[kind].keys()
        for name, value in values.items():
            other = after[kind][name]
            equal = torch.equal(value, other) if isinstance(value, Tensor) else value == other
            assert equal, f"{kind} {name}"
