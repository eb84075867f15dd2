"""Similarities that are made with a matrix."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from captum_fam.similarity import Bilinear, Mahalanobis, MahalanobisDifference, Similarity
from tests.similarity.cases import METRIC, SQUARE, draw


@pytest.mark.parametrize("make", [Bilinear, Mahalanobis, MahalanobisDifference])
def test_a_matrix_that_does_not_fit_is_refused(make: Callable[[Tensor], Similarity]) -> None:
    with pytest.raises(ValueError, match=r"matrix.*\(2, 3\)"):
        make(torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"matrix.*NaN"):
        make(torch.tensor([[1.0, 0.0], [0.0, float("nan")]]))
    for call in ("score", "explained"):
        with pytest.raises(ValueError, match=r"similarity.*2 features, got 5"):
            getattr(make(torch.eye(2)), call)(*draw()[:2])


def test_a_matrix_is_used_in_the_precision_of_the_embedding() -> None:
    query, support, _ = draw()
    for similarity in (Bilinear(SQUARE.float()), Mahalanobis(METRIC.float())):
        assert similarity.score(query, support).dtype == torch.float64
        assert similarity.score(query.float(), support.float()).dtype == torch.float32


def test_a_similarity_travels_with_a_module_and_its_state() -> None:
    similarity = Bilinear(SQUARE)
    assert list(similarity.state_dict()) == ["matrix"]
    assert nn.Sequential(similarity).float()[0].matrix.dtype == torch.float32
