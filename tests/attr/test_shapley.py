"""Shapley values of games on tensors, against the definition over all orders."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from captum_fam.attr._shapley import (
    Game,
    ShapleyValues,
    antithetic_orders,
    exact_values,
    n_sets,
    sampled_values,
    shapley_values,
)


class Played(Game):
    """A game that is a function of sets."""

    def __init__(self, value: Callable[[Tensor], Tensor], max_sets: int = 4096) -> None:
        super().__init__(max_sets)
        self.value = value  # type: ignore[method-assign]


def random_game(n_players: int, seed: int = 0, max_sets: int = 4096) -> tuple[Game, list[float]]:
    """A game without any structure, and its values by the number whose bits are the players."""
    values = torch.randn(2**n_players, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    bits = 2 ** torch.arange(n_players)
    return Played(lambda sets: values[(sets * bits).sum(1)], max_sets), values.tolist()


def by_definition(values: list[float], n_players: int) -> Tensor:
    """The mean over all orders of what each player adds when it comes."""
    added = [0.0] * n_players
    for order in itertools.permutations(range(n_players)):
        there = 0
        for player in order:
            added[player] += values[there + 2**player] - values[there]
            there += 2**player
    return torch.tensor(added, dtype=torch.float64) / math.factorial(n_players)


def cosine_game(n_players: int, seed: int = 0) -> Game:
    """The cosine of a sum of vectors with a fixed one: who comes first takes most of the score."""
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.rand(n_players, 8, dtype=torch.float64, generator=generator) ** 4
    wanted = torch.rand(8, dtype=torch.float64, generator=generator)

    def game(sets: Tensor) -> Tensor:
        sums = sets.double() @ vectors
        return sums @ wanted / (sums.norm(dim=1).clamp_min(1e-12) * wanted.norm())

    return Played(game)


def test_values_from_all_sets_are_the_mean_over_all_720_orders_of_six_players() -> None:
    game, values = random_game(6, max_sets=7)
    found = exact_values(game, 6)
    torch.testing.assert_close(found.values, by_definition(values, 6), rtol=0, atol=1e-12)
    assert (found.empty, found.full) == (values[0], values[-1])
    assert not found.standard_error.any()


def test_the_expected_estimate_over_all_draws_of_two_pairs_of_orders_is_the_value() -> None:
    game, values = random_game(3, max_sets=5)
    pairs = [torch.tensor([order, order[::-1]]) for order in itertools.permutations(range(3))]
    estimates = [sampled_values(game, torch.cat(draw)).values for draw in itertools.product(pairs, pairs)]
    torch.testing.assert_close(torch.stack(estimates).mean(0), by_definition(values, 3), rtol=0, atol=1e-12)


def test_the_expected_estimate_over_all_draws_of_three_pairs_of_orders_is_the_value() -> None:
    game, values = random_game(3, seed=1, max_sets=5)
    pairs = [torch.tensor([order, order[::-1]]) for order in itertools.permutations(range(3))]
    draws = itertools.product(pairs, repeat=3)
    estimates = [sampled_values(game, torch.cat(draw)).values for draw in draws]
    torch.testing.assert_close(torch.stack(estimates).mean(0), by_definition(values, 3), rtol=0, atol=1e-12)


@pytest.mark.parametrize("n_orders", [4, 6, 32])
@pytest.mark.parametrize("n_players", [2, 7, 35])
def test_estimates_of_any_number_of_orders_sum_to_the_whole_less_nothing(n_orders: int, n_players: int) -> None:
    wanted = torch.randn(n_players, 3, dtype=torch.float64)

    def game(sets: Tensor) -> Tensor:
        return torch.sin(sets.double() @ wanted + 1).prod(1)

    found = sampled_values(Played(game, max_sets=9), antithetic_orders(n_players, n_orders, 0))
    torch.testing.assert_close(found.values.sum(), found.full - found.empty, rtol=0, atol=1e-12)
    everybody = torch.ones(1, n_players, dtype=torch.bool)
    torch.testing.assert_close(found.full, game(everybody)[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(found.empty, game(~everybody)[0], rtol=0, atol=1e-12)


def test_in_a_game_that_is_a_sum_four_orders_give_each_player_its_term() -> None:
    terms = torch.randn(20, dtype=torch.float64)
    terms *= terms.sum().sign()
    found = sampled_values(Played(lambda sets: sets.double() @ terms + 3, 11), antithetic_orders(20, 4, 0))
    torch.testing.assert_close(found.values, terms, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.standard_error, torch.zeros(20, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("exponent", [0.0, 0.4, 1.0])
def test_four_orders_are_exact_for_a_sum_that_is_scaled_by_its_number_of_terms(exponent: float) -> None:
    terms = torch.tensor([2.0, -0.5, 1.0, 0.25, 3.0, 0.0, 1.5], dtype=torch.float64)

    def game(sets: Tensor) -> Tensor:
        return sets.double() @ terms * sets.sum(1).clamp_min(1).double() ** -exponent - 1

    found = sampled_values(Played(game), antithetic_orders(7, 4, 0))
    torch.testing.assert_close(found.values, exact_values(Played(game), 7).values, rtol=0, atol=1e-12)


def test_in_a_game_of_the_number_of_players_all_get_the_same() -> None:
    found = sampled_values(Played(lambda sets: sets.sum(1).double().sqrt()), antithetic_orders(9, 4, 0))
    torch.testing.assert_close(found.values, torch.full((9,), 3 / 9, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("terms", [(1.0, -1.0, 0.0), (0.0, 0.0, 0.0)])
def test_players_who_are_worth_nothing_together_get_finite_values(terms: tuple[float, ...]) -> None:
    each = torch.tensor(terms, dtype=torch.float64)
    found = sampled_values(Played(lambda sets: sets.double() @ each), antithetic_orders(3, 4, 0))
    assert found.values.isfinite().all()
    torch.testing.assert_close(found.values.sum(), each.sum(), rtol=0, atol=1e-12)


def test_the_standard_error_falls_with_the_root_of_the_number_of_orders_and_is_the_distance_from_the_value() -> None:
    game = cosine_game(12)
    truth = exact_values(game, 12).values

    def found(n_orders: int) -> ShapleyValues:
        return sampled_values(game, antithetic_orders(12, n_orders, 3))

    few, many = found(64), found(64 * 16)
    ratio = few.standard_error.square().mean().sqrt() / many.standard_error.square().mean().sqrt()
    assert 3 < ratio < 5.3
    for one in (few, many):
        distance = (one.values - truth).square().mean().sqrt() / one.standard_error.square().mean().sqrt()
        assert 0.5 < distance < 2


def test_known_games_taken_off_leave_a_fraction_of_the_error_of_the_mean_alone() -> None:
    game = cosine_game(40)
    orders = antithetic_orders(40, 64, 0)
    truth = sampled_values(game, antithetic_orders(40, 4096, 1)).values
    plain = torch.zeros(40, dtype=torch.float64)
    for order in orders:
        prefixes = torch.zeros(41, 40, dtype=torch.bool)
        for size, player in enumerate(order.tolist(), start=1):
            prefixes[size:, player] = True
        plain[order] += game.value(prefixes).diff() / len(orders)
    ours = sampled_values(game, orders).values
    assert 3 * (ours - truth).norm() < (plain - truth).norm()


def test_every_second_order_is_the_reverse_of_the_one_before_it() -> None:
    orders = antithetic_orders(5, 8, 0)
    assert orders.shape == (8, 5)
    assert torch.equal(orders[1::2], orders[::2].flip(1))
    assert torch.equal(orders.sort(1).values, torch.arange(5).expand(8, 5))


def test_orders_come_of_their_seed_alone() -> None:
    state = torch.random.get_rng_state()
    first = antithetic_orders(30, 4, 5)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.rand(3)
    assert torch.equal(antithetic_orders(30, 4, 5), first)
    assert not torch.equal(antithetic_orders(30, 4, 6), first)


@pytest.mark.parametrize(("n_players", "n_orders", "is_exact"), [(1, 4, True), (6, 32, True), (12, 32, False)])
def test_all_sets_are_played_where_they_are_no_more_than_those_of_the_orders(
    n_players: int, n_orders: int, is_exact: bool
) -> None:
    played: list[int] = []
    game = cosine_game(n_players)

    def watched(sets: Tensor) -> Tensor:
        played.append(len(sets))
        return game.value(sets)

    found = shapley_values(Played(watched, max_sets=10), antithetic_orders(n_players, n_orders, 0))
    assert max(played) <= 10
    assert sum(played) == n_sets(n_players, n_orders)
    assert (sum(played) == 2**n_players) is is_exact
    assert bool(found.standard_error.any()) is not is_exact
