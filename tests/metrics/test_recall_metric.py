from __future__ import annotations

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
