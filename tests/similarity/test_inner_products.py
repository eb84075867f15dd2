"""Cosine, dot product and bilinear form."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from captum_fam.similarity import Bilinear, Cosine, Dot, Similarity
from tests.similarity.cases import B, J, close, double, draw

# By hand: z = (1, 2), t = (2, 0)

HAND: dict[str, tuple[Similarity, float, list[float]]] = {
    "cosine": (Cosine(), 1 / math.sqrt(5), [1 / math.sqrt(5), 0]),
    "dot": (Dot(), 2, [2, 0]),
    "bilinear": (Bilinear(double([0, 1], [2, 0])), 8, [0, 8]),
}


@pytest.mark.parametrize("name", HAND)
def test_score_and_contributions_by_hand(name: str) -> None:
    similarity, score, contributions = HAND[name]
    query, support, weights = double([1, 2]), double([2, 0]), double([1])
    close(similarity.score(query, support), [[score]])
    close(similarity.contributions(query, support, weights), [contributions])


def test_the_cosine_of_a_query_of_zeros_has_no_weights() -> None:
    _, support, weights = draw()
    assert (Cosine().weights(torch.zeros(B, J, dtype=torch.float64), support, weights) == 0).all()


@pytest.mark.parametrize(
    ("of_query", "of_support"), [(1, 1e20), (1e-13, 1), (1e-20, 1), (1, 3e38), (1e20, 1e-20), (1e-38, 1e-38)]
)
def test_the_cosine_and_its_weights_hold_at_any_scale_of_float32(of_query: float, of_support: float) -> None:
    query, support, weights = (one.float() for one in draw())
    similarity, scaled, plain = Cosine(), (of_query * query, of_support * (support / 4)), (query, support)
    near: Any = {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(similarity.score(*scaled), similarity.score(*plain), **near)
    contributions = similarity.contributions(*scaled, weights)
    torch.testing.assert_close(contributions, similarity.contributions(*plain, weights), **near)
    slopes = similarity.weights(*scaled, weights).double() * of_query
    torch.testing.assert_close(slopes, similarity.weights(*plain, weights).double(), **near)
