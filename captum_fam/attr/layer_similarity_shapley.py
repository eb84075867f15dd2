"""Shapley values of a layer's positions for the score of a similarity."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn

from captum_fam import functional as F
from captum_fam._arithmetic import plain_arithmetic
from captum_fam._captum import TargetType
from captum_fam._progress import tqdm
from captum_fam.attr._shapley import Game, antithetic_orders, n_sets, shapley_values
from captum_fam.attr._tail import LayerTail, ModulesBehind, Step, find_tail, given_tail
from captum_fam.attr.account import MAP, REST
from captum_fam.attr.base import SimilarityLayerAttribution
from captum_fam.attr.call import LayerCall, LayerMaps
from captum_fam.attr.tokens import TokenGridLike
from captum_fam.similarity import SimilarityLike
from captum_fam.support import Comparison, Support

TailLike = Literal["auto"] | Callable[[Tensor], Tensor]

EMPTY = "empty"
"""The name of the part of the score that the model gives without any position."""

NOT_FINITE = (
    "tail gives NaN or inf for an activation in which some positions are set to zero; where the tail divides by a norm "
    "or a sum, bound that from below, as torch.nn.functional.normalize does"
)


class LayerSimilarityShapley(SimilarityLayerAttribution):
    r"""The Shapley value of each position of a layer: the mean rise of the score when the position is added.

    The players are the positions of the layer. The value v(T) of a set T of positions is the score of the target class,
    minus the score of the foil, for the activation :math:`A_T` with the positions of T kept and all others set to zero:
    :math:`v(T) = \sum_k w_k\, s(\mathrm{tail}(A_T), Z_k)`. The support weights w, which are negative on a foil, are
    the weights for the whole query, also where the choice of a runner-up or of the neighbors in a memory bank would
    change with the set. The map is the Shapley value of each position (Shapley, "A Value for n-Person Games", 1953),

    .. math:: \phi_p = \sum_{T \not\ni p} \frac{|T|!\,(P-|T|-1)!}{P!}\, \bigl(v(T \cup p) - v(T)\bigr),

    and sums to v(all) - v(none), for any head. The share ``"empty"`` is the score without any position, v(none): for
    the cosine 0, unless a bias of the head makes the embedding non-zero. It holds the number that ``against=`` adds to
    the value of every set: against the identity, the map is the negative of the map of the plain score.

    Use this method where the tail, the part of the model behind the layer, is more than a pooling and a linear head.
    :class:`LayerSimilarityCAM` makes such a tail linear by holding its scales; this method runs the tail. A position
    that repeats the content of other positions gets a smaller value here.

    The values are estimated from random orders of the positions, each order together with its reverse: the rise of the
    score when a position joins the positions before it. Two games with known values are subtracted first, which removes
    most of the variance (``sampled_values`` in ``captum_fam/attr/_shapley.py``). Small grids, such as 3 x 3, are
    computed exactly from all sets. Only the tail runs, about ``n_permutations`` times the number of positions for each
    query. Where the tail begins with a mean over the positions, one matrix product gives the means of many sets. All
    queries share the same orders, so that a map does not depend on the batch.

    Args:
        forward_func: an embedding model, ``forward_func(x) -> (B, J)``, or a
            :class:`~captum_fam.SimilarityToSupport`, which has a support, a similarity and a foil already.
        layer: one module, or its dotted name.
        device_ids: order of the devices of a ``DataParallel`` model that ``forward_func`` runs. Default: None, the
            ``device_ids`` of ``forward_func``.
        similarity: the similarity that the model decides with: a name, a
            :class:`~captum_fam.similarity.Similarity`, or a differentiable function of two batches of embeddings.
            Default: "cosine".
        tail: from the tensor of the layer, as the layer gives it, to the embedding: a module or function
            ``(B, N, *spatial) -> (B, J)``. ``"auto"`` chains the modules that run behind the layer. Functions between
            the modules are not seen, but checked: the tail must give the embeddings that the model gives for the
            queries, up to a positive factor per query for similarities that ignore the length of the embedding, such
            as the cosine. Default: "auto".
        n_permutations: number of orders of the positions, even and at least 4. The standard error falls with the square
            root of this number. With 128 orders, on 13 x 13 positions of bird photographs, the standard error is 15 %
            of the spread of the values of a map (correlation 0.99 with the map of 2,048 orders), and 7 % with a foil.
            Default: 128.
        seed: seed of the orders. The global generator of torch is not used. Default: 0.
        max_batch: how many masked activations are in memory at once; means need no more memory. Default: 16.
        show_progress: show a progress bar. Default: False.
        token_grid: rearranges the tensor of the layer into ``(B, N, *spatial)``, such as a
            :class:`~captum_fam.TokenGrid`. The players are the positions of the grid; tokens that the grid leaves out
            are never set to zero. Default: None, the tensor has that form.

    Raises:
        TypeError: for a list of layers; as :class:`SimilarityLayerAttribution`.
        ValueError: for an option out of range; as :class:`SimilarityLayerAttribution`.

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
            raise TypeError("layer must be one module: the positions of several layers cannot share one score")
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
        """True: a position with zero activation has value zero. Captum asks every method for this property."""
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
        """The sum of the attributions minus (v(all) - v(none)), ``(B,)``. Captum's signature, with the support added.

        Args:
            attributions: the result of :meth:`attribute`, without ``relu_attributions``.
            start_point: not used: attributions count from the activation with all positions set to zero.
            end_point: the queries, ``(B, C, H, W)``, or a tuple of the model's input tensors.
            target: the target of :meth:`attribute`. Default: None, the predicted class of each query.
            additional_forward_args: further arguments of ``forward_func``. Default: None.
            support: the support of :meth:`attribute`. Default: None, that of the SimilarityToSupport.
            attribute_to_layer_input: whether the input of the layer was explained. Default: False.

        Raises:
            ValueError: for attributions with another batch size than the queries; as :meth:`attribute`.
            TypeError, AssertionError: as :meth:`attribute`.
        """
        call = self.run(end_point, support, target, additional_forward_args, attribute_to_layer_input)
        players, comparison = self._players(call), call.comparison
        count = len(comparison.query)
        if not isinstance(attributions, Tensor) or len(attributions) != count:
            raise ValueError(f"attributions must be a tensor of a batch of {count}, as end_point is")
        with torch.inference_mode(False), torch.no_grad():
            nobody = torch.zeros(1, players.count, dtype=torch.bool, device=comparison.query.device)
            empty = torch.cat([game.of_sets(nobody) for game in players.games(comparison, self.max_batch)])
            return attributions.flatten(1).sum(1) - comparison.score + empty

    def map_layers(self, call: LayerCall) -> LayerMaps:
        """Compute the Shapley value of every position, by running the tail on sets of positions."""
        if not call.sum_channels:
            raise ValueError("attr_dim_summation=False: the players are positions, which have no shares of channels")
        players, comparison = self._players(call), call.comparison
        total = len(comparison.query) * n_sets(players.count, self.n_permutations)
        progress = tqdm(total=total, desc=self.get_name(), unit="set", disable=not self.show_progress)
        with progress, torch.inference_mode(False), torch.no_grad():
            orders = antithetic_orders(players.count, self.n_permutations, self.seed).to(comparison.query.device)
            games = players.games(comparison, self.max_batch, progress.update)
            results = [shapley_values(game, orders) for game in games]
            maps, errors, empty, _ = (torch.stack(values) for values in zip(*results, strict=True))
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
        """Note the modules that run behind the layer, for ``tail="auto"``."""
        return ModulesBehind(self.layers[0], attribute_to_layer_input) if self.tail == "auto" else nullcontext()

    def _players(self, call: LayerCall) -> _Players:
        """The positions of the layer, with the tail that embeds sets of positions."""
        grids = call.activations[0]
        run = call.run
        tensors = [tensor for pass_ in run.passes[0] for tensor in pass_.tensors]
        if len(tensors) != 1:
            raise ValueError(
                f"layer {type(self.layers[0]).__name__} gives {len(tensors)} tensors to the embedding, in views of the "
                "input or in one pass; LayerSimilarityShapley needs one tensor: explain one view, or another layer"
            )
        up_to_scale = self.similarity.ignores_length
        with torch.inference_mode(False), torch.no_grad():
            if callable(self.tail):
                tail = given_tail(self.tail, tensors[0], run.embedding, up_to_scale)
            else:
                tail = find_tail(call.watched.links, tensors[0], run.embedding, up_to_scale)
        return _Players(tail, tensors[0], tuple(grids[0].shape[2:]), self.token_grid)


class _Players:
    """The positions of a layer, as players of one game per query.

    Args:
        tail: from the tensor of the layer to the embedding.
        activation: the tensor of the layer, ``(B, ...)``.
        grid: rows, columns, ... of the positions.
        token_grid: rearranges the tensor into ``(B, N, *grid)``; None: the tensor has that form.

    Attributes:
        grid: rows, columns, ... of the positions.
        count: number of positions, P.
    """

    def __init__(
        self, tail: LayerTail, activation: Tensor, grid: tuple[int, ...], token_grid: TokenGridLike | None
    ) -> None:
        self.grid = grid
        self.count = math.prod(grid)
        self._tail = tail
        self._activation = activation
        self._position = None if token_grid is None else _position_of_each_element(activation, token_grid)

    def games(
        self,
        comparison: Comparison,
        max_batch: int,
        count: Callable[[int], object] = lambda n_sets: None,
    ) -> Iterator[Game]:
        """The game of each query: the score of sets of positions.

        Args:
            comparison: the comparison of the queries with the support.
            max_batch: how many masked activations are in memory at once.
            count: called with the number of sets after each batch of sets. Default: a function that does nothing.
        """
        for query, activation in enumerate(self._activation.split(1)):
            of_query = comparison.scorer(query)

            def score(embedding: Tensor, of_embedding: Step = of_query) -> Tensor:
                if not embedding.isfinite().all():
                    raise ValueError(NOT_FINITE)
                count(len(embedding))
                with plain_arithmetic(embedding.device):
                    return of_embedding(embedding)

            if self._position is None and self._tail.begins_with_mean:
                yield _GameOfMeans(self._tail, activation, score, max_batch)
            else:
                yield _GameOfMasks(self._tail, activation, self._position, score, max_batch)


class _GameOfMasks(Game):
    """A game that sets all positions outside a set to zero and runs the tail.

    Args:
        tail: from the tensor of the layer to the embedding.
        activation: the tensor of one query, ``(1, ...)``.
        position: the position of each element of the activation, ``(elements,)``; None for a tensor
            ``(1, N, *positions)``.
        score: the score of embeddings, ``(M, J) -> (M,)``.
        max_batch: how many masked activations are in memory at once.
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
            # One more column, always True, for elements without a position: they are always kept.
            kept = nn.functional.pad(sets, (0, 1), value=True)[:, self._position]
            kept = kept.view(len(sets), *self._activation.shape[1:])
        return self._score(self._tail(self._activation * kept))


class _GameOfMeans(Game):
    """The game for a tail that begins with a mean over the positions: means of sets need no masked activations.

    Args:
        tail: from the tensor of the layer to the embedding.
        activation: the tensor of one query, ``(1, N, *positions)``.
        score: the score of embeddings, ``(M, J) -> (M,)``.
        max_batch: how many masked activations would fit into memory.
    """

    def __init__(self, tail: LayerTail, activation: Tensor, score: Step, max_batch: int) -> None:
        width, n_positions = activation[0].flatten(1).shape
        # A set takes a row of positions and a mean, where a masked activation takes their product.
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
        return torch.cat([self._along(chunk) for chunk in orders.split(self._max_orders)])

    def _along(self, orders: Tensor) -> Tensor:
        """The sets along an order are running sums of the terms of their positions."""
        return self._of_means(self._terms[orders[:, :-1]].cumsum(1).flatten(0, 1)).view(len(orders), -1)

    def _of_means(self, means: Tensor) -> Tensor:
        return self._score(self._tail.from_mean(means.to(self._dtype)))


def _position_of_each_element(activation: Tensor, token_grid: TokenGridLike) -> Tensor:
    """The position of each element of a sample, ``(elements,)``; P for elements that the grid leaves out."""
    size = activation[0].numel()
    # A token grid only selects and rearranges: applied to element numbers, it shows where each element goes.
    elements = token_grid(torch.arange(size, device=activation.device).view(1, *activation.shape[1:]))[0].flatten(1)
    position = torch.full((size,), elements.shape[1], device=activation.device)
    position[elements] = torch.arange(elements.shape[1], device=activation.device).expand_as(elements)
    return position
