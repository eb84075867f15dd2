"""Training a relation head: what it learns, that it is the same every time, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from captum_fam.experiments.relation_training import train_relation_head
from captum_fam.similarity import Learned


def two_kinds(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Classes that differ in the sign of one feature among others of noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    embeddings = torch.randn(count, 5, generator=generator)
    embeddings[:, 2] = (2.0 * labels - 1) * 30
    embeddings[:, 3] *= 60
    return embeddings, labels


def test_a_trained_head_puts_unseen_images_of_a_class_together() -> None:
    embeddings, labels = two_kinds(60, seed=0)
    head = train_relation_head(embeddings, labels, width=16, steps=150, learning_rate=1e-2)
    query, of_query = two_kinds(40, seed=1)
    support, of_support = two_kinds(2, seed=2)
    assert (of_support[Learned(head)(query, support).argmax(1)] == of_query).float().mean() > 0.9
    assert not head.training
    assert not any(parameter.requires_grad for parameter in head.parameters())


def test_the_same_seed_gives_the_same_head_and_leaves_the_random_numbers() -> None:
    embeddings, labels = two_kinds(20, seed=0)
    before = torch.get_rng_state()
    first, again, other = (train_relation_head(embeddings, labels, steps=3, seed=seed) for seed in (5, 5, 6))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.hidden.weight, again.hidden.weight)
    assert not torch.equal(first.hidden.weight, other.hidden.weight)


def test_embeddings_of_any_size_give_the_same_head_up_to_the_size() -> None:
    embeddings, labels = two_kinds(20, seed=0)
    first = train_relation_head(embeddings, labels, steps=5)
    large = train_relation_head(1024 * embeddings, labels, steps=5)
    query, support = embeddings[:4], embeddings[4:8]
    torch.testing.assert_close(first(query, support), large(1024 * query, 1024 * support))


def test_a_step_of_one_class_is_refused() -> None:
    with pytest.raises(ValueError, match=r"way must be at least 2, .*, got 1"):
        train_relation_head(*two_kinds(8, seed=0), way=1)


@pytest.mark.parametrize(
    ("embeddings", "labels", "message"),
    [
        (torch.rand(4, 3), torch.zeros(3), r"got \(4, 3\) and \(3,\)"),
        (torch.rand(4, 3), torch.tensor([0, 0, 1, 2]), "two images each, got 1 such"),
        (torch.zeros(4, 3), torch.tensor([0, 0, 1, 1]), "all zero"),
    ],
)
def test_what_cannot_be_learned_from_is_refused(embeddings: Tensor, labels: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train_relation_head(embeddings, labels)
