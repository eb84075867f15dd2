"""Embeddings that cannot be compared, and numbers that are not whole, are refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from captum_fam.support.checks import check_embedding_sizes, whole_number


def test_embeddings_on_another_device_are_refused() -> None:
    with pytest.raises(ValueError, match=r"support .*meta .*cpu"):
        check_embedding_sizes(torch.ones(2, 4), torch.ones(3, 4, device="meta"))


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64])
def test_supports_that_are_no_real_numbers_are_refused_and_named(dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match=f"the bank .*{dtype}"):
        check_embedding_sizes(torch.rand(2, 3), torch.ones(2, 4, 3, dtype=dtype), "the bank")


@pytest.mark.parametrize("value", [3, np.int32(3), np.uint64(3), np.array(3), torch.tensor(3)])
def test_whole_numbers_of_any_type(value: Any) -> None:
    number = whole_number(value, "k")
    assert number == 3
    assert type(number) is int


@pytest.mark.parametrize(
    "value", [3.0, "3", True, np.True_, float("nan"), None, [3], torch.tensor(3.0), torch.tensor([3]), np.array([3])]
)
def test_what_is_no_whole_number_is_refused(value: Any) -> None:
    with pytest.raises(TypeError, match="k must be a whole number, got"):
        whole_number(value, "k")


@pytest.mark.parametrize("value", [0, -3])
def test_a_number_that_is_too_small_is_refused(value: int) -> None:
    with pytest.raises(ValueError, match=f"k must be at least 1, got {value}"):
        whole_number(value, "k")
