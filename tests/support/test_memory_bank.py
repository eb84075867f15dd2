"""Memory banks: search, vote, rows that are left out, and what is refused."""

import copy
import math
import sys
from collections import Counter
from contextlib import nullcontext
from typing import get_args

import numpy as np
import pytest
import torch

from captum_fam.support import search
from captum_fam.support.memory_bank import MemoryBank, NeighborRule
from tests.perturbed_products import PerturbedProducts
from tests.support.banks import N_CLASSES, random_bank, random_queries, reference_neighbors

# Search and vote


@pytest.mark.parametrize("k", [1, 5, 70, 503])
@pytest.mark.parametrize("measure", ["cosine", "dot", "euclidean"])
def test_the_neighbors_are_those_of_a_full_sort(small_steps, k, measure):
    bank, query = random_bank(k=k, similarity=measure), random_queries()
    rows, similarities = reference_neighbors(bank, query, k, measure)
    vote = bank.classify(query)
    assert vote.neighbor_indices.tolist() == rows
    torch.testing.assert_close(vote.similarities.double(), similarities.double(), rtol=1e-5, atol=1e-5)


def test_the_size_of_the_blocks_changes_nothing(monkeypatch):
    bank, query = random_bank(), random_queries()
    whole = bank.classify(query)
    for rows in (1, 7, 250, 502):
        monkeypatch.setattr(search, "STEP_BYTES", 4 * (11 + 2 * 17) * rows)
        assert bank.classify(query).neighbor_indices.equal(whole.neighbor_indices)


def test_no_tensor_larger_than_a_block_is_made(small_steps, largest_tensor):
    bank, query = random_bank(k=20), random_queries()
    with largest_tensor() as largest:
        bank.classify(query)
        for neighbors in get_args(NeighborRule):
            bank.using(neighbors=neighbors).support(query)
    # a block is of 60 to 67 rows, the bank of 503
    assert largest.numel <= 67 * 17


def test_the_vote_worked_by_hand():
    # cosines of the query with the rows: 1, 0.8, 0.6, 0
    bank = MemoryBank(
        torch.tensor([[2.0, 0.0], [4.0, 3.0], [0.6, 0.8], [0.0, 1.0]]), [2, 0, 0, 1], k=3, temperature=0.5
    )
    vote = bank.classify(torch.tensor([[5.0, 0.0]]))
    a, b, c = math.exp(1 / 0.5), math.exp(0.8 / 0.5), math.exp(0.6 / 0.5)
    assert vote.neighbor_indices.tolist() == [[0, 1, 2]]
    assert vote.similarities.tolist()[0] == pytest.approx([1, 0.8, 0.6])
    assert vote.class_scores.tolist()[0] == pytest.approx([(b + c) / (a + b + c), 0, a / (a + b + c)])
    assert vote.predicted.tolist() == [0]
    assert bank.using(temperature=0.05).classify(torch.tensor([[5.0, 0.0]])).predicted.tolist() == [2]


def test_the_vote_is_the_weighted_count_of_a_plain_loop():
    bank, query = random_bank(k=30), random_queries()
    rows, similarities = reference_neighbors(bank, query, 30)
    vote = bank.classify(query)
    for b in range(len(query)):
        count = Counter()
        for row, s in zip(rows[b], similarities[b].tolist(), strict=True):
            count[int(bank.labels[row])] += math.exp(s / 0.07)
        total = sum(count.values())
        expected = [count[c] / total for c in range(N_CLASSES)]
        assert vote.class_scores[b].tolist() == pytest.approx(expected, rel=1e-4, abs=1e-7)
        assert vote.predicted[b] == max(count, key=count.get)


def test_large_similarities_do_not_overflow_the_vote():
    bank = MemoryBank(torch.tensor([[1e4, 0.0], [0.0, 1e4]]), [0, 1], similarity="dot")
    assert bank.classify(torch.tensor([[1.0, 0.5]])).class_scores.tolist() == [[1.0, 0.0]]


@pytest.mark.parametrize("direction", [None, "up", "down"])
@pytest.mark.parametrize("similarity", ["cosine", "dot", "euclidean"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_first_of_classes_with_equal_votes_is_predicted(dtype, similarity, direction):
    rows = torch.randn(3, 33, dtype=dtype)
    # Class 0 is far off; the others hold the same rows, in other orders.
    bank = MemoryBank(
        torch.cat([-rows[:1], rows.flip(0), rows, rows.roll(1, 0)]),
        [0] + [3] * 3 + [1] * 3 + [2] * 3,
        k=10,
        similarity=similarity,
    )
    with PerturbedProducts(direction) if direction else nullcontext():
        vote = bank.classify(rows.mean(0) + 0.1 * torch.randn(5, 33, dtype=dtype))
    assert vote.predicted.tolist() == [1] * 5
    assert vote.class_scores.sum(1).tolist() == pytest.approx([1] * 5)


def test_votes_that_differ_by_more_than_rounding_are_no_ties():
    bank = MemoryBank(torch.tensor([[1.0, 1e-2], [1.0, 0.0]]), [0, 1])
    assert bank.classify(torch.tensor([[1.0, 0.0], [1.0, 1e-2]])).predicted.tolist() == [1, 0]
    assert bank.using(temperature=1e-9).classify(torch.tensor([[1.0, 0.0]])).predicted.tolist() == [1]


@pytest.mark.parametrize("temperature", [1e-37, 1e-30, 1e-9])
def test_a_small_temperature_leaves_the_nearest_alone(temperature):
    bank = MemoryBank(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]), [0, 1, 2], neighbors="vote")
    bank = bank.using(temperature=temperature)
    query = torch.tensor([[1.0, 0.1], [0.1, 1.0]])
    assert bank.classify(query).class_scores.tolist() == [[1, 0, 0], [0, 1, 0]]
    assert bank.support(query, torch.tensor([1, 0])).weights.sum(1).tolist() == [1, 1]


@pytest.mark.parametrize("scale", [1e-30, 1e-13, 1e20, 3e37])
def test_cosines_and_votes_do_not_depend_on_the_scale(small_steps, scale):
    bank, query = random_bank(k=20), random_queries()
    scaled = MemoryBank(scale * bank.embeddings, bank.labels, k=20)
    expected, actual = bank.classify(query), scaled.classify(query / scale)
    torch.testing.assert_close(actual.similarities, expected.similarities, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(actual.class_scores, expected.class_scores, rtol=1e-4, atol=1e-6)
    assert actual.predicted.equal(expected.predicted)


def test_a_similarity_beyond_the_largest_number_is_refused_and_named():
    bank = MemoryBank(torch.tensor([[3e38, 3e38]]), [0], similarity="dot")
    with pytest.raises(ValueError, match=r"query.*similarity .*NaN"):
        bank.classify(torch.tensor([[2.0, 2.0]]))


@pytest.mark.parametrize("backend", ["torch", "faiss"])
def test_a_cosine_is_never_above_one(backend):
    if backend == "faiss":
        pytest.importorskip("faiss")
    rows = torch.randn(2000, 64, generator=torch.Generator().manual_seed(3))
    vote = MemoryBank(rows, [0] * 2000, k=1, backend=backend).classify(rows)
    assert vote.similarities.max() == 1
    assert not vote.similarities.arccos().isnan().any()


def test_fewer_rows_than_k_all_vote():
    bank, query = random_bank(rows=9, k=200), random_queries(3)
    vote = bank.classify(query)
    assert vote.neighbor_indices.sort(1).values.tolist() == [list(range(9))] * 3
    assert vote.class_scores.sum(1).tolist() == pytest.approx([1, 1, 1])


def test_classes_without_rows_have_no_votes():
    bank = MemoryBank(torch.eye(2), [0, 3], ["a", "b", "c", "d", "e"])
    scores = bank.classify(torch.tensor([[1.0, 1.0]])).class_scores
    assert scores.tolist()[0] == pytest.approx([0.5, 0, 0, 0.5, 0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_bank_in_half_precision_is_searched_in_float32(small_steps, dtype):
    bank = random_bank(k=20).to(dtype=dtype)
    assert bank.embeddings.dtype == dtype
    query = random_queries()
    exact = MemoryBank(bank.embeddings.double(), bank.labels, k=20).classify(query.double())
    for given in (query, query.double()):
        vote = bank.classify(given)
        assert vote.neighbor_indices.equal(exact.neighbor_indices)
        torch.testing.assert_close(vote.similarities, exact.similarities, check_dtype=False, rtol=0, atol=1e-6)
    assert bank.classify(query.to(dtype)).similarities.dtype == torch.float32


def test_autocast_and_inference_mode_change_nothing():
    bank, query = random_bank(k=20), random_queries()
    plain = bank.classify(query)
    with torch.autocast("cpu", torch.bfloat16):
        assert bank.classify(query).similarities.equal(plain.similarities)
    with torch.inference_mode():
        vote = bank.classify(query.clone())
        assert vote.similarities.equal(plain.similarities)
        assert bank.support(query.clone(), vote=vote).indices.equal(bank.support(query).indices)


def test_a_query_with_a_graph_is_taken_without_it():
    query = random_queries().requires_grad_()
    assert not random_bank().classify(query).similarities.requires_grad


# Leaving rows out


@pytest.mark.parametrize("neighbors", ["all", "within-class", "whole-class", "nearest"])
def test_leave_one_out_is_a_bank_without_the_row(small_steps, neighbors):
    bank = random_bank(k=40, neighbors=neighbors)
    members = torch.tensor([5, 0, 502, 59, 60, 300, 7, 8, 9])
    query = bank.embeddings[members] + 0.01
    left_out = bank.using(exclude=members)
    vote, support = left_out.classify(query), left_out.support(query)
    for b, row in enumerate(members.tolist()):
        rest = torch.tensor([r for r in range(503) if r != row])
        smaller = MemoryBank(bank.embeddings[rest], bank.labels[rest], k=40, neighbors=neighbors)
        alone = smaller.classify(query[b : b + 1])
        assert vote.neighbor_indices[b].equal(rest[alone.neighbor_indices[0]])
        torch.testing.assert_close(vote.class_scores[b], alone.class_scores[0])
        expected = smaller.support(query[b : b + 1])
        kept = support.indices[b][support.weights[b] > 0]
        assert kept.equal(rest[expected.indices[0]])


def test_without_leave_one_out_a_row_is_its_own_nearest():
    bank = random_bank(k=3)
    rows = torch.tensor([4, 44, 444])
    assert bank.classify(bank.embeddings[rows]).neighbor_indices[:, 0].equal(rows)
    assert not (bank.using(exclude=rows).classify(bank.embeddings[rows]).neighbor_indices == rows[:, None]).any()


def test_several_rows_a_query_are_left_out(small_steps):
    bank, query = random_bank(rows=100, k=200), random_queries(6)
    exclude = torch.tensor([[1, 2, 99], [0, 50, 51], [3, 3, 3], [59, 60, 61], [10, 20, 30], [97, 98, 99]])
    vote = bank.using(exclude=exclude).classify(query)
    assert vote.neighbor_indices.shape == (6, 99)
    rows, _ = reference_neighbors(bank, query, 97, exclude=exclude.tolist())
    assert vote.neighbor_indices[:, :97].tolist() == rows
    assert (vote.similarities == -math.inf).sum(1).tolist() == [2, 2, 0, 2, 2, 2]


def test_excluding_leaves_the_bank_itself_alone():
    bank = random_bank()
    bank.using(exclude=[1, 2], k=3)
    assert bank.exclude is None
    assert bank.k == 200


@pytest.mark.parametrize(
    ("exclude", "message"),
    [
        ([1, 2], "exclude .*2 queries .*3"),
        ([0, 1, 503], r"exclude .*0..502.*0..503"),
        ([0, -2, 2], r"exclude .*0..502.*-2..2"),
        (torch.zeros(3, 1, 1).long(), r"exclude .*\(3, 1, 1\)"),
    ],
)
def test_rows_to_leave_out_that_do_not_fit_are_refused(exclude, message):
    with pytest.raises(ValueError, match=message):
        random_bank().using(exclude=exclude).classify(random_queries(3))


@pytest.mark.parametrize("exclude", [[0.0, 1.0, 2.0], torch.zeros(3), [True, False, True], [["a"], [], []], "abc"])
def test_rows_to_leave_out_that_are_no_numbers_are_refused(exclude):
    with pytest.raises(TypeError, match="exclude must be whole numbers"):
        random_bank().using(exclude=exclude)


@pytest.mark.parametrize("backend", ["torch", "faiss"])
@pytest.mark.parametrize("k", [3, 100])
@pytest.mark.parametrize("neighbors", get_args(NeighborRule))
def test_queries_may_leave_out_different_numbers_of_rows(small_steps, neighbors, k, backend):
    if backend == "faiss":
        pytest.importorskip("faiss")
    bank = random_bank(rows=20, k=k, neighbors=neighbors, backend=backend)
    query = random_queries(4)
    nearest = bank.classify(query).neighbor_indices[:, 0].tolist()
    exclude = [[nearest[0]], [], [nearest[2], 5, 5, 11], [-1]]
    found = bank.using(exclude=exclude).compare(query)
    for row, left_out in enumerate(exclude):
        kept = [index for index in range(20) if index not in left_out]
        alone = MemoryBank(
            bank.embeddings[kept], bank.labels[kept], bank.class_names, k, neighbors=neighbors, backend=backend
        )
        expected = alone.compare(query[row : row + 1])
        assert found.predicted[row] == expected.predicted[0]
        torch.testing.assert_close(found.score[row], expected.score[0])


def test_rows_that_fill_up_a_query_have_no_similarity_and_no_vote():
    bank = MemoryBank(torch.eye(3), [0, 1, 2], k=3).using(exclude=[[0, 1], []])
    vote = bank.classify(torch.ones(2, 3))
    assert (vote.similarities == -math.inf).tolist() == [[False, True, True], [False] * 3]
    assert vote.class_scores[0].tolist() == [0, 0, 1]
    assert vote.class_scores[1].tolist() == pytest.approx([1 / 3] * 3)


def test_leaving_out_everything_is_refused():
    bank = MemoryBank(torch.eye(2), [0, 1]).using(exclude=[[0, 1]])
    with pytest.raises(ValueError, match=r"exclude .*2 rows"):
        bank.classify(torch.ones(1, 2))
    only = MemoryBank(torch.eye(2), [0, 1], neighbors="within-class").using(exclude=[0])
    with pytest.raises(ValueError, match=r"support.*class 0"):
        only.support(torch.ones(1, 2), torch.tensor([0]))


# FAISS


@pytest.mark.parametrize("measure", ["cosine", "dot"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("leave_out", [False, True])
def test_faiss_finds_the_same_neighbors(small_steps, measure, dtype, leave_out):
    pytest.importorskip("faiss")
    exact = random_bank(k=70, similarity=measure).to(dtype=dtype)
    bank = MemoryBank(exact.embeddings, exact.labels, k=70, similarity=measure, backend="faiss")
    query = random_queries(9)
    if leave_out:
        rows = exact.classify(query).neighbor_indices[:, :2]
        bank, exact = bank.using(exclude=rows), exact.using(exclude=rows)
    vote, expected = bank.classify(query), exact.classify(query)
    assert vote.neighbor_indices.equal(expected.neighbor_indices)
    torch.testing.assert_close(vote.similarities, expected.similarities, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(vote.class_scores, expected.class_scores, rtol=1e-3, atol=1e-6)
    assert bank.support(query).indices.equal(exact.support(query).indices)


def test_the_index_is_built_once_for_all_who_read_the_bank(monkeypatch):
    faiss = pytest.importorskip("faiss")
    bank = random_bank(backend="faiss")
    made: list[int] = []
    flat = faiss.IndexFlatIP
    monkeypatch.setattr(faiss, "IndexFlatIP", lambda width: made.append(width) or flat(width))
    for k in (2, 3, 4):
        bank.using(k=k).classify(random_queries())
    assert made == [bank.embeddings.shape[1]]


def test_faiss_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ImportError, match=r'pip install "captum-fam\[faiss\]"'):
        random_bank(backend="faiss").classify(random_queries())


# Labels


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ([7, 10**7, 10**7], ("7", "10000000")),
        (torch.tensor([7, 40_000, 40_000], dtype=torch.uint16), ("7", "40000")),
        (np.array([-5, 2**40, 2**40]), ("-5", str(2**40))),
        (np.array([0, 2**63 + 1, 2**63 + 1], dtype=np.uint64), ("0", str(2**63 + 1))),
        ((np.int8(-1), np.int8(3), 3), ("-1", "3")),
        (["jay", "wren", "wren"], ("jay", "wren")),
        (np.array(["jay", "wren", "wren"]), ("jay", "wren")),
    ],
)
def test_labels_of_any_kind_cost_no_more_than_their_classes(labels, names):
    bank = MemoryBank(torch.eye(3), labels, k=3)
    assert bank.class_names == names
    assert bank.labels.tolist() == [0, 1, 1]
    vote = bank.classify(torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.6, 0.8]]))
    assert vote.class_scores.shape == (2, 2)
    assert vote.predicted.tolist() == [0, 1]
    assert bank.class_counts == [1, 2]
    assert bank.compare(torch.eye(3)[1:], target=[0, 1]).target.tolist() == [0, 1]


def test_class_names_give_the_order_of_the_classes():
    names = ["wren", "tit", "jay"]
    for labels in (["jay", "wren", "jay"], [2, 0, 2]):
        bank = MemoryBank(torch.eye(3), labels, names)
        assert bank.class_names == tuple(names)
        assert bank.labels.tolist() == [2, 0, 2]
        assert bank.class_counts == [1, 0, 2]


# What is refused


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((torch.zeros(0, 4), []), ValueError, r"embeddings .*\(0, 4\)"),
        ((torch.zeros(4), [0]), ValueError, r"embeddings .*\(4,\)"),
        (([[1.0]], [0]), TypeError, "embeddings .*list"),
        ((torch.ones(2, 2, dtype=torch.int64), [0, 1]), TypeError, "embeddings .*torch.int64"),
        ((torch.tensor([[1.0], [math.nan]]), [0, 1]), ValueError, "embeddings .*NaN"),
        ((torch.tensor([[math.inf], [1.0]]), [0, 1]), ValueError, "embeddings .*NaN"),
        ((torch.ones(3, 2), [0, 1]), ValueError, "labels .*2 labels for 3"),
        ((torch.ones(2, 2), [0.0, 1.0]), TypeError, "labels .*float"),
        ((torch.ones(2, 2), torch.zeros(2)), TypeError, "labels .*torch.float32"),
        ((torch.ones(2, 2), [True, False]), TypeError, "labels .*bool"),
        ((torch.ones(2, 2), [0, "jay"]), TypeError, "labels .*int, str"),
        ((torch.ones(2, 2), [0, 2], ["a", "b"]), ValueError, "labels .*2 class_names, got 2"),
        ((torch.ones(2, 2), [0, 2**40], ["a", "b"]), ValueError, f"labels .*2 class_names, got {2**40}"),
        ((torch.ones(2, 2), [0, -1], ["a", "b"]), ValueError, "labels .*2 class_names, got -1"),
        ((torch.ones(2, 2), ["a", "c"], ["a", "b"]), ValueError, "class_names lacks .*'c'"),
    ],
)
def test_a_bank_that_does_not_fit_together_is_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        MemoryBank(*arguments)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "k .*0"),
        ({"temperature": 0.0}, "temperature .*0.0"),
        ({"temperature": math.nan}, "temperature .*nan"),
        ({"temperature": 1e-320}, "temperature .*1e-37.*1e-320"),
        ({"neighbors": "A"}, "neighbors .*predicted.*'A'"),
        ({"backend": "annoy"}, "backend .*torch, faiss.*'annoy'"),
        ({"similarity": "manhattan"}, "similarity .*'manhattan'"),
        ({"similarity": "euclidean", "backend": "faiss"}, "backend=.*Euclidean"),
        ({"items": [0, 1]}, "items .*503 rows"),
        ({"items": range(503, 0, -1)}, "items .*ascending"),
    ],
)
def test_an_impossible_option_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        random_bank(**options)
    kept = {name: value for name, value in options.items() if name in ("k", "temperature", "neighbors")}
    if kept:
        with pytest.raises(ValueError, match=message):
            random_bank().using(**kept)


@pytest.mark.parametrize("k", [3.0, "5", True, math.nan, torch.tensor(2.0), None])
def test_a_k_that_is_no_whole_number_is_refused(k):
    with pytest.raises(TypeError, match="k must be a whole number, got"):
        random_bank(k=k)
    if k is not None:  # None keeps the k of the bank
        with pytest.raises(TypeError, match="k must be a whole number, got"):
            random_bank().using(k=k)


@pytest.mark.parametrize("temperature", ["0.07", True, [0.07], 1j])
def test_a_temperature_that_is_no_number_is_refused(temperature):
    with pytest.raises(TypeError, match="temperature must be a number, got"):
        random_bank(temperature=temperature)


@pytest.mark.parametrize("k", [np.int64(3), np.uint8(3), torch.tensor(3), np.array(3)])
def test_a_k_of_any_integer_type_is_the_same_number(k):
    bank, query = random_bank(k=k), random_queries()
    assert bank.classify(query).neighbor_indices.equal(random_bank(k=3).classify(query).neighbor_indices)
    assert type(bank.k) is int


@pytest.mark.parametrize(
    ("query", "message"),
    [
        (torch.zeros(3, 16), "memory bank .*17 features .*16"),
        (torch.zeros(17), r"query .*\(17,\)"),
        (torch.zeros(0, 17), r"query .*\(0, 17\)"),
        (np.zeros((2, 17), dtype=np.float32), "query .*ndarray"),
        (torch.full((2, 17), math.nan), "query .*NaN"),
    ],
)
def test_a_query_that_does_not_fit_is_refused(query, message):
    with pytest.raises(ValueError, match=message):
        random_bank().classify(query)
    with pytest.raises(ValueError, match=message):
        random_bank().support(query)


def test_a_copy_for_captum_costs_nothing():
    bank = random_bank()
    assert copy.deepcopy({"support": bank})["support"] is bank
