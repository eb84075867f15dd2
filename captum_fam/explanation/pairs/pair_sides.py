"""Both sides of pairs of images: what is asked of the pairs, what is found, and the support of each side."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Literal

import torch
from torch import Tensor

from captum_fam._captum import TargetType
from captum_fam.attr.account import MAP, REST, ZERO_EMBEDDING, drop_noise
from captum_fam.attr.embedding_parts import EmbeddingParts
from captum_fam.attr.pair_decomposition import PairDecomposition
from captum_fam.explanation.reading.pair_images import DistinctImages
from captum_fam.functional import smooth_maps
from captum_fam.similarity import Similarity
from captum_fam.support import (
    Against,
    Comparison,
    Contrast,
    Gallery,
    SameForAll,
    Support,
    ThresholdedSupport,
    WeightedSupport,
)
from captum_fam.support.rows import BankRows


@dataclass(frozen=True, eq=False)
class PairFoil:
    """The foil of one pair: a weighted sum of similarities to some embeddings, which is subtracted.

    Attributes:
        vectors: embeddings ``(F, J)``; pairs may share them.
        weights: the weight of each embedding, ``(F,)``.
        offset: a number that is added to the weighted sum, in the mean distance to a gallery. Default: 0.
        is_gallery: whether the foil is a gallery, and not the supports of classes. Default: False.

    Example:
        >>> support = SupportSet(torch.eye(3), ["jay", "tit", "wren"])
        >>> comparison = SimilarityToSupport(torch.nn.Identity(), support, foil="others").compare(torch.eye(3)[:1])
        >>> foils_of(comparison)[0].weights
        tensor([0.0000, 0.5000, 0.5000])
    """

    vectors: Tensor
    weights: Tensor
    offset: float = 0.0
    is_gallery: bool = False


def foils_of(comparison: Comparison) -> list[PairFoil | None]:
    """What the score of each query of a comparison is contrasted with; None for a query without a foil.

    Args:
        comparison: the comparison of B queries, whose target is known.
    """
    contrast = comparison.contrast
    if contrast is not None and contrast.baseline is not None:
        offsets = contrast.constant.detach().expand(len(comparison.query)).tolist()
        rows = zip(_vectors_of(contrast.baseline), contrast.baseline.support_weights.detach(), offsets, strict=True)
        return [PairFoil(vectors, weights, offset, is_gallery=True) for vectors, weights, offset in rows]
    weights = (-comparison.support_weights.detach()).clamp_min(0)
    return [
        PairFoil(vectors, row) if row.any() else None
        for vectors, row in zip(_vectors_of(comparison), weights, strict=True)
    ]


@dataclass(frozen=True, eq=False)
class PairGallery:
    """The gallery of some pairs, whose mean similarity is the foil of each pair.

    Attributes:
        gallery: a gallery of embeddings.
        own: for each pair the rows of the gallery that are its own images, and are left out of the mean.
    """

    gallery: Gallery
    own: Sequence[Sequence[int]]

    def foils(self, pairs: Sequence[int], queries: Tensor, similarity: Similarity) -> list[PairFoil | None]:
        """The foils of some pairs.

        Args:
            pairs: the numbers of n pairs.
            queries: the embedding of one image of each of them, ``(n, J)``.
            similarity: the similarity that the model decides with.

        Raises:
            ValueError: for a gallery of embeddings of another length, or without rows that are left.
        """
        own = [list(self.own[pair]) for pair in pairs]
        gallery = self.gallery.without(own) if any(own) else self.gallery
        comparison = support_of_side(queries, [None] * len(pairs), None, None).compare(queries, None, similarity)
        return foils_of(comparison.contrasted(gallery.contrast(queries, similarity)))


def _vectors_of(comparison: Comparison) -> list[Tensor]:
    """The supports ``(K, J)`` of each query; the same tensor where all queries share them."""
    support, count = comparison.support, len(comparison.query)
    if isinstance(support, BankRows):
        return [support.of_query(query) for query in range(count)]
    return [support] * count if support.dim() == 2 else list(support)


@dataclass(frozen=True)
class PairLinks:
    """Which images are pairs, and what each pair is contrasted with.

    Attributes:
        images: the images, each of them once.
        pairs: the rows of the two images of each pair, the query first.
        foils: for each pair the foils of the side of the query and of the side of the support, None for a side without
            a foil; empty for no foils. Default: empty.
        gallery: the gallery whose mean similarity is the foil of each pair, in the place of ``foils``; ``"others"`` for
            all other images of the pairs. Default: None.
        against: ``"threshold"`` or ``"identity"``, as for :class:`~captum_fam.SimilarityToSupport`. Default: None.
        threshold: the threshold. Default: None.
    """

    images: DistinctImages
    pairs: Sequence[tuple[int, int]]
    foils: Sequence[tuple[PairFoil | None, PairFoil | None]] = ()
    gallery: PairGallery | Literal["others"] | None = None
    against: Against | None = None
    threshold: float | None = None

    @property
    def has_contrast(self) -> bool:
        """Whether there is a foil or a threshold."""
        has_foil = self.gallery is not None or any(foil is not None for foils in self.foils for foil in foils)
        return has_foil or self.against is not None

    @property
    def uses(self) -> list[list[tuple[int, int]]]:
        """For each image the pairs that it is in, each with the side: 0 for the query and 1 for the support."""
        uses: list[list[tuple[int, int]]] = [[] for _ in range(len(self.images))]
        for number, pair in enumerate(self.pairs):
            for side, row in enumerate(pair):
                uses[row].append((number, side))
        return uses


@dataclass(frozen=True, eq=False)
class Side:
    """The map of one image of a pair, by one method.

    Attributes:
        map: ``(h, w)``.
        coverage: the sum of the map divided by the explained score; None without an account.
        shares: the named parts of the score; None without an account.
    """

    map: Tensor
    coverage: float | None = None
    shares: Mapping[str, float] | None = None

    def smoothed(self, window: int) -> Side:
        """The map after a mean filter that keeps its sum, and so its account.

        Args:
            window: the side of the window, odd.
        """
        return replace(self, map=smooth_maps(self.map[None, None], window)[0, 0])


SideMaps = dict[tuple[int, int, int, bool], Side]
"""Maps by the number of the method, the number of the pair, the side, and whether the map is contrasted."""


@dataclass(frozen=True, eq=False)
class ExplainedPairs:
    """The two sides of pairs: side 0 is the query, side 1 the support.

    Attributes:
        similarities: the similarity of each pair, ``(n,)``.
        scores: the explained score of each side, ``(n, 2)``.
        sides: the maps; without a contrast only those that are not contrasted.
        decompositions: the pair decomposition of each pair; None without the exact map.
        exact: the number of the method that has the decompositions; None without one.
        top_matches: how many matches each pair lists.
    """

    similarities: Tensor
    scores: Tensor
    sides: SideMaps
    decompositions: Sequence[PairDecomposition] | None
    exact: int | None
    top_matches: int

    def side(self, method: int, number: int, side: int) -> tuple[Side, Side]:
        """One side of a pair by one method, with the contrast and without.

        Args:
            method: the number of the method.
            number: the number of the pair.
            side: 0 for the query, 1 for the support.
        """
        plain = self.sides[method, number, side, False]
        return self.sides.get((method, number, side, True), plain), plain


class _AgainstGallery(Support):
    """A support whose scores are contrasted with the mean similarity to a gallery of each query's own."""

    def __init__(self, support: Support, foils: Sequence[PairFoil | None], like: Tensor) -> None:
        self.support, self.class_names = support, support.class_names
        self._vectors, self._weights = _joined(foils, like)
        self._offsets = like.new_tensor([0.0 if foil is None else foil.offset for foil in foils])

    def compare(self, query: Tensor, target: TargetType = None, similarity: Similarity | None = None) -> Comparison:
        comparison = self.support.compare(query, target, similarity)
        members = SameForAll(self._weights, n_classes=1)
        baseline = Comparison(comparison.query, self._vectors, members, comparison.similarity, ("gallery",))
        return comparison.contrasted(Contrast(baseline, self._offsets))


def support_of_side(
    partners: Tensor, foils: Sequence[PairFoil | None], against: Against | None, threshold: float | None
) -> Support:
    """The support of one side of some pairs: image b is compared with its partner, which is class b.

    Args:
        partners: the embedding of the partner of each image, ``(B, J)``.
        foils: the foil of each image.
        against: as for :class:`~captum_fam.SimilarityToSupport`.
        threshold: the threshold.

    Returns:
        A support of B classes. The targets are ``0, ..., B - 1``.
    """
    count, own = len(partners), torch.eye(len(partners)).to(partners)
    supports = [foil for foil in foils if foil is not None and not foil.is_gallery]
    if supports:
        vectors, weights = _joined(foils, partners)
        own = torch.nn.functional.pad(own, (0, len(vectors)))
        foil_weights = torch.nn.functional.pad(weights, (count, 0))
        return WeightedSupport(torch.cat([partners, vectors]), own, foil_weights)
    support = WeightedSupport(partners, own)
    if any(foil is not None for foil in foils):
        return _AgainstGallery(support, foils, partners)
    return support if against is None else ThresholdedSupport(support, against, threshold)


def _joined(foils: Sequence[PairFoil | None], like: Tensor) -> tuple[Tensor, Tensor]:
    """The embeddings of several foils, ``(F, J)``, shared ones once; and their weights for each foil, ``(B, F)``."""
    blocks = {id(foil.vectors): foil.vectors.to(like) for foil in foils if foil is not None}
    vectors = torch.cat(list(blocks.values()))
    ends = dict(zip(blocks, accumulate(map(len, blocks.values())), strict=True))
    weights = like.new_zeros(len(foils), len(vectors))
    for row, foil in zip(weights, foils, strict=True):
        if foil is not None:
            end = ends[id(foil.vectors)]
            row[end - len(foil.weights) : end] = foil.weights.to(row)
    return vectors, weights


def exact_sides(parts: Sequence[EmbeddingParts], comparison: Comparison) -> list[Side]:
    """The exact maps of some images, from the parts of their embeddings.

    Args:
        parts: the parts of each of B images.
        comparison: the comparison of the B images with their supports.
    """
    weights, magnitudes = comparison.linear_weights(), comparison.term_magnitude
    scores, explained_scores = comparison.score.tolist(), comparison.explained_score.tolist()
    sides = []
    for index, (one, score, explained) in enumerate(zip(parts, scores, explained_scores, strict=True)):
        map_, others = one.account(weights[index : index + 1])
        map_ = drop_noise(map_, magnitudes[index : index + 1])[0, 0]
        shares = {MAP: float(map_.sum())}
        shares |= {name: float(share) for name, share in others.items() if name != REST and share.any()}
        if score != explained:
            shares[ZERO_EMBEDDING] = score - explained
        shares[REST] = score - sum(shares.values())
        sides.append(Side(map_, shares[MAP] / explained if explained else math.nan, shares))
    return sides
