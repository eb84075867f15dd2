"""A network, its support and queries for the tests of explanations."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from torch import Tensor, nn

from captum_fam import SupportSet
from tests.explanation.names import NAMES


@pytest.fixture
def model(make_net: Callable[..., nn.Module]) -> nn.Module:
    return make_net(signed=True)


@pytest.fixture
def support(make_images: Callable[..., Tensor]) -> SupportSet:
    return SupportSet(make_images(6, seed=2), [0, 0, 1, 1, 1, 2], class_names=NAMES)


@pytest.fixture
def many_queries(make_images: Callable[..., Tensor]) -> Tensor:
    return make_images(5, seed=1)
