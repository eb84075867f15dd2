"""``captum-fam report`` from the words of a user to the rows of the page, against cosines computed by hand."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from captum_fam import Explanation, MemoryBank
from captum_fam._files import lock_folder
from captum_fam.cli.main import main
from captum_fam.cli.reports import pairs as report_pairs
from captum_fam.cli.reports import run as report_run
from captum_fam.explanation.pairs.one_call_for_pairs import explain_pairs
from captum_fam.functional import smooth_maps
from tests.explanation.by_hand import cosines, embeddings, small_model, write_pictures

pytest.importorskip("safetensors")

BIRDS = ("crow", "jay", "wren")
GALLERY = [f"birds/{bird}/{bird}{i}.png" for bird in BIRDS for i in range(4)]
PHOTOS = [f"photos/{bird}/{bird}-{i}.png" for bird in BIRDS for i in range(2)]

Report = Callable[..., int]


class Shown:
    """The rows that the last report shows, and what else it was given."""

    rows: list[Explanation]
    given: dict[str, Any]

    def row(self, name: str) -> Explanation:
        return next(row for row in self.rows if row.names == (name,))

    @property
    def names(self) -> list[str]:
        return [name for row in self.rows for name in row.names]

    @property
    def predicted(self) -> dict[str, str]:
        return {row.names[0]: row.class_names[int(row.predicted[0])] for row in self.rows}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A gallery of three classes, photographs of these classes, and a flat folder; the sizes of images differ."""
    write_pictures(tmp_path, PHOTOS, seed=70)
    write_pictures(tmp_path, GALLERY, seed=20)
    write_pictures(tmp_path, [f"flat/f{i}.png" for i in range(5)], seed=90)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Shown:
    shown, write = Shown(), report_run.write_report

    def keep(explanations: Any, path: Path, **given: Any) -> None:
        shown.rows, shown.given = list(explanations), given
        write(shown.rows, path, **given)

    monkeypatch.setattr(report_run, "write_report", keep)
    return shown


@pytest.fixture
def report(shown: Shown) -> Report:
    """``report(*words)`` on a small network."""
    model = ["--model", "tests.explanation.by_hand:small_model", "--device", "cpu", "--quiet", "--out", "r.html"]
    return lambda *words: main(["report", *map(str, words), *model])


def similarity_of(queries: list[str], others: list[str]) -> Tensor:
    return cosines(embeddings(queries), embeddings(others))


def class_of(path: str) -> str:
    return Path(path).parent.name


def close(one: object, other: object) -> None:
    torch.testing.assert_close(
        torch.as_tensor(one, dtype=torch.float64), torch.as_tensor(other, dtype=torch.float64), atol=2e-5, rtol=0
    )


@pytest.mark.parametrize("foil", ["gallery", "none"])
def test_retrieval_shows_the_nearest_images_less_the_average_image(foil: str, report: Report, shown: Shown) -> None:
    assert report("retrieval", "--gallery", "birds", "--queries", "photos", "--top", 3, "--foil", foil) == 0
    similarity = similarity_of(PHOTOS, GALLERY)
    assert shown.names == [Path(path).stem for path in PHOTOS]
    assert shown.given["truth"] == {Path(path).stem: class_of(path) for path in PHOTOS}
    for row, values in zip(shown.rows, similarity, strict=True):
        assert [row.method, *(one.method for one in row.beside)] == ["similarity-cam", "fam"]
        nearest = values.topk(3)
        hits = [GALLERY[index] for index in nearest.indices]
        average = values.mean() if foil == "gallery" else 0.0
        assert row.pairs is not None
        assert [pair.name for pair in row.pairs[0]] == [Path(hit).stem for hit in hits]
        assert [pair.label for pair in row.pairs[0]] == [class_of(hit) for hit in hits]
        close([pair.similarity for pair in row.pairs[0]], nearest.values)
        close([pair.score for pair in row.pairs[0]], nearest.values - average)
        close([pair.query_map.sum() + _others(pair.query_shares) for pair in row.pairs[0]], nearest.values - average)
        close(row.plain_scores, [nearest.values.mean()])
        close(row.target_scores, [nearest.values.mean() - average])
        assert row.class_names[int(row.predicted[0])] == class_of(hits[0])


def _others(shares: Any) -> float:
    return sum(share for name, share in shares.items() if name != "map")


def test_a_query_of_the_gallery_is_no_neighbor_of_itself_and_not_in_its_average(report: Report, shown: Shown) -> None:
    assert report("retrieval", "--gallery", "birds", "--queries", "birds/jay", "photos/jay", "--top", 2) == 0
    queries = [*GALLERY[4:8], *PHOTOS[2:4]]
    similarity = similarity_of(queries, GALLERY)
    for number, (row, values) in enumerate(zip(shown.rows, similarity, strict=True)):
        others = torch.tensor([path != queries[number] for path in GALLERY])
        nearest = values[others].topk(2).values
        close(row.target_scores, [nearest.mean() - values[others].mean()])
        assert any("each is left out of its own neighbors" in note for note in row.notes)


SMOOTHED = {
    "retrieval": ["--gallery", "birds", "--queries", "photos/jay", "--top", 2],
    "few-shot": ["--support", "birds", "--queries", "photos/jay", "--top", 2],
    "knn": ["--gallery", "birds", "--queries", "photos/jay", "--k", 5, "--top", 2],
}


@pytest.mark.parametrize("kind", [*SMOOTHED, "pairs"])
def test_the_maps_of_both_sides_are_smoothed_and_the_page_says_so(kind: str, report: Report, shown: Shown) -> None:
    Path("pairs.csv").write_text("photos/jay/jay-0.png,photos/jay/jay-1.png\n")
    words = SMOOTHED.get(kind, ["pairs.csv", "--foil", "none"])
    rows = []
    for more in ([], ["--smooth", 3]):
        assert report(kind, *words, *more) == 0
        rows.append(shown.rows)
        assert ("smoothed 3 x 3 cells" in Path("r.html").read_text("utf-8")) is bool(more)
    for plain, smooth in zip(*rows, strict=True):
        assert (plain.smooth, smooth.smooth) == (1, 3)
        close(smooth.attributions, smooth_maps(plain.attributions, 3))
        (of_plain,), (of_smooth,) = plain.pairs or (), smooth.pairs or ()
        for one, other in zip(of_plain, of_smooth, strict=True):
            close(other.support_map, smooth_maps(one.support_map[None, None], 3)[0, 0])
            assert other.matches == one.matches


def test_a_plain_gallery_has_no_classes(report: Report, shown: Shown) -> None:
    assert report("retrieval", "--gallery", "flat", "--queries", "photos", "--top", 2) == 0
    (pairs,) = shown.rows[0].pairs or ((),)
    assert [pair.label for pair in pairs] == ["", ""]
    assert shown.given["truth"] is None
    page = Path("r.html").read_text("utf-8")
    assert "Wrong" not in page
    assert "predicted" not in page


def test_the_neighbors_of_knn_vote_and_the_class_with_most_votes_is_explained(report: Report, shown: Shown) -> None:
    assert report("knn", "--gallery", "birds", "--queries", "photos", "--k", 7, "--top", 4) == 0
    similarity = similarity_of(PHOTOS, GALLERY)
    labels = [class_of(path) for path in GALLERY]
    for row, values in zip(shown.rows, similarity, strict=True):
        nearest = values.topk(7)
        votes = {
            bird: sum(
                float((value / 0.07).exp()) for value, index in zip(*nearest, strict=True) if labels[int(index)] == bird
            )
            for bird in BIRDS
        }
        best = max(votes, key=votes.__getitem__)
        of_class = [float(v) for v, index in zip(*nearest, strict=True) if labels[int(index)] == best]
        assert row.class_names[int(row.predicted[0])] == row.class_names[int(row.target[0])] == best
        close(row.target_scores, [sum(of_class) / len(of_class) - float(values.mean())])
        (pairs,) = row.pairs or ((),)
        assert [(pair.label, pair.weight > 0) for pair in pairs] == [
            (labels[int(index)], labels[int(index)] == best) for index in nearest.indices[:4]
        ]


@pytest.mark.parametrize("foil", ["others", "none"])
def test_few_shot_shows_the_supports_of_the_predicted_class(foil: str, report: Report, shown: Shown) -> None:
    assert report("few-shot", "--support", "birds", "--queries", "photos", "--top", 2, "--foil", foil) == 0
    similarity = similarity_of(PHOTOS, GALLERY).unflatten(1, (3, 4))
    for row, values in zip(shown.rows, similarity, strict=True):
        means = values.mean(1)
        best = int(means.argmax())
        assert row.class_names[int(row.predicted[0])] == BIRDS[best]
        others = (means.sum() - means[best]) / 2 if foil == "others" else 0.0
        close(row.target_scores, [means[best] - others])
        nearest = values[best].topk(2)
        (pairs,) = row.pairs or ((),)
        assert [pair.name for pair in pairs] == [f"{BIRDS[best]}{index}" for index in nearest.indices.tolist()]
        close([pair.score for pair in pairs], nearest.values - others)


def test_few_shot_explains_the_class_that_is_named(report: Report, shown: Shown) -> None:
    assert report("few-shot", "--support", "birds", "--queries", "flat", "--target", "wren") == 0
    assert all(row.class_names[int(row.target[0])] == "wren" for row in shown.rows)
    assert shown.given["truth"] is None


def write_pairs(pairs: list[tuple[str, str, int]]) -> None:
    Path("pairs.csv").write_text("".join(f"{left},{right},{same}\n" for left, right, same in pairs))


PAIRS = [(PHOTOS[i], GALLERY[2 * i], i % 2) for i in range(6)]


def test_pairs_are_less_the_average_of_the_other_images(report: Report, shown: Shown) -> None:
    write_pairs(PAIRS)
    assert report("pairs", "pairs.csv") == 0
    left, right = [one for one, _, _ in PAIRS], [other for _, other, _ in PAIRS]
    similarity = similarity_of(left, [*left, *right])
    for i, row in enumerate(shown.rows):
        others = [j for j in range(12) if j not in (i, i + 6)]
        close(row.plain_scores, [similarity[i, i + 6]])
        close(row.target_scores, [similarity[i, i + 6] - similarity[i, others].mean()])
        assert row.names == (f"{Path(left[i]).stem} - {Path(right[i]).stem}",)
    assert shown.given["truth"] is None  # without a threshold nothing is predicted


def test_a_sample_of_pairs_has_the_average_of_the_whole_list(report: Report, shown: Shown) -> None:
    write_pairs(PAIRS)
    assert report("pairs", "pairs.csv") == 0
    scores = {row.names: float(row.target_scores[0]) for row in shown.rows}
    assert report("pairs", "pairs.csv", "--max-rows", 2) == 0
    assert len(shown.rows) == 2
    close([row.target_scores[0] for row in shown.rows], [scores[row.names] for row in shown.rows])


def test_pairs_against_a_threshold(report: Report, shown: Shown) -> None:
    write_pairs(PAIRS)
    values = similarity_of([one for one, _, _ in PAIRS], [other for _, other, _ in PAIRS]).diagonal()
    tau = float(values.sort().values[2:4].mean())
    words = ["--threshold", tau, "--wrong-first"]
    assert report("pairs", "pairs.csv", "--against", "threshold", *words) == 0
    names = [f"{Path(one).stem} - {Path(other).stem}" for one, other, _ in PAIRS]
    said = ["same" if value >= tau else "different" for value in values]
    truth = ["same" if same else "different" for _, _, same in PAIRS]
    assert shown.given["truth"] == dict(zip(names, truth, strict=True))
    assert shown.predicted == dict(zip(names, said, strict=True))
    wrong = [name for name, word, right in zip(names, said, truth, strict=True) if word != right]
    assert shown.names == [*wrong, *(name for name in names if name not in wrong)]
    close([shown.row(name).target_scores[0] for name in names], values - tau)


def test_pairs_less_the_average_of_a_gallery_without_their_own_images(report: Report, shown: Shown) -> None:
    write_pairs([(PHOTOS[0], GALLERY[3], 1)])
    assert report("pairs", "pairs.csv", "--gallery", "birds") == 0
    (values,) = similarity_of(PHOTOS[:1], GALLERY)
    others = [index for index in range(12) if index != 3]
    close(shown.rows[0].target_scores, [values[3] - values[others].mean()])


def test_pairs_are_explained_in_parts(report: Report, shown: Shown, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pairs(PAIRS)
    assert report("pairs", "pairs.csv") == 0
    whole = shown.rows
    calls: list[int] = []

    def explain_some(model: Any, left: Any, right: Any, **options: Any) -> Explanation:
        calls.append(len(left))
        return explain_pairs(model, left, right, **options)

    monkeypatch.setattr(report_pairs, "_MOST_AT_ONCE", 4)
    monkeypatch.setattr(report_pairs, "explain_pairs", explain_some)
    assert report("pairs", "pairs.csv") == 0
    assert calls == [4, 2]
    for row, expected in zip(shown.rows, whole, strict=True):
        assert row.names == expected.names
        close(row.target_scores, expected.target_scores)
        close((row.pairs or ((),))[0][0].support_map, (expected.pairs or ((),))[0][0].support_map)
    calls.clear()
    write_pairs(PAIRS[:3])
    monkeypatch.setattr(report_pairs, "_MOST_AT_ONCE", 2)
    assert report("pairs", "pairs.csv") == 0
    assert calls == [3]
    assert any("the call has 4 other images" in note for note in shown.rows[0].notes)


@pytest.mark.parametrize("kind", ["few-shot", "pairs"])
def test_matches_are_left_out_on_request(kind: str, report: Report, shown: Shown) -> None:
    write_pairs(PAIRS[:2])
    words = ["pairs", "pairs.csv", "--foil", "none"]
    if kind == "few-shot":
        words = ["few-shot", "--support", "birds", "--queries", "flat", "--top", "1"]
    for count in (2, 0):
        assert report(*words, "--matches", count) == 0
        assert {len(pair.matches) for row in shown.rows for pair in (row.pairs or ((),))[0]} == {count}
        assert shown.given["manifest"]["top_matches"] == count
        page = Path("r.html").read_text("utf-8")
        assert ("matches of cells are left out" in page) == (count == 0)


def test_neighbors_of_an_engine_keep_their_order_and_their_scores_are_compared(
    report: Report, shown: Shown, capsys: pytest.CaptureFixture[str]
) -> None:
    values = similarity_of(PHOTOS[:1], GALLERY)[0]
    Path("hits.csv").write_text(
        f"{PHOTOS[0]},wren/wren1.png,{values[9]:.6f}\n{PHOTOS[0]},jay2,{values[6]:.6f}\n{PHOTOS[0]},0,{values[0]:.6f}\n"
    )
    assert report("retrieval", "--gallery", "birds", "--neighbors", "hits.csv") == 0
    (pairs,) = shown.rows[0].pairs or ((),)
    assert [(pair.name, pair.label) for pair in pairs] == [("wren1", "wren"), ("jay2", "jay"), ("crow0", "crow")]
    close([pair.score for pair in pairs], values[[9, 6, 0]] - values.mean())
    assert "by the engine" not in capsys.readouterr().err
    Path("hits.csv").write_text(f"{PHOTOS[0]},wren/wren1.png,{1 - values[9]:.6f}\n")
    assert report("retrieval", "--gallery", "birds", "--neighbors", "hits.csv") == 0
    assert "the scores are cosine distances" in capsys.readouterr().err
    assert "the scores are cosine distances" in Path("r.html").read_text("utf-8")


def test_a_list_leaves_out_the_query_and_what_cannot_be_read(
    report: Report, shown: Shown, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("birds/jay/broken.png").write_bytes(b"no image")
    lines = [
        {"query": GALLERY[0], "ids": ["crow0", "jay/broken.png", "wren3"]},
        {"query": PHOTOS[1], "ids": ["jay/broken.png"]},
    ]
    Path("hits.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert report("retrieval", "--gallery", "birds", "--neighbors", "hits.jsonl", "--foil", "none") == 1
    (row,) = shown.rows
    assert [pair.name for pair in (row.pairs or ((),))[0]] == ["wren3"]
    captured = capsys.readouterr()
    assert "broken.png" in captured.err
    assert "crow-1.png: it has no neighbor besides itself that can be read" in captured.err
    assert captured.out.startswith("1 shown, 2 unreadable")


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (["crow9"], r"hits.jsonl line 1: an id of the query .* crow9 is no image in birds; did you mean crow\d.png\?"),
        (["crow1", "crow/crow1.png"], "hits.jsonl line 1: two ids of the query .* stand for the same image"),
    ],
)
def test_an_id_that_is_no_image(
    ids: list[str], message: str, report: Report, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("hits.jsonl").write_text(json.dumps({"query": PHOTOS[0], "ids": ids}))
    assert report("retrieval", "--gallery", "birds", "--neighbors", "hits.jsonl") == 2
    assert re.search(message, capsys.readouterr().err)
    assert not Path("r.html").exists()


def test_a_bank_of_the_gallery_gives_the_same_report(
    report: Report, shown: Shown, capsys: pytest.CaptureFixture[str]
) -> None:
    MemoryBank.from_dataset(small_model(), "birds", "bank.safetensors", progress=False, k=50)
    words = ["retrieval", "--gallery", "birds", "--queries", "photos/crow", "birds/jay", "--top", 3]
    assert report(*words) == 0
    searched = shown.rows
    assert report(*words, "--bank", "bank.safetensors") == 0
    for one, other in zip(shown.rows, searched, strict=True):
        close(one.target_scores, other.target_scores)
        assert [pair.name for pair in (one.pairs or ((),))[0]] == [pair.name for pair in (other.pairs or ((),))[0]]
    Path("birds/crow/crow3.png").rename("birds/jay/a.png")
    assert report(*words, "--bank", "bank.safetensors") == 2
    assert "--bank bank.safetensors: its row 3 is of the class crow, but image 3" in capsys.readouterr().err
    assert report("retrieval", "--gallery", "flat", "--queries", "flat", "--bank", "bank.safetensors") == 2
    assert "has a row of image 11, counted from 0, but --gallery has 5 images" in capsys.readouterr().err


def test_a_bank_of_other_images_is_refused(report: Report, capsys: pytest.CaptureFixture[str]) -> None:
    MemoryBank.from_dataset(small_model(), "birds", "bank.safetensors", progress=False)
    unit = torch.nn.functional.normalize(embeddings(GALLERY)).half().float()
    MemoryBank(unit, [class_of(path) for path in GALLERY]).save("unit.safetensors")
    words = ["knn", "--gallery", "birds", "--queries", "photos", "--bank"]
    for bank in ("bank.safetensors", "unit.safetensors"):
        assert report(*words, bank) == 0  # unit vectors in half precision have the same cosines
    # Two images of one class change places, which counts and classes do not show.
    Path("birds/jay/jay1.png").rename("birds/jay/x.png")
    Path("birds/jay/jay2.png").rename("birds/jay/jay1.png")
    Path("birds/jay/x.png").rename("birds/jay/jay2.png")
    Path("r.html").unlink()
    for bank in ("bank.safetensors", "unit.safetensors"):
        capsys.readouterr()
        assert report(*words, bank) == 2
        message = f"--bank {bank}: its row 5 is not the embedding of image 5 of --gallery, birds/jay/jay1.png; give"
        assert message in capsys.readouterr().err
    assert not Path("r.html").exists()
    write_pictures(Path(), GALLERY, seed=400)
    assert report("retrieval", *words[1:], "bank.safetensors") == 2
    assert "its row 0 is not the embedding of image 0" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["retrieval", "knn", "few-shot"])
def test_wrong_predictions_come_first(
    kind: str, report: Report, shown: Shown, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["few-shot", "--support", "birds"] if kind == "few-shot" else [kind, "--gallery", "birds"]
    assert report(*words, "--queries", "photos") == 0
    assert shown.given["wrong_first"] is False
    truth = shown.given["truth"]
    wrong = [name for name, label in shown.predicted.items() if label != truth[name]]
    right = [name for name in shown.names if name not in wrong]
    assert wrong
    assert right
    assert report(*words, "--queries", "photos", "--wrong-first") == 0
    assert shown.names == [*wrong, *right]
    assert shown.given["wrong_first"] is True
    assert f"{len(wrong)} of 6 predictions are wrong" in capsys.readouterr().err
    assert report(*words, "--queries", "photos", "--wrong-first", "--max-rows", 1) == 0
    assert shown.names[0] in wrong


def test_the_last_lines_say_what_is_shown_and_where(report: Report, capsys: pytest.CaptureFixture[str]) -> None:
    Path("photos/crow/notes.txt").touch()
    words = ["retrieval", "--gallery", "birds", "--queries", "photos", "--max-rows", 4, "--title", "Birds & <more>"]
    assert report(*words) == 0
    *_, summary, path = capsys.readouterr().out.splitlines()
    size = Path("r.html").stat().st_size / 1e6
    assert summary == (
        f"4 of 6 (2 left out by --max-rows 4) shown, 0 unreadable; left out: no image: 1 (notes.txt); {size:.2f} MB"
    )
    assert path == "r.html"
    page = Path("r.html").read_text("utf-8")
    assert "Birds &amp; &lt;more&gt;" in page
    assert "a sample of 4 of 6 rows (--max-rows, --seed 0)" in page
    made = {entry.name for entry in Path().iterdir()} - {"birds", "photos", "flat"}
    assert made == {"r.html", next(Path().glob("captum-fam-gallery-*.safetensors")).name}


def test_images_that_cannot_be_read_are_told_and_left_out(
    report: Report, shown: Shown, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("photos/jay/broken.png", "birds/wren/broken.png"):
        Path(name).write_bytes(b"no image")
    for words in (["retrieval", "--gallery", "birds"], ["few-shot", "--support", "birds"]):
        assert report(*words, "--queries", "photos") == 1
        captured = capsys.readouterr()
        assert {"photos/jay/broken.png", "birds/wren/broken.png"} <= {*re.findall(r"\S+/broken\.png", captured.err)}
        assert captured.out.startswith("6 shown, 2 unreadable")
        assert report(*words, "--queries", "photos", "--wrong-first") == 1
        assert capsys.readouterr().out.startswith("6 shown, 2 unreadable")
        assert len(shown.given["manifest"]["unreadable"]) == 2
    write_pairs([*PAIRS, (PHOTOS[0], "photos/jay/broken.png", 1), (PHOTOS[0], "nowhere.png", 1)])
    assert report("pairs", "pairs.csv") == 1
    assert len(shown.rows) == 6


def test_no_report_is_written_without_a_row(report: Report, capsys: pytest.CaptureFixture[str]) -> None:
    earlier = '<!doctype html><meta name="generator" content="captum-fam">'
    Path("r.html").write_text(earlier)
    Path("none").mkdir()
    Path("none/broken.png").write_bytes(b"no image")
    assert report("retrieval", "--gallery", "birds", "--queries", "none") == 1
    assert "0 shown, 1 unreadable; no report is written" in capsys.readouterr().out
    assert Path("r.html").read_text() == earlier
    write_pairs([("a.png", "b.png", 1)])
    assert report("pairs", "pairs.csv") == 2
    assert "no image of the list can be read. Its paths are relative to its folder" in capsys.readouterr().err


def test_a_query_that_is_the_whole_gallery_gets_no_row(report: Report, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["retrieval", "--gallery", GALLERY[0], "--queries", GALLERY[0]]
    assert report(*words) == 1
    assert "crow0.png: it has no neighbor besides itself" in capsys.readouterr().err
    assert report(*words, PHOTOS[0], "--foil", "none") == 1
    assert capsys.readouterr().out.startswith("1 shown")


def test_more_votes_than_images(report: Report, shown: Shown, capsys: pytest.CaptureFixture[str]) -> None:
    assert report("knn", "--gallery", "birds", "--queries", "flat", "--k", 50, "--top", 20) == 0
    assert "--k 50: there are only 12 to vote" in capsys.readouterr().err
    assert all(len((row.pairs or ((),))[0]) == 12 for row in shown.rows)


def test_the_embeddings_of_a_gallery_are_kept_for_all_reports_of_a_folder(report: Report) -> None:
    words = ["--gallery", "birds", "--queries", "photos"]
    assert report("knn", *words, "--k", 3) == 0
    kept = {path: path.stat().st_mtime_ns for path in Path().glob("*.safetensors")}
    assert len(kept) == 1
    small = ["--model", "tests.explanation.by_hand:small_model", "--device", "cpu", "--quiet"]
    assert main(["report", "retrieval", *words, *small, "--similarity", "euclidean", "--out", "other.html"]) == 0
    assert main(["explain", "photos/jay", "--gallery", "birds", *small, "--no-figures", "--out", "folder"]) == 0
    assert {path: path.stat().st_mtime_ns for path in Path().glob("*.safetensors")} == kept
    # Images without classes are another gallery.
    assert report("retrieval", "--gallery", *GALLERY, "--queries", "photos") == 0
    assert len([*Path().glob("*.safetensors")]) == 2


def test_the_methods_are_those_that_are_named(report: Report, shown: Shown) -> None:
    assert report("few-shot", "--support", "birds", "--queries", "flat", "--methods", "fam,correspondence") == 0
    assert [shown.rows[0].method, *(one.method for one in shown.rows[0].beside)] == ["fam", "correspondence"]
    assert shown.given["manifest"]["methods"] == ["fam", "correspondence"]
    assert shown.given["manifest"]["layer"] == "features"


def test_quiet_hides_all_bars(
    report: Report, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["few-shot", "--support", "birds", "--queries", "flat"]
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert report(*words) == 0
    assert "image/s" not in capsys.readouterr().err
    assert main(["report", *words, "--model", "tests.explanation.by_hand:small_model", "--out", "r.html"]) == 0
    shown = capsys.readouterr().err
    assert all(f"{name}: " in shown for name in ("reading --support", "explaining", "pairs"))


def test_one_process_at_a_time_writes_a_report(report: Report, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["few-shot", "--support", "birds", "--queries", "flat"]
    # A lock belongs to a thread, so that another thread is as another process.
    with ThreadPoolExecutor(1) as pool, lock_folder("r.html.lock"):
        assert pool.submit(report, *words).result() == 2
    assert "r.html.lock" in capsys.readouterr().err
    assert not Path("r.html").exists()
    assert report(*words) == 0
    assert not Path("r.html.lock").exists()


def test_a_folder_of_the_name_of_the_report_is_an_error(report: Report, capsys: pytest.CaptureFixture[str]) -> None:
    Path("r.html").mkdir()
    assert report("few-shot", "--support", "birds", "--queries", "flat") == 2
    assert "r.html is a folder" in capsys.readouterr().err
