"""The rows of a bank that are the supports of Eq. 11, by each rule."""

import math

import pytest
import torch

from captum_fam.support.memory_bank import MemoryBank
from tests.support.banks import N_CLASSES, random_bank, random_queries, reference_neighbors


def as_pairs(support, b):
    """Row -> weight of one query, without padding."""
    rows, weights = support.indices[b].tolist(), support.weights[b].tolist()
    return {row: weight for row, weight in zip(rows, weights, strict=True) if weight}


@pytest.fixture
def by_hand():
    # cosines with the query (1, 0): rows 0..5 have 0.9, 0.8, 0.7, 0.6, 0.5, 0.4
    cosines = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5, 0.4])
    rows = torch.stack([cosines, (1 - cosines**2).sqrt()], 1) * torch.arange(1, 7)[:, None]
    return MemoryBank(rows, [0, 1, 1, 0, 1, 1], k=4, temperature=0.5)


EQUAL = 1 / 3


VOTES = [math.exp(0.8 / 0.5), math.exp(0.7 / 0.5)]


@pytest.mark.parametrize(
    ("neighbors", "expected"),
    [
        ("predicted", {1: 1 / 2, 2: 1 / 2}),
        ("all", {0: 1 / 4, 1: 1 / 4, 2: 1 / 4, 3: 1 / 4}),
        ("vote", {1: VOTES[0] / sum(VOTES), 2: VOTES[1] / sum(VOTES)}),
        ("within-class", {1: 1 / 4, 2: 1 / 4, 4: 1 / 4, 5: 1 / 4}),
        ("whole-class", {1: 1 / 4, 2: 1 / 4, 4: 1 / 4, 5: 1 / 4}),
        ("nearest", {0: 1.0}),
    ],
)
def test_every_reading_worked_by_hand(by_hand, neighbors, expected):
    query = torch.tensor([[3.0, 0.0]])
    support = by_hand.using(neighbors=neighbors).support(query, torch.tensor([1]))
    assert as_pairs(support, 0) == pytest.approx(expected)


def test_within_class_takes_no_more_than_k_and_whole_class_all(by_hand):
    query = torch.tensor([[3.0, 0.0]])
    few = by_hand.using(k=3, neighbors="within-class").support(query, torch.tensor([1]))
    assert as_pairs(few, 0) == pytest.approx({1: EQUAL, 2: EQUAL, 4: EQUAL})
    every = by_hand.using(k=3, neighbors="whole-class").support(query, torch.tensor([1]))
    assert sorted(as_pairs(every, 0)) == [1, 2, 4, 5]


@pytest.mark.parametrize("neighbors", ["predicted", "all", "vote", "within-class", "whole-class", "nearest"])
def test_supports_are_chosen_for_each_query_by_itself(small_steps, neighbors):
    bank, query = random_bank(k=60, neighbors=neighbors), random_queries()
    support = bank.support(query)
    vote = bank.classify(query)
    assert support.weights.sum(1).tolist() == pytest.approx([1] * len(query))
    assert len(support) == len(query)
    for b, rows in enumerate(support):
        alone = bank.support(query[b : b + 1], vote.predicted[b : b + 1])
        assert as_pairs(support, b) == pytest.approx(as_pairs(alone, 0), rel=1e-4)
        assert rows.equal(bank.embeddings[support.indices[b]])
        if neighbors not in ("all", "nearest"):
            assert {int(bank.labels[row]) for row in as_pairs(support, b)} == {int(vote.predicted[b])}


def test_within_class_is_a_search_in_the_class_alone(small_steps):
    bank, query = random_bank(k=25, neighbors="within-class"), random_queries()
    target = torch.arange(len(query)) % N_CLASSES
    support = bank.support(query, target)
    for b, label in enumerate(target.tolist()):
        members = (bank.labels == label).nonzero().flatten()
        rows, _ = reference_neighbors(MemoryBank(bank.embeddings[members], bank.labels[members]), query[b : b + 1], 25)
        assert support.indices[b].tolist() == members[rows[0]].tolist()


def test_a_class_without_a_neighbor_is_named_with_the_remedy(by_hand):
    bank = MemoryBank(by_hand.embeddings, by_hand.labels, ["wren", "jay", "owl"], k=1)
    query = torch.tensor([[3.0, 0.0], [3.0, 0.1]])
    with pytest.raises(ValueError, match=r'query 1 .* class jay .*"within-class"'):
        bank.support(query, torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=r"support.* class owl"):
        bank.using(neighbors="whole-class").support(query, torch.tensor([2, 2]))
