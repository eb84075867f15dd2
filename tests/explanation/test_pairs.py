"""Pairs of images: the maps of both sides, their accounts, and what they are contrasted with."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import VisionTransformer

from captum_fam import LayerCorrespondence, LayerFAM, MemoryBank, SimilarityToSupport, SupportPerQuery, SupportSet
from captum_fam.attr import get_method
from captum_fam.explanation import Explanation
from captum_fam.explanation.pairs.one_call_for_pairs import explain_pairs
from captum_fam.support import Gallery
from tests.explanation.pair_by_hand import (
    MODEL,
    NET,
    against_gallery,
    cosine,
    embedding,
    pictures,
    side,
    unit,
    vectors,
)

pytestmark = pytest.mark.filterwarnings("ignore:the map", "ignore:more than half of a map")

LEFT, RIGHT = pictures(6, seed=1), pictures(6, 9, 13, seed=2)
CLOSE = {"rtol": 1e-10, "atol": 1e-12}


@pytest.fixture(scope="module")
def default() -> Explanation:
    return explain_pairs(MODEL, LEFT, RIGHT, batch_size=5)


def others(number: int) -> list[Tensor]:
    """The embeddings of all images of the call but the two of a pair."""
    left, right = ([*map(embedding, part)] for part in (LEFT, RIGHT))
    return [one for part in (left, right) for index, one in enumerate(part) if index != number]


def test_a_pair_explains_its_cosine_less_the_mean_cosine_of_each_image_to_all_other_images(
    default: Explanation,
) -> None:
    for number, (pair,) in enumerate(default.pairs or ()):
        left, right = embedding(LEFT[number]), embedding(RIGHT[number])
        assert len(others(number)) == 10
        score, classifier = against_gallery(left, right, others(number))
        support_score, support_classifier = against_gallery(right, left, others(number))
        assert pair.similarity == pytest.approx(cosine(left, right), rel=1e-12)
        assert pair.score == pytest.approx(score, rel=1e-9, abs=1e-13)
        assert pair.support_score == pytest.approx(support_score, rel=1e-9, abs=1e-13)
        map_, bias = side(LEFT[number], classifier)
        torch.testing.assert_close(pair.query_map, map_, **CLOSE)
        assert pair.query_shares is not None
        assert pair.support_shares is not None
        assert pair.query_shares["bias"] == pytest.approx(bias, rel=1e-9, abs=1e-13)
        support_map, support_bias = side(RIGHT[number], support_classifier)
        torch.testing.assert_close(pair.support_map, support_map, **CLOSE)
        assert pair.support_shares["bias"] == pytest.approx(support_bias, rel=1e-9, abs=1e-13)
        assert pair.query_map.shape != pair.support_map.shape


def test_the_plain_maps_explain_the_cosine_itself(default: Explanation) -> None:
    for number, (pair,) in enumerate(default.pairs or ()):
        left, right = embedding(LEFT[number]), embedding(RIGHT[number])
        map_, _ = side(LEFT[number], unit(right) / left.norm())
        support_map, _ = side(RIGHT[number], unit(left) / right.norm())
        torch.testing.assert_close(pair.plain_query_map, map_, **CLOSE)
        torch.testing.assert_close(pair.plain_support_map, support_map, **CLOSE)


def test_shares_sum_to_the_score_of_their_side_and_the_map_is_the_first_of_them(default: Explanation) -> None:
    for (pair,) in default.pairs or ():
        sides = (
            (pair.query_map, pair.query_shares, pair.query_coverage, pair.score),
            (pair.support_map, pair.support_shares, pair.support_coverage, pair.support_score),
        )
        for map_, shares, coverage, score in sides:
            assert shares is not None
            assert next(iter(shares)) == "map"
            assert list(shares)[-1] == "rest"
            assert sum(shares.values()) == pytest.approx(score, abs=1e-14)
            assert shares["map"] == pytest.approx(float(map_.sum()), abs=1e-14)
            assert abs(shares["rest"]) < 1e-13
            assert coverage == pytest.approx(float(map_.sum()) / score, rel=1e-9)


def test_the_explanation_has_one_query_per_pair_with_the_maps_of_the_left_images(default: Explanation) -> None:
    assert len(default) == 6
    assert default.names[4] == "left-4 - right-4"
    assert default.maps.shape == (6, 1, 11, 8)
    assert default.class_names == ("support",)
    for number, (pair,) in enumerate(default.pairs or ()):
        assert torch.equal(default.attributions[number, 0], pair.query_map)
        assert float(default.target_scores[number]) == pair.score
        assert float(default.plain_scores[number]) == pair.similarity
        assert default.coverage is not None
        assert float(default.coverage[number]) == pair.query_coverage
        assert default.supports_of(number)[0].similarity == pair.similarity
        assert pair.name == f"right-{number}"
        assert pair.weight == 1
        assert pair.row == 0
    assert repr(default) == "Explanation(6 queries, similarity-cam, beside: fam, layer 'features', foil gallery)"
    assert (default.about["foil"], default.about["similarity"]) == ("gallery", "Cosine()")


def test_the_share_of_two_positions_is_the_product_of_what_they_give_to_the_two_embeddings(
    default: Explanation,
) -> None:
    (pair,) = (default.pairs or ())[2]
    left, right = vectors(LEFT[2]), vectors(RIGHT[2])
    scale = 1 / float(embedding(LEFT[2]).norm() * embedding(RIGHT[2]).norm())
    cells = [product(*(range(size) for size in own.shape[:2])) for own in (left, right)]
    expected = {
        (query, support): float(left[query] @ right[support]) * scale for query, support in product(*map(list, cells))
    }
    assert len(pair.matches) == 16
    assert pair.decomposition is not None
    assert [match.share for match in pair.matches] == pytest.approx(sorted(expected.values(), reverse=True)[:16])
    for match in pair.matches:
        assert match.share == pytest.approx(expected[match.query, match.support])
        best_of_query = max(expected[match.query, support] for _, support in expected)
        best_of_support = max(expected[query, match.support] for query, _ in expected)
        assert match.mutual == (match.share == pytest.approx(best_of_query) == best_of_support)
    matrix = pair.decomposition.matrix()
    assert matrix.shape == (pair.query_map.numel(), pair.support_map.numel())
    assert float(matrix.max()) == pair.matches[0].share


def test_without_matches_the_maps_and_accounts_are_the_same(default: Explanation) -> None:
    why = explain_pairs(MODEL, LEFT, RIGHT, top_matches=0)
    for (pair,), (expected,) in zip(why.pairs or (), default.pairs or (), strict=True):
        assert pair.matches == ()
        assert pair.decomposition is None
        for name in ("query_map", "support_map", "plain_query_map", "plain_support_map"):
            torch.testing.assert_close(getattr(pair, name), getattr(expected, name), **CLOSE)
        assert pair.query_coverage == pytest.approx(expected.query_coverage)
        assert pair.support_shares == pytest.approx(expected.support_shares, abs=1e-12)


def test_the_cosine_of_a_match_is_that_of_the_correspondence_at_these_positions(default: Explanation) -> None:
    (pair,) = (default.pairs or ())[1]
    best = LayerCorrespondence(NET, "features").match(LEFT[1:2], SupportSet(RIGHT[1:2]))
    assert pair.decomposition is not None
    found = pair.decomposition.top_matches(pair.query_map.numel() * pair.support_map.numel())
    by_cells = {(match.query, match.support): match.cosine for match in found}
    for row, column in product(*map(range, pair.query_map.shape)):
        partner = tuple(best.position[0, row, column, 0].tolist())
        expected = float(best.cosine[0, row, column, 0])
        assert by_cells[(row, column), partner] == pytest.approx(expected, abs=1e-12)


def test_fam_beside_is_the_map_of_fam_for_a_support_of_one_image(default: Explanation) -> None:
    (beside,) = default.beside
    assert beside.method == "fam"
    assert beside.coverage is None
    for number, (pair,) in enumerate(beside.pairs or ()):
        for own, partner, plain, contrasted in (
            (LEFT[number], RIGHT[number], pair.plain_query_map, pair.query_map),
            (RIGHT[number], LEFT[number], pair.plain_support_map, pair.support_map),
        ):
            support = SupportPerQuery(embedding(partner)[None, None])
            expected = LayerFAM(NET, "features").attribute(own[None], support)
            assert isinstance(expected, Tensor)
            torch.testing.assert_close(plain, expected[0, 0], **CLOSE)
            scores = SimilarityToSupport(NET, support, foil="gallery", gallery=torch.stack(others(number)))
            expected = LayerFAM(scores, "features").attribute(own[None])
            assert isinstance(expected, Tensor)
            torch.testing.assert_close(contrasted, expected[0, 0], **CLOSE)
        assert pair.matches == ()
        assert pair.decomposition is None
        assert pair.query_coverage is None
        assert pair.score == (default.pairs or ())[number][0].score


def test_a_threshold_is_laid_on_the_embedding_of_the_image_itself() -> None:
    why = explain_pairs(MODEL, LEFT[:3], RIGHT[:3], against="threshold", threshold=0.4)
    for number, (pair,) in enumerate(why.pairs or ()):
        left, right = embedding(LEFT[number]), embedding(RIGHT[number])
        expected = cosine(left, right) - 0.4
        assert (pair.score, pair.support_score) == pytest.approx((expected, expected))
        map_, bias = side(LEFT[number], unit(right) / left.norm() - 0.4 * left / left.square().sum())
        torch.testing.assert_close(pair.query_map, map_, **CLOSE)
        assert float(pair.query_map.sum()) + bias == pytest.approx(expected)
        support_map, bias = side(RIGHT[number], unit(left) / right.norm() - 0.4 * right / right.square().sum())
        torch.testing.assert_close(pair.support_map, support_map, **CLOSE)
        assert float(pair.support_map.sum()) + bias == pytest.approx(expected)
    assert why.contrast == "threshold 0.4"
    assert not any("foil" in note for note in why.notes)


def test_against_identity_a_pair_explains_what_is_missing_to_one() -> None:
    why = explain_pairs(MODEL, LEFT[:3], RIGHT[:3], against="identity")
    for number, (pair,) in enumerate(why.pairs or ()):
        left, right = embedding(LEFT[number]), embedding(RIGHT[number])
        expected = 1 - cosine(left, right)
        assert (pair.score, pair.support_score) == pytest.approx((expected, expected))
        map_, bias = side(LEFT[number], left / left.square().sum() - unit(right) / left.norm())
        torch.testing.assert_close(pair.query_map, map_, **CLOSE)
        assert float(pair.query_map.sum()) + bias == pytest.approx(expected)


@pytest.mark.parametrize("kind", ["images", "embeddings", "mean", "bank", "gallery"])
def test_a_gallery_of_ones_own_is_the_foil_of_every_pair(kind: str) -> None:
    images = pictures(4, seed=7)
    embeddings = torch.stack([embedding(image) for image in images])
    gallery = {
        "images": images,
        "embeddings": embeddings,
        "mean": torch.stack([unit(one) for one in embeddings]).mean(0),
        "bank": MemoryBank(embeddings, [0, 0, 1, 1]),
        "gallery": Gallery(embeddings),
    }[kind]
    why = explain_pairs(MODEL, LEFT[:2], RIGHT[:2], gallery=gallery)
    for number, (pair,) in enumerate(why.pairs or ()):
        left, right = embedding(LEFT[number]), embedding(RIGHT[number])
        score, classifier = against_gallery(left, right, list(embeddings))
        assert pair.score == pytest.approx(score)
        torch.testing.assert_close(pair.query_map, side(LEFT[number], classifier)[0], **CLOSE)
        support_score, classifier = against_gallery(right, left, list(embeddings))
        assert pair.support_score == pytest.approx(support_score)
        torch.testing.assert_close(pair.support_map, side(RIGHT[number], classifier)[0], **CLOSE)
    assert why.about["foil"] == "gallery"
    assert not any("foil" in note for note in why.notes)


def test_the_images_of_a_pair_are_not_in_its_gallery() -> None:
    images = torch.cat([pictures(3, seed=7), LEFT[:2]])
    why = explain_pairs(MODEL, LEFT[:3], RIGHT[:3], gallery=images)
    for number, (pair,) in enumerate(why.pairs or ()):
        rows = [row for row in range(5) if row != 3 + number]
        left, right = embedding(LEFT[number]), embedding(RIGHT[number])
        score, _ = against_gallery(left, right, [embedding(images[row]) for row in rows])
        assert pair.score == pytest.approx(score)


def test_a_foil_of_embeddings_is_subtracted_on_both_sides() -> None:
    foil = torch.randn(3, 5, dtype=torch.float64)
    why = explain_pairs(MODEL, LEFT[:2], RIGHT[:2], foil=foil)
    for number, (pair,) in enumerate(why.pairs or ()):
        left, right = embedding(LEFT[number]), embedding(RIGHT[number])
        for own, other, score in ((left, right, pair.score), (right, left, pair.support_score)):
            expected = cosine(own, other) - sum(cosine(own, one) for one in foil) / 3
            assert score == pytest.approx(expected)
    assert why.about["foil"] == "3 supports"


def test_few_other_images_are_no_gallery_and_a_note_says_so() -> None:
    with pytest.warns(UserWarning, match="no foil: the call has 6 other images for a gallery, fewer than 8"):
        why = explain_pairs(MODEL, LEFT[:4], RIGHT[:4])
    (pair,) = (why.pairs or ())[0]
    assert pair.score == pair.similarity
    assert torch.equal(pair.query_map, pair.plain_query_map)
    assert why.about["foil"] is None
    assert "no foil" in why.notes[0]
    notes = explain_pairs(MODEL, LEFT[:4], RIGHT[:4], foil=None).notes
    assert not any("foil" in note for note in notes)


@pytest.mark.parametrize("similarity", ["dot", "euclidean", "squared-euclidean"])
def test_sides_sum_to_their_scores_for_other_similarities(similarity: str) -> None:
    why = explain_pairs(MODEL, LEFT, RIGHT, similarity=similarity)
    for number, (pair,) in enumerate(why.pairs or ()):
        left, right = embedding(LEFT[number]), embedding(RIGHT[number])
        measure = {
            "dot": lambda one, other: float(one @ other),
            "euclidean": lambda one, other: -float((one - other).norm()),
            "squared-euclidean": lambda one, other: -float((one - other).square().sum()),
        }[similarity]
        for own, other, map_, shares, score in (
            (left, right, pair.query_map, pair.query_shares, pair.score),
            (right, left, pair.support_map, pair.support_shares, pair.support_score),
        ):
            expected = measure(own, other) - sum(measure(own, one) for one in others(number)) / 10
            assert score == pytest.approx(expected)
            assert shares is not None
            assert sum(shares.values()) == pytest.approx(expected)
            assert shares["map"] == pytest.approx(float(map_.sum()))
            assert abs(shares["rest"]) < 1e-12


def test_a_similarity_without_linear_weights_is_explained_by_fam_alone() -> None:
    from captum_fam.similarity import EuclideanDifference

    with pytest.warns(UserWarning, match="fam explains alone"):
        why = explain_pairs(MODEL, LEFT, RIGHT, similarity=EuclideanDifference(), foil=None)
    assert why.method == "fam"
    assert why.beside == ()
    (pair,) = (why.pairs or ())[0]
    assert pair.similarity == pytest.approx(-float((embedding(LEFT[0]) - embedding(RIGHT[0])).norm()))
    assert pair.matches == ()


def test_a_vision_transformer_is_explained_on_both_sides_in_full() -> None:
    torch.manual_seed(0)
    net = VisionTransformer(32, 8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32).double().eval()
    net.heads = nn.Identity()  # type: ignore[assignment]
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.3)
    images = torch.randn(6, 3, 32, 32, dtype=torch.float64)
    why = explain_pairs(net, images[:3], images[3:], layer="encoder.layers.encoder_layer_0", foil=images[:2])
    for (pair,) in why.pairs or ():
        assert pair.query_map.shape == (4, 4)
        assert pair.query_shares is not None
        assert pair.support_shares is not None
        assert "class token" in pair.query_shares
        assert sum(pair.query_shares.values()) == pytest.approx(pair.score, abs=1e-12)
        assert sum(pair.support_shares.values()) == pytest.approx(pair.support_score, abs=1e-12)
        assert abs(pair.query_shares["rest"]) < 1e-10
        assert abs(pair.support_shares["rest"]) < 1e-10
        assert pair.decomposition is not None
        assert pair.decomposition.score == pytest.approx(pair.similarity, abs=1e-12)
        torch.testing.assert_close(pair.decomposition.query_map, pair.plain_query_map, **CLOSE)
        torch.testing.assert_close(pair.decomposition.support_map, pair.plain_support_map, **CLOSE)


@pytest.mark.parametrize("method", ["grad-cam", "shapley", "mean-activation", "correspondence"])
def test_other_methods_explain_each_side_as_they_explain_a_query(method: str) -> None:
    why = explain_pairs(MODEL, LEFT[:3], RIGHT[:3], method=method, foil=None, batch_size=2)
    for number, (pair,) in enumerate(why.pairs or ()):
        for own, partner, found in (
            (LEFT[number], RIGHT[number], pair.query_map),
            (RIGHT[number], LEFT[number], pair.support_map),
        ):
            scores = SimilarityToSupport(NET, SupportSet(partner[None]))
            made = get_method(method).create(scores, NET.features).attribute(own[None], target=0)
            torch.testing.assert_close(found, made.sum(1)[0], rtol=1e-8, atol=1e-10)


def test_grad_cam_follows_the_gallery_too() -> None:
    why = explain_pairs(MODEL, LEFT, RIGHT, method="grad-cam")
    (pair,) = (why.pairs or ())[0]
    scores = SimilarityToSupport(
        NET, SupportPerQuery(embedding(RIGHT[0])[None, None]), foil="gallery", gallery=torch.stack(others(0))
    )
    made = get_method("grad-cam").create(scores, NET.features).attribute(LEFT[:1], target=0)
    torch.testing.assert_close(pair.query_map, made[0, 0], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"foil": "others"}, "a pair has no other classes"),
        ({"against": "threshold"}, 'against="threshold" needs threshold='),
        ({"threshold": 0.3}, 'threshold= needs against="threshold"'),
        ({"against": "identity", "gallery": RIGHT}, "exclude each other"),
        ({"foil": None, "gallery": RIGHT}, 'gallery= needs foil="gallery"'),
        ({"layer": ["features", "head"], "method": "similarity-cam"}, "pairs are explained at one layer"),
        ({"method": "correspondence", "gallery": RIGHT}, "pass foil=None"),
        ({"top_matches": -1}, "top_matches must be a whole number of at least 0"),
        ({"gallery": torch.randn(9, 4, dtype=torch.float64)}, "gallery embeds to 4 features but the query to 5"),
    ],
)
def test_arguments_that_do_not_fit_are_named(kwargs: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        explain_pairs(MODEL, LEFT, RIGHT, **kwargs)  # type: ignore[arg-type]


def test_an_argument_that_no_method_takes_is_named() -> None:
    with pytest.raises(TypeError, match="'windows'"):
        explain_pairs(MODEL, LEFT, RIGHT, windows=3)


def test_a_map_that_explains_less_than_half_of_its_score_is_noted() -> None:
    torch.manual_seed(0)
    net = VisionTransformer(32, 8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32).double().eval()
    net.heads = nn.Identity()  # type: ignore[assignment]
    images = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    # Behind the last block the embedding depends on the class token only.
    with pytest.warns(UserWarning, match=r"the map of the (left|right) image of .* explains 0 % of the score; class"):
        why = explain_pairs(
            net, images[:2], images[2:], layer="encoder.layers.encoder_layer_1", foil=None, method="similarity-cam"
        )
    assert any("explains 0 %" in note for note in why.notes)
