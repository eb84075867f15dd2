"""Eq. 11-18 on plain tensors, against numbers worked by hand and the loops of ``reference.py``."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from captum_fam import functional as F
from tests import reference

DOUBLE = torch.float64


def tensor(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=DOUBLE)


def close(actual: Tensor, expected: object, rtol: float = 1e-12) -> None:
    wanted = torch.as_tensor(np.asarray(expected), dtype=actual.dtype)
    torch.testing.assert_close(actual, wanted, rtol=rtol, atol=rtol)


# A support shared by the batch, or one per query


def test_per_query_supports_that_are_all_alike_equal_a_shared_support() -> None:
    query, support, weights = torch.rand(3, 5, dtype=DOUBLE), torch.rand(4, 5, dtype=DOUBLE), torch.rand(3, 4).double()
    each = support.repeat(3, 1, 1)
    close(F.pairwise_dot(query, each), F.pairwise_dot(query, support))
    close(F.combine_supports(weights, each), F.combine_supports(weights, support))
    close(F.cosine_contributions(query, each, weights), F.cosine_contributions(query, support, weights))


def test_per_query_supports_are_paired_with_their_own_query() -> None:
    support = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])
    assert F.pairwise_dot(torch.tensor([[2.0, 3.0], [5.0, 7.0]]), support).tolist() == [[2.0], [7.0]]
    assert F.combine_supports(torch.tensor([[10.0], [20.0]]), support).tolist() == [[10.0, 0.0], [0.0, 20.0]]


def test_unit_rows_have_length_one_and_zero_rows_stay_zero() -> None:
    assert F.unit(tensor([3, 4], [0, 0])).tolist() == [[0.6, 0.8], [0.0, 0.0]]


# Eq. 11, 14, 15


def test_eq_11_is_the_mean_similarity_to_the_supports_of_a_class() -> None:
    class_weights = tensor([1 / 2, 1 / 2, 0], [0, 0, 1])
    close(F.class_similarity(tensor([0.2, 0.6, -0.5], [1, 0, 0.25]), class_weights), [[0.4, -0.5], [0.5, 0.25]])


def test_eq_14_by_hand() -> None:
    similarities = F.cosine_similarity(tensor([3, 4], [-4, 3]), tensor([1, 0], [0, 2], [3, 4]))
    close(similarities, [[0.6, 0.8, 1.0], [-0.8, 0.6, 0.0]])


def test_a_zero_vector_is_similar_to_nothing() -> None:
    similarities = F.cosine_similarity(tensor([0, 0], [3, 4]), tensor([1, 0], [0, 0]))
    assert similarities.tolist() == [[0.0, 0.0], [0.6, 0.0]]


def test_eq_15_without_its_factor_sums_to_the_mean_similarity() -> None:
    contributions = F.cosine_contributions(tensor([3, 4]), tensor([1, 0], [0, 2]), tensor([1 / 2, 1 / 2]))
    close(contributions, [[0.3, 0.4]])  # sums to (0.6 + 0.8) / 2


def test_eq_15_as_printed_gives_each_support_a_share_of_one() -> None:
    query, support = tensor([3, 4]), tensor([1, 0], [0, 2])
    shares = F.support_shares(tensor([1 / 2, 1 / 2]), F.cosine_similarity(query, support))
    close(shares, [[0.5 / 0.6, 0.5 / 0.8]])
    close(F.cosine_contributions(query, support, shares), [[0.5, 0.5]])


def test_eq_15_sums_to_the_mean_sign_of_the_similarities() -> None:
    query, support = torch.randn(6, 5, dtype=DOUBLE), torch.randn(7, 5, dtype=DOUBLE)
    similarities = F.cosine_similarity(query, support)
    shares = F.support_shares(torch.full((6, 7), 1 / 7, dtype=DOUBLE), similarities)
    assert similarities.abs().min() > F.EPSILON
    close(F.cosine_contributions(query, support, shares).sum(1), similarities.sign().mean(1), rtol=1e-9)


def test_the_least_similar_of_several_supports_has_the_largest_share() -> None:
    similarities = tensor([0.95, 0.90, 0.90, 0.02])
    shares = F.support_shares(torch.full((1, 4), 0.25, dtype=DOUBLE), similarities)
    close((shares / shares.sum())[0], [0.0199, 0.0210, 0.0210, 0.9380], rtol=2e-3)


def test_a_support_orthogonal_to_the_query_is_divided_by_epsilon() -> None:
    shares = F.support_shares(tensor([1, 1, 1]), tensor([0, 1e-9, -1e-9]))
    assert shares.tolist() == [[1e6, 1e6, 1e6]]
    contributions = F.cosine_contributions(tensor([1, 1]), tensor([1, -1]), shares[:, :1])
    close(contributions, [[5e5, -5e5]])


def test_shares_of_opposite_supports_cancel() -> None:
    query, support = tensor([3, 4]), tensor([1, 2], [-1, -2])
    shares = F.support_shares(tensor([1 / 2, 1 / 2]), F.cosine_similarity(query, support))
    close(F.cosine_contributions(query, support, shares), [[0, 0]])


@pytest.mark.parametrize("per_query", [False, True])
def test_contributions_equal_the_loops_of_the_reference(per_query: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    query = torch.randn(4, 6, generator=generator, dtype=DOUBLE)
    support = torch.randn(*((4, 5, 6) if per_query else (5, 6)), generator=generator, dtype=DOUBLE)
    weights = torch.randn(4, 5, generator=generator, dtype=DOUBLE)
    shares = F.support_shares(weights, F.cosine_similarity(query, support))
    actual = F.cosine_contributions(query, support, shares)
    for b in range(4):
        own = (support[b] if per_query else support).numpy()
        close(actual[b], reference.support_sum("cosine", query[b].numpy(), own, weights[b].numpy(), "paper"), 1e-10)


# Eq. 18, 12, 13


def test_eq_18_by_hand() -> None:
    weight = tensor([1, 2, 3], [10, 20, 30])  # a Linear(3, 2).weight
    close(F.transform_contributions(tensor([1, -1], [2, 0.5]), weight), [[-9, -18, -27], [7, 14, 21]])


def test_eq_12_by_hand() -> None:
    close(F.minmax(tensor([-1, 0, 3], [5, 4, 4.5])), [[0, 0.25, 1], [1, 0, 0.5]])


@pytest.mark.parametrize("value", [0.0, 0.7, -0.7, 1e-30, 1e30])
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_a_constant_contribution_weighs_every_channel_by_one(value: float, dtype: torch.dtype) -> None:
    assert (F.minmax(torch.full((2, 5), value, dtype=dtype)) == 1).all()


def test_one_channel_has_the_weight_one() -> None:
    assert F.minmax(tensor([-4], [0.1])).tolist() == [[1.0], [1.0]]


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_rounding_between_equal_contributions_is_not_scaled_up_to_a_map(dtype: torch.dtype) -> None:
    for features in (3, 5, 7, 17, 33, 513):
        for count in (1, 10, 200):
            query, support = (
                torch.full((2, features), 0.3, dtype=dtype),
                torch.full((count, features), 0.7, dtype=dtype),
            )
            weights = torch.full((2, count), 1 / count, dtype=dtype)
            assert (F.minmax(F.cosine_contributions(query, support, weights)) == 1).all(), (features, count)


def test_contributions_that_differ_little_are_still_told_apart() -> None:
    close(F.minmax(tensor([1, 1 + 1e-10, 1 + 2e-10])), [[0, 0.5, 1]], rtol=1e-5)


def test_minmax_treats_each_sample_on_its_own() -> None:
    both = tensor([-1, 0, 3], [2, 2, 2])
    close(F.minmax(both)[0], F.minmax(both[:1])[0])
    assert F.minmax(both)[1].tolist() == [1.0, 1.0, 1.0]


def test_eq_13_by_hand_for_any_number_of_spatial_dimensions() -> None:
    activation = torch.arange(12, dtype=DOUBLE).reshape(1, 2, 6)
    weights = tensor([2, -1])
    expected = [-6.0, -5.0, -4.0, -3.0, -2.0, -1.0]
    for size in ((6,), (2, 3), (1, 3, 2)):
        result = F.activation_map(activation.reshape(1, 2, *size), weights)
        assert result.shape == (1, 1, *size)
        assert result.flatten().tolist() == expected


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_activations_are_summed_in_float32(dtype: torch.dtype) -> None:
    activation = torch.full((1, 3001, 2, 3), 1.5, dtype=dtype)
    result = F.activation_map(activation, torch.ones(1, 3001, dtype=DOUBLE))
    assert result.dtype == torch.float32
    assert (result == 4501.5).all()  # bfloat16 stops counting at 256, float16 is out of steps of 1.5 beyond 4096


def test_widen_leaves_what_is_float32_or_better() -> None:
    for dtype, wide in [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (DOUBLE, DOUBLE),
    ]:
        assert F.widen(torch.ones(1, dtype=dtype)).dtype == wide


def test_common_precision_is_that_of_the_wider_tensor() -> None:
    half, double = torch.ones(1, 2, dtype=torch.bfloat16), torch.ones(3, 2, dtype=DOUBLE)
    assert [t.dtype for t in F.common_precision(half, double)] == [DOUBLE, DOUBLE]
    assert [t.dtype for t in F.common_precision(half, half)] == [torch.float32, torch.float32]


# The support-blind share


def test_support_blind_share_by_hand() -> None:
    activation = tensor([1, 0], [0, 1]).expand(4, 2, 2)
    contributions = tensor([-1, 1], [-1, 3], [0, 1], [2, 1])
    # sum_n A^n = (1, 1); sum_n C_n A^n = (C_1, C_2)
    close(F.support_blind_share(activation, contributions), [2 / 4, 2 / 6, 0 / 1, 2 / 5])


def test_support_blind_share_measures_the_two_sums_of_the_normalised_map() -> None:
    generator = torch.Generator().manual_seed(0)
    activation = torch.randn(3, 5, 4, 3, generator=generator, dtype=DOUBLE)
    contributions = torch.randn(3, 5, generator=generator, dtype=DOUBLE)
    low, high = contributions.amin(1), contributions.amax(1)
    blind = activation.sum(1) * (-low / (high - low))[:, None, None]
    aware = (activation * contributions[:, :, None, None]).sum(1) / (high - low)[:, None, None]
    close(F.activation_map(activation, F.minmax(contributions))[:, 0], blind + aware)
    energies = blind.abs().sum((1, 2)), aware.abs().sum((1, 2))
    close(F.support_blind_share(activation, contributions), energies[0] / (energies[0] + energies[1]))


def test_a_constant_contribution_leaves_a_support_blind_map() -> None:
    activation = torch.rand(3, 5, 2, 2, dtype=DOUBLE)
    rounded = torch.full((5,), 0.3, dtype=DOUBLE)
    rounded[2] += 1e-16
    contributions = torch.stack([torch.zeros(5).double(), torch.full((5,), 0.3).double(), rounded])
    assert F.support_blind_share(activation, contributions).tolist() == [1.0, 1.0, 1.0]


def test_a_flat_zero_activation_has_a_finite_share() -> None:
    share = F.support_blind_share(torch.zeros(1, 2, 3, 3), torch.tensor([[-1.0, 1.0]]))
    assert share.tolist() == [0.0]


# Degenerate embeddings


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_degenerate_embeddings_give_finite_weights(dtype: torch.dtype) -> None:
    tiny, huge = torch.finfo(dtype).tiny, torch.finfo(dtype).max ** 0.25
    rows = torch.tensor([[0.0] * 3, [1.0, 0, 0], [-1.0, 0, 0], [0, 1.0, 0], [tiny] * 3, [huge] * 3], dtype=dtype)
    weights = torch.full((6, 6), 1 / 6, dtype=dtype)
    shares = F.support_shares(weights, F.cosine_similarity(rows, rows))
    for support_weights in (weights, shares):
        normalised = F.minmax(F.cosine_contributions(rows, rows, support_weights))
        assert normalised.isfinite().all()
        assert normalised.min() >= 0
        assert normalised.max() <= 1


def test_a_support_counted_k_times_counts_once() -> None:
    query, support = torch.randn(3, 7, dtype=DOUBLE), torch.randn(1, 7, dtype=DOUBLE)
    one = F.cosine_contributions(query, support, torch.ones(3, 1, dtype=DOUBLE))
    for count in (2, 3, 200):
        copies = support.repeat(count, 1)
        many = F.cosine_contributions(query, copies, torch.full((3, count), 1 / count, dtype=DOUBLE))
        close(many, one)


def test_contributions_are_bounded_by_one_without_the_factor_and_not_with_it() -> None:
    angle = math.pi / 2 - 1e-3
    query, support = tensor([1, 1]), tensor([math.cos(math.pi / 4 + angle), math.sin(math.pi / 4 + angle)])
    plain = F.cosine_contributions(query, support, tensor([1]))
    printed = F.cosine_contributions(query, support, F.support_shares(tensor([1]), F.cosine_similarity(query, support)))
    assert plain.abs().max() <= 1
    assert printed.abs().max() > 100  # Eq. 15 says (-1, 1)
