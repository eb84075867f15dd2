"""Explanations as a report: one HTML file that a browser opens without a server."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from torch import Tensor

from captum_fam._files import versions
from captum_fam.attr.account import MAP, REST, ZERO_EMBEDDING, coverage_in_words, number_in_words
from captum_fam.explanation.figure_words import similarity_in_words, unit_in_words
from captum_fam.explanation.reading.thumbnails import MOST_SHOWN, thumbnail_of
from captum_fam.explanation.result import NO_ACCOUNT, Explanation
from captum_fam.images import as_rgb
from captum_fam.report.encode import MOST_CELLS
from captum_fam.report.html import write_page
from captum_fam.report.page import (
    CellMatch,
    CellMatches,
    ReportMap,
    ReportMethod,
    ReportPage,
    ReportPair,
    ReportRow,
    ReportSide,
)
from captum_fam.visualization.panel import overlay
from captum_fam.visualization.pixels import to_rgb

if TYPE_CHECKING:
    from captum_fam.explanation.pairs.pair import Pair
    from captum_fam.visualization import ImageLike

_SIDES = ("query", "support")
_FOILS = {"gallery": "the gallery", "others": "the other classes", "runner-up": "the runner-up"}


def write_report(
    explanations: Iterable[Explanation],
    path: str | Path,
    *,
    title: str = "Why these images match",
    manifest: Mapping[str, Any] | None = None,
    wrong_first: bool = False,
    truth: Mapping[str, str] | None = None,
) -> None:
    """Write explanations as one HTML file. They are taken one by one, so that they need not be in memory together.

    Each query is a row: its image with its map, and its first supports with theirs. With ``sides="both"``, a reader
    who points at a cell of one image sees which cells of the other image match. Without, supports are shown without
    maps. Signals and volumes are shown as drawings of the map of the first method.

    Args:
        explanations: explanations with the same methods, layer and similarity, at least one.
        path: the file to write.
        title: the title of the page. Default: ``"Why these images match"``.
        manifest: the settings of the run, as JSON can represent them. Default: None, those of the first explanation.
        wrong_first: whether the queries that are predicted wrong come first. Default: False.
        truth: the true class of queries, by the name of the query. Default: None, it is not known.

    Raises:
        ValueError: for no explanation, explanations of different methods, or images outside [0, 1].
        OSError: if the file cannot be written.

    Example:
        >>> why = explain(model, queries, support, layer="layer4")
        >>> write_report([why], "why.html", title="Why these photographs", truth={"query-0": "2"})
    """
    explanations = iter(explanations)
    first = next(explanations, None)
    if first is None:
        raise ValueError("explanations must have at least one explanation, got none")
    notes: list[str] = []
    page = ReportPage(
        title,
        [
            ReportMethod(one.method, unit_in_words(one), is_account=one.coverage is not None)
            for one in [first, *first.beside]
        ],
        contrast=_contrast(first),
        facts=_facts(first),
        notes=notes,
        manifest={**first.about, "versions": versions()} if manifest is None else manifest,
    )
    rows = _rows(chain([first], explanations), page, notes, truth or {})
    write_page(page, rows, path, wrong_first=wrong_first)


def _contrast(why: Explanation) -> str | None:
    """The contrast in words that follow a score."""
    foil, contrast = why.about.get("foil"), why.contrast
    if foil is not None:
        return f"less {_FOILS.get(str(foil), str(foil))}"
    if contrast == "identity":
        return "similarity to itself, less the score"
    return None if contrast is None else f"less the {contrast}"


def _facts(why: Explanation) -> dict[str, str]:
    """What the page says of the run above the rows."""
    names = ("model", "layer", "foil")
    facts = {name: str(why.about[name]) for name in names if why.about.get(name) is not None}
    return {**facts, "similarity": similarity_in_words(why)}


def _rows(
    explanations: Iterable[Explanation], page: ReportPage, notes: list[str], truth: Mapping[str, str]
) -> Iterator[ReportRow]:
    names = [method.name for method in page.methods]
    for why in explanations:
        methods = [why, *why.beside]
        if [one.method for one in methods] != names:
            found = ", ".join(one.method for one in methods)
            raise ValueError(f"explanations must have the same methods: got {found} after {', '.join(names)}")
        notes[:] = dict.fromkeys([*notes, *(note for one in methods for note in one.notes)])
        for index in range(len(why)):
            yield _row(methods, index, truth)


def _row(methods: Sequence[Explanation], index: int, truth: Mapping[str, str]) -> ReportRow:
    first = methods[0]
    name, has_contrast = first.names[index], first.contrast is not None
    has_classes = len(first.class_names) > 1
    pairs = [one.pairs[index] for one in methods if one.pairs is not None]
    made = [_pair(of_methods, has_contrast, has_classes) for of_methods in zip(*pairs, strict=True)]
    target = first.class_names[int(first.target[index])]
    return ReportRow(
        ReportSide(name, _picture(first.images[index], first.attributions[index, 0]), _row_maps(methods, index)),
        made if pairs else _plain_pairs(first, index, target if has_classes else ""),
        score=number_in_words(float(first.plain_scores[index])),
        contrasted=number_in_words(float(first.target_scores[index])) if has_contrast else None,
        predicted=first.class_names[int(first.predicted[index])] if has_classes else "",
        target=target if has_classes else "",
        truth=truth.get(name),
    )


def _picture(image: ImageLike, map_: Tensor | None = None) -> Image.Image:
    """A small picture of an input; signals and volumes are drawn with their map."""
    if map_ is not None and map_.dim() != 2:
        return thumbnail_of(overlay(image, map_))
    if not isinstance(image, Image.Image):
        image = Image.fromarray(np.rint(255 * to_rgb(image)).astype(np.uint8))
    return thumbnail_of(as_rgb(image))


def _map(values: Tensor, account: str, plain: Tensor | None, plain_account: str = "") -> ReportMap:
    """A map with its plain map; that of a signal or a volume is in the picture."""
    if values.dim() != 2:
        return ReportMap(None, account)
    array = values.detach().cpu().double().numpy()
    if plain is values:
        return ReportMap(array, account, array, account)
    without = None if plain is None else plain.detach().cpu().double().numpy()
    return ReportMap(array, account, without, plain_account)


def _row_maps(methods: Sequence[Explanation], index: int) -> list[ReportMap]:
    """The maps of the whole score of a query."""
    maps = []
    for one in methods:
        values = one.attributions[index, 0]
        plain = values if one.contrast is None or one.support_blind else _plain_map(one, index)
        words = "" if plain is None else _plain_account(float(plain.sum()), float(one.plain_scores[index]), one)
        maps.append(_map(values, one.account_text(index), plain, words))
    return maps


def _plain_account(whole: float, score: float, why: Explanation) -> str:
    """What a map explains of the plain score; empty for a distance, of which another number is explained."""
    if ZERO_EMBEDDING in (why.shares or {}):
        return ""
    return coverage_in_words(whole / score if score else math.nan, {MAP: whole, REST: score - whole})


def _plain_map(why: Explanation, index: int) -> Tensor | None:
    """The map of a whole score without its contrast, where it follows from the pairs.

    A map that accounts for a weighted sum of similarities is the weighted sum of their maps.
    """
    pairs = why.pairs[index] if why.pairs is not None else ()
    used = {one.row for one in why.supports_of(index) if one.weight > 0}
    if why.coverage is None or not pairs or {pair.row for pair in pairs} != used:
        return None
    plain: Tensor = sum(pair.weight * pair.plain_query_map for pair in pairs)  # type: ignore[assignment]  # not 0
    return plain


def _pair(of_methods: Sequence[Pair], has_contrast: bool, has_classes: bool) -> ReportPair:
    """A support of a query, with the maps of all methods."""
    first = of_methods[0]
    scores = [number_in_words(score) for score in (first.score, first.support_score)]
    contrasted = scores[0] if scores[0] == scores[1] else f"{scores[0]} (query), {scores[1]} (support)"
    query_maps, support_maps = ([_side(pair, side, has_contrast) for pair in of_methods] for side in _SIDES)
    return ReportPair(
        ReportSide(first.name, _picture(first.image, first.support_map), support_maps),
        label=first.label if has_classes and first.label != first.name else "",
        score=number_in_words(first.similarity),
        contrasted=contrasted if has_contrast else None,
        query_maps=query_maps,
        matches=next((_matches(pair) for pair in of_methods if pair.matches), None),
    )


def _side(pair: Pair, side: str, has_contrast: bool) -> ReportMap:
    """The map of one image of a pair, with and without the contrast."""
    values, plain = getattr(pair, f"{side}_map"), getattr(pair, f"plain_{side}_map")
    account = _account(getattr(pair, f"{side}_coverage"), getattr(pair, f"{side}_shares"))
    whole = pair.decomposition
    if whole is not None:
        # The decomposition is that of the plain similarity, and has its accounts.
        plain_account = _account(getattr(whole, f"{side}_coverage"), getattr(whole, f"{side}_shares"))
    else:
        plain_account = account if account == NO_ACCOUNT else ""
    return _map(values, account, plain if has_contrast else values, plain_account)


def _account(coverage: float | None, shares: Mapping[str, float] | None) -> str:
    return NO_ACCOUNT if coverage is None or shares is None else coverage_in_words(coverage, shares)


def _matches(pair: Pair) -> CellMatches | None:
    """Which cells of a pair match; None for signals and volumes."""
    if pair.query_map.dim() != 2 or pair.support_map.dim() != 2:
        return None
    grids = _cell(pair.query_map.shape), _cell(pair.support_map.shape)
    top = [CellMatch(_cell(one.query), _cell(one.support), one.share, one.cosine) for one in pair.matches]
    whole = pair.decomposition
    zero = 0.0 if pair.query_shares is None else pair.query_shares.get(ZERO_EMBEDDING, 0.0)
    what = "the difference to an embedding of zeros" if zero else "the score"
    score = pair.similarity - zero
    if whole is None or max(math.prod(grid) for grid in grids) > MOST_CELLS:
        return CellMatches(score, *grids, top=top, what=what)
    cosines = whole.cosines(0, whole.shape[0])
    return CellMatches(score, *grids, whole.matrix().double().cpu().numpy(), cosines.double().cpu().numpy(), what=what)


def _cell(numbers: Sequence[int]) -> tuple[int, int]:
    """The row and the column of a cell, or their counts."""
    rows, columns = numbers
    return rows, columns


def _plain_pairs(why: Explanation, index: int, label: str) -> list[ReportPair]:
    """The supports of a query without maps, the most similar first."""
    made: list[ReportPair] = []
    for one in why.supports_of(index):
        pictures = [] if why.support_pictures is None or one.weight < 0 else why.support_pictures(index, one.row)
        if pictures and len(made) < MOST_SHOWN:
            side = ReportSide(f"support {one.row}", _picture(pictures[0]))
            made.append(ReportPair(side, label, number_in_words(one.similarity)))
    return made
