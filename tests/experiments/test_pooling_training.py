"""Training a pooling: what it learns, that it is the same every time, and what it refuses."""

from __future__ import annotations

import pytest
import torch

from captum_fam.experiments import train_pooling
from captum_fam.pooling import GAP, AttentionPooling


def test_a_trained_pooling_looks_where_the_classes_differ() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(48) % 3
    # Channel 3 marks the one position that shows the class; the others show classes at random.
    activations = torch.zeros(48, 4, 3, 5)
    activations[:, :3] = torch.nn.functional.one_hot(torch.randint(3, (48, 3, 5), generator=generator), 3).movedim(3, 1)
    for image, label in zip(activations, labels.tolist(), strict=True):
        image[:, 1, 2] = 0
        image[[label, 3], 1, 2] = 1
    pooling = AttentionPooling(4)
    train_pooling(pooling, activations, labels, steps=200, learning_rate=0.1, batch_size=16)
    weights = (torch.einsum("bnhw,n->bhw", activations, pooling.query) / 2).flatten(1).softmax(1)
    assert (weights.argmax(1) == 7).all()
    assert not pooling.training
    assert not pooling.query.requires_grad


def test_a_pooling_is_trained_the_same_with_the_same_seed_and_leaves_the_random_numbers() -> None:
    activations, labels = torch.rand(12, 4, 3, 5), torch.arange(12) % 3
    poolings = [AttentionPooling(4) for _ in range(3)]
    before = torch.get_rng_state()
    for pooling, seed in zip(poolings, (1, 1, 2), strict=True):
        train_pooling(pooling, activations, labels, steps=3, batch_size=5, seed=seed)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(poolings[0].query, poolings[1].query)
    assert not torch.equal(poolings[0].query, poolings[2].query)


def test_a_trained_pooling_may_be_trained_further() -> None:
    pooling, activations, labels = AttentionPooling(4), torch.rand(12, 4, 3, 5), torch.arange(12) % 3
    train_pooling(pooling, activations, labels, steps=2)
    before = pooling.query.clone()
    train_pooling(pooling, activations, labels, steps=2)
    assert not torch.equal(pooling.query, before)
    assert not pooling.query.requires_grad


def test_a_pooling_without_parameters_and_a_single_class_are_refused() -> None:
    with pytest.raises(ValueError, match="GAP has none"):
        train_pooling(GAP(), torch.rand(4, 3, 2, 2), torch.arange(4))
    with pytest.raises(ValueError, match="two classes"):
        train_pooling(AttentionPooling(3), torch.rand(4, 3, 2, 2), torch.zeros(4))
