import copy
import math
import os
import subprocess
import sys
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from typing import get_args

import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import Dataset
from torchvision.datasets import ImageFolder
from torchvision.transforms.functional import pil_to_tensor

from captum_fam.support import memory_bank, search
from captum_fam.support.memory_bank import MemoryBank, NeighborRule
from tests.perturbed_products import PerturbedProducts

N_CLASSES = 7


def random_bank(rows=503, features=17, seed=0, **options):
    generator = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(rows, features, generator=generator)
    labels = torch.randint(N_CLASSES, (rows,), generator=generator)
    labels[:N_CLASSES] = torch.arange(N_CLASSES)
    return MemoryBank(embeddings, labels, **options)


def random_queries(count=11, features=17, seed=1):
    return torch.randn(count, features, generator=torch.Generator().manual_seed(seed))


def reference_neighbors(bank, query, k, measure="cosine", exclude=None):
    """Row ids and similarities, most similar first, by sorting all in plain Python and float64."""
    rows = bank.embeddings.double().tolist()
    found = []
    for b, z in enumerate(query.double().tolist()):
        scores = []
        for row, t in enumerate(rows):
            dot = math.fsum(x * y for x, y in zip(z, t, strict=True))
            if measure == "cosine":
                dot /= math.hypot(*z) * math.hypot(*t)
            elif measure == "euclidean":
                dot = -math.dist(z, t)
            if exclude is None or row not in exclude[b]:
                scores.append((dot, row))
        found.append(sorted(scores, reverse=True)[:k])
    return [[row for _, row in one] for one in found], torch.tensor([[s for s, _ in one] for one in found])


@pytest.fixture
def small_steps(monkeypatch):
    """Blocks of a few rows and queries, so that small banks are searched in many."""
    monkeypatch.setattr(search, "STEP_BYTES", 4 * (4 + 2 * 17) * 60)
    monkeypatch.setattr(memory_bank, "_STEP_QUERIES", 4)


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
    with pytest.raises(ValueError, match="query: its similarity to rows of the memory bank is NaN or inf; rescale"):
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
    assert vote.neighbor_indices.shape == (6, 97)
    rows, _ = reference_neighbors(bank, query, 97, exclude=exclude.tolist())
    assert vote.neighbor_indices.tolist() == rows


def test_excluding_leaves_the_bank_itself_alone():
    bank = random_bank()
    bank.using(exclude=[1, 2], k=3)
    assert bank.exclude is None
    assert bank.k == 200


@pytest.mark.parametrize(
    ("exclude", "message"),
    [
        ([1, 2], "exclude is for 2 queries but there are 3; set it for each batch"),
        ([0, 1, 503], r"exclude must hold rows 0..502, got 0..503"),
        ([0, -1, 2], r"exclude must hold rows 0..502, got -1..2"),
    ],
)
def test_rows_to_leave_out_that_do_not_fit_are_refused(exclude, message):
    with pytest.raises(ValueError, match=message):
        random_bank().using(exclude=exclude).classify(random_queries(3))


def test_leaving_out_everything_is_refused():
    bank = MemoryBank(torch.eye(2), [0, 1]).using(exclude=[[0, 1]])
    with pytest.raises(ValueError, match="exclude leaves nothing of the 2 rows"):
        bank.classify(torch.ones(1, 2))
    only = MemoryBank(torch.eye(2), [0, 1], neighbors="within-class").using(exclude=[0])
    with pytest.raises(ValueError, match="the bank has no row of class 0 left to compare with"):
        only.support(torch.ones(1, 2), torch.tensor([0]))


# The supports of Eq. 11


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
    with pytest.raises(ValueError, match=r'query 1 .* class jay among the 1 nearest rows; .*"within-class"'):
        bank.support(query, torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="no row of class owl left"):
        bank.using(neighbors="whole-class").support(query, torch.tensor([2, 2]))


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


# What is refused


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((torch.zeros(0, 4), []), ValueError, r"embeddings must be \(M, J\) with at least one row, got shape \(0, 4\)"),
        ((torch.zeros(4), [0]), ValueError, r"embeddings must be \(M, J\).*got shape \(4,\)"),
        (([[1.0]], [0]), TypeError, "embeddings must be a floating-point tensor .*got list"),
        ((torch.ones(2, 2, dtype=torch.int64), [0, 1]), TypeError, "floating-point tensor .*got torch.int64"),
        ((torch.tensor([[1.0], [math.nan]]), [0, 1]), ValueError, "embeddings contain NaN or inf"),
        ((torch.tensor([[math.inf], [1.0]]), [0, 1]), ValueError, "embeddings contain NaN or inf"),
        ((torch.ones(3, 2), [0, 1]), ValueError, r"labels must have one entry per row: got shape \(2,\) for 3 rows"),
        ((torch.ones(2, 2), [0, -1]), ValueError, "labels must not be negative, got -1"),
        ((torch.ones(2, 2), [0.0, 1.0]), TypeError, "labels must be whole numbers, got torch.float32"),
        ((torch.ones(2, 2), [0, 2], ["a", "b"]), ValueError, "class_names has 2 names, labels go up to 2"),
    ],
)
def test_a_bank_that_does_not_fit_together_is_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        MemoryBank(*arguments)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "k must be at least 1, got 0"),
        ({"temperature": 0.0}, "temperature must be positive.*got 0.0"),
        ({"temperature": math.nan}, "temperature must be positive.*got nan"),
        ({"temperature": 1e-320}, "temperature must be positive, 1e-37 at least, got 1e-320"),
        ({"neighbors": "A"}, "neighbors must be one of predicted, all, vote, .*, got 'A'"),
        ({"backend": "annoy"}, "backend must be one of torch, faiss, got 'annoy'"),
        ({"similarity": "manhattan"}, "similarity must be one of .*, got 'manhattan'"),
        ({"similarity": "euclidean", "backend": "faiss"}, "finds by cosine or dot, not by Euclidean"),
        ({"items": [0, 1]}, "items must have one entry per row"),
        ({"items": range(503, 0, -1)}, "items must be ascending"),
    ],
)
def test_an_impossible_option_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        random_bank(**options)
    kept = {name: value for name, value in options.items() if name in ("k", "temperature", "neighbors")}
    if kept:
        with pytest.raises(ValueError, match=message):
            random_bank().using(**kept)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        (torch.zeros(3, 16), "the memory bank embeds to 17 features but the query to 16"),
        (torch.zeros(17), r"query must be embeddings \(B, J\) of at least one query, got shape \(17,\)"),
        (torch.zeros(0, 17), "at least one query"),
        (torch.full((2, 17), math.nan), "query contains NaN or inf"),
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


# Files


def test_a_saved_bank_is_read_back_as_it_was(tmp_path):
    bank = random_bank(k=7, temperature=0.2, similarity="dot", neighbors="vote", class_names=list("abcdefgh"))
    bank = bank.to(dtype=torch.float16)
    bank.skipped = {600: "broken"}
    bank.save(tmp_path / "new" / "bank.safetensors")
    read = MemoryBank.load(tmp_path / "new" / "bank.safetensors")
    assert read.embeddings.equal(bank.embeddings)
    assert read.embeddings.dtype == torch.float16
    assert read.labels.equal(bank.labels)
    assert (read.k, read.temperature, read.neighbors, read.similarity_name) == (7, 0.2, "vote", "dot")
    assert read.class_names == tuple("abcdefgh")
    assert read.skipped == {600: "broken"}
    vote, again = bank.classify(random_queries()), read.classify(random_queries())
    assert again.class_scores.equal(vote.class_scores)
    assert MemoryBank.load(tmp_path / "new" / "bank.safetensors", k=3).k == 3


def test_saving_again_replaces_the_file_and_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / "bank.safetensors"
    random_bank(rows=20).save(path)
    random_bank(rows=30).save(path)
    assert len(MemoryBank.load(path)) == 30
    assert list(tmp_path.iterdir()) == [path]


def test_a_measure_given_as_an_object_is_asked_for_again(tmp_path):
    measure = nn.CosineSimilarity()
    bank = MemoryBank(torch.eye(3), [0, 1, 2], similarity=measure)
    bank.save(tmp_path / "bank.safetensors")
    with pytest.raises(ValueError, match=r"pass it again: similarity=\.\.\."):
        MemoryBank.load(tmp_path / "bank.safetensors")
    again = MemoryBank.load(tmp_path / "bank.safetensors", similarity=measure)
    assert again.classify(torch.tensor([[0.0, 2.0, 0.1]])).predicted.tolist() == [1]


def test_a_file_that_is_no_bank_is_refused(tmp_path):
    from safetensors.torch import save_file

    with pytest.raises(FileNotFoundError, match=r"nowhere\.safetensors: no such memory bank"):
        MemoryBank.load(tmp_path / "nowhere.safetensors")
    save_file({"weight": torch.ones(2)}, tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match=r"weights\.safetensors: a safetensors file, but no memory bank"):
        MemoryBank.load(tmp_path / "weights.safetensors")
    path = tmp_path / "cut.safetensors"
    random_bank().save(path)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=r"cut\.safetensors: broken, or no safetensors file"):
        MemoryBank.load(path)


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing_beside_it(tmp_path, monkeypatch):
    path = tmp_path / "bank.safetensors"
    random_bank(rows=20).save(path)
    whole = path.read_bytes()

    def full_disk(tensors, filename, metadata):
        Path(filename).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full_disk)
    with pytest.raises(OSError, match="No space left"):
        random_bank(rows=30).save(path)
    assert path.read_bytes() == whole
    assert list(tmp_path.iterdir()) == [path]


def test_safetensors_is_named_where_it_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ImportError, match=r'pip install "captum-fam\['):
        random_bank().save(tmp_path / "bank.safetensors")


# From a dataset


class Pictures(Dataset):
    """53 pictures of 4 classes; some may be unreadable. Counts how often each is read."""

    class_names = ("ant", "bee", "cat", "dog")

    def __init__(self, broken=(), size=53, dies_at=None):
        self.images = torch.rand(53, 3, 4, 6, generator=torch.Generator().manual_seed(5))
        self.broken, self.size, self.dies_at = set(broken), size, dies_at
        self.read = Counter()

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        if index == self.dies_at:
            raise KeyboardInterrupt
        if index in self.broken:
            raise FileNotFoundError(2, "No such file", f"{index}.jpg")
        self.read[index] += 1
        return self.images[index], index % 4


def embedder(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(72, 5)).eval()


def build(dataset=None, model=None, path=None, **options):
    options = {"batch_size": 4, "save_every": 2, "progress": False, **options}
    return MemoryBank.from_dataset(model or embedder(), Pictures() if dataset is None else dataset, path, **options)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_bank_of_a_dataset_has_a_row_for_every_item_in_order(tmp_path, num_workers):
    dataset, model = Pictures(), embedder()
    with torch.no_grad():
        expected = model(dataset.images)
    for path in (None, tmp_path / "bank.safetensors"):
        bank = build(dataset, model, path, k=3, num_workers=num_workers)
        torch.testing.assert_close(bank.embeddings, expected)
        assert bank.labels.tolist() == [i % 4 for i in range(53)]
        assert bank.items.tolist() == list(range(53))
        assert bank.class_names == dataset.class_names
        assert bank.k == 3
    assert list(tmp_path.iterdir()) == [tmp_path / "bank.safetensors"]
    assert MemoryBank.load(tmp_path / "bank.safetensors").k == 3


@pytest.mark.parametrize("dies_at", [3, 16, 29, 52])
def test_an_interrupted_build_goes_on_where_it_ended(tmp_path, dies_at):
    path = tmp_path / "bank.safetensors"
    dying = Pictures(dies_at=dies_at, broken=[7, 17])
    with pytest.raises(KeyboardInterrupt):
        build(dying, path=path, on_error="skip")
    assert not path.exists()
    whole_batches = dies_at // 4 * 4
    second = Pictures(broken=[7, 17])
    with pytest.warns(
        UserWarning, match="left out of the bank, because they could not be read: 2, the first is item 7"
    ):
        bank = build(second, path=path, on_error="skip")
    # those of whole batches are not read again, but for the first four, which are compared
    again = {item for item in second.read if item < whole_batches}
    assert again <= {0, 1, 2, 3}
    assert bank.items.tolist() == [i for i in range(53) if i not in (7, 17)]
    assert sorted(bank.skipped) == [7, 17]
    with torch.no_grad():
        torch.testing.assert_close(bank.embeddings, embedder()(second.images)[bank.items])
    assert list(tmp_path.iterdir()) == [path]


def test_a_killed_process_loses_no_stored_piece(tmp_path):
    code = f"""
import os, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import torch, test_memory_bank as t
class Killed(t.Pictures):
    def __getitem__(self, index):
        if index == 30:
            os._exit(9)  # no clean-up, as in a kill
        return super().__getitem__(index)
t.build(Killed(), path={str(tmp_path / "bank.safetensors")!r})
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 9
    assert not (tmp_path / "bank.safetensors").exists()
    dataset = Pictures()
    bank = build(dataset, path=tmp_path / "bank.safetensors")
    assert min(item for item in dataset.read if item > 3) == 24  # six batches of four had been stored
    assert bank.items.tolist() == list(range(53))


def test_a_finished_file_is_read_instead_of_made(tmp_path):
    path = tmp_path / "bank.safetensors"
    first = build(path=path)
    dataset = Pictures()
    again = build(dataset, path=path, k=2)
    assert again.embeddings.equal(first.embeddings)
    assert set(dataset.read) == {0, 1, 2, 3}
    assert again.k == 2


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize("other", ["model", "labels", "length", "size"])
def test_work_of_another_model_or_dataset_is_never_taken_up(tmp_path, finished, other):
    path = tmp_path / "bank.safetensors"
    if finished:
        build(path=path)
    else:
        with pytest.raises(KeyboardInterrupt):
            build(Pictures(dies_at=20), path=path)
    dataset, model = Pictures(), embedder()
    if other == "model":
        model = embedder(1)
    elif other == "size":
        model = nn.Sequential(nn.Flatten(), nn.Linear(72, 6)).eval()
    elif other == "labels":
        dataset.__class__ = type("Relabeled", (Pictures,), {"__getitem__": lambda self, i: (self.images[i], 1)})
    else:
        dataset.size = 40
    with pytest.raises(ValueError, match=r"bank\.safetensors.* was made .*delete it, or choose another path"):
        build(dataset, model, path)


def test_a_build_stops_at_an_unreadable_item_unless_told_to_skip(tmp_path):
    path = tmp_path / "bank.safetensors"
    with pytest.raises(FileNotFoundError, match=r"31\.jpg"):
        build(Pictures(broken=[31]), path=path)
    repaired = Pictures()
    assert len(build(repaired, path=path)) == 53
    assert min(item for item in repaired.read if item > 3) == 28


def test_the_last_items_may_all_be_unreadable(tmp_path):
    path = tmp_path / "bank.safetensors"
    with pytest.raises(KeyboardInterrupt):
        build(Pictures(dies_at=48), path=path)
    for _ in range(2):  # said again when it is read from the file
        with pytest.warns(UserWarning, match="could not be read: 5"):
            bank = build(Pictures(broken=range(48, 53)), path=path, on_error="skip")
        assert bank.items.tolist() == list(range(48))


def test_a_dataset_of_unreadable_items_makes_no_bank_until_it_is_repaired(tmp_path):
    path = tmp_path / "bank.safetensors"
    with pytest.raises(ValueError, match=r"none of its 53 items could be read: .*No such file.*0\.jpg"):
        build(Pictures(broken=range(53)), path=path, on_error="skip")
    assert len(build(path=path, on_error="skip")) == 53


def test_an_empty_dataset_makes_no_bank():
    with pytest.raises(ValueError, match="none of its 0 items could be read: it is empty"):
        build(Pictures(size=0))


def test_an_embedding_of_nan_names_the_item_and_loses_nothing(tmp_path):
    path = tmp_path / "bank.safetensors"
    model = embedder()
    poisoned = Pictures()
    poisoned.images[38] = math.nan
    with pytest.raises(ValueError, match="the embedding of item 38 contains NaN or inf"):
        build(poisoned, model, path)
    healthy = Pictures()
    build(healthy, model, path)
    assert min(item for item in healthy.read if item > 3) == 36


def test_a_model_in_training_mode_is_refused():
    with pytest.raises(ValueError, match=r"model is in training mode.*call model\.eval\(\) first"):
        build(model=embedder().train())


def test_any_callable_embeds():
    bank = build(model=lambda images: images.mean((2, 3)))
    torch.testing.assert_close(bank.embeddings, Pictures().images.mean((2, 3)))


def test_nothing_of_the_caller_is_changed():
    model = embedder()
    state = torch.get_rng_state()
    build(model=model)
    assert torch.get_rng_state().equal(state)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_a_folder_of_torchvision_with_a_broken_image_makes_a_bank(tmp_path):
    for i in range(6):
        path = tmp_path / "train" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (6, 4), (40 * i, 0, 0)).save(path)
    (tmp_path / "train" / "b" / "3.png").write_bytes(b"no image")
    dataset = ImageFolder(str(tmp_path / "train"), transform=lambda image: pil_to_tensor(image).float())
    with pytest.warns(UserWarning, match="could not be read: 1"):
        bank = build(dataset, on_error="skip")
    assert bank.class_names == ("a", "b")
    assert bank.labels.tolist() == [0, 0, 0, 1, 1]
    assert bank.items.tolist() == [0, 1, 2, 3, 5]
