"""The shrunk covariance against loops over samples and scikit-learn, and the distance that its inverse makes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from captum_fam.similarity import Mahalanobis, inverse_covariance
from captum_fam.similarity.covariance import ledoit_wolf


def draw(count: int, features: int) -> Tensor:
    """Samples of features of different sizes that depend on each other, with mean zero."""
    mixing = torch.randn(features, features, dtype=torch.float64)
    samples = torch.randn(count, features, dtype=torch.float64) @ mixing * torch.arange(1, features + 1)
    return samples - samples.mean(0)


@pytest.mark.parametrize(("count", "features"), [(40, 3), (7, 5), (4, 9)])
def test_the_shrinkage_is_the_sum_over_samples_of_the_paper(count: int, features: int) -> None:
    samples = draw(count, features)
    covariance = sum(torch.outer(one, one) for one in samples) / count
    target = covariance.trace() / features * torch.eye(features, dtype=torch.float64)
    spread = sum(float((torch.outer(one, one) - covariance).norm() ** 2) for one in samples) / count**2
    expected = min(1.0, spread / float((covariance - target).norm() ** 2))
    shrunk, shrinkage = ledoit_wolf(samples)
    assert shrinkage == pytest.approx(expected, rel=1e-10)
    torch.testing.assert_close(shrunk, (1 - expected) * covariance + expected * target)


@pytest.mark.parametrize(("count", "features"), [(60, 4), (9, 20)])
def test_the_covariance_is_that_of_scikit_learn(count: int, features: int) -> None:
    covariance = pytest.importorskip("sklearn.covariance")
    samples = draw(count, features)
    expected, shrinkage = covariance.ledoit_wolf(samples.numpy(), assume_centered=True)
    shrunk, found = ledoit_wolf(samples)
    assert found == pytest.approx(shrinkage, rel=1e-9)
    torch.testing.assert_close(shrunk, torch.from_numpy(expected), rtol=1e-9, atol=1e-9)


def test_the_inverse_is_of_the_covariance_around_the_mean_or_within_the_classes() -> None:
    labels = torch.tensor([7, 7, 3, 7, 3, 3, 7, 3, 7, 3])
    embeddings = draw(10, 4) + 50 * (labels == 3)[:, None]
    for given, groups in ((None, [torch.arange(10)]), (labels, [(labels == 7).nonzero(), (labels == 3).nonzero()])):
        centered = embeddings.clone()
        for rows in groups:
            rows = rows.flatten()
            centered[rows] -= embeddings[rows].mean(0)
        inverse = inverse_covariance(embeddings, given)
        torch.testing.assert_close(inverse @ ledoit_wolf(centered)[0], torch.eye(4, dtype=torch.float64))
        assert torch.equal(inverse, inverse.T)


def test_it_is_invertible_for_fewer_samples_than_features_and_a_constant_feature() -> None:
    embeddings = torch.rand(5, 30)
    embeddings[:, 3] = 2.0
    metric = Mahalanobis(inverse_covariance(embeddings))
    scores = metric(embeddings, embeddings)
    assert scores.isfinite().all()
    assert (scores.argmax(1) == torch.arange(5)).all()


def test_equal_samples_in_all_directions_are_not_shrunk_into_nan() -> None:
    axes = torch.cat([torch.eye(3), -torch.eye(3)])
    shrunk, _ = ledoit_wolf(axes)
    torch.testing.assert_close(shrunk, torch.eye(3, dtype=torch.float64) / 3)


@pytest.mark.parametrize(
    ("embeddings", "labels", "message"),
    [
        (torch.rand(3), None, r"embeddings must be \(n, J\), got \(3,\)"),
        (torch.rand(1, 3), None, r"samples must be .* at least 2, got \(1, 3\)"),
        (torch.rand(4, 3), torch.zeros(3).long(), r"labels must be \(n,\) = \(4,\), got \(3,\)"),
        (torch.ones(4, 3), None, "all zero"),
        (torch.rand(4, 3), torch.arange(4), "all zero"),
        (torch.tensor([[0.3, 0.1, 7.0], [0.1, 0.9, 0.2]]), None, "one vector up to its sign"),
        (torch.rand(2, 50), None, "one vector up to its sign"),
        (torch.tensor([[1.0, torch.nan], [0.0, 1.0]]), None, "NaN or inf"),
    ],
)
def test_embeddings_without_a_covariance_are_refused(embeddings: Tensor, labels: Tensor | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        inverse_covariance(embeddings, labels)
