from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax

from captum_fam.demo.scenes import PlantedScenes
from captum_fam.embedding.ranks import Ranks
from captum_fam.experiments.training import (
    Augmentation,
    FewShotLearner,
    FewShotRecipe,
    LabeledImages,
    embed_bytes,
    few_shot_accuracy,
    initialize,
    read_images,
    train_few_shot,
)
from captum_fam.models import EmbeddingModel, create_model
from captum_fam.pooling import GAP

pytest.importorskip("safetensors", reason="checkpoints are safetensors")


@pytest.fixture(scope="session")
def scenes() -> dict[str, LabeledImages]:
    """Ten small scenes of every base class, twenty of every novel one."""
    splits = {"base": 960, "novel": 480}
    return {
        split: read_images(PlantedScenes(split, length=length, size=32))  # type: ignore[arg-type]
        for split, length in splits.items()
    }


@pytest.fixture
def tiny() -> LabeledImages:
    """Random images of five classes, six of each."""
    return LabeledImages(torch.randint(256, (30, 3, 16, 16), dtype=torch.uint8), torch.arange(30) % 5 * 7)


def _net(name: str = "conv4net", size: int = 16, **options: Any) -> EmbeddingModel:
    net = replace(create_model(name, **options), size=size)
    initialize(net.model, 0)
    return net


_SHORT = FewShotRecipe(way=2, query=2, epochs=3, episodes=4, episodes_per_step=2, val_episodes=5)


def _train(net: EmbeddingModel, images: LabeledImages, out: Path, recipe: FewShotRecipe = _SHORT, **kwargs: Any) -> Any:
    # Six images a class are too few for the fifteen queries of validation: each thrice.
    val = LabeledImages(images.images.repeat(3, 1, 1, 1), images.labels.repeat(3))
    return train_few_shot(net, images, val, out, recipe, **kwargs)


class _Maps(nn.Module):
    """Gives the images themselves for maps, of as many channels."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, 3, 1)
        nn.init.eye_(self.features.weight[:, :, 0, 0])
        nn.init.zeros_(self.features.bias)
        self.pooling = GAP()

    def forward(self, x: Tensor) -> Tensor:
        return self.pooling(self.features(x))


def _cross_entropy(logits: Tensor, target: int) -> float:
    return -float(log_softmax(logits.detach(), 0)[target])


@pytest.mark.parametrize("shot", [1, 3])
@pytest.mark.parametrize("weighting", ["learned", "fixed"])
def test_the_losses_are_those_of_the_equations_written_as_loops(shot: int, weighting: Any) -> None:
    way, query, episodes, n_classes, scale = 3, 2, 2, 7, 7.0
    recipe = FewShotRecipe(way=way, shot=shot, query=query, weighting=weighting)
    net = EmbeddingModel("maps", _Maps(), "features", 5, True, (0.0,) * 3, (1.0,) * 3)
    learner = FewShotLearner(net, n_classes, recipe)
    a, b = 0.3, -0.4
    with torch.no_grad():
        learner.log_variances.copy_(torch.tensor([a, b]))
    images = torch.randn(episodes, way, shot + query, 3, 5, 4)
    classes = torch.tensor([[4, 0, 6], [1, 5, 2]])
    losses = learner(images.flatten(0, 2), classes)

    weight, bias = learner.classifier.weight[:, :, 0, 0].double(), learner.classifier.bias.double()
    nearest, everywhere, right = [], [], []
    for e in range(episodes):
        prototypes = [sum(images[e, w, k].double().mean((1, 2)) for k in range(shot)) / shot for w in range(way)]
        for w in range(way):
            for q in range(query):
                query_map = images[e, w, shot + q].double()
                for y in range(5):
                    for x in range(4):
                        f = query_map[:, y, x]
                        cosines = [f @ t / (f.norm() * t.norm()) for t in prototypes]
                        nearest.append(_cross_entropy(scale * torch.stack(cosines), w))
                        everywhere.append(_cross_entropy(weight @ f + bias, int(classes[e, w])))
                pooled = query_map.mean((1, 2))
                scores = [float(pooled @ t / t.norm()) for t in prototypes]
                right.append(scores.index(max(scores)) == w)
    l_nn, l_glob = sum(nearest) / len(nearest), sum(everywhere) / len(everywhere)
    total = math.exp(-a) * l_nn + math.exp(-b) * l_glob + (a + b) / 2 if weighting == "learned" else 0.5 * l_nn + l_glob
    assert torch.stack(losses).tolist() == pytest.approx([total, l_nn, l_glob, sum(right) / len(right)], rel=1e-5)


def test_gradients_reach_network_classifier_and_loss_weights() -> None:
    learner = FewShotLearner(_net(), 5, _SHORT)
    learner(torch.randn(2 * 2 * 3, 3, 16, 16), torch.tensor([[0, 4], [2, 1]])).total.backward()
    assert all(float(p.grad.abs().sum()) > 0 for name, p in learner.named_parameters() if not name.endswith("0.bias"))


def test_the_learning_rate_falls_at_the_tabled_epochs() -> None:
    recipe = FewShotRecipe()
    rates = [recipe.learning_rate(epoch) for epoch in (0, 59, 60, 69, 70, 79, 80, 89)]
    assert rates == [0.1, 0.1, 0.006, 0.006, 0.0012, 0.0012, 0.00024, 0.00024]


def test_the_learning_rate_falls_at_the_same_shares_of_fewer_epochs() -> None:
    recipe = FewShotRecipe(epochs=9)
    assert [recipe.learning_rate(epoch) for epoch in range(9)] == [0.1] * 6 + [0.006, 0.0012, 0.00024]


def test_loss_weights_do_not_decay(tiny: LabeledImages, tmp_path: Path) -> None:
    recipe = replace(_SHORT, epochs=1, episodes=2, weight_decay=0.25)
    optimizers: list[Any] = []
    step = torch.optim.SGD.step

    def spy(self: Any, *args: Any, **kwargs: Any) -> Any:
        optimizers.append(self)
        return step(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.SGD, "step", spy)
        _train(_net(), tiny, tmp_path, recipe)
    by_decay = {group["weight_decay"]: group["params"] for group in optimizers[0].param_groups}
    assert [p.numel() for p in by_decay.pop(0.0)] == [2]
    assert sum(p.numel() for p in by_decay.pop(0.25)) == 113_088 + 5 * 65  # the network and its classifier
    assert not by_decay


def test_training_on_planted_scenes_lowers_the_loss_and_tells_novel_classes_apart(
    scenes: dict[str, LabeledImages], tmp_path: Path
) -> None:
    net = _net(size=32)
    recipe = FewShotRecipe(
        epochs=6, episodes=30, episodes_per_step=2, augmentation=Augmentation(4, 0.5, 0.0), val_episodes=100
    )
    before, _ = few_shot_accuracy(embed_bytes(net, scenes["novel"].images), scenes["novel"].labels, episodes=300)
    trained = train_few_shot(net, scenes["base"], scenes["novel"], tmp_path, recipe)
    after, interval = few_shot_accuracy(embed_bytes(net, scenes["novel"].images), scenes["novel"].labels, episodes=300)
    assert trained.log[-1]["nearest_loss"] < trained.log[0]["nearest_loss"] < math.log(5)
    # Chance is 0.2, random weights have 0.25.
    assert before < 0.28
    assert after - interval > 0.34


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("conv4net", {}),
        ("conv64f", {}),
        ("conv64f_21x21", {}),
        ("resnet12", {"drop_rate": 0.1, "block_size": 1}),
        ("few_shot_resnet18", {}),
        ("few_shot_resnet18_3x3_stem", {}),
        ("torchvision/squeezenet1_1", {}),
        pytest.param("wide_resnet28_10", {}, marks=pytest.mark.slow),
    ],
)
def test_every_few_shot_network_trains_for_ten_steps(
    name: str, options: dict[str, Any], tiny: LabeledImages, tmp_path: Path
) -> None:
    size = 32 if "squeezenet" in name else 16
    images = LabeledImages(nn.functional.interpolate(tiny.images, size), tiny.labels)
    recipe = FewShotRecipe(way=2, query=1, epochs=1, episodes=10, episodes_per_step=1, val_episodes=2)
    if "squeezenet" in name:  # has no batch normalization, and would leave the numbers at 0.1
        recipe = replace(recipe, learning_rates=(0.001,) * 4)
    net = _net(name, size, **options)
    before = {key: value.clone() for key, value in net.model.state_dict().items()}
    trained = _train(net, images, tmp_path, recipe)
    assert all(math.isfinite(value) for value in trained.best.values())
    convolutions = [key for key in before if before[key].dim() == 4]
    assert all(not torch.equal(before[key], net.model.state_dict()[key]) for key in convolutions)
    assert not net.model.training
    again = create_model(name, tmp_path / "best.safetensors", **options)
    torch.testing.assert_close(again.model.state_dict(), trained.model.state_dict(), rtol=0, atol=0)


class _Killed(Exception):
    pass


class _Mortal(Augmentation):
    """Dies in its tenth batch."""

    n_batches = 0

    def __call__(self, *args: Any) -> Tensor:
        type(self).n_batches += 1
        if self.n_batches == 10:
            raise _Killed
        return super().__call__(*args)


def test_a_killed_run_goes_on_to_the_same_end(tiny: LabeledImages, tmp_path: Path) -> None:
    recipe = replace(_SHORT, epochs=4, episodes=8)
    # Dropout draws random numbers too.
    make = partial(_net, "wide_resnet28_10", depth=10, width=1, dropout=0.3)
    whole = _train(make(), tiny, tmp_path / "whole", recipe)
    with pytest.raises(_Killed):
        _train(make(), tiny, tmp_path / "killed", replace(recipe, augmentation=_Mortal()))
    assert len((tmp_path / "killed" / "log.csv").read_text().splitlines()) == 3  # a header and two of the four epochs
    torch.manual_seed(99)
    resumed = _train(make(), tiny, tmp_path / "killed", recipe)
    for ours, theirs in zip(whole.log, resumed.log, strict=True):
        assert {**ours, "seconds": 0} == {**theirs, "seconds": 0}
    for ours, theirs in zip(whole.model.state_dict().values(), resumed.model.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)
    assert (tmp_path / "whole" / "last.safetensors").read_bytes() == (
        tmp_path / "killed" / "last.safetensors"
    ).read_bytes()


def test_a_finished_run_is_not_trained_again(tiny: LabeledImages, tmp_path: Path) -> None:
    first = _train(_net(), tiny, tmp_path)
    again = _train(_net(), tiny, tmp_path)
    assert first.log == again.log
    torch.testing.assert_close(first.model.state_dict(), again.model.state_dict())


def test_a_folder_of_another_run_is_refused_and_the_difference_named(tiny: LabeledImages, tmp_path: Path) -> None:
    _train(_net(), tiny, tmp_path)
    with pytest.raises(ValueError, match=r"seed was 1, now 2\); choose another folder"):
        _train(_net(), tiny, tmp_path, replace(_SHORT, seed=2))
    other = LabeledImages(255 - tiny.images, tiny.labels)
    with pytest.raises(ValueError, match="base was"):
        _train(_net(), other, tmp_path)


def test_the_checkpoint_is_of_the_best_epoch_on_the_validation_classes(tiny: LabeledImages, tmp_path: Path) -> None:
    trained = _train(_net(), tiny, tmp_path, replace(_SHORT, epochs=5, val_episodes=20))
    best = json.loads((tmp_path / "best.json").read_text())
    assert best["val_accuracy"] == max(row["val_accuracy"] for row in trained.log) == trained.best["val_accuracy"]
    assert best["epoch"] == trained.best["epoch"]
    val = LabeledImages(tiny.images.repeat(3, 1, 1, 1), tiny.labels.repeat(3))
    accuracy, _ = few_shot_accuracy(
        embed_bytes(replace(_net(), model=trained.model), val.images), val.labels, way=2, episodes=20
    )
    assert accuracy == pytest.approx(best["val_accuracy"], abs=1e-6)


def test_curves_are_written_for_tensorboard(tiny: LabeledImages, tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    trained = _train(_net(), tiny, tmp_path, tensorboard=True)
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.value for event in events.Scalars("loss")] == pytest.approx([row["loss"] for row in trained.log])


def test_training_leaves_the_callers_random_numbers_alone(tiny: LabeledImages, tmp_path: Path) -> None:
    net = _net()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    _train(net, tiny, tmp_path)
    assert torch.equal(torch.rand(3), expected)


def test_mixed_precision_trains_too(tiny: LabeledImages, tmp_path: Path) -> None:
    exact = _train(_net(), tiny, tmp_path / "float32")
    mixed = _train(_net(), tiny, tmp_path / "bfloat16", precision="bfloat16")
    assert mixed.log[0]["loss"] == pytest.approx(exact.log[0]["loss"], rel=0.05)
    assert mixed.log[0]["loss"] != exact.log[0]["loss"]
    assert all(p.dtype == torch.float32 for p in mixed.model.parameters())


def test_a_network_with_a_head_is_refused() -> None:
    with pytest.raises(ValueError, match="npid_resnet18: its embedding is not the average of the map"):
        FewShotLearner(_net("npid_resnet18", 32), 5, _SHORT)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"learning_rates": (0.1, 0.01)}, "one more than the 3 milestones, got 2"),
        ({"episodes": 10, "episodes_per_step": 4}, "episodes=10 must be a multiple of episodes_per_step=4"),
        ({"weighting": "kendall"}, "'kendall'"),
    ],
)
def test_a_recipe_that_cannot_be_followed_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FewShotRecipe(**wrong)


def test_a_loss_that_is_not_finite_ends_the_run_and_says_so(tiny: LabeledImages, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="the loss of epoch 0 is nan; lower the learning rate"):
        _train(_net(), tiny, tmp_path, replace(_SHORT, learning_rates=(1e30,) * 4))
    assert not (tmp_path / "state.pt").exists()


def test_half_precision_on_a_cpu_is_refused(tiny: LabeledImages, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='"float16" needs a GPU'):
        _train(_net(), tiny, tmp_path, precision="float16")


def test_accuracy_is_one_for_classes_apart_and_chance_for_the_same_point() -> None:
    labels = torch.arange(6).repeat_interleave(20)
    apart = torch.eye(6)[labels] + 0.01 * torch.randn(120, 6)
    assert few_shot_accuracy(apart, labels, episodes=10) == (1.0, 0.0)
    accuracy, interval = few_shot_accuracy(torch.randn(120, 6), labels, episodes=400)
    assert abs(accuracy - 0.2) < 2 * interval
    assert 0 < interval < 0.02


def test_the_interval_is_1_96_standard_errors_over_episodes() -> None:
    from captum_fam.experiments.data.episodes import EpisodeSampler

    embeddings, labels = torch.randn(100, 3, dtype=torch.float64), torch.arange(100) % 5
    rights = []
    for episode in EpisodeSampler(labels, 3, 2, 4, 50, seed=3):
        prototypes = embeddings[episode.support].mean(1)
        cosines = torch.nn.functional.cosine_similarity(embeddings[episode.query][:, :, None], prototypes, dim=-1)
        rights.append(float((cosines.argmax(-1) == torch.arange(3)[:, None]).double().mean()))
    mean = sum(rights) / 50
    deviation = math.sqrt(sum((right - mean) ** 2 for right in rights) / 50)
    expected = mean, 1.96 * deviation / math.sqrt(50)
    assert few_shot_accuracy(embeddings, labels, way=3, shot=2, query=4, episodes=50, seed=3) == pytest.approx(expected)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_a_gpu_trains_as_the_cpu_does(precision: Any, tiny: LabeledImages, tmp_path: Path) -> None:
    on_cpu = _train(_net(), tiny, tmp_path / "cpu")
    on_gpu = _train(_net(), tiny, tmp_path / "gpu", ranks=Ranks(device="cuda"), precision=precision)
    assert on_gpu.log[0]["loss"] == pytest.approx(on_cpu.log[0]["loss"], rel=0.05)
    assert next(on_gpu.model.parameters()).is_cuda
