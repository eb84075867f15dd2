"""What the arrow keys, the page keys and the tab key do, what is spoken, and how cells of large grids are found."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from captum_fam.report import CellMatch, CellMatches, ReportRow, ReportSide, write_page
from tests.report.made import QUERY, SCORE, SUPPORT, matrix, page, pair, photograph, row
from tests.report.window import mark_cells, numbers, photo, point

Visit = Callable[..., Any]


def test_arrow_keys_move_the_cell_and_the_partners_are_spoken(report: Path, visit: Visit) -> None:
    window = visit(report)
    photo(window, "query").focus()
    window.keyboard.press("ArrowDown")
    (start,) = mark_cells(photo(window, "query"), QUERY)
    whole = sum(matrix(10 + place).sum(1) for place in (0, 1))
    assert start == int(whole.argmax())
    for key in ["ArrowUp"] * 3 + ["ArrowLeft"] * 4 + ["ArrowRight", "ArrowDown"]:
        window.keyboard.press(key)
    assert mark_cells(photo(window, "query"), QUERY) == [5]
    said = window.locator("#said")
    assert said.get_attribute("aria-live") == "polite"

    def spoken() -> str:
        return str(said.text_content()).replace("\u00a0", " ").replace("\u2212", "-")

    def place(cell: int, grid: tuple[int, int]) -> str:
        return f"row {cell // grid[1] + 1}, column {cell % grid[1] + 1}"

    found = re.fullmatch(
        r"Query, row 2, column 2\. Match 1: (.*?), (\S+) % of the score\. Match 2: (row .*?), (?:about )?[^,]*",
        spoken(),
    )
    assert found is not None, spoken()
    best = [int(matrix(10 + number)[5].argmax()) for number in (0, 1)]
    assert [found[1], found[3]] == [place(cell, SUPPORT) for cell in best]
    assert float(found[2]) == pytest.approx(100 * matrix(10)[5, best[0]] / SCORE, rel=5e-2)
    window.keyboard.press("Enter")
    assert spoken().startswith("Kept: query, row 2, column 2. Match 1: ")
    assert photo(window, "query").locator(".mark.kept").count() == 1
    window.keyboard.press("PageDown")
    assert mark_cells(photo(window, "query"), QUERY) == [5]
    window.keyboard.press("ArrowDown")
    (partner,) = mark_cells(photo(window, "support"), SUPPORT)
    assert f"Match 1: {place(partner, SUPPORT)}, " in spoken()
    assert "Match 2" not in spoken()
    window.keyboard.press("Escape")
    assert spoken() == "The cell is let go."


def test_a_row_is_one_stop_of_the_tab_key_and_page_keys_go_through_its_photographs(report: Path, visit: Visit) -> None:
    window = visit(report)
    seen = []
    script = "document.activeElement.name || document.activeElement.dataset.side || document.activeElement.id"

    def press(*keys: str) -> list[str]:
        for key in keys:
            window.keyboard.press(key)
            seen.append(window.evaluate(script))
        return [one for one in seen if one]

    assert press(*["Tab"] * 12) == [
        *("method", "contrast", "sides", "look", "scale", "strength", "off"),
        *("query", "query"),
    ]
    for _ in range(2):
        window.keyboard.press("Shift+Tab")
    photo(window, "query").focus()
    place = "[...document.querySelectorAll('#row-0 .photo[tabindex]')].indexOf(document.activeElement)"
    places = []
    for key in ("PageDown", "PageDown", "PageDown", "PageUp", "Home", "End"):
        window.keyboard.press(key)
        places.append(window.evaluate(place))
    assert places == [1, 2, 2, 1, 0, 2]
    # The way back with the tab key is to the photograph that was left.
    window.keyboard.press("Tab")
    assert window.evaluate("document.activeElement.closest('article').id") == "row-1"
    window.keyboard.press("Shift+Tab")
    assert window.evaluate(place) == 2
    assert window.locator("#row-0 h3").all_inner_texts() == ["Query", "1 jay", "2 jay"]
    window.locator("#row-0 > .skip").focus()
    window.keyboard.press("Enter")
    window.keyboard.press("Tab")
    assert window.evaluate("document.activeElement.closest('article').id") == "row-1"


def _of_large_grids(path: Path, visit: Visit) -> tuple[Any, tuple[int, int], tuple[int, int]]:
    """A page with two matches of cells, and the two grids."""
    grids = (40, 50), (35, 30)
    top = [CellMatch((3, 4), (30, 2), 0.4, 0.5), CellMatch((38, 45), (1, 25), 0.25, -0.125)]
    one = replace(pair(1), matches=CellMatches(0.5, *grids, top=top))
    query = ReportSide("q", photograph(1), row(1).query.maps)
    write_page(page(), [ReportRow(query, [one])], path)
    return visit(path), *grids


def test_of_large_grids_the_nearest_of_the_best_matches_is_named_as_such(tmp_path: Path, visit: Visit) -> None:
    window, query, support = _of_large_grids(tmp_path / "r.html", visit)
    point(window, photo(window, "support"), 5 * 30 + 20, support)
    assert numbers(window)[:4] == [50.0, 0.25, 0.5, -0.12] or numbers(window)[:4] == [50.0, 0.25, 0.5, -0.13]
    text = window.locator(".readout").inner_text()
    assert text.startswith("This cell is in none of the 2 strongest pairs of cells. The nearest of them carries")
    assert sorted(mark_cells(photo(window, "support"), support)) == [1 * 30 + 25, 5 * 30 + 20]
    assert mark_cells(photo(window, "query"), query) == [38 * 50 + 45]
    # The arrow keys go from cell to cell, to a cell with a match as well.
    photo(window, "support").focus()
    window.mouse.click(2, 2)
    photo(window, "support").focus()
    point(window, photo(window, "support"), 1 * 30 + 24, support, click=True)
    window.keyboard.press("ArrowRight")
    assert mark_cells(photo(window, "support"), support) == [1 * 30 + 25]
    assert window.locator(".readout").inner_text().startswith("This pair of cells carries 50.0")
    window.keyboard.press("ArrowDown")
    assert sorted(mark_cells(photo(window, "support"), support)) == [1 * 30 + 25, 2 * 30 + 25]
    spoken = str(window.locator("#said").text_content())
    assert spoken.startswith(
        "Kept: match, row 3, column 26. Query: in none of the 2 strongest pairs of cells; the nearest"
    )


def test_of_large_grids_a_chosen_partner_has_no_share_but_one_of_the_best(tmp_path: Path, visit: Visit) -> None:
    window, query, support = _of_large_grids(tmp_path / "r.html", visit)
    point(window, photo(window, "query"), 3 * 50 + 4, query, click=True)
    point(window, photo(window, "support"), 100, support)
    assert window.locator(".readout").inner_text() == "This is none of the 2 strongest pairs of cells."
    assert mark_cells(photo(window, "support"), support) == [100]
    point(window, photo(window, "support"), 30 * 30 + 2, support)
    assert numbers(window)[:3] == [80.0, 0.4, 0.5]
    assert np.isnan(numbers(window)[3]), "the cosine of a chosen partner is not said"
