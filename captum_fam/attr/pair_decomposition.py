"""The similarity of two images, divided among the pairs of their positions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from captum_fam import functional as F
from captum_fam._arithmetic import plain_arithmetic
from captum_fam.attr.account import MAP, NOISE, REST, ZERO_EMBEDDING, Shares, drop_noise
from captum_fam.attr.embedding_parts import EmbeddingParts
from captum_fam.similarity import Similarity
from captum_fam.support.checks import whole_number

OWN_LENGTH = "own length"
"""The name of the share that no part of the support gives: the length of the query, in a distance."""

# The largest block of pairs in memory: 2^22 values are 16 MiB in float32.
_BLOCK = 2**22


class PointMatch(NamedTuple):
    """One position of the query with one position of the support image.

    Attributes:
        query: row, column, ... of the position in the layer's grid of the query.
        support: row, column, ... of the position in the layer's grid of the support image.
        share: how much of the similarity comes from the two positions, in the unit of the similarity.
        cosine: cosine of the descriptors of the two positions, features of the layer averaged over 3 x 3 positions, as
            in :class:`~captum_fam.LayerCorrespondence`.
        mutual: whether each position is the best match of the other, by share.
    """

    query: tuple[int, ...]
    support: tuple[int, ...]
    share: float
    cosine: float
    mutual: bool


class PairDecomposition:
    r"""The similarity of one query and one support image, by pairs of their positions.

    :class:`~captum_fam.attr.LayerPairs` has the equation. All numbers are in the unit of the similarity, without a
    contrast. With Q positions of the query and P of the support image, the matrix D is ``(Q, P)``; it is computed block
    by block, and as a whole in :meth:`matrix` only.

    Args:
        query: the parts of one image.
        support: the parts of one image.
        similarity: a similarity with linear weights.

    Attributes:
        similarity: the similarity.
        score: the similarity of the two images.
        query_grid, support_grid: the spatial sizes of the layer.
        query_map: ``query_grid``, the map of the query, as :class:`~captum_fam.LayerSimilarityCAM` computes it: D
            summed over the positions of the support and its other parts. Distances have a term of the query alone,
            which is in this map too.
        support_map: ``support_grid``, the map of the support: D summed over the positions of the query and its other
            parts.
        query_shares, support_shares: the named parts of the score on either side, which sum to the score. The first is
            ``"map"``, the last ``"rest"``. For a distance, the side of the support has the part ``"own length"``, the
            term of the query alone, and both sides have ``"zero embedding"``.
        query_coverage, support_coverage: the sum of the map divided by the explained score; NaN for a score of zero.

    Raises:
        TypeError: for anything but parts.
        ValueError: for parts of several images, for embeddings of different sizes, for a similarity without linear
            weights.

    Example:
        >>> from captum_fam.attr import LayerPairs
        >>> pairs = LayerPairs(model, model.layer4)
        >>> parts = pairs.run(queries[:2]).parts()
        >>> pair = pairs.decompose(parts[0], parts[1])
        >>> match = pair.top_matches(1)[0]
        >>> bool(pair.matrix().max() == match.share)
        True
    """

    def __init__(self, query: EmbeddingParts, support: EmbeddingParts, similarity: Similarity) -> None:
        similarity.require_weights()
        for name, parts in (("query", query), ("support", support)):
            if not isinstance(parts, EmbeddingParts):
                raise TypeError(f"{name} must be the parts of one image, run.parts()[i], got {type(parts).__name__}")
            if len(parts) != 1:
                raise ValueError(f"{name} holds the parts of {len(parts)} images; pass those of one, parts[i]")
        if query.embedding.shape != support.embedding.shape:
            raise ValueError(
                f"support embeds to {support.embedding.shape[1]} features but the query to "
                f"{query.embedding.shape[1]}; run both through the same model"
            )
        self.query_grid, self.support_grid = query.grid, support.grid
        self.similarity = similarity
        self._descriptors = query.descriptors[0], support.descriptors[0]
        with plain_arithmetic(query.embedding.device):
            z, t = F.common_precision(query.embedding, support.embedding)
            one = z.new_ones(1, 1)
            score, explained = similarity.score(z, t), similarity.explained(z, t)
            weights = similarity.weights(z, t, one)[0]
            vectors = torch.cat([support.positions[0], *support.others.values()]).to(z)
            given = similarity.weights_of_parts(z, t, vectors.unsqueeze(0))[0]
            count = math.prod(support.grid)
            self._query_vectors, self._support_weights = query.positions[0].to(z), given[:count]
            magnitude = torch.maximum(score.abs(), explained.abs()).flatten()
            zero_embedding = float(score - explained)

            query_map, query_shares = query.account(weights.unsqueeze(0))
            support_map = (self._support_weights @ z[0]).unflatten(0, support.grid)[None, None]
            support_shares = dict(zip(support.others, given[count:] @ z[0], strict=True))
            own = (weights - given.sum(0)) @ z[0]
            if own.abs() > NOISE * magnitude:
                support_shares[OWN_LENGTH] = own
            query_map, support_map = drop_noise(query_map, magnitude), drop_noise(support_map, magnitude)
        self.score = float(score) + 0.0  # never -0.0
        self.query_map, self.support_map = query_map[0, 0], support_map[0, 0]
        self.query_shares = _shares(self.query_map, query_shares, zero_embedding, self.score)
        self.support_shares = _shares(self.support_map, support_shares, zero_embedding, self.score)
        self.query_coverage = _ratio(self.query_shares[MAP], float(explained))
        self.support_coverage = _ratio(self.support_shares[MAP], float(explained))

    @property
    def shape(self) -> tuple[int, int]:
        """The number of positions of the query and of the support, ``(Q, P)``."""
        return len(self._query_vectors), len(self._support_weights)

    def rows(self, start: int, stop: int) -> Tensor:
        """The rows ``start`` to ``stop`` of D, one for each position of the query, ``(stop - start, P)``."""
        with plain_arithmetic(self._query_vectors.device):
            return self._query_vectors[start:stop] @ self._support_weights.T

    def columns(self, start: int, stop: int) -> Tensor:
        """The columns ``start`` to ``stop`` of D, as rows: ``(stop - start, Q)``."""
        with plain_arithmetic(self._query_vectors.device):
            return self._support_weights[start:stop] @ self._query_vectors.T

    def cosines(self, start: int, stop: int) -> Tensor:
        """The cosines of the descriptors of some positions of the query with all of the support.

        Args:
            start: the first position of the query.
            stop: the position behind the last.

        Returns:
            ``(stop - start, P)``.
        """
        query, support = self._descriptors
        with plain_arithmetic(query.device):
            return (query[start:stop] @ support.T).clamp(-1, 1)

    def matrix(self, max_bytes: int = 2**28) -> Tensor:
        """All of D, ``(Q, P)``.

        Args:
            max_bytes: the largest matrix that is made. Default: 256 MiB.

        Raises:
            ValueError: for a matrix above ``max_bytes``.
        """
        size = math.prod(self.shape) * self._query_vectors.element_size()
        if size > max_bytes:
            raise ValueError(
                f"max_bytes: the matrix of {self.shape[0]} x {self.shape[1]} positions takes {size} bytes, more than "
                f"{max_bytes}; use rows() or top_matches(), or raise max_bytes"
            )
        return self.rows(0, self.shape[0])

    def top_matches(self, count: int = 16, mutual: bool = False) -> list[PointMatch]:
        """The pairs of positions with the largest shares, the largest first.

        Args:
            count: how many, positive; fewer are returned where there are fewer pairs. Default: 16.
            mutual: only pairs of which each position is the best match of the other. Default: False.

        Raises:
            TypeError: for a count that is no whole number.
            ValueError: for a count below 1.
        """
        count = whole_number(count, "count")
        best = self._best
        if mutual:
            queries = torch.arange(self.shape[0], device=best.support_of.device)
            queries = queries[best.query_of[best.support_of] == queries]
            order = best.share_of[queries].argsort(descending=True, stable=True)[:count]
            queries = queries[order]
            supports, shares = best.support_of[queries], best.share_of[queries]
        else:
            shares, flat = self._largest(count)
            queries, supports = flat.div(self.shape[1], rounding_mode="floor"), flat % self.shape[1]
        first, second = self._descriptors
        cosines = (first[queries] * second[supports]).sum(1).clamp(-1, 1)
        is_mutual = (best.support_of[queries] == supports) & (best.query_of[supports] == queries)
        return [
            PointMatch(_cell(q, self.query_grid), _cell(p, self.support_grid), share, cosine, mutual_pair)
            for q, p, share, cosine, mutual_pair in zip(
                queries.tolist(),
                supports.tolist(),
                shares.tolist(),
                cosines.tolist(),
                is_mutual.tolist(),
                strict=True,
            )
        ]

    def best_of_query(self, k: int) -> tuple[Tensor, Tensor]:
        """The best partners of every position of the query, the best first.

        Args:
            k: how many; at most P are returned.

        Returns:
            Positions of the support as numbers in [0, P), and the shares, both ``(Q, k)``.

        Raises:
            TypeError: for a ``k`` that is no whole number.
            ValueError: for a ``k`` below 1.
        """
        return self._best_of_each(self.rows, *self.shape, k)

    def best_of_support(self, k: int) -> tuple[Tensor, Tensor]:
        """The best partners of every position of the support: positions of the query and shares, both ``(P, k)``."""
        count, width = self.shape
        return self._best_of_each(self.columns, width, count, k)

    def _best_of_each(
        self, block: Callable[[int, int], Tensor], count: int, width: int, k: int
    ) -> tuple[Tensor, Tensor]:
        k = whole_number(k, "k")
        best = [block(start, stop).topk(min(k, width)) for start, stop in _blocks(count, width)]
        return torch.cat([found.indices for found in best]), torch.cat([found.values for found in best])

    @cached_property
    def _best(self) -> _Best:
        """The best partners, in one pass over the rows."""
        count, width = self.shape
        share_of, support_of = [], []
        query_of = torch.zeros(width, dtype=torch.long, device=self.query_map.device)
        column_best = self._query_vectors.new_full((width,), -torch.inf)
        for start, stop in _blocks(count, width):
            rows = self.rows(start, stop)
            shares, supports = rows.max(1)
            share_of.append(shares)
            support_of.append(supports)
            shares, queries = rows.max(0)
            query_of = torch.where(shares > column_best, queries + start, query_of)
            column_best = torch.maximum(shares, column_best)
        return _Best(torch.cat(share_of), torch.cat(support_of), query_of)

    def _largest(self, count: int) -> tuple[Tensor, Tensor]:
        """The largest shares, and their numbers in the flattened matrix."""
        rows, width = self.shape
        shares = self._query_vectors.new_empty(0)
        numbers = shares.new_empty(0, dtype=torch.long)
        for start, stop in _blocks(rows, width):
            block = self.rows(start, stop).flatten()
            found = block.topk(min(count, len(block)))
            shares, numbers = torch.cat([shares, found.values]), torch.cat([numbers, found.indices + start * width])
            order = shares.argsort(descending=True, stable=True)[:count]
            shares, numbers = shares[order], numbers[order]
        return shares, numbers


class _Best(NamedTuple):
    """The best partner of every position.

    Attributes:
        share_of: the share of each position of the query with its best partner, ``(Q,)``.
        support_of: the best position of the support for each of the query, ``(Q,)``.
        query_of: the best position of the query for each of the support, ``(P,)``.
    """

    share_of: Tensor
    support_of: Tensor
    query_of: Tensor


def _blocks(count: int, width: int) -> Iterator[tuple[int, int]]:
    """First and last row of blocks of at most ``_BLOCK`` values."""
    rows = max(1, _BLOCK // width)
    for start in range(0, count, rows):
        yield start, min(start + rows, count)


def _cell(number: int, grid: tuple[int, ...]) -> tuple[int, ...]:
    """The row, column, ... of a position."""
    cell = []
    for size in reversed(grid):
        number, index = divmod(number, size)
        cell.append(index)
    return tuple(reversed(cell))


def _shares(map_: Tensor, others: Shares, zero_embedding: float, score: float) -> dict[str, float]:
    """The named parts of the score: the map first, the rest last. Parts that are zero are left out."""
    shares = {MAP: float(map_.sum())}
    shares |= {name: float(share) for name, share in others.items() if name != REST and share.any()}
    if zero_embedding:
        shares[ZERO_EMBEDDING] = zero_embedding
    return {**shares, REST: score - sum(shares.values())}


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.nan
