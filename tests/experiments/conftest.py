"""A small network on small scenes: every protocol in about a second."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from captum_fam.experiments.data.load import ScenesWithBoxes
from captum_fam.experiments.measures import Panel
from captum_fam.experiments.two_part_model import TwoPartModel
from tests.experiments.runs import make_model, make_panel, make_scenes


@pytest.fixture
def model() -> TwoPartModel:
    """A network without a head."""
    return make_model()


@pytest.fixture
def scenes(model: TwoPartModel) -> ScenesWithBoxes:
    """130 scenes as the network takes them."""
    return make_scenes(model)


@pytest.fixture
def panel() -> Callable[..., Panel]:
    """``panel(methods, *measures)``."""
    return make_panel
