from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from captum_fam import MemoryBank
from captum_fam.metrics import is_correct


def test_correct_is_one_and_wrong_is_zero() -> None:
    correct = is_correct(torch.tensor([3, 1, 0]), torch.tensor([3, 0, 0]))
    assert correct.dtype == torch.float32
    assert correct.tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("predicted", "target"), [([0, 1, 2], [0, 1]), (torch.zeros(2, 2).int(), torch.zeros(2, 2).int())]
)
def test_one_class_per_query_is_needed(predicted: Any, target: Any) -> None:
    with pytest.raises(ValueError, match=r"predicted .*and target .*one class per query"):
        is_correct(predicted, target)


@pytest.mark.parametrize(
    ("predicted", "target"),
    [
        (["jay", "wren", "tit"], np.array(["jay", "tit", "tit"])),
        (np.array([1, 40_000, 7], dtype=np.uint16), torch.tensor([1, 7, 7])),
        ([-(2**70), 1, 0], (-(2**70), 2, 0)),
        (["20", "3", "7"], [20, 4, 7]),
    ],
)
def test_classes_of_any_kind_are_compared(predicted: Any, target: Any) -> None:
    assert is_correct(predicted, target).tolist() == [1, 0, 1]


@pytest.mark.parametrize("wrong", [torch.zeros(2), [True, False], [None, 1]])
def test_what_is_no_class_is_refused_and_named(wrong: Any) -> None:
    with pytest.raises(TypeError, match="predicted must be whole numbers or names"):
        is_correct(wrong, [0, 1])
    with pytest.raises(TypeError, match="target must be whole numbers or names"):
        is_correct([0, 1], wrong)


def test_the_vote_of_a_memory_bank_with_and_without_the_query_itself() -> None:
    embeddings, labels = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]]), torch.tensor([0, 1, 1])
    bank = MemoryBank(embeddings, labels, k=1)
    assert is_correct(bank.classify(embeddings).predicted, labels).tolist() == [1, 1, 1]
    others = bank.using(exclude=torch.arange(3))
    assert is_correct(others.classify(embeddings).predicted, labels).tolist() == [0, 0, 1]
