"""Every similarity against the float64 reference, and what all of them promise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from tests import reference
from tests.similarity.cases import (
    FROM_ZERO,
    SIMILARITIES,
    B,
    J,
    K,
    by_pair,
    close,
    draw,
    every_linear_similarity,
    every_similarity,
    shared_or_not,
    with_weights,
)

# Against the reference


@every_similarity
@shared_or_not
def test_score_and_explained_equal_the_reference(name: str, per_query: bool) -> None:
    query, support, _ = draw(per_query)
    close(SIMILARITIES[name].score(query, support), by_pair(reference.score, name, query, support))
    close(SIMILARITIES[name].explained(query, support), by_pair(reference.explained, name, query, support))


@every_similarity
@shared_or_not
def test_contributions_equal_the_reference(name: str, per_query: bool) -> None:
    query, support, weights = draw(per_query)
    each = by_pair(reference.contributions, name, query, support)
    expected = np.einsum("bk,bkj->bj", weights.numpy(), each)
    close(SIMILARITIES[name].contributions(query, support, weights), expected)


@every_linear_similarity
@shared_or_not
def test_weights_equal_the_reference_and_make_the_contributions(name: str, per_query: bool) -> None:
    query, support, weights = draw(per_query)
    each = by_pair(reference.linear_weights, name, query, support)
    actual = SIMILARITIES[name].weights(query, support, weights)
    close(actual, np.einsum("bk,bkj->bj", weights.numpy(), each))
    close(query * actual, SIMILARITIES[name].contributions(query, support, weights))


@every_similarity
def test_float32_agrees_with_the_float64_reference(name: str) -> None:
    query, support, weights = (one.float() for one in draw())
    actual = SIMILARITIES[name].contributions(query, support, weights)
    each = by_pair(reference.contributions, name, query.double(), support.double())
    expected = torch.from_numpy(np.einsum("bk,bkj->bj", weights.double().numpy(), each))
    assert actual.dtype == torch.float32
    assert (actual - expected).norm() <= 1e-5 * expected.norm()


# What contributions sum to


@every_similarity
@shared_or_not
def test_contributions_sum_to_what_is_explained(name: str, per_query: bool) -> None:
    query, support, weights = draw(per_query)
    similarity = SIMILARITIES[name]
    explained = (weights * similarity.explained(query, support)).sum(1)
    close(similarity.contributions(query, support, weights).sum(1), explained)


@pytest.mark.parametrize("name", sorted(set(SIMILARITIES) - set(FROM_ZERO)))
def test_the_whole_score_is_explained(name: str) -> None:
    query, support, _ = draw()
    close(SIMILARITIES[name].explained(query, support), SIMILARITIES[name].score(query, support))


@pytest.mark.parametrize("name", FROM_ZERO)
def test_the_zero_baseline_explains_the_gain_over_the_zero_vector(name: str) -> None:
    query, support, _ = draw()
    similarity = SIMILARITIES[name]
    from_zero = similarity.score(query, support) - similarity.score(torch.zeros_like(query), support)
    close(similarity.explained(query, support), from_zero)


@every_similarity
def test_a_call_gives_the_score(name: str) -> None:
    query, support, _ = draw()
    assert torch.equal(SIMILARITIES[name](query, support), SIMILARITIES[name].score(query, support))


@pytest.mark.parametrize("name", sorted(set(SIMILARITIES) - {"bilinear"}))  # a bilinear form need not
def test_a_support_equal_to_the_query_scores_above_another_one(name: str) -> None:
    query = torch.rand(1, J, dtype=torch.float64) + 0.5
    scores = SIMILARITIES[name].score(query, torch.cat([query, 0.1 * query.flip(1)]))
    assert scores[0, 0] > scores[0, 1]


# Several supports


@every_similarity
def test_a_support_counted_k_times_counts_once(name: str) -> None:
    query, support, _ = draw()
    one = SIMILARITIES[name].contributions(query, support[:1], torch.ones(B, 1, dtype=torch.float64))
    for count in (2, 5, 200):
        weights = torch.full((B, count), 1 / count, dtype=torch.float64)
        close(SIMILARITIES[name].contributions(query, support[:1].repeat(count, 1), weights), one)


@every_similarity
def test_the_order_of_the_supports_does_not_matter(name: str) -> None:
    query, support, weights = draw()
    close(
        SIMILARITIES[name].contributions(query, support.flip(0), weights.flip(1)),
        SIMILARITIES[name].contributions(query, support, weights),
    )


# Degenerate inputs


@every_similarity
def test_a_channel_that_is_zero_in_the_query_contributes_nothing_without_the_difference_rule(name: str) -> None:
    query, support, weights = draw()
    query[:, 2] = 0
    contributions = SIMILARITIES[name].contributions(query, support, weights)
    assert (contributions[:, 2] == 0).all() != name.endswith("/difference")


@every_similarity
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_degenerate_vectors_have_finite_answers(name: str, dtype: torch.dtype) -> None:
    one = torch.randn(J, dtype=dtype)
    rows = torch.stack([torch.zeros(J, dtype=dtype), one, -one, 1e-12 * one, 1e6 * one, one.roll(1)])
    weights = torch.full((6, 6), 1 / 6, dtype=dtype)
    similarity = SIMILARITIES[name]
    results = [similarity.score(rows, rows), similarity.explained(rows, rows)]
    results += with_weights(similarity, rows, rows, weights)
    assert all(result.isfinite().all() for result in results)


@every_linear_similarity
def test_a_query_of_zeros_has_no_contributions(name: str) -> None:
    _, support, weights = draw()
    zeros = torch.zeros(B, J, dtype=torch.float64)
    assert (SIMILARITIES[name].contributions(zeros, support, weights) == 0).all()
    close(SIMILARITIES[name].explained(zeros, support), np.zeros((B, K)))


@pytest.mark.parametrize("name", ["euclidean", "euclidean/difference", "squared-euclidean", "cosine", "dot"])
@pytest.mark.parametrize("scale", [1e-11, 1e-7, 1e7])
def test_the_sum_holds_at_any_scale_of_the_embedding(name: str, scale: float) -> None:
    query, support, weights = draw()
    query, support = scale * query, scale * support
    explained = (weights * SIMILARITIES[name].explained(query, support)).sum(1)
    total = SIMILARITIES[name].contributions(query, support, weights).sum(1)
    torch.testing.assert_close(total, explained, rtol=1e-9, atol=0)


# Gradients


@every_similarity
@shared_or_not
def test_the_score_is_differentiable_in_the_query(name: str, per_query: bool) -> None:
    query, support, _ = draw(per_query)
    assert torch.autograd.gradcheck(lambda z: SIMILARITIES[name].score(z, support), query.requires_grad_())


@pytest.mark.parametrize("name", ["cosine", "euclidean", "squared-euclidean", "mahalanobis"])
def test_the_gradient_is_finite_where_query_and_support_meet_or_vanish(name: str) -> None:
    rows = torch.stack([torch.zeros(J), torch.ones(J)]).double().requires_grad_()
    (gradient,) = torch.autograd.grad(SIMILARITIES[name].score(rows, rows.detach()).sum(), rows)
    assert gradient.isfinite().all()


# Memory


@every_similarity
def test_no_tensor_of_every_query_with_every_support_and_feature_is_made(
    name: str, largest_tensor: Callable[[], Any]
) -> None:
    query, support = torch.rand(8, J, dtype=torch.float64), torch.rand(300, J, dtype=torch.float64)
    weights = torch.full((8, 300), 1 / 300, dtype=torch.float64)
    similarity = SIMILARITIES[name]
    with largest_tensor() as seen:
        similarity.score(query, support)
        similarity.explained(query, support)
        with_weights(similarity, query, support, weights)
    assert 8 * 300 <= seen.numel < 8 * 300 * J
