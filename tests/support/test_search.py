"""The similarity of a query and a row is one number, whatever else is searched at the same time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from captum_fam.similarity import Cosine, get_similarity
from captum_fam.support import MemoryBank
from captum_fam.support.search import ExactSearch
from tests.support.banks import random_bank, random_queries

N_CLASSES = 7


def _search(bank: MemoryBank, rows: slice = slice(None), similarity: str = "cosine") -> ExactSearch:
    return ExactSearch(bank.embeddings[rows], bank.labels[rows], get_similarity(similarity))


@pytest.mark.parametrize("similarity", ["cosine", "dot", "euclidean"])
def test_a_similarity_depends_on_query_and_row_only(similarity: str) -> None:
    bank, query = random_bank(), random_queries()
    similarities, rows = _search(bank, similarity=similarity).search(query, len(bank))
    of_row = torch.empty_like(similarities).scatter_(1, rows, similarities)
    for part in (slice(0, 1), slice(3, 10), slice(200, 503), slice(40, 43)):
        for queries in (slice(0, 1), slice(2, 9)):
            found, at = _search(bank, part, similarity).search(query[queries], 5)
            assert torch.equal(found, of_row[queries].gather(1, at + part.start))


def test_of_equally_similar_rows_the_first_are_found() -> None:
    bank, query = random_bank(), random_queries()
    embeddings = bank.embeddings.clone()
    embeddings[[480, 30, 31, 77, 301, 12]] = query[4]
    _, rows = ExactSearch(embeddings, bank.labels, bank.similarity).search(query, 4)
    assert rows[4].tolist() == [12, 30, 31, 77]


@pytest.mark.parametrize("copies", [40, 300])
def test_more_equal_rows_than_candidates_are_searched_again(copies: int) -> None:
    embeddings = random_bank().embeddings.clone()
    query = random_queries()
    places = torch.randperm(503, generator=torch.Generator().manual_seed(2))[:copies]
    embeddings[places] = query[6]
    _, rows = ExactSearch(embeddings, torch.zeros(503).long(), get_similarity("cosine")).search(query, 3)
    assert rows[6].tolist() == places.sort().values[:3].tolist()


def test_a_constant_embedding_finds_the_first_rows() -> None:
    search = ExactSearch(torch.ones(60, 4), torch.arange(60) % 3, get_similarity("cosine"))
    assert search.search(torch.ones(2, 4), 5)[1].tolist() == [[0, 1, 2, 3, 4]] * 2
    assert search.nearest_of_classes(torch.ones(2, 4), 3)[1].tolist() == [[0, 1, 2]] * 2


def test_rows_that_are_left_out_are_not_found_by_the_second_stage() -> None:
    bank = random_bank()
    query = bank.embeddings[[8, 450]]
    exclude = torch.tensor([[8, 9], [450, -1]])
    similarities, rows = _search(bank).search(query, 3, exclude)
    assert not (rows[0] == 8).any()
    assert not (rows[1] == 450).any()
    assert (similarities < 0.99).all()


@pytest.mark.usefixtures("small_steps")
@pytest.mark.parametrize("with_exclusion", [False, True])
def test_the_nearest_row_of_every_class_is_that_of_a_search_in_the_class(with_exclusion: bool) -> None:
    bank, query = random_bank(), random_queries()
    search = _search(bank)
    exclude = torch.arange(22).reshape(11, 2) if with_exclusion else None
    similarities, rows = search.nearest_of_classes(query, N_CLASSES + 1, exclude)
    for label in range(N_CLASSES):
        for index in range(len(query)):
            of_class = (bank.labels == label).nonzero()[:, 0]
            if exclude is not None:
                of_class = of_class[~torch.isin(of_class, exclude[index])]
            best, at = search.nearest(query[index : index + 1], 1, of_class)
            assert torch.equal(similarities[index, label], best[0, 0])
            assert rows[index, label] == at[0, 0]
    assert (similarities[:, N_CLASSES] == -torch.inf).all()
    assert (rows[:, N_CLASSES] == 0).all()


def test_both_backends_give_the_same_digits() -> None:
    pytest.importorskip("faiss")
    bank, query = random_bank(), random_queries()
    faiss = ExactSearch(bank.embeddings, bank.labels, bank.similarity, "faiss")
    for one, other in zip(_search(bank).search(query, 9), faiss.search(query, 9), strict=True):
        assert torch.equal(one, other)


def test_rows_that_change_in_place_are_searched_as_they_are() -> None:
    pytest.importorskip("faiss")
    bank, query = random_bank(), random_queries()
    search = ExactSearch(bank.embeddings, bank.labels, bank.similarity, "faiss")
    search.search(query, 9)
    bank.embeddings.copy_(bank.embeddings.flip(0).clone())
    for one, other in zip(_search(bank).search(query, 9), search.search(query, 9), strict=True):
        assert torch.equal(one, other)


def test_faiss_is_refused_for_a_subclass_that_may_have_another_score() -> None:
    class Opposite(Cosine):
        def score(self, query: Tensor, support: Tensor) -> Tensor:
            return -super().score(query, support)

    bank = random_bank()
    with pytest.raises(ValueError, match=r"knows cosine and dot only, got Opposite\(\)"):
        ExactSearch(bank.embeddings, bank.labels, Opposite(), "faiss")


def test_a_vote_does_not_depend_on_the_batch() -> None:
    bank, query = random_bank(k=9), random_queries()
    whole = bank.classify(query)
    for index in range(len(query)):
        assert torch.equal(bank.classify(query[index : index + 1]).similarities[0], whole.similarities[index])


def test_of_equal_rows_of_a_class_the_first_is_its_nearest() -> None:
    # A product with few queries gives equal rows at different places different last digits.
    embeddings, labels = random_bank().embeddings.clone(), torch.zeros(503).long()
    places = torch.arange(5, 503, 13)
    labels[places] = 1
    embeddings[places] = embeddings[5].clone()
    search = ExactSearch(embeddings, labels, get_similarity("cosine"))
    for query in random_queries(60).split(3):
        assert search.nearest_of_classes(query, 2)[1][:, 1].tolist() == [5] * 3
