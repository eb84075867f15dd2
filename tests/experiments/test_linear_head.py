"""Reading a head: only finite floating-point numbers of fitting shapes; and training a pooling."""

from __future__ import annotations

import pytest
import torch

from captum_fam.experiments.linear_head import load_head, train_pooling
from captum_fam.pooling import GAP, AttentionPooling


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"weight": torch.full((2, 3), torch.nan)}, "hold NaN or inf in weight"),
        ({"weight": torch.ones(2, 3).long()}, "1 of another kind: weight torch.int64 instead of torch.float32"),
        ({"weight": torch.ones(2, 3), "bias": torch.ones(3)}, r"bias \(3,\) instead of \(2,\)"),
        ({"weight": torch.ones(3)}, "expected the state dict of a torch.nn.Linear"),
    ],
)
def test_a_head_that_cannot_be_right_is_refused(tmp_path, state, message):
    torch.save(state, tmp_path / "head.pt")
    with pytest.raises(ValueError, match=rf"^head .*head\.pt: .*{message}"):
        load_head(tmp_path / "head.pt")


def test_a_head_is_read_from_beside_what_a_training_stored(tmp_path):
    head = torch.nn.Linear(3, 2)
    torch.save({"state_dict": head.state_dict(), "path": tmp_path}, tmp_path / "head.pt")
    assert torch.equal(load_head(tmp_path / "head.pt").weight, head.weight)


def test_a_trained_pooling_looks_where_the_classes_differ():
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


def test_a_pooling_is_trained_the_same_with_the_same_seed_and_leaves_the_random_numbers():
    activations, labels = torch.rand(12, 4, 3, 5), torch.arange(12) % 3
    poolings = [AttentionPooling(4) for _ in range(3)]
    before = torch.get_rng_state()
    for pooling, seed in zip(poolings, (1, 1, 2), strict=True):
        train_pooling(pooling, activations, labels, steps=3, batch_size=5, seed=seed)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(poolings[0].query, poolings[1].query)
    assert not torch.equal(poolings[0].query, poolings[2].query)


def test_a_pooling_without_parameters_and_a_single_class_are_refused():
    with pytest.raises(ValueError, match="GAP has none"):
        train_pooling(GAP(), torch.rand(4, 3, 2, 2), torch.arange(4))
    with pytest.raises(ValueError, match="two classes"):
        train_pooling(AttentionPooling(3), torch.rand(4, 3, 2, 2), torch.zeros(4))
