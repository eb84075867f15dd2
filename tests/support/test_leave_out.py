"""A query among its own supports is left out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from captum_fam import LayerFAM, LayerSimilarityCAM, SimilarityToSupport, SupportSet
from captum_fam.support import LeaveOutSupport, same_inputs

LABELS = ["jay", "jay", "tit", "tit", "wren"]
IDS = ["a", "b", "c", "d", "e"]


def test_each_query_is_compared_with_the_supports_of_other_ids(
    net: nn.Module, make_images: Callable[..., Tensor]
) -> None:
    images = make_images(5, seed=3)
    queries = images[[1, 0, 4]]
    support = SupportSet(images, LABELS, ids=IDS).without(["b", None, "x"])
    scores = SimilarityToSupport(net, support)(queries)
    for row, kept in enumerate(([0, 2, 3, 4], [0, 1, 2, 3, 4], [0, 1, 2, 3, 4])):
        alone = SupportSet(images[kept], [LABELS[index] for index in kept])
        torch.testing.assert_close(scores[row : row + 1], SimilarityToSupport(net, alone)(queries[row : row + 1]))


@pytest.mark.parametrize("method", [LayerFAM, LayerSimilarityCAM])
@pytest.mark.filterwarnings("ignore:more than half of a map's energy:UserWarning")
def test_maps_are_those_of_the_set_without_the_query(
    method: Any, net: nn.Module, make_images: Callable[..., Tensor]
) -> None:
    images = make_images(5, seed=3)
    attribution = method(net, net.features)
    maps = attribution.attribute(images[[2, 1]], SupportSet(images, LABELS, ids=IDS).without(["c", "b"]), target=0)
    for row, (query, kept) in enumerate(((2, [0, 1, 3, 4]), (1, [0, 2, 3, 4]))):
        alone = SupportSet(images[kept], [LABELS[index] for index in kept])
        expected = attribution.attribute(images[query : query + 1], alone, target=0)
        torch.testing.assert_close(maps[row : row + 1], expected)


def test_a_class_without_another_support_has_no_score_and_no_explanation() -> None:
    support = SupportSet(torch.eye(5), LABELS, ids=IDS).without(["e", "a"])
    query = torch.tensor([[0.1, 0.0, 0.0, 0.0, 9.0], [0.6, 0.8, 0.0, 0.0, 0.0]])
    comparison = support.compare(query)
    assert comparison.scores[0, 2] == -torch.inf
    assert comparison.predicted.tolist() == [0, 0]
    assert float(comparison.scores[1, 0]) == pytest.approx(0.8)
    with pytest.raises(ValueError, match="query 0 has no support of class wren besides the query itself"):
        _ = support.compare(query, target=2).support_weights


def test_a_set_without_any_query_is_the_set_itself() -> None:
    support = SupportSet(torch.eye(5), LABELS, ids=IDS)
    assert support.without(["x", None]) is support


def test_several_supports_of_one_id_are_all_left_out() -> None:
    support = SupportSet(torch.eye(3), [0, 0, 1], ids=["a", "a", None]).without(["a"])
    assert isinstance(support, LeaveOutSupport)
    assert support.left_out.tolist() == [[True, True, False]]


def test_prototypes_are_the_means_of_the_others(net: nn.Module, make_images: Callable[..., Tensor]) -> None:
    images = make_images(5, seed=3)
    support = SupportSet(images, LABELS, ids=IDS).without(["d", "e"])
    scores = SimilarityToSupport(net, support, aggregate="prototype")(images[[3, 4]])
    z = net(images).detach()
    cosine = nn.functional.cosine_similarity
    expected = [
        [cosine(z[3], z[:2].mean(0), 0), cosine(z[3], z[2], 0), cosine(z[3], z[4], 0)],
        [cosine(z[4], z[:2].mean(0), 0), cosine(z[4], z[2:4].mean(0), 0), -torch.inf],
    ]
    torch.testing.assert_close(scores, torch.tensor(expected, dtype=scores.dtype))


def test_images_are_embedded_once_and_split_by_batches(net: nn.Module, make_images: Callable[..., Tensor]) -> None:
    images = make_images(5, seed=3)
    seen: list[int] = []

    def counting(batch: Tensor) -> Tensor:
        seen.append(len(batch))
        return net(batch)

    support = SupportSet(images, LABELS, ids=IDS).without(["a", "c", None])
    embedded = support.embed(counting)
    assert seen == [5]
    whole = embedded.compare(net(images[:3])).scores
    parts = [embedded.for_queries(i, i + 1).compare(net(images[i : i + 1])).scores for i in range(3)]
    torch.testing.assert_close(torch.cat(parts), whole)
    assert support.per_query
    assert support.class_counts == [2, 2, 1]


def test_supports_that_change_in_place_are_embedded_anew(net: nn.Module, make_images: Callable[..., Tensor]) -> None:
    support = SupportSet(make_images(5, seed=3), LABELS, ids=IDS)
    queries = make_images(2, seed=4)
    scores = SimilarityToSupport(net, support.without(["a", None]))
    before = scores(queries)
    support.inputs.mul_(-1)
    assert not torch.allclose(scores(queries), before)
    assert torch.equal(scores(queries), SimilarityToSupport(net, support.without(["a", None]))(queries))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda s: SupportSet(torch.eye(5), LABELS).without(["a"]), ValueError, "ids is missing"),
        (lambda s: SupportSet(torch.eye(5), LABELS, ids=["a"]), ValueError, "ids .*got 1 for 5"),
        (
            lambda s: SupportSet(torch.eye(2), ids=["a", "a"]).without([None, "a"]),
            ValueError,
            "nothing is left for query 1",
        ),
        (lambda s: LeaveOutSupport(s, torch.zeros(2, 5)), TypeError, "left_out .*float32"),
        (lambda s: LeaveOutSupport(s, torch.zeros(2, 4).bool()), ValueError, r"left_out .*\(B, 5\).*\(2, 4\)"),
        (lambda s: LeaveOutSupport(torch.eye(5), torch.zeros(2, 5).bool()), TypeError, "SupportSet, got Tensor"),  # type: ignore[arg-type]
        (lambda s: s.without(["a", "b"]).compare(torch.rand(3, 5)), ValueError, "2 queries but inputs is a batch of 3"),
    ],
)
def test_what_does_not_fit_is_named(make: Callable[[SupportSet], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make(SupportSet(torch.eye(5), LABELS, ids=IDS))


def test_equal_inputs_are_found_by_their_content() -> None:
    supports = torch.rand(4, 3, 5, 7)
    queries = torch.stack([supports[2], supports[0] + 1e-7, supports[3]])
    expected = (queries[:, None] == supports).flatten(2).all(2)
    assert same_inputs(queries, supports).tolist() == expected.tolist()
    assert same_inputs(queries.contiguous(memory_format=torch.channels_last), supports).equal(expected)
    assert expected.sum() == 2
    assert not same_inputs(queries.double(), supports).any()
    assert not same_inputs(queries[:, :, :4], supports).any()
    assert np.array_equal(same_inputs(supports, supports).numpy(), np.eye(4, dtype=bool))
