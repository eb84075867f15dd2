"""What has cancelled to rounding, and what is small and real."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from captum_fam.rounding import drop_rounding, drop_rounding_of_sum

DOUBLE = torch.float64


def tensor(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=DOUBLE)


def test_a_row_is_dropped_where_its_largest_contribution_is_within_the_largest_noise() -> None:
    query = tensor([1, 10], [1, 10], [1, 10], [0, 0])
    contributions = tensor([1e-9, 3e-9], [1e-9, 5e-9], [0, 0], [1, 1])
    noise = tensor([4e-9, 1e-12], [4e-9, 1e-12], [1, 1], [1e-9, 1e-9])
    actual = drop_rounding(
        contributions, query, are_weights=False, bound=torch.ones(4, 1).double(), noise=lambda: noise
    )
    assert actual.tolist() == [[0, 0], [1e-9, 5e-9], [0, 0], [1, 1]]


def test_a_row_above_the_bound_is_not_looked_at() -> None:
    def noise() -> Tensor:
        raise AssertionError("no closer look is due")

    contributions = tensor([1e-3, 1.0], [0, 0])
    actual = drop_rounding(
        contributions, torch.ones(2, 2), are_weights=False, bound=tensor([1e-2], [1e-2]), noise=noise
    )
    assert actual is contributions


def test_weights_of_features_that_the_query_lacks_are_kept() -> None:
    query, weights = tensor([1, 0], [1, 0]), tensor([1e-17, 1.0], [1e-17, 1e-17])
    noise = torch.full((2, 2), 1e-15, dtype=DOUBLE)
    actual = drop_rounding(weights, query, are_weights=True, bound=tensor([1], [1]), noise=lambda: noise)
    assert actual.tolist() == [[1e-17, 1.0], [0, 0]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_sum_that_cancels_is_zero_and_a_small_one_that_is_real_stays(dtype: torch.dtype) -> None:
    terms = torch.rand(6, 1, 50, dtype=dtype)
    terms = torch.cat([terms, -terms.flip(0)])  # summed in an order that leaves rounding behind
    total, magnitude = torch.zeros(1, 50, dtype=dtype), terms.abs().sum(0)
    for term in terms:
        total += term
    ones = torch.ones(1, 50, dtype=dtype)
    assert total.any()
    assert not drop_rounding_of_sum(total, magnitude, ones, are_weights=False, count=12).any()
    real = total + 1e3 * torch.finfo(dtype).eps
    assert torch.equal(drop_rounding_of_sum(real, magnitude, ones, are_weights=False, count=12), real)


def test_a_sum_of_weights_is_judged_by_the_query_that_they_are_for() -> None:
    # Lost in the contributions, as the query is zero where the weight is large, and kept as a weight.
    query, weights, magnitude = tensor([1, 0]), tensor([1e-17, 1.0]), tensor([1, 1])
    kept = drop_rounding_of_sum(weights, magnitude, query, are_weights=True, count=2)
    assert torch.equal(kept, weights)
    lost = drop_rounding_of_sum(query * weights, magnitude, query, are_weights=False, count=2)
    assert not lost.any()
