"""The result of explaining a batch of queries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from captum_fam._files import MANIFEST, versions, write_all_or_nothing, write_json
from captum_fam.attr.account import ZERO_EMBEDDING, coverage_in_words, number_in_words, score_in_words
from captum_fam.explanation.figure import compare_figure
from captum_fam.explanation.saving import write_query
from captum_fam.explanation.thumbnails import Pictures, RowPictures, shown_pictures

if TYPE_CHECKING:
    from PIL.Image import Image

    from captum_fam.visualization import ImageLike, MapFigure

NO_ACCOUNT = "no account of the score"
"""The account text for a map whose sum is no part of the score."""


class UsedSupport(NamedTuple):
    """A support that a query was compared with.

    Attributes:
        row: its position in the support, as in :attr:`Explanation.support_rows`.
        similarity: its similarity to the query.
        weight: its weight in the score of the target class.
    """

    row: int
    similarity: float
    weight: float


@dataclass(frozen=True, eq=False)
class Explanation:
    """Why each query of a batch matched its class.

    Attributes:
        method: the name of the method.
        maps: the attributions resized linearly to the size of the inputs, not normalized, ``(B, 1, H, W)``;
            ``(B, 1, L)`` for signals ``(B, C, L)``, ``(B, 1, D, H, W)`` for volumes ``(B, C, D, H, W)``.
        attributions: the attributions at the layer, ``(B, 1, h, w)``, ``(B, 1, l)`` or ``(B, 1, d, h, w)``; a map that
            is only rounding noise is exactly zero
            (:meth:`MapMethod.without_noise <captum_fam.attr.MapMethod.without_noise>`).
        scores: the score of every class minus the score of its foil, ``(B, C)``.
        predicted: the predicted class, ``(B,)``.
        target: the explained class, ``(B,)``.
        class_names: C names.
        names: the names of the B queries.
        images: B inputs for overlays, of any sizes, in any form that
            :func:`~captum_fam.visualization.visualize_match` takes: images or volumes in [0, 1], or signals.
        contributions: what each channel of the layer adds to the similarity, before any normalization, ``(B, N)``;
            None if the method computes none.
        convergence_delta: the sum of the map minus the explained score, ``(B,)``; for ``"shapley"`` the explained score
            does not include the part that is there without any position. None if the method computes none.
        coverage: the sum of the map divided by the explained score, ``(B,)``; NaN if the explained score is zero. None
            if the method gives no account of the score: only ``"similarity-cam"`` and ``"shapley"`` do.
        shares: named parts that add up to the score, each ``(B,)``: ``"map"``, ``"class token"``, ``"bias"``, ...,
            ``"rest"``. For a distance, the part ``"zero embedding"`` is the score of the zero embedding, and the other
            parts add up to the explained score. None if there is no ``coverage``.
        support_blind: whether the map depends neither on the support nor on the foil, as for baselines.
        support_rows: the supports that each query was compared with, as positions in the support, int64 ``(B, K)``:
            rows of a memory bank, ranks of hits; -1 for entries that only fill up. None if they are not known.
        support_similarities: the similarity of each query to each of these supports, ``(B, K)``; NaN for entries that
            only fill up.
        support_weights: the weight of each of these supports in the score of the target class, ``(B, K)``; negative
            for supports of the foil.
        notes: what the run noticed and the user has to know, such as supports that were left out.
        about: model, preprocessing of pictures, layer, similarity, foil and options, for the manifest.
        support_pictures: a function from the position of a query and of a support in ``support_rows`` to small pictures
            of this support, for :meth:`figure`; None if none are known.
        foil_pictures: the same for the supports of a foil that is no class of the support, by their positions in the
            foil.

    Example:
        >>> why = explain(model, queries, support, layer="layer4", method="similarity-cam")
        >>> why.maps.shape, why.names[0]
        (torch.Size([8, 1, 224, 224]), 'query-0')
    """

    method: str
    maps: Tensor
    attributions: Tensor
    scores: Tensor
    predicted: Tensor
    target: Tensor
    class_names: tuple[str, ...]
    names: tuple[str, ...]
    images: Sequence[ImageLike] | Tensor
    contributions: Tensor | None = None
    convergence_delta: Tensor | None = None
    coverage: Tensor | None = None
    shares: Mapping[str, Tensor] | None = None
    support_blind: bool = False
    support_rows: Tensor | None = None
    support_similarities: Tensor | None = None
    support_weights: Tensor | None = None
    notes: tuple[str, ...] = ()
    about: Mapping[str, Any] = field(default_factory=dict)
    support_pictures: Pictures | None = None
    foil_pictures: RowPictures | None = None

    def __len__(self) -> int:
        return len(self.maps)

    @property
    def target_scores(self) -> Tensor:
        """The score of the target class minus the score of its foil, ``(B,)``."""
        return self.scores.gather(1, self.target.unsqueeze(1)).squeeze(1)

    @property
    def flat(self) -> Tensor:
        """Which maps have the same value everywhere, such as zero, boolean ``(B,)``."""
        from captum_fam.metrics.maps import find_empty

        return find_empty(self.attributions)

    def supports_of(self, index: int = 0) -> list[UsedSupport]:
        """The supports that one query was compared with, the most similar first.

        Args:
            index: the position of the query. Default: 0.

        Returns:
            The supports with a weight in the score, those of a foil among the supports with a negative one; none if
            they are not known.
        """
        if self.support_rows is None or self.support_similarities is None or self.support_weights is None:
            return []
        columns = (self.support_rows, self.support_similarities, self.support_weights)
        used = [UsedSupport(*values) for values in zip(*(column[index].tolist() for column in columns), strict=True)]
        used = [one for one in used if one.row >= 0 and one.weight != 0]
        return sorted(used, key=lambda one: (-one.similarity, one.row))

    def score_text(self, index: int = 0) -> str:
        """The score of one query in words.

        Args:
            index: the position of the query. Default: 0.

        Returns:
            For example ``"0.731"``; for a distance ``"-3.00, which is 11.0 more than an embedding of zeros has
            (-14.0)"``.
        """
        return score_in_words(float(self.target_scores[index]), self._parts(index).get(ZERO_EMBEDDING))

    def account_text(self, index: int = 0) -> str:
        """What the map of one query explains of the score, in words.

        Args:
            index: the position of the query. Default: 0.

        Returns:
            For example ``"explains 12 % of the score; class token 85 %, bias 3 %"``.
        """
        if self.coverage is not None:
            return coverage_in_words(float(self.coverage[index]), self._parts(index))
        if self.convergence_delta is not None:
            return f"convergence delta {number_in_words(float(self.convergence_delta[index]))}"
        return NO_ACCOUNT

    def _parts(self, index: int) -> dict[str, float]:
        """The shares of one query."""
        return {name: float(share[index]) for name, share in (self.shares or {}).items()}

    def overlay(self, index: int = 0) -> Image:
        """Draw the map of one query over its image; :mod:`captum_fam.visualization.colors` explains the colors.

        Args:
            index: the position of the query. Default: 0.

        Returns:
            An RGB image: of an image the gray image below the map, at the size of the image; of a signal its lines
            over the colors of the map; of a volume at most eight slices side by side.

        Raises:
            ValueError: for images outside [0, 1].
        """
        from captum_fam.visualization import overlay

        return overlay(self.images[index], self.attributions[index])

    def figure(
        self,
        index: int = 0,
        supports: Sequence[ImageLike] | Tensor | None = None,
        foils: Sequence[ImageLike] | Tensor | None = None,
    ) -> MapFigure:
        """Draw one query with its supports, map and score.

        Args:
            index: the position of the query. Default: 0.
            supports: images of the support, for display. Default: None, those that are known: pictures and images that
                the support was made of, or the images of a :class:`~captum_fam.Neighbors`, the most similar first.
            foils: images of the foil, for display. Default: None, those that are known.
        """
        known_supports, known_foils = shown_pictures(self, index)
        supports = known_supports if supports is None else supports
        return compare_figure([self], index, supports, known_foils if foils is None else foils)

    def save(self, folder: str | Path, *, overlays: bool = True) -> None:
        """Write arrays, overlays and a manifest. A folder with a manifest has all files that the manifest lists.

        These files are written:

        - ``NAME.npz`` per query: the map (``METHOD``), the attributions at the layer (``METHOD.layer``) and, if the
          method gives them, ``METHOD.contributions``, ``METHOD.delta``, ``METHOD.coverage`` and
          ``METHOD.shares.PART``;
        - ``NAME.METHOD.png`` per query: the map over the image;
        - ``manifest.json``: model, preprocessing of pictures, layer, similarity, foil, scores, the account of each map,
          sizes, notes of the run and versions.

        Args:
            folder: the folder to write to; it is created if it does not exist.
            overlays: whether to draw each map over its query. Default: True.

        Raises:
            ValueError: for images outside [0, 1], which cannot be drawn.
            OSError: if the files cannot be written; files of an earlier call are still there.
        """
        with write_all_or_nothing(folder) as scratch:
            queries = [write_query([self], index, scratch, overlays=overlays) for index in range(len(self))]
            manifest = {
                **self.about,
                "classes": list(self.class_names),
                "notes": list(self.notes),
                "queries": queries,
                "versions": versions(),
            }
            write_json(scratch / MANIFEST, manifest)
