"""Notes and errors of the package in the words of the command line."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from captum_fam.cli.advice import in_options
from captum_fam.cli.main import main
from captum_fam.explanation.reading.queries import own_embedding_in_words
from captum_fam.similarity import get_similarity
from captum_fam.support import MemoryBank, Neighbors, SupportSet
from captum_fam.support.score_gap import gap_in_words
from tests.explanation.by_hand import write_pictures

REPORT = ["--quiet", "--device", "cpu", "--model", "tests.explanation.by_hand:small_model", "--out", "r.html"]


def gap(scores: list[list[float]], similarity: str = "cosine") -> str:
    query, vectors = torch.tensor([[3.0, 4.0]]), torch.tensor([[[1.0, 0.0], [0.0, 2.0], [-1.0, 0.5]]])
    measure = get_similarity(similarity)
    recomputed = measure.score(query, vectors)
    found = gap_in_words(query, vectors, torch.tensor(scores), recomputed, measure, ((7, 8, 9),))
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (gap([[3.0, 8.0, -1.0]]), "the scores are those of --similarity dot, but the comparison uses"),
        (gap([[0.4, 0.2, 1.178885]]), "the scores are cosine distances: write 1 minus the distance as the score"),
        (gap([[-4.4, 3.6, 5.3]], "euclidean"), "write minus the distance as the score, and give the similarity"),
        (gap([[0.3, 0.1, 0.2]]), "the index may be quantized"),
        (own_embedding_in_words(Neighbors([[0]], embeddings=torch.eye(2)), None, is_foil=False), "take out one of the"),
        (
            own_embedding_in_words(MemoryBank(torch.eye(2), ["a", "b"]), None, is_foil=False),
            "take out one of the two images",
        ),
        (own_embedding_in_words(SupportSet(torch.eye(2)), None, is_foil=True), "take out one of the two images"),
    ],
)
def test_advice_names_options(text: str, expected: str) -> None:
    words = in_options(text)
    assert expected in words
    assert not re.search(r"scores=|score_gap|without\(|exclude=|similarity=", words)


def test_other_texts_stay() -> None:
    text = "--bank b.safetensors: its row 3 is of the class wren (image 5)"
    assert in_options(text) == text


def test_a_report_of_few_pairs_advises_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_pictures(tmp_path, ["a.png", "b.png", "c.png"], seed=4)
    Path("pairs.csv").write_text("a.png,b.png\na.png,c.png\n")
    assert main(["report", "pairs", "pairs.csv", *REPORT]) == 0
    (note,) = (line for line in capsys.readouterr().err.splitlines() if "no foil" in line)
    assert "Give other images as --gallery to see why" in note
    assert note.endswith("; or give --foil none")
    page = Path("r.html").read_text("utf-8")
    assert "Give other images as --gallery" in page
    assert "foil=None" not in page


def test_an_engine_with_distances_is_told_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_pictures(tmp_path, [f"birds/{i}.png" for i in range(4)], seed=4)
    write_pictures(tmp_path, ["q.png"], seed=9)
    Path("hits.jsonl").write_text(json.dumps({"query": "q.png", "ids": [0, 1], "scores": [120.5, 300]}))
    assert main(["report", "retrieval", "--gallery", "birds", "--neighbors", "hits.jsonl", *REPORT]) == 0
    for text in (capsys.readouterr().err, Path("r.html").read_text("utf-8")):
        assert "write minus the distance as the score" in text
        assert "score_gap" not in text


Explain = Callable[..., int]


def test_the_images_that_are_left_out_are_named_once(
    explain_small: Explain, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("safetensors")
    Path("flat/f3.png").write_bytes(b"no image")
    assert explain_small("queries/q0.png", "--gallery", "flat", "--no-figures") == 1
    assert capsys.readouterr().err.count("f3.png") == 1
