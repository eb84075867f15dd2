"""Euclidean and Mahalanobis distances, and both of their splits."""

from __future__ import annotations

import math

import pytest
import torch

from captum_fam import functional as F
from captum_fam.similarity import (
    Euclidean,
    EuclideanDifference,
    Mahalanobis,
    MahalanobisDifference,
    Similarity,
)
from tests import reference
from tests.similarity.cases import SIMILARITIES, WITHOUT_WEIGHTS, J, by_pair, close, double, draw

# By hand: z = (1, 2), t = (2, 0), so that d = (-1, 2) and the distance is the root of 5

HAND: dict[str, tuple[Similarity, float, list[float]]] = {
    "squared-euclidean": (Euclidean(squared=True), -5, [3, -4]),
    "squared-euclidean/difference": (EuclideanDifference(squared=True), -5, [-1, -4]),
    "euclidean": (Euclidean(), -math.sqrt(5), [3 / (2 + math.sqrt(5)), -4 / (2 + math.sqrt(5))]),
    "euclidean/difference": (EuclideanDifference(), -math.sqrt(5), [-1 / math.sqrt(5), -4 / math.sqrt(5)]),
    "mahalanobis": (Mahalanobis(double([1, 0], [0, 2])), -9, [3, -8]),
    "mahalanobis/difference": (MahalanobisDifference(double([1, 0], [0, 2])), -9, [-1, -8]),
}


@pytest.mark.parametrize("name", HAND)
def test_score_and_contributions_by_hand(name: str) -> None:
    similarity, score, contributions = HAND[name]
    query, support, weights = double([1, 2]), double([2, 0]), double([1])
    close(similarity.score(query, support), [[score]])
    close(similarity.contributions(query, support, weights), [contributions])


def test_mahalanobis_with_the_identity_is_the_squared_distance() -> None:
    query, support, weights = draw()
    identity = torch.eye(J, dtype=torch.float64)
    for plain, general in (
        (Euclidean(squared=True), Mahalanobis(identity)),
        (EuclideanDifference(squared=True), MahalanobisDifference(identity)),
    ):
        close(general.score(query, support), plain.score(query, support))
        close(general.contributions(query, support, weights), plain.contributions(query, support, weights))


def test_mahalanobis_accepts_a_semi_definite_matrix() -> None:
    direction = torch.randn(J, 1, dtype=torch.float64)
    query, support, _ = draw()
    projected = (query @ direction - (support @ direction).T).square()
    close(Mahalanobis(direction @ direction.T).score(query, support), -projected)


@pytest.mark.parametrize("squared", [True, False])
def test_the_difference_split_gives_dead_channels_the_top_weight_and_the_default_does_not(squared: bool) -> None:
    # The object's channels (the first two) match well but not exactly; the last two are dead in both images.
    query, support, weights = double([3.0, 2.0, 0, 0]), double([2.6, 2.3, 0, 0]), double([1])
    naive = F.minmax(EuclideanDifference(squared).contributions(query, support, weights))[0]
    default = F.minmax(Euclidean(squared).contributions(query, support, weights))[0]
    assert naive[2:].tolist() == [1.0, 1.0]
    assert naive[:2].max() < 1
    assert default[2:].tolist() == [0.0, 0.0]
    assert default[:2].min() > 0


def test_a_support_equal_to_the_query_has_distance_zero() -> None:
    query = torch.rand(1, J, dtype=torch.float64)
    for similarity, total in ((Euclidean(), query.norm().item()), (EuclideanDifference(), 0)):
        assert similarity.score(query, query).item() == 0
        assert similarity.contributions(query, query, double([1])).sum().item() == pytest.approx(total)


@pytest.mark.parametrize("squared", [True, False])
def test_distances_of_near_duplicates_keep_their_digits_in_float32(squared: bool) -> None:
    query = 10 * torch.rand(2, 64)
    support = query[:1] + 1e-4 * torch.randn(3, 64)
    exact = (query.double()[:, None] - support.double()).norm(dim=2)
    exact = -exact.square() if squared else -exact
    actual = Euclidean(squared).score(query, support).double()
    torch.testing.assert_close(actual, exact, rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", ["squared-euclidean", "euclidean", "mahalanobis"])
def test_what_a_distance_explains_keeps_its_digits_beside_long_supports(name: str) -> None:
    query, support, _ = draw()
    query, support = (1e-3 * query).float(), (1e3 * support).float()
    exact = by_pair(reference.explained, name, query.double(), support.double())
    bound = SIMILARITIES[name].bound(query, support).double()
    error = (SIMILARITIES[name].explained(query, support).double() - torch.from_numpy(exact)).abs()
    assert (error <= 1e-5 * bound).all()


@pytest.mark.parametrize("name", WITHOUT_WEIGHTS)
def test_the_difference_split_has_no_linear_weights(name: str) -> None:
    with pytest.raises(ValueError, match=r"similarity (Euclidean|Mahalanobis)Difference.*weights"):
        SIMILARITIES[name].weights(*draw())


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_mahalanobis_refuses_a_matrix_that_is_no_metric(scale: float) -> None:
    with pytest.raises(ValueError, match="matrix must be symmetric"):
        Mahalanobis(scale * double([1, 0.5], [0, 1]))
    with pytest.raises(ValueError, match="positive semi-definite, got the eigenvalue"):
        Mahalanobis(scale * double([1, 0], [0, -1]))
