"""``explain(..., sides="both")``: the pairs of each query with its first supports."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from captum_fam import LayerFAM, MemoryBank, Neighbors, SimilarityToSupport, SupportPerQuery, SupportSet, _progress
from captum_fam.attr import get_method
from captum_fam.explanation import Explanation, explain
from captum_fam.explanation.pairs.pair import Pair
from tests.explanation.by_hand import cosines, embeddings, write_pictures
from tests.explanation.pair_by_hand import (
    MODEL,
    NET,
    against_gallery,
    cosine,
    embedding,
    pictures,
    side,
    unit,
)

pytestmark = pytest.mark.filterwarnings("ignore:the map", "ignore:more than half of a map")

LABELS = [0, 0, 1, 1, 1, 2]
IMAGES, QUERIES = pictures(6, seed=2), pictures(5, seed=1)
CLOSE = {"rtol": 1e-9, "atol": 1e-11}


def both(support: Any, queries: Tensor = QUERIES, **kwargs: Any) -> Explanation:
    return explain(MODEL, queries, support, sides="both", **kwargs)


def pairs_of(why: Explanation, query: int) -> tuple[Pair, ...]:
    assert why.pairs is not None
    return why.pairs[query]


def mean_of_others(own: Tensor, target: int) -> tuple[float, Tensor]:
    """The mean over the other classes of the mean cosine to their supports, and the mean of their unit embeddings."""
    vectors = []
    for label in {0, 1, 2} - {target}:
        members = [unit(embedding(image)) for image, one in zip(IMAGES, LABELS, strict=True) if one == label]
        vectors.append(torch.stack(members).mean(0))
    mean = torch.stack(vectors).mean(0)
    return float(unit(own) @ mean), mean


def test_pairs_of_all_supports_sum_to_the_plain_score_and_with_their_foil_to_the_score() -> None:
    why = both(SupportSet(IMAGES, LABELS), foil="others", batch_size=2)
    assert len(pairs_of(why, 0)) == LABELS.count(int(why.target[0]))
    for query in range(5):
        pairs = pairs_of(why, query)
        assert sum(pair.weight * pair.similarity for pair in pairs) == pytest.approx(float(why.plain_scores[query]))
        assert sum(pair.weight * pair.score for pair in pairs) == pytest.approx(float(why.target_scores[query]))
        total = sum((pair.weight * pair.query_map for pair in pairs), start=torch.zeros_like(pairs[0].query_map))
        torch.testing.assert_close(total, why.attributions[query, 0], **CLOSE)


def test_both_sides_of_a_pair_have_the_foil_of_the_query() -> None:
    why = both(SupportSet(IMAGES, LABELS, class_names=("wren", "jay", "crow")), foil="others")
    for query in range(5):
        target = int(why.target[query])
        own = embedding(QUERIES[query])
        for pair in pairs_of(why, query):
            partner = embedding(IMAGES[pair.row])
            foil, mean = mean_of_others(own, target)
            assert pair.score == pytest.approx(cosine(own, partner) - foil)
            map_, bias = side(QUERIES[query], (unit(partner) - mean) / own.norm())
            torch.testing.assert_close(pair.query_map, map_, **CLOSE)
            assert pair.query_shares is not None
            assert pair.query_shares["bias"] == pytest.approx(bias)
            foil, mean = mean_of_others(partner, target)
            assert pair.support_score == pytest.approx(cosine(own, partner) - foil)
            map_, _ = side(IMAGES[pair.row], (unit(own) - mean) / partner.norm())
            torch.testing.assert_close(pair.support_map, map_, **CLOSE)
            map_, _ = side(IMAGES[pair.row], unit(own) / partner.norm())
            torch.testing.assert_close(pair.plain_support_map, map_, **CLOSE)
            assert pair.label == ("wren", "jay", "crow")[target]
            assert pair.name == f"{pair.label}-{pair.row}"
            assert len(pair.matches) == 16


def test_the_first_supports_are_those_with_the_largest_part_in_the_score() -> None:
    why = both(SupportSet(IMAGES, LABELS), target=1, top=2)
    for query in range(5):
        similarities = {row: cosine(embedding(QUERIES[query]), embedding(IMAGES[row])) for row in (2, 3, 4)}
        expected = sorted(similarities, key=lambda row: -similarities[row])[:2]
        assert [pair.row for pair in pairs_of(why, query)] == expected
        assert [pair.weight for pair in pairs_of(why, query)] == pytest.approx([1 / 3, 1 / 3])


def test_the_runner_up_is_the_foil_of_both_sides() -> None:
    why = both(SupportSet(IMAGES, LABELS), foil="runner-up")
    for query in range(5):
        scores = {
            label: sum(
                cosine(embedding(QUERIES[query]), embedding(image))
                for image, one in zip(IMAGES, LABELS, strict=True)
                if one == label
            )
            / LABELS.count(label)
            for label in range(3)
        }
        best, second, _ = sorted(scores, key=lambda label: -scores[label])
        foil = [embedding(image) for image, one in zip(IMAGES, LABELS, strict=True) if one == second]
        for pair in pairs_of(why, query):
            assert LABELS[pair.row] == best
            own, partner = embedding(QUERIES[query]), embedding(IMAGES[pair.row])
            assert pair.score == pytest.approx(against_gallery(own, partner, foil)[0])
            assert pair.support_score == pytest.approx(against_gallery(partner, own, foil)[0])


@pytest.mark.parametrize("kind", ["support", "tensor", "set"])
def test_a_gallery_or_a_foil_of_ones_own_is_subtracted_on_both_sides(kind: str) -> None:
    given = pictures(4, seed=7)
    vectors = [embedding(image) for image in (IMAGES if kind == "support" else given)]
    kwargs: dict[str, Any] = {
        "support": {"foil": "gallery"},
        "tensor": {"foil": "gallery", "gallery": given},
        "set": {"foil": SupportSet(given)},
    }[kind]
    why = both(SupportSet(IMAGES, LABELS), **kwargs)
    for query in range(5):
        for pair in pairs_of(why, query):
            own, partner = embedding(QUERIES[query]), embedding(IMAGES[pair.row])
            score, classifier = against_gallery(own, partner, vectors)
            assert pair.score == pytest.approx(score)
            torch.testing.assert_close(pair.query_map, side(QUERIES[query], classifier)[0], **CLOSE)
            others = [one for row, one in enumerate(vectors) if kind != "support" or row != pair.row]
            score, classifier = against_gallery(partner, own, others)
            assert pair.support_score == pytest.approx(score)
            torch.testing.assert_close(pair.support_map, side(IMAGES[pair.row], classifier)[0], **CLOSE)


def test_a_threshold_and_the_identity_are_those_of_each_pair() -> None:
    for kwargs in ({"against": "threshold", "threshold": 0.3}, {"against": "identity"}):
        why = both(SupportSet(IMAGES, LABELS), **kwargs)
        for pair in pairs_of(why, 0):
            expected = pair.similarity - 0.3 if "threshold" in kwargs else 1 - pair.similarity
            assert (pair.score, pair.support_score) == pytest.approx((expected, expected))
            assert pair.support_shares is not None
            assert sum(pair.support_shares.values()) == pytest.approx(expected)


def test_fam_beside_has_pairs_of_its_own() -> None:
    why = both(SupportSet(IMAGES, LABELS), foil="others")
    (beside,) = why.beside
    for query in range(5):
        for pair, exact in zip(pairs_of(beside, query), pairs_of(why, query), strict=True):
            assert (pair.row, pair.score, pair.similarity) == (exact.row, exact.score, exact.similarity)
            assert pair.matches == ()
            support = SupportPerQuery(embedding(IMAGES[pair.row])[None, None])
            expected = LayerFAM(NET, "features").attribute(QUERIES[query : query + 1], support)
            assert isinstance(expected, Tensor)
            torch.testing.assert_close(pair.plain_query_map, expected[0, 0], **CLOSE)


def test_a_query_among_its_own_supports_is_no_pair_of_itself() -> None:
    with pytest.warns(UserWarning, match="among their own supports"):
        why = both(SupportSet(IMAGES, LABELS), IMAGES[:4], target=torch.tensor([0, 0, 1, 1]))
    rows = [[pair.row for pair in pairs_of(why, query)] for query in range(4)]
    assert rows[:2] == [[1], [0]]
    assert [sorted(one) for one in rows[2:]] == [[3, 4], [2, 4]]
    for query in range(4):
        plain = sum(pair.weight * pair.similarity for pair in pairs_of(why, query))
        assert plain == pytest.approx(float(why.plain_scores[query]))


def test_each_image_goes_through_the_model_once_more_for_the_pairs() -> None:
    counts: list[int] = []
    handle = NET.register_forward_pre_hook(lambda _, inputs: counts.append(len(inputs[0])))
    try:
        explain(MODEL, QUERIES, SupportSet(IMAGES, LABELS))
        without = sum(counts)
        counts.clear()
        why = both(SupportSet(IMAGES, LABELS))
    finally:
        handle.remove()
    assert why.pairs is not None
    used = {pair.row for pairs in why.pairs for pair in pairs}
    assert sum(counts) == without + 5 + len(used)


def test_supports_of_each_query_of_its_own_have_maps() -> None:
    images = torch.stack([pictures(2, seed=seed) for seed in range(10, 15)])
    why = both(SupportPerQuery(images))
    for query in range(5):
        for pair in pairs_of(why, query):
            own, partner = embedding(QUERIES[query]), embedding(images[query, pair.row])
            assert pair.similarity == pytest.approx(cosine(own, partner))
        assert sorted(pair.row for pair in pairs_of(why, query)) == [0, 1]


def test_hits_of_a_search_are_pairs_whatever_their_class(tmp_path: Path) -> None:
    files = write_pictures(tmp_path, [f"{name}.png" for name in "abcdef"])
    gallery = embeddings(files)
    queries = write_pictures(tmp_path, ["x.png", "y.png"], seed=20)
    order = cosines(embeddings(queries), gallery).argsort(1, descending=True)[:, :3]
    hits = Neighbors(
        [[*order[0].tolist()], [*order[1].tolist()[:2], -1]],
        embeddings=gallery,
        images=lambda one: files[one],
        labels=["wren", "jay"] * 3,
    )
    why = explain(MODEL, queries, hits, sides="both", foil=None)
    assert [len(pairs_of(why, query)) for query in (0, 1)] == [3, 2]
    for query in (0, 1):
        for rank, pair in enumerate(pairs_of(why, query)):
            one = int(order[query, rank])
            assert (pair.row, pair.name, pair.label) == (rank, str(one), ("wren", "jay")[one % 2])
            assert pair.similarity == pytest.approx(
                float(cosines(embeddings([queries[query]]), gallery[one : one + 1]))
            )
            assert pair.image is not None
    assert not any("similarity to their query" in note for note in why.notes)


def test_images_that_are_not_those_of_the_embeddings_are_noted() -> None:
    vectors = torch.stack([embedding(image) for image in IMAGES])
    hits = Neighbors([[0, 1]] * 5, embeddings=vectors, images=lambda one: IMAGES[5 - one])
    with pytest.warns(UserWarning, match=r"\d of 10 supports have another similarity"):
        why = both(hits)
    own, partner = embedding(QUERIES[0]), embedding(IMAGES[5])
    assert pairs_of(why, 0)[0].similarity == pytest.approx(cosine(own, partner))
    some = Neighbors([[0, 1]] * 5, embeddings=vectors, images=lambda one: None if one else IMAGES[0])
    with pytest.warns(UserWarning, match="5 supports have no image"):
        why = both(some)
    assert [pair.row for pair in pairs_of(why, 3)] == [0]


def test_without_matches_the_maps_and_accounts_of_both_sides_stay() -> None:
    expected, why = (both(SupportSet(IMAGES, LABELS), foil="others", top_matches=count) for count in (3, 0))
    assert (expected.about["top_matches"], why.about["top_matches"]) == (3, 0)
    assert len(pairs_of(expected, 0)[0].matches) == 3
    for one, other in zip((why, *why.beside), (expected, *expected.beside), strict=True):
        for query in range(5):
            for pair, known in zip(pairs_of(one, query), pairs_of(other, query), strict=True):
                assert (pair.row, pair.matches, pair.decomposition) == (known.row, (), None)
                for name in ("query_map", "support_map", "plain_query_map", "plain_support_map"):
                    torch.testing.assert_close(getattr(pair, name), getattr(known, name), **CLOSE)
                assert (pair.query_shares is None) == (one is not why)
                if known.query_shares is not None:
                    assert pair.query_shares == pytest.approx(known.query_shares, abs=1e-12)
                    assert pair.support_coverage == pytest.approx(known.support_coverage)


@pytest.mark.parametrize("count", [-1, 2.0, True])
def test_the_number_of_matches_is_checked(count: Any) -> None:
    with pytest.raises(ValueError, match=f"top_matches must be a whole number of at least 0, got {count}"):
        both(SupportSet(IMAGES, LABELS), top_matches=count)


def test_the_picture_of_a_hit_is_read_once_for_all_methods(tmp_path: Path) -> None:
    files = write_pictures(tmp_path, ["a.png", "b.png", "c.png"])
    read: list[int] = []

    def image(one: int) -> Path:
        read.append(one)
        return Path(files[one])

    hits = Neighbors([[0, 1], [2, 1]], embeddings=embeddings(files), images=image)
    both(hits, QUERIES[:2], method=["similarity-cam", "fam", "grad-cam"])
    # Once as an input of the model and once for display, whatever the number of methods.
    assert sorted(read) == sorted([0, 1, 2, 1] * 2)


@pytest.mark.parametrize("is_seen", [True, False])
def test_a_bar_counts_the_images_of_pairs_where_somebody_looks(is_seen: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    bars: list[Any] = []

    class Bar(_progress.tqdm):  # type: ignore[misc]
        def __init__(self, **options: Any) -> None:
            super().__init__(**options, file=io.StringIO())
            bars.append(self)

    monkeypatch.setattr(_progress, "tqdm", Bar)
    monkeypatch.setattr(_progress, "shows_bars", lambda: is_seen)
    why = both(SupportSet(IMAGES, LABELS), method=["similarity-cam", "fam", "grad-cam"], batch_size=2)
    (bar,) = bars
    n_pairs = sum(map(len, why.pairs or ()))
    n_images = 5 + len({pair.row for query in range(5) for pair in pairs_of(why, query)})
    # Methods of Captum run the model again for each side of each pair.
    assert bar.total == n_images + 2 * n_pairs
    assert bar.n == (bar.total if is_seen else 0)


def test_pictures_by_class_have_maps_and_are_shown(tmp_path: Path) -> None:
    files = write_pictures(tmp_path, ["wren/a.png", "wren/b.png", "jay/c.png"])
    (query,) = write_pictures(tmp_path, ["query.png"], seed=9)
    why = explain(MODEL, query, tmp_path / "wren", sides="both")
    similarities = cosines(embeddings([query]), embeddings(files[:2]))[0]
    assert [pair.row for pair in pairs_of(why, 0)] == similarities.argsort(descending=True).tolist()
    for pair in pairs_of(why, 0):
        assert pair.similarity == pytest.approx(float(similarities[pair.row]), rel=1e-5)
        assert pair.image.size[0] <= 224  # type: ignore[union-attr]


def test_positions_are_compared_in_the_two_images_without_the_contrast() -> None:
    contrasted = both(SupportSet(IMAGES, LABELS), method="correspondence", foil="others")
    plain = both(SupportSet(IMAGES, LABELS), method="correspondence")
    for query in range(5):
        for pair, expected in zip(pairs_of(contrasted, query), pairs_of(plain, query), strict=True):
            assert torch.equal(pair.query_map, expected.query_map)
            assert torch.equal(pair.support_map, expected.support_map)
            assert pair.score != pair.similarity


@pytest.mark.parametrize("method", ["grad-cam", "correspondence"])
def test_other_methods_explain_the_supports_too(method: str) -> None:
    why = both(SupportSet(IMAGES, LABELS), method=method)
    pair = pairs_of(why, 2)[0]
    scores = SimilarityToSupport(MODEL.model, SupportSet(QUERIES[2:3]))
    made = get_method(method).create(scores, NET.features).attribute(IMAGES[pair.row][None], target=0)
    torch.testing.assert_close(pair.support_map, made[0, 0], **CLOSE)


@pytest.mark.parametrize(
    ("support", "message"),
    [
        (SupportSet(torch.randn(4, 5, dtype=torch.float64)), "SupportSet has none; pass a support of images"),
        (MemoryBank(torch.randn(4, 5, dtype=torch.float64), [0, 1, 0, 1]), "MemoryBank has none; pass a SupportSet"),
        (Neighbors([[0]] * 5, embeddings=torch.randn(4, 5, dtype=torch.float64)), r"pass Neighbors\(images="),
    ],
)
def test_supports_without_images_are_refused(support: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        both(support)


def test_prototypes_and_lists_of_layers_are_refused() -> None:
    with pytest.raises(ValueError, match="a prototype is none"):
        both(SupportSet(IMAGES, LABELS), aggregate="prototype")
    with pytest.raises(ValueError, match="pairs are explained at one layer"):
        both(SupportSet(IMAGES, LABELS), layer=["features", "features.0"])
