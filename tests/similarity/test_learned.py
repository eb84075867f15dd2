"""Learned metrics, whose quadrature Captum keeps in float32: no answer is better than 1e-7."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from captum_fam.similarity import Dot, Learned, get_similarity
from tests.similarity.cases import B, J, K, close, draw, on, processors, shared_or_not, with_weights

QUADRATURE = 1e-6


def saturating(query: Tensor, support: Tensor) -> Tensor:
    return torch.tanh(query * support).sum(1)


def squared_dot(query: Tensor, support: Tensor) -> Tensor:
    return (query * support).sum(1).square()


@shared_or_not
def test_a_metric_that_is_a_sum_over_features_is_split_into_its_terms(per_query: bool) -> None:
    query, support, weights = draw(per_query)
    pairs = query[:, None] * support
    expected = (weights[:, :, None] * torch.tanh(pairs)).sum(1)
    close(Learned(saturating).contributions(query, support, weights), expected, QUADRATURE)


@shared_or_not
def test_a_squared_dot_product_is_split_in_the_proportions_of_the_dot_product(per_query: bool) -> None:
    query, support, weights = draw(per_query)
    pairs = query[:, None] * support  # the path integral of 2 a (z.t) z_j t_j over a is (z.t) z_j t_j
    expected = (weights[:, :, None] * pairs * pairs.sum(2, keepdim=True)).sum(1)
    close(Learned(squared_dot).contributions(query, support, weights), expected, QUADRATURE)


def test_integrated_gradients_equal_a_fine_quadrature_of_the_slope() -> None:
    query, support, weights = draw()

    def kernel(z: Tensor, t: Tensor) -> Tensor:
        return torch.exp(-(z - t).square().sum(1) / 4)

    alphas = (np.arange(20000) + 0.5) / 20000  # midpoints
    expected = np.zeros((B, J))
    for b, z in enumerate(query.numpy()):
        for k, t in enumerate(support.numpy()):
            gap = alphas[:, None] * z - t
            slope = np.exp(-(gap**2).sum(1) / 4)[:, None] * (-gap / 2)
            expected[b] += weights[b, k].item() * z * slope.mean(0)
    close(Learned(kernel).contributions(query, support, weights), expected, QUADRATURE)


@shared_or_not
def test_learned_contributions_sum_to_the_gain_over_the_zero_vector(per_query: bool) -> None:
    query, support, weights = draw(per_query)
    network = nn.Sequential(nn.Linear(2 * J, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    similarity = get_similarity(lambda z, t: network(torch.cat([z, t], 1)).squeeze(1))
    assert isinstance(similarity, Learned)
    with torch.no_grad():
        gain = similarity.score(query, support) - similarity.score(torch.zeros_like(query), support)
        close(similarity.explained(query, support), gain)
        close(similarity.contributions(query, support, weights).sum(1), (weights * gain).sum(1), QUADRATURE)
    assert all(parameter.grad is None for parameter in network.parameters())


def test_a_learned_metric_that_is_a_dot_product_equals_the_similarity_of_that_name() -> None:
    query, support, weights = draw()
    learned = Learned(lambda z, t: (z * t).sum(1), n_steps=3)
    close(learned.score(query, support), Dot().score(query, support))
    close(learned.weights(query, support, weights), Dot().weights(query, support, weights), QUADRATURE)


@shared_or_not
def test_only_supports_with_a_weight_are_followed_and_one_at_a_time(per_query: bool) -> None:
    query, support, weights = draw(per_query)
    weights[:, 1:3] = 0
    followed: list[tuple[int, ...]] = []

    def metric(z: Tensor, t: Tensor) -> Tensor:
        if z.requires_grad:
            followed.append(tuple(z.shape))
        return (z * t).sum(1)

    with torch.no_grad():
        actual = Learned(metric, n_steps=7).weights(query, support, weights)
    close(actual, Dot().weights(query, support, weights), QUADRATURE)
    assert followed == [(7 * B, J)] * (K - 2)


@shared_or_not
def test_a_support_is_followed_for_the_queries_that_it_counts_for(per_query: bool) -> None:
    query, support, weights = draw(per_query)
    weights[0, 0] = weights[2, 0] = weights[1, 3] = 0
    weights[:, 2] = 0
    followed: list[int] = []

    def metric(z: Tensor, t: Tensor) -> Tensor:
        if z.requires_grad:
            followed.append(len(z))
        return (z * t).sum(1)

    actual = Learned(metric, n_steps=7).contributions(query, support, weights)
    close(actual, Dot().contributions(query, support, weights), QUADRATURE)
    assert followed == [7 * 1, 7 * 3, 7 * 2]


@shared_or_not
def test_supports_that_count_for_no_query_contribute_nothing(per_query: bool) -> None:
    query, support, weights = draw(per_query)
    found = Learned(squared_dot).contributions(query, support, torch.zeros_like(weights))
    assert torch.equal(found, torch.zeros_like(query))


def test_a_learned_metric_works_on_what_was_made_in_inference_mode() -> None:
    query, support, weights = draw()
    expected = Learned(squared_dot).contributions(query, support, weights)
    with torch.inference_mode():
        mine = [one.clone() for one in (query, support, weights)]
        assert torch.equal(Learned(squared_dot).contributions(*mine), expected)
    assert torch.equal(Learned(squared_dot).contributions(*mine), expected)


def test_a_metric_that_jumps_at_the_zero_vector_is_warned_of() -> None:
    query, support, weights = draw()
    with pytest.warns(UserWarning, match=r"do not sum to score\(Z\) - score\(0\)"):
        Learned(torch.nn.functional.cosine_similarity).contributions(query, support, weights)


def test_a_metric_that_is_infinite_at_the_zero_vector_is_refused() -> None:
    query, support, weights = draw()
    logarithm = Learned(lambda z, t: (z * t).abs().sum(1).log())
    assert logarithm.score(query, support).isfinite().all()
    with pytest.raises(ValueError, match="not finite for an embedding of zeros"):
        logarithm.contributions(query, support, weights)


def test_too_few_steps_are_warned_of_and_enough_are_not() -> None:
    query, support, weights = (5 * one for one in draw())
    with pytest.warns(UserWarning, match="n_steps"):
        Learned(saturating, n_steps=1).contributions(query, support, weights)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Learned(saturating, n_steps=200).contributions(query, support, weights)


def test_a_metric_of_the_wrong_shape_is_refused() -> None:
    query, support, _ = draw()
    with pytest.raises(ValueError, match=r"one value per pair, shape \(3,\), got \(3, 5\)"):
        Learned(lambda z, t: z * t).score(query, support)


@processors
@shared_or_not
def test_a_learned_metric_against_itself_leaves_exact_zeros(per_query: bool, processor: str) -> None:
    query, support, weights = draw(per_query)
    network = nn.Sequential(nn.Linear(2 * J, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    similarity = Learned(lambda z, t: network(torch.cat([z, t], 1)).squeeze(1), n_steps=5)
    copies, signs = torch.cat([support] * 3, -2), torch.cat([weights, -weights / 3, -weights * 2 / 3], 1)
    with on(processor), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of so few steps
        found = with_weights(similarity, query, copies, signs)
    assert all((one == 0).all() for one in found)
