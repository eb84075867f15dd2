"""What parts of a support give to the linear weights, against loops in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from captum_fam.similarity import Cosine, Euclidean, EuclideanDifference, LinearSimilarity
from tests.attr.pair_models import pair_share, query_alone, similarities

NAMES = tuple(similarities(1))
B, M, J = 3, 4, 5


def drawn() -> tuple[Tensor, Tensor, Tensor]:
    """Queries, supports, and parts that sum to the supports."""
    parts = torch.randn(B, M, J, dtype=torch.float64)
    return torch.randn(B, J, dtype=torch.float64), parts.sum(1), parts


@pytest.mark.parametrize("name", NAMES)
def test_weights_of_parts_equal_loops(name: str) -> None:
    similarity, (query, support, parts) = similarities(J)[name], drawn()
    actual = similarity.weights_of_parts(query, support, parts)
    axes = torch.eye(J).tolist()
    for b in range(B):
        z, t = query[b].tolist(), support[b].tolist()
        expected = [[pair_share(similarity, z, t, axis, part) for axis in axes] for part in parts[b].tolist()]
        assert_close(actual[b], torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", NAMES)
def test_parts_of_the_whole_support_give_the_weights(name: str) -> None:
    similarity, (query, support, parts) = similarities(J)[name], drawn()
    given = similarity.weights_of_parts(query, support, parts).sum(1)
    weights = similarity.weights(query, support.unsqueeze(1), torch.ones(B, 1, dtype=torch.float64))
    for b in range(B):
        z, t = query[b].tolist(), support[b].tolist()
        alone = [query_alone(similarity, z, t, axis) for axis in torch.eye(J).tolist()]
        assert_close(weights[b], given[b] + torch.tensor(alone, dtype=torch.float64), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", NAMES)
def test_float32_keeps_its_type_and_shape(name: str) -> None:
    query, support, parts = (tensor.float() for tensor in drawn())
    actual = similarities(J)[name].weights_of_parts(query, support, parts)
    assert actual.shape == (B, M, J)
    assert actual.dtype == torch.float32


class Overlap(LinearSimilarity):
    """The Bhattacharyya coefficient, for supports that the batch shares."""

    def score(self, query: Tensor, support: Tensor) -> Tensor:
        return query.sqrt() @ support.sqrt().T

    def weights(self, query: Tensor, support: Tensor, support_weights: Tensor) -> Tensor:
        return torch.where(query > 0, support_weights @ support.sqrt() / query.sqrt(), 0.0)


class Product(LinearSimilarity):
    """A dot product of the user."""

    def score(self, query: Tensor, support: Tensor) -> Tensor:
        return query @ support.T

    def weights(self, query: Tensor, support: Tensor, support_weights: Tensor) -> Tensor:
        return support_weights @ support


def test_by_default_a_weight_is_divided_in_proportion_to_the_parts() -> None:
    query, support = torch.tensor([[4.0, 1.0, 1.0]]), torch.tensor([[1.0, 9.0, 0.0]])
    parts = torch.tensor([[[0.25, 6.0, 2.0], [0.75, 3.0, -2.0]]])
    # The weights are (1 / 2, 3, 0).
    expected = torch.tensor([[[0.125, 2.0, 0.0], [0.375, 1.0, 0.0]]])
    assert_close(Overlap().weights_of_parts(query, support, parts), expected)


class TenTimes(Cosine):
    """A cosine with a temperature."""

    def score(self, query: Tensor, support: Tensor) -> Tensor:
        return 10 * super().score(query, support)

    def weights(self, query: Tensor, support: Tensor, support_weights: Tensor) -> Tensor:
        return 10 * super().weights(query, support, support_weights)


class Twice:
    """Other weights, to mix into a similarity."""

    def weights(self, query: Tensor, support: Tensor, support_weights: Tensor) -> Tensor:
        return 2 * super().weights(query, support, support_weights)  # type: ignore[misc]


class TwiceEuclidean(Twice, Euclidean):
    pass


class Renamed(Cosine):
    """The same score and weights."""


class Own(TenTimes):
    def weights_of_parts(self, query: Tensor, support: Tensor, parts: Tensor) -> Tensor:
        return 10 * Cosine.weights_of_parts(self, query, support, parts)


class OfOwn(Own):
    pass


def test_a_subclass_with_another_score_does_not_keep_the_formula_of_its_base() -> None:
    query, support, parts = drawn()
    one = torch.ones(B, 1, dtype=torch.float64)
    for similarity in (TenTimes(), type("Child", (TenTimes,), {})(), TwiceEuclidean(), Own(), OfOwn()):
        weights = similarity.weights(query, support.unsqueeze(1), one)
        assert_close(similarity.weights_of_parts(query, support, parts).sum(1), weights, rtol=1e-10, atol=1e-12)
    assert Renamed.weights_of_parts is Cosine.weights_of_parts
    assert OfOwn.weights_of_parts is Own.weights_of_parts


def test_parts_that_cancel_up_to_rounding_get_nothing_by_default() -> None:
    tiny = torch.tensor([[1e-42, 1.0, 0.0, -1e-30, 2.0]])
    parts = torch.tensor([[[1.0, 0.5, 1.0, 1.0, 1.0], [-1.0, 0.5, -1.0, -1.0, 1.0]]])
    given = Product().weights_of_parts(torch.ones(1, 5), tiny, parts)
    assert_close(given, torch.tensor([[[0.0, 0.5, 0.0, 0.0, 1.0]] * 2]))
    # A small feature of which all parts are small is no rounding error.
    small = torch.tensor([[[3e-40, 1e-30], [1e-40, 3e-30]]])
    assert_close(Product().weights_of_parts(torch.ones(1, 2), small.sum(1), small), small, rtol=1e-3, atol=0)


def test_several_queries_have_supports_of_their_own() -> None:
    query, parts = torch.rand(B, J, dtype=torch.float64), torch.rand(B, M, J, dtype=torch.float64)
    support = parts.sum(1)
    actual = Overlap().weights_of_parts(query, support, parts)
    assert_close(actual, (1 / (query * support).sqrt()).unsqueeze(1) * parts)
    assert_close(actual.sum(1), (support / query).sqrt())


@pytest.mark.parametrize("name", NAMES)
def test_zero_vectors_give_finite_weights(name: str) -> None:
    zeros, parts = torch.zeros(1, J, dtype=torch.float64), torch.randn(1, M, J, dtype=torch.float64)
    assert similarities(J)[name].weights_of_parts(zeros, zeros, parts).isfinite().all()


def test_the_cosine_of_extreme_lengths_neither_over_nor_underflows() -> None:
    part = torch.tensor([[[3.0, 4.0]]])
    for scale in (1e-30, 1e30):
        vectors = scale * part[0]
        actual = Cosine().weights_of_parts(vectors, vectors, scale * part)
        assert_close(scale * actual, torch.tensor([[[0.6 / 5, 0.8 / 5]]]))


def test_a_similarity_without_weights_is_refused() -> None:
    query, support, parts = drawn()
    with pytest.raises(ValueError, match="EuclideanDifference has contributions but no linear weights"):
        EuclideanDifference().weights_of_parts(query, support, parts)


def test_a_distance_of_two_equal_vectors() -> None:
    vector = torch.tensor([[3.0, 4.0]])
    # u = (2 t - z) / (|t| + d) with d = 0.
    assert_close(Euclidean().weights_of_parts(vector, vector, vector.unsqueeze(1)), torch.tensor([[[1.2, 1.6]]]))
