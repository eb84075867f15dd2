from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from captum_fam.metrics import recall_at_k


def brute_force(embeddings: Tensor, labels: Tensor, k: int) -> list[float]:
    """The mean over all orders of the others that their cosines allow."""
    unit = embeddings / embeddings.norm(dim=1, keepdim=True)
    result = []
    for query in range(len(labels)):
        others = [i for i in range(len(labels)) if i != query]
        if labels[query] not in labels[others]:
            result.append(math.nan)
            continue
        cosines = {i: round(float(unit[query] @ unit[i]), 9) for i in others}
        orders = [
            order for order in itertools.permutations(others) if sorted(order, key=lambda i: -cosines[i]) == list(order)
        ]
        result.append(sum(any(labels[i] == labels[query] for i in order[:k]) for order in orders) / len(orders))
    return result


@pytest.mark.parametrize("k", [1, 2, 4])
def test_recall_is_the_mean_over_all_orders_of_equals(k: int) -> None:
    # few directions: many equal cosines
    directions = torch.tensor([[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0]], dtype=torch.float64)
    for seed in range(6):
        generator = torch.Generator().manual_seed(seed)
        embeddings = directions[torch.randint(0, 3, (7,), generator=generator)]
        labels = torch.randint(0, 3, (7,), generator=generator)
        result = recall_at_k(embeddings, labels, (k,))[:, 0]
        assert result.tolist() == pytest.approx(brute_force(embeddings, labels, k), nan_ok=True)


def test_recall_without_ties_is_the_class_among_the_k_nearest() -> None:
    embeddings, labels = torch.randn(60, 5, dtype=torch.float64), torch.randint(0, 12, (60,))
    unit = embeddings / embeddings.norm(dim=1, keepdim=True)
    nearest = (unit @ unit.T).fill_diagonal_(-2).argsort(1, descending=True)
    ks = (1, 2, 4, 8)
    result = recall_at_k(embeddings, labels, ks)
    for column, k in zip(result.T, ks, strict=True):
        alone = torch.tensor([(labels == label).sum() == 1 for label in labels])
        expected = (labels[nearest[:, :k]] == labels[:, None]).any(1).double().masked_fill(alone, torch.nan)
        torch.testing.assert_close(column, expected, equal_nan=True)


def test_a_query_is_not_its_own_neighbor() -> None:
    embeddings = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]])
    assert recall_at_k(embeddings, torch.tensor([0, 1, 0, 1]), (1,))[:, 0].tolist() == [0, 0, 0, 0]
    assert recall_at_k(embeddings, torch.tensor([0, 0, 1, 1]), (1,))[:, 0].tolist() == [1, 1, 1, 1]


def test_collapsed_embeddings_have_the_recall_of_guessing() -> None:
    labels = torch.tensor([0, 0, 0, 1, 1, 1])
    result = recall_at_k(torch.ones(6, 3), labels, (1, 4))
    # two of five others are right; four of five miss both with chance 0
    torch.testing.assert_close(result, torch.tensor([[0.4, 1.0]], dtype=torch.float64).expand(6, 2))


def test_recall_of_more_embeddings_than_are_compared_at_a_time() -> None:
    # 4500 squared is more than the number of similarities that are held at a time.
    embeddings, labels = torch.randn(4500, 8), torch.arange(4500) % 3
    unit = embeddings / embeddings.norm(dim=1, keepdim=True)
    nearest = torch.stack([(unit @ row).index_fill(0, torch.tensor([i]), -2).argmax() for i, row in enumerate(unit)])
    expected = (labels[nearest] == labels).double()
    assert (recall_at_k(embeddings, labels, (1,))[:, 0] == expected).double().mean() > 0.999


def test_embeddings_with_nan_are_neither_query_nor_neighbor() -> None:
    embeddings = torch.tensor([[1.0, 0.0], [torch.nan, 0.0], [0.9, 0.1], [0.0, 1.0]])
    result = recall_at_k(embeddings, torch.tensor([0, 0, 1, 1]), (1,))[:, 0]
    # the first has lost its only other, the third's nearest is the first, the fourth's the third
    assert result.tolist() == pytest.approx([math.nan, math.nan, 0.0, 1.0], nan_ok=True)


def test_recall_follows_the_similarity() -> None:
    embeddings = torch.tensor([[1.0, 0.0], [9.0, 0.5], [0.9, 0.6]])
    labels = torch.tensor([0, 0, 1])
    assert recall_at_k(embeddings, labels, (1,))[0].item() == 1
    assert recall_at_k(embeddings, labels, (1,), "euclidean")[0].item() == 0


@pytest.mark.parametrize(
    ("embeddings", "labels", "ks", "error", "message"),
    [
        (torch.rand(3, 2), [0] * 4, (1,), ValueError, "labels.*4 labels for 3"),
        (torch.rand(3), [0] * 3, (1,), ValueError, r"embeddings must be \(n, J\).*\(3,\)"),
        ([[1.0]], [0], (1,), TypeError, "embeddings.*list"),
        (torch.rand(3, 2), torch.zeros(3), (1,), TypeError, "labels.*float32"),
        (torch.rand(3, 2), [True, False, True], (1,), TypeError, "labels.*bool"),
        (torch.rand(3, 2), [0, 0, 1], (0, 1), ValueError, "ks.*0"),
        (torch.rand(3, 2), [0, 0, 1], (1, 3.0), TypeError, r"ks.*3\.0"),
        (torch.rand(3, 2), [0, 0, 1], 3, TypeError, "ks.*3"),
        (torch.rand(3, 2), [0, 0, 1], (), ValueError, "ks is empty"),
    ],
)
def test_what_does_not_fit_is_refused(
    embeddings: Any, labels: Any, ks: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        recall_at_k(embeddings, labels, ks)


@pytest.mark.parametrize(
    "labels",
    [
        ["wren", "jay", "wren"],
        np.array(["wren", "jay", "wren"]),
        np.array([40_000, 7, 40_000], dtype=np.uint16),
        torch.tensor([-1, 3, -1], dtype=torch.int8),
        [10**30, -(10**30), 10**30],
    ],
)
def test_labels_of_any_kind_say_who_belongs_together(labels: Any) -> None:
    embeddings = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.8, 0.2]])
    result = recall_at_k(embeddings, labels, (1, np.int64(2)))
    torch.testing.assert_close(
        result, torch.tensor([[0, 1], [torch.nan] * 2, [0, 1]], dtype=torch.float64), equal_nan=True
    )
