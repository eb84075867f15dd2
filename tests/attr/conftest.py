"""What most tests of the attributions explain; a file with another model or support has a fixture of its own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from torch import Tensor, nn


@pytest.fixture
def net(make_net: Callable[..., nn.Module]) -> nn.Module:
    """A layer of 6 channels, GAP, and a head with a bias: embeddings of 4 features."""
    return make_net(head="linear-bias")


@pytest.fixture
def x(make_images: Callable[..., Tensor]) -> Tensor:
    """Three queries, ``(3, 3, 7, 5)``."""
    return make_images(3, seed=1)


@pytest.fixture
def support(make_images: Callable[..., Tensor]) -> Tensor:
    """Four images of one class, ``(4, 3, 7, 5)``."""
    return make_images(4, seed=2)
