"""The file is complete in itself, lets nothing in, and shows every text as it is."""

from __future__ import annotations

import base64
import hashlib
import re
import weakref
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from captum_fam.report import ReportMethod, ReportPage, ReportRow, ReportSide, write_page
from captum_fam.report.text import safe_name, safe_text
from tests.report.made import page, pair, photograph, row

NAMES = [
    "<script>alert(1)</script>",
    "\"quotes\" 'single' & ampersands &amp;",
    "</title></script><!-- <img src=x onerror=alert(1)>",
    "\u05d0\u05d1\u05d2 \u202emirrored",
    "bytes\udcff",
    "line\nbreak",
]


class Tags(HTMLParser):
    """All tags with their attributes, and the text outside scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.raw: dict[str, list[str]] = {"script": [], "style": []}
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside in self.raw:
            self.raw[self._inside].append(data)
        else:
            self.texts.append(data)


def test_nothing_in_the_file_comes_from_elsewhere_or_is_inline_code(report: Path) -> None:
    text = report.read_text("utf-8")
    parsed = Tags(text)
    for tag, attributes in parsed.tags:
        assert not [name for name in attributes if name.startswith("on") or name == "style"], (tag, attributes)
        for name in ("src", "href"):
            assert (attributes.get(name) or "#").startswith(("data:image/jpeg;base64,", "#"))
    assert not re.search(r"url\(|@import|https?://(?!www\.w3\.org/2000/svg)", text)


def test_the_policy_allows_this_style_and_this_script_only(report: Path) -> None:
    parsed = Tags(report.read_text("utf-8"))
    policies = [one["content"] for _, one in parsed.tags if one.get("http-equiv") == "Content-Security-Policy"]
    (style,), script = parsed.raw["style"], parsed.raw["script"][-1]
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script)]
    assert policies == [
        f"default-src 'none'; img-src data:; style-src 'sha256-{hashes[0]}'; script-src 'sha256-{hashes[1]}'; "
        "base-uri 'none'; form-action 'none'"
    ]


@pytest.mark.parametrize("name", NAMES)
def test_every_text_is_shown_as_it_is(name: str, tmp_path: Path) -> None:
    clean, other = tmp_path / "clean.html", tmp_path / "other.html"
    write_page(ReportPage("a", [ReportMethod("a", "a")], "a", {"a": "a"}, ["a"], {"a": "a"}), [_row("a")], clean)
    write_page(
        ReportPage(name, [ReportMethod(name, name)], name, {name: name}, [name], {name: name}), [_row(name)], other
    )
    expected, found = (Tags(file.read_text("utf-8")) for file in (clean, other))
    without = ("alt", "aria-label")
    structures = [
        [(tag, [key for key in one if key not in without]) for tag, one in parsed.tags if tag != "wbr"]
        for parsed in (expected, found)
    ]
    assert structures[0] == structures[1]
    shown = name.encode("ascii", "backslashreplace").decode() if name == NAMES[4] else name
    shown = shown.replace("\u202e", "\\u202e").replace("\n", "\\n")
    assert "".join(found.texts).count(shown) >= 8


def _row(name: str) -> ReportRow:
    support = replace(pair(1, name, label=name), score=name, contrasted=name)
    support = replace(support, query_maps=support.query_maps[:1])
    support = replace(support, support=replace(support.support, maps=support.support.maps[:1]))
    return ReportRow(ReportSide(name, photograph(2)), [support], name, name, name, name, name)


def test_texts_of_the_user_stay_in_their_direction_and_break_at_underscores() -> None:
    assert safe_name("a_b\u202e") == "<bdi>a_<wbr>b\\u202e</bdi>"
    assert safe_text("x" * 2000).startswith("x" * 1000 + "...")


def test_a_picture_that_occurs_again_stands_in_the_file_once(tmp_path: Path) -> None:
    photo = photograph(7)
    rows = [
        ReportRow(ReportSide(f"q{index}", photo), [replace(pair(1), support=ReportSide("s", photo))])
        for index in (0, 1)
    ]
    write_page(page(), rows, tmp_path / "r.html")
    images = [one for tag, one in Tags((tmp_path / "r.html").read_text("utf-8")).tags if tag == "img"]
    assert [("src" in one, one.get("data-from")) for one in images] == [
        (True, None),
        (False, "q0"),
        (False, "q0"),
        (False, "q0"),
    ]


def test_wrong_predictions_come_first_on_request_and_are_named(tmp_path: Path) -> None:
    rows = [row(1), row(2, truth="wren"), row(3, truth=None), row(4, truth="tit")]
    write_page(page(), rows, tmp_path / "r.html", wrong_first=True)
    text = (tmp_path / "r.html").read_text("utf-8")
    assert re.findall(r"<h2><bdi>(.*?)</bdi>", text) == ["query-2", "query-4", "query-1", "query-3"]
    assert re.findall(r"<strong>(\w+)</strong>", text) == ["Wrong", "Wrong", "Right"]
    assert "4 rows, 2 with a wrong prediction" in text
    assert "<strong>Wrong</strong>: predicted <bdi>jay</bdi>, truly <bdi>wren</bdi>" in text
    write_page(page(), rows, tmp_path / "r.html")
    assert re.findall(r"<h2><bdi>query-(.*?)</bdi>", (tmp_path / "r.html").read_text("utf-8")) == ["1", "2", "3", "4"]


def test_images_say_what_they_show_and_where_the_evidence_is(report: Path) -> None:
    images = [one["alt"] or "" for tag, one in Tags(report.read_text("utf-8")).tags if tag == "img"]
    texts = [alt for alt in images if alt]
    assert len(texts) == 5
    assert texts[0].startswith("Query query-1; most evidence for the match in the ")
    assert texts[1].startswith("Match 1 support-10, class jay; most evidence")


def test_rows_that_fail_leave_the_earlier_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "r.html"
    write_page(page(), [row(1)], path)
    before = path.read_bytes()

    def rows() -> Iterator[ReportRow]:
        yield row(2)
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        write_page(page(), rows(), path)
    with pytest.raises(ValueError, match="rows must have at least one row, got none"):
        write_page(page(), [], path)
    with pytest.raises(ValueError, match="maps must be one per method of the page: got 2 for 1 methods"):
        write_page(replace(page(), methods=page().methods[:1]), [row(1)], path)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["r.html"]


def test_a_folder_of_that_name_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError, match="is a folder, where a file is to be written"):
        write_page(page(), [row(1)], tmp_path)


def test_rows_are_written_one_by_one(tmp_path: Path) -> None:
    alive: list[int] = []
    references: list[weakref.ref[ReportRow]] = []

    def rows() -> Iterator[ReportRow]:
        for seed in range(4):
            one = row(seed)
            alive.append(sum(isinstance(other(), ReportRow) for other in references))
            references.append(weakref.ref(one))
            yield one
            del one

    write_page(page(), rows(), tmp_path / "r.html")
    assert max(alive) <= 2


def test_notes_may_come_with_the_rows(tmp_path: Path) -> None:
    notes = ["first"]

    def rows() -> Iterator[ReportRow]:
        yield row(1)
        notes.append("second")

    write_page(replace(page(), notes=notes), rows(), tmp_path / "r.html")
    assert "<li>first</li><li>second</li>" in (tmp_path / "r.html").read_text("utf-8")
