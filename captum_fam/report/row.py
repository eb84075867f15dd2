"""A row of a report: the query, its matches, and their numbers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

from captum_fam.report.encode import picture_uri, row_data, safe_json
from captum_fam.report.page import ReportMap, ReportPage, ReportPair, ReportRow, ReportSide
from captum_fam.report.text import counted, safe_name, safe_numbers, safe_text


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
    yield f'<a class="skip" href="#end-{index}" tabindex="-1">Skip this row</a>'
    yield f'<header class="about-row"><h2>{safe_name(row.query.name)}</h2>{_verdict(row)}</header>\n'
    # The tab key stops at one photograph of the row; the script moves the stop with the reader.
    sides = [row.query, *(pair.support for pair in row.pairs)]
    stop = next((place for place, side in enumerate(sides) if _has_maps(side.maps)), None)
    title = f"Query {row.query.name}"
    yield '<div class="body">\n'
    yield f'<figure class="side query">{_photo(row.query, "query", title, page, pictures, f"q{index}", stop == 0)}'
    yield f'<figcaption><h3 class="name">Query</h3>{_scores(row.score, row.contrasted, page, row.score_of)}'
    yield f'{_accounts([("map", row.query.maps)], page)}<p class="scale"></p></figcaption></figure>\n'
    if row.pairs:
        count = counted(len(row.pairs), "match", "matches")
        yield f'<div class="matches">{f"""<p class="swipe">{count}: swipe</p>""" if many else ""}\n'
        yield f'<ol class="strip" aria-label="{count}">\n'
        for place, pair in enumerate(row.pairs):
            yield from _pair(pair, row, place, index, page, pictures, stop == place + 1)
        yield "</ol></div>\n"
    yield f'</div>\n<script type="application/json" class="data">{safe_json(row_data(row))}</script>\n'
    yield f'<span class="end-of-row" id="end-{index}" tabindex="-1"></span></article>\n'


def _verdict(row: ReportRow) -> str:
    """What was predicted, how, and whether it is right."""
    if not row.predicted and row.truth is None:
        return ""
    decision = f" ({safe_text(row.decision)})" if row.decision else ""
    explained = f"; the maps explain {safe_name(row.target)}" if row.target and row.target != row.predicted else ""
    words = f"predicted {safe_name(row.predicted)}{decision}"
    if row.is_wrong:
        words = f"<strong>Wrong</strong>: {words}, truly {safe_name(row.truth)}"
    elif row.truth is not None:
        words = f"<strong>Right</strong>: {words}"
    return f'<p class="verdict{" bad" if row.is_wrong else ""}">{words}{explained}</p>'


def _pair(
    pair: ReportPair, row: ReportRow, place: int, index: int, page: ReportPage, pictures: dict[str, str], is_stop: bool
) -> Iterator[str]:
    """A match of the row."""
    many = len(row.pairs) > 1
    title = f"Match {place + 1} {pair.support.name}{f', class {pair.label}' if pair.label else ''}"
    rank = f'<span class="rank">{place + 1}</span> ' if many else ""
    names = [pair.label, pair.support.name] if pair.label else [pair.support.name]
    yield '<li class="pair"><figure class="side support">'
    yield _photo(pair.support, "support", title, page, pictures, "", is_stop)
    yield f'<figcaption><h3 class="name">{rank}{safe_name(names[0])}</h3>'
    yield from (f'<p class="file">{safe_name(name)}</p>' for name in names[1:])
    yield f'<p class="remark">{safe_text(pair.remark)}</p>' if pair.remark else ""
    sides = [("query map", pair.query_maps), ("support map", pair.support.maps)]
    yield f'<div class="facts-of-pair">{_mini(pair, index) if many else ""}<div>'
    yield f"{_scores(pair.score, pair.contrasted, page, support=pair.support_contrasted)}</div></div>"
    yield f'{_accounts(sides, page)}<p class="scale"></p><p class="readout"></p></figcaption></figure></li>\n'


def _mini(pair: ReportPair, index: int) -> str:
    """A small copy of the query, for the map of this pair alone; the script takes the picture from the query."""
    if not _has_maps(pair.query_maps):
        return ""
    return f'<div class="photo mini" data-side="mini"><img alt="" data-from="q{index}"></div>'


def _has_maps(maps: Sequence[ReportMap | None]) -> bool:
    return any(one is not None and one.values is not None for one in maps)


def _photo(
    side: ReportSide, role: str, title: str, page: ReportPage, pictures: dict[str, str], key: str, is_stop: bool
) -> str:
    """A photograph, whose picture stands in the file only once, wherever it occurs again."""
    uri = picture_uri(side.image)
    digest = hashlib.sha256(uri.encode()).hexdigest()
    width, height = side.image.size
    size = f'width="{width}" height="{height}"'
    alt = safe_text(f"{title}{_where(side, page.meaning.most)}")
    same = pictures.get(digest)
    if same is None:
        same = pictures[digest] = key or f"p{len(pictures)}"
        source = f'id="{same}" src="{uri}"'
    else:
        name = f'id="{key}" ' if key else ""
        source = f'{name}data-from="{same}"'
    label = safe_text(f"{title}: arrow keys mark a cell")
    stop = 0 if is_stop else -1
    keys = f' tabindex="{stop}" role="application" aria-label="{label}"' if _has_maps(side.maps) else ""
    return (
        f'<div class="photo" data-side="{role}"{keys}><img {source} {size} alt="{alt}" loading="lazy" decoding="async">'
        "</div>"
    )


def _where(side: ReportSide, most: str) -> str:
    """Where the first map is strongest, in words, for those who do not see it."""
    values = next((one.values for one in side.maps if one is not None), None)
    if values is None or values.max() <= 0:
        return ""
    rows, columns = values.shape
    row, column = divmod(int(values.argmax()), columns)
    vertical = ("upper", "middle", "lower")[min(2, 3 * row // rows)]
    horizontal = ("left", "center", "right")[min(2, 3 * column // columns)]
    place = "center" if (vertical, horizontal) == ("middle", "center") else f"{vertical} {horizontal}"
    return f"; most {most} in the {place}"


def _scores(
    score: str, contrasted: str | None, page: ReportPage, score_of: str = "", support: str | None = None
) -> str:
    """The plain score and the contrasted score, the latter for the query and the support where the two differ."""
    what = f", {safe_text(score_of)}" if score_of else ""
    lines = [f'<p class="score">score <b>{safe_numbers(score)}</b>{what}</p>'] if score else []
    name = safe_text(page.contrast)
    if support is not None:
        lines.append(f'<p class="score contrast">{name}:</p>')
        sides = {"query": contrasted, "support": support}
        lines += [f'<p class="score contrast part">{side} <b>{safe_numbers(of)}</b></p>' for side, of in sides.items()]
    elif contrasted is not None:
        lines.append(f'<p class="score contrast">{name} <b>{safe_numbers(contrasted)}</b></p>')
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
                f"{safe_text(method.name)}, </span>{name}: {safe_numbers(text)}</p>"
                for name, text in words.items()
                if text and (state == "on" or page.contrast is not None)
            ]
    return "".join(lines)


def _account(one: ReportMap | None, state: str) -> str:
    """The account of a map, with or without the contrast."""
    if one is None:
        return ""
    return one.account if state == "on" or one.plain is one.values else one.plain_account
