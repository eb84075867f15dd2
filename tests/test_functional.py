"""Eq. 11-18 on plain tensors, against numbers worked by hand and the loops of ``reference.py``."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from captum_fam import functional as F
from tests import reference
from tests.perturbed_products import PerturbedProducts

DOUBLE = torch.float64


def tensor(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=DOUBLE)


def close(actual: Tensor, expected: object, rtol: float = 1e-12) -> None:
    wanted = torch.as_tensor(np.asarray(expected), dtype=actual.dtype)
    torch.testing.assert_close(actual, wanted, rtol=rtol, atol=rtol)


# A support shared by the batch, or one per query


def test_each_support_comes_alone_whether_shared_or_not() -> None:
    shared, each = torch.rand(4, 5), torch.rand(3, 4, 5)
    assert [rows.tolist() for rows in F.each_support(shared)] == shared.tolist()
    assert [rows.tolist() for rows in F.each_support(each)] == each.transpose(0, 1).tolist()


def test_products_of_lengths_by_hand() -> None:
    query, support = tensor([3, 4], [0, 0]), tensor([5, 12], [0, 2])
    close(F.products_of_lengths(query, support), [[65, 10], [0, 0]])
    close(F.products_of_lengths(query, support.repeat(2, 1, 1)), [[65, 10], [0, 0]])


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
        close(result.flatten(), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_activations_are_summed_in_float32(dtype: torch.dtype) -> None:
    activation = torch.full((1, 3001, 2, 3), 1.5, dtype=dtype)
    result = F.activation_map(activation, torch.ones(1, 3001, dtype=DOUBLE))
    assert result.dtype == torch.float32
    # bfloat16 stops counting at 256, float16 is out of steps of 1.5 beyond 4096.
    torch.testing.assert_close(result, torch.full_like(result, 4501.5), rtol=1e-6, atol=0)


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


def test_support_blind_share_measures_the_two_sums_of_the_normalized_map() -> None:
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


# Rounding

processors = pytest.mark.parametrize("processor", ["this", "up", "down"])


def on(processor: str) -> Any:
    """This processor, or one that rounds the last place of its products up or down."""
    return nullcontext() if processor == "this" else PerturbedProducts(processor)  # type: ignore[arg-type]


@processors
@pytest.mark.parametrize("count", [1, 2, 17, 513, 4001])
@pytest.mark.parametrize("batch", [1, 3])
def test_rounding_covers_what_products_of_unlike_terms_lose(processor: str, count: int, batch: int) -> None:
    for left, right in (
        (torch.rand(batch, count), torch.rand(count, 33)),
        (torch.randn(batch, count), torch.randn(count, 33)),
    ):
        with on(processor):
            error = (left @ right).double() - left.double() @ right.double()
        allowed = F.rounding(count, torch.float32) * (left.double().abs() @ right.double().abs())
        assert (error.abs() <= allowed).all()


@processors
@pytest.mark.parametrize("count", [2, 10, 200, 1000])
@pytest.mark.parametrize("batch", [1, 3])
def test_rounding_of_supports_covers_what_sums_of_copies_lose(processor: str, count: int, batch: int) -> None:
    weights, support = torch.full((batch, count), 1 / count), torch.rand(1, 65).expand(count, -1).contiguous()
    with on(processor):
        error = F.combine_supports(weights, support).double() - F.combine_supports(weights.double(), support.double())
    assert (error.abs() <= F.rounding_of_supports(count, torch.float32) * support[0]).all()


def test_rounding_grows_with_the_root_of_the_count_and_leaves_real_contributions_far_behind() -> None:
    assert F.rounding(64, torch.float64) == 8 * torch.finfo(torch.float64).eps
    close(F.rounding(torch.tensor([0.0, 16.0, 64.0], dtype=DOUBLE), DOUBLE), [4 * 2**-52, 6 * 2**-52, 8 * 2**-52])
    assert F.rounding_of_supports(4000, torch.float32) < 1e-4
    assert F.rounding_of_supports(4000, torch.float64) < 1e-9


def test_the_first_of_tied_scores_is_the_largest() -> None:
    scores = tensor([0.2, 0.5, 0.5 + 1e-15, 0.5 - 1e-15], [0.5, 0.5 + 1e-15, 0.7, 0.1], [0.1, 0.1 + 1e-13, 0.0, 0.0])
    assert F.first_largest(scores, torch.full_like(scores, 1e-15)).tolist() == [1, 2, 1]
    assert F.first_largest(scores, torch.zeros_like(scores)).tolist() == scores.argmax(1).tolist() == [2, 2, 1]
    own = tensor([1, 1e-16, 1e-16, 1e-16], [0, 0, 0, 0], [1e-13, 0, 0, 0])
    assert F.first_largest(scores, own).tolist() == [0, 2, 0]


def test_values_within_rounding_are_zero_and_keep_their_gradient() -> None:
    values = tensor([1e-17, -1e-17, 0.5, -0.5]).requires_grad_()
    settled = F.zero_within(values, torch.full((1, 4), 1e-16, dtype=DOUBLE))
    assert settled.tolist() == [[0, 0, 0.5, -0.5]]
    (gradient,) = torch.autograd.grad((settled * tensor([1, 2, 3, 4])).sum(), values)
    assert gradient.tolist() == [[1, 2, 3, 4]]


# Scales


def test_moderate_rows_are_exact_multiples_by_powers_of_two() -> None:
    rows = torch.tensor([[3e38, -1e37, 0.0], [1e-44, 0.0, 3e-45], [0.0, 0.0, 0.0], [0.3, -0.7, 0.1]])
    actual = F.moderate(rows).double()
    factors = actual[[0, 1, 3], 0] / rows[[0, 1, 3], 0].double()
    assert (factors.log2() == factors.log2().round()).all()
    close(actual, rows.double() * torch.tensor([factors[0], factors[1], 1, factors[2]], dtype=DOUBLE)[:, None], 0)
    assert 0.5 <= actual[3].abs().max() < 1


@pytest.mark.parametrize("scale", [1e-38, 1e-30, 1e-20, 1e-13, 1e-4, 1.0, 1e19, 3e37])
def test_directions_and_lengths_do_not_depend_on_the_scale(scale: float) -> None:
    vectors = torch.rand(4, 9)
    scaled = scale * vectors
    exact = scaled.double().norm(dim=1)
    close(F.lengths(scaled).double() / exact, torch.ones(4), 1e-6)
    close(F.unit(scaled), scaled.double() / exact[:, None], 1e-6)
    support, length = F.directed(scaled)
    close(support.double() / length.double()[:, None], scaled.double() / exact[:, None], 1e-6)


def test_directed_supports_are_the_supports_themselves_where_nothing_is_out_of_range() -> None:
    support = torch.rand(3, 5)
    assert F.directed(support)[0] is support


def test_the_gradient_of_unit_rows_leaves_their_length_out() -> None:
    rows = torch.randn(3, 5, dtype=DOUBLE).requires_grad_()
    assert torch.autograd.gradcheck(F.unit, rows)
    zeros = torch.zeros(2, 3, dtype=DOUBLE).requires_grad_()
    (gradient,) = torch.autograd.grad(F.unit(zeros).sum(), zeros)
    assert gradient.isfinite().all()


@pytest.mark.parametrize(
    ("of_query", "of_support"), [(1, 1e20), (1e-13, 1), (1e-20, 1), (1, 3e38), (1e20, 1e-20), (1e-38, 1e-38)]
)
@pytest.mark.parametrize("per_query", [False, True])
def test_cosines_and_contributions_do_not_depend_on_the_scale(
    of_query: float, of_support: float, per_query: bool
) -> None:
    query, support = torch.rand(3, 7), torch.rand(*((3, 4, 7) if per_query else (4, 7)))
    weights = torch.rand(3, 4)
    close(F.cosine_similarity(of_query * query, of_support * support), F.cosine_similarity(query, support), 1e-6)
    actual = F.cosine_contributions(of_query * query, of_support * support, weights)
    close(actual, F.cosine_contributions(query, support, weights), 1e-6)


def test_one_support_out_of_range_leaves_the_others_as_they_are() -> None:
    query, support = torch.rand(3, 7), torch.rand(4, 7)
    mixed = support * torch.tensor([[1.0], [1e30], [1e-30], [1.0]])
    close(F.cosine_similarity(query, mixed), F.cosine_similarity(query, support), 1e-6)


def test_cosines_of_half_precision_embeddings_near_its_smallest_number() -> None:
    query = torch.tensor([[1e-7, 3e-7, 0.0], [2e-7, 0.0, 5e-7]], dtype=torch.float16)
    support = torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float16)
    exact = torch.nn.functional.cosine_similarity(query.double(), support.double(), eps=0)
    close(F.cosine_similarity(*F.common_precision(query, support)).flatten(), exact, 1e-6)


def test_a_cosine_is_never_outside_one() -> None:
    rows = torch.randn(500, 64, generator=torch.Generator().manual_seed(3))
    plain = torch.cat([(F.unit(row) * F.unit(row)).sum(1) for row in rows.split(1)])
    assert plain.max() > 1  # as rounding has it
    cosines = torch.cat([F.cosine_similarity(row, torch.cat([row, -row])) for row in rows.split(1)])
    assert cosines.abs().max() <= 1
    assert not cosines.arccos().isnan().any()
    close(cosines, [[1.0, -1.0]] * 500, 1e-6)


def test_cutting_a_cosine_leaves_its_gradient() -> None:
    cosines = tensor([1 + 1e-15, -1 - 1e-15, 0.5]).requires_grad_()
    cut = F.within_one(cosines)
    assert cut.tolist() == [[1.0, -1.0, 0.5]]
    assert torch.autograd.grad(cut.sum(), cosines)[0].tolist() == [[1.0, 1.0, 1.0]]


def test_shares_are_bounded_relative_to_the_most_that_a_similarity_can_be() -> None:
    shares = F.support_shares(tensor([1, 1, 1]), tensor([2e-8, 1e-12, 0]), tensor([1e-2, 1e-2, 0]))
    close(shares, [[5e7, 1e8, 1]])  # 1 / 2e-8, 1 / (1e-6 * 1e-2), and nothing to be shared


def test_the_error_of_a_share_is_that_of_its_similarity_and_half_of_it_at_most() -> None:
    similarities = tensor([0.5, 1e-3, 1e-9, -1e-3])
    eps = torch.finfo(torch.float64).eps
    close(F.shares_rounding(similarities, 64), [[16 * eps, 8e3 * eps, 8e6 * eps, 8e3 * eps]])
    bound = tensor([2, 2, 2, 2])
    close(F.shares_rounding(similarities, 64, bound), [[32 * eps, 16e3 * eps, 8e6 * eps, 16e3 * eps]])
    assert F.shares_rounding(torch.tensor([[1e-7, -1e-7]]), 64).tolist() == [[0.5, 0.5]]


def test_rectified_contributions_by_hand() -> None:
    close(F.rectify(tensor([-1, 1, 4], [-2, -1, 0], [0, 0, 0])), [[0, 0.25, 1], [0, 0, 0], [0, 0, 0]])


def test_contributions_over_their_largest_magnitude_by_hand() -> None:
    close(F.maxabs(tensor([-4, 1, 2], [-2, 0, 0], [0, 0, 0])), [[-1, 0.25, 0.5], [-1, 0, 0], [0, 0, 0]])


@pytest.mark.parametrize("scale", [3e38, 1e-40])
def test_eq_12_holds_for_the_largest_and_the_smallest_numbers(scale: float) -> None:
    close(F.minmax(scale * torch.tensor([[-1.0, 0.0, 1.0]])), [[0, 0.5, 1]], 1e-3)


# Degenerate embeddings


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_degenerate_embeddings_give_finite_weights(dtype: torch.dtype) -> None:
    tiny, huge = torch.finfo(dtype).tiny, torch.finfo(dtype).max ** 0.25
    rows = torch.tensor([[0.0] * 3, [1.0, 0, 0], [-1.0, 0, 0], [0, 1.0, 0], [tiny] * 3, [huge] * 3], dtype=dtype)
    weights = torch.full((6, 6), 1 / 6, dtype=dtype)
    shares = F.support_shares(weights, F.cosine_similarity(rows, rows))
    for support_weights in (weights, shares):
        normalized = F.minmax(F.cosine_contributions(rows, rows, support_weights))
        assert normalized.isfinite().all()
        assert normalized.min() >= 0
        assert normalized.max() <= 1


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


# Smoothing


def spread_by_loops(map_: np.ndarray, window: int) -> np.ndarray:
    """One map ``(*spatial)``: every value is carried to the positions around it, one by one."""
    out = np.zeros_like(map_)
    for place in np.ndindex(map_.shape):
        around = tuple(
            slice(max(at - window // 2, 0), at + window // 2 + 1) for at in place
        )  # numpy cuts the end of a slice at the border itself
        out[around] += map_[place] / out[around].size
    return out


def test_a_value_is_spread_over_the_part_of_its_window_that_lies_in_the_map_by_hand() -> None:
    maps = torch.tensor([[[[9, 0, 0], [0, 0, 0], [0, 0, 0]]], [[[0, 0, 0], [0, 9, 0], [0, 0, 6]]]]).double()
    close(
        F.smooth_maps(maps, 3),
        [
            [[[2.25, 2.25, 0], [2.25, 2.25, 0], [0, 0, 0]]],  # a corner has four positions in its window
            [[[1, 1, 1], [1, 2.5, 2.5], [1, 2.5, 2.5]]],
        ],
    )


@pytest.mark.parametrize("window", [3, 5, 9, 10**9 + 1])
@pytest.mark.parametrize("shape", [(7,), (1,), (5, 8), (1, 6), (3, 4, 5)])
def test_smoothed_maps_equal_loops_and_keep_their_sums(shape: tuple[int, ...], window: int) -> None:
    maps = torch.randn(2, 3, *shape, dtype=DOUBLE)
    smooth = F.smooth_maps(maps, window)
    close(smooth, [[spread_by_loops(one.numpy(), window) for one in sample] for sample in maps])
    close(smooth.flatten(2).sum(2), maps.flatten(2).sum(2))


def test_a_constant_map_is_not_constant_when_its_sum_is_kept() -> None:
    close(F.smooth_maps(torch.ones(1, 1, 4, dtype=DOUBLE), 3), [[[5 / 6, 7 / 6, 7 / 6, 5 / 6]]])


def test_a_window_of_one_leaves_maps_as_they_are() -> None:
    maps = torch.randn(2, 1, 5, 4)
    assert F.smooth_maps(maps, 1).equal(maps)


def test_the_gradient_of_smoothing_is_the_plain_mean_over_each_window() -> None:
    maps, weights = torch.randn(2, 1, 5, 6, dtype=DOUBLE, requires_grad=True), torch.randn(2, 1, 5, 6, dtype=DOUBLE)
    (gradient,) = torch.autograd.grad((F.smooth_maps(maps, 3) * weights).sum(), maps)
    close(gradient, torch.nn.functional.avg_pool2d(weights, 3, 1, padding=1, count_include_pad=False))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_maps_in_half_precision_are_smoothed_in_float32(dtype: torch.dtype) -> None:
    maps = torch.randn(2, 1, 9, 8).to(dtype)
    smooth = F.smooth_maps(maps, 3)
    assert smooth.dtype == torch.float32
    torch.testing.assert_close(smooth, F.smooth_maps(maps.double(), 3).float())


@pytest.mark.parametrize("window", [3, np.int64(3), np.uint8(3), torch.tensor(3)])
def test_a_window_may_be_any_whole_number(window: Any) -> None:
    maps = torch.arange(12, dtype=DOUBLE).view(1, 1, 3, 4)
    close(F.smooth_maps(maps, window), [[spread_by_loops(maps[0, 0].numpy(), 3)]])
    assert type(F.check_window("smooth", window)) is int


@pytest.mark.parametrize("window", [0, -3, 4, 3.0, True, "3", None, np.int64(4), torch.tensor(3.0)])
def test_a_window_without_a_middle_is_an_error(window: Any) -> None:
    with pytest.raises(ValueError, match=r"window must be an odd whole number of at least 1, got"):
        F.smooth_maps(torch.ones(1, 1, 4), window)


def test_maps_without_a_spatial_dimension_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"maps must have the shape \(B, N, \*spatial\), got \(4, 5\)"):
        F.smooth_maps(torch.ones(4, 5), 3)
