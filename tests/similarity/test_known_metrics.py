"""Metrics of PyTorch and pytorch-metric-learning are recognized."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from captum_fam import LayerSimilarityCAM, MemoryBank, SupportSet
from captum_fam.similarity import Cosine, Dot, Euclidean, Learned, Similarity, UnitEuclidean, get_similarity
from captum_fam.similarity.registry import are_equal
from tests.similarity.cases import J, K, draw

cosine, pairwise = nn.functional.cosine_similarity, nn.functional.pairwise_distance


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        (nn.CosineSimilarity(), Cosine()),
        (nn.CosineSimilarity(dim=-1, eps=1e-6), Cosine()),
        (cosine, Cosine()),
        (torch.cosine_similarity, Cosine()),
        (partial(cosine, dim=1), Cosine()),
        (nn.PairwiseDistance(), Euclidean()),
        (nn.PairwiseDistance(p=2.0, keepdim=True), Euclidean()),
        (pairwise, Euclidean()),
        (torch.pairwise_distance, Euclidean()),
        (partial(pairwise, p=2), Euclidean()),
        (torch.cdist, Euclidean()),
        (partial(torch.cdist, p=2.0, compute_mode="donot_use_mm_for_euclid_dist"), Euclidean()),
    ],
)
def test_metrics_of_pytorch_are_closed_forms(metric: Any, expected: Similarity) -> None:
    assert are_equal(get_similarity(metric), expected)


@pytest.mark.parametrize(
    "metric", [nn.PairwiseDistance(p=1, eps=0), partial(torch.cdist, p=1.0), partial(pairwise, p=1)]
)
def test_other_distances_of_pytorch_are_negated_and_learned(metric: Any) -> None:
    similarity = get_similarity(metric)
    query, support, _ = draw()
    assert isinstance(similarity, Learned)
    expected = -(query[:, None] - support).abs().sum(2)
    torch.testing.assert_close(similarity(query, support), expected, atol=1e-4, rtol=0)
    assert "p=1" in repr(similarity)


def test_a_cosine_with_a_large_eps_is_no_cosine() -> None:
    assert isinstance(get_similarity(nn.CosineSimilarity(eps=0.5)), Learned)


@pytest.mark.parametrize("metric", [nn.CosineSimilarity(dim=0), partial(cosine, dim=2)])
def test_a_cosine_over_another_dimension_is_refused(metric: Any) -> None:
    with pytest.raises(ValueError, match=r"cosine over dim=.*dim=1"):
        get_similarity(metric)


@pytest.mark.parametrize("metric", [lambda a, b: cosine(a, b), partial(max, 3), nn.Bilinear(J, J, 1), max])
def test_a_metric_that_is_not_known_is_learned(metric: Any) -> None:
    assert isinstance(get_similarity(metric), Learned)


def test_recognizing_imports_nothing() -> None:
    code = (
        "import sys, torch; from captum_fam.similarity import get_similarity;"
        "get_similarity(torch.nn.CosineSimilarity()); get_similarity(max);"
        "assert 'pytorch_metric_learning' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def distances() -> Any:
    return pytest.importorskip("pytorch_metric_learning.distances")


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("CosineSimilarity", {}, Cosine()),
        ("DotProductSimilarity", {}, Cosine()),
        ("DotProductSimilarity", {"normalize_embeddings": False}, Dot()),
        ("LpDistance", {}, UnitEuclidean()),
        ("LpDistance", {"power": 2}, UnitEuclidean(squared=True)),
        ("LpDistance", {"normalize_embeddings": False}, Euclidean()),
        ("LpDistance", {"normalize_embeddings": False, "power": 2}, Euclidean(squared=True)),
        ("LpDistance", {"p": 1}, None),
        ("LpDistance", {"p": 1, "normalize_embeddings": False, "power": 2}, None),
        ("LpDistance", {"power": 3, "normalize_embeddings": False}, None),
        ("DotProductSimilarity", {"power": 2}, None),
        ("CosineSimilarity", {"p": 1}, None),
    ],
)
def test_distances_of_metric_learning_have_its_numbers(name: str, options: Any, expected: Similarity | None) -> None:
    distance = getattr(distances(), name)(**options)
    similarity = get_similarity(distance)
    if expected is None:
        assert isinstance(similarity, Learned)
    else:
        assert are_equal(similarity, expected)
    query, support, _ = draw()
    matrix = distance(query, support)
    assert matrix.shape == (len(query), K)
    torch.testing.assert_close(
        similarity(query, support), matrix if distance.is_inverted else -matrix, atol=3e-5, rtol=1e-4
    )


def test_a_distance_of_ones_own_keeps_its_own_formula() -> None:
    class Doubled(distances().LpDistance):  # type: ignore[misc]
        def pairwise_distance(self, query_emb: Tensor, ref_emb: Tensor) -> Tensor:
            return 2 * (query_emb - ref_emb).abs().sum(1)

    query, support, _ = draw()
    similarity = get_similarity(Doubled(normalize_embeddings=False))
    torch.testing.assert_close(similarity(query, support), -2 * (query[:, None] - support).abs().sum(2))


def test_distances_that_divide_by_the_query_are_refused_and_wrappers_opened() -> None:
    with pytest.raises(ValueError, match=r"SNRDistance .*zero"):
        get_similarity(distances().SNRDistance())
    batched = distances().BatchedDistance(distances().LpDistance(power=2))
    assert are_equal(get_similarity(batched), UnitEuclidean(squared=True))


def test_they_are_taken_wherever_a_similarity_is() -> None:
    metric = distances().LpDistance(power=2)
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    x, images = torch.rand(2, 3, 9, 7), torch.rand(4, 3, 9, 7)
    details = LayerSimilarityCAM(net, net[1], similarity=metric).details(x, SupportSet(images, [0, 0, 1, 1]), target=1)
    expected = -metric(net(x), net(images[2:])).mean(1)
    torch.testing.assert_close(details.comparison.score, expected.detach(), atol=1e-5, rtol=1e-5)
    bank = MemoryBank(net(images).detach(), [0, 0, 1, 1], k=2, similarity=metric)
    nearest = metric(net(x), net(images)).topk(2, largest=False).indices
    assert bank.classify(net(x)).neighbor_indices.equal(nearest)
