"""The interface: what an own similarity must define, what it inherits, and what it declares."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from captum_fam import LayerFAM, LayerSimilarityCAM, SimilarityToSupport, SupportSet
from captum_fam.similarity import Learned, LinearSimilarity, Similarity
from tests.similarity.cases import FROM_ZERO, SIMILARITIES, WITHOUT_WEIGHTS, B, K, close, draw, every_similarity


class Minimal(Similarity):
    """Two methods and nothing else."""

    def score(self, query: Tensor, support: Tensor) -> Tensor:
        return query @ support.T

    def contributions(self, query: Tensor, support: Tensor, support_weights: Tensor) -> Tensor:
        return query * (support_weights @ support)


class Linear(LinearSimilarity):
    def score(self, query: Tensor, support: Tensor) -> Tensor:
        return query @ support.T

    def weights(self, query: Tensor, support: Tensor, support_weights: Tensor) -> Tensor:
        return support_weights @ support


class Shifted(Minimal):
    """Its score of the zero embedding is one."""

    explains_whole_score = False
    vanishes_at_zero = False

    def score(self, query: Tensor, support: Tensor) -> Tensor:
        return super().score(query, support) + 1


def test_a_similarity_without_its_two_methods_is_refused_when_it_is_made() -> None:
    class NoContributions(Similarity):
        def score(self, query: Tensor, support: Tensor) -> Tensor:
            return query @ support.T

    class NoScore(Similarity):
        def contributions(self, query: Tensor, support: Tensor, support_weights: Tensor) -> Tensor:
            return query

    class NoWeights(LinearSimilarity):
        def score(self, query: Tensor, support: Tensor) -> Tensor:
            return query @ support.T

    for incomplete, missing in ((NoContributions, "contributions"), (NoScore, "score"), (NoWeights, "weights")):
        with pytest.raises(TypeError, match=missing):
            incomplete()  # type: ignore[abstract]


@pytest.mark.parametrize("similarity", [Minimal(), Linear()])
def test_what_says_nothing_of_its_rounding_is_taken_as_it_is(similarity: Similarity) -> None:
    query, support, weights = draw()
    assert torch.equal(similarity(query, support), query @ support.T)
    assert torch.equal(similarity.explained(query, support), query @ support.T)
    assert torch.equal(similarity.contributions(query, support, weights), query * (weights @ support))
    assert torch.equal(similarity.bound(query, support), torch.ones(B, K, dtype=torch.float64))
    assert torch.equal(similarity.magnitude(query, support, -weights), weights.abs())
    assert not similarity.terms(query, support, weights.abs()).any()


def test_what_does_not_explain_its_whole_score_counts_from_the_zero_embedding() -> None:
    query, support, _ = draw()
    close(Shifted().explained(query, support), query @ support.T)


def test_linear_weights_are_declared_and_refused_where_they_are_not() -> None:
    query, support, weights = draw()
    Linear().require_weights()
    for call in (Minimal().require_weights, lambda: Minimal().weights(query, support, weights)):
        with pytest.raises(ValueError, match=r"similarity Minimal .*has_weights"):
            call()


def test_a_declaration_without_weights_is_an_error_of_the_class() -> None:
    class Forgetful(Minimal):
        has_weights = True

    with pytest.raises(NotImplementedError, match="Forgetful"):
        Forgetful().weights(*draw())


def test_a_docstring_of_a_method_changes_no_capability() -> None:
    class Documented(Minimal):
        def explained(self, query: Tensor, support: Tensor) -> Tensor:
            """The whole score."""
            return super().explained(query, support)

    assert Documented().explains_whole_score
    assert not Documented().has_weights


@every_similarity
def test_what_the_similarities_declare_is_true(name: str) -> None:
    query, support, weights = draw()
    similarity, zeros = SIMILARITIES[name], torch.zeros(B, query.shape[1], dtype=torch.float64)
    whole = torch.equal(similarity.explained(query, support), similarity.score(query, support))
    assert similarity.explains_whole_score == whole == (name not in FROM_ZERO)
    assert similarity.vanishes_at_zero == (not similarity.score(zeros, support).any())
    assert similarity.has_weights == (name not in WITHOUT_WEIGHTS)
    if similarity.has_weights:
        close(query * similarity.weights(query, support, weights), similarity.contributions(query, support, weights))


def test_nothing_is_assumed_of_the_zero_embedding_of_a_learned_metric() -> None:
    learned = Learned(lambda query, support: (query - support).sum(1))
    assert learned.has_weights
    assert not learned.explains_whole_score
    assert not learned.vanishes_at_zero


class Doubled(LinearSimilarity):
    """Weights that give twice the score."""

    def score(self, query: Tensor, support: Tensor) -> Tensor:
        return query @ support.T

    def weights(self, query: Tensor, support: Tensor, support_weights: Tensor) -> Tensor:
        return 2 * support_weights @ support


class OfAnotherShape(Doubled):
    """Weights of each support, and not of their sum."""

    def weights(self, query: Tensor, support: Tensor, support_weights: Tensor) -> Tensor:
        return support_weights.unsqueeze(-1) * support


@pytest.mark.parametrize("foil", [None, "others"])
def test_weights_that_do_not_give_the_score_are_refused(foil: str | None) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    x, images = torch.rand(2, 3, 5, 4), torch.rand(3, 3, 5, 4)
    for similarity, message in (
        (Doubled(), r"weights\(\) of Doubled must give u with sum\(query \* u\) equal to the score; for query 0"),
        (OfAnotherShape(), r"weights\(\) of OfAnotherShape must give \(B, J\) = \(2, 4\), got \(2, \d, 4\)"),
    ):
        scores = SimilarityToSupport(net, SupportSet(images, torch.arange(3)), similarity, foil=foil)
        with pytest.raises(ValueError, match=message):
            LayerSimilarityCAM(scores, net[1]).attribute(x, target=0)


def test_a_minimal_similarity_explains_except_where_linear_weights_are_needed() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    x, images = torch.rand(2, 3, 5, 4), torch.rand(3, 3, 5, 4)
    minimal, linear = (LayerFAM(net, net[1], similarity=one).attribute(x, images) for one in (Minimal(), Linear()))
    assert torch.equal(minimal, linear)
    assert SimilarityToSupport(net, images, Minimal())(x).shape == (2, 1)
    LayerSimilarityCAM(net, net[1], similarity=Linear()).attribute(x, images)
    with pytest.raises(ValueError, match=r"similarity Minimal .*has_weights"):
        LayerSimilarityCAM(net, net[1], similarity=Minimal())
