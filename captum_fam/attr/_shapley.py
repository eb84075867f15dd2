"""Shapley values of a game, from few orders of its players.

Plain tensors. P players; a game is a function ``value(sets) -> (M,)`` of sets ``(M, P)``, True where a player is in.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

Game = Callable[[Tensor], Tensor]


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


def shapley_values(game: Game, orders: Tensor, max_sets: int) -> ShapleyValues:
    """Shapley values by the orders given, or exactly where all sets are no more than what these would play.

    Args:
        game: the value of sets.
        orders: from :func:`antithetic_orders`, at least four, ``(n, P)``, on the device of the game.
        max_sets: how many sets are played at once.
    """
    n_orders, n_players = orders.shape
    if 2**n_players <= _n_sampled(n_players, n_orders):
        return exact_values(game, n_players, max_sets, orders.device)
    return sampled_values(game, orders, max_sets)


def exact_values(game: Game, n_players: int, max_sets: int, device: torch.device | None = None) -> ShapleyValues:
    r"""Shapley values from all sets: :math:`\sum_{T \not\ni p} \frac{|T|!\,(P-|T|-1)!}{P!} (v(T \cup p) - v(T))`.

    Shapley, "A Value for n-Person Games", 1953.
    """
    # Set number i holds the players whose bits are set in i.
    bits = 2 ** torch.arange(n_players, device=device)
    numbers = torch.arange(2**n_players, device=device)
    played = torch.cat([game((some.unsqueeze(1) & bits) != 0) for some in numbers.split(max_sets)])
    sizes = ((numbers.unsqueeze(1) & bits) != 0).sum(1)
    chance = played.new_tensor([1 / (n_players * math.comb(n_players - 1, size)) for size in range(n_players)])
    values = []
    for bit in bits:
        without = numbers[(numbers & bit) == 0]
        values.append((chance[sizes[without]] * (played[without + bit] - played[without])).sum())
    each = torch.stack(values)
    return ShapleyValues(each, torch.zeros_like(each), played[0], played[-1])


def sampled_values(game: Game, orders: Tensor, max_sets: int) -> ShapleyValues:
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
        game: the value of sets.
        orders: ``(n, P)``; each second one is the reverse of the one before it, at least two such pairs.
        max_sets: how many sets are played at once.
    """
    n_orders, n_players = orders.shape
    places = orders.argsort(1)
    none_and_all = torch.arange(2, device=orders.device).bool().unsqueeze(1).expand(2, n_players)
    alone = torch.eye(n_players, dtype=torch.bool, device=orders.device)
    sets = itertools.chain(none_and_all.split(max_sets), alone.split(max_sets), _prefixes(places, max_sets))
    played = torch.cat([game(some) for some in sets])
    (empty, full), singles, walks = played.split([2, n_players, n_orders * (n_players - 1)])
    singles = singles - empty
    scale = torch.arange(1, n_players + 1, device=orders.device).to(played) ** -_exponent(singles, full - empty)
    ends = torch.stack([empty, full]).expand(n_orders, 2)
    along = torch.cat([ends[:, :1], walks.view(n_orders, -1), ends[:, 1:]], 1) - empty
    rest = (along[:, 1:] - scale * singles[orders].cumsum(1)).view(n_orders // 2, 2, n_players)
    added = rest.diff(dim=2, prepend=torch.zeros_like(rest[..., :1]))
    by_size = added.mean(1)
    of_others = (by_size.sum(0) - by_size) / (len(by_size) - 1)
    by_player = (added - of_others.unsqueeze(1)).gather(2, places.view_as(added))
    estimates = by_player.mean(1) + of_others.mean(1, keepdim=True) + _values_of_scaled_sum(singles, scale)
    return ShapleyValues(estimates.mean(0), estimates.std(0) / len(estimates) ** 0.5, empty, full)


def _n_sampled(n_players: int, n_orders: int) -> int:
    return 2 + n_players + n_orders * (n_players - 1)


def _prefixes(places: Tensor, max_sets: int) -> Iterator[Tensor]:
    """The sets that each order goes through, but for none and all: one order after the other, in chunks."""
    n_orders, n_players = places.shape
    steps = torch.arange(n_orders * (n_players - 1), device=places.device)
    for some in steps.split(max_sets):
        size = some % (n_players - 1) + 1
        yield places[some // (n_players - 1)] < size.unsqueeze(1)


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
