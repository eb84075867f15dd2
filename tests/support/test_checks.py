"""Embeddings that cannot be compared are refused."""

from __future__ import annotations

import pytest
import torch

from captum_fam.support.checks import check_embedding_sizes


def test_embeddings_on_another_device_are_refused() -> None:
    with pytest.raises(ValueError, match=r"support .*meta .*cpu"):
        check_embedding_sizes(torch.ones(2, 4), torch.ones(3, 4, device="meta"))


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64])
def test_supports_that_are_no_real_numbers_are_refused_and_named(dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match=f"the bank .*{dtype}"):
        check_embedding_sizes(torch.rand(2, 3), torch.ones(2, 4, 3, dtype=dtype), "the bank")
