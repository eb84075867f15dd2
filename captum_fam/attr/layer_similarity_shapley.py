"""Shapley values of a layer's positions for the score of a similarity."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from captum_fam import functional as F
from captum_fam._arithmetic import plain_arithmetic
from captum_fam._captum import TargetType
from captum_fam.attr._shapley import Game, antithetic_orders, n_sets, shapley_values
from captum_fam.attr._tail import LayerTail, ModulesBehind, Step, find_tail, given_tail
from captum_fam.attr.account import MAP, REST
from captum_fam.attr.base import SimilarityLayerAttribution
from captum_fam.attr.call import LayerCall, LayerMaps
from captum_fam.attr.tokens import TokenGridLike
from captum_fam.similarity import Cosine, SimilarityLike
from captum_fam.support import Comparison, Support

TailLike = Literal["auto"] | Callable[[Tensor], Tensor]

EMPTY = "empty"
"""The share of the score that is there without any position."""

NOT_FINITE = (
    "tail gives NaN or inf for an activation with only some of its positions kept, the others being zero; where it "
    "divides by a norm or a sum, bound that from below as torch.nn.functional.normalize does"
)


class LayerSimilarityShapley(SimilarityLayerAttribution):
    r"""What each position of a layer adds to the similarity, averaged over the orders in which positions can come.

    The players are the positions of the layer. A set T of them is worth v(T), the model's own score of the target
    class, less its foil, for the activation with the positions of T kept and all others set to zero:
    :math:`v(T) = \sum_k w_k\, s(\mathrm{tail}(A_T), Z_k)`. The support weights w are those of the whole query, negative
    on a foil; so a runner-up, and the neighbors of a memory bank, are those of the whole query for every set. The map
    is the Shapley value of each position,

    .. math:: \phi_p = \sum_{T \not\ni p} \frac{|T|!\,(P-|T|-1)!}{P!}\, \bigl(v(T \cup p) - v(T)\bigr),

    and sums to v(all) - v(none), for any head. What a score has without any position, v(none), is the share
    ``"empty"``. For the cosine it is 0 where the tail embeds an empty activation as the zero vector, else the cosine of
    what the tail makes of zeros, such as the bias of its head. For a distance it is minus the distance from there.

    Use it where the tail is no pooling with a linear head: :class:`LayerSimilarityCAM` follows such a tail with its
    scales held, this one runs it. A position that only repeats what others say already gets less here.

    How: random orders, each with its reverse; a position adds what the score rises by when it comes. Most of the
    variance is taken off by two games whose values are known (``sampled_values`` in ``captum_fam/attr/_shapley.py``).
    Grids of few positions, such as 3 x 3, are computed exactly. Only the tail is run, about ``n_permutations`` times
    the number of positions for each query; where it begins with a mean over the positions, the means of many sets are
    one matrix product. All queries have the same orders: a map does not depend on the batch.

    Args:
        forward_func: an embedding model, ``forward_func(x) -> (B, J)``, or a
            :class:`~captum_fam.SimilarityToSupport`, which brings its support, similarity and foil.
        layer: one module, or its dotted name.
        device_ids: order of the devices, where ``forward_func`` runs a DataParallel model of its own.
        similarity: the measure the model decides with.
        tail: from the layer's tensor, as the layer gives it, to the embedding: a module or function
            ``(B, N, *spatial) -> (B, J)``. ``"auto"`` takes the modules that run behind the layer, one after the other;
            what functions do between modules is seen as far as it changes the embeddings of these queries. Both must
            make the model's own embeddings of the queries, for the cosine up to a positive factor.
        n_permutations: orders of the positions, an even number of at least four. The standard error falls with its
            root; with 128, on 13 x 13 positions of bird photographs, it is 15 % of the spread of a map (correlation
            0.99 with the map of 2,048), and 7 % with a foil.
        seed: of the orders; torch's own generator is left as it is.
        max_batch: how many masked activations are held at once. Means of positions take no more room.
        show_progress: show a progress bar.
        token_grid: rearranges the layer's tensor into ``(B, N, *spatial)``: :class:`~captum_fam.TokenGrid`. The players
            are the positions of the grid; tokens that it drops are always kept.

    Raises:
        TypeError: for a list of layers.
        ValueError: for an option out of range.

    Example:
        >>> shapley = LayerSimilarityShapley(SimilarityToSupport(model, support, foil="others"), model.layer4)
        >>> details = shapley.details(queries, target=3)
        >>> details.attributions.shape, details.standard_error.shape
        (torch.Size([8, 1, 7, 7]), torch.Size([8, 1, 7, 7]))
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        layer: nn.Module | str,
        device_ids: list[int] | None = None,
        *,
        similarity: SimilarityLike = "cosine",
        tail: TailLike = "auto",
        n_permutations: int = 128,
        seed: int = 0,
        max_batch: int = 16,
        show_progress: bool = False,
        token_grid: TokenGridLike | None = None,
    ) -> None:
        super().__init__(forward_func, layer, device_ids, similarity=similarity, token_grid=token_grid)
        if not isinstance(self.layer, nn.Module):
            raise TypeError("layer must be one module: the positions of several layers are no players of one game")
        if not callable(tail) and tail != "auto":
            raise ValueError(f'tail must be "auto" or a function of the layer\'s tensor, got {tail!r}')
        if n_permutations < 4 or n_permutations % 2:
            raise ValueError(f"n_permutations must be even and at least 4, got {n_permutations}")
        if max_batch < 1:
            raise ValueError(f"max_batch must be at least 1, got {max_batch}")
        self.tail = tail
        self.n_permutations = n_permutations
        self.seed = seed
        self.max_batch = max_batch
        self.show_progress = show_progress

    @classmethod
    def get_name(cls) -> str:
        return "Layer Similarity Shapley"

    @property
    def multiplies_by_inputs(self) -> bool:
        """Whether attributions hold the activation as a factor, in Captum's words: True."""
        return True

    def has_convergence_delta(self) -> bool:
        return True

    def compute_convergence_delta(
        self,
        attributions: Tensor,
        start_point: object,
        end_point: Tensor | tuple[Tensor, ...],
        target: TargetType = None,
        additional_forward_args: object = None,
        *,
        support: Support | Tensor | None = None,
        attribute_to_layer_input: bool = False,
    ) -> Tensor:
        """The sum of attributions less v(all) - v(none), ``(B,)``: Captum's signature, and the support.

        Args:
            attributions: as :meth:`attribute` gave them; not cut at zero.
            start_point: not looked at: attributions count from the activation with no position kept.
            end_point: the queries, ``(B, C, H, W)``, or a tuple of the model's input tensors.
            target: as in :meth:`attribute`.
            additional_forward_args: as there.
            support: as there.
            attribute_to_layer_input: as there.

        Raises:
            ValueError: for attributions of another batch than the queries.
        """
        call = self.run(end_point, support, target, additional_forward_args, attribute_to_layer_input)
        players, comparison = self._players(call), call.comparison
        count = len(comparison.query)
        if not isinstance(attributions, Tensor) or len(attributions) != count:
            raise ValueError(f"attributions must be a tensor of a batch of {count}, as end_point is")
        with torch.inference_mode(False), torch.no_grad():
            nobody = torch.zeros(1, players.count, dtype=torch.bool, device=comparison.query.device)
            games = players.games(comparison, self.max_batch)
            empty = torch.cat([game.of_sets(nobody) for game in games])
            return attributions.flatten(1).sum(1) - comparison.score + empty

    def map_layers(self, call: LayerCall) -> LayerMaps:
        """The Shapley value of every position, in a game whose sets are run through the tail."""
        if not call.sum_channels:
            raise ValueError("attr_dim_summation: the players are positions, which have no shares of channels")
        players, comparison = self._players(call), call.comparison
        total = len(comparison.query) * n_sets(players.count, self.n_permutations)
        progress = tqdm(total=total, desc=self.get_name(), unit="set", disable=not self.show_progress)
        with progress, torch.inference_mode(False), torch.no_grad():
            orders = antithetic_orders(players.count, self.n_permutations, self.seed).to(comparison.query.device)
            games = players.games(comparison, self.max_batch, progress.update)
            results = [shapley_values(game, orders) for game in games]
            maps, errors, empty, _ = (torch.stack(each) for each in zip(*results, strict=True))
            shares = {MAP: maps.sum(1), EMPTY: empty}
            shares[REST] = comparison.score - shares[MAP] - empty
            explained = comparison.explained_score
            coverage = (shares[MAP] / explained).masked_fill(explained == 0, torch.nan)
            shape = len(maps), 1, *players.grid
            return LayerMaps(
                [(maps.view(shape),)],
                convergence_deltas=[-shares[REST]],
                coverages=[coverage],
                shares=[shares],
                standard_error=errors.view(shape),
            )

    def watching(self, attribute_to_layer_input: bool) -> AbstractContextManager[Any]:
        """Notes the modules behind the layer, where the tail is made of them."""
        return ModulesBehind(self.layers[0], attribute_to_layer_input) if self.tail == "auto" else nullcontext()

    def _players(self, call: LayerCall) -> _Players:
        """What is needed to run the tail alone."""
        grids = call.activations[0]
        run = call.run
        tensors = [tensor for one in run.passes[0] for tensor in one.tensors]
        if len(tensors) != 1:
            raise ValueError(
                f"layer {type(self.layers[0]).__name__} gives {len(tensors)} tensors to the embedding, in views of the "
                "input or at once; LayerSimilarityShapley plays with the positions of one: explain one view, or "
                "another layer"
            )
        up_to_scale = isinstance(self.similarity, Cosine)
        with torch.inference_mode(False), torch.no_grad():
            if callable(self.tail):
                tail = given_tail(self.tail, tensors[0], run.embedding, up_to_scale)
            else:
                tail = find_tail(call.watched.links, tensors[0], run.embedding, up_to_scale)
        return _Players(tail, tensors[0], tuple(grids[0].shape[2:]), self.token_grid)


class _Players:
    """The positions of a layer.

    Args:
        tail: from the layer's tensor to the embedding.
        activation: the layer's tensor, ``(B, ...)``.
        grid: rows, columns, ... of the positions.
        token_grid: lays the tensor out as ``(B, N, *grid)``.

    Attributes:
        count: of the positions.
    """

    def __init__(
        self, tail: LayerTail, activation: Tensor, grid: tuple[int, ...], token_grid: TokenGridLike | None
    ) -> None:
        self.grid = grid
        self.count = math.prod(grid)
        self._tail = tail
        self._activation = activation
        self._position = None if token_grid is None else _position_of_each_number(activation, token_grid)

    def games(
        self,
        comparison: Comparison,
        max_batch: int,
        count: Callable[[int], object] = lambda n_sets: None,
    ) -> Iterator[Game]:
        """The game of each query: the score of the sets of positions.

        Args:
            comparison: of the queries.
            max_batch: how many masked activations are held at once.
            count: is told how many sets were played.
        """
        for query, activation in enumerate(self._activation.split(1)):
            support, weights = comparison.supports_of(query)

            def score(embedding: Tensor, support: Tensor = support, weights: Tensor = weights) -> Tensor:
                if not embedding.isfinite().all():
                    raise ValueError(NOT_FINITE)
                count(len(embedding))
                with plain_arithmetic(embedding.device):
                    return comparison.similarity.score(embedding.to(support), support) @ weights

            if self._position is None and self._tail.begins_with_mean:
                yield _GameOfMeans(self._tail, activation, score, max_batch)
            else:
                yield _GameOfMasks(self._tail, activation, self._position, score, max_batch)


class _GameOfMasks(Game):
    """The score of an activation with all but some positions set to zero.

    Args:
        tail: from the layer's tensor to the embedding.
        activation: of one query, ``(1, ...)``.
        position: that each number of the activation belongs to; None where these are ``(1, N, *positions)``.
        score: of embeddings, ``(M, J) -> (M,)``.
        max_batch: how many masked activations are held at once.
    """

    def __init__(
        self, tail: LayerTail, activation: Tensor, position: Tensor | None, score: Step, max_batch: int
    ) -> None:
        super().__init__(max_batch)
        self._tail = tail
        self._activation = activation
        self._position = position
        self._score = score

    def value(self, sets: Tensor) -> Tensor:
        if self._position is None:
            kept = sets.view(len(sets), 1, *self._activation.shape[2:])
        else:
            kept = nn.functional.pad(sets, (0, 1), value=True)[:, self._position]
            kept = kept.view(len(sets), *self._activation.shape[1:])
        return self._score(self._tail(self._activation * kept))


class _GameOfMeans(Game):
    """The same where the tail begins with a mean over the positions: it is taken of sets without a masked activation.

    Args:
        tail: from the layer's tensor to the embedding.
        activation: of one query, ``(1, N, *positions)``.
        score: of embeddings, ``(M, J) -> (M,)``.
        max_batch: how many masked activations there is room for.
    """

    def __init__(self, tail: LayerTail, activation: Tensor, score: Step, max_batch: int) -> None:
        width, n_positions = activation[0].flatten(1).shape
        super().__init__(max(1, max_batch * width * n_positions // (width + n_positions)))
        self._terms = F.widen(activation[0]).flatten(1).T / n_positions
        self._dtype = activation.dtype
        self._tail = tail
        self._score = score
        self._max_orders = max_batch

    def value(self, sets: Tensor) -> Tensor:
        with plain_arithmetic(sets.device):
            means = sets.to(self._terms) @ self._terms
        return self._of_means(means)

    def along(self, orders: Tensor) -> Tensor:
        return torch.cat([self._along(some) for some in orders.split(self._max_orders)])

    def _along(self, orders: Tensor) -> Tensor:
        return self._of_means(self._terms[orders[:, :-1]].cumsum(1).flatten(0, 1)).view(len(orders), -1)

    def _of_means(self, means: Tensor) -> Tensor:
        return self._score(self._tail.from_mean(means.to(self._dtype)))


def _position_of_each_number(activation: Tensor, token_grid: TokenGridLike) -> Tensor:
    """The position that each number of a sample belongs to, and one beyond the last for what the grid drops."""
    size = activation[0].numel()
    numbers = token_grid(torch.arange(size, device=activation.device).view(1, *activation.shape[1:]))[0].flatten(1)
    position = torch.full((size,), numbers.shape[1], device=activation.device)
    position[numbers] = torch.arange(numbers.shape[1], device=activation.device).expand_as(numbers)
    return position
