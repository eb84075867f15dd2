from __future__ import annotations

import pytest
import torch

from captum_fam.metrics import RecallAtK, recall_at_k, summarize


def test_a_query_is_compared_with_those_of_other_batches() -> None:
    embeddings, labels = torch.randn(23, 4), torch.randint(0, 3, (23,))
    metric = RecallAtK(2)
    for batch in torch.arange(23).split(9):
        metric.update(embeddings[batch], labels[batch])
    expected = summarize(recall_at_k(embeddings, labels, (2,))[:, 0])
    assert metric.result() == expected
    assert metric.compute() == torch.tensor(expected.value)


def test_embeddings_with_nan_count_as_nan_and_those_alone_in_their_class_as_skipped() -> None:
    metric = RecallAtK()
    metric.update(torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [torch.nan, 0.0]]), torch.tensor([0, 0, 1, 0]))
    assert metric.result()[2:6] == (2, 1, 0, 1)


@pytest.mark.parametrize("name_of", [lambda label: f"bird {label}", lambda label: 10**30 * (label - 1)])
def test_classes_are_the_same_in_all_batches_although_no_batch_has_them_all(name_of) -> None:
    embeddings, labels = torch.randn(14, 4), [0, 1] * 4 + [2, 1] * 3
    metric = RecallAtK(1)
    for batch in torch.arange(14).split(5):
        metric.update(embeddings[batch], [name_of(labels[i]) for i in batch.tolist()])
    assert metric.result() == summarize(recall_at_k(embeddings, labels, (1,))[:, 0])


def test_a_k_that_is_no_whole_number_is_refused_at_once() -> None:
    with pytest.raises(TypeError, match=r"k must be a whole number, got 3.0"):
        RecallAtK(3.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        RecallAtK(0)
