"""Every measure against hand-worked numbers and loops, and what its contributions are promised to sum to."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from captum_fam import functional as F
from captum_fam.similarity import (
    Bilinear,
    Cosine,
    Dot,
    Euclidean,
    Learned,
    Mahalanobis,
    Similarity,
    get_similarity,
)
from tests import reference
from tests.perturbed_products import PerturbedProducts

B, K, J = 3, 4, 5
_GENERATOR = torch.Generator().manual_seed(11)
SQUARE = torch.randn(J, J, generator=_GENERATOR, dtype=torch.float64)
METRIC = SQUARE @ SQUARE.T

MEASURES: dict[str, Similarity] = {
    "cosine": Cosine(),
    "dot": Dot(),
    "squared-euclidean": Euclidean(squared=True),
    "squared-euclidean/difference": Euclidean(squared=True, rule="difference"),
    "euclidean": Euclidean(),
    "euclidean/difference": Euclidean(rule="difference"),
    "bilinear": Bilinear(SQUARE),
    "mahalanobis": Mahalanobis(METRIC),
    "mahalanobis/difference": Mahalanobis(METRIC, rule="difference"),
}
assert set(MEASURES) == set(reference.MEASURES)
LINEAR = reference.LINEAR_MEASURES
FROM_ZERO = ("squared-euclidean", "euclidean", "mahalanobis")

all_measures = pytest.mark.parametrize("name", MEASURES)
linear_measures = pytest.mark.parametrize("name", LINEAR)
shared_or_not = pytest.mark.parametrize("per_query", [False, True], ids=["shared", "per-query"])


def matrix_of(name: str) -> np.ndarray:
    return (SQUARE if name == "bilinear" else METRIC).numpy()


def draw(per_query: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Query, support, and weights of both signs, as a foil gives."""
    query = torch.randn(B, J, dtype=torch.float64)
    support = torch.randn(*((B, K, J) if per_query else (K, J)), dtype=torch.float64)
    return query, support, torch.randn(B, K, dtype=torch.float64)


def double(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def close(actual: Tensor, expected: object, rtol: float = 1e-10) -> None:
    wanted = expected if isinstance(expected, Tensor) else torch.as_tensor(np.asarray(expected, dtype=np.float64))
    torch.testing.assert_close(actual, wanted, rtol=rtol, atol=rtol)


def by_pair(function: Callable[..., object], name: str, query: Tensor, support: Tensor) -> np.ndarray:
    """The reference's answer for every query and each of its supports."""
    return np.array(
        [
            [function(name, z, t, matrix_of(name)) for t in (support[b] if support.dim() == 3 else support).numpy()]
            for b, z in enumerate(query.numpy())
        ]
    )


# Against the reference


@all_measures
@shared_or_not
def test_score_and_explained_equal_the_reference(name: str, per_query: bool) -> None:
    query, support, _ = draw(per_query)
    close(MEASURES[name].score(query, support), by_pair(reference.score, name, query, support))
    close(MEASURES[name].explained(query, support), by_pair(reference.explained, name, query, support))


@all_measures
@shared_or_not
def test_contributions_equal_the_reference(name: str, per_query: bool) -> None:
    query, support, weights = draw(per_query)
    each = by_pair(reference.contributions, name, query, support)
    expected = np.einsum("bk,bkj->bj", weights.numpy(), each)
    close(MEASURES[name].contributions(query, support, weights), expected)


@linear_measures
@shared_or_not
def test_weights_equal_the_reference_and_make_the_contributions(name: str, per_query: bool) -> None:
    query, support, weights = draw(per_query)
    each = by_pair(reference.linear_weights, name, query, support)
    actual = MEASURES[name].weights(query, support, weights)
    close(actual, np.einsum("bk,bkj->bj", weights.numpy(), each))
    close(query * actual, MEASURES[name].contributions(query, support, weights))


@all_measures
def test_float32_agrees_with_the_float64_reference(name: str) -> None:
    query, support, weights = (one.float() for one in draw())
    actual = MEASURES[name].contributions(query, support, weights)
    each = by_pair(reference.contributions, name, query.double(), support.double())
    expected = torch.from_numpy(np.einsum("bk,bkj->bj", weights.double().numpy(), each))
    assert actual.dtype == torch.float32
    assert (actual - expected).norm() <= 1e-5 * expected.norm()


# What contributions sum to


@all_measures
@shared_or_not
def test_contributions_sum_to_what_is_explained(name: str, per_query: bool) -> None:
    query, support, weights = draw(per_query)
    measure = MEASURES[name]
    explained = (weights * measure.explained(query, support)).sum(1)
    close(measure.contributions(query, support, weights).sum(1), explained)


@pytest.mark.parametrize("name", sorted(set(MEASURES) - set(FROM_ZERO)))
def test_the_whole_score_is_explained(name: str) -> None:
    query, support, _ = draw()
    close(MEASURES[name].explained(query, support), MEASURES[name].score(query, support))


@pytest.mark.parametrize("name", FROM_ZERO)
def test_the_zero_baseline_explains_the_gain_over_the_zero_vector(name: str) -> None:
    query, support, _ = draw()
    measure = MEASURES[name]
    from_zero = measure.score(query, support) - measure.score(torch.zeros_like(query), support)
    close(measure.explained(query, support), from_zero)


@all_measures
def test_a_call_gives_the_score(name: str) -> None:
    query, support, _ = draw()
    assert torch.equal(MEASURES[name](query, support), MEASURES[name].score(query, support))


# By hand: z = (1, 2), t = (2, 0), so that d = (-1, 2) and the distance is the root of 5

HAND: dict[str, tuple[Similarity, float, list[float]]] = {
    "cosine": (Cosine(), 1 / math.sqrt(5), [1 / math.sqrt(5), 0]),
    "dot": (Dot(), 2, [2, 0]),
    "squared-euclidean": (Euclidean(squared=True), -5, [3, -4]),
    "squared-euclidean/difference": (Euclidean(squared=True, rule="difference"), -5, [-1, -4]),
    "euclidean": (Euclidean(), -math.sqrt(5), [3 / (2 + math.sqrt(5)), -4 / (2 + math.sqrt(5))]),
    "euclidean/difference": (Euclidean(rule="difference"), -math.sqrt(5), [-1 / math.sqrt(5), -4 / math.sqrt(5)]),
    "bilinear": (Bilinear(double([0, 1], [2, 0])), 8, [0, 8]),
    "mahalanobis": (Mahalanobis(double([1, 0], [0, 2])), -9, [3, -8]),
    "mahalanobis/difference": (Mahalanobis(double([1, 0], [0, 2]), rule="difference"), -9, [-1, -8]),
}


@pytest.mark.parametrize("name", HAND)
def test_score_and_contributions_by_hand(name: str) -> None:
    measure, score, contributions = HAND[name]
    query, support, weights = double([1, 2]), double([2, 0]), double([1])
    close(measure.score(query, support), [[score]])
    close(measure.contributions(query, support, weights), [contributions])


@pytest.mark.parametrize("name", sorted(set(MEASURES) - {"bilinear"}))  # a bilinear form need not
def test_a_support_equal_to_the_query_scores_above_another_one(name: str) -> None:
    query = torch.rand(1, J, dtype=torch.float64) + 0.5
    scores = MEASURES[name].score(query, torch.cat([query, 0.1 * query.flip(1)]))
    assert scores[0, 0] > scores[0, 1]


def test_mahalanobis_with_the_identity_is_the_squared_distance() -> None:
    query, support, weights = draw()
    for rule in ("zero-baseline", "difference"):
        plain, general = Euclidean(squared=True, rule=rule), Mahalanobis(torch.eye(J, dtype=torch.float64), rule=rule)
        close(general.score(query, support), plain.score(query, support))
        close(general.contributions(query, support, weights), plain.contributions(query, support, weights))


def test_mahalanobis_accepts_a_semi_definite_matrix() -> None:
    direction = torch.randn(J, 1, dtype=torch.float64)
    query, support, _ = draw()
    projected = (query @ direction - (support @ direction).T).square()
    close(Mahalanobis(direction @ direction.T).score(query, support), -projected)


# Several supports


@all_measures
def test_a_support_counted_k_times_counts_once(name: str) -> None:
    query, support, _ = draw()
    one = MEASURES[name].contributions(query, support[:1], torch.ones(B, 1, dtype=torch.float64))
    for count in (2, 5, 200):
        weights = torch.full((B, count), 1 / count, dtype=torch.float64)
        close(MEASURES[name].contributions(query, support[:1].repeat(count, 1), weights), one)


@all_measures
def test_the_order_of_the_supports_does_not_matter(name: str) -> None:
    query, support, weights = draw()
    close(
        MEASURES[name].contributions(query, support.flip(0), weights.flip(1)),
        MEASURES[name].contributions(query, support, weights),
    )


# Dead channels: why the zero baseline is the default


@pytest.mark.parametrize("squared", [True, False])
def test_the_difference_rule_gives_dead_channels_the_top_weight_and_the_zero_baseline_does_not(squared: bool) -> None:
    # The object's channels (the first two) match well but not exactly; the last two are dead in both images.
    query, support, weights = double([3.0, 2.0, 0, 0]), double([2.6, 2.3, 0, 0]), double([1])
    naive = F.minmax(Euclidean(squared, rule="difference").contributions(query, support, weights))[0]
    default = F.minmax(Euclidean(squared).contributions(query, support, weights))[0]
    assert naive[2:].tolist() == [1.0, 1.0]
    assert naive[:2].max() < 1
    assert default[2:].tolist() == [0.0, 0.0]
    assert default[:2].min() > 0


@all_measures
def test_a_channel_that_is_zero_in_the_query_contributes_nothing_without_the_difference_rule(name: str) -> None:
    query, support, weights = draw()
    query[:, 2] = 0
    contributions = MEASURES[name].contributions(query, support, weights)
    assert (contributions[:, 2] == 0).all() != name.endswith("/difference")


# Degenerate inputs


@all_measures
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_degenerate_vectors_have_finite_answers(name: str, dtype: torch.dtype) -> None:
    one = torch.randn(J, dtype=dtype)
    rows = torch.stack([torch.zeros(J, dtype=dtype), one, -one, 1e-12 * one, 1e6 * one, one.roll(1)])
    weights = torch.full((6, 6), 1 / 6, dtype=dtype)
    measure = MEASURES[name]
    results = [measure.score(rows, rows), measure.explained(rows, rows), measure.contributions(rows, rows, weights)]
    if name in LINEAR:
        results.append(measure.weights(rows, rows, weights))
    assert all(result.isfinite().all() for result in results)


@linear_measures
def test_a_query_of_zeros_has_no_contributions(name: str) -> None:
    _, support, weights = draw()
    zeros = torch.zeros(B, J, dtype=torch.float64)
    assert (MEASURES[name].contributions(zeros, support, weights) == 0).all()
    close(MEASURES[name].explained(zeros, support), np.zeros((B, K)))


def test_the_cosine_of_a_query_of_zeros_has_no_weights() -> None:
    _, support, weights = draw()
    assert (Cosine().weights(torch.zeros(B, J, dtype=torch.float64), support, weights) == 0).all()


@pytest.mark.parametrize("name", ["euclidean", "euclidean/difference", "squared-euclidean", "cosine", "dot"])
@pytest.mark.parametrize("scale", [1e-11, 1e-7, 1e7])
def test_the_sum_holds_at_any_scale_of_the_embedding(name: str, scale: float) -> None:
    query, support, weights = draw()
    query, support = scale * query, scale * support
    explained = (weights * MEASURES[name].explained(query, support)).sum(1)
    total = MEASURES[name].contributions(query, support, weights).sum(1)
    torch.testing.assert_close(total, explained, rtol=1e-9, atol=0)


@pytest.mark.parametrize("rule", ["zero-baseline", "difference"])
def test_a_support_equal_to_the_query_has_distance_zero(rule: str) -> None:
    query = torch.rand(1, J, dtype=torch.float64)
    measure = Euclidean(rule=rule)
    assert measure.score(query, query).item() == 0
    total = measure.contributions(query, query, double([1])).sum()
    assert total.item() == pytest.approx(0 if rule == "difference" else query.norm().item())


@pytest.mark.parametrize("squared", [True, False])
def test_distances_of_near_duplicates_keep_their_digits_in_float32(squared: bool) -> None:
    query = 10 * torch.rand(2, 64)
    support = query[:1] + 1e-4 * torch.randn(3, 64)
    exact = (query.double()[:, None] - support.double()).norm(dim=2)
    exact = -exact.square() if squared else -exact
    actual = Euclidean(squared).score(query, support).double()
    torch.testing.assert_close(actual, exact, rtol=1e-5, atol=0)


# Terms that cancel

processors = pytest.mark.parametrize("processor", ["this", "up", "down"])
both_types = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


def on(processor: str) -> Any:
    """This processor, or one that rounds the last place of its products up or down."""
    return nullcontext() if processor == "this" else PerturbedProducts(processor)  # type: ignore[arg-type]


def both(measure: Similarity, query: Tensor, support: Tensor, weights: Tensor) -> list[Tensor]:
    """Contributions, and the linear weights where the measure has them."""
    found = [measure.contributions(query, support, weights)]
    return found if "difference" in repr(measure) else [*found, measure.weights(query, support, weights)]


@processors
@both_types
@pytest.mark.parametrize("name", ["cosine", "dot", "bilinear"])
def test_opposite_supports_cancel_to_exact_zeros(name: str, dtype: torch.dtype, processor: str) -> None:
    for batch, count in ((1, 1), (3, 1), (3, 4), (2, 100)):
        query, support = torch.randn(batch, J, dtype=dtype), torch.randn(count, J, dtype=dtype)
        weights = torch.rand(batch, count, dtype=dtype)
        with on(processor):
            found = both(
                MEASURES[name], query, torch.cat([support, -support.flip(0)]), torch.cat([weights, weights.flip(1)], 1)
            )
        assert all((one == 0).all() for one in found)


@processors
@both_types
@shared_or_not
@all_measures
def test_a_foil_of_the_same_supports_cancels_to_exact_zeros(
    name: str, per_query: bool, dtype: torch.dtype, processor: str
) -> None:
    for batch, count, copies in ((3, 1, 1), (1, 1, 2), (3, 5, 3)):
        query, support = torch.randn(batch, J, dtype=dtype), torch.randn(count, J, dtype=dtype)
        # The foil holds each support `copies` times, in another order, and a little more often than is even.
        order = torch.arange(count * copies).flip(0) % count
        rows, weights = torch.cat([support, support[order]]), torch.rand(batch, count, dtype=dtype)
        weights = torch.cat([weights, -weights[:, order] / copies], 1)
        with on(processor):
            found = both(MEASURES[name], query, rows.repeat(batch, 1, 1) if per_query else rows, weights)
        assert all((one == 0).all() for one in found)


@processors
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("counts", [(3, 7), (30, 70), (300, 700)])
@pytest.mark.parametrize("name", ["cosine", "dot", "squared-euclidean"])
def test_one_image_some_times_against_more_times_cancels_to_exact_zeros(
    name: str, counts: tuple[int, int], batch: int, processor: str
) -> None:
    query, image = torch.rand(batch, 33), torch.rand(1, 33)
    signs = torch.cat([torch.full((count,), sign / count) for count, sign in zip(counts, (1, -1), strict=True)])
    with on(processor):
        found = both(MEASURES[name], query, image.repeat(sum(counts), 1), signs.expand(batch, -1))
    assert all((one == 0).all() for one in found)


@processors
@pytest.mark.parametrize(("dtype", "small"), [(torch.float32, 1e-4), (torch.float64, 1e-9)])
@pytest.mark.parametrize("copies", [1, 40])
@shared_or_not
@linear_measures
def test_what_is_small_beside_the_terms_that_cancel_but_real_survives(
    name: str, per_query: bool, copies: int, dtype: torch.dtype, small: float, processor: str
) -> None:
    query, support, change = (1 + torch.rand(rows, J, dtype=torch.float64) for rows in (B, 1, 1))
    support = torch.cat([support * (1 + small * change), support]).to(dtype)
    measure = MEASURES[name]
    wanted = np.diff(by_pair(reference.contributions, name, query.to(dtype).double(), support.double()), axis=1)[:, 0]
    rows, weights = support.repeat_interleave(copies, 0), torch.tensor([-1.0, 1.0]).to(dtype)
    weights = (weights / copies).repeat_interleave(copies).expand(B, -1)
    with on(processor):
        actual = measure.contributions(query.to(dtype), rows.repeat(B, 1, 1) if per_query else rows, weights)
    error = (actual.double() - torch.from_numpy(wanted)).abs().amax(1)
    assert (error <= 0.15 * torch.from_numpy(wanted).abs().amax(1)).all()


def test_weights_survive_on_features_that_the_query_lacks_where_contributions_do_not() -> None:
    query, support, weights = double([1, 0]), double([0.3, 0.4], [0.3, 0.0]), double([1, -1 + 1e-16])
    assert Dot().weights(query, support, weights)[0, 1] == 0.4
    assert Dot().contributions(query, support, weights).tolist() == [[0, 0]]


@processors
@shared_or_not
def test_a_learned_metric_against_itself_leaves_exact_zeros(per_query: bool, processor: str) -> None:
    query, support, weights = draw(per_query)
    network = nn.Sequential(nn.Linear(2 * J, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    measure = Learned(lambda z, t: network(torch.cat([z, t], 1)).squeeze(1), n_steps=5)
    copies, signs = torch.cat([support] * 3, -2), torch.cat([weights, -weights / 3, -weights * 2 / 3], 1)
    with on(processor), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of so few steps
        found = both(measure, query, copies, signs)
    assert all((one == 0).all() for one in found)


# What rounding is relative to


@all_measures
@shared_or_not
def test_the_bound_is_at_least_the_magnitudes_of_contributions_and_what_they_explain(
    name: str, per_query: bool
) -> None:
    for scale in (0.1, 1.0, 10.0):
        query, support, _ = draw(per_query)
        query = scale * query
        bound = MEASURES[name].bound(query, support).numpy()
        if name in ("cosine", "dot", "bilinear", *FROM_ZERO):
            each = by_pair(reference.contributions, name, query, support)
            assert (np.abs(each).sum(2) <= bound * (1 + 1e-12)).all()
            assert (MEASURES[name].explained(query, support).abs().numpy() <= bound * (1 + 1e-12)).all()
        assert bound.shape == (B, K)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("cosine", 1), ("dot", 5 * 13), ("euclidean", 3 * 5), ("squared-euclidean", 2 * 5 * 13 + 25)],
)
def test_the_bound_by_hand(name: str, expected: float) -> None:
    close(MEASURES[name].bound(double([3, 4]), double([5, 12])), [[expected]])


def test_the_bound_of_a_matrix_is_that_of_its_stretch() -> None:
    query, support = double([3, 4]), double([5, 12])
    close(Bilinear(double([0, 2], [2, 0])).bound(query, support), [[2 * 65]])
    close(Mahalanobis(double([1, 0], [0, 4])).bound(query, support), [[4 * (130 + 25)]])


@linear_measures
@shared_or_not
def test_terms_are_the_magnitudes_that_each_weight_is_the_sum_of(name: str, per_query: bool) -> None:
    query, support, weights = draw(per_query)
    # Where nothing cancels they are the weights themselves: every summand made positive by hand.
    plain = {
        "cosine": lambda z, t: np.abs(t) / (np.linalg.norm(z) * np.linalg.norm(t)),
        "dot": lambda z, t: np.abs(t),
        "bilinear": lambda z, t: np.abs(SQUARE.numpy()) @ np.abs(t),
        "squared-euclidean": lambda z, t: 2 * np.abs(t) + np.abs(z),
        "euclidean": lambda z, t: (2 * np.abs(t) + np.abs(z)) / (np.linalg.norm(t) + np.linalg.norm(z - t)),
    }
    measure = MEASURES[name]
    if isinstance(measure, Mahalanobis):
        stretch = np.abs(measure.factor.numpy()) @ np.abs(measure.factor.numpy()).T
        plain[name] = lambda z, t: stretch @ (2 * np.abs(t) + np.abs(z))
    each = np.array(
        [
            [plain[name](z, t) for t in (support[b] if per_query else support).numpy()]
            for b, z in enumerate(query.numpy())
        ]
    )
    close(measure.terms(query, support, weights.abs()), np.einsum("bk,bkj->bj", weights.abs().numpy(), each))
    assert (
        measure.weights(query, support, weights).abs() <= measure.terms(query, support, weights.abs()) + 1e-12
    ).all()


@pytest.mark.parametrize("name", ["cosine", "dot", "bilinear"])
def test_rounding_of_a_product_is_relative_to_the_lengths_and_that_of_a_distance_to_itself(name: str) -> None:
    query, support, _ = draw()
    scores = MEASURES[name].score(query, support)
    assert torch.equal(MEASURES[name].magnitude(query, support, scores), MEASURES[name].bound(query, support))
    distances = Euclidean().score(query, support)
    assert torch.equal(Euclidean().magnitude(query, support, distances), distances.abs())


def test_a_measure_that_says_nothing_of_its_rounding_is_taken_as_it_is() -> None:
    class Overlap(Similarity):
        def score(self, query: Tensor, support: Tensor) -> Tensor:
            return query @ support.T

        def weights(self, query: Tensor, support: Tensor, support_weights: Tensor) -> Tensor:
            return support_weights @ support

    query, support, weights = draw()
    measure = Overlap()
    assert torch.equal(measure.bound(query, support), torch.ones(B, K, dtype=torch.float64))
    assert torch.equal(measure.magnitude(query, support, -weights), weights.abs())
    assert not measure.terms(query, support, weights.abs()).any()
    assert torch.equal(measure.contributions(query, support, weights), query * (weights @ support))


# Scales


@pytest.mark.parametrize(
    ("of_query", "of_support"), [(1, 1e20), (1e-13, 1), (1e-20, 1), (1, 3e38), (1e20, 1e-20), (1e-38, 1e-38)]
)
def test_the_cosine_and_its_weights_hold_at_any_scale_of_float32(of_query: float, of_support: float) -> None:
    query, support, weights = (one.float() for one in draw())
    measure, scaled, plain = Cosine(), (of_query * query, of_support * (support / 4)), (query, support)
    near: Any = {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(measure.score(*scaled), measure.score(*plain), **near)
    contributions = measure.contributions(*scaled, weights)
    torch.testing.assert_close(contributions, measure.contributions(*plain, weights), **near)
    slopes = measure.weights(*scaled, weights).double() * of_query
    torch.testing.assert_close(slopes, measure.weights(*plain, weights).double(), **near)


@pytest.mark.parametrize("name", ["squared-euclidean", "euclidean", "mahalanobis"])
def test_what_a_distance_explains_keeps_its_digits_beside_long_supports(name: str) -> None:
    query, support, _ = draw()
    query, support = (1e-3 * query).float(), (1e3 * support).float()
    exact = by_pair(reference.explained, name, query.double(), support.double())
    bound = MEASURES[name].bound(query, support).double()
    error = (MEASURES[name].explained(query, support).double() - torch.from_numpy(exact)).abs()
    assert (error <= 1e-5 * bound).all()


# Gradients


@all_measures
@shared_or_not
def test_the_score_is_differentiable_in_the_query(name: str, per_query: bool) -> None:
    query, support, _ = draw(per_query)
    assert torch.autograd.gradcheck(lambda z: MEASURES[name].score(z, support), query.requires_grad_())


@pytest.mark.parametrize("name", ["cosine", "euclidean", "squared-euclidean", "mahalanobis"])
def test_the_gradient_is_finite_where_query_and_support_meet_or_vanish(name: str) -> None:
    rows = torch.stack([torch.zeros(J), torch.ones(J)]).double().requires_grad_()
    (gradient,) = torch.autograd.grad(MEASURES[name].score(rows, rows.detach()).sum(), rows)
    assert gradient.isfinite().all()


# A learned metric. Captum keeps the weights of the quadrature in float32, so that no answer is better than 1e-7.

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
    measure = get_similarity(lambda z, t: network(torch.cat([z, t], 1)).squeeze(1))
    assert isinstance(measure, Learned)
    with torch.no_grad():
        gain = measure.score(query, support) - measure.score(torch.zeros_like(query), support)
        close(measure.explained(query, support), gain)
        close(measure.contributions(query, support, weights).sum(1), (weights * gain).sum(1), QUADRATURE)
    assert all(parameter.grad is None for parameter in network.parameters())


def test_a_learned_metric_that_is_a_dot_product_equals_the_measure_of_that_name() -> None:
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


def test_too_few_steps_are_warned_of_and_enough_are_not() -> None:
    query, support, weights = (5 * one for one in draw())
    with pytest.warns(UserWarning, match="raise n_steps"):
        Learned(saturating, n_steps=1).contributions(query, support, weights)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Learned(saturating, n_steps=200).contributions(query, support, weights)


def test_a_metric_of_the_wrong_shape_is_refused() -> None:
    query, support, _ = draw()
    with pytest.raises(ValueError, match=r"one value a pair, shape \(3,\), got \(3, 5\)"):
        Learned(lambda z, t: z * t).score(query, support)


# Choosing one


@pytest.mark.parametrize("name", ["cosine", "dot", "euclidean", "squared-euclidean"])
def test_measures_have_names(name: str) -> None:
    query, support, _ = draw()
    assert torch.equal(get_similarity(name).score(query, support), MEASURES[name].score(query, support))


def test_a_measure_is_taken_as_it_is() -> None:
    measure = Euclidean(rule="difference")
    assert get_similarity(measure) is measure


def test_unknown_measures_are_refused() -> None:
    with pytest.raises(ValueError, match="one of cosine, dot, euclidean, squared-euclidean, got 'manhattan'"):
        get_similarity("manhattan")
    with pytest.raises(TypeError, match="a name, a Similarity or a callable, got int"):
        get_similarity(3)
    with pytest.raises(TypeError, match=r"is the class Dot; pass an instance, Dot\(\)"):
        get_similarity(Dot)


@pytest.mark.parametrize("make", [Euclidean, lambda rule: Mahalanobis(torch.eye(2), rule=rule)])
def test_an_unknown_rule_is_refused(make: Callable[..., Similarity]) -> None:
    with pytest.raises(ValueError, match="rule must be one of zero-baseline, difference, got 'naive'"):
        make(rule="naive")


@pytest.mark.parametrize("name", sorted(set(MEASURES) - set(LINEAR)))
def test_the_difference_rule_has_no_linear_weights(name: str) -> None:
    with pytest.raises(ValueError, match='use rule="zero-baseline"'):
        MEASURES[name].weights(*draw())


@pytest.mark.parametrize("make", [Bilinear, Mahalanobis])
def test_a_matrix_that_does_not_fit_is_refused(make: Callable[[Tensor], Similarity]) -> None:
    with pytest.raises(ValueError, match=r"matrix must be square, \(J, J\), got \(2, 3\)"):
        make(torch.ones(2, 3))
    with pytest.raises(ValueError, match="matrix contains NaN or inf"):
        make(torch.tensor([[1.0, 0.0], [0.0, float("nan")]]))
    for call in ("score", "explained"):
        with pytest.raises(ValueError, match="embeddings of 2 features, got 5"):
            getattr(make(torch.eye(2)), call)(*draw()[:2])


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_mahalanobis_refuses_a_matrix_that_is_no_metric(scale: float) -> None:
    with pytest.raises(ValueError, match="matrix must be symmetric"):
        Mahalanobis(scale * double([1, 0.5], [0, 1]))
    with pytest.raises(ValueError, match="positive semi-definite, got the eigenvalue"):
        Mahalanobis(scale * double([1, 0], [0, -1]))


def test_a_matrix_is_used_in_the_precision_of_the_embedding() -> None:
    query, support, _ = draw()
    for measure in (Bilinear(SQUARE.float()), Mahalanobis(METRIC.float())):
        assert measure.score(query, support).dtype == torch.float64
        assert measure.score(query.float(), support.float()).dtype == torch.float32


def test_a_measure_travels_with_a_module_and_its_state() -> None:
    measure = Bilinear(SQUARE)
    assert list(measure.state_dict()) == ["matrix"]
    assert nn.Sequential(measure).float()[0].matrix.dtype == torch.float32
    assert "rule='difference'" in repr(Euclidean(rule="difference"))


# Memory


@all_measures
def test_no_tensor_of_every_query_with_every_support_and_feature_is_made(
    name: str, largest_tensor: Callable[[], object]
) -> None:
    query, support = torch.rand(8, J, dtype=torch.float64), torch.rand(300, J, dtype=torch.float64)
    weights = torch.full((8, 300), 1 / 300, dtype=torch.float64)
    measure = MEASURES[name]
    with largest_tensor() as seen:
        measure.score(query, support)
        measure.explained(query, support)
        measure.contributions(query, support, weights)
        if name in LINEAR:
            measure.weights(query, support, weights)
    assert 8 * 300 <= seen.numel < 8 * 300 * J
