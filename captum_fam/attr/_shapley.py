"""Shapley values of a game, from few orders of its players. Plain tensors; P players."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Game:
    """What every set of players is worth. A game defines :meth:`value`.

    Args:
        max_sets: how many sets are played at once.
    """

    def __init__(self, max_sets: int) -> None:
        self.max_sets = max_sets

    def value(self, sets: Tensor) -> Tensor:
        """The values of at most ``max_sets`` sets ``(M, P)``, True where a player is in: ``(M,)``."""
        raise NotImplementedError

    def of_sets(self, sets: Tensor) -> Tensor:
        """The values of any number of sets, ``(M, P) -> (M,)``."""
        return torch.cat([self.value(some) for some in sets.split(self.max_sets)])

    def along(self, orders: Tensor) -> Tensor:
        """The values of the sets that orders go through, without none and all: ``(n, P) -> (n, P - 1)``."""
        n_orders, n_players = orders.shape
        places = orders.argsort(1)
        steps = torch.arange(n_orders * (n_players - 1), device=orders.device)
        chunks = []
        for some in steps.split(self.max_sets):
            size = some % (n_players - 1) + 1
            chunks.append(self.value(places[some // (n_players - 1)] < size.unsqueeze(1)))
        return torch.cat(chunks).view(n_orders, -1)


class ShapleyValues(NamedTuple):
    """What each player adds to a game, and how well that is known.

    Attributes:
        values: ``(P,)``; they sum to ``full - empty``.
        standard_error: of each value, ``(P,)``; zero where all sets were played.
        empty: the value of no player, a scalar.
        full: the value of all players, a scalar.
    """

    values: Tensor
    standard_error: Tensor
    empty: Tensor
    full: Tensor


def antithetic_orders(n_players: int, n_orders: int, seed: int) -> Tensor:
    """Random orders, each followed by its reverse: ``(n_orders, P)``, on the CPU, whatever torch's own generator does.

    Args:
        n_players: P.
        n_orders: an even number.
        seed: the same orders come of the same seed.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.stack([torch.randperm(n_players, generator=generator) for _ in range(n_orders // 2)])
    return torch.stack([drawn, drawn.flip(1)], 1).flatten(0, 1)


def n_sets(n_players: int, n_orders: int) -> int:
    """How many sets :func:`shapley_values` plays."""
    return min(2**n_players, _n_sampled(n_players, n_orders))


def shapley_values(game: Game, orders: Tensor) -> ShapleyValues:
    """Shapley values by the orders given, or exactly where all sets are no more than what these would play.

    Args:
        game: to be played.
        orders: from :func:`antithetic_orders`, at least four, ``(n, P)``, on the device of the game.
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
    played = game.of_sets(sets)
    chance = played.new_tensor([1 / (n_players * math.comb(n_players - 1, size)) for size in range(n_players)])
    values = []
    for player, bit in enumerate(bits):
        without = ~sets[:, player]
        added = played[numbers[without] + bit] - played[without]
        values.append((chance[sets[without].sum(1)] * added).sum())
    each = torch.stack(values)
    return ShapleyValues(each, torch.zeros_like(each), played[0], played[-1])


def sampled_values(game: Game, orders: Tensor) -> ShapleyValues:
    r"""Shapley values from orders of the players and their reverses.

    A player's value is the mean of what the player adds to those before it (Castro, Gómez and Tejada, "Polynomial
    calculation of the Shapley value based on sampling", 2009). Who comes first in a game of similarities takes
    most of the score at once, and by this mean alone a map of few orders shows who was drawn first. Two games with
    known values are therefore taken off and only the rest is left to the orders, which changes neither the expected
    values nor their sum:

    - :math:`g(T) = |T|^{-\gamma} \sum_{p \in T} a_p`, with what each player is worth alone, :math:`a_p = v(\{p\}) -
      v(\emptyset)`, and the exponent with which it comes closest to v for all players. In a game that is a sum this
      is the game, and nothing is left to the orders.
    - a game of the size of the set only: what is left of v on average at this size, in the *other* pairs of orders.

    Args:
        game: to be played.
        orders: ``(n, P)``; each second one is the reverse of the one before it, at least two such pairs.
    """
    n_orders, n_players = orders.shape
    nobody = torch.zeros(1, n_players, dtype=torch.bool, device=orders.device)
    alone = torch.eye(n_players, dtype=torch.bool, device=orders.device)
    empty, full, *_ = played = game.of_sets(torch.cat([nobody, ~nobody, alone]))
    singles = played[2:] - empty
    scale = torch.arange(1, n_players + 1, device=orders.device).to(played) ** -_exponent(singles, full - empty)
    along = torch.cat([game.along(orders), full.expand(n_orders, 1)], 1) - empty
    rest = (along - scale * singles[orders].cumsum(1)).view(n_orders // 2, 2, n_players)
    added = rest.diff(dim=2, prepend=torch.zeros_like(rest[..., :1]))
    by_size = added.mean(1)
    of_others = (by_size.sum(0) - by_size) / (len(by_size) - 1)
    by_player = (added - of_others.unsqueeze(1)).gather(2, orders.argsort(1).view_as(added))
    estimates = by_player.mean(1) + of_others.mean(1, keepdim=True) + _values_of_scaled_sum(singles, scale)
    return ShapleyValues(estimates.mean(0), estimates.std(0) / len(estimates) ** 0.5, empty, full)


def _n_sampled(n_players: int, n_orders: int) -> int:
    return 2 + n_players + n_orders * (n_players - 1)


def _exponent(singles: Tensor, total: Tensor) -> float:
    """The exponent in [0, 1] with which the scaled sum of the singles is nearest to ``total``.

    0 is their sum, 1 their mean, which also stands where no such exponent gives the sign.
    """
    ratio = float(total / singles.sum())
    return min(max(-math.log(ratio) / math.log(len(singles)), 0.0), 1.0) if 0 < ratio < math.inf else 1.0


def _values_of_scaled_sum(singles: Tensor, scale: Tensor) -> Tensor:
    """Shapley values of the game ``scale[|T| - 1] * singles[T].sum()``, ``(P,)``.

    Player p brings its own share at the scale of the size reached, and rescales those before it, who are on average
    as many of the others as the place of p says.
    """
    before = torch.arange(1, len(singles), device=singles.device).to(singles) / (len(singles) - 1)
    rescaled = (scale.diff() * before).sum()
    return (scale.sum() * singles + rescaled * (singles.sum() - singles)) / len(singles)
