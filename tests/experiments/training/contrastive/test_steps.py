"""Steps of NPID and MoCo against loops written by hand, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from unittest.mock import patch

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from captum_fam.embedding.ranks import Ranks
from captum_fam.experiments.training import InstanceBank, KeyQueue, MoCoRecipe, NPIDRecipe
from captum_fam.experiments.training.contrastive.grouped_encoder import GroupedEncoder
from captum_fam.experiments.training.contrastive.instance_learner import InstanceLearner
from captum_fam.experiments.training.contrastive.moco_learner import MoCoLearner
from captum_fam.experiments.training.contrastive.npid_learner import NPIDLearner

Array = NDArray[np.float64]
_RATE = 0.5


def _encoder() -> GroupedEncoder:
    return GroupedEncoder(nn.Sequential(nn.Flatten(), nn.Linear(12, 3, bias=False)), nn.Identity(), groups=2)


def _step(learner: InstanceLearner, views: Tensor, items: Tensor, step: int) -> tuple[float, float]:
    """A step of gradient descent."""
    loss, share = learner.loss(learner.encoder, views, items, step)
    learner.encoder.zero_grad()
    loss.backward()
    with torch.no_grad():
        for parameter in learner.encoder.parameters():
            assert parameter.grad is not None
            parameter -= _RATE * parameter.grad
    learner.finish_step()
    return loss.item(), share.item()


def _units(weights: Array, images: Array) -> list[Array]:
    rows = [np.array([sum(w * x for w, x in zip(row, image, strict=True)) for row in weights]) for image in images]
    return [row / math.sqrt(sum(v * v for v in row)) for row in rows]


def _descended(weights: Array, loss_of: Callable[[Array], float]) -> Array:
    """Weights after a step down the slope, which is measured by central differences."""
    result = weights.copy()
    for place in np.ndindex(*weights.shape):
        up, down = weights.copy(), weights.copy()
        up[place] += 1e-5
        down[place] -= 1e-5
        result[place] -= _RATE * (loss_of(up) - loss_of(down)) / 2e-5
    return result


def _weights(learner: nn.Module) -> Array:
    return next(learner.parameters()).detach().double().numpy()


def _bank_loss(weights: Array, flat: Array, items: list[int], bank: Array, others: list[int]) -> float:
    total = 0.0
    for f, item in zip(_units(weights, flat), items, strict=True):
        terms = {row: math.exp(float(bank[row] @ f) / 0.3) for row in range(9)}
        summed = terms[item] + sum(terms[row] for row in others if row != item)
        total -= math.log(terms[item] / summed) / 4
    return total


@pytest.mark.parametrize("drawn", [False, True])
def test_steps_with_a_bank(drawn: bool) -> None:
    recipe = NPIDRecipe(batch_size=4, temperature=0.3, bank_momentum=0.7, norm_groups=2, negatives=6 if drawn else 0)
    learner = NPIDLearner(_encoder(), recipe, Ranks(), n_images=9, embedding_size=3)
    bank = learner.bank.rows.double().numpy().copy()
    np.testing.assert_allclose((bank**2).sum(1), 1, rtol=1e-5)
    weights = _weights(learner.encoder).copy()
    # The second step has images of the first, whose rows have moved.
    for step, items in enumerate(([7, 0, 3, 5], [5, 8, 7, 1])):
        images = torch.rand(1, 4, 3, 2, 2)
        flat = images[0].flatten(1).double().numpy()
        before = _units(weights, flat)
        with patch.object(learner.bank, "logits", wraps=learner.bank.logits) as logits:
            found, share = _step(learner, images, torch.tensor(items), step)
        negatives = logits.call_args.args[2]
        assert (negatives is not None) == drawn
        others = list(range(9)) if negatives is None else negatives.tolist()
        assert len(others) == (6 if drawn else 9)
        loss_of = partial(_bank_loss, flat=flat, items=items, bank=bank, others=others)
        assert found == pytest.approx(loss_of(weights), rel=1e-5)
        assert 0 <= share <= 1
        weights = _descended(weights, loss_of)
        np.testing.assert_allclose(_weights(learner.encoder), weights, atol=1e-5)
        for f, item in zip(before, items, strict=True):
            mixed = 0.7 * bank[item] + 0.3 * f
            bank[item] = mixed / math.sqrt(float(mixed @ mixed))
        np.testing.assert_allclose(learner.bank.rows.numpy(), bank, atol=1e-5)


def test_steps_with_a_queue() -> None:
    recipe = MoCoRecipe(batch_size=4, temperature=0.25, key_momentum=0.6, queue=5, norm_groups=2)
    learner = MoCoLearner(_encoder(), recipe, Ranks(), n_images=9, embedding_size=3)
    queue = [row.double().numpy().copy() for row in learner.queue.keys]
    weights = _weights(learner.encoder).copy()
    key_weights = weights.copy()
    np.testing.assert_array_equal(_weights(learner.key_encoder), weights)
    # Four keys a step go round the five places of the queue.
    for step in range(3):
        views = torch.rand(2, 4, 3, 2, 2)
        one, two = (view.flatten(1).double().numpy() for view in views)
        keys = _units(key_weights, two)

        def loss_of(weights: Array, one: Array = one, keys: list[Array] = keys) -> float:
            total = 0.0
            for q, key in zip(_units(weights, one), keys, strict=True):
                positive = math.exp(float(q @ key) / 0.25)
                negative = sum(math.exp(float(q @ other) / 0.25) for other in queue)
                total -= math.log(positive / (positive + negative)) / 4
            return total

        found, _ = _step(learner, views, torch.arange(4), step)
        assert found == pytest.approx(loss_of(weights), rel=1e-5)
        weights = _descended(weights, loss_of)
        np.testing.assert_allclose(_weights(learner.encoder), weights, atol=1e-5)
        key_weights = 0.6 * key_weights + 0.4 * weights
        np.testing.assert_allclose(_weights(learner.key_encoder), key_weights, atol=1e-5)
        for number, key in enumerate(keys):
            queue[(4 * step + number) % 5] = key
        np.testing.assert_allclose(learner.queue.keys.numpy(), np.stack(queue), atol=1e-5)
        assert int(learner.queue.position) == 4 * (step + 1) % 5


def test_the_loss_of_a_query_is_that_of_pytorch_metric_learning() -> None:
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    learner = MoCoLearner(_encoder(), MoCoRecipe(batch_size=4, queue=6, norm_groups=1), Ranks(), 9, 3)
    views = torch.rand(2, 4, 3, 2, 2)
    loss, _ = learner.loss(learner.encoder, views, torch.arange(4), 0)
    queries, keys = (learner.encoder(view).detach() for view in views)
    theirs = losses.NTXentLoss(temperature=0.2)
    each = [
        theirs(
            query[None],
            torch.tensor([0]),
            ref_emb=torch.cat([key[None], learner.queue.keys]),
            ref_labels=torch.tensor([0, *[1] * 6]),
        )
        for query, key in zip(queries, keys, strict=True)
    ]
    torch.testing.assert_close(loss.detach(), torch.stack(each).mean(), rtol=1e-5, atol=1e-6)


def test_keys_are_normalized_with_others_than_their_queries() -> None:
    """With batch normalization in groups, the keys of a group are those of a random half of the images."""
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(12), nn.Linear(12, 3, bias=False))
    learner = MoCoLearner(
        GroupedEncoder(model, nn.Identity(), 2), MoCoRecipe(batch_size=8, norm_groups=2), Ranks(), 99, 3
    )
    seen: list[Tensor] = []
    learner.key_encoder.model[0].register_forward_hook(lambda module, inputs, output: seen.append(output))
    views = torch.rand(2, 8, 3, 2, 2)
    learner.loss(learner.encoder, views, torch.arange(8), 0)
    flat = views[1].flatten(1)
    groups = [{int((flat == row).all(1).nonzero()) for row in part} for part in seen]
    assert sorted(groups[0] | groups[1]) == list(range(8))
    assert groups not in ([set(range(4)), set(range(4, 8))], [set(range(4, 8)), set(range(4))])
    # The keys come back in the order of the images.
    learner.finish_step()
    whitened = torch.empty(8, 12)
    for group in groups:
        rows = sorted(group)
        part = flat[rows]
        whitened[rows] = (part - part.mean(0)) / (part.var(0, unbiased=False) + 1e-5).sqrt()
    keys = nn.functional.normalize(whitened @ _first_linear(learner).T, dim=1)
    torch.testing.assert_close(learner.queue.keys[:8], keys, rtol=1e-4, atol=1e-5)


def _first_linear(learner: InstanceLearner) -> Tensor:
    return learner.encoder.model[2].weight.detach()  # type: ignore[union-attr, operator, index]


def test_a_drawn_negative_that_is_the_image_itself_does_not_count() -> None:
    bank = InstanceBank(4, 2, temperature=0.5)
    embeddings = nn.functional.normalize(torch.randn(2, 2), dim=1)
    logits = bank.logits(embeddings, torch.tensor([1, 3]), torch.tensor([3, 0, 1]))
    assert logits[0, 3] == logits[1, 1] == -torch.inf
    full = bank.logits(embeddings, torch.tensor([1, 3]))
    torch.testing.assert_close(logits[0, :3], full[0, [1, 3, 0]])
    torch.testing.assert_close(logits[1, [0, 2, 3]], full[1, [3, 0, 1]])


def test_the_start_of_bank_and_queue_depends_on_their_generator_only() -> None:
    for make in (InstanceBank, KeyQueue):
        one, two = (make(5, 3, generator=torch.Generator().manual_seed(4)) for _ in range(2))
        state = torch.get_rng_state()
        make(5, 3, generator=torch.Generator())
        assert torch.equal(state, torch.get_rng_state())
        torch.testing.assert_close(one.state_dict(), two.state_dict(), rtol=0, atol=0)
