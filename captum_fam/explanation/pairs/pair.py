"""The result of explaining one pair of images: a query and one of its supports, each with its map."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from captum_fam._text import printable

if TYPE_CHECKING:
    from captum_fam.attr.pair_decomposition import PairDecomposition, PointMatch
    from captum_fam.visualization import ImageLike


@dataclass(frozen=True, eq=False)
class Pair:
    """Why a query and a support are similar: a map of each of the two images, and the positions that match.

    The side of the query explains the similarity s(Z, t) of its embedding Z to the embedding t of the support, or this
    similarity minus a contrast (a foil or a threshold). The side of the support does the same with the roles exchanged:
    it explains s(t, Z), minus the same contrast for t.

    Attributes:
        row: the position of the support, as in :attr:`Explanation.support_rows
            <captum_fam.explanation.Explanation.support_rows>`.
        name: the name of the support.
        label: the name of its class.
        similarity: s(Z, t), without any contrast.
        weight: the weight of the support in the score of the target class.
        image: the support for display, in any form that :func:`~captum_fam.visualization.visualize_match` takes.
        score: the explained score of the side of the query: the similarity minus its contrast.
        support_score: the explained score of the side of the support.
        query_map: the map of the query at the layer, ``(h, w)``; ``(l,)`` for signals and ``(d, h, w)`` for volumes.
            Where there is a coverage, the map sums to its share of ``score``.
        support_map: the map of the support, ``(h', w')``, which shares out ``support_score``.
        plain_query_map: the map of the query without the contrast, ``(h, w)``; the same as ``query_map`` where there is
            no contrast.
        plain_support_map: the map of the support without the contrast, ``(h', w')``.
        query_coverage: the sum of ``query_map`` divided by the explained score, NaN for a score of zero; None for a
            method that gives no account of the score.
        support_coverage: the same of ``support_map``.
        query_shares: named parts that sum to ``score``: ``"map"`` first, ``"rest"`` last; None without an account.
        support_shares: named parts that sum to ``support_score``.
        matches: the pairs of positions with the largest shares of the similarity, the largest first; each with the
            cosine of the features around the two, averaged over 3 x 3 cells. Only the exact map has them.
        mutual_matches: the first twelve pairs of positions of which each is the best match of the other, the largest
            share first: the lines of a figure. None of them need be among ``matches``.
        decomposition: the similarity by pairs of positions, of which ``matches`` are the first; None where there are no
            matches.

    Example:
        >>> from captum_fam.explanation.pairs.one_call_for_pairs import explain_pairs
        >>> pair = explain_pairs(model, queries, images, layer="layer4").pairs[0][0]
        >>> pair.query_map.shape, pair.support_map.shape, len(pair.matches)
        (torch.Size([7, 7]), torch.Size([7, 7]), 16)
    """

    row: int
    name: str
    label: str
    similarity: float
    weight: float
    image: ImageLike
    score: float
    support_score: float
    query_map: Tensor
    support_map: Tensor
    plain_query_map: Tensor
    plain_support_map: Tensor
    query_coverage: float | None = None
    support_coverage: float | None = None
    query_shares: Mapping[str, float] | None = None
    support_shares: Mapping[str, float] | None = None
    matches: tuple[PointMatch, ...] = ()
    mutual_matches: tuple[PointMatch, ...] = ()
    decomposition: PairDecomposition | None = None

    def __repr__(self) -> str:
        """Name, similarity, explained scores and the sizes of the maps, in one line."""
        sizes = " and ".join(" x ".join(map(str, map_.shape)) for map_ in (self.query_map, self.support_map))
        scores = f"similarity {self.similarity:.4g}, score {self.score:.4g}, support score {self.support_score:.4g}"
        return f"Pair({printable(self.name)!r}, {scores}, maps {sizes}, {len(self.matches)} matches)"
