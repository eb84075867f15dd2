"""Similarities by name: the registry, and the text that stands for a similarity in settings."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from captum_fam import LayerFAM, MemoryBank, SimilarityToSupport, SupportSet, explain
from captum_fam.similarity import (
    Bilinear,
    Cosine,
    Dot,
    Euclidean,
    EuclideanDifference,
    Learned,
    Mahalanobis,
    Similarity,
    get_similarity,
    list_similarities,
    register_similarity,
    similarity_name,
)
from tests.similarity.cases import METRIC, SIMILARITIES, SQUARE, draw


class HalfDot(Similarity):
    """A third party's: half the dot product, for supports that the batch shares or not."""

    def score(self, query: Tensor, support: Tensor) -> Tensor:
        return (query.unsqueeze(1) * support).sum(2) / 2

    def contributions(self, query: Tensor, support: Tensor, support_weights: Tensor) -> Tensor:
        return (query.unsqueeze(1) * support * support_weights.unsqueeze(2)).sum(1) / 2


@pytest.fixture(autouse=True, scope="module")
def _half_dot() -> None:
    register_similarity("half-dot")(HalfDot)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 2), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.features(x).mean((2, 3))


# Looking up


@pytest.mark.parametrize("name", ["cosine", "dot", "euclidean", "squared-euclidean"])
def test_the_similarities_of_the_package_have_names(name: str) -> None:
    query, support, _ = draw()
    assert name in list_similarities()
    assert torch.equal(get_similarity(name).score(query, support), SIMILARITIES[name].score(query, support))


def test_a_new_interpreter_lists_the_names_of_the_package_alone() -> None:
    code = "from captum_fam.similarity import list_similarities; print(*list_similarities())"
    listed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert listed.split() == ["cosine", "dot", "euclidean", "squared-euclidean"]


def test_a_similarity_is_taken_as_it_is() -> None:
    similarity = EuclideanDifference()
    assert get_similarity(similarity) is similarity


@pytest.mark.parametrize(
    ("similarity", "error", "message"),
    [
        ("manhattan", ValueError, "similarity.*cosine.*'manhattan'"),
        (3, TypeError, "similarity.*int"),
        (Dot, TypeError, r"similarity.*class Dot.*Dot\(\)"),
    ],
)
def test_what_is_no_similarity_is_refused(similarity: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        get_similarity(similarity)


# Registering


def test_a_decorated_class_stays_itself_and_has_a_name() -> None:
    assert issubclass(HalfDot, Similarity)
    assert "half-dot" in list_similarities()
    assert type(get_similarity("half-dot")) is HalfDot


def test_a_function_is_called_for_each_look_up() -> None:
    made: list[Similarity] = []

    def make() -> Similarity:
        made.append(Mahalanobis(METRIC))
        return made[-1]

    assert register_similarity("a function", make) is make
    assert made == []
    assert [get_similarity("a function"), get_similarity("a function")] == made
    assert made[0] is not made[1]


def test_an_own_similarity_explains_by_its_name_wherever_a_name_is_taken() -> None:
    net, x, images = Net().eval(), torch.rand(2, 3, 5, 4), torch.rand(3, 3, 5, 4)
    named, given = (LayerFAM(net, net.features, similarity=one) for one in ("half-dot", HalfDot()))
    assert torch.equal(named.attribute(x, images), given.attribute(x, images))
    # The minimum and maximum of Eq. 12 take out a common factor, so that half a dot product has the map of a whole.
    whole = LayerFAM(net, net.features, similarity="dot", support_scale="none").attribute(x, images)
    half = LayerFAM(net, net.features, similarity="half-dot", support_scale="none").attribute(x, images)
    torch.testing.assert_close(half, whole)

    support = SupportSet(images, [0, 0, 1])
    of_half, of_whole = (SimilarityToSupport(net, support, similarity=one)(x) for one in ("half-dot", "dot"))
    torch.testing.assert_close(of_half, of_whole / 2)
    bank = MemoryBank(net(images).detach(), [0, 0, 1], k=2, similarity="half-dot")
    assert type(bank.similarity) is HalfDot
    maps = explain(net, x, support, layer=net.features, method="fam", similarity="half-dot").attributions
    assert torch.equal(maps, LayerFAM(net, net.features, similarity=HalfDot()).attribute(x, support))


@pytest.mark.parametrize("name", ["cosine", "half-dot"])
def test_a_taken_name_is_refused_and_keeps_its_similarity(name: str) -> None:
    before = type(get_similarity(name))
    with pytest.raises(ValueError, match=rf"name.*'{name}'"):
        register_similarity(name, Dot)
    assert type(get_similarity(name)) is before


@pytest.mark.parametrize(
    ("name", "make", "error", "message"),
    [
        (3, Dot, TypeError, "name.*3"),
        (Dot, None, TypeError, "name.*Dot"),
        ("", Dot, ValueError, "name"),
        ("an object", Dot(), TypeError, r"make.*Dot\(\)"),
        ("a number", 3, TypeError, "make.*3"),
        ("a metric", torch.nn.functional.cosine_embedding_loss, TypeError, r"needs arguments; .* Learned\(metric\)"),
    ],
)
def test_what_cannot_be_registered_is_refused(name: Any, make: Any, error: type[Exception], message: str) -> None:
    before = list_similarities()
    with pytest.raises(error, match=message):
        register_similarity(name, make)
    assert list_similarities() == before


def test_a_name_that_makes_no_similarity_is_refused_where_it_is_looked_up_and_nowhere_else() -> None:
    register_similarity("makes a number", lambda: 3)  # type: ignore[type-var]
    with pytest.raises(TypeError, match=r"similarity 'makes a number'.*3"):
        get_similarity("makes a number")
    assert similarity_name(Euclidean()) == "euclidean"


# The text for settings


@pytest.mark.parametrize(
    ("similarity", "text"),
    [
        ("euclidean", "euclidean"),
        (Cosine(), "cosine"),
        (Euclidean(squared=True), "squared-euclidean"),
        (HalfDot(), "half-dot"),
        (EuclideanDifference(squared=True), "EuclideanDifference(squared=True)"),
        (draw, "Learned(draw, n_steps=50)"),
        (Learned(draw, n_steps=7), "Learned(draw, n_steps=7)"),  # type: ignore[arg-type]
    ],
)
def test_the_text_is_the_registered_name_else_what_the_object_shows(similarity: Any, text: str) -> None:
    assert similarity_name(similarity) == text


def test_the_text_tells_matrices_and_networks_apart_and_is_the_same_for_equal_ones() -> None:
    assert similarity_name(Bilinear(SQUARE)) == similarity_name(Bilinear(SQUARE.clone()))
    assert similarity_name(Bilinear(SQUARE)) != similarity_name(Bilinear(SQUARE.T))
    assert similarity_name(Bilinear(SQUARE)) != similarity_name(Bilinear(SQUARE.float()))
    assert similarity_name(Bilinear(SQUARE.bfloat16())).startswith("Bilinear()")

    class Relation(nn.Linear):
        def forward(self, query: Tensor, support: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(query * support).squeeze(1)

    one, other = Relation(4, 1), Relation(4, 1)
    assert similarity_name(one) != similarity_name(other)
    other.load_state_dict(one.state_dict())
    assert similarity_name(one) == similarity_name(other)


def test_the_text_of_what_is_no_similarity_is_refused() -> None:
    with pytest.raises(ValueError, match=r"similarity.*'manhattan'"):
        similarity_name("manhattan")
