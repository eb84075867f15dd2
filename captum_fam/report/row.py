"""A row of a report: the query, its matches, and their numbers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

from captum_fam.report.encode import picture_uri, row_data, safe_json
from captum_fam.report.page import ReportMap, ReportPage, ReportPair, ReportRow, ReportSide
from captum_fam.report.text import counted, safe_name, safe_text


def row_lines(row: ReportRow, index: int, page: ReportPage, pictures: dict[str, str]) -> Iterator[str]:
    """The HTML of a row.

    Args:
        row: the row.
        index: the number of the row, in the order in which rows are made.
        page: what all rows share.
        pictures: the names of the pictures that stand in the file already, by their hash; new ones are added.
    """
    many = len(row.pairs) > 1
    yield f'<article class="row{" wrong" if row.is_wrong else ""}" id="row-{index}" data-pairs="{len(row.pairs)}">\n'
    yield f'<header class="about-row"><h2>{safe_name(row.query.name)}</h2>{_verdict(row)}</header>\n'
    yield '<div class="body">\n'
    yield f'<figure class="side query">{_photo(row.query, "query", f"Query {row.query.name}", f"q{index}", pictures)}'
    yield f'<figcaption><p class="name">Query</p>{_scores(row.score, row.contrasted, page)}'
    yield f'{_accounts([("map", row.query.maps)], page)}<p class="scale"></p></figcaption></figure>\n'
    if row.pairs:
        yield f'<ol class="strip" aria-label="{counted(len(row.pairs), "match", "matches")}">\n'
        for place, pair in enumerate(row.pairs):
            yield from _pair(pair, place, index, page, pictures, many)
        yield "</ol>\n"
    yield f'</div>\n<script type="application/json" class="data">{safe_json(row_data(row))}</script>\n</article>\n'


def _verdict(row: ReportRow) -> str:
    if row.is_wrong:
        return (
            f'<p class="verdict bad"><strong>Wrong</strong>: predicted {safe_name(row.predicted)}, '
            f"true class {safe_name(row.truth)}{_explained(row)}</p>"
        )
    if row.truth is not None:
        return f'<p class="verdict"><strong>Right</strong>: predicted {safe_name(row.predicted)}{_explained(row)}</p>'
    return f'<p class="verdict">predicted {safe_name(row.predicted)}{_explained(row)}</p>' if row.predicted else ""


def _explained(row: ReportRow) -> str:
    return f"; the maps explain {safe_name(row.target)}" if row.target and row.target != row.predicted else ""


def _pair(
    pair: ReportPair, place: int, index: int, page: ReportPage, pictures: dict[str, str], many: bool
) -> Iterator[str]:
    title = f"Match {place + 1} {pair.support.name}{f', class {pair.label}' if pair.label else ''}"
    rank = f'<span class="rank">{place + 1}</span> ' if many else ""
    names = [pair.label, pair.support.name] if pair.label else [pair.support.name]
    yield f'<li class="pair"><figure class="side support">{_photo(pair.support, "support", title, "", pictures)}'
    yield f'<figcaption><p class="name">{rank}{safe_name(names[0])}</p>'
    yield from (f'<p class="file">{safe_name(name)}</p>' for name in names[1:])
    sides = [("query map", pair.query_maps), ("support map", pair.support.maps)]
    yield f'<div class="facts-of-pair">{_mini(pair, index) if many else ""}<div>'
    yield f'{_scores(pair.score, pair.contrasted, page)}{_accounts(sides, page)}<p class="scale"></p></div></div>'
    yield '<p class="readout"></p></figcaption></figure></li>\n'


def _mini(pair: ReportPair, index: int) -> str:
    """A small copy of the query, for the map of this pair alone; the script takes the picture from the query."""
    if not _has_maps(pair.query_maps):
        return ""
    return f'<div class="photo mini" data-side="mini"><img alt="" data-from="q{index}"></div>'


def _has_maps(maps: Sequence[ReportMap | None]) -> bool:
    return any(one is not None and one.values is not None for one in maps)


def _photo(side: ReportSide, role: str, title: str, key: str, pictures: dict[str, str]) -> str:
    """A photograph, whose picture stands in the file only once, wherever it occurs again."""
    uri = picture_uri(side.image)
    digest = hashlib.sha256(uri.encode()).hexdigest()
    width, height = side.image.size
    size = f'width="{width}" height="{height}"'
    alt = safe_text(f"{title}{_where(side)}")
    same = pictures.get(digest)
    if same is None:
        same = pictures[digest] = key or f"p{len(pictures)}"
        source = f'id="{same}" src="{uri}"'
    else:
        name = f'id="{key}" ' if key else ""
        source = f'{name}data-from="{same}"'
    label = safe_text(f"{title}: arrow keys mark a cell")
    keys = f' tabindex="0" role="application" aria-label="{label}"' if _has_maps(side.maps) else ""
    return (
        f'<div class="photo" data-side="{role}"{keys}><img {source} {size} alt="{alt}" loading="lazy" decoding="async">'
        "</div>"
    )


def _where(side: ReportSide) -> str:
    """Where the first map is strongest, in words, for those who do not see it."""
    values = next((one.values for one in side.maps if one is not None), None)
    if values is None or values.max() <= 0:
        return ""
    rows, columns = values.shape
    row, column = divmod(int(values.argmax()), columns)
    vertical = ("upper", "middle", "lower")[min(2, 3 * row // rows)]
    horizontal = ("left", "center", "right")[min(2, 3 * column // columns)]
    place = "center" if (vertical, horizontal) == ("middle", "center") else f"{vertical} {horizontal}"
    return f"; most evidence for the match in the {place}"


def _scores(score: str, contrasted: str | None, page: ReportPage) -> str:
    """The plain score and the contrasted score."""
    lines = [f'<p class="score">score <b>{safe_text(score)}</b></p>'] if score else []
    if contrasted is not None:
        lines.append(f'<p class="score contrast">{safe_text(page.contrast)} <b>{safe_text(contrasted)}</b></p>')
    return "".join(lines)


def _accounts(sides: Sequence[tuple[str, Sequence[ReportMap | None]]], page: ReportPage) -> str:
    """What the maps of one side, or of both sides of a pair, explain of the score; the page shows one method's."""
    lines = []
    for index, method in enumerate(page.methods):
        for state in ("on", "off"):
            words = {name: _account(maps[index], state) for name, maps in sides if maps}
            if len(words) > 1 and len(set(words.values())) == 1:
                words = {"each map": next(iter(words.values()))}
            lines += [
                f'<p class="account" data-method="{index}" data-contrast="{state}"><span class="method">'
                f"{safe_text(method.name)}, </span>{name}: {safe_text(text)}</p>"
                for name, text in words.items()
                if text and (state == "on" or page.contrast is not None)
            ]
    return "".join(lines)


def _account(one: ReportMap | None, state: str) -> str:
    """The account of a map, with or without the contrast."""
    if one is None:
        return ""
    return one.account if state == "on" or one.plain is one.values else one.plain_account
