"""The words of a report say what its numbers and colors are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from captum_fam.report import ColorMeaning, ReportMap, ReportPair, ReportSide, write_page
from captum_fam.report.text import safe_numbers
from tests.report.made import EXACT, QUERY, SUPPORT, page, photograph, row
from tests.report.window import photo, pixels, point

Visit = Callable[..., Any]


def test_the_minus_sign_is_that_of_the_script() -> None:
    shown = "0.1 \N{MINUS SIGN}0.2 (\N{MINUS SIGN}3 %) a-4 1.0e\N{MINUS SIGN}07 &lt;\N{MINUS SIGN}5"
    assert safe_numbers("0.1 -0.2 (-3 %) a-4 1.0e-07 <-5") == shown


def test_one_match_has_one_scale_for_both_photographs(tmp_path: Path, visit: Visit) -> None:
    query, support = np.zeros(QUERY), np.zeros(SUPPORT)
    query[0, 0], support[0, 0] = 0.25, -1.0
    maps = [[ReportMap(values, EXACT), ReportMap(abs(values))] for values in (query, support)]
    one = replace(
        row(1, n_pairs=0),
        query=ReportSide("q", photograph(1), maps[0]),
        pairs=[ReportPair(ReportSide("s", photograph(2), maps[1]), query_maps=maps[0])],
    )
    write_page(page(), [one], tmp_path / "r.html")
    window = visit(tmp_path / "r.html")
    assert window.locator(".scale").all_inner_texts() == ["full color: 1.00"] * 2
    window.locator("input[name=look][value=cells]").check(force=True)
    left, right = (pixels(photo(window, side))[0, 0] for side in ("query", "support"))
    assert left[3] < right[3], "a quarter of the value has less color"


@pytest.mark.parametrize("width", [1280, 390])
def test_the_legend_says_what_the_colors_are_at_each_moment(tmp_path: Path, visit: Visit, width: int) -> None:
    meaning = ColorMeaning("alike", "where they differ", "of the difference")
    text = "similarity to itself, less the score"
    write_page(replace(page(), meaning=meaning, contrast=text), [row(1)], tmp_path / "r.html")
    window = visit(tmp_path / "r.html", width=width)

    def said() -> tuple[list[str], str, str]:
        ends = window.locator("#legend .ends span").all_inner_texts()
        return ends, window.locator("#unit").inner_text(), window.locator("#colors").get_attribute("aria-label")

    with_contrast = (
        ["alike", "0", "where they differ"],
        f"share of the cosine, {text}",
        "Color scale: blue is alike, zero is transparent, orange is where they differ",
    )
    assert said() == with_contrast
    alts = [image.get_attribute("alt") for image in window.locator("img[alt^=Match], img[alt^=Query]").all()]
    assert all("; most of the difference in the" in alt for alt in alts)
    height = window.locator(".top").bounding_box()["height"]
    point(window, photo(window, "query"), 3, QUERY)
    ends, unit, label = said()
    assert ends == ["against the match", "0", "for the match"]
    assert unit == "dark photographs: share of the cosine with the marked cell, each photograph to its own maximum"
    assert "blue is against the match" in label
    assert window.locator(".top").bounding_box()["height"] == height, "the page does not jump"
    window.keyboard.press("Escape")
    assert said() == with_contrast
    if width == 390:
        window.locator(".controls summary").click()
    window.locator("input[name=contrast][value=off]").check(force=True)
    assert said()[:2] == (["against the match", "0", "for the match"], "share of the cosine")


def test_scores_say_what_they_are(tmp_path: Path) -> None:
    one = row(1, truth="wren")
    pairs = [
        replace(one.pairs[0], contrasted="0.120", support_contrasted="-0.070", remark="voted for <jay>"),
        one.pairs[1],
    ]
    one = replace(one, pairs=pairs, score_of="mean of the 2 matches", decision="1 of 2 votes")
    write_page(replace(page(), contrast_note="Two numbers."), [one], tmp_path / "r.html")
    text = (tmp_path / "r.html").read_text("utf-8")
    assert "score <b>0.731</b>, mean of the 2 matches</p>" in text
    assert "predicted <bdi>jay</bdi> (1 of 2 votes), truly <bdi>wren</bdi>" in text
    assert text.count('class="remark"') == 1
    assert "voted for &lt;jay&gt;" in text
    assert '<p class="hint">Two numbers.</p>' in text
    assert (
        'less the gallery:</p><p class="score contrast part">query <b>0.120</b></p>'
        '<p class="score contrast part">support <b>\N{MINUS SIGN}0.070</b></p>'
    ) in text
    assert text.count("less the gallery <b>0.120</b>") == 2, "the query, and the match whose sides agree"


def test_a_phone_shows_the_partners_of_a_tapped_cell_in_its_window(report: Path, visit: Visit) -> None:
    window = visit(report, width=390, has_touch=True, is_mobile=True)
    box = photo(window, "query")
    box.scroll_into_view_if_needed()
    line = window.locator("#said")
    assert line.bounding_box()["width"] == 1
    area = box.bounding_box()
    for is_marked in (True, False):  # a second tap lets the cell go
        window.touchscreen.tap(area["x"] + area["width"] / 8, area["y"] + area["height"] / 6)
        shown = line.bounding_box()
        assert (shown["width"] == 390) == is_marked
        if is_marked:
            assert shown["y"] + shown["height"] == pytest.approx(900, abs=1)
            assert line.inner_text().startswith("Kept: query, row 1, column 1. Match 1: row ")
            assert "Match 2: row " in line.inner_text()
    assert window.locator("#row-0 .swipe").is_visible()
    strip = window.locator("#row-0 .strip")
    second = strip.locator(".pair").nth(1).bounding_box()
    whole = strip.bounding_box()
    assert second["x"] + 20 < whole["x"] + whole["width"], "the second match is seen in part"
    assert window.evaluate("document.documentElement.scrollWidth") == 390
