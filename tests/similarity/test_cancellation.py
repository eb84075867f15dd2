"""Terms that cancel in a sum over the supports, and the sizes that rounding is judged by."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from captum_fam.similarity import Bilinear, Dot, Euclidean, Mahalanobis
from tests import reference
from tests.similarity.cases import (
    FROM_ZERO,
    INNER_PRODUCTS,
    SIMILARITIES,
    SQUARE,
    B,
    J,
    K,
    by_pair,
    close,
    double,
    draw,
    every_linear_similarity,
    every_similarity,
    on,
    processors,
    shared_or_not,
    with_weights,
)

both_types = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])

# What cancels is exactly zero


@processors
@both_types
@pytest.mark.parametrize("name", INNER_PRODUCTS)
def test_opposite_supports_cancel_to_exact_zeros(name: str, dtype: torch.dtype, processor: str) -> None:
    for batch, count in ((1, 1), (3, 1), (3, 4), (2, 100)):
        query, support = torch.randn(batch, J, dtype=dtype), torch.randn(count, J, dtype=dtype)
        weights = torch.rand(batch, count, dtype=dtype)
        with on(processor):
            found = with_weights(
                SIMILARITIES[name],
                query,
                torch.cat([support, -support.flip(0)]),
                torch.cat([weights, weights.flip(1)], 1),
            )
        assert all((one == 0).all() for one in found)


@processors
@both_types
@shared_or_not
@every_similarity
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
            found = with_weights(SIMILARITIES[name], query, rows.repeat(batch, 1, 1) if per_query else rows, weights)
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
        found = with_weights(SIMILARITIES[name], query, image.repeat(sum(counts), 1), signs.expand(batch, -1))
    assert all((one == 0).all() for one in found)


@processors
@pytest.mark.parametrize(("dtype", "small"), [(torch.float32, 1e-4), (torch.float64, 1e-9)])
@pytest.mark.parametrize("copies", [1, 40])
@shared_or_not
@every_linear_similarity
def test_what_is_small_beside_the_terms_that_cancel_but_real_survives(
    name: str, per_query: bool, copies: int, dtype: torch.dtype, small: float, processor: str
) -> None:
    query, support, change = (1 + torch.rand(rows, J, dtype=torch.float64) for rows in (B, 1, 1))
    support = torch.cat([support * (1 + small * change), support]).to(dtype)
    similarity = SIMILARITIES[name]
    wanted = np.diff(by_pair(reference.contributions, name, query.to(dtype).double(), support.double()), axis=1)[:, 0]
    rows, weights = support.repeat_interleave(copies, 0), torch.tensor([-1.0, 1.0]).to(dtype)
    weights = (weights / copies).repeat_interleave(copies).expand(B, -1)
    with on(processor):
        actual = similarity.contributions(query.to(dtype), rows.repeat(B, 1, 1) if per_query else rows, weights)
    error = (actual.double() - torch.from_numpy(wanted)).abs().amax(1)
    assert (error <= 0.15 * torch.from_numpy(wanted).abs().amax(1)).all()


def test_weights_survive_on_features_that_the_query_lacks_where_contributions_do_not() -> None:
    query, support, weights = double([1, 0]), double([0.3, 0.4], [0.3, 0.0]), double([1, -1 + 1e-16])
    assert Dot().weights(query, support, weights)[0, 1] == 0.4
    assert Dot().contributions(query, support, weights).tolist() == [[0, 0]]


# What rounding is relative to


@every_similarity
@shared_or_not
def test_the_bound_is_at_least_the_magnitudes_of_contributions_and_what_they_explain(
    name: str, per_query: bool
) -> None:
    for scale in (0.1, 1.0, 10.0):
        query, support, _ = draw(per_query)
        query = scale * query
        bound = SIMILARITIES[name].bound(query, support).numpy()
        if name in (*INNER_PRODUCTS, *FROM_ZERO):
            each = by_pair(reference.contributions, name, query, support)
            assert (np.abs(each).sum(2) <= bound * (1 + 1e-12)).all()
            assert (SIMILARITIES[name].explained(query, support).abs().numpy() <= bound * (1 + 1e-12)).all()
        assert bound.shape == (B, K)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("cosine", 1), ("dot", 5 * 13), ("euclidean", 3 * 5), ("squared-euclidean", 2 * 5 * 13 + 25)],
)
def test_the_bound_by_hand(name: str, expected: float) -> None:
    close(SIMILARITIES[name].bound(double([3, 4]), double([5, 12])), [[expected]])


def test_the_bound_of_a_matrix_is_that_of_its_stretch() -> None:
    query, support = double([3, 4]), double([5, 12])
    close(Bilinear(double([0, 2], [2, 0])).bound(query, support), [[2 * 65]])
    close(Mahalanobis(double([1, 0], [0, 4])).bound(query, support), [[4 * (130 + 25)]])


@every_linear_similarity
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
    similarity = SIMILARITIES[name]
    if isinstance(similarity, Mahalanobis):
        stretch = np.abs(similarity.factor.numpy()) @ np.abs(similarity.factor.numpy()).T
        plain[name] = lambda z, t: stretch @ (2 * np.abs(t) + np.abs(z))
    each = np.array(
        [
            [plain[name](z, t) for t in (support[b] if per_query else support).numpy()]
            for b, z in enumerate(query.numpy())
        ]
    )
    close(similarity.terms(query, support, weights.abs()), np.einsum("bk,bkj->bj", weights.abs().numpy(), each))
    assert (
        similarity.weights(query, support, weights).abs() <= similarity.terms(query, support, weights.abs()) + 1e-12
    ).all()


@pytest.mark.parametrize("name", INNER_PRODUCTS)
def test_rounding_of_a_product_is_relative_to_the_lengths_and_that_of_a_distance_to_itself(name: str) -> None:
    query, support, _ = draw()
    scores = SIMILARITIES[name].score(query, support)
    assert torch.equal(SIMILARITIES[name].magnitude(query, support, scores), SIMILARITIES[name].bound(query, support))
    distances = Euclidean().score(query, support)
    assert torch.equal(Euclidean().magnitude(query, support, distances), distances.abs())
