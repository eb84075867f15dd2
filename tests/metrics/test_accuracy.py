from __future__ import annotations

import pytest
import torch

from captum_fam import MemoryBank
from captum_fam.metrics import is_correct


def test_correct_is_one_and_wrong_is_zero() -> None:
    correct = is_correct(torch.tensor([3, 1, 0]), torch.tensor([3, 0, 0]))
    assert correct.dtype == torch.float32
    assert correct.tolist() == [1, 0, 1]


def test_one_class_per_query_is_needed() -> None:
    with pytest.raises(ValueError, match=r"predicted .*\(3,\) and target \(2,\)"):
        is_correct(torch.zeros(3), torch.zeros(2))


def test_the_vote_of_a_memory_bank_with_and_without_the_query_itself() -> None:
    embeddings, labels = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]]), torch.tensor([0, 1, 1])
    bank = MemoryBank(embeddings, labels, k=1)
    assert is_correct(bank.classify(embeddings).predicted, labels).tolist() == [1, 1, 1]
    others = bank.using(exclude=torch.arange(3))
    assert is_correct(others.classify(embeddings).predicted, labels).tolist() == [0, 0, 1]
