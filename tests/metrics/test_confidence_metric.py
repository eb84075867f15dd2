from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from captum_fam.metrics import AverageDrop, IncreaseInConfidence


@pytest.mark.parametrize("make", [AverageDrop, IncreaseInConfidence])
def test_masked_scores_tell_small_scores_from_flat_and_nan_maps(make: Any) -> None:
    scores = torch.tensor([0.5, 0.5, 0.5, 0.0, math.nan, 0.5])
    masked = torch.tensor([0.4, math.nan, math.nan, 0.1, 0.1, 0.4])
    maps = torch.rand(6, 1, 2, 2)
    maps[1], maps[2, 0, 0, 0] = 0.3, math.nan
    metric = make()
    metric.update(scores, masked, maps)
    assert metric.result()[2:6] == (2, 2, 1, 1)
    blind = make()
    blind.update(scores, masked)
    assert blind.result()[2:6] == (2, 3, 0, 1)


def test_a_flat_map_is_left_out_though_its_masked_score_is_a_number() -> None:
    metric = AverageDrop()
    metric.update(torch.tensor([0.5, 0.5]), torch.tensor([0.0, 0.25]), torch.stack([torch.zeros(2, 2), torch.eye(2)]))
    assert metric.compute() == 0.5


@pytest.mark.parametrize("make", [AverageDrop, IncreaseInConfidence])
def test_the_way_from_maps_to_masks_says_which_maps_are_empty(make: Any) -> None:
    maps = torch.stack([-torch.rand(2, 2), torch.full((2, 2), 0.3), torch.eye(2)])
    scores, masked = torch.full((3,), 0.5), torch.full((3,), 0.25)
    for energy, empty in (("minmax", 1), ("positive", 1)):
        metric = make(energy=energy)
        metric.update(scores, masked, maps)
        assert metric.samples.empty.tolist() == [energy == "positive", energy == "minmax", False]
        assert metric.result()[2:6] == (2, 0, empty, 0)
