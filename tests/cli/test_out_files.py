"""Nothing but results of this package is replaced by a command."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from captum_fam.cli.main import main
from captum_fam.cli.out_files import check_results_folder, report_place

Explain = Callable[..., int]
WORDS = ["report", "few-shot", "--support", "flat", "--queries", "queries", "--max-rows", "1", "--quiet"]
WORDS += ["--model", "tests.explanation.by_hand:small_model", "--device", "cpu", "--out"]


def test_a_report_replaces_a_report_and_an_empty_file(photos: Path) -> None:
    Path("r.html").touch()
    for _ in range(2):
        assert main([*WORDS, "r.html"]) == 0
    assert Path("r.html").stat().st_size > 10_000


@pytest.mark.parametrize("content", ["my notes", "<!doctype html><title>captum-fam</title>"])
def test_a_report_replaces_no_other_file(content: str, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("notes.html").write_text(content)
    assert main([*WORDS, "notes.html"]) == 2
    assert capsys.readouterr().err == (
        "captum-fam: error: --out notes.html: the file is no report of captum-fam, and is not replaced; delete it, or "
        "choose another name\n"
    )
    assert Path("notes.html").read_text() == content


def test_a_link_stands_for_the_file_that_it_leads_to(photos: Path) -> None:
    Path("pages").mkdir()
    Path("link.html").symlink_to("pages/r.html")
    for _ in range(2):
        assert main([*WORDS, "link.html"]) == 0
        assert Path("link.html").is_symlink()
    assert Path("pages/r.html").read_text("utf-8").startswith("<!doctype html>")
    assert [path.name for path in Path("pages").iterdir()] == ["r.html"]
    Path("image.html").symlink_to("queries/q0.png")
    with pytest.raises(ValueError, match=r"--out image\.html: the file is no report"):
        report_place(Path("image.html"))


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such files")
def test_what_is_no_regular_file_is_refused(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo("pipe.html")
    Path("null.html").symlink_to("/dev/null")
    for name in ("pipe.html", "null.html"):
        assert main([*WORDS, name]) == 2
        assert f"--out {name} is no regular file" in capsys.readouterr().err
    Path("circle.html").symlink_to("circle.html")
    assert main([*WORDS, "circle.html"]) == 2
    assert "circle.html" in capsys.readouterr().err
    assert Path("/dev/null").is_char_device()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("manifest.json", []),
        ("results.csv", []),
        ("maps.npz", ["--no-figures"]),
        ("q0.npz", []),
        ("q0.fam.png", []),
        ("q0.figure.png", []),
    ],
)
def test_explain_replaces_no_file_of_somebody_else(
    name: str, words: list[str], explain_small: Explain, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("out").mkdir()
    Path("out", name).write_text("mine")
    assert explain_small("queries/q0.png", "--support", "flat", *words) == 2
    assert f"--out out holds out/{name}, which is no result of captum-fam" in capsys.readouterr().err
    assert [path.name for path in Path("out").iterdir()] == [name]
    assert Path("out", name).read_text() == "mine"


def test_explain_replaces_its_own_results_and_keeps_other_files(explain_small: Explain) -> None:
    Path("out").mkdir()
    Path("out/notes.txt").write_text("mine")
    for _ in range(2):
        assert explain_small("queries/q0.png", "--support", "flat") == 0
    assert Path("out/notes.txt").read_text() == "mine"


@pytest.mark.parametrize("name", ["demo.png", "report.html"])
def test_the_demo_replaces_no_file_of_somebody_else(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).write_text("mine")
    assert main(["demo", "--out", "."]) == 2
    assert name in capsys.readouterr().err
    assert Path(name).read_text() == "mine"


def test_a_folder_that_is_new_or_has_results_may_be_written(tmp_path: Path) -> None:
    check_results_folder(tmp_path / "new", ["a.png"])
    (tmp_path / "a.png").touch()
    (tmp_path / ".captum-fam").touch()
    check_results_folder(tmp_path, ["a.png"])
