"""A figure shows the pictures of supports and foils that are known."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from captum_fam import Explanation, MemoryBank, Neighbors, SupportSet, explain, explain_pairs
from captum_fam.explanation import pair_figure
from captum_fam.explanation.reading.thumbnails import ListPictures, RowPictures, shown_pictures
from tests.explanation.by_hand import as_input, cosines, embeddings, picture, small_model, write_pictures

QUERIES = [picture(0), picture(1)]
JAYS = [picture(seed) for seed in (3, 4, 5)]
WRENS = [picture(seed) for seed in (6, 7)]
CROWS = [picture(8)]
CLASSES = {"jay": JAYS, "wren": WRENS, "crow": CROWS}


def by_similarity(query: Image.Image, pictures: list[Image.Image]) -> list[Image.Image]:
    order = cosines(embeddings([query]), embeddings(pictures))[0].argsort(descending=True)
    return [pictures[place] for place in order]


def are_equal(shown: list[Any], pictures: list[Image.Image]) -> bool:
    """The pictures are smaller than thumbnails, so that their pixels stay."""
    pairs = zip(shown, pictures, strict=False)
    return len(shown) == len(pictures) and all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in pairs)


def titles(why: Explanation, index: int = 0, **options: Any) -> list[str]:
    return [ax.get_title() for ax in why.figure(index, **options).axes if ax.get_title()]


@pytest.mark.parametrize("form", ["PIL", "paths", "folder"])
def test_supports_of_the_class_and_the_runner_up_the_most_similar_first(form: str, tmp_path: Path) -> None:
    for name, pictures in CLASSES.items():
        (tmp_path / name).mkdir()
        for number, one in enumerate(pictures):
            one.save(tmp_path / name / f"{number}.png")
    paths = {name: sorted((tmp_path / name).iterdir()) for name in CLASSES}
    support: Any = {"PIL": CLASSES, "paths": paths, "folder": tmp_path}[form]
    why = explain(small_model(), QUERIES, support, target=["jay", "wren"], foil="runner-up")
    for index, target in enumerate(("jay", "wren")):
        supports, foils = shown_pictures(why, index)
        assert are_equal(supports, by_similarity(QUERIES[index], CLASSES[target]))
        means = {
            name: float(cosines(embeddings(QUERIES[index : index + 1]), embeddings(pictures)).mean())
            for name, pictures in CLASSES.items()
            if name != target
        }
        best = max(means, key=means.__getitem__)
        assert are_equal(foils, by_similarity(QUERIES[index], CLASSES[best]))
        assert titles(why, index)[1:3] == [f"support\n{target}", f"foil: runner-up\n{best}"]
    maps = titles(why, supports=[], foils=[])[1:]
    assert [title.split("\n")[:2] for title in maps] == [
        [name, "foil: runner-up"] for name in ("similarity-cam", "fam")
    ]


def test_the_pictures_of_a_foil_without_the_query_itself() -> None:
    foil = [picture(9), QUERIES[1], picture(10)]
    why = explain(small_model(), QUERIES, JAYS, foil=foil, method="similarity-cam")
    assert are_equal(shown_pictures(why, 0)[1], foil)
    assert are_equal(shown_pictures(why, 1)[1], [foil[0], foil[2]])
    made = embeddings(QUERIES)
    own, against = cosines(made, embeddings(JAYS)).mean(1), cosines(made[1:], embeddings(foil)[[0, 2]]).mean()
    score = f"score {float(own[1] - against):#.3g} (plain score {float(own[1]):#.3g})"
    _, support_title, foil_title, title = titles(why, 1)
    assert (support_title, foil_title) == ("support", "foil: 3 supports")
    assert title.split("\n")[1] == "foil: 3 supports"
    assert title.replace("(plain score\n", "(plain score ").split("\n")[2] == score


def test_a_query_among_its_supports_is_not_shown_there() -> None:
    support = {"jay": [*JAYS, QUERIES[0]], "wren": WRENS}
    for aggregate in ("mean", "prototype"):
        why = explain(small_model(), QUERIES, support, target="jay", foil="others", aggregate=aggregate)
        supports, foils = shown_pictures(why, 0)
        assert len(supports) == 3
        assert not any(np.array_equal(np.asarray(one), np.asarray(QUERIES[0])) for one in supports)
        assert len(foils) == 2
        assert len(shown_pictures(why, 1)[0]) == 4


def test_lists_of_each_query() -> None:
    lists = [[QUERIES[0], WRENS[0]], [picture(seed) for seed in range(20, 32)]]
    why = explain(small_model(), QUERIES, lists)
    assert are_equal(shown_pictures(why, 0)[0], [WRENS[0]])
    shown = shown_pictures(why, 1)[0]
    assert len(shown) == 9
    kept = cosines(embeddings(QUERIES[1:]), embeddings(lists[1][:10]))[0].argsort(descending=True)[:9]
    assert are_equal(shown, [lists[1][place] for place in kept])


@pytest.mark.parametrize("kind", ["picture", "path", "tensor"])
def test_hits_with_images(kind: str, tmp_path: Path) -> None:
    gallery = [*JAYS, *WRENS]
    files = [tmp_path / f"{number}.png" for number in range(5)]
    for file, one in zip(files, gallery, strict=True):
        one.save(file)
    forms: dict[str, list[Any]] = {
        "picture": gallery,
        "path": list(files),
        "tensor": [torch.from_numpy(np.asarray(one).copy()).permute(2, 0, 1) / 255 for one in gallery],
    }
    asked: list[int] = []

    def image_of(one: int) -> Any:
        asked.append(one)
        return None if one == 2 else forms[kind][one]

    ids = [[4, 0, -1], [2, 1, 3]]
    why = explain(small_model(), QUERIES, Neighbors(ids, embeddings=embeddings(gallery).float(), images=image_of))
    assert asked == []
    for index, hits in enumerate(([4, 0], [1, 3])):
        ordered = by_similarity(QUERIES[index], [gallery[one] for one in hits])
        shown = [
            Image.fromarray((one.permute(1, 2, 0) * 255).round().byte().numpy()) if isinstance(one, Tensor) else one
            for one in shown_pictures(why, index)[0]
        ]
        assert are_equal(shown, ordered)
    with_foil = explain(
        small_model(), QUERIES, Neighbors(ids, embeddings=embeddings(gallery).float(), images=image_of), foil=CROWS
    )
    assert are_equal(shown_pictures(with_foil, 0)[1], CROWS)
    assert titles(with_foil)[1:3] == ["support\n2 of 3", "foil: 1 support"]


def test_images_of_a_tensor_are_shown_as_queries_are() -> None:
    inputs = torch.stack([as_input(one) for one in (*QUERIES, *JAYS, *WRENS)]).float()
    support = SupportSet(inputs[2:], ["jay"] * 3 + ["wren"] * 2)
    why = explain(small_model(), inputs[:2], support, target="wren")
    supports, foils = shown_pictures(why, 0)
    assert [one.size for one in supports] == [(12, 20)] * 2
    assert foils == []
    nearest = by_similarity(QUERIES[0], WRENS)[0]
    shown = as_input(nearest)
    low, high = shown.min(), shown.max()
    scaled = ((shown - low) / (high - low)).permute(1, 2, 0).numpy()
    np.testing.assert_allclose(np.asarray(supports[0]) / 255, scaled, atol=1.1 / 255)
    pairs = explain(small_model(), inputs[:2], torch.stack([inputs[2:4], inputs[4:6]]))
    assert len(shown_pictures(pairs, 1)[0]) == 2


def test_what_has_no_pictures_is_not_shown() -> None:
    made = embeddings(JAYS).float()
    for support in (made, MemoryBank(made, ["jay"] * 3), Neighbors([[0, 1]] * 2, embeddings=made)):
        why = explain(small_model(), QUERIES, support)
        assert shown_pictures(why, 0) == ([], [])
        assert [title.split("\n")[0] for title in titles(why)] == ["query-0", "similarity-cam", "fam"]


def test_large_pictures_are_kept_small_and_few() -> None:
    large = [picture(seed, 300, 500) for seed in range(3)]
    why = explain(small_model(), QUERIES, large)
    assert [one.size for one in shown_pictures(why, 0)[0]] == [(224, 134)] * 3
    assert large[0].size == (500, 300)
    many = {f"{number}": [picture(seed, 5, 5) for seed in (number, number + 1000)] for number in range(400)}
    pictures = explain(small_model(), QUERIES, many).support_pictures
    assert isinstance(pictures, RowPictures)
    assert sorted(pictures.by_row) == list(range(0, 800, 2))  # one of each class


def test_an_explanation_with_pictures_can_be_pickled() -> None:
    for support in (CLASSES, [JAYS, WRENS]):
        why = explain(small_model(), QUERIES, support)
        assert isinstance(why.support_pictures, RowPictures | ListPictures)
        again = pickle.loads(pickle.dumps(why))
        assert are_equal(shown_pictures(again, 1)[0], shown_pictures(why, 1)[0])


def test_files_that_are_gone_do_no_harm(tmp_path: Path) -> None:
    files = write_pictures(tmp_path, ["a.png", "b.png"])
    why = explain(small_model(), QUERIES, files)
    for file in files:
        file.unlink()
    assert titles(why)[1] == "support"


@pytest.mark.parametrize(
    ("channels", "size"),
    [(3, (40,)), (12, (40,)), (2, (9, 8)), (4, (9, 8)), (5, (9, 8)), (1, (3, 9, 8)), (2, (3, 9, 8))],
)
def test_inputs_of_pairs_that_are_no_photographs_are_drawn_as_queries_are(
    channels: int, size: tuple[int, ...], tmp_path: Path
) -> None:
    kinds: dict[int, tuple[type[nn.Module], type[nn.Module]]] = {
        1: (nn.Conv1d, nn.AdaptiveAvgPool1d),
        2: (nn.Conv2d, nn.AdaptiveAvgPool2d),
        3: (nn.Conv3d, nn.AdaptiveAvgPool3d),
    }
    convolution, pooling = kinds[len(size)]
    net = nn.Sequential(convolution(channels, 4, 3, padding=1), nn.Tanh(), pooling(1), nn.Flatten()).eval()
    inputs = torch.randn(2, channels, *size)
    why = explain_pairs(net, inputs[:1], inputs[1:], layer="0", foil=None)
    ((shown,), _) = shown_pictures(why, 0)
    assert isinstance(shown, Tensor)
    flat = inputs[1]
    expected = flat if len(size) == 1 else (flat - flat.min()) / (flat.max() - flat.min())
    torch.testing.assert_close(shown, expected)
    why.figure(0).save(tmp_path / "figure.png")
    pair_figure(why, 0).save(tmp_path / "pair.png")
    assert "<img" in why._repr_html_()
    why.save(tmp_path / "why")
    Explanation.load(tmp_path / "why").figure(0)


def test_supports_of_files_have_the_names_of_the_files(tmp_path: Path) -> None:
    write_pictures(tmp_path, ["birds/jay/one.png", "birds/jay/two.png", "birds/wren/one.png"])
    query = write_pictures(tmp_path, ["query.png"], seed=20)
    lists = [[tmp_path / "birds/wren/one.png", JAYS[0], tmp_path / "birds/jay/two.png"]]
    mapping = {"jay": [*lists[0]], "wren": WRENS}
    for support, expected in (
        (tmp_path / "birds", {"one", "two"}),
        ({"jay": tmp_path / "birds/jay", "wren": WRENS}, {"one", "two"}),
        (mapping, {"one", "jay-1", "two"}),
        (lists, {"one", "support-1", "two"}),
        (torch.stack([as_input(one) for one in JAYS]).float(), {"support-0", "support-1", "support-2"}),
    ):
        target = None if isinstance(support, list | Tensor) else "jay"
        why = explain(small_model(), query, support, target=target, sides="both", method="fam")
        assert why.pairs is not None
        assert {pair.name for pair in why.pairs[0]} == expected
    (of_wren,) = explain(small_model(), query, tmp_path / "birds", target="wren", sides="both").pairs[0]  # type: ignore[index]
    assert (of_wren.name, of_wren.label) == ("one-2", "wren")
