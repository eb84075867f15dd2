"""The options of ``captum-fam report``: what they become, and what one line says of options that do not fit."""

from __future__ import annotations

from pathlib import Path

import pytest

from captum_fam.cli.main import main, make_parser
from captum_fam.cli.reports.jobs import FewShotJob, GalleryJob, PairsJob, ReportJob, read_report_job
from captum_fam.cli.reports.queries import choose_rows, find_labeled_queries
from tests.explanation.by_hand import write_pictures

BIRDS = [f"birds/{bird}/{i}.png" for bird in ("crow", "jay", "wren") for i in range(3)]
PHOTOS = ["photos/jay/a.png", "photos/jay/b.png", "photos/owl/a.png"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_pictures(tmp_path, [*BIRDS, *PHOTOS, "plain/1.png", "plain/2.png"], seed=3)
    Path(tmp_path, "pairs.csv").write_text("plain/1.png,plain/2.png,1\nplain/1.png,birds/jay/0.png,0\n")
    Path(tmp_path, "hits.csv").write_text("photos/jay/a.png,jay/1.png\n1.png,crow/0.png\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def job(*words: str) -> ReportJob:
    return read_report_job(make_parser("report").parse_args(words))


def test_retrieval_has_the_gallery_as_its_foil() -> None:
    read = job("retrieval", "--gallery", "birds", "--queries", "photos", "--top", "3")
    assert isinstance(read, GalleryJob)
    assert (read.kind, read.foil, read.k, read.top, read.methods) == ("retrieval", "gallery", None, 3, None)
    assert list(read.gallery) == ["crow", "jay", "wren"]
    assert {path.as_posix(): name for path, name in read.queries.truth.items()} == {
        "photos/jay/a.png": "jay",
        "photos/jay/b.png": "jay",
        "photos/owl/a.png": "owl",  # a class that the gallery lacks
    }
    assert read.out == Path("captum-fam-report-retrieval.html")
    assert job("retrieval", "--gallery", "birds", "--queries", "photos", "--foil", "none").foil is None


def test_a_plain_gallery_gives_no_true_class() -> None:
    read = job("retrieval", "--gallery", "plain", "--queries", "plain")
    assert isinstance(read, GalleryJob)
    assert read.queries.truth == {}


@pytest.mark.parametrize(
    ("paths", "truth"),
    [
        (["photos/jay"], {"a": "jay", "b": "jay"}),
        (["photos/jay", "plain"], {"a": "jay", "b": "jay"}),
        (["photos/owl"], {}),
        (["photos/jay/a.png", "photos/owl/a.png"], {"a": "jay"}),
        (["plain"], {}),
        (
            ["birds"],
            {str(i) if n == 0 else f"{i}-{n + 1}": b for n, b in enumerate(("crow", "jay", "wren")) for i in range(3)},
        ),
    ],
)
def test_the_true_class_is_the_folder_of_a_query(paths: list[str], truth: dict[str, str]) -> None:
    queries = find_labeled_queries(list(map(Path, paths)), ["crow", "jay", "wren"])
    assert {queries.names[path]: name for path, name in queries.truth.items()} == truth


def test_few_shot_has_the_other_classes_as_its_foil_where_there_are_some() -> None:
    several = job("few-shot", "--support", "birds", "--queries", "plain", "--target", "1")
    one = job("few-shot", "--support", "birds/jay", "--queries", "plain")
    assert isinstance(several, FewShotJob)
    assert (several.foil, several.target, one.foil) == ("others", "jay", None)


def test_pairs_have_a_foil_or_a_threshold() -> None:
    plain, threshold = (
        job("pairs", "pairs.csv"),
        job("pairs", "pairs.csv", "--against", "threshold", "--threshold", "0.4"),
    )
    assert isinstance(plain, PairsJob)
    assert isinstance(threshold, PairsJob)
    assert (plain.foil, plain.threshold, [pair.same for pair in plain.pairs]) == ("gallery", None, [True, False])
    assert (threshold.foil, threshold.against, threshold.threshold) == (None, "threshold", 0.4)


def test_neighbors_of_an_engine_bring_their_queries() -> None:
    read = job("retrieval", "--gallery", "birds", "--neighbors", "hits.csv", "--queries", "plain")
    assert isinstance(read, GalleryJob)
    assert read.hits is not None
    assert [path.as_posix() for path in read.hits] == ["photos/jay/a.png", "plain/1.png"]
    assert list(read.queries.truth.values()) == ["jay"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("retrieval --gallery birds", "--queries is missing"),
        ("retrieval --gallery nowhere --queries plain", "--gallery nowhere: no such file or folder"),
        ("retrieval --gallery birds --queries nowhere.png", "--queries nowhere.png: no such file or folder"),
        ("retrieval --gallery birds --queries plain --methods correspondence", "--methods correspondence: compares"),
        (
            "retrieval --gallery birds --queries photos/owl plain --wrong-first",
            "--wrong-first needs the true class of each query, which 3 of 3 do not have, such as photos/owl/a.png",
        ),
        (
            "knn --gallery birds --queries photos/jay plain --wrong-first",
            "--wrong-first needs the true class of each query, which 2 of 4 do not have, such as plain/1.png",
        ),
        ("knn --gallery plain --queries photos", "--gallery: neighbors vote for classes"),
        ("few-shot --support plain --queries photos --foil others", "--foil others needs supports of at least two"),
        ("few-shot --support birds --queries plain --target owl", "--target owl is none of the 3 classes"),
        ("pairs nowhere.csv", "nowhere.csv: there is no such list"),
        ("pairs photos", "photos is a folder, expected a file with a list"),
        ("retrieval --gallery birds --neighbors no.jsonl", "no.jsonl: there is no such list"),
        ("retrieval --gallery birds --neighbors photos", "photos is a folder, expected a file with a list"),
        ("pairs pairs.csv --against threshold", "--against threshold needs --threshold TAU"),
        (
            "pairs pairs.csv --against identity --foil gallery",
            "--against identity and --foil gallery exclude each other",
        ),
        ("pairs pairs.csv --gallery birds --foil none", "--gallery is the foil of pairs"),
        ("pairs pairs.csv --wrong-first", "--wrong-first needs --threshold TAU"),
        ("pairs half.csv --wrong-first --threshold 0.4", "half.csv line 2 has none"),
        ("retrieval --gallery birds --neighbors hits.csv", "hits.csv line 2: the query 1.png is no file in"),
        ("retrieval --gallery birds/jay/0.png --neighbors hits.csv", "--gallery birds/jay/0.png is no folder"),
        ("retrieval --gallery birds --neighbors twice.csv", "twice.csv line 2: the query photos/../plain/1.png is the"),
    ],
)
def test_one_line_says_what_does_not_fit(words: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("half.csv").write_text("a.png,b.png,1\na.png,c.png\n")
    Path("twice.csv").write_text("plain/1.png,0\nphotos/../plain/1.png,1\n")
    assert main(["report", *words.split()]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


@pytest.mark.parametrize("words", [[], ["retrieval"], ["knn", "--gallery", "birds"], ["pairs"], ["few-shots"]])
def test_missing_words(words: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        job(*words)


def test_rows_are_a_sample_in_their_order_with_the_wrong_ones_first() -> None:
    rows = list(range(40))
    assert choose_rows(rows, 40, seed=0) == rows
    sample = choose_rows(rows, 8, seed=5)
    assert sample == sorted(sample) == choose_rows(rows, 8, seed=5) != choose_rows(rows, 8, seed=6)
    assert choose_rows(rows, 50, seed=0, is_wrong={7, 30}) == [7, 30, *(row for row in rows if row not in (7, 30))]
    few = choose_rows(rows, 4, seed=0, is_wrong={7, 30})
    assert few[:2] == [7, 30]
    assert len(few) == 4
    assert set(choose_rows(rows, 3, seed=0, is_wrong=set(range(10)))) < set(range(10))
