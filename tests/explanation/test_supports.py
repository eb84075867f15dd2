"""Supports in every form that people have them give the scores of the same pictures, prepared by hand."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from captum_fam import MemoryBank, Neighbors, SupportPerQuery, SupportSet, explain
from captum_fam.images import UnreadableImageError
from captum_fam.preprocessing import Preprocessing
from tests.explanation.by_hand import as_input, cosines, embeddings, picture, small_model, write_pictures

NAMES = ("wren", "jay", "crow")


@pytest.fixture
def queries(tmp_path: Path) -> list[Path]:
    return write_pictures(tmp_path / "queries", ["q.png", "r.png"])


@pytest.fixture
def birds(tmp_path: Path) -> dict[str, list[Path]]:
    """Two wrens, three jays and one crow in class folders; not in alphabetical order."""
    counts = dict(zip(NAMES, (2, 3, 1), strict=True))
    names = [f"{bird}/{i}.png" for bird, count in counts.items() for i in range(count)]
    files = iter(write_pictures(tmp_path / "birds", names, seed=80))
    return {bird: [next(files) for _ in range(count)] for bird, count in counts.items()}


def class_means(queries: list[Path], birds: dict[str, list[Path]]) -> Tensor:
    """The mean cosine of each query and the birds of each class, float64 ``(B, C)``."""
    made = embeddings(queries)
    return torch.stack([cosines(made, embeddings(files)).mean(1) for files in birds.values()], 1)


def opened(files: list[Path]) -> list[Image.Image]:
    return [Image.open(file) for file in files]


def inputs_of(files: list[Path]) -> Tensor:
    return torch.stack([as_input(file) for file in files]).float()


def in_float32(files: list[Path]) -> Tensor:
    return embeddings(files).float()


@pytest.mark.parametrize(
    "form",
    [
        list,
        lambda files: [str(file) for file in files],
        opened,
        lambda files: [np.asarray(image) for image in opened(files)],
        lambda files: [files[0], *opened(files[1:])],
        lambda files: files[0].parent,
        lambda files: str(files[0].parent),
        lambda files: [files[0].parent],
        inputs_of,
        lambda files: inputs_of(files).numpy(),
        lambda files: inputs_of(files).double().numpy(),
        in_float32,
        lambda files: in_float32(files).numpy(),
        lambda files: SupportSet(inputs_of(files)),
        lambda files: {"jay": files},
    ],
    ids="paths texts PIL pixels mixed folder text-folder list images array float64 embeddings vectors set one".split(),
)
def test_a_support_of_one_class(
    form: Callable[[list[Path]], Any], queries: list[Path], birds: dict[str, list[Path]]
) -> None:
    why = explain(small_model(), queries, form(birds["jay"]))
    assert len(why.class_names) == 1
    expected = cosines(embeddings(queries), embeddings(birds["jay"])).mean(1, keepdim=True)
    torch.testing.assert_close(why.scores.double(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "form",
    [list, opened, lambda files: files[0].parent, inputs_of, lambda files: inputs_of(files).numpy(), in_float32],
    ids=["paths", "PIL", "folder", "images", "array", "embeddings"],
)
@pytest.mark.parametrize("method", ["similarity-cam", "correspondence"])
def test_a_mapping_gives_the_classes_in_its_order(
    form: Callable[[list[Path]], Any], method: str, queries: list[Path], birds: dict[str, list[Path]]
) -> None:
    support = {name: form(files) for name, files in birds.items()}
    if method == "correspondence" and form is in_float32:
        pytest.skip("it compares positions of images")
    why = explain(small_model(), queries, support, method=method)
    assert why.class_names == NAMES
    torch.testing.assert_close(why.scores.double(), class_means(queries, birds), rtol=0, atol=1e-5)


@pytest.mark.parametrize("form", [lambda folder: folder, str, lambda folder: [folder]], ids=["path", "text", "list"])
def test_class_folders_are_classes(
    form: Callable[[Path], Any], queries: list[Path], birds: dict[str, list[Path]], tmp_path: Path
) -> None:
    why = explain(small_model(), queries, form(tmp_path / "birds"))
    assert why.class_names == ("crow", "jay", "wren")
    torch.testing.assert_close(why.scores.flip(1).double(), class_means(queries, birds), rtol=0, atol=1e-5)
    some = explain(small_model(), queries, [tmp_path / "birds" / name for name in ("wren", "crow")])
    assert some.class_names == ("wren", "crow")
    torch.testing.assert_close(some.scores.double(), class_means(queries, birds)[:, [0, 2]], rtol=0, atol=1e-5)


def test_one_embedding_per_class_is_a_zero_shot_classifier(queries: list[Path]) -> None:
    """Five prompts for embeddings of length five: no class scores, and nobody is warned of them."""
    texts = torch.randn(5, 5, generator=torch.Generator().manual_seed(4))
    prompts = [f"a photo of a {name}" for name in (*NAMES, "owl", "auk")]
    support = dict(zip(prompts, texts, strict=True))
    why = explain(small_model(), queries, support, foil="runner-up", method="similarity-cam")
    cosine = cosines(embeddings(queries), texts.double())
    best = cosine.topk(2, dim=1)
    assert why.class_names == tuple(prompts)
    assert why.predicted.tolist() == best.indices[:, 0].tolist()
    torch.testing.assert_close(why.target_scores.double(), best.values[:, 0] - best.values[:, 1], rtol=0, atol=1e-5)
    assert not [note for note in why.notes if "class scores" in note]


def test_a_list_of_lists_has_pictures_of_each_query(queries: list[Path], birds: dict[str, list[Path]]) -> None:
    lists = [birds["jay"], [birds["crow"][0], Image.open(birds["wren"][1])]]
    why = explain(small_model(), queries, lists, batch_size=1)
    made = embeddings(queries)
    expected = torch.stack(
        [
            cosines(made[:1], embeddings(birds["jay"])).mean(),
            cosines(made[1:], embeddings([birds["crow"][0], birds["wren"][1]])).mean(),
        ]
    )
    torch.testing.assert_close(why.target_scores.double(), expected, rtol=0, atol=1e-5)
    assert why.support_weights is not None
    torch.testing.assert_close(why.support_weights, torch.tensor([[1 / 3, 1 / 3, 1 / 3], [0.5, 0.5, 0.0]]))


def test_tensors_per_query(queries: list[Path], birds: dict[str, list[Path]]) -> None:
    files = [birds["jay"][:2], birds["wren"]]
    made = embeddings(queries)
    expected = torch.stack([cosines(made[i : i + 1], embeddings(files[i])).mean() for i in range(2)])
    for support in (
        torch.stack([inputs_of(part) for part in files]),
        torch.stack([in_float32(part) for part in files]),
        torch.stack([in_float32(part) for part in files]).numpy(),
        SupportPerQuery(torch.stack([inputs_of(part) for part in files])),
    ):
        why = explain(small_model(), queries, support, batch_size=1)
        torch.testing.assert_close(why.target_scores.double(), expected, rtol=0, atol=1e-5)


def test_a_memory_bank(queries: list[Path], birds: dict[str, list[Path]]) -> None:
    """The two nearest rows vote with exp(s / 0.5); the score is the mean cosine of those of the winning class."""
    files = [file for part in birds.values() for file in part]
    labels = [name for name, part in birds.items() for _ in part]
    bank = MemoryBank(in_float32(files), labels, k=2, temperature=0.5)
    why = explain(small_model(), queries, bank, method="similarity-cam")
    cosine = cosines(embeddings(queries), embeddings(files))
    for b, row in enumerate(cosine):
        nearest = row.topk(2)
        votes: dict[str, float] = {}
        for value, index in zip(nearest.values, nearest.indices, strict=True):
            votes[labels[index]] = votes.get(labels[index], 0) + float((value / 0.5).exp())
        winner = max(votes, key=votes.__getitem__)
        own = [float(v) for v, i in zip(nearest.values, nearest.indices, strict=True) if labels[i] == winner]
        assert why.class_names[int(why.predicted[b])] == winner
        assert float(why.target_scores[b]) == pytest.approx(sum(own) / len(own), abs=1e-5)
        assert why.support_rows is not None
        assert why.support_weights is not None
        counted = why.support_rows[b][why.support_weights[b] > 0].tolist()
        assert sorted(counted) == sorted(int(i) for i in nearest.indices if labels[i] == winner)


def test_hits_of_a_search_engine(queries: list[Path], birds: dict[str, list[Path]]) -> None:
    files = [file for part in birds.values() for file in part]
    ids = [[4, 0, -1], [1, 5, 2]]
    why = explain(small_model(), queries, Neighbors(ids, embeddings=in_float32(files)), batch_size=1)
    cosine = cosines(embeddings(queries), embeddings(files))
    expected = torch.stack([cosine[0, [4, 0]].mean(), cosine[1, [1, 5, 2]].mean()])
    torch.testing.assert_close(why.target_scores.double(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "form",
    [
        lambda birds: birds["crow"] + birds["wren"],
        lambda birds: {name: birds[name] for name in ("crow", "wren")},
        lambda birds: opened(birds["crow"] + birds["wren"]),
        lambda birds: in_float32(birds["crow"] + birds["wren"]),
        lambda birds: inputs_of(birds["crow"] + birds["wren"]).numpy(),
    ],
    ids=["paths", "mapping", "PIL", "embeddings", "array"],
)
def test_a_foil_takes_what_a_support_takes(
    form: Callable[[dict[str, list[Path]]], Any], queries: list[Path], birds: dict[str, list[Path]]
) -> None:
    """The score of a foil of several classes is the mean of the scores of its classes."""
    why = explain(small_model(), queries, birds["jay"], foil=form(birds), method="similarity-cam")
    made = embeddings(queries)
    against = cosines(made, embeddings(birds["crow"] + birds["wren"]))  # one crow, two wrens
    foil = (
        against.mean(1)
        if isinstance(form(birds), list | Tensor | np.ndarray)
        else against @ torch.tensor([0.5, 0.25, 0.25]).double()
    )
    expected = cosines(made, embeddings(birds["jay"])).mean(1) - foil
    torch.testing.assert_close(why.target_scores.double(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("support", "error", "message"),
    [
        ([], TypeError, "support must be .*got an empty list"),
        ({}, ValueError, "support is an empty mapping"),
        ({"jay": []}, TypeError, r"support\['jay'\] must be .*got an empty list"),
        ({"jay": ["jay.png"], "wren": torch.rand(2, 5)}, ValueError, "support: .*'jay' are pictures .*one form"),
        ({"jay": torch.rand(2, 5), "wren": torch.rand(2, 3, 20, 12)}, ValueError, r"support: .*'wren'.*\(3, 20, 12\)"),
        ({"jay": torch.rand(2, 5), "wren": torch.rand(6)}, ValueError, r"support: .*'wren' .*\(6,\)"),
        ({1: torch.rand(5), "1": torch.rand(5)}, ValueError, "support: two classes .*'1'"),
        ({"jay": 3}, TypeError, r"support\['jay'\] must be .*got int"),
        ({"jay": "nowhere"}, ValueError, r"support\['jay'\] nowhere: no such file"),
        ({"jay": "classes"}, ValueError, r"support\['jay'\] holds the classes a, b"),
        (["jay.png", torch.rand(3, 20, 12)], TypeError, "support must be .*got a list of str and Tensor"),
        ([["jay.png"], [torch.rand(5)]], TypeError, "support must be .*got a list of list"),
        ([["jay.png"], []], ValueError, "support: query 1 has no supports"),
        ([[], [torch.rand(5)]], ValueError, "support: query 0 has no supports"),
        ([[]], ValueError, "support: query 0 has no supports"),
        (SupportSet, TypeError, "support must be .*got the class SupportSet; make an object"),
        ([["jay.png"]], ValueError, "support.*1.*2"),
        ([["jay.png"], ["classes"]], UnreadableImageError, "classes: a folder"),
        ("missing.png", ValueError, "support missing.png: no such file"),
        ("broken.png", UnreadableImageError, "broken.png: cannot be read"),
        ("empty", ValueError, "support empty holds no images"),
        (7, TypeError, "support must be .*got int"),
        (None, TypeError, "support must be .*got NoneType"),
        (np.zeros((2, 5), np.int64), TypeError, "support must be .*int64"),
        (torch.full((2, 5), torch.nan), ValueError, "support .*NaN"),
    ],
)
def test_what_is_no_support_is_refused_by_name(
    support: Any,
    error: type[Exception],
    message: str,
    queries: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_pictures(tmp_path, ["jay.png", "classes/a/1.png", "classes/b/1.png"])
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.png").write_bytes(b"no image")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        explain(small_model(), queries, support)


def test_what_is_no_foil_is_refused_by_name(queries: list[Path], birds: dict[str, list[Path]]) -> None:
    for foil, error, message in (
        ("other", ValueError, "foil must be 'others', 'runner-up', 'gallery', .* got 'other'"),
        ([], TypeError, "foil must be .*an empty list"),
        ({"jay": 3}, TypeError, r"foil\['jay'\] must be"),
        ([birds["crow"], birds["wren"]], TypeError, "foil"),
    ):
        with pytest.raises(error, match=message):
            explain(small_model(), queries, birds["jay"], foil=foil)


def _copied(files: list[Path]) -> list[Path]:
    return [Path(shutil.copy(file, file.with_name(f"copy-{file.name}"))) for file in files]


@pytest.mark.parametrize(
    "form",
    [list, _copied, opened, inputs_of, lambda files: {"a": files}, lambda files: SupportSet(inputs_of(files))],
    ids=["files", "copies", "PIL", "tensor", "mapping", "set"],
)
@pytest.mark.parametrize("method", ["similarity-cam", "correspondence"])
def test_a_query_among_its_own_supports_is_left_out(
    form: Callable[[list[Path]], Any], method: str, queries: list[Path], birds: dict[str, list[Path]]
) -> None:
    """The second query is a jay of the support; its score is the mean cosine of the two others."""
    own = [queries[0], birds["jay"][1]]
    given = inputs_of(own) if isinstance(form(own), Tensor | SupportSet) else own
    with pytest.warns(UserWarning, match="1 of 2 queries are among their own supports"):
        why = explain(small_model(), given, form(birds["jay"]), batch_size=1, method=method)
    made, jays = embeddings(own), embeddings(birds["jay"])
    expected = torch.stack([cosines(made[:1], jays).mean(), cosines(made[1:], jays[[0, 2]]).mean()])
    torch.testing.assert_close(why.target_scores.double(), expected, rtol=0, atol=1e-5)
    assert len([note for note in why.notes if "own supports" in note]) == 1


def test_a_query_that_is_its_only_support_is_kept_and_said(queries: list[Path]) -> None:
    with pytest.warns(UserWarning, match="1 of 1 queries are their own only supports") as caught:
        why = explain(small_model(), queries[0], queries[:1])
    assert float(why.target_scores) == pytest.approx(1, abs=1e-5)
    assert not [warning for warning in caught if "most similar support" in str(warning.message)]


def _own_bank(files: list[Path]) -> MemoryBank:
    return MemoryBank(in_float32(files), ["a"] * len(files), k=1)


@pytest.mark.parametrize(
    "support",
    [
        _own_bank,
        lambda files: Neighbors([[0, 1], [1, 2]], embeddings=in_float32(files)),
        # A search engine keeps embeddings of length one.
        lambda files: Neighbors([[0, 1], [1, 2]], embeddings=torch.nn.functional.normalize(in_float32(files), dim=1)),
        in_float32,
    ],
    ids=["bank", "hits", "hits of length one", "embeddings"],
)
def test_a_support_with_the_embedding_of_the_query_is_said_once(
    support: Callable[[list[Path]], Any], queries: list[Path], birds: dict[str, list[Path]]
) -> None:
    files = [*queries, *birds["jay"]]
    why = explain(small_model(), queries, support(files), batch_size=1)
    assert len([note for note in why.notes if "as if the query were among its own supports" in note]) == 1
    bank = _own_bank(files)
    for other in (bank.using(exclude=[0, 1]), Neighbors([[2, 3], [3, 4]], embeddings=in_float32(files))):
        why = explain(small_model(), queries, other)
        assert not [note for note in why.notes if "own supports" in note]


@pytest.mark.parametrize("form", ["mapping", "pictures", "set", "bank", "hits"])
def test_a_model_that_gives_class_scores_is_pointed_out(
    form: str, queries: list[Path], birds: dict[str, list[Path]]
) -> None:
    """Negative distances to one prototype per class: as many numbers as classes."""
    net = small_model()
    prototypes = torch.stack([in_float32(files).mean(0) for files in birds.values()])

    class Classifier(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = net.model

        def forward(self, images: Tensor) -> Tensor:
            return -torch.cdist(self.backbone(images), prototypes)

    files = [file for part in birds.values() for file in part]
    labels = [name for name, part in birds.items() for _ in part]
    support: Any = birds if form == "mapping" else SupportSet(inputs_of(files), labels)
    if form == "pictures":
        support = files[0].parent.parent
    classifier = Classifier().eval()
    if form in ("bank", "hits"):
        with torch.no_grad():
            gallery = classifier(inputs_of(files))
        hits = Neighbors([[0, 2, 5]] * 2, embeddings=gallery, labels=labels)
        support = MemoryBank(gallery, labels, k=3) if form == "bank" else hits
    with pytest.warns(UserWarning, match="gives 3 numbers, as many as the support has classes"):
        explain(classifier, queries, support, layer="backbone.features", preprocess=net.preprocessing)
    if form not in ("bank", "hits"):
        embedding = explain(net, queries, support)
        assert not [note for note in embedding.notes if "as many" in note]
    five = MemoryBank(in_float32(files), labels, k=3)  # embeddings of length five, three classes
    assert not [note for note in explain(net, queries, five).notes if "as many" in note]


@pytest.mark.parametrize("argument", ["support", "lists", "foil"])
def test_positions_of_images_of_different_sizes_are_not_compared(argument: str, queries: list[Path]) -> None:
    keep = Preprocessing(size=24, resize="keep")
    pictures = [picture(1, 30, 40), picture(2, 40, 30)]
    given: dict[str, Any] = {
        "support": {"support": pictures},
        "lists": {"support": [pictures]},
        "foil": {"support": pictures[:1], "foil": pictures},
    }[argument]
    name = "foil" if argument == "foil" else "support"
    with pytest.raises(ValueError, match=rf'{name}: .*\(3, 18, 24\), \(3, 24, 18\).*resize than "keep"'):
        explain(small_model(), pictures[0], **given, preprocess=keep, method="correspondence")
    # Embeddings of images of any size can be compared.
    assert len(explain(small_model(), pictures[0], **given, preprocess=keep)) == 1
