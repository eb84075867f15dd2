"""Hits of search engines as supports: what is fetched, what is shown, and what the engine's scores say."""

from __future__ import annotations

import uuid
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from captum_fam import LayerSimilarityCAM, SimilarityToSupport
from captum_fam.similarity import get_similarity
from captum_fam.support import Neighbors

GALLERY = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 2.0], [-3.0, 4.0]])
QUERY = torch.tensor([[1.0, 0.0], [0.0, 5.0]])
IDS = [[0, 1, 2], [2, 1, -1]]
COSINES = [[1.0, 0.6, 0.0], [1.0, 0.8, None]]


def unit_vectors(count: int, features: int, seed: int) -> Tensor:
    return nn.functional.normalize(torch.randn(count, features, generator=torch.Generator().manual_seed(seed)))


def warnings_of(hits: Neighbors, query: Tensor, similarity: str = "cosine") -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        hits.compare(query, None, get_similarity(similarity))
    return [str(one.message) for one in caught]


# What is fetched


@pytest.mark.parametrize(
    "name_of", [lambda row: row, lambda row: f"doc-{row}", lambda row: uuid.UUID(int=row), lambda row: ("part", row)]
)
def test_each_different_id_is_fetched_once(name_of: Callable[[int], Any]) -> None:
    rows = {name_of(row): row for row in range(4)}
    asked: list[Any] = []

    def fetch(ids: Any) -> Any:
        asked.append(ids)
        names = ids.tolist() if isinstance(ids, Tensor) else ids
        return GALLERY[[rows[one] for one in names]].numpy()

    ids = [[name_of(0), name_of(1), name_of(2)], [name_of(2), name_of(1), None]]
    hits = Neighbors(ids, fetch=fetch)
    assert len(asked) == 1
    assert isinstance(asked[0], Tensor if name_of(0) == 0 else list)
    assert len(asked[0]) == 3
    similarities = hits.compare(QUERY).similarities
    torch.testing.assert_close(similarities[0], torch.tensor([1.0, 0.6, 0.0]))
    torch.testing.assert_close(similarities[1, :2], torch.tensor([1.0, 0.8]))
    assert hits.compare(QUERY).scores[:, 0].tolist() == pytest.approx([1.6 / 3, 0.9])


def test_a_mapping_may_come_in_any_order() -> None:
    hits = Neighbors([["c", "a"]], fetch=lambda ids: {"a": GALLERY[0], "b": GALLERY[1], "c": GALLERY[2]})
    assert hits.inputs.tolist() == [[[0, 2], [1, 0]]]


def test_numbers_beyond_64_bits_are_fetched_as_a_list() -> None:
    asked: list[Any] = []
    Neighbors([[2**64 - 1, 3]], fetch=lambda ids: asked.append(ids) or GALLERY[:2])
    assert asked == [[2**64 - 1, 3]]


@pytest.mark.parametrize("gallery", [GALLERY, GALLERY.numpy(), GALLERY.double().numpy()])
def test_positions_in_a_gallery(gallery: Any) -> None:
    hits = Neighbors(np.array(IDS), embeddings=gallery)
    assert hits.inputs[0].tolist() == np.asarray(gallery)[[0, 1, 2]].tolist()
    assert hits.is_support is not None
    assert hits.is_support.tolist() == [[True] * 3, [True, True, False]]
    torch.testing.assert_close(hits.compare(QUERY.to(hits.inputs)).scores[:, 0].float(), torch.tensor([1.6 / 3, 0.9]))


@pytest.mark.parametrize(
    ("labels", "class_names", "names"),
    [
        (["jay", "tit", "jay", "owl"], None, ("jay", "owl", "tit")),
        (np.array([30, 10**9, 30, 40], dtype=np.uint32), None, ("30", "40", "1000000000")),
        ([["jay", "tit", "jay"], ["jay", "tit", None]], None, ("jay", "tit")),
        ({0: "jay", 1: "tit", 2: "jay"}, None, ("jay", "tit")),
        ([1, 0, 1, 2], ["tit", "jay", "owl"], ("tit", "jay", "owl")),
    ],
)
def test_labels_of_the_gallery_of_the_hits_or_by_id(labels: Any, class_names: Any, names: tuple[str, ...]) -> None:
    for source in ({"embeddings": GALLERY}, {"fetch": lambda ids: GALLERY[ids]}):
        hits = Neighbors(IDS, labels=labels, class_names=class_names, **source)  # type: ignore[arg-type]
        assert hits.class_names == names
        scores = hits.compare(QUERY).scores
        two = [names.index("jay") if "jay" in names else 0, names.index("tit") if "tit" in names else 2]
        torch.testing.assert_close(scores[:, two], torch.tensor([[0.5, 0.6], [1.0, 0.8]]))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, ValueError, "either embeddings.*or fetch"),
        ({"embeddings": GALLERY, "fetch": lambda ids: GALLERY}, ValueError, "either embeddings.*or fetch"),
        ({"fetch": GALLERY}, TypeError, "fetch must be a function.*Tensor"),
        ({"embeddings": GALLERY, "images": ["a.png"]}, TypeError, "images must be a function.*list"),
        ({"embeddings": GALLERY.tolist()}, TypeError, "embeddings must be a tensor.*list"),
        ({"embeddings": GALLERY[0]}, ValueError, r"embeddings .*\(2,\)"),
        ({"embeddings": GALLERY[:2]}, ValueError, r"ids must be -1 or positions .*0\.\.1, got 2"),
        ({"embeddings": GALLERY, "labels": [0, 1]}, ValueError, "labels: its 2 entries have none for the id 2"),
        ({"embeddings": GALLERY, "labels": {0: 1, 1: 1}}, ValueError, "labels has no class for 1 ids, such as 2"),
        ({"embeddings": GALLERY, "labels": torch.zeros(4)}, TypeError, "labels .*float32"),
        ({"embeddings": GALLERY, "scores": GALLERY}, ValueError, "scores .*embeddings="),
    ],
)
def test_what_does_not_fit_is_named(options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Neighbors(IDS, **options)


def test_texts_are_no_positions() -> None:
    with pytest.raises(TypeError, match=r"ids must be positions.*a1.*fetch"):
        Neighbors([["a1"]], embeddings=GALLERY)


# What is shown


def test_parts_of_a_batch_keep_ids_scores_and_images() -> None:
    hits = Neighbors(IDS, COSINES, GALLERY, images=lambda one: f"{one}.png", labels=["jay", "tit", "owl", "owl"])
    part = hits.for_queries(1, 2)
    assert part.ids == ((2, 1, None),)
    assert part.image(0, 1) == "1.png"
    assert part.image(0, 2) is None
    assert hits.image(0, 2) == "2.png"
    assert part.class_names == hits.class_names
    torch.testing.assert_close(part.compare(QUERY[1:]).scores, hits.compare(QUERY).scores[1:])
    assert part.scores is not None
    assert part.scores[0, :2].tolist() == [1.0, 0.8]


def test_without_images_there_is_none_to_show() -> None:
    with pytest.raises(ValueError, match="images is missing"):
        Neighbors(IDS, embeddings=GALLERY).image(0, 0)


def test_the_query_itself_is_left_out() -> None:
    hits = Neighbors(IDS, COSINES, GALLERY).without([0, None])
    assert hits.ids == ((None, 1, 2), (2, 1, None))
    assert hits.compare(QUERY).scores[:, 0].tolist() == pytest.approx([0.3, 0.9])
    assert hits.score_gap(QUERY).isnan().tolist() == [[True, False, False], [False, False, True]]
    with pytest.raises(ValueError, match="query 1 has no hit"):
        Neighbors([[0, 1], [2, -1]], embeddings=GALLERY).without([0, 2])
    with pytest.raises(ValueError, match=r"own_ids .*1 for 2"):
        hits.without([0])


def test_methods_explain_the_recomputed_score(net: nn.Module, make_images: Callable[..., Tensor]) -> None:
    images = make_images(3, seed=1)
    gallery = net(make_images(4, seed=2)).detach()
    hits = Neighbors(IDS, [[9.0, 9.0, 9.0], [9.0, 9.0, None]], gallery)
    with pytest.warns(UserWarning, match="scores: 5 of 5 differ"):
        details = LayerSimilarityCAM(net, net.features).details(images[:2], support=hits)
    expected = torch.stack(
        [
            nn.functional.cosine_similarity(net(images[b : b + 1]), gallery[rows]).mean()
            for b, rows in enumerate([[0, 1, 2], [2, 1]])
        ]
    )
    torch.testing.assert_close(details.comparison.score, expected.detach().to(details.comparison.score))


# What the engine's scores say


def test_scores_that_agree_have_no_gap_and_no_warning() -> None:
    hits = Neighbors(IDS, COSINES, GALLERY)
    assert warnings_of(hits, QUERY) == []
    gap = hits.score_gap(QUERY)
    assert gap.shape == (2, 3)
    assert gap[1, 2].isnan()
    assert gap.nan_to_num(0).abs().max() < 1e-6
    dots = Neighbors(IDS, [[1.0, 0.6, 0.0], [10.0, 4.0, None]], GALLERY)
    assert warnings_of(dots, QUERY, "dot") == []
    assert dots.score_gap(QUERY)[1, 0] == pytest.approx(9)
    assert dots.score_gap(QUERY, "dot").nan_to_num(0).abs().max() < 1e-6


def test_a_gap_names_query_rank_id_and_both_numbers_once() -> None:
    scores = [[1.0, 0.6, 0.0], [1.0, 0.5, None]]
    hits = Neighbors(IDS, scores, GALLERY)
    (text,) = warnings_of(hits, QUERY)
    assert "1 of 5 differ" in text
    assert "query 1, rank 1, id 1: 0.5 by the engine, 0.8 by Cosine()" in text
    assert "quantized" in text
    assert "have changed since they were indexed" in text
    assert "order" not in text
    assert warnings_of(hits, QUERY) == []
    assert hits.score_gap(QUERY)[1, 1] == pytest.approx(-0.3)


def test_the_number_of_a_query_is_that_of_the_whole_batch_and_parts_warn_once() -> None:
    hits = Neighbors([[0], [0], [0]], [[1.0], [0.5], [0.4]], GALLERY)
    texts = [warnings_of(hits.for_queries(i, i + 1), QUERY[:1]) for i in range(3)]
    assert [len(part) for part in texts] == [0, 1, 0]
    assert "query 1, rank 0" in texts[1][0]


def test_another_order_is_said() -> None:
    (text,) = warnings_of(Neighbors([[1, 0, 2], [2, 1, 3]], [[0.9, 0.8, 0.0], [1.0, 0.8, 0.8]], GALLERY), QUERY)
    assert "the hits of 1 of 2 queries in another order" in text


@pytest.mark.parametrize(
    ("convert", "similarity", "cause"),
    [
        (lambda c, q, g: 1 - c, "cosine", "cosine distances: pass scores=1 - distances."),
        (lambda c, q, g: (1 + c) / 2, "cosine", r"(1 + cosine) / 2: pass scores=2 * scores - 1."),
        (
            lambda c, q, g: (q[:, None] * g).sum(2),
            "cosine",
            'those of similarity="dot", but the comparison uses Cosine()',
        ),
        (lambda c, q, g: c, "dot", 'those of similarity="cosine", but the comparison uses Dot()'),
        (lambda c, q, g: (q[:, None] - g).norm(dim=2), "euclidean", "distances (euclidean): pass scores=-distances."),
        (
            lambda c, q, g: (q[:, None] - g).square().sum(2),
            "cosine",
            "distances (squared-euclidean): pass scores=-distances, but the comparison uses Cosine()",
        ),
        (
            lambda c, q, g: -(q[:, None] - g).square().sum(2),
            "euclidean",
            'those of similarity="squared-euclidean", but the comparison uses Euclidean(squared=False)',
        ),
        (lambda c, q, g: -(q[:, None] * g).sum(2), "dot", "distances (dot): pass scores=-distances."),
        (lambda c, q, g: 1 - (q[:, None] * g).sum(2), "dot", "1 - dot: pass scores=1 - distances."),
        (lambda c, q, g: (1 - c).sqrt() * 3, "cosine", "ascend, as distances do"),
    ],
)
def test_the_cause_of_scores_of_another_kind_is_found(convert: Any, similarity: str, cause: str) -> None:
    query, gallery = torch.randn(3, 6).mul(2), torch.randn(9, 6).mul(3)
    cosine = nn.functional.cosine_similarity(query[:, None], gallery, dim=2)
    ids = cosine.argsort(1, descending=True)[:, :4]
    scores = convert(cosine, query, gallery).gather(1, ids)
    (text,) = warnings_of(Neighbors(ids, scores, gallery), query, similarity)
    assert cause in text


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rounding_of_half_precision_is_no_gap(dtype: torch.dtype) -> None:
    gallery, query = unit_vectors(40, 64, 0), unit_vectors(3, 64, 1)
    scores, ids = (query @ gallery.T).topk(5)
    assert warnings_of(Neighbors(ids, scores, gallery.to(dtype)), query) == []
    assert warnings_of(Neighbors(ids, scores + 0.03, gallery.to(dtype)), query) != []


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_a_gap_is_relative_to_the_size_of_the_scores(scale: float) -> None:
    gallery, query = unit_vectors(40, 64, 0).double() * scale, unit_vectors(3, 64, 1).double()
    scores, ids = (query @ gallery.T).topk(5)
    assert warnings_of(Neighbors(ids, scores, gallery), query, "dot") == []
    assert warnings_of(Neighbors(ids, scores + 0.01 * scale, gallery), query, "dot") != []


def test_scores_are_not_used_for_explanations_and_need_not_be_given() -> None:
    hits = Neighbors(IDS, embeddings=GALLERY)
    assert hits.scores is None
    with pytest.raises(ValueError, match="scores is missing"):
        hits.score_gap(QUERY)
    given = Neighbors(IDS, [[7.0, 6.0, 5.0], [9.0, 8.0, None]], GALLERY)
    with pytest.warns(UserWarning, match="scores: 5 of 5"):
        assert given.compare(QUERY).scores.equal(hits.compare(QUERY).scores)


def test_later_queries_that_a_method_has_changed_give_no_warning() -> None:
    hits = Neighbors(IDS, COSINES, GALLERY)
    assert warnings_of(hits, QUERY) == []
    assert warnings_of(hits, QUERY + 0.5) == []


# FAISS


def faiss_index(description: str, metric: str, gallery: Tensor) -> Any:
    faiss = pytest.importorskip("faiss")
    index = faiss.index_factory(gallery.shape[1], description, getattr(faiss, metric))
    index.train(gallery.numpy())
    index.add(gallery.numpy())
    return index


@pytest.mark.parametrize("description", ["Flat", "HNSW16", "SQfp16", "IVF4,Flat"])
def test_faiss_by_inner_product_is_the_cosine_of_unit_vectors(description: str) -> None:
    gallery, query = unit_vectors(300, 24, 0), unit_vectors(5, 24, 1)
    scores, ids = faiss_index(description, "METRIC_INNER_PRODUCT", gallery).search(query.numpy(), 7)
    hits = Neighbors(ids, scores, gallery)
    assert warnings_of(hits, query) == []
    assert hits.score_gap(query).nan_to_num(0).abs().max() < 1e-3


def test_distances_of_faiss_are_negated() -> None:
    gallery, query = unit_vectors(300, 24, 0) * 3, unit_vectors(5, 24, 1)
    distances, ids = faiss_index("Flat", "METRIC_L2", gallery).search(query.numpy(), 7)
    assert warnings_of(Neighbors(ids, -distances, gallery), query, "squared-euclidean") == []
    (text,) = warnings_of(Neighbors(ids, distances, gallery), query, "squared-euclidean")
    assert "distances (squared-euclidean): pass scores=-distances." in text


def test_the_gap_of_a_quantized_index_is_reported() -> None:
    gallery, query = unit_vectors(700, 24, 0), unit_vectors(5, 24, 1)
    scores, ids = faiss_index("IVF4,PQ6x4", "METRIC_INNER_PRODUCT", gallery).search(query.numpy(), 200)
    assert (ids == -1).any()  # one of four cells holds less than 200
    hits = Neighbors(ids, scores, gallery)
    (text,) = warnings_of(hits, query)
    assert "quantized" in text
    exact = torch.einsum("bj,bkj->bk", query, gallery[torch.from_numpy(ids).clamp_min(0)])
    expected = torch.where(torch.from_numpy(ids) >= 0, torch.from_numpy(scores) - exact, torch.nan)
    torch.testing.assert_close(hits.score_gap(query), expected, equal_nan=True, atol=1e-5, rtol=1e-5)


def test_a_stale_embedding_is_found() -> None:
    gallery, query = unit_vectors(300, 24, 0), unit_vectors(5, 24, 1)
    scores, ids = faiss_index("Flat", "METRIC_INNER_PRODUCT", gallery).search(query.numpy(), 7)
    now = gallery.clone()
    now[int(ids[3, 2])] = unit_vectors(1, 24, 2)[0]
    hits = Neighbors(ids, scores, now)
    (text,) = warnings_of(hits, query)
    assert "1 of 35 differ" in text
    assert f"query 3, rank 2, id {ids[3, 2]}:" in text
    assert "have changed since they were indexed" in text
    assert (hits.score_gap(query).abs() > 1e-3).nonzero().tolist() == [[3, 2]]


def test_a_foil_stands_on_top_of_hits_with_scores(net: nn.Module, make_images: Callable[..., Tensor]) -> None:
    gallery = net(make_images(4, seed=2)).detach()
    z = net(make_images(2, seed=1)).detach()
    cosines = nn.functional.cosine_similarity(z[:, None], gallery, dim=2)
    hits = Neighbors([[0, 1, 2], [2, 1, 3]], cosines[[[0], [1]], [[0, 1, 2], [2, 1, 3]]], gallery, labels=[0, 1, 1, 0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = SimilarityToSupport(nn.Identity().eval(), hits, foil="others")(z)
    expected = cosines[0, 0] - cosines[0, 1:3].mean()
    assert float(scores[0, 0]) == pytest.approx(float(expected))
