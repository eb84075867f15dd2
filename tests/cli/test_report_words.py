"""What a page of ``captum-fam report`` says beside its maps: decisions, weights, thresholds, scores of an engine."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torchvision.models import squeezenet1_1

from captum_fam.cli.main import main
from tests.explanation.by_hand import cosines, embeddings, write_pictures

pytest.importorskip("safetensors")

BIRDS = ("crow", "jay", "wren")
GALLERY = [f"birds/{bird}/{bird}{i}.png" for bird in BIRDS for i in range(4)]
PHOTOS = [f"photos/{bird}/{bird}-{i}.png" for bird in BIRDS for i in range(2)]

Page = Callable[..., str]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_pictures(tmp_path, PHOTOS, seed=70)
    write_pictures(tmp_path, GALLERY, seed=20)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def page(folder: Path) -> Page:
    """``page(*words)`` is the page of a report with a small network, without the marks of HTML."""

    def write(*words: object, model: str = "tests.explanation.by_hand:small_model") -> str:
        common = ["--model", model, "--device", "cpu", "--quiet", "--out", "r.html"]
        assert main(["report", *map(str, words), *common]) == 0
        text = Path("r.html").read_text("utf-8")
        text = re.sub(r"(?s)<style>.*?</style>|<script.*?</script>", " ", text)
        return html.unescape(re.sub(r"\s+", " ", re.sub(r"<wbr>|</?bdi>|</?b>|</?strong>", "", text)))

    return write


def facts_of(text: str) -> dict[str, str]:
    return dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", text))


def rows_of(text: str) -> list[str]:
    return re.findall(r"<article.*?</article>", text)


def settings_of(text: str) -> str:
    found = re.search(r'<details class="manifest">.*?<pre[^>]*>(.*?)</pre>', text)
    assert found is not None
    return found[1]


def test_knn_says_how_many_voted_and_who_did(page: Page) -> None:
    text = page("knn", "--gallery", "birds", "--queries", "photos", "--k", 7, "--top", 4)
    assert facts_of(text)["neighbors that vote (k)"] == "7"
    for row, values in zip(rows_of(text), cosines(embeddings(PHOTOS), embeddings(GALLERY)), strict=True):
        nearest = values.topk(7)
        of_class: dict[str, list[float]] = {}
        for value, index in zip(*nearest, strict=True):
            of_class.setdefault(Path(GALLERY[int(index)]).parent.name, []).append(float((value / 0.07).exp()))
        best = max(of_class, key=lambda bird: sum(of_class[bird]))
        share = sum(of_class[best]) / sum(map(sum, of_class.values()))
        assert f"predicted {best} ({len(of_class[best])} of 7 votes, {100 * share:.0f} % by weight)" in row
        shown = [Path(GALLERY[int(index)]).parent.name for index in nearest.indices[:4]]
        matches = row.split('<li class="pair">')[1:]
        assert ["voted for this class" in match for match in matches] == [bird == best for bird in shown]


def test_retrieval_says_that_the_class_is_that_of_the_nearest_image(page: Page) -> None:
    text = page("retrieval", "--gallery", "birds", "--queries", "photos", "--top", 2)
    assert "voted" not in text
    for row, values in zip(rows_of(text), cosines(embeddings(PHOTOS), embeddings(GALLERY)), strict=True):
        bird = Path(GALLERY[int(values.argmax())]).parent.name
        assert f"predicted {bird} (the class of the nearest image)" in row
    assert "the class of the nearest image" not in page("retrieval", "--gallery", "birds/jay", "--queries", "photos")


def test_the_scores_of_an_engine_stand_beside_those_of_the_model(page: Page) -> None:
    similarity = cosines(embeddings(PHOTOS[:1]), embeddings(GALLERY))[0].tolist()
    scores = [similarity[2], similarity[9], 0.125]
    line = {"query": PHOTOS[0], "ids": [2, 9, 4], "scores": scores}
    Path("hits.jsonl").write_text(json.dumps(line))
    (row,) = rows_of(page("retrieval", "--gallery", "birds", "--neighbors", "hits.jsonl", "--foil", "none"))
    matches = row.split('<li class="pair">')[1:]
    for match, score in zip(matches, scores, strict=True):
        found = re.search(r"score of the engine (\S+?)<", match)
        assert found is not None
        assert float(found[1].replace("\u2212", "-")) == pytest.approx(score, rel=2e-3, abs=5e-4)
    Path("hits.jsonl").write_text(json.dumps({**line, "scores": None}))
    assert "of the engine" not in page("retrieval", "--gallery", "birds", "--neighbors", "hits.jsonl")


@pytest.mark.parametrize("words", [[], ["--against", "threshold"], ["--foil", "none"]])
def test_the_threshold_of_pairs_stands_above_the_rows(words: list[str], page: Page) -> None:
    Path("pairs.csv").write_text("".join(f"{GALLERY[0]},{path},0\n" for path in PHOTOS))
    text = page("pairs", "pairs.csv", "--threshold", "-0.25", *words)
    assert facts_of(text)["threshold"] == "-0.25"
    assert "Wrong: predicted same, truly different" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--threshold", "1.5"], "--threshold is 1.5, but scores of Cosine are from -1 to 1"),
        (["--threshold", "-1.1", "--against", "threshold"], "--threshold is -1.1, but scores of Cosine are from -1 to"),
        (
            ["--threshold", "3", "--similarity", "euclidean"],
            "--threshold is 3, but scores of Euclidean are negated distances, at most 0: give --threshold -3",
        ),
    ],
)
def test_a_threshold_that_no_score_reaches_is_an_error(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("pairs.csv").write_text("".join(f"{GALLERY[0]},{path},0\n" for path in PHOTOS))
    model = ["--model", "tests.explanation.by_hand:small_model", "--quiet", "--out", "r.html"]
    assert main(["report", "pairs", "pairs.csv", *words, *model]) == 2
    assert capsys.readouterr().err.startswith(f"captum-fam: error: {message}")
    assert not Path("r.html").exists()


def test_a_page_says_that_weights_are_random(page: Page) -> None:
    words = ["few-shot", "--support", "birds", "--queries", "photos/jay"]
    assert "random weights" not in page(*words)
    text = page(*words, "--weights", "none", "--size", "32", model="squeezenet1_1")
    assert facts_of(text)["weights"] == "none: random"
    assert "<li>the model has random weights (--weights none): its maps and similarities explain nothing</li>" in text


def test_the_settings_in_a_page_have_no_path_of_the_gallery_or_the_weights(page: Page, folder: Path) -> None:
    torch.save(squeezenet1_1().state_dict(), "trained.pt")
    words = ["--gallery", folder / "birds", "--queries", folder / "photos", "--weights", folder / "trained.pt"]
    text = page("knn", *words, "--size", "48", "--matches", 0, model="squeezenet1_1")
    settings = json.loads(settings_of(text))
    assert settings["gallery_images"] == dict.fromkeys(BIRDS, 4)
    assert settings["weights"]["file"] == "trained.pt"
    assert len(settings["weights"]["sha256"]) == 64
    assert facts_of(text)["weights"] == "trained.pt"
    assert str(folder) not in text
    assert str(folder) not in page("few-shot", "--support", folder / "birds", "--queries", folder / "photos")
