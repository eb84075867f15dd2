"""A query that is in its own support or its own foil is left out there; the scores of the others are unchanged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from captum_fam import Explanation, MemoryBank, Neighbors, SupportPerQuery, SupportSet, explain
from captum_fam.support import Comparison, ContrastedSupport, RowMembers, Support
from tests.explanation.by_hand import as_input, cosines, embeddings, picture, small_model

QUERIES = [picture(0), picture(1), picture(2)]
BIRDS = [picture(3), picture(4)]
OTHERS = [picture(5), QUERIES[1], picture(6), picture(7)]  # the second query is in the foil


def inputs(pictures: list[Image.Image]) -> Tensor:
    return torch.stack([as_input(one) for one in pictures]).float()


def notes_of(why: Explanation) -> list[str]:
    return [note for note in why.notes if "own" in note]


FOILS: dict[str, Callable[[], dict[str, Any]]] = {
    "pictures": lambda: {"support": BIRDS, "foil": OTHERS},
    "tensor": lambda: {"support": inputs(BIRDS), "foil": inputs(OTHERS)},
    "set": lambda: {"support": embeddings(BIRDS).float(), "foil": SupportSet(inputs(OTHERS))},
    "contrast": lambda: {
        "support": ContrastedSupport(SupportSet(inputs(BIRDS), class_names=["bird"]), SupportSet(inputs(OTHERS)))
    },
    "bank": lambda: {"support": MemoryBank(embeddings(BIRDS).float(), ["bird"] * 2, k=2), "foil": OTHERS},
    "hits": lambda: {"support": Neighbors([[0, 1]] * 3, embeddings=embeddings(BIRDS).float()), "foil": OTHERS},
}


@pytest.mark.parametrize("form", FOILS)
@pytest.mark.parametrize("batch_size", [1, 32])
def test_a_query_in_its_own_foil_is_left_out_there(form: str, batch_size: int) -> None:
    queries = inputs(QUERIES) if form in ("tensor", "set", "contrast") else QUERIES
    with pytest.warns(UserWarning, match="1 of 3 queries are in their own foil, as the same image; there they are"):
        why = explain(small_model(), queries, **FOILS[form](), method="similarity-cam", batch_size=batch_size)
    own, foil = (cosines(embeddings(QUERIES), embeddings(pictures)) for pictures in (BIRDS, OTHERS))
    expected = own.mean(1) - torch.stack([foil[0].mean(), foil[1, [0, 2, 3]].mean(), foil[2].mean()])
    torch.testing.assert_close(why.target_scores.double(), expected, rtol=0, atol=1e-5)
    assert why.about["foil"] == "4 supports"
    assert len(notes_of(why)) == 1
    assert why.support_rows is not None
    if form not in ("bank", "hits"):
        assert why.support_rows.tolist() == [[0, 1, 2, 3, 4, 5], [0, 1, 2, 4, 5, -1], [0, 1, 2, 3, 4, 5]]


def test_positions_of_a_query_are_not_matched_with_its_own_in_the_foil() -> None:
    net = small_model()
    with pytest.warns(UserWarning, match="1 of 3 queries are in their own foil"):
        why = explain(net, QUERIES, BIRDS, foil=OTHERS, method="correspondence")
    for query, foil in ((0, OTHERS), (1, [OTHERS[0], *OTHERS[2:]]), (2, OTHERS)):
        alone = explain(net, QUERIES[query], BIRDS, foil=foil, method="correspondence")
        torch.testing.assert_close(why.attributions[query], alone.attributions[0])


def test_a_class_of_the_foil_that_is_the_query_alone_does_not_count() -> None:
    foil = {"wren": [QUERIES[1]], "crow": [picture(5), picture(6)]}
    with pytest.warns(UserWarning, match="1 of 3 queries are in their own foil"):
        why = explain(small_model(), QUERIES, BIRDS, foil=foil)
    made = embeddings(QUERIES)
    wren, crow = cosines(made, made[1:2])[:, 0], cosines(made, embeddings(foil["crow"])).mean(1)
    against = torch.where(torch.tensor([False, True, False]), crow, (wren + crow) / 2)
    expected = cosines(made, embeddings(BIRDS)).mean(1) - against
    torch.testing.assert_close(why.target_scores.double(), expected, rtol=0, atol=1e-5)


def test_a_foil_that_is_the_query_alone_is_kept_and_said() -> None:
    with pytest.warns(UserWarning, match="1 of 3 queries are their own only foil"):
        why = explain(small_model(), QUERIES, BIRDS, foil=[QUERIES[1]])
    expected = cosines(embeddings(QUERIES[1:2]), embeddings(BIRDS)).mean() - 1
    assert float(why.target_scores[1]) == pytest.approx(float(expected), abs=1e-5)
    assert len(notes_of(why)) == 1


@pytest.mark.parametrize("support", ["set", "bank"])
def test_the_embedding_of_a_query_in_the_foil_is_said(support: str) -> None:
    """Embeddings are not known to be the same image."""
    birds, others = embeddings(BIRDS).float(), embeddings(OTHERS).float()
    given: Any = birds if support == "set" else MemoryBank(birds, ["a", "b"], k=1)
    said = [note for note in explain(small_model(), QUERIES, given, foil=others).notes if "in its own foil" in note]
    assert len(said) == 1
    assert "SupportSet.without" not in said[0]  # a foil is no support whose rows can be left out for each query
    without = explain(small_model(), QUERIES, given, foil=others[[0, 2, 3]])
    assert not [note for note in without.notes if "own foil" in note]


def test_a_query_among_the_other_classes_is_said_where_only_embeddings_are_known() -> None:
    bank = MemoryBank(embeddings([*BIRDS, *QUERIES]).float(), ["jay", "jay", "wren", "wren", "wren"], k=5)
    why = explain(small_model(), QUERIES, bank, target="jay", foil="others")
    assert [note for note in notes_of(why) if "in its own foil" in note and "MemoryBank.using(exclude=...)" in note]


PAIRS = [[QUERIES[0], BIRDS[0]], [BIRDS[1], picture(8)], [picture(9), QUERIES[2]]]


@pytest.mark.parametrize(
    ("form", "given"),
    [
        ("lists", lambda: PAIRS),
        ("tensor", lambda: torch.stack([inputs(pair) for pair in PAIRS])),
        ("support", lambda: SupportPerQuery(torch.stack([inputs(pair) for pair in PAIRS]))),
    ],
    ids=["lists", "tensor", "support"],
)
@pytest.mark.parametrize("batch_size", [2, 32])
def test_a_query_among_its_own_pairs_is_left_out(form: str, given: Callable[[], Any], batch_size: int) -> None:
    queries = QUERIES if form == "lists" else inputs(QUERIES)
    with pytest.warns(UserWarning, match="2 of 3 queries are among their own supports"):
        why = explain(small_model(), queries, given(), batch_size=batch_size)
    made = embeddings(QUERIES)
    partners = [[BIRDS[0]], PAIRS[1], [PAIRS[2][0]]]
    expected = torch.stack([cosines(made[i : i + 1], embeddings(partners[i])).mean() for i in range(3)])
    torch.testing.assert_close(why.target_scores.double(), expected, rtol=0, atol=1e-5)
    assert why.support_weights is not None
    assert why.support_weights.tolist() == [[0, 1], [0.5, 0.5], [1, 0]]


def test_a_query_is_left_out_of_lists_of_different_lengths() -> None:
    lists = [[QUERIES[0]], [*BIRDS, QUERIES[1], picture(8)]]
    why = explain(small_model(), QUERIES[:2], lists)
    only, among = notes_of(why)
    assert only.startswith("1 of 2 queries are their own only supports")
    assert among.startswith("1 of 2 queries are among their own supports")
    made = embeddings(QUERIES[:2])
    expected = [1.0, float(cosines(made[1:], embeddings([*BIRDS, picture(8)])).mean())]
    assert why.target_scores.tolist() == pytest.approx(expected, abs=1e-5)


def test_labels_decide_what_is_left_of_a_class() -> None:
    pairs = torch.stack([inputs([QUERIES[0], BIRDS[0]]), inputs(BIRDS)])
    support = SupportPerQuery(pairs, [["jay", "wren"], ["jay", "wren"]])
    why = explain(small_model(), inputs(QUERIES[:2]), support)
    assert why.scores[0, 0] == -torch.inf
    with pytest.raises(ValueError, match="support: query 0 has no support of class jay; leave out such queries"):
        explain(small_model(), inputs(QUERIES[:2]), support, target="jay")


def test_lists_of_embeddings_are_not_told_to_change_another_support() -> None:
    made = embeddings([*QUERIES, *BIRDS]).float()
    why = explain(small_model(), inputs(QUERIES), torch.stack([made[[0, 3]], made[3:5], made[3:5]]))
    (note,) = notes_of(why)
    assert note.endswith("as if the query were among its own supports; leave it out there")


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_all_queries_without_another_class_are_named(batch_size: int) -> None:
    labels = ["jay", "jay", "wren", "jay"]
    hits = Neighbors([[0, 1], [0, 2], [1, 3]], embeddings=torch.rand(4, 5), labels=labels)
    with pytest.raises(ValueError, match=r"foil: all supports of queries 0, 2 \(2 of 3\) .*leave out such queries"):
        explain(small_model(), QUERIES, hits, target="jay", foil="others", batch_size=batch_size)
    with pytest.raises(ValueError, match=r"support: queries 0, 2 \(2 of 3\) have no support of class wren; "):
        explain(small_model(), QUERIES, hits, target="wren", batch_size=batch_size)
    assert len(explain(small_model(), QUERIES[1:2], hits.for_queries(1, 2), target="jay", foil="others")) == 1


class _Nearest(Support):
    """The embedding that is nearest to the query, whose class is known after the search only."""

    class_names = ("jay", "wren")

    def __init__(self, embeddings: Tensor) -> None:
        self.embeddings = embeddings

    def compare(self, query: Tensor, target: Any = None, similarity: Any = None) -> Comparison:
        measure = self.measure(similarity)
        best = measure.score(query, self.embeddings).argmax(1)
        members = RowMembers((best == 2).long().unsqueeze(1), torch.ones(len(query), 1), self.class_names)
        return Comparison(query, self.embeddings[best][:, None], members, measure, self.class_names, target)


@pytest.mark.parametrize("method", ["similarity-cam", "grad-cam"])
@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_queries_of_later_batches_keep_their_numbers(batch_size: int, method: str) -> None:
    support = _Nearest(embeddings(QUERIES).float() * 1.01 + 1e-3)
    options: dict[str, Any] = {"method": method, "batch_size": batch_size}
    assert explain(small_model(), QUERIES, support, **options).predicted.tolist() == [0, 0, 1]
    with pytest.raises(ValueError, match="support: query 2 has no support of class jay; leave out"):
        explain(small_model(), QUERIES, support, target="jay", **options)
