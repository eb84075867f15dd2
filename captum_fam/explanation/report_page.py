"""Explanations as a report: one HTML file that a browser opens without a server."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from torch import Tensor

from captum_fam._files import versions
from captum_fam.attr.account import MAP, REST, ZERO_EMBEDDING, coverage_in_words, number_in_words
from captum_fam.explanation.figure_words import (
    NO_ACCOUNT,
    account_in_words,
    similarity_in_words,
    smoothing_in_words,
    unit_in_words,
)
from captum_fam.explanation.reading.thumbnails import MOST_SHOWN, thumbnail_of
from captum_fam.explanation.result import Explanation
from captum_fam.images import as_rgb
from captum_fam.report.encode import MOST_CELLS
from captum_fam.report.html import write_page
from captum_fam.report.page import (
    CellMatch,
    CellMatches,
    ColorMeaning,
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
_NO_MATCHES = "matches of cells are left out: the run was asked for none (top_matches=0, or --matches 0)"
_SAVED = "of each pair only its strongest matches of cells are known: a saved explanation keeps no others"
_FOILS = {"gallery": "the gallery", "others": "the other classes", "runner-up": "the runner-up"}


def write_report(
    explanations: Iterable[Explanation],
    path: str | Path,
    *,
    title: str = "Why these images match",
    manifest: Mapping[str, Any] | None = None,
    wrong_first: bool = False,
    truth: Mapping[str, str] | None = None,
    facts: Mapping[str, str] | None = None,
    decisions: Mapping[str, str] | None = None,
    remarks: Mapping[str, Mapping[int, str]] | None = None,
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
        facts: what the page says of the run besides model, layer, foil and similarity, by name. Default: None.
        decisions: how the class of a query was found, in words, by the name of the query. An entry may be added until
            the explanation of the query is taken. Default: None.
        remarks: what a row says of a support, by the name of the query and the number of the support, as
            ``decisions``. Default: None.

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
    has_no_matches = first.pairs is not None and first.about.get("top_matches") == 0
    notes = [_NO_MATCHES] if has_no_matches else []
    page = ReportPage(
        title,
        [
            ReportMethod(one.method, unit_in_words(one), is_account=one.coverage is not None)
            for one in [first, *first.beside]
        ],
        contrast=_contrast(first),
        contrast_note=_contrast_note(first),
        meaning=_meaning(first),
        facts={**_facts(first), **(facts or {})},
        notes=notes,
        manifest={**first.about, "versions": versions()} if manifest is None else manifest,
        has_matches=first.pairs is not None and not has_no_matches,
    )
    rows = _rows(chain([first], explanations), page, notes, truth or {}, decisions, remarks)
    write_page(page, rows, path, wrong_first=wrong_first)


def _contrast(why: Explanation) -> str | None:
    """The contrast in words that follow a score."""
    foil, contrast = why.about.get("foil"), why.contrast
    if foil is not None:
        return f"less {_FOILS.get(str(foil), str(foil))}"
    if contrast == "identity":
        return "similarity to itself, less the score"
    return None if contrast is None else f"less the {contrast}"


def _contrast_note(why: Explanation) -> str:
    """What a reader has to know of the numbers with a foil."""
    foil = why.about.get("foil")
    if foil is None or why.pairs is None:
        return ""
    name = _FOILS.get(str(foil), str(foil))
    return (
        f"Less {name}: each image has its own similarity to {name}, so that a match has two numbers less {name}, one "
        "for the map of the query and one for the map of the support."
    )


def _meaning(why: Explanation) -> ColorMeaning:
    """What the colors of the maps with the contrast stand for."""
    contrast = why.contrast or ""
    if contrast == "identity":
        return ColorMeaning("alike", "where they differ", "of the difference")
    if contrast.startswith("threshold"):
        return ColorMeaning("below the threshold", "above the threshold", "evidence for a score above the threshold")
    return ColorMeaning()


def _account_of(account: str, why: Explanation) -> str:
    """The account of a map with the contrast, which names what is explained."""
    contrast = None if why.support_blind else _contrast(why)
    if contrast is None or account == NO_ACCOUNT:
        return account
    whole = contrast.replace(",", "") if why.contrast == "identity" else f"score {contrast}"
    return account.replace("of the score", f"of the {whole}", 1)


def _score_of(why: Explanation, index: int) -> str:
    """What the score of a query is, where it is the mean of several similarities; else an empty text."""
    used = {one.row: one.weight for one in why.supports_of(index) if one.weight > 0}
    if len(used) < 2 or not all(math.isclose(weight, 1 / len(used), rel_tol=1e-4) for weight in used.values()):
        return ""
    shown = {pair.row for pair in why.pairs[index]} if why.pairs is not None else set()
    return f"mean of the {len(used)} matches" if shown == set(used) else f"mean of {len(used)} supports"


def _facts(why: Explanation) -> dict[str, str]:
    """What the page says of the run above the rows."""
    names = ("model", "layer", "foil")
    facts = {name: str(why.about[name]) for name in names if why.about.get(name) is not None}
    window = smoothing_in_words(why)
    return {**facts, "similarity": similarity_in_words(why), **({"maps": f"smoothed {window}"} if window else {})}


def _rows(
    explanations: Iterable[Explanation],
    page: ReportPage,
    notes: list[str],
    truth: Mapping[str, str],
    decisions: Mapping[str, str] | None,
    remarks: Mapping[str, Mapping[int, str]] | None,
) -> Iterator[ReportRow]:
    names = [method.name for method in page.methods]
    for why in explanations:
        methods = [why, *why.beside]
        if [one.method for one in methods] != names:
            found = ", ".join(one.method for one in methods)
            raise ValueError(f"explanations must have the same methods: got {found} after {', '.join(names)}")
        saved = [_SAVED] if _has_matches_only(why) else []
        notes[:] = dict.fromkeys([*notes, *saved, *(note for one in methods for note in one.notes)])
        for index in range(len(why)):
            name = why.names[index]
            row = _row(methods, index, truth, (remarks or {}).get(name, {}))
            yield replace(row, decision=(decisions or {}).get(name, ""))


def _has_matches_only(why: Explanation) -> bool:
    """Whether pairs have matches without the decomposition that they come from, as those of a loaded explanation."""
    return any(pair.matches and pair.decomposition is None for pairs in why.pairs or () for pair in pairs)


def _row(methods: Sequence[Explanation], index: int, truth: Mapping[str, str], remarks: Mapping[int, str]) -> ReportRow:
    first = methods[0]
    name, has_contrast = first.names[index], first.contrast is not None
    has_classes = len(first.class_names) > 1
    paired = [one for one in methods if one.pairs is not None]
    pairs = [one.pairs[index] for one in paired if one.pairs is not None]
    made = [
        replace(_pair(paired, of_methods, has_classes), remark=remarks.get(of_methods[0].row, ""))
        for of_methods in zip(*pairs, strict=True)
    ]
    target = first.class_names[int(first.target[index])]
    return ReportRow(
        ReportSide(name, _picture(first.images[index], first.attributions[index, 0]), _row_maps(methods, index)),
        made if pairs else _plain_pairs(first, index, target if has_classes else ""),
        score=number_in_words(float(first.plain_scores[index])),
        score_of=_score_of(first, index),
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
        words = "" if plain is None else _plain_account(plain, float(one.plain_scores[index]), one.shares)
        maps.append(_map(values, _account_of(one.account_text(index), one), plain, words))
    return maps


def _plain_account(plain: Tensor, score: float, shares: Mapping[str, Any] | None) -> str:
    """What a map explains of the plain score; empty for a distance, of which another number is explained."""
    if shares is not None and ZERO_EMBEDDING in shares:
        return ""
    whole = float(plain.sum())
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


def _pair(methods: Sequence[Explanation], of_methods: Sequence[Pair], has_classes: bool) -> ReportPair:
    """A support of a query, with the maps of all methods."""
    first, has_contrast = of_methods[0], methods[0].contrast is not None
    contrasted, of_support = (number_in_words(score) for score in (first.score, first.support_score))
    query_maps, support_maps = (
        [_side(why, pair, side) for why, pair in zip(methods, of_methods, strict=True)] for side in _SIDES
    )
    return ReportPair(
        ReportSide(first.name, _picture(first.image, first.support_map), support_maps),
        label=first.label if has_classes and first.label != first.name else "",
        score=number_in_words(first.similarity),
        contrasted=contrasted if has_contrast else None,
        support_contrasted=of_support if has_contrast and of_support != contrasted else None,
        query_maps=query_maps,
        matches=next((_matches(pair) for pair in of_methods if pair.matches), None),
    )


def _side(why: Explanation, pair: Pair, side: str) -> ReportMap:
    """The map of one image of a pair, with and without the contrast."""
    values, plain = getattr(pair, f"{side}_map"), getattr(pair, f"plain_{side}_map")
    account = account_in_words(getattr(pair, f"{side}_coverage"), getattr(pair, f"{side}_shares"))
    whole = pair.decomposition
    if whole is not None:
        # The decomposition is that of the plain similarity, and has its accounts.
        plain_account = account_in_words(getattr(whole, f"{side}_coverage"), getattr(whole, f"{side}_shares"))
    else:
        shares = getattr(pair, f"{side}_shares")
        plain_account = account if account == NO_ACCOUNT else _plain_account(plain, pair.similarity, shares)
    return _map(values, _account_of(account, why), values if why.contrast is None else plain, plain_account)


def _matches(pair: Pair) -> CellMatches | None:
    """Which cells of a pair match; None for signals and volumes."""
    if pair.query_map.dim() != 2 or pair.support_map.dim() != 2:
        return None
    grids = _cell(pair.query_map.shape), _cell(pair.support_map.shape)
    top = [CellMatch(_cell(one.query), _cell(one.support), one.share, one.cosine) for one in pair.matches]
    whole = pair.decomposition
    # The shares of the decomposition are those of the plain similarity, also where the pair has a contrast.
    shares = pair.query_shares if whole is None else whole.query_shares
    zero = 0.0 if shares is None else shares.get(ZERO_EMBEDDING, 0.0)
    what = "the difference from an embedding of zeros" if zero else "the score"
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
