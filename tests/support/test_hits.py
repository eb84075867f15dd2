"""Reading what search engines answer."""

from __future__ import annotations

import uuid
from typing import Any

import numpy as np
import pytest
import torch

from captum_fam.support.hits import read_ids, read_scores, read_vectors

FIRST, SECOND = uuid.UUID(int=1), uuid.UUID(int=2)


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        (torch.tensor([[4, 2], [7, -1]], dtype=torch.int32), ((4, 2), (7, None))),
        (np.array([[4, 2], [7, -1]]), ((4, 2), (7, None))),
        (np.array([[2**64 - 1]], dtype=np.uint64), ((2**64 - 1,),)),
        ([[4, 2], [7]], ((4, 2), (7, None))),
        ([["a", None], ["b", "c"]], (("a", None), ("b", "c"))),
        (np.array([["a", "b"]]), (("a", "b"),)),
        (np.array([[FIRST, SECOND]], dtype=object), ((FIRST, SECOND),)),
        ([(np.int64(3), torch.tensor(1))], ((3, 1),)),
        ([torch.tensor([3, 1]), torch.tensor([0])], ((3, 1), (0, None))),
        ([[("folder", 3)]], ((("folder", 3),),)),
    ],
)
def test_ids_of_each_kind(ids: Any, expected: Any) -> None:
    assert read_ids(ids) == expected


@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        (torch.tensor([1, 2]), ValueError, r"ids must be \(B, K\).*\(2,\)"),
        (torch.zeros(2, 0).int(), ValueError, r"ids must be \(B, K\).*\(2, 0\)"),
        ([1, 2], ValueError, r"ids must be \(B, K\), a list of hits for each query, got 1"),
        (["ab", "cd"], ValueError, r"ids must be \(B, K\).*got ab"),
        ([], ValueError, r"ids must be \(B, K\)"),
        ({1: 2}, ValueError, r"ids must be \(B, K\).*dict"),
        (torch.zeros(1, 2), TypeError, "ids .*0.0"),
        ([[True]], TypeError, "ids .*True"),
        ([[float("nan")]], TypeError, "ids .*nan"),
        ([[[1], [2]]], TypeError, r"ids .*\[1\]"),
        ([[1], [None, -1]], ValueError, "ids: query 1 has no hit"),
        ([[1], []], ValueError, "ids: query 1 has no hit"),
    ],
)
def test_what_are_no_ids_is_named(ids: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        read_ids(ids)


def test_scores_of_missing_hits_are_not_read() -> None:
    lowest = np.finfo(np.float32).min  # what FAISS gives beside -1
    ids = read_ids([[4, -1], [7, 1]])
    for scores in (
        np.array([[0.5, lowest], [0.25, -2.0]], dtype=np.float32),
        torch.tensor([[0.5, torch.nan], [0.25, -2.0]]),
        [[0.5], [0.25, -2]],
        [[0.5, None], [np.float16(0.25), torch.tensor(-2.0)]],
    ):
        read = read_scores(scores, ids)
        assert read.dtype == torch.float64
        torch.testing.assert_close(
            read, torch.tensor([[0.5, torch.nan], [0.25, -2.0]], dtype=torch.float64), equal_nan=True
        )


@pytest.mark.parametrize(
    ("scores", "error", "message"),
    [
        (torch.rand(3, 2), ValueError, r"scores .*\(2, 2\), got \(3, 2\).*embeddings="),
        (torch.rand(2, 3), ValueError, r"scores .*\(2, 2\), got \(2, 3\)"),
        ([[0.5], [0.5]], ValueError, r"scores .*\(2, 2\), got \(2, 1\)"),
        ([[0.5, 0.5], [np.inf, 0.5]], ValueError, "scores: rank 0 of query 1 .*inf"),
        ([[0.5, "0.4"], [0.5, 0.5]], TypeError, "scores must be real numbers.*rank 1 of query 0"),
        ([[0.5, 1j], [0.5, 0.5]], TypeError, "scores must be real numbers.*rank 1 of query 0"),
        ([0.5, 0.5], ValueError, r"scores must be \(B, K\)"),
    ],
)
def test_scores_that_do_not_fit_are_named(scores: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        read_scores(scores, read_ids([[4, 3], [7, 1]]))


@pytest.mark.parametrize(
    "vectors",
    [
        torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]),
        np.array([[1, 2, 3], [4, 5, 6]], dtype=np.float32),
        [np.array([1, 2, 3], dtype=np.float32), torch.tensor([4.0, 5.0, 6.0])],
        {"b": [4.0, 5.0, 6.0], "c": [7.0, 8.0, 9.0], "a": (1.0, 2.0, 3.0)},
    ],
)
def test_vectors_of_each_kind(vectors: Any) -> None:
    assert read_vectors(vectors, ["a", "b"], "fetch").tolist() == [[1, 2, 3], [4, 5, 6]]


@pytest.mark.parametrize(
    ("vectors", "error", "message"),
    [
        (torch.rand(3, 4), ValueError, r"fetch must give \(n, J\) for 2 ids, got shape \(3, 4\)"),
        (torch.rand(2), ValueError, r"fetch .*\(2,\)"),
        (torch.rand(2, 0), ValueError, r"fetch .*\(2, 0\)"),
        (None, TypeError, "fetch .*NoneType"),
        ([None, None], TypeError, "fetch .*list"),
        ([[1.0, 2.0], [1.0]], TypeError, "fetch .*list"),
        (torch.ones(2, 3).int(), TypeError, "fetch .*int32"),
        ({"a": [1.0]}, ValueError, "fetch has no embedding for 1 of 2 ids, such as b"),
        (torch.tensor([[0.0], [torch.nan]]), ValueError, "fetch: the embedding of id 'b' contains NaN"),
    ],
)
def test_vectors_that_do_not_fit_are_named(vectors: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message.replace("'b'", "b")):
        read_vectors(vectors, ["a", "b"], "fetch")
