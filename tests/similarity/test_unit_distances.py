"""The Euclidean distance of unit vectors."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from captum_fam import LayerSimilarityCAM, SupportSet
from captum_fam.similarity import Cosine, Euclidean, UnitEuclidean, get_similarity, similarity_name
from captum_fam.similarity.registry import are_equal
from tests.similarity.cases import B, J, K, close, double, draw, on, processors, shared_or_not, with_weights

either = pytest.mark.parametrize("squared", [False, True])


def test_the_values_worked_by_hand() -> None:
    query, support = double([3.0, 4.0]), double([2.0, 0.0], [-1.0, 0.0], [6.0, 8.0])
    close(UnitEuclidean(squared=True)(query, support), [[-0.8, -3.2, 0.0]])
    close(UnitEuclidean()(query, support), [[-math.sqrt(0.8), -math.sqrt(3.2), 0.0]])
    ones = torch.ones(1, 1, dtype=torch.float64)
    close(UnitEuclidean(squared=True).contributions(query, support[:1], ones), [[1.2, 0.0]])
    close(UnitEuclidean().contributions(query, support[:1], ones), [[1.2 / (math.sqrt(2) + math.sqrt(0.8)), 0.0]])


@either
@shared_or_not
def test_the_score_is_the_distance_of_the_unit_vectors(squared: bool, per_query: bool) -> None:
    query, support, _ = draw(per_query)
    units = [vectors / vectors.square().sum(-1, keepdim=True).sqrt() for vectors in (query, support)]
    close(UnitEuclidean(squared)(query, support), Euclidean(squared)(*units))


@either
@shared_or_not
def test_contributions_sum_to_what_is_explained_and_are_query_times_weights(squared: bool, per_query: bool) -> None:
    query, support, weights = draw(per_query)
    similarity = UnitEuclidean(squared)
    contributions = similarity.contributions(query, support, weights)
    close(contributions, query * similarity.weights(query, support, weights))
    close(contributions.sum(1), (weights * similarity.explained(query, support)).sum(1))
    from_zero = similarity.score(query, support) - similarity.score(torch.zeros_like(query), support)
    close(similarity.explained(query, support), from_zero)


def test_the_square_has_twice_the_contributions_of_the_cosine() -> None:
    query, support, weights = draw()
    close(
        UnitEuclidean(squared=True).contributions(query, support, weights),
        2 * Cosine().contributions(query, support, weights),
    )


@either
def test_lengths_change_nothing(squared: bool) -> None:
    query, support, weights = draw()
    similarity = UnitEuclidean(squared)
    for scale in (1e-30, 1e30):
        close(similarity.score(scale * query, support / scale), similarity.score(query, support))
        close(
            similarity.contributions(scale * query, support / scale, weights),
            similarity.contributions(query, support, weights),
        )


@either
@pytest.mark.parametrize("which", ["query", "support", "both"])
def test_zeros_have_nothing_in_common_with_others(squared: bool, which: str) -> None:
    query, support, weights = draw()
    query = query if which == "support" else torch.zeros_like(query)
    support = support if which == "query" else torch.zeros_like(support)
    similarity = UnitEuclidean(squared)
    assert similarity(query, support).unique().tolist() == [pytest.approx(-2 if squared else -math.sqrt(2))]
    assert not similarity.contributions(query, support, weights).any()


@either
@shared_or_not
@processors
def test_opposite_weights_of_equal_supports_cancel_to_zero(squared: bool, per_query: bool, processor: str) -> None:
    query, support, _ = (tensor.float() for tensor in draw(per_query))
    support = torch.cat([support, 3 * support], -2)
    weights = torch.cat([torch.rand(B, K), torch.zeros(B, K)], 1)
    weights[:, K:] = -weights[:, :K]
    with on(processor):
        for values in with_weights(UnitEuclidean(squared), query, support, weights):
            assert values.shape == (B, J)
            assert not values.any()


@either
def test_the_gradient_of_the_score_is_that_of_autograd_in_double_precision(squared: bool) -> None:
    query, support, _ = draw()
    assert torch.autograd.gradcheck(lambda z: UnitEuclidean(squared)(z, support), query.requires_grad_())


@either
def test_parallel_supports_are_a_tie_and_the_first_class_is_predicted(squared: bool) -> None:
    query = torch.randn(50, 33)
    for row in query:
        support = SupportSet(torch.stack([3.3 * row, 0.7 * row, row]), [0, 1, 2])
        assert support.compare(row[None], None, UnitEuclidean(squared)).predicted.tolist() == [0]


def test_a_map_of_the_square_is_twice_the_map_of_the_cosine() -> None:
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 6, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
    )
    x, images = torch.rand(2, 3, 9, 7), torch.rand(3, 3, 9, 7)

    def maps(similarity: UnitEuclidean | Cosine) -> Tensor:
        return LayerSimilarityCAM(net.eval(), net[1], similarity=similarity).attribute(x, images)

    torch.testing.assert_close(maps(UnitEuclidean(squared=True)), 2 * maps(Cosine()), rtol=1e-4, atol=1e-6)


def test_settings_name_it_and_tell_the_square_apart() -> None:
    assert similarity_name(UnitEuclidean()) == "UnitEuclidean(squared=False)"
    assert are_equal(UnitEuclidean(squared=True), UnitEuclidean(squared=True))
    assert not are_equal(UnitEuclidean(), UnitEuclidean(squared=True))
    assert get_similarity(UnitEuclidean()).ignores_length
