"""What a report shows: plain data, which knows nothing of models, supports and explanations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL.Image import Image

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class ReportMethod:
    """A method whose maps a report shows.

    Attributes:
        name: the name of the method.
        unit: what the numbers of its maps are, for the color bar.
        is_account: whether the cells of a map are shares of the score, so that they have a percentage.
    """

    name: str
    unit: str
    is_account: bool = False


@dataclass(frozen=True)
class ColorMeaning:
    """What the two ends of the color scale stand for.

    Attributes:
        below: what negative values are.
        above: what positive values are.
        most: what there is most of where a map is largest, for the texts of the images.
    """

    below: str = "against the match"
    above: str = "for the match"
    most: str = "evidence for the match"


@dataclass(frozen=True)
class ReportPage:
    """What all rows of a report share.

    Attributes:
        title: the title of the page.
        methods: the methods of the maps; the first is shown first.
        contrast: the contrast of the maps, in words that follow a score, such as ``"less the gallery"``; None without a
            contrast.
        facts: model, layer and the like, by name, shown above the rows.
        notes: what the reader has to know about the run. They are read after the last row, so that the rows may add
            to them while they are made.
        manifest: all settings of the run, as JSON can represent them; shown on request.
        has_matches: whether rows have cells that match, so that the page says how to see them. Default: True.
        contrast_note: what the reader has to know of the numbers with the contrast; empty for nothing.
        meaning: what the colors of the maps with the contrast stand for. Maps without it have the default.
    """

    title: str
    methods: Sequence[ReportMethod]
    contrast: str | None = None
    facts: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()
    manifest: Mapping[str, Any] = field(default_factory=dict)
    has_matches: bool = True
    contrast_note: str = ""
    meaning: ColorMeaning = field(default_factory=ColorMeaning)


@dataclass(frozen=True, eq=False)
class ReportMap:
    """The map of one image by one method.

    Attributes:
        values: the map at the layer, ``(h, w)``, finite; None if the image itself shows the map, as the drawing of a
            signal does.
        account: what the map explains of the score, in words.
        plain: the map without the contrast, ``(h, w)``; the values themselves where there is no contrast. None if it is
            not known: without the contrast, the page then shows no map.
        plain_account: what the plain map explains, in words; empty where this is not known.

    Raises:
        ValueError: for maps of another shape than ``(h, w)``, NaN or inf.
    """

    values: Array | None
    account: str = ""
    plain: Array | None = None
    plain_account: str = ""

    def __post_init__(self) -> None:
        for name, values in (("values", self.values), ("plain", self.plain)):
            if values is not None and (values.ndim != 2 or not values.size or not np.isfinite(values).all()):
                raise ValueError(f"{name} must be a map (h, w) of finite numbers, got shape {values.shape}")


@dataclass(frozen=True, eq=False)
class ReportSide:
    """An image with its maps.

    Attributes:
        name: the name of the image.
        image: the image, RGB of any size.
        maps: one map per method of the page; None for a method without a map of this image.
    """

    name: str
    image: Image
    maps: Sequence[ReportMap | None] = ()


class CellMatch(NamedTuple):
    """A cell of the query and a cell of the support, with what both together carry of the score.

    Attributes:
        query: row and column in the map of the query.
        support: row and column in the map of the support.
        share: what the two carry of the score, in the unit of the score.
        cosine: the cosine of the features around the two cells, averaged over 3 x 3 cells; None if it is not known.
    """

    query: tuple[int, int]
    support: tuple[int, int]
    share: float
    cosine: float | None = None


@dataclass(frozen=True, eq=False)
class CellMatches:
    """Which cells of two images match, and how much of the score each pair of cells carries.

    Attributes:
        score: what the pairs of cells share out, without any contrast.
        query_grid: the rows and columns of the cells of the query.
        support_grid: the rows and columns of the cells of the support.
        matrix: the share of each pair of cells, ``(Q, P)`` with the cells row by row; None where only ``top`` is shown.
        cosines: the cosines of the descriptors, ``(Q, P)``; None if they are not known.
        top: the matches with the largest shares, the largest first.
        what: what ``score`` is, in words.

    Raises:
        ValueError: if a matrix has another shape than the grids.
    """

    score: float
    query_grid: tuple[int, int]
    support_grid: tuple[int, int]
    matrix: Array | None = None
    cosines: Array | None = None
    top: Sequence[CellMatch] = ()
    what: str = "the score"

    def __post_init__(self) -> None:
        shape = tuple(rows * columns for rows, columns in (self.query_grid, self.support_grid))
        for name, values in (("matrix", self.matrix), ("cosines", self.cosines)):
            if values is not None and values.shape != shape:
                raise ValueError(f"{name} must have the shape {shape} of the two grids, got {values.shape}")


@dataclass(frozen=True, eq=False)
class ReportPair:
    """A neighbor or a support of a row.

    Attributes:
        support: its image, with the maps of this image.
        label: its class; empty without classes.
        score: its plain score, in words.
        contrasted: its score minus the contrast of the query, in words; None without a contrast.
        query_maps: the maps of the query for this pair alone, one per method, with their accounts.
        matches: which cells match; None if this is not known.
        support_contrasted: its score minus the contrast of the support, in words; None if it is the same.
        remark: what else there is to say of the pair, such as its score by a search engine; empty for nothing.
    """

    support: ReportSide
    label: str = ""
    score: str = ""
    contrasted: str | None = None
    query_maps: Sequence[ReportMap | None] = ()
    matches: CellMatches | None = None
    support_contrasted: str | None = None
    remark: str = ""


@dataclass(frozen=True, eq=False)
class ReportRow:
    """A query with its neighbors or supports.

    Attributes:
        query: the image of the query, with the maps of the whole score.
        pairs: its neighbors or supports, the first one first.
        score: the plain score of the explained class, in words.
        contrasted: this score minus the contrast, in words; None without a contrast.
        predicted: the predicted class; empty without classes.
        target: the explained class; empty without classes.
        truth: the true class; None if it is not known.
        score_of: what the score is, such as ``"mean of the 5 matches"``; empty where this needs no words.
        decision: how the predicted class was found, such as ``"4 of 10 votes"``; empty for nothing to say.
    """

    query: ReportSide
    pairs: Sequence[ReportPair] = ()
    score: str = ""
    contrasted: str | None = None
    predicted: str = ""
    target: str = ""
    truth: str | None = None
    score_of: str = ""
    decision: str = ""

    @property
    def is_wrong(self) -> bool:
        """Whether the predicted class is another than the true class."""
        return self.truth is not None and self.predicted != self.truth
