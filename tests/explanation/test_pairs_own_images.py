"""An image of a pair that is in its own gallery, or in its foil of images, is left out there on its own side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from captum_fam import MemoryBank, Neighbors, SupportSet, explain, explain_pairs
from captum_fam.support import Gallery
from tests.explanation.by_hand import cosines, embeddings, write_pictures
from tests.explanation.pair_by_hand import MODEL, against_gallery, embedding, pictures, side, unit

pytestmark = pytest.mark.filterwarnings("ignore:the map", "ignore:more than half of a map")

LABELS = [0, 0, 1, 1, 1, 2]
SUPPORTS, QUERIES, OTHERS = pictures(6, seed=2), pictures(3, seed=1), pictures(4, seed=7)
# The second query and the third support are in it, the support twice.
MIXED = torch.cat([OTHERS[:2], QUERIES[1:2], SUPPORTS[2:3], OTHERS[2:], SUPPORTS[2:3]])
CLOSE = {"rtol": 1e-9, "atol": 1e-11}


def without(image: Tensor, images: Tensor) -> list[Tensor]:
    """The embeddings of the images that are not this one."""
    return [embedding(one) for one in images if not torch.equal(one, image)]


@pytest.mark.parametrize("method", [None, "fam"])
@pytest.mark.parametrize("form", ["tensor", "gallery", "foil", "classes"])
def test_each_side_leaves_out_its_own_image(form: str, method: Any) -> None:
    foil: dict[str, Any] = {
        "tensor": {"foil": "gallery", "gallery": MIXED},
        "gallery": {"foil": "gallery", "gallery": Gallery(MIXED)},
        "foil": {"foil": MIXED},
        "classes": {"foil": SupportSet(MIXED, [0, 1, 1, 0, 1, 0, 0])},
    }[form]
    with pytest.warns(UserWarning, match=r"3 of 9 supports are in the (gallery|foil), as the same image; there they"):
        why = explain(
            MODEL, QUERIES, SupportSet(SUPPORTS, LABELS), target=1, method=method, sides="both", batch_size=2, **foil
        )
    assert why.pairs is not None
    for query, pairs in enumerate(why.pairs):
        assert sorted(pair.row for pair in pairs) == [2, 3, 4]
        for pair in pairs:
            image, support = QUERIES[query], SUPPORTS[pair.row]
            for own, other, score, map_ in (
                (image, support, pair.score, pair.query_map),
                (support, image, pair.support_score, pair.support_map),
            ):
                if form == "classes":
                    rows = [[0, 3, 5, 6], [1, 2, 4]]
                    means = [
                        torch.stack([unit(one) for one in without(own, MIXED[members])]).mean(0) for members in rows
                    ]
                    mean = (means[0] + means[1]) / 2
                    classifier = (unit(embedding(other)) - mean) / embedding(own).norm()
                    expected = float(unit(embedding(own)) @ (unit(embedding(other)) - mean))
                else:
                    expected, classifier = against_gallery(embedding(own), embedding(other), without(own, MIXED))
                assert score == pytest.approx(expected)
                if method is None:
                    torch.testing.assert_close(map_, side(own, classifier)[0], **CLOSE)


def test_supports_that_are_the_gallery_leave_out_themselves_and_their_copies() -> None:
    copies = torch.cat([SUPPORTS, SUPPORTS[3:4]])  # the fourth support is in two classes
    why = explain(MODEL, QUERIES, SupportSet(copies, [*LABELS, 2]), target=1, foil="gallery", sides="both")
    assert not any("as the same image" in note for note in why.notes)
    assert why.pairs is not None
    for query, pairs in enumerate(why.pairs):
        for pair in pairs:
            own, partner = embedding(QUERIES[query]), embedding(copies[pair.row])
            every = [embedding(one) for one in copies]
            assert pair.score == pytest.approx(against_gallery(own, partner, every)[0])
            expected, classifier = against_gallery(partner, own, without(copies[pair.row], copies))
            assert pair.support_score == pytest.approx(expected)
            torch.testing.assert_close(pair.support_map, side(copies[pair.row], classifier)[0], **CLOSE)


@pytest.mark.parametrize("similarity", ["euclidean", "squared-euclidean", "dot"])
def test_every_similarity_leaves_out_the_support(similarity: str) -> None:
    def score(one: Tensor, other: Tensor) -> float:
        if similarity == "dot":
            return float(one @ other)
        return -float((one - other).norm()) if similarity == "euclidean" else -float((one - other).square().sum())

    why = explain(
        MODEL, QUERIES, SupportSet(SUPPORTS, LABELS), similarity=similarity, foil="gallery", sides="both", target=1
    )
    assert why.pairs is not None
    for query, pairs in enumerate(why.pairs):
        for pair in pairs:
            partner = embedding(SUPPORTS[pair.row])
            others = without(SUPPORTS[pair.row], SUPPORTS)
            mean = sum(score(partner, one) for one in others) / len(others)
            assert pair.support_score == pytest.approx(score(partner, embedding(QUERIES[query])) - mean)


def test_a_picture_is_found_in_the_gallery_by_its_file(tmp_path: Path) -> None:
    files = write_pictures(tmp_path, ["jay/a.png", "jay/b.png", "wren/a.png"])
    query = write_pictures(tmp_path, ["query.png"], seed=20)
    others = write_pictures(tmp_path, ["x.png", "y.png"], seed=30)
    with pytest.warns(UserWarning, match="1 of 2 supports are in the gallery"):
        why = explain(
            MODEL,
            query,
            {"jay": files[:2], "wren": files[2:]},
            target="jay",
            foil="gallery",
            gallery=[files[1], *others],
            sides="both",
        )
    assert why.pairs is not None
    vectors = {path: embeddings([path])[0] for path in (*files, *query, *others)}
    for pair in why.pairs[0]:
        own = files[pair.row]
        kept = [vectors[path] for path in (files[1], *others) if path != own]
        assert pair.name == ("a", "b")[pair.row]
        assert pair.support_score == pytest.approx(against_gallery(vectors[own], vectors[query[0]], kept)[0], abs=1e-5)


@pytest.mark.parametrize("kind", ["rows", "bank"])
def test_the_hits_of_a_search_are_rows_of_its_gallery(kind: str, tmp_path: Path) -> None:
    files = write_pictures(tmp_path, [f"{name}.png" for name in "abcdef"])
    queries = write_pictures(tmp_path, ["x.png", "y.png"], seed=20)
    rows, own = embeddings(files), embeddings(queries)
    order = cosines(own, rows).argsort(1, descending=True)[:, :2]
    hits = Neighbors(order, embeddings=rows, images=lambda one: files[one])
    gallery: Any = rows if kind == "rows" else MemoryBank(rows, ["jay", "wren"] * 3, k=2)
    with pytest.warns(UserWarning, match="4 of 4 supports are in the gallery"):
        why = explain(MODEL, queries, hits, foil="gallery", gallery=gallery, sides="both")
    assert why.pairs is not None
    for query in range(2):
        for pair, row in zip(why.pairs[query], order[query].tolist(), strict=True):
            others = [one for place, one in enumerate(rows) if place != row]
            assert pair.score == pytest.approx(against_gallery(own[query], rows[row], list(rows))[0])
            assert pair.support_score == pytest.approx(against_gallery(rows[row], own[query], others)[0])


def test_a_support_that_is_the_whole_gallery_stays_and_is_noted() -> None:
    with pytest.warns(UserWarning, match="3 of 3 supports are the only image of their gallery"):
        why = explain(MODEL, QUERIES, SUPPORTS[:1], foil="gallery", gallery=SUPPORTS[:1], sides="both")
    assert why.pairs is not None
    own, partner = embedding(QUERIES[0]), embedding(SUPPORTS[0])
    assert why.pairs[0][0].support_score == pytest.approx(against_gallery(partner, own, [partner])[0])


def test_a_foil_of_images_leaves_out_the_image_of_each_side_of_a_pair() -> None:
    right = SUPPORTS[[2, 0, 5]]
    with pytest.warns(UserWarning, match="2 of 6 images of the pairs are in the foil"):
        why = explain_pairs(MODEL, QUERIES, right, foil=MIXED)
    assert why.pairs is not None
    for number, (pair,) in enumerate(why.pairs):
        own, other = embedding(QUERIES[number]), embedding(right[number])
        score, classifier = against_gallery(own, other, without(QUERIES[number], MIXED))
        assert pair.score == pytest.approx(score)
        torch.testing.assert_close(pair.query_map, side(QUERIES[number], classifier)[0], **CLOSE)
        score, classifier = against_gallery(other, own, without(right[number], MIXED))
        assert pair.support_score == pytest.approx(score)
        torch.testing.assert_close(pair.support_map, side(right[number], classifier)[0], **CLOSE)
    # On the side of an image that is not in the foil, explain gives the same.
    alone = explain(MODEL, QUERIES[:1], right[:1], foil=MIXED, sides="both")
    assert alone.pairs is not None
    assert alone.pairs[0][0].support_score == pytest.approx(why.pairs[0][0].support_score)
