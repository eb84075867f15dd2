"""The page in a real browser: its numbers, its switches, its keys, and what it does not do."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from captum_fam.report import CellMatches, ReportPair, ReportSide, write_page
from tests.report.made import QUERY, SCORE, SUPPORT, cosines, matrix, page, photograph, row
from tests.report.window import mark_cells, numbers, photo, pixels, point

Visit = Callable[..., Any]


@pytest.mark.parametrize("cell", [0, 5, 11])
def test_a_cell_of_the_query_shows_its_best_match_in_every_support(report: Path, visit: Visit, cell: int) -> None:
    window = visit(report)
    point(window, photo(window, "query"), cell, QUERY)
    for place in (0, 1):
        shares = matrix(10 + place)
        best = int(shares[cell].argmax())
        percent, share, score, cosine, whole = numbers(window, place)
        assert share == pytest.approx(shares[cell, best], rel=5e-3)
        assert score == SCORE
        assert percent == pytest.approx(100 * shares[cell, best] / SCORE, rel=5e-2)
        assert cosine == pytest.approx(cosines(10 + place)[cell, best], abs=0.00502)
        assert whole == pytest.approx(100 * shares[cell].sum() / SCORE, rel=5e-2)
        assert mark_cells(photo(window, "support", place), SUPPORT) == [best]
    assert mark_cells(photo(window, "query"), QUERY) == [cell]
    window.mouse.move(2, 2)
    assert mark_cells(photo(window, "query"), QUERY) == []
    assert "strongest pair" in window.locator("#row-0 .readout").first.inner_text()


@pytest.mark.parametrize("cell", [0, 9])
def test_a_cell_of_a_support_shows_its_best_match_in_the_query(report: Path, visit: Visit, cell: int) -> None:
    window = visit(report)
    point(window, photo(window, "support", 1), cell, SUPPORT)
    shares = matrix(11)
    best = int(shares[:, cell].argmax())
    assert numbers(window, 1)[1] == pytest.approx(shares[best, cell], rel=5e-3)
    assert mark_cells(photo(window, "query"), QUERY) == [best]
    assert mark_cells(photo(window, "support", 0), SUPPORT) == []


def test_the_tint_of_the_other_photograph_is_the_row_of_the_matrix(report: Path, visit: Visit) -> None:
    window = visit(report)
    point(window, photo(window, "query"), 7, QUERY)
    colors = pixels(photo(window, "support"), "tint").reshape(-1, 4).astype(float)
    shares = matrix(10)[7]
    largest, step = abs(shares).max(), abs(matrix(10)).max() / 127
    assert colors.shape[:1] == shares.shape
    # Orange has more red than blue, and blue less; the opacity grows with the magnitude.
    signs = np.sign(colors[:, 0] - colors[:, 2]) * (colors[:, 3] > 0)
    clear = abs(shares) > largest / 10 + step
    np.testing.assert_array_equal(signs[clear], np.sign(shares)[clear])
    order = abs(shares).argsort()
    for weak, strong in pairwise(order):
        if abs(shares[strong]) - abs(shares[weak]) > step:
            assert colors[strong, 3] >= colors[weak, 3]


@pytest.mark.parametrize("cell", [4, 6])
def test_a_kept_cell_is_paired_with_any_cell_and_only_true_digits_are_shown(
    report: Path, visit: Visit, cell: int
) -> None:
    window = visit(report)
    shares = matrix(10)
    point(window, photo(window, "query"), cell, QUERY, click=True)
    words = set()
    for partner in range(10):
        point(window, photo(window, "support"), partner, SUPPORT)
        text = window.locator("#row-0 .readout").first.inner_text().replace("\u2212", "-").replace("\u00a0", " ")
        assert mark_cells(photo(window, "support"), SUPPORT) == [partner]
        if partner == shares[cell].argmax():  # 16 bits for the largest of the best shares of the cells
            half = shares.max(1).max() / 65534
        elif cell == shares[:, partner].argmax():
            half = shares.max(0).max() / 65534
        else:  # 8 bits; a weak row has finer steps than the others
            half = min(abs(shares).max() / 127, abs(shares[cell]).max() / 4) / 2
        pattern = r"carries ((?:about |less than )?)(\S+) % of the score \(\1(\S+) of 0.731\)\."
        found = re.search(pattern, text)
        assert found is not None, text
        word, *shown = found.groups()
        for number, scale in zip(shown, (100 / SCORE, 1), strict=True):
            true, error = scale * shares[cell, partner], scale * half
            if word == "less than ":
                assert abs(true) <= float(number) <= 2.1 * error
                continue
            exponent = Decimal(number).as_tuple().exponent
            assert isinstance(exponent, int)
            assert float(number) == pytest.approx(true, abs=10.0**exponent / 2 + error * 1.001)
            has_one_digit = len(number.strip("-0.")) == 1
            assert has_one_digit or 10.0**exponent >= 2 * error * 0.999
        words.add(word)
    assert words >= ({"", "about "} if cell == 4 else {"about ", "less than "})


def test_a_tap_keeps_the_cell(report: Path, visit: Visit) -> None:
    window = visit(report, width=390, has_touch=True, is_mobile=True)
    box = photo(window, "query")
    box.scroll_into_view_if_needed()
    area = box.bounding_box()
    window.touchscreen.tap(area["x"] + area["width"] / 8, area["y"] + area["height"] / 6)
    assert mark_cells(box, QUERY) == [0]
    assert numbers(window)[1] == pytest.approx(matrix(10)[0].max(), rel=5e-3)


def test_the_switch_of_the_method_shows_its_maps_and_its_account(report: Path, visit: Visit) -> None:
    window = visit(report)
    box = photo(window, "query", of_row=1)
    exact = pixels(box)
    window.locator("input[name=method][value='1']").check(force=True)
    other = pixels(box)
    assert (exact != other).any()
    assert not (other[..., 2] > other[..., 0])[other[..., 3] > 9].any(), "the map of this method has no negative value"
    shown = window.locator("#row-1 .query .account:visible").all_inner_texts()
    assert shown == ["map: no account of the score"]
    assert window.locator("#unit").inner_text() == "activation, less the gallery"


def test_the_switch_of_the_contrast_shows_the_plain_maps(report: Path, visit: Visit) -> None:
    window = visit(report)
    box = photo(window, "support", of_row=1)
    window.locator("input[name=look][value=cells]").check(force=True)
    contrasted = pixels(box)
    assert window.locator("#row-1 .support .contrast").inner_text() == "less the gallery 0.120"
    window.locator("input[name=contrast][value=off]").check(force=True)
    plain = pixels(box)
    assert (contrasted != plain).any()
    limit = max(abs(matrix(20).sum(axis)).max() for axis in (0, 1))
    said = window.locator("#row-1 .pair .scale").inner_text()
    assert float(said.removeprefix("full color: ")) == pytest.approx(limit, rel=5e-3)
    assert not window.locator("#row-1 .support .contrast").is_visible()
    assert window.locator("#unit").inner_text() == "share of the cosine"
    values = matrix(20).sum(0).reshape(SUPPORT)
    for shown, expected in ((contrasted, values - values.mean()), (plain, values)):
        assert shown.shape[:2] == SUPPORT
        strong = abs(expected) > abs(expected).max() / 4
        signs = np.sign(shown[..., 0] - shown[..., 2]) * (shown[..., 3] > 0)
        np.testing.assert_array_equal(signs[strong], np.sign(expected)[strong])


def test_the_switch_of_the_sides_takes_the_maps_of_the_other_side_away(report: Path, visit: Visit) -> None:
    window = visit(report)
    for value, shown in (("query", (True, False)), ("support", (False, True)), ("both", (True, True))):
        window.locator(f"input[name=sides][value={value}]").check(force=True)
        assert tuple(photo(window, side).locator(".map").is_visible() for side in ("query", "support")) == shown


def test_the_style_is_smooth_cells_or_an_outline(report: Path, visit: Visit) -> None:
    window = visit(report)
    box = photo(window, "query")
    assert pixels(box).shape[:2] == (4 * QUERY[0], 4 * QUERY[1])
    window.locator("input[name=look][value=cells]").check(force=True)
    assert pixels(box).shape[:2] == QUERY
    window.locator("input[name=look][value=outline]").check(force=True)
    assert not box.locator(".map").is_visible()
    lines = [one.get_attribute("d") for one in box.locator("path.line").all()]
    whole = sum(matrix(10 + place).sum(1) for place in (0, 1)).reshape(QUERY) / 2
    contrasted = whole - whole.mean()
    level = abs(contrasted).max() / 2
    assert [bool(line) for line in lines] == [(contrasted < -level).any(), (contrasted > level).any()]
    # Every point of a line lies within the photograph, whose sides are those of the grid.
    points = np.array([float(one) for one in re.findall(r"[\d.]+", "".join(filter(None, lines)))]).reshape(-1, 2)
    assert (points >= 0).all()
    assert (points <= QUERY[::-1]).all()


def test_strength_and_off_change_what_is_seen(report: Path, visit: Visit) -> None:
    window = visit(report)
    box = photo(window, "support")
    box.scroll_into_view_if_needed()
    pictures = [box.screenshot()]
    window.locator("#strength").evaluate(
        "one => { one.value = 10; one.dispatchEvent(new Event('input', {bubbles: true})); }"
    )
    assert box.locator(".map").evaluate("one => getComputedStyle(one).opacity") == "0.1"
    pictures.append(box.screenshot())
    window.locator("#off").check()
    assert not box.locator(".map").is_visible()
    pictures.append(box.screenshot())
    assert len(set(pictures)) == 3
    window.keyboard.press("o")
    assert box.locator(".map").is_visible()
    assert box.screenshot() == pictures[1]


def test_full_color_is_that_of_the_match_or_of_the_row(report: Path, visit: Visit) -> None:
    window = visit(report)

    def said() -> list[float]:
        return [float(one.split(": ")[1]) for one in window.locator("#row-0 .pair .scale").all_inner_texts()]

    limits = []
    for place in (0, 1):
        sides = [matrix(10 + place).sum(axis) for axis in (0, 1)]
        limits.append(max(abs(values - values.mean()).max() for values in sides))
    np.testing.assert_allclose(said(), limits, rtol=5e-3)
    window.locator("input[name=scale][value=row]").check(force=True)
    np.testing.assert_allclose(said(), [max(limits)] * 2, rtol=5e-3)


def test_the_page_makes_no_request_and_runs_no_other_script(report: Path, visit: Visit) -> None:
    window = visit(report)
    assert window.requests == [report.as_uri()]
    assert window.errors == []
    window.evaluate(
        "() => { const one = document.createElement('script'); one.textContent = 'window.hacked = 1';"
        "document.body.append(one); document.body.insertAdjacentHTML('beforeend',"
        '\'<img src="https://example.org/a.png" onerror="window.hacked = 2"><p style="color: red" id=p>a</p>\'); }'
    )
    window.wait_for_timeout(200)
    assert window.evaluate("window.hacked") is None
    assert window.evaluate("getComputedStyle(document.getElementById('p')).color") != "rgb(255, 0, 0)"
    assert any("Content Security Policy" in text for text in window.errors)


@pytest.mark.parametrize("width", [390, 760, 1280])
def test_nothing_is_wider_than_the_window(tmp_path: Path, visit: Visit, width: int) -> None:
    name = "a_very_long_name_of_a_photograph" * 6
    rows = [row(1, n_pairs=7, name=name), row(2, n_pairs=1, name="x" * 200), row(3, n_pairs=0)]
    path = tmp_path / "r.html"
    write_page(replace(page("x" * 300), contrast="less the foil " + "y" * 100), rows, path)
    window = visit(path, width=width)
    if width < 761:
        window.locator(".controls summary").click()
    assert window.evaluate("document.documentElement.scrollWidth") == width
    window.screenshot(path=tmp_path / "r.png", full_page=True)


def test_dark_mode_has_a_dark_page_and_light_text(report: Path, visit: Visit) -> None:
    window = visit(report, color_scheme="dark")
    script = "getComputedStyle(document.body).%s.match(/\\d+/g).map(Number)"
    background, text = (window.evaluate(script % name) for name in ("backgroundColor", "color"))
    assert max(background) < 60
    assert min(text) > 200


def test_a_print_has_all_maps_and_no_switches_and_is_light(report: Path, visit: Visit) -> None:
    window = visit(report, color_scheme="dark")
    window.emulate_media(media="print", color_scheme="dark")
    boxes = photo(window, "query"), photo(window, "support", of_row=1)
    assert all(box.locator(".map").is_visible() for box in boxes)
    assert not window.locator("#view").is_visible()
    assert window.locator("#legend").is_visible()
    style = "getComputedStyle(document.querySelector('%s')).%s.match(/\\d+/g).map(Number)"
    assert window.evaluate(style % ("body", "backgroundColor")) == [255, 255, 255]
    assert window.evaluate(style % ("#row-0 .verdict", "color")) == [51, 51, 51]
    assert window.evaluate("getComputedStyle(document.documentElement).colorScheme") == "light"
    assert window.pdf().startswith(b"%PDF")
    window.emulate_media(media="screen")
    window.locator("#off").check()
    window.emulate_media(media="print")
    assert not any(box.locator(".map").is_visible() for box in boxes), "maps that are off are not printed"


def test_without_matches_a_cell_says_its_own_value(tmp_path: Path, visit: Visit) -> None:
    path = tmp_path / "r.html"
    write_page(page(), [row(1, n_pairs=0)], path)
    window = visit(path)
    point(window, photo(window, "query"), 4, (3, 3))
    text = window.locator("#row-0 .query .scale").inner_text()
    assert text == "Cell in row 2, column 2: 0.667, share of the cosine."


def test_a_distance_says_what_it_divides(tmp_path: Path, visit: Visit) -> None:
    shares = -matrix(1)
    what = "the difference from an embedding of zeros"
    matches = CellMatches(-SCORE, QUERY, SUPPORT, shares, what=what)
    one = ReportPair(ReportSide("s", photograph(1)), matches=matches)
    path = tmp_path / "r.html"
    write_page(page(), [replace(row(1, n_pairs=0), pairs=[one])], path)
    window = visit(path)
    text = window.locator(".readout").inner_text().replace("\u2212", "-")
    assert text == f"The strongest pair of cells carries {shares.max():#.3g} of -0.731, {what}."


def test_a_map_that_is_not_known_without_the_contrast_is_not_shown(tmp_path: Path, visit: Visit) -> None:
    one = row(1)
    maps = [replace(found, plain=None) for found in one.query.maps if found is not None]
    path = tmp_path / "r.html"
    write_page(page(), [replace(one, query=replace(one.query, maps=maps))], path)
    window = visit(path)
    assert photo(window, "query").locator(".map").is_visible()
    window.locator("input[name=contrast][value=off]").check(force=True)
    assert not photo(window, "query").locator(".map").is_visible()
    assert window.locator(".query .scale").inner_text() == "Without the contrast, each match has a map of its own."
    assert photo(window, "support").locator(".map").is_visible()


def test_large_numbers_are_written_in_full(tmp_path: Path, visit: Visit) -> None:
    one = row(1, n_pairs=0)
    maps = [replace(found, values=12345 * np.eye(3)) for found in one.query.maps if found is not None]
    path = tmp_path / "r.html"
    write_page(page(), [replace(one, query=replace(one.query, maps=maps))], path)
    assert visit(path).locator(".query .scale").inner_text() == "full color: 12,300"
