"""Shapley values of a game with P players, exact or estimated from few orders of the players. Plain tensors."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Game:
    """A value for every set of players. A subclass defines :meth:`value`.

    Args:
        max_sets: how many sets one call of :meth:`value` may get.
    """

    def __init__(self, max_sets: int) -> None:
        self.max_sets = max_sets

    def value(self, sets: Tensor) -> Tensor:
        """The values ``(M,)`` of at most ``max_sets`` sets ``(M, P)``; a set is True for the players in the set."""
        raise NotImplementedError

    def of_sets(self, sets: Tensor) -> Tensor:
        """The values of any number of sets, ``(M, P) -> (M,)``."""
        return torch.cat([self.value(chunk) for chunk in sets.split(self.max_sets)])

    def along(self, orders: Tensor) -> Tensor:
        """The values of the first 1, 2, ..., P - 1 players of each order: ``(n, P) -> (n, P - 1)``."""
        n_orders, n_players = orders.shape
        places = orders.argsort(1)  # the place of each player in the order
        steps = torch.arange(n_orders * (n_players - 1), device=orders.device)
        values = []
        for chunk in steps.split(self.max_sets):
            size = chunk % (n_players - 1) + 1
            values.append(self.value(places[chunk // (n_players - 1)] < size.unsqueeze(1)))
        return torch.cat(values).view(n_orders, -1)


class ShapleyValues(NamedTuple):
    """The Shapley value of each player, with its standard error.

    Attributes:
        values: ``(P,)``, with the sum ``full - empty``.
        standard_error: the standard error of each value, ``(P,)``; zero where the values are exact.
        empty: the value of the empty set, a scalar.
        full: the value of the set of all players, a scalar.
    """

    values: Tensor
    standard_error: Tensor
    empty: Tensor
    full: Tensor


def antithetic_orders(n_players: int, n_orders: int, seed: int) -> Tensor:
    """Random orders, each followed by its reverse, ``(n_orders, P)``, on the CPU.

    The global generator of torch is neither used nor changed.

    Args:
        n_players: P.
        n_orders: an even number.
        seed: equal seeds give equal orders.
    """
    generator = torch.Generator().manual_seed(seed)
    random_orders = torch.stack([torch.randperm(n_players, generator=generator) for _ in range(n_orders // 2)])
    return torch.stack([random_orders, random_orders.flip(1)], 1).flatten(0, 1)


def n_sets(n_players: int, n_orders: int) -> int:
    """The number of sets whose value :func:`shapley_values` asks for."""
    return min(2**n_players, _n_sampled(n_players, n_orders))


def shapley_values(game: Game, orders: Tensor) -> ShapleyValues:
    """Shapley values estimated from orders; exact values where there are no more sets than the orders would need.

    Args:
        game: the value of every set of players.
        orders: at least four orders from :func:`antithetic_orders`, ``(n, P)``, on the device of the game.
    """
    n_orders, n_players = orders.shape
    if 2**n_players <= _n_sampled(n_players, n_orders):
        return exact_values(game, n_players, orders.device)
    return sampled_values(game, orders)


def exact_values(game: Game, n_players: int, device: torch.device | None = None) -> ShapleyValues:
    r"""Shapley values from all sets: :math:`\sum_{T \not\ni p} \frac{|T|!\,(P-|T|-1)!}{P!} (v(T \cup p) - v(T))`.

    Shapley, "A Value for n-Person Games", 1953.
    """
    # Set number i holds the players whose bits are set in i.
    bits = 2 ** torch.arange(n_players, device=device)
    numbers = torch.arange(2**n_players, device=device)
    sets = (numbers.unsqueeze(1) & bits) != 0
    set_values = game.of_sets(sets)
    # |T|! (P - |T| - 1)! / P!, for every size |T| of a set without the player.
    weight = set_values.new_tensor([1 / (n_players * math.comb(n_players - 1, size)) for size in range(n_players)])
    values = []
    for player, bit in enumerate(bits):
        without = ~sets[:, player]
        rise = set_values[numbers[without] + bit] - set_values[without]
        values.append((weight[sets[without].sum(1)] * rise).sum())
    shapley = torch.stack(values)
    return ShapleyValues(shapley, torch.zeros_like(shapley), set_values[0], set_values[-1])


def sampled_values(game: Game, orders: Tensor) -> ShapleyValues:
    r"""Shapley values from orders of the players and their reverses.

    The value of a player is the mean rise of the value when the player joins the players before it (Castro, Gómez and
    Tejada, "Polynomial calculation of the Shapley value based on sampling", 2009). In a game of similarities the first
    player alone gets most of the score. With few orders, this mean would mostly show which players came first. Two
    games with known Shapley values are therefore subtracted, and only the rest is estimated from the orders. This
    changes neither the expected values nor their sum. The two games are:

    - :math:`g(T) = |T|^{-\gamma} \sum_{p \in T} a_p`, with the value of each player alone, :math:`a_p = v(\{p\}) -
      v(\emptyset)`, and the exponent for which g is closest to v for the set of all players. For an additive game,
      g is the game itself, and the rest is zero.
    - a game that depends on the size of the set only: the mean rest of v at this size, taken from the *other* pairs of
      orders, so that the estimate has no bias.

    Args:
        game: the value of every set of players.
        orders: ``(n, P)``, at least two pairs of an order and its reverse, one pair after the other.
    """
    n_orders, n_players = orders.shape
    nobody = torch.zeros(1, n_players, dtype=torch.bool, device=orders.device)
    alone = torch.eye(n_players, dtype=torch.bool, device=orders.device)
    empty, full, *_ = set_values = game.of_sets(torch.cat([nobody, ~nobody, alone]))
    singles = set_values[2:] - empty
    # The first game, g, is subtracted from the values along each order.
    scale = torch.arange(1, n_players + 1, device=orders.device).to(set_values) ** -_exponent(singles, full - empty)
    along = torch.cat([game.along(orders), full.expand(n_orders, 1)], 1) - empty
    rest = (along - scale * singles[orders].cumsum(1)).view(n_orders // 2, 2, n_players)
    rises = rest.diff(dim=2, prepend=torch.zeros_like(rest[..., :1]))
    # The second game: the mean rise at each size of the set, over all other pairs of orders.
    by_size = rises.mean(1)
    of_others = (by_size.sum(0) - by_size) / (len(by_size) - 1)
    by_player = (rises - of_others.unsqueeze(1)).gather(2, orders.argsort(1).view_as(rises))
    # One estimate per pair, with the known values of both games added back: by symmetry the second game gives every
    # player the mean over the sizes.
    estimates = by_player.mean(1) + of_others.mean(1, keepdim=True) + _values_of_scaled_sum(singles, scale)
    return ShapleyValues(estimates.mean(0), estimates.std(0) / len(estimates) ** 0.5, empty, full)


def _n_sampled(n_players: int, n_orders: int) -> int:
    """Sets of the estimate: the empty set, all players, each player alone, and P - 1 sets along every order."""
    return 2 + n_players + n_orders * (n_players - 1)


def _exponent(singles: Tensor, total: Tensor) -> float:
    r"""The exponent :math:`\gamma` in [0, 1] for which :math:`P^{-\gamma} \sum_p a_p` is closest to ``total``.

    With 0 the game g is the sum of the single values, with 1 their mean. The result is 1 where the sum and ``total``
    have different signs.

    Args:
        singles: the value of each player alone, a_p, ``(P,)``.
        total: the value of all players, a scalar.
    """
    ratio = float(total / singles.sum())
    return min(max(-math.log(ratio) / math.log(len(singles)), 0.0), 1.0) if 0 < ratio < math.inf else 1.0


def _values_of_scaled_sum(singles: Tensor, scale: Tensor) -> Tensor:
    """Shapley values of the game ``scale[|T| - 1] * singles[T].sum()``, ``(P,)``.

    When player p joins as number k, the value rises by ``scale[k - 1]`` times the single value of p, and the k - 1
    players before p are rescaled from ``scale[k - 2]`` to ``scale[k - 1]``. On average over all orders, each of the
    other P - 1 players is among the k - 1 players before p with probability (k - 1) / (P - 1).
    """
    before = torch.arange(1, len(singles), device=singles.device).to(singles) / (len(singles) - 1)
    rescaled = (scale.diff() * before).sum()
    return (scale.sum() * singles + rescaled * (singles.sum() - singles)) / len(singles)
