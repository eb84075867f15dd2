"""The result of explaining a batch of queries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from captum_fam._files import MANIFEST, versions, write_all_or_nothing, write_json
from captum_fam.attr.account import ZERO_EMBEDDING, coverage_in_words, number_in_words, score_in_words
from captum_fam.explanation.figure import compare_figure
from captum_fam.explanation.saving import write_query

if TYPE_CHECKING:
    from PIL.Image import Image

    from captum_fam.visualization import ImageLike, MapFigure

NO_ACCOUNT = "no account of the score"
"""What is said of a map whose sum is no part of the score."""


@dataclass(frozen=True, eq=False)
class Explanation:
    """Why each query of a batch matched its class.

    Attributes:
        method: the name of the method.
        maps: the attributions at the inputs' size, bilinear, not normalized, ``(B, 1, H, W)``.
        attributions: as the method gave them at the layer, ``(B, 1, h, w)``; exactly zero where there was nothing but
            rounding noise (:meth:`MapMethod.without_noise <captum_fam.attr.MapMethod.without_noise>`).
        scores: of every class, minus its foil where there is one, ``(B, C)``.
        predicted: the class of the largest score, ``(B,)``.
        target: the explained class, ``(B,)``.
        class_names: C names.
        names: B names, of the queries.
        images: B images in [0, 1], for overlays; of any sizes.
        contributions: what each channel of the layer adds to the similarity, before any normalization, ``(B, N)``;
            None for methods without.
        convergence_delta: the map's sum minus the explained score, ``(B,)``, of ``"shapley"`` minus the part of it that
            is there without any position; None for methods without.
        coverage: the map's sum over the explained score, ``(B,)``, NaN where that is zero; None for methods that give
            no account of the score, as all but ``"similarity-cam"`` and ``"shapley"``.
        shares: named parts that add up to the score, each ``(B,)``, of methods with a coverage: ``"map"``, ``"class
            token"``, ``"bias"``, ..., ``"rest"``. A distance starts from the score of the zero embedding, the part
            ``"zero embedding"``: the explained score is the others.
        support_blind: whether the method knows neither support nor foil, as baselines.
        about: model, layer, similarity, foil and options, for the manifest.
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
    about: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.maps)

    @property
    def target_scores(self) -> Tensor:
        """The score of the target class, minus its foil, ``(B,)``."""
        return self.scores.gather(1, self.target.unsqueeze(1)).squeeze(1)

    @property
    def flat(self) -> Tensor:
        """Which maps are the same everywhere, as one of zeros is, boolean ``(B,)``."""
        from captum_fam.metrics.maps import find_empty

        return find_empty(self.attributions)

    def score_text(self, index: int = 0) -> str:
        """``"0.731"``; for a distance ``"-3.00 = 11.0 explained + -14.0 of the zero embedding"``."""
        return score_in_words(float(self.target_scores[index]), self._parts(index).get(ZERO_EMBEDDING))

    def account_text(self, index: int = 0) -> str:
        """What the map is to the score: ``"explains 12 % of the score; class token 85 %, bias 3 %"``."""
        if self.coverage is not None:
            return coverage_in_words(float(self.coverage[index]), self._parts(index))
        if self.convergence_delta is not None:
            return f"convergence delta {number_in_words(float(self.convergence_delta[index]))}"
        return NO_ACCOUNT

    def _parts(self, index: int) -> dict[str, float]:
        """The shares of one query."""
        return {name: float(share[index]) for name, share in (self.shares or {}).items()}

    def overlay(self, index: int = 0) -> Image:
        """The map of one query over its image: see :mod:`captum_fam.visualization` for the colors."""
        from captum_fam.visualization import overlay

        return overlay(self.images[index], self.attributions[index])

    def figure(
        self, index: int = 0, supports: Sequence[ImageLike] | Tensor = (), foils: Sequence[ImageLike] | Tensor = ()
    ) -> MapFigure:
        """One query with its supports, map and score."""
        return compare_figure([self], index, supports, foils)

    def save(self, folder: str | Path) -> None:
        """Write arrays, overlays and a manifest; the manifest stands only where all the files do.

        For each query ``NAME.npz`` with the map (``METHOD``), the attributions (``METHOD.layer``) and, where there
        are any, ``METHOD.contributions``, ``METHOD.delta``, ``METHOD.coverage`` and ``METHOD.shares.PART``; the overlay
        ``NAME.METHOD.png``; and ``manifest.json`` with model, layer, similarity, foil, scores, what the maps explain of
        them, sizes and versions.
        """
        with write_all_or_nothing(folder) as scratch:
            queries = [write_query([self], index, scratch) for index in range(len(self))]
            manifest = {**self.about, "classes": list(self.class_names), "queries": queries, "versions": versions()}
            write_json(scratch / MANIFEST, manifest)
