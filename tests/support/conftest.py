"""Networks, images and search steps for the tests of supports."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from torch import Tensor, nn

from captum_fam.support import search


@pytest.fixture
def net(make_net: Callable[..., nn.Module]) -> nn.Module:
    return make_net(head="linear")


@pytest.fixture
def other_net(make_net: Callable[..., nn.Module]) -> nn.Module:
    return make_net(head="linear", seed=7)


@pytest.fixture
def images(make_images: Callable[..., Tensor]) -> Tensor:
    return make_images(4, seed=2)


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of a few rows and queries, so that small banks are searched in many."""
    monkeypatch.setattr(search, "STEP_BYTES", 4 * (4 + 2 * 17) * 60)
    monkeypatch.setattr(search, "STEP_QUERIES", 4)
