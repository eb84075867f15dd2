"""Galleries and memory banks on the command line: the neighbors of a search by hand, embedded once."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from captum_fam import MemoryBank
from tests.explanation.by_hand import SmallNet, cosines, embeddings, picture

pytest.importorskip("safetensors")

Explain = Callable[..., int]


def manifest(out: str = "out") -> dict[str, Any]:
    content: dict[str, Any] = json.loads(Path(out, "manifest.json").read_text("utf-8"))
    return content


def files_of(folder: str) -> list[Path]:
    return sorted(Path(folder).rglob("*.png"))


@pytest.fixture
def embedded(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The gallery images that were read to embed them."""
    from captum_fam.cli import explain_supports

    read: list[Path] = []
    original = explain_supports.read_image

    def reading(path: Path) -> Any:
        read.append(Path(path))
        return original(path)

    monkeypatch.setattr(explain_supports, "read_image", reading)
    return read


@pytest.mark.parametrize("top", [None, 3, 50])
def test_the_hits_of_a_flat_gallery_are_its_nearest_images(top: int | None, explain_small: Explain) -> None:
    words = [] if top is None else ["--top", top]
    assert explain_small("queries", "--gallery", "flat", *words, "--methods", "fam,similarity-cam") == 0
    gallery = files_of("flat")
    similarity = cosines(embeddings(files_of("queries")), embeddings(gallery))
    content = manifest()
    for row, query in zip(similarity, content["queries"], strict=True):
        nearest = row.topk(min(top or 5, len(gallery)))
        hits = query["supports"]
        assert [hit["file"] for hit in hits] == [str(gallery[index]) for index in nearest.indices]
        assert [hit["similarity"] for hit in hits] == pytest.approx(nearest.values.tolist(), abs=1e-5)
        assert [hit["weight"] for hit in hits] == pytest.approx([1 / len(hits)] * len(hits))
        assert query["scores"][query["target"]] == pytest.approx(float(nearest.values.mean()), abs=1e-5)
    assert content["neighbors"]["k"] == (top or 5)
    assert Path("out", content["queries"][0]["figure"]).is_file()


def test_the_neighbors_in_class_folders_vote(explain_small: Explain) -> None:
    """Each of the six nearest images votes with exp(s / 0.07); the images of the winning class are the supports."""
    assert explain_small("queries", "--gallery", "gallery", "--top", 6) == 0
    gallery = files_of("gallery")
    similarity = cosines(embeddings(files_of("queries")), embeddings(gallery))
    for row, query in zip(similarity, manifest()["queries"], strict=True):
        nearest = row.topk(6).indices.tolist()
        votes: dict[str, float] = {}
        for index in nearest:
            name = gallery[index].parent.name
            votes[name] = votes.get(name, 0) + math.exp(float(row[index]) / 0.07)
        winner = max(votes, key=votes.__getitem__)
        own = [index for index in nearest if gallery[index].parent.name == winner]
        assert query["predicted"] == query["target"] == winner
        assert [hit["file"] for hit in query["supports"]] == [str(gallery[index]) for index in own]
        assert query["scores"][winner] == pytest.approx(float(row[own].mean()), abs=1e-5)


@pytest.mark.parametrize("kind", ["file", "other path", "copy"])
def test_a_query_is_none_of_its_own_neighbors(
    kind: str, explain_small: Explain, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own, other = Path("flat/f3.png"), Path("queries/q1.png")
    if kind == "other path":
        own = photos / "flat" / ".." / "flat" / "f3.png"
    if kind == "copy":
        own = Path(shutil.copy(own, "copied.png"))
    assert explain_small(own, other, "--gallery", "flat", "--top", 3, "--batch-size", 1) == 0
    gallery = files_of("flat")
    first, second = cosines(embeddings([own, other]), embeddings(gallery))
    assert first.argmax() == 3
    first[3] = -1
    for row, query in zip((first, second), manifest()["queries"], strict=True):
        nearest = row.topk(3)
        assert [hit["file"] for hit in query["supports"]] == [str(gallery[index]) for index in nearest.indices]
        assert query["scores"]["flat"] == pytest.approx(float(nearest.values.mean()), abs=1e-5)
    assert "1 queries are images of the gallery" in capsys.readouterr().err
    assert [note for note in manifest()["notes"] if "images of the gallery" in note]


def test_a_gallery_is_embedded_once(explain_small: Explain, embedded: list[Path]) -> None:
    words = ["queries/q0.png", "--gallery", "gallery"]
    assert explain_small(*words) == 0
    assert sorted(set(embedded)) == files_of("gallery")
    stored = manifest()["gallery_embeddings"]
    assert Path(stored).parent == Path()
    assert [str(path) for path in Path().glob("*.safetensors")] == [stored]
    first = np.load("out/q0.npz")["fam"]
    embedded.clear()
    assert explain_small(*words, "--out", "out") == 0
    # The first items are embedded again, to refuse the embeddings of another model.
    assert len(embedded) < len(files_of("gallery")) / 2
    assert np.array_equal(np.load("out/q0.npz")["fam"], first)
    assert not list(Path().glob("*.lock"))


@pytest.mark.parametrize("change", ["weights", "size", "an image", "another image", "one image less"])
def test_a_gallery_that_has_changed_is_embedded_again(
    change: str, explain_small: Explain, embedded: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["queries/q0.png", "--gallery", "gallery", "--top", 12]
    assert explain_small(*words) == 0
    before = manifest()["gallery_embeddings"]
    embedded.clear()
    if change == "weights":
        original = SmallNet.__init__

        def turned(self: SmallNet, *arguments: Any) -> None:
            original(self, *arguments)
            self.head.weight.data[0] *= -3

        monkeypatch.setattr(SmallNet, "__init__", turned)
    elif change == "size":
        words += ["--size", "16x16"]
    elif change == "an image":
        picture(999).save("gallery/jay/2.png")
    elif change == "another image":
        picture(999).save("gallery/jay/9.png")
    else:
        os.remove("gallery/jay/2.png")
    assert explain_small(*words) == 0
    assert sorted(set(embedded)) == files_of("gallery")
    assert manifest()["neighbors"]["rows"] == len(files_of("gallery"))
    assert manifest()["gallery_embeddings"] != before
    assert len(list(Path().glob("*.safetensors"))) == 2


def test_the_embeddings_of_a_gallery_serve_every_similarity_and_number(explain_small: Explain) -> None:
    assert explain_small("queries/q0.png", "--gallery", "flat") == 0
    assert explain_small("queries/q0.png", "--gallery", "flat", "--top", 2, "--similarity", "euclidean") == 0
    assert len(list(Path().glob("*.safetensors"))) == 1
    query, gallery = embeddings([Path("queries/q0.png")]), embeddings(files_of("flat"))
    distances = (gallery - query).norm(dim=1)
    nearest = distances.topk(2, largest=False)
    hits = manifest()["queries"][0]["supports"]
    assert [hit["file"] for hit in hits] == [str(files_of("flat")[index]) for index in nearest.indices]
    assert [hit["similarity"] for hit in hits] == pytest.approx((-nearest.values).tolist(), abs=1e-5)


def test_an_unreadable_image_of_a_gallery_is_left_out_and_counted(
    explain_small: Explain, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("flat/f2.png").write_bytes(b"no image")
    for _ in range(2):  # also with the embeddings of the first run
        assert explain_small("queries/q0.png", "--gallery", "flat", "--top", 9) == 1
        captured = capsys.readouterr()
        assert "f2.png: cannot be read" in captured.err
        assert "1 explained, 1 unreadable" in captured.out
        content = manifest()
        assert [one["file"] for one in content["unreadable"]] == ["flat/f2.png"]
        rest = [path for path in files_of("flat") if path.name != "f2.png"]
        nearest = cosines(embeddings([Path("queries/q0.png")]), embeddings(rest))[0].topk(7)
        hits = content["queries"][0]["supports"]
        assert [hit["file"] for hit in hits] == [str(rest[index]) for index in nearest.indices]


@pytest.mark.parametrize("top", [None, 2])
def test_a_memory_bank_from_a_file(top: int | None, explain_small: Explain) -> None:
    files = files_of("gallery")
    labels = [file.parent.name for file in files]
    MemoryBank(embeddings(files).float(), labels, k=4, neighbors="all").save("birds.safetensors")
    words = [] if top is None else ["--top", top]
    assert explain_small("queries", "--bank", "birds.safetensors", *words) == 0
    similarity = cosines(embeddings(files_of("queries")), embeddings(files))
    content = manifest()
    for row, query in zip(similarity, content["queries"], strict=True):
        nearest = row.topk(top or 4)
        assert [hit["row"] for hit in query["supports"]] == nearest.indices.tolist()
        assert [hit["class"] for hit in query["supports"]] == [labels[index] for index in nearest.indices]
        assert query["scores"][query["target"]] == pytest.approx(float(nearest.values.mean()), abs=1e-5)
    assert content["bank"] == "birds.safetensors"
    assert content["neighbors"]["k"] == (top or 4)


@pytest.mark.parametrize("target", ["wren", "2"])
def test_a_class_of_a_bank_is_explained_by_name_or_number(target: str, explain_small: Explain) -> None:
    files = files_of("gallery")
    bank = MemoryBank(embeddings(files).float(), [file.parent.name for file in files], neighbors="within-class", k=2)
    bank.save("birds.safetensors")
    assert explain_small("queries/q0.png", "--bank", "birds.safetensors", "--target", target) == 0
    (query,) = manifest()["queries"]
    wrens = cosines(embeddings([Path("queries/q0.png")]), embeddings(files[8:]))[0]
    assert query["target"] == "wren"
    assert query["scores"]["wren"] == pytest.approx(float(wrens.topk(2).values.mean()), abs=1e-5)


@pytest.mark.parametrize("support", ["gallery", "bank"])
@pytest.mark.parametrize("foil", ["others", "runner-up", "gallery", "queries/q5.png"])
def test_neighbors_have_a_foil(support: str, foil: str, explain_small: Explain) -> None:
    files = files_of("gallery")
    words: list[object] = ["--gallery", "gallery", "--top", 12]
    if support == "bank":
        MemoryBank(embeddings(files).float(), [file.parent.name for file in files], k=12).save("birds.safetensors")
        words = ["--bank", "birds.safetensors"]
    assert explain_small("queries/q0.png", *words, "--foil", foil, "--target", "jay") == 0
    row = cosines(embeddings([Path("queries/q0.png")]), embeddings([*files, Path("queries/q5.png")]))[0]
    means = torch.stack([row[start : start + 4].mean() for start in (0, 4, 8)])
    against = {
        "others": row[[0, 1, 2, 3, 8, 9, 10, 11]].mean(),
        "runner-up": means[[0, 2]].max(),
        "gallery": row[:12].mean(),
        "queries/q5.png": row[12],
    }[foil]
    score = manifest()["queries"][0]["scores"]["jay"]
    assert score == pytest.approx(float(means[1] - against), abs=1e-5)


def test_a_query_in_the_gallery_is_left_out_of_its_mean(explain_small: Explain) -> None:
    files = files_of("flat")
    assert explain_small(files[0], files[3], "--gallery", "flat", "--top", 2, "--foil", "gallery") == 0
    for query, own in zip(manifest()["queries"], (0, 3), strict=True):
        row = cosines(embeddings([files[own]]), embeddings(files))[0]
        others = torch.cat([row[:own], row[own + 1 :]])
        (score,) = query["scores"].values()
        assert score == pytest.approx(float(others.topk(2).values.mean() - others.mean()), abs=1e-5)


@pytest.mark.parametrize(("words", "sign"), [(["threshold", "--threshold", "0.4"], 1), (["identity"], -1)])
def test_scores_against_a_number(words: list[str], sign: int, explain_small: Explain) -> None:
    files = files_of("flat")
    assert explain_small("queries/q0.png", "--support", *files[:2], "--against", *words) == 0
    cosine = float(cosines(embeddings([Path("queries/q0.png")]), embeddings(files[:2])).mean())
    (query,) = manifest()["queries"]
    (score,) = query["scores"].values()
    assert score == pytest.approx(cosine - 0.4 if sign == 1 else 1 - cosine, abs=1e-5)
    assert list(query["methods"]) == ["similarity-cam", "fam"]
    shares = query["methods"]["similarity-cam"]["shares"]
    assert sum(shares.values()) == pytest.approx(score, abs=1e-4)
    assert "zero embedding" not in shares


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--support", "flat", "--foil", "gallery"],
            "--foil gallery needs supports of at least two classes.*--gallery",
        ),
        (["--support", "flat", "--threshold", "0.5"], "--threshold belongs to --against threshold"),
        (["--support", "flat", "--against", "threshold"], "--against threshold needs --threshold T"),
        (["--support", "flat", "--against", "threshold", "--threshold", "-1.1"], "--threshold is -1.1, but scores of"),
        (
            ["--support", "flat", "--against", "identity", "--threshold", "0.5"],
            "--threshold belongs to --against threshold, got --against identity",
        ),
        (["--support", "gallery", "--against", "identity", "--foil", "others"], "--against and --foil exclude"),
        (["--support", "flat", "--against", "identity", "--methods", "correspondence"], "correspondence compares"),
        (["--support", "flat", "--top", "3"], "--top is for --gallery and --bank"),
        (["--gallery", "flat", "--methods", "correspondence"], "--methods correspondence: .*--support"),
        (["--bank", "birds.safetensors", "--methods", "correspondence"], "--methods correspondence: .*--support"),
        (["--bank", "nowhere.safetensors"], "nowhere.safetensors"),
        (["--bank", "queries/q0.png"], "queries/q0.png: .*no memory bank, or damaged"),
        (["--bank", "birds.safetensors", "--target", "owl"], "--target owl is none of the 3 classes .*crow"),
        (["--gallery", "gallery", "--target", "owl"], "--target owl is none of the 3 classes"),
        (["--gallery", "flat", "--foil", "others"], "--foil others needs supports of at least two classes"),
        (["--gallery", "nowhere"], "--gallery nowhere: no such file"),
        (["--bank", "long.safetensors"], "6.*5|5.*6"),
        (["--gallery", "flat", "--out", "flat"], "--out flat: images are read from this folder"),
    ],
)
def test_what_does_not_belong_together_is_refused(
    words: list[str], message: str, explain_small: Explain, capsys: pytest.CaptureFixture[str]
) -> None:
    files = files_of("gallery")
    MemoryBank(embeddings(files).float(), [file.parent.name for file in files]).save("birds.safetensors")
    MemoryBank(torch.rand(3, 6), ["a", "b", "c"]).save("long.safetensors")
    assert explain_small("queries/q0.png", *words) == 2
    error = capsys.readouterr().err.splitlines()
    assert error[-1].startswith("captum-fam: error: ")
    assert re.search(message, error[-1]), error[-1]
    assert not Path("out").exists()


@pytest.mark.parametrize(
    "words", [["--support", "flat", "--gallery", "flat"], ["--gallery", "flat", "--bank", "b"], []]
)
def test_one_kind_of_support_is_needed(
    words: list[str], explain_small: Explain, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        explain_small("queries/q0.png", *words)
    assert caught.value.code == 2
    assert re.search("not allowed with|--support --gallery --bank is required", capsys.readouterr().err)


def test_a_damaged_gallery_file_is_made_again(explain_small: Explain, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["queries/q0.png", "--gallery", "flat", "--no-figures"]
    assert explain_small(*words) == 0
    stored, supports = Path(manifest()["gallery_embeddings"]), manifest()["queries"][0]["supports"]
    content = bytearray(stored.read_bytes())
    content[-40] ^= 1
    stored.write_bytes(content)
    assert explain_small(*words) == 0
    assert "damaged" in capsys.readouterr().err
    assert manifest()["queries"][0]["supports"] == supports


def test_a_bank_of_another_model_is_refused(explain_small: Explain, capsys: pytest.CaptureFixture[str]) -> None:
    net = SmallNet().eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(2)
    MemoryBank.from_dataset(net, [(torch.rand(3, 24, 32), 0)] * 3, "other.safetensors", progress=False)
    assert explain_small("queries", "--bank", "other.safetensors", "--no-figures") == 2
    assert "was made with other weights than those of" in capsys.readouterr().err
