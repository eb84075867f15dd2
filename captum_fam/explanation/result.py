"""The result of explaining a batch of queries."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from captum_fam.attr.account import ZERO_EMBEDDING, coverage_in_words, number_in_words, score_in_words
from captum_fam.explanation.dataframe import as_dataframe
from captum_fam.explanation.figure import compare_figure
from captum_fam.explanation.figure_words import NO_ACCOUNT
from captum_fam.explanation.notebook import as_bundle, as_html, in_one_line, show_figure
from captum_fam.explanation.reading.thumbnails import FoilPictures, Pictures, shown_pictures
from captum_fam.explanation.saved.saved_explanation import read_explanation, save_explanation
from captum_fam.explanation.selection import row_of, rows_of, select_queries
from captum_fam.explanation.used_supports import UsedSupport, used_supports

if TYPE_CHECKING:
    from PIL.Image import Image

    from captum_fam.explanation.pairs.pair import Pair
    from captum_fam.visualization import ImageLike, MapFigure
    from captum_fam.visualization.style import StyleLike


@dataclass(frozen=True, eq=False)
class Explanation:
    """Why each query of a batch matched its class.

    ``why[0]``, ``why[2:5]`` and ``why["name"]`` are explanations of some of the queries, and a loop goes over
    explanations of one query each. A notebook shows the first four figures. Equal explanations are one object.

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
        plain_scores: the score of the explained class without any contrast, ``(B,)``: without a foil and a threshold.
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
        about: model, preprocessing of pictures, layer, similarity, foil, smoothing and options, for the manifest.
        support_pictures: a function from the position of a query and of a support in ``support_rows`` to small pictures
            of this support, for :meth:`figure`; None if none are known.
        foil_pictures: the same for the supports of a foil that is no class of the support, by their positions in the
            foil.
        beside: the explanations of the same queries by further methods, of the same scores; in each ``beside`` is
            empty.
        pairs: for each query the maps of its first supports and the positions that match, with ``sides="both"``; else
            None.

    Example:
        >>> why = explain(model, queries, support, layer="layer4")
        >>> why.maps.shape, why.names[0]
        (torch.Size([8, 1, 224, 224]), 'query-0')
        >>> why[2:4], why["query-7"].target_scores.shape
        (Explanation(2 queries, similarity-cam, beside: fam, layer 'layer4'), torch.Size([1]))
    """

    method: str
    maps: Tensor
    attributions: Tensor
    scores: Tensor
    predicted: Tensor
    target: Tensor
    plain_scores: Tensor
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
    foil_pictures: FoilPictures | None = None
    beside: tuple[Explanation, ...] = ()
    pairs: tuple[tuple[Pair, ...], ...] | None = None

    def __len__(self) -> int:
        return len(self.maps)

    def __getitem__(self, key: int | slice | str) -> Explanation:
        return select_queries(self, rows_of(self, key))

    def __iter__(self) -> Iterator[Explanation]:
        return (self[index] for index in range(len(self)))

    def __repr__(self) -> str:
        return in_one_line(self)

    def _repr_html_(self) -> str:
        return as_html(self)

    def _repr_mimebundle_(
        self, include: Collection[str] | None = None, exclude: Collection[str] | None = None
    ) -> dict[str, str]:
        return as_bundle(self, include, exclude)

    @property
    def contrast(self) -> str | None:
        """What the score is a contrast with: ``"foil others"``, ``"threshold 0.5"``, ``"identity"``, ..., or None."""
        if self.about.get("foil") is not None:
            return f"foil {self.about['foil']}"
        against = self.about.get("against")
        return f"threshold {self.about['threshold']:g}" if against == "threshold" else against

    @property
    def smooth(self) -> int:
        """The side, in cells of the layer, of the mean filter over every map; 1 for maps that are not smoothed."""
        return int(self.about.get("smooth", 1))

    @property
    def target_scores(self) -> Tensor:
        """The score of the target class minus the score of its foil, ``(B,)``."""
        return self.scores.gather(1, self.target.unsqueeze(1)).squeeze(1)

    @property
    def flat(self) -> Tensor:
        """Which maps have the same value everywhere, such as zero, boolean ``(B,)``."""
        from captum_fam.metrics.maps import find_empty

        return find_empty(self.attributions)

    def supports_of(self, index: int | str = 0) -> list[UsedSupport]:
        """The supports that one query was compared with, the most similar first.

        Args:
            index: the position or the name of the query. Default: 0.

        Returns:
            The supports with a weight in the score, those of a foil among the supports with a negative one; none if
            they are not known.
        """
        return used_supports(self, row_of(self, index))

    def score_text(self, index: int | str = 0) -> str:
        """The score of one query in words.

        Args:
            index: the position or the name of the query. Default: 0.

        Returns:
            For example ``"0.731"``; with a foil or a threshold ``"0.0312 (plain score 0.731)"``; for a distance
            ``"-3.00, which is 11.0 more than an embedding of zeros has (-14.0)"``.
        """
        index = row_of(self, index)
        text = score_in_words(float(self.target_scores[index]), self._parts(index).get(ZERO_EMBEDDING))
        plain = f" (plain score {number_in_words(float(self.plain_scores[index]))})"
        return text if self.contrast is None else text + plain

    def account_text(self, index: int | str = 0) -> str:
        """What the map of one query explains of the score, in words.

        Args:
            index: the position or the name of the query. Default: 0.

        Returns:
            For example ``"explains 12 % of the score; class token 85 %, bias 3 %"``.
        """
        index = row_of(self, index)
        if self.coverage is not None:
            return coverage_in_words(float(self.coverage[index]), self._parts(index))
        if self.convergence_delta is not None:
            return f"convergence delta {number_in_words(float(self.convergence_delta[index]))}"
        return NO_ACCOUNT

    def _parts(self, index: int) -> dict[str, float]:
        """The shares of one query."""
        return {name: float(share[index]) for name, share in (self.shares or {}).items()}

    def overlay(self, index: int | str = 0, *, style: StyleLike = "overlay") -> Image:
        """Draw the map of one query over its image; :mod:`captum_fam.visualization.colors` explains the colors.

        Args:
            index: the position or the name of the query. Default: 0.
            style: ``"overlay"``, ``"outline"`` or a :class:`~captum_fam.visualization.MapStyle`. Default: the colors.

        Returns:
            An RGB image: of an image the map over it, at the size of the image; of a signal its lines over the colors
            of the map; of a volume at most eight slices side by side.

        Raises:
            ValueError: for images outside [0, 1].
        """
        from captum_fam.visualization import overlay

        index = row_of(self, index)
        return overlay(self.images[index], self.attributions[index], style=style)

    def figure(
        self,
        index: int | str = 0,
        supports: Sequence[ImageLike] | Tensor | None = None,
        foils: Sequence[ImageLike] | Tensor | None = None,
        *,
        style: StyleLike = "overlay",
    ) -> MapFigure:
        """Draw one query with its supports, and with the map, score and account of each method.

        Args:
            index: the position or the name of the query. Default: 0.
            supports: images of the support, for display. Default: None, those that are known: pictures and images that
                the support was made of, or the images of a :class:`~captum_fam.Neighbors`, the most similar first.
            foils: images of the foil, for display. Default: None, those that are known.
            style: as for :meth:`overlay`. Default: the colors.
        """
        index = row_of(self, index)
        known_supports, known_foils = shown_pictures(self, index)
        supports, foils = known_supports if supports is None else supports, known_foils if foils is None else foils
        return compare_figure([self, *self.beside], index, supports, foils, style=style)

    def show(self, index: int | str = 0) -> None:
        """Show the figure of one query.

        In a notebook the figure appears below the cell. Elsewhere name, score and account are printed; and where
        matplotlib has an interactive backend, a window with the figure opens until it is closed.

        Args:
            index: the position or the name of the query. Default: 0.
        """
        show_figure(self, row_of(self, index))

    def to_dataframe(self) -> Any:
        """The explanation as a table of pandas.

        Returns:
            A ``DataFrame`` with one row per query and the columns ``name``, ``target``, ``predicted``, ``score``,
            ``plain_score`` and, for the method and each method beside it, ``METHOD.coverage``, NaN without an account
            of the score, and ``METHOD.account``, the words of :meth:`account_text`; last ``smooth``.

        Raises:
            ModuleNotFoundError: without pandas; the message names the extra that installs it.

        Example:
            >>> explain(model, queries, support, layer="layer4").to_dataframe().columns[4:6].tolist()
            ['plain_score', 'similarity-cam.coverage']
        """
        return as_dataframe(self)

    def to_html(self, path: str | Path, **options: Any) -> None:
        """Write a report: one HTML file with everything inside, which needs no server and no network.

        Args:
            path: the file to write.
            **options: further arguments of :func:`captum_fam.explanation.report_page.write_report`, such as ``title``.

        Raises:
            OSError: if the file cannot be written.
        """
        from captum_fam.explanation.report_page import write_report

        write_report([self], path, **options)

    def save(self, folder: str | Path, *, overlays: bool = True) -> None:
        """Write arrays, overlays and a manifest. A folder with a manifest has all files that the manifest lists.

        These files are written:

        - ``NAME.npz`` per query: for this method and each method beside it the map (``METHOD``), the attributions at
          the layer (``METHOD.layer``) and, if the method gives them, ``METHOD.contributions``, ``METHOD.delta``,
          ``METHOD.coverage`` and ``METHOD.shares.PART``; scores and supports (``query.scores``, ...); and the query for
          display (``query.image``), if it is no photograph;
        - ``NAME.image.png`` per query that is a photograph;
        - ``NAME.METHOD.png`` per query and method: the map over the image;
        - ``picture-HASH.jpg``: small pictures of the supports and foils that figures show;
        - ``manifest.json``: model, preprocessing of pictures, layer, similarity, foil, smoothing, scores, the account
          of each map, sizes, notes of the run and versions.

        ``NAME`` is the name of the query; a name that no file can have is shortened or escaped, and is whole in the
        manifest. Files that an earlier manifest of the folder lists are removed. :meth:`load` reads the folder again.

        Args:
            folder: the folder to write to; it is created if it does not exist.
            overlays: whether to draw each map over its query. Default: True.

        Raises:
            ValueError: for images outside [0, 1], which cannot be drawn.
            OSError: if the files cannot be written; files of an earlier call are still there.
        """
        save_explanation(self, folder, overlays=overlays)

    @classmethod
    def load(cls, folder: str | Path) -> Explanation:
        """Read an explanation that :meth:`save` wrote. No code in the files is run.

        Args:
            folder: the folder.

        Returns:
            The explanation with all methods beside it. Tensors are on the CPU. Of the supports it has the pictures that
            a figure shows; the pairs of ``sides="both"`` have their first matches, but no ``decomposition``.

        Raises:
            FileNotFoundError: for a folder without a manifest.
            ValueError: for other results, another version of the format, or damaged files.

        Example:
            >>> explain(model, queries, support, layer="layer4").save("why")
            >>> Explanation.load("why")
            Explanation(8 queries, similarity-cam, beside: fam, layer 'layer4')
        """
        first, *others = (cls(**fields) for fields in read_explanation(folder))
        return replace(first, beside=tuple(others))
