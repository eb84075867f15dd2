from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from captum_fam.experiments.training import (
    MetricRecipe,
    embed_dataset,
    pooled_features,
    recalls_at,
    train_metric,
    train_metric_head,
)
from captum_fam.experiments.training.sources import holdout_mask, split_holdout
from captum_fam.models import create_model, read_state_dict
from captum_fam.pooling import GMP

pytest.importorskip("safetensors", reason="checkpoints are safetensors")
pytest.importorskip("pytorch_metric_learning", reason="the losses are of pytorch-metric-learning")

_LOSSES = ("multi-similarity", "margin")


class _Squares(Dataset[tuple[Tensor, int]]):
    """Bright squares on a dark ground: a class is the color of its square, which moves."""

    def __init__(self, n_classes: int = 4, each: int = 6, size: int = 64) -> None:
        self.labels = torch.arange(n_classes * each) % n_classes * 3
        self.images = 0.05 * torch.rand(len(self.labels), 3, size, size)
        colors = torch.rand(n_classes, 3)
        for image, label in zip(self.images, self.labels, strict=True):
            y, x = torch.randint(size // 2, (2,)).tolist()
            image[:, y : y + size // 2, x : x + size // 2] = colors[int(label) // 3].view(3, 1, 1)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], int(self.labels[index])


@pytest.fixture
def features() -> tuple[Tensor, Tensor]:
    """Forty classes whose directions drown in what they have in common: ``(800, 32)`` and labels."""
    labels = torch.arange(800) % 40
    shared = torch.randn(800, 4) @ torch.randn(4, 32)
    return torch.randn(40, 32)[labels] + 0.7 * torch.randn(800, 32) + shared, labels


_SHORT = MetricRecipe(steps=4, period=2, way=2, images=3, learning_rate=1e-3)


@pytest.mark.parametrize("loss", _LOSSES)
def test_a_head_learns_to_retrieve_classes_it_has_not_seen(
    loss: Any, features: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    rows, labels = features
    seen = labels < 25
    recipe = MetricRecipe(loss, steps=150, period=50, way=16, learning_rate=1e-2)
    trained = train_metric_head(
        rows[seen], labels[seen], (rows[~seen], labels[~seen]), tmp_path, recipe, embedding_size=16
    )
    before = recalls_at(rows[~seen], labels[~seen])
    after = recalls_at(trained.model(rows[~seen]).detach(), labels[~seen])
    assert trained.log[-1]["loss"] < 0.8 * trained.log[0]["loss"]
    # Chance is 1 / 15.
    assert after["recall@1"] > before["recall@1"] + 0.1
    assert after["recall@1"] == pytest.approx(trained.best["val_recall@1"])
    assert after["recall@1"] <= after["recall@2"] <= after["recall@4"] <= after["recall@8"]
    state = read_state_dict(tmp_path / "best-head.safetensors")
    torch.testing.assert_close(state, dict(trained.model.state_dict()))


def test_the_losses_have_the_published_settings() -> None:
    labels = torch.tensor([0, 0, 1, 1])

    def on_circle(*angles: float) -> Tensor:
        turns = torch.tensor(angles, dtype=torch.float64)
        return torch.stack([turns.cos(), turns.sin()], 1)

    # Wang et al., Eq. 10, after the mining: pairs that are easy by more than 0.1 do not count.
    embeddings = on_circle(0.0, 0.9, 1.2, 2.1)
    expected, n_pairs = 0.0, 0
    for i in range(4):
        positives = [float(embeddings[i] @ embeddings[j]) for j in range(4) if j != i and labels[i] == labels[j]]
        negatives = [float(embeddings[i] @ embeddings[j]) for j in range(4) if labels[i] != labels[j]]
        hard_positives = [s for s in positives if s - 0.1 < max(negatives)]
        hard_negatives = [s for s in negatives if s + 0.1 > min(positives)]
        n_pairs += len(hard_positives) + len(hard_negatives)
        expected += math.log(1 + sum(math.exp(-2 * (s - 0.5)) for s in hard_positives)) / 2
        expected += math.log(1 + sum(math.exp(40 * (s - 0.5)) for s in hard_negatives)) / 40
    assert 0 < n_pairs < 12
    assert float(MetricRecipe("multi-similarity").make_loss()(embeddings, labels)) == pytest.approx(expected / 4)

    # An image twice in a class is a pair like any other, and never the pair of an image with itself.
    twins = float(MetricRecipe("multi-similarity").make_loss()(on_circle(0.5, 0.5, 0.5, 2.0), labels))
    close, far = math.exp(-2 * (1 - 0.5)), math.exp(-2 * (math.cos(1.5) - 0.5))
    same, apart = math.exp(40 * (1 - 0.5)), math.exp(40 * (math.cos(1.5) - 0.5))
    first = math.log(1 + close) / 2 + math.log(1 + same) / 40
    third = math.log(1 + far) / 2 + math.log(1 + 2 * same) / 40
    fourth = math.log(1 + far) / 2 + math.log(1 + 2 * apart) / 40
    assert twins == pytest.approx((2 * first + third + fourth) / 4)

    # Wu et al., Eq. 6, by hand. Only the second and third are nearer than 1.4 and so can be sampled, each as the
    # other's negative, beside its only positive; the mean is over the terms that are not zero.
    loss = MetricRecipe("margin").make_loss()(on_circle(0.0, 1.3, 1.9, 3.2), labels)
    positive = 2 * math.sin(1.3 / 2) - 1.2 + 0.2
    negative = 1.2 - 2 * math.sin(0.6 / 2) + 0.2
    assert float(loss) == pytest.approx((2 * positive + 2 * negative) / 4)


def test_batches_are_of_the_published_size_and_rates_fall_at_the_tabled_steps() -> None:
    multi_similarity, margin = MetricRecipe(), MetricRecipe("margin")
    assert multi_similarity.classes * multi_similarity.images == 80
    assert margin.classes * margin.images == 120
    rates = [multi_similarity.rate(step) for step in (0, 1199, 1200, 2399, 2400, 2999)]
    assert rates == pytest.approx([3e-5, 3e-5, 3e-6, 3e-6, 3e-7, 3e-7])
    assert replace(margin, steps=300, period=20).rate(120) == pytest.approx(3e-6)


@pytest.mark.parametrize("loss", _LOSSES)
def test_a_killed_head_goes_on_to_the_same_end(loss: Any, features: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    recipe = MetricRecipe(loss, steps=12, period=4, way=5, learning_rate=1e-2)
    whole = train_metric_head(*features, features, tmp_path / "whole", recipe, embedding_size=6)
    with pytest.MonkeyPatch.context() as patch:
        steps = []
        step = torch.optim.Adam.step

        def dies(self: Any, *args: Any, **kwargs: Any) -> Any:
            steps.append(1)
            if len(steps) == 7:
                raise KeyboardInterrupt
            return step(self, *args, **kwargs)

        patch.setattr(torch.optim.Adam, "step", dies)
        with pytest.raises(KeyboardInterrupt):
            train_metric_head(*features, features, tmp_path / "killed", recipe, embedding_size=6)
    torch.manual_seed(99)
    resumed = train_metric_head(*features, features, tmp_path / "killed", recipe, embedding_size=6)
    assert [{**row, "seconds": 0} for row in resumed.log] == [{**row, "seconds": 0} for row in whole.log]
    assert torch.equal(whole.model.weight, resumed.model.weight)


@pytest.mark.parametrize("loss", _LOSSES)
@pytest.mark.parametrize("name", ["multi_similarity_bn_inception", "npid_resnet18", "conv4net"])
def test_a_whole_network_trains_and_its_batch_statistics_stay(name: str, loss: Any, tmp_path: Path) -> None:
    torch.manual_seed(1)
    net = replace(create_model(name), size=32)
    before = {key: value.clone() for key, value in net.model.state_dict().items()}
    data = _Squares(size=40)
    val = _Squares(size=32)
    recipe = replace(_SHORT, loss=loss)
    trained = train_metric(net, data, val, tmp_path, recipe, embedding_size=8)
    after = net.model.state_dict()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed >= {key for key in before if before[key].dim() == 4}
    assert not {key for key in changed if "running" in key}
    assert [row["step"] for row in trained.log] == [2, 4]
    embeddings, labels = embed_dataset(trained.model, net, val)
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(len(val)))
    assert recalls_at(embeddings, labels)["recall@1"] == pytest.approx(trained.best["val_recall@1"])
    again = create_model(name, tmp_path / "best.safetensors")
    torch.testing.assert_close(again.model.state_dict(), net.model.state_dict(), rtol=0, atol=0)
    # A network without a head gets one, in a file of its own.
    assert (tmp_path / "best-head.safetensors").is_file() == (name == "conv4net")


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_killed_network_goes_on_to_the_same_end_with_any_number_of_workers(num_workers: int, tmp_path: Path) -> None:
    data = _Squares(size=20)

    def train(out: str, workers: int) -> Any:
        torch.manual_seed(1)
        net = replace(create_model("conv4net"), size=16)
        return train_metric(net, data, None, tmp_path / out, _SHORT, embedding_size=8, num_workers=workers)

    whole = train("whole", 0)
    with pytest.MonkeyPatch.context() as patch:
        steps = []
        step = torch.optim.Adam.step

        def dies(self: Any, *args: Any, **kwargs: Any) -> Any:
            steps.append(1)
            if len(steps) == 4:
                raise KeyboardInterrupt
            return step(self, *args, **kwargs)

        patch.setattr(torch.optim.Adam, "step", dies)
        with pytest.raises(KeyboardInterrupt):
            train("killed", num_workers)
    resumed = train("killed", num_workers)
    torch.testing.assert_close(whole.model.state_dict(), resumed.model.state_dict(), rtol=0, atol=0)


def test_without_validation_the_last_step_is_kept(features: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    trained = train_metric_head(*features, None, tmp_path, _SHORT, embedding_size=4)
    assert trained.best["step"] == 4
    assert (tmp_path / "best-head.safetensors").read_bytes() == (tmp_path / "last-head.safetensors").read_bytes()


def test_pooled_features_are_those_of_the_layer_and_are_computed_once(tmp_path: Path) -> None:
    torch.manual_seed(1)
    net = replace(create_model("conv64f"), size=24)
    data = _Squares(size=24)
    rows, labels = pooled_features(net, data, GMP(), tmp_path / "features.pt")
    with torch.no_grad():
        expected = net.model.features(net.normalize(data.images)).amax((2, 3))
    torch.testing.assert_close(rows, expected, rtol=1e-3, atol=1e-4)
    assert torch.equal(labels, data.labels)
    data.images.zero_()
    assert torch.equal(pooled_features(net, data, GMP(), tmp_path / "features.pt")[0], rows)


def test_every_nth_class_is_held_out() -> None:
    data = _Squares(n_classes=7)
    train, val = split_holdout(data, 3)
    assert val is not None
    assert train.labels.unique().tolist() == [0, 3, 9, 12, 18]
    assert val.labels.unique().tolist() == [6, 15]
    assert [val[i][1] for i in range(len(val))] == val.labels.tolist()
    assert split_holdout(data, 0) == (data, None)
    with pytest.raises(ValueError, match="0 or at least 2, got 1"):
        holdout_mask(data.labels, 1)


def test_pooling_cannot_be_changed_below_a_head(tmp_path: Path) -> None:
    net = replace(create_model("npid_resnet18"), size=32)
    with pytest.raises(ValueError, match="npid_resnet18 has a head"):
        train_metric(net, _Squares(), None, tmp_path, _SHORT, pooling=GMP())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"loss": "triplet"}, "'triplet'"), ({"steps": 10, "period": 4}, "steps=10 must be a multiple of period=4")],
)
def test_a_recipe_that_cannot_be_followed_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MetricRecipe(**wrong)


def test_too_few_classes_are_refused(features: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    rows, labels = features
    with pytest.raises(ValueError, match="way=24 needs as many classes, labels has 20"):
        train_metric_head(rows, labels % 20, None, tmp_path, MetricRecipe("margin"))


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pytorch_metric_learning", None)
    with pytest.raises(ImportError, match=r'pip install "captum-fam\[train\]"'):
        MetricRecipe().make_loss()


def test_a_head_is_kaiming_normal_with_zero_bias() -> None:
    from captum_fam.experiments.training import new_head

    head = new_head(500, 200)
    assert head.weight.detach().std().item() == pytest.approx(math.sqrt(2 / 200), rel=0.02)
    assert not head.bias.any()
    assert isinstance(head, nn.Linear)
