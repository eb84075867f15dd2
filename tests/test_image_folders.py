"""The image files of a folder, and what is left out of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from captum_fam._files import MANIFEST, versions
from captum_fam.image_folders import (
    OUTPUT_MARK,
    image_suffixes,
    list_images,
    own_record,
    skipped_in_words,
    written_images,
)

OF_A_RUN = {
    MANIFEST: {"queries": [], "versions": versions()},
    "summary.json": {"results": [], "versions": versions()},
    "run.json": {"protocol": "few-shot", "conventions": {}},
}
"""A file of ``explain``, and two of ``evaluate``."""


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_all_suffixes_of_photographs_are_images_and_no_others() -> None:
    opened_by_pillow = {
        suffix for suffix, kind in Image.registered_extensions().items() if kind in {*Image.OPEN, "MPO"}
    }
    left_out = opened_by_pillow - image_suffixes()
    assert left_out == set(".bufr .emf .eps .fit .fits .flc .fli .grib .h5 .hdf .iim .mpeg .mpg .ps .wmf".split())
    assert not {".pdf", ".palm"} & image_suffixes()


def test_a_format_that_a_plug_in_registers_is_an_image(monkeypatch: pytest.MonkeyPatch) -> None:
    Image.init()
    monkeypatch.setitem(Image.OPEN, "HEIF", (lambda *_: None, None))
    monkeypatch.setitem(Image.EXTENSION, ".heic", "HEIF")
    assert ".heic" in image_suffixes()


def test_images_are_found_in_order_and_the_others_have_reasons(tmp_path: Path) -> None:
    touch(tmp_path, "b.JPG", "a.jfif", "notes.txt", ".hidden.jpg", "folder.jpg/c.jpg", ".cache/d.jpg", "README")
    found = list_images(tmp_path)
    assert [path.name for path in found.files] == ["a.jfif", "b.JPG"]
    assert {path.name: reason for path, reason in found.skipped.items()} == {
        "notes.txt": "no image",
        ".hidden.jpg": "hidden",
        "folder.jpg": "folder",
        ".cache": "hidden",
        "README": "no image",
    }
    words = "hidden: 2 (.cache, .hidden.jpg); no image: 2 (README, notes.txt); folder: 1 (folder.jpg)"
    assert skipped_in_words(found.skipped) == words


def test_broken_links_and_links_in_a_circle_are_found_so_that_reading_names_them(tmp_path: Path) -> None:
    (tmp_path / "lost.jpg").symlink_to("nowhere")
    (tmp_path / "round.jpg").symlink_to("round.jpg")
    assert [path.name for path in list_images(tmp_path).files] == ["lost.jpg", "round.jpg"]


def test_deep_folders_are_read_without_hidden_folders_results_and_circles(tmp_path: Path) -> None:
    touch(tmp_path, "z.png", "a/2.png", "a/1.png", "a/old/0.png", ".cache/3.png", "out/4.png", "a/old/notes.txt")
    (tmp_path / "out" / MANIFEST).write_text(json.dumps(OF_A_RUN[MANIFEST]))
    (tmp_path / "a/old/up").symlink_to(tmp_path / "a")
    (tmp_path / "b").symlink_to(tmp_path / "a/old")
    found = list_images(tmp_path, deep=True)
    names = [str(path.relative_to(tmp_path)) for path in found.files]
    assert names[:4] == ["z.png", "a/1.png", "a/2.png", "a/old/0.png"]
    assert "b/0.png" in names
    reasons = {str(path.relative_to(tmp_path)): reason for path, reason in found.skipped.items()}
    assert reasons["out"] == "results of captum-fam"
    assert reasons["a/old/up"] == "link to a folder above"
    assert reasons["a/old/notes.txt"] == "no image"


@pytest.mark.parametrize("name", OF_A_RUN)
def test_folders_of_results_are_known_by_their_files(name: str, tmp_path: Path) -> None:
    touch(tmp_path, "out/q.png")
    assert own_record(tmp_path / "out") is None
    (tmp_path / "out" / name).write_text(json.dumps(OF_A_RUN[name], indent=2))
    assert own_record(tmp_path / "out") == tmp_path / "out" / name


def test_a_mark_is_enough(tmp_path: Path) -> None:
    touch(tmp_path, f"out/{OUTPUT_MARK}")
    assert own_record(tmp_path / "out") == tmp_path / "out" / OUTPUT_MARK


@pytest.mark.parametrize(
    ("name", "content"),
    [(MANIFEST, '{"name": "my data"}'), ("run.json", '{"lr": 0.1}'), (MANIFEST, "no JSON"), ("summary.json", "")],
)
def test_files_of_the_same_names_by_others_are_no_results(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    assert own_record(tmp_path) is None


def test_a_figure_beside_the_images_is_left_out(tmp_path: Path) -> None:
    touch(tmp_path, "wren.jpg", "figure.png", "jay.png")
    (tmp_path / "figure.json").write_text(json.dumps({"protocol": "few-shot", "versions": versions()}))
    (tmp_path / "jay.json").write_text('{"boxes": [1, 2, 3, 4]}')
    found = list_images(tmp_path)
    assert [path.name for path in found.files] == ["jay.png", "wren.jpg"]
    assert found.skipped[tmp_path / "figure.png"] == "results of captum-fam"


def test_the_images_of_a_manifest_are_its_overlays_and_figures(tmp_path: Path) -> None:
    queries = [
        {"file": "q.png", "figure": "q.figure.png", "methods": {"fam": {"overlay": "q.fam.png"}, "x": {}}},
        {"file": "r.png", "methods": {"fam": {"overlay": "r.fam.png"}}},
    ]
    assert written_images(tmp_path) == set()
    (tmp_path / MANIFEST).write_text(json.dumps({"queries": queries, "versions": versions()}))
    assert written_images(tmp_path) == {"q.figure.png", "q.fam.png", "r.fam.png"}
    (tmp_path / MANIFEST).write_text('{"captum-fam": 1, "queries": 7}')
    assert written_images(tmp_path) == set()


def test_the_words_name_three_of_many_in_plain_text() -> None:
    many = {Path(f"birds/{number}\n.txt"): "no image" for number in range(5)}
    assert skipped_in_words(many) == r"no image: 5 (0\n.txt, 1\n.txt, 2\n.txt, ...)"
    assert skipped_in_words({}) == ""
